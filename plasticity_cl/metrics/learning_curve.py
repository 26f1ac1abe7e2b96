"""How fast each experience is learned."""

from __future__ import annotations

from typing import Any

import torch
from avalanche.evaluation import PluginMetric

from plasticity_cl.errors import UserError
from plasticity_cl.metrics.experience_score import NAN, predictions
from plasticity_cl.metrics.scalar import Scalar
from plasticity_cl.metrics.scores import Score, score_for
from plasticity_cl.training.deferred import Losses


class LearningCurveMetric(PluginMetric):  # type: ignore[misc]
    """How fast each experience is learned, from the outputs of the training itself: it adds no forward pass.

    The learning curve is the training score of each epoch, over the outputs before each update.

    Emitted, with the experience on the horizontal axis:
        ``plasticity/area_under_learning_curve/train``: mean over epochs of the learning curve.
        ``plasticity/steps_to_threshold/train``: updates until the end of the first epoch whose score is at least the
        threshold; NaN if there is none.
        ``loss/task_loss/train``: mean criterion over the last epoch, without penalties that plugins add.

    Args:
        threshold: The score, accuracy or R2, that counts as learned.

    Raises:
        UserError: If the threshold is above 1, which no score reaches.
    """

    takes_only_the_batch = True

    def __init__(self, threshold: float = 0.9, *, score: str | None = None) -> None:
        super().__init__()
        if threshold > 1:
            raise UserError(f"threshold is {threshold}: no accuracy and no R2 is above 1")
        self._threshold, self._choice = threshold, score
        self.reset()

    def reset(self) -> None:
        """Start the curve of an experience."""
        self._curve: list[Score] = []
        self._steps: list[int] = []
        self._score: Score | None = None
        self._losses = Losses()

    def result(self) -> list[float]:
        """The learning curve of the current experience so far, one score a finished epoch."""
        return [score.result() for score in self._curve]

    def before_training_exp(self, strategy: Any) -> None:
        """Start the curve of an experience."""
        self.reset()

    def before_training_epoch(self, strategy: Any) -> None:
        """Start an epoch."""
        self._score, self._losses = None, Losses()

    def after_training_iteration(self, strategy: Any) -> None:
        """Take in a batch, without waiting for the device."""
        target = strategy.mb_y
        if self._score is None:
            self._score = score_for(target, self._choice)
        self._score.update(predictions(strategy), target)
        loss = getattr(strategy, "task_loss", None)
        if loss is None:
            with torch.no_grad():
                loss = strategy.criterion()
        self._losses.add(loss, len(target))

    def after_training_epoch(self, strategy: Any) -> None:
        """Close an epoch."""
        if self._score is not None:
            self._curve.append(self._score)
            # The clock is the last plugin: its count of this experience is complete, its count of epochs is not.
            self._steps.append(strategy.clock.train_exp_iterations)

    def after_training_exp(self, strategy: Any) -> list[Scalar]:
        """Emit what the curve says."""
        k, curve = strategy.experience.current_experience, self.result()
        area = sum(curve) / len(curve) if curve else NAN
        steps = next((step for step, score in zip(self._steps, curve, strict=True) if score >= self._threshold), NAN)
        losses = self._losses.take()
        seen = sum(size for _, size in losses)
        loss = sum(loss * size for loss, size in losses) / seen if seen else NAN
        return [
            Scalar(self, "plasticity", "area_under_learning_curve", area, k, stream="train"),
            Scalar(self, "plasticity", "steps_to_threshold", steps, k, stream="train"),
            Scalar(self, "loss", "task_loss", loss, k, stream="train"),
        ]
