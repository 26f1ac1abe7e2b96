"""How fast each experience is learned."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch.nn.functional as F
from avalanche.evaluation.metric_results import MetricValue
from avalanche.training.templates import SupervisedTemplate as AvalancheTemplate
from torch import Tensor, nn

from plasticity_cl.errors import UserError
from plasticity_cl.metrics.guard import GuardedMetric, PerStrategy
from plasticity_cl.metrics.passage import Passage
from plasticity_cl.metrics.scalar import Scalar
from plasticity_cl.metrics.scores import (
    IGNORED,
    Choice,
    Score,
    check_choice,
    logits_of,
    look_up,
    predictor_for,
    score_for,
)
from plasticity_cl.quantity import Quantity
from plasticity_cl.training import SupervisedTemplate
from plasticity_cl.training.deferred import Losses, Weights
from plasticity_cl.training.learner import Learner, criterion_of


class _TaskLoss:
    """The loss of the current batch as the strategy took it from its criterion, before plugins add to it.

    Our template keeps it. Of another strategy the calls of ``criterion()`` are listened to while an epoch goes on:
    computing it again could change the state of the criterion, or draw random numbers.
    """

    def __init__(self) -> None:
        self._output: Any = None
        self._loss: Tensor | None = None
        self._listens = False
        self.is_sum = False

    def watch(self, strategy: AvalancheTemplate) -> None:
        """Listen to ``strategy`` from now on."""
        known = look_up(criterion_of(strategy))
        self.is_sum = known.plain and known.options.get("reduction") == "sum"
        self.unwatch(strategy)
        if type(strategy).criterion is not SupervisedTemplate.criterion or "criterion" in vars(strategy):
            strategy.criterion = _Listener(self, strategy)
            self._listens = True

    def unwatch(self, strategy: AvalancheTemplate) -> None:
        """Leave the strategy as it was."""
        listener = vars(strategy).get("criterion")
        if isinstance(listener, _Listener):
            if listener.was_set:
                strategy.criterion = listener.criterion
            else:
                del strategy.criterion
        self._output = self._loss = None
        self._listens = False

    def hear(self, strategy: AvalancheTemplate, loss: Tensor) -> None:
        """Take note of a loss; of several for one batch of outputs the first is the strategy's own."""
        if strategy.mb_output is not self._output:
            self._output, self._loss = strategy.mb_output, loss.detach()

    def of(self, strategy: AvalancheTemplate) -> Tensor:
        """The loss of the current batch.

        Raises:
            UserError: If the strategy did not call its ``criterion()``.
        """
        if not self._listens:
            return cast(Tensor, strategy.task_loss)
        if self._loss is None or self._output is not strategy.mb_output:
            raise UserError(f"{type(strategy).__name__} does not take its loss from criterion()")
        return self._loss


class _Listener:
    """Stands in for a strategy's ``criterion``, and tells what it gave."""

    def __init__(self, task_loss: _TaskLoss, strategy: AvalancheTemplate) -> None:
        self.was_set = "criterion" in vars(strategy)
        self.criterion = strategy.criterion
        self._task_loss, self._strategy = task_loss, strategy

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        loss = self.criterion(*arguments, **options)
        self._task_loss.hear(self._strategy, loss)
        return loss


_KEPT = ("curve", "steps_of", "steps", "epochs", "loss_sum", "weight_sum", "has_score", "has_loss")


