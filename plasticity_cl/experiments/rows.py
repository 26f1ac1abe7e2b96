"""The rows of a run: what its metrics said, one row a value."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from avalanche.evaluation.metric_results import MetricValue
from avalanche.logging import BaseLogger

from plasticity_cl.metrics import Scalar, Separation
from plasticity_cl.writing import write_atomically

HEADER = ("metric", "stream", "layer", "experience", "value")
Key = tuple[str, str, str, int]


class RowLogger(BaseLogger):  # type: ignore[misc]
    """Writes every scalar as a row of ``metrics.csv``: at once as it comes, and sorted when the run is finished.

    A row's horizontal axis is the experience, as that of every :class:`Scalar` is: curves over epochs are other values,
    and are left to TensorBoard.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._rows: dict[Key, float] = {}
        self._file = path.open("w", encoding="utf-8", newline="")
        self._file.write(_line(HEADER))

    def log_metrics(self, metric_values: list[MetricValue]) -> None:
        """Append the scalars; other values are no rows."""
        scalars = [value for value in metric_values if isinstance(value, Scalar)]
        for scalar in scalars:
            self._put((scalar.metric, scalar.stream, scalar.layer, scalar.x_plot), scalar.value)
        if scalars:
            self._file.flush()

    def finish(self, separations: Mapping[str, Separation], chance: Mapping[str, Sequence[float]]) -> None:
        """Take in the separation of every stream, and write all rows in order.

        Its rows replace the ones written as the run went: those were rounded without the final score.

        Args:
            separations: By stream.
            chance: For each stream the score of the best constant prediction on each experience.
        """
        for stream, scores in chance.items():
            self._rows |= {("chance", stream, "", k): score for k, score in enumerate(scores)}
        for stream, separation in separations.items():
            for metric, values in vars(separation).items():
                for k, value in enumerate(values):
                    if value == value:
                        self._rows[metric, stream, "", k] = float(value)
        self._file.close()
        lines = [_line(HEADER), *(_line((*key, repr(value))) for key, value in sorted(self._rows.items()))]
        write_atomically(self._path, "".join(lines))

    def _put(self, key: Key, value: float) -> None:
        self._rows[key] = value
        self._file.write(_line((*key, repr(value))))


def _line(fields: tuple[Any, ...]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(fields)
    return buffer.getvalue()
