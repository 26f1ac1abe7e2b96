"""The score of an evaluated experience, whatever its targets call for."""

from __future__ import annotations

from typing import Any

from avalanche.evaluation import PluginMetric
from torch import Tensor

from plasticity_cl.metrics.scores import Score, score_for

NAN = float("nan")


def predictions(strategy: Any) -> Tensor:
    """The output of the current batch; decoded where the criterion encodes its targets."""
    decode = getattr(strategy._criterion, "decode", None)
    output: Tensor = strategy.mb_output
    return output if decode is None else decode(output)


class ExperienceScore(PluginMetric):  # type: ignore[misc]
    """Accuracy or R2 of the evaluated experience, whatever its targets call for."""

    takes_only_the_batch = True

    def __init__(self, score: str | None = None) -> None:
        super().__init__()
        self._choice = score
        self._score: Score | None = None

    def before_eval_exp(self, strategy: Any) -> None:
        """Start the score of an experience."""
        self.reset()

    def after_eval_iteration(self, strategy: Any) -> None:
        """Take in a batch."""
        if self._score is None:
            self._score = score_for(strategy.mb_y, self._choice)
        self._score.update(predictions(strategy), strategy.mb_y)

    def result(self) -> float:
        """The score of the experience evaluated last; NaN before the first."""
        return NAN if self._score is None else self._score.result()

    def reset(self) -> None:
        """Forget the batches seen."""
        self._score = None