@dataclass
class _Run:
    """What is known of one strategy's run."""

    passage: Passage = field(default_factory=Passage)
    curve: list[float] = field(default_factory=list)
    steps_of: list[int] = field(default_factory=list)
    """Updates up to the end of each point of the curve."""
    steps: int = 0
    epochs: int = 0
    """Over the whole run."""
    score: Score | None = None
    predict: Callable[[Any], Tensor] = logits_of
    losses: Losses | None = None
    weights: Weights | None = None
    task_loss: _TaskLoss = field(default_factory=_TaskLoss)
    loss_sum: float = 0.0
    weight_sum: float = 0.0
    has_score: bool = True
    has_loss: bool = True

    def state_dict(self) -> dict[str, Any]:
        """The curve so far: between two experiences nothing else is going on."""
        return {"passage": self.passage.state_dict(), **{name: getattr(self, name) for name in _KEPT}}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> _Run:
        """The run that :meth:`state_dict` was of."""
        return cls(passage=Passage.from_state(state["passage"]), **{name: state[name] for name in _KEPT})

    def begin(self) -> None:
        """Start the curve of an experience."""
        self.curve, self.steps_of, self.steps = [], [], 0
        self.score = self.losses = self.weights = None
        self.loss_sum = self.weight_sum = 0.0
        self.has_score = self.has_loss = True


