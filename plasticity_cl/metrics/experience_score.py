"""The score of an evaluated experience, whatever its targets call for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from plasticity_cl.metrics.guard import GuardedMetric
from plasticity_cl.metrics.scores import Choice, Score, check_choice, logits_of, predictor_for, score_for
from plasticity_cl.training.learner import Learner, criterion_of

NAN = float("nan")


def score_on(strategy: Any, experiences: Any, metric: ExperienceScore) -> float:
    """Score a strategy with one metric alone: no other metric and no logger of its evaluator hears of it.

    Args:
        strategy: Any Avalanche strategy.
        experiences: What to evaluate it on, of which the last is scored.
        metric: Scores it.
    """
    evaluator = strategy.evaluator
    metrics, evaluator.metrics = evaluator.metrics, [metric]
    try:
        strategy.eval(experiences)
    finally:
        evaluator.metrics = metrics
    return metric.result()


class ExperienceScore(GuardedMetric):
    """Accuracy or bounded R2 of the evaluated experience, whatever its targets and the criterion call for.

    Where no score is defined it warns once and has no value; see :func:`~plasticity_cl.metrics.scores.score_for`.

    Args:
        score: ``None``, or ``"accuracy"``, ``"bounded-r2"``, ``"r2"`` or a function without arguments that returns a
            :class:`~plasticity_cl.metrics.scores.Score`.

    Raises:
        UserError: If ``score`` is none of them.
    """

    takes_only_the_batch = True

    def __init__(self, score: Choice = None) -> None:
        super().__init__()
        check_choice(score)
        self._choice = score
        self._score: Score | None = None
        self._failed = False
        self._predict: Callable[[Any], Tensor] = logits_of

    def before_eval_exp(self, strategy: Learner) -> None:
        """Start the score of an experience."""
        self.reset()

    def after_eval_iteration(self, strategy: Learner) -> None:
        """Take in a batch."""
        if self._failed:
            return
        if self._score is None:
            self._predict = predictor_for(criterion_of(strategy))
        output, target = self._predict(strategy.mb_output), strategy.mb_y
        if self._score is None:
            self._score = score_for(output, target, criterion_of(strategy), self._choice)
        self._score.update(output, target)

    def result(self) -> float:
        """The score of the experience evaluated last; NaN before the first, and where there is none."""
        return NAN if self._score is None else self._score.result()

    def reset(self) -> None:
        """Forget the batches seen."""
        self._score, self._failed = None, False

    def on_failure(self, strategy: Learner, event: str) -> None:
        """Give no value for this experience: a score of some of its batches would not be its own."""
        self._score, self._failed = None, True
