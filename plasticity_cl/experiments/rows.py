"""The rows of a run: what its metrics said, one row a value."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from avalanche.evaluation.metric_results import MetricValue
from avalanche.logging import BaseLogger

from plasticity_cl import table
from plasticity_cl.errors import UserError
from plasticity_cl.metrics import Scalar, Separation
from plasticity_cl.metrics.identity import number_of, stream_name
from plasticity_cl.quantity import Quantity, quantities_of, to_json
from plasticity_cl.writing import write_atomically

_CHANCE = Quantity("chance", mechanism="Scores")


def write_quantities(path: Path, metrics: Iterable[Any]) -> None:
    """Write down what the numbers of a run are, for its report.

    Args:
        path: The file, ``metrics.json``.
        metrics: The metrics of the run; see :class:`~plasticity_cl.quantity.Quantity` for what they may carry.

    Raises:
        UserError: If a metric carries something else.
    """
    write_atomically(path, to_json({**quantities_of(metrics), "chance": _CHANCE}))


class RowLogger(BaseLogger):  # type: ignore[misc]
    """Appends every scalar to ``metrics.csv``, as a row, at once as it comes; see :mod:`plasticity_cl.table`.

    A row's horizontal axis is the experience, as that of every :class:`Scalar` is: curves over epochs are other values,
    and are left to TensorBoard.

    Numbers of other metrics, Avalanche's own or a stranger's, have no experience of their own. They become rows under
    their full name, at the experience that was trained on last, where they are emitted at the end of a training or of
    an evaluation, of one experience or as a whole; those of an evaluation have its stream. The last value counts. Left
    out are those of single iterations and epochs, those from before the first training, and those of evaluations that
    run ahead of the training, of an experience that is still to be trained on.

    Args:
        path: The file. What is in it is replaced by the first row, unless a state is loaded before.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._file = path.open("ab")
        self._size = 0
        self._trained: list[int] = []
        """The experiences trained on, the last one at the end."""
        self._stream, self._is_ahead = "", False
        """Of the evaluation that is going on."""

    def log_metrics(self, metric_values: list[MetricValue]) -> None:
        """Append the scalars; what else may be a row is told by the event at which it comes."""
        self._append(
            table.row(scalar.metric, scalar.stream, scalar.layer, scalar.x_plot, scalar.value)
            for scalar in metric_values
            if isinstance(scalar, Scalar) and scalar.x_plot >= 0
        )

    def before_training_exp(self, strategy: Any, metric_values: list[MetricValue], **_: Any) -> None:
        """Note which experience is trained on."""
        number = number_of(strategy.experience)
        self._trained = [*(k for k in self._trained if k != number), number]

    def after_training_exp(self, strategy: Any, metric_values: list[MetricValue], **_: Any) -> None:
        """Append the numbers of other metrics."""
        self._append_others(metric_values)

    def after_training(self, strategy: Any, metric_values: list[MetricValue], **_: Any) -> None:
        """Append the numbers of other metrics."""
        self._append_others(metric_values)

    def before_eval(self, strategy: Any, metric_values: list[MetricValue], **_: Any) -> None:
        """Begin to watch what is evaluated."""
        self._stream, self._is_ahead = "", False

    def after_eval_exp(self, strategy: Any, metric_values: list[MetricValue], **_: Any) -> None:
        """Append the numbers of other metrics."""
        is_ahead = number_of(strategy.experience) not in self._trained
        self._stream, self._is_ahead = stream_name(strategy.experience), self._is_ahead or is_ahead
        if not is_ahead:
            self._append_others(metric_values, self._stream)

    def after_eval(self, strategy: Any, metric_values: list[MetricValue], **_: Any) -> None:
        """Append the numbers of other metrics."""
        if not self._is_ahead:
            self._append_others(metric_values, self._stream)

    def finish(self, separations: Mapping[str, Separation], chance: Mapping[str, Sequence[float]]) -> None:
        """Append the separation of every stream; no rows come after it.

        Its rows replace the ones written as the run went: those were rounded without the final score.

        Args:
            separations: By stream.
            chance: For each stream the score of the best constant prediction on each experience.
        """
        rows = {("chance", stream, k): score for stream, scores in chance.items() for k, score in enumerate(scores)}
        for stream, separation in separations.items():
            for metric, values in vars(separation).items():
                rows |= {(metric, stream, k): float(value) for k, value in enumerate(values) if value == value}
        self._append(table.row(metric, stream, "", k, value) for (metric, stream, k), value in sorted(rows.items()))
        if not self._size:
            self._write(b"")
        self._file.close()

    def state_dict(self) -> dict[str, Any]:
        """How far the file has come, to be loaded when the run goes on after a stop."""
        return {"bytes": self._size, "trained": list(self._trained)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state: the rows that were written after it, half ones too, are cut off and come again.

        Raises:
            UserError: If the file does not hold what it held then.
        """
        held, size = os.fstat(self._file.fileno()).st_size, int(state["bytes"])
        if held < size:
            raise UserError(
                f"{self._path} holds {held} bytes and held {size} when the run was stopped: it cannot be continued; "
                f"remove {self._path.parent} to begin anew"
            )
        self._file.truncate(size)
        self._size, self._trained = size, [int(k) for k in state["trained"]]

    def _append_others(self, metric_values: Iterable[MetricValue], stream: str = "") -> None:
        if self._trained:
            k = self._trained[-1]
            self._append(table.row(name, stream, "", k, value) for name, value in _numbers(metric_values))

    def _append(self, rows: Iterable[str]) -> None:
        data = "".join(rows).encode()
        if data:
            self._write(data)

    def _write(self, data: bytes) -> None:
        if not self._size:
            self._file.truncate(0)
            data = table.header().encode() + data
        self._file.write(data)
        self._file.flush()
        self._size += len(data)


def _numbers(metric_values: Iterable[MetricValue]) -> Iterator[tuple[str, float]]:
    """The numbers of metrics that are not ours, by full name; as Avalanche's loggers take them, also in a mapping."""
    for found in metric_values:
        if isinstance(found, Scalar):
            continue
        named = found.value.items() if isinstance(found.value, dict) else [(None, found.value)]
        for part, value in named:
            if isinstance(value, int | float) and not isinstance(value, bool):
                name = found.name if part is None else f"{found.name}/{part}"
                yield " ".join(name.split()), float(value)