class LearningCurveMetric(GuardedMetric):
    """How fast each experience is learned, from the outputs of the training itself: it adds no forward pass.

    The learning curve is the training score of each epoch, over the outputs before each update. The mini experiences of
    an online stream are taken together: the curve of the experience that they are part of has a point for each epoch on
    each of them. What is not defined, or was not reached, is not emitted. One metric may serve several strategies.

    Emitted, with the experience on the horizontal axis:
        ``plasticity/area_under_learning_curve/train``: mean over epochs of the learning curve.
        ``plasticity/steps_to_threshold/train``: updates until the end of the first epoch whose score is at least the
        threshold; nothing if there is none.
        ``loss/task_loss/train``: mean criterion over the last epoch, without penalties that plugins add. Batches count
        by their samples; for the mean of ``CrossEntropyLoss`` and ``NLLLoss`` by what it divides by, the weights of the
        classes of all samples that are not ignored, so that it is what the criterion gives for the whole epoch. A
        criterion with ``reduction="sum"`` is divided by the samples.

    Emitted, with the epochs of the whole run on the horizontal axis, for loggers alone:
        ``learning_curve/score/train``: the training score of each epoch.

    Args:
        threshold: The score that counts as learned. For the bounded R2 of regression 0.9 is an R2 of 0.89: the mean
            squared error is an eighth of the targets' variance.
        score: Which score, see :class:`~plasticity_cl.metrics.experience_score.ExperienceScore`.

    Raises:
        UserError: If the threshold is above 1, which none of the scores reaches, or the score is none.
    """

    takes_only_the_batch = True
    quantities: Mapping[str, Quantity] = {
        "area_under_learning_curve": Quantity("area under learning curve", "Plasticity", "down"),
        "steps_to_threshold": Quantity("steps to threshold", "Plasticity", "up", low=1, unit="updates"),
        "task_loss": Quantity("task loss", "Scores", "up"),
    }

    def __init__(self, threshold: float = 0.9, *, score: Choice = None) -> None:
        super().__init__()
        check_choice(score)
        if not threshold <= 1 and not callable(score):
            raise UserError(f"threshold is {threshold}: no accuracy and no R2 is above 1")
        self._threshold, self._choice = threshold, score
        self.reset()

    def reset(self) -> None:
        """Forget every curve."""
        self._runs = PerStrategy(_Run)

    def state_dict(self) -> dict[str, Any]:
        """The learning curve so far, and the epochs of the run."""
        return self._runs.alone().state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave.

        Args:
            state: As it was, or as ``torch.load(..., weights_only=True)`` read it.
        """
        self._runs.adopt(_Run.from_state(state))

    def result(self) -> list[float]:
        """The learning curve of the current experience so far, of the strategy met last: a score a finished epoch."""
        run = self._runs.latest
        return list(run.curve) if run.has_score else []

    def before_training_exp(self, strategy: Learner) -> None:
        """Start the curve of an experience."""
        run = self._runs.of(strategy)
        if run.passage.begin(strategy.experience):
            run.begin()

    def before_training_epoch(self, strategy: Learner) -> None:
        """Start an epoch."""
        run = self._runs.of(strategy)
        run.score = run.losses = run.weights = None
        run.task_loss.watch(strategy)

    def after_training_iteration(self, strategy: Learner) -> None:
        """Take in a batch, without waiting for the device."""
        run = self._runs.of(strategy)
        run.steps += 1
        run.has_score = run.has_score and bool(self.attempt(_BATCH, self._take_score, run, strategy))
        run.has_loss = run.has_loss and bool(self.attempt(_BATCH, self._take_loss, run, strategy))

    def after_training_epoch(self, strategy: Learner) -> list[MetricValue]:
        """Close an epoch, and emit its score."""
        run = self._runs.of(strategy)
        run.task_loss.unwatch(strategy)
        run.epochs += 1
        score = run.score.result() if run.has_score and run.score is not None else math.nan
        if math.isnan(score):
            return []
        run.curve.append(score)
        run.steps_of.append(run.steps)
        return [MetricValue(self, "learning_curve/score/train", score, run.epochs)]

    def after_training_exp(self, strategy: Learner) -> list[Scalar]:
        """Emit what the curve says."""
        run = self._runs.of(strategy)
        if run.has_loss and run.losses is not None:
            self._sum_losses(run)
        if not run.passage.ends(strategy.experience):
            return []
        values: dict[str, float] = {}
        if run.has_score and run.curve:
            values["area_under_learning_curve"] = sum(run.curve) / len(run.curve)
            learned = [step for step, score in zip(run.steps_of, run.curve, strict=True) if score >= self._threshold]
            if learned:
                values["steps_to_threshold"] = learned[0]
        k = run.passage.number
        scalars = [Scalar(self, "plasticity", name, value, k, stream="train") for name, value in values.items()]
        if run.has_loss and run.weight_sum:
            scalars.append(Scalar(self, "loss", "task_loss", run.loss_sum / run.weight_sum, k, stream="train"))
        return scalars

    def on_failure(self, strategy: Learner, event: str) -> None:
        """Give no value for this experience."""
        run = self._runs.of(strategy)
        run.begin()
        run.task_loss.unwatch(strategy)
        run.has_score = run.has_loss = False

    def _take_score(self, run: _Run, strategy: Learner) -> bool:
        if run.score is None:
            run.predict = predictor_for(criterion_of(strategy))
        output, target = run.predict(strategy.mb_output), strategy.mb_y
        if run.score is None:
            run.score = score_for(output, target, criterion_of(strategy), self._choice)
        run.score.update(output, target)
        return True

    def _take_loss(self, run: _Run, strategy: Learner) -> bool:
        target = strategy.mb_y
        if run.losses is None:
            run.losses, run.weights = Losses(), _weights(criterion_of(strategy), target)
        run.losses.add(run.task_loss.of(strategy), len(target))
        if run.weights is not None:
            run.weights.add(target)
        return True

    @staticmethod
    def _sum_losses(run: _Run) -> None:
        """Add the last epoch to what is summed over mini experiences."""
        assert run.losses is not None
        losses = run.losses.take()
        weights = [size for _, size in losses] if run.weights is None else run.weights.take()
        for (loss, _), weight in zip(losses, weights, strict=True):
            if weight:
                run.loss_sum += loss if run.task_loss.is_sum else loss * weight
                run.weight_sum += weight
        run.losses = run.weights = None


_BATCH = "after_training_iteration"


def _weights(criterion: Any, target: Tensor) -> Weights | None:
    """What the mean of a criterion of classes divides by; ``None`` where it is the number of samples."""
    known = look_up(criterion)
    if not known.plain or target.is_floating_point() or known.options.get("reduction", "mean") != "mean":
        return None
    if isinstance(criterion, nn.CrossEntropyLoss | nn.NLLLoss):
        return Weights(criterion.ignore_index, criterion.weight)
    if getattr(criterion, "func", criterion) in (F.cross_entropy, F.nll_loss):
        return Weights(known.options.get("ignore_index", IGNORED), known.options.get("weight"))
    return None
