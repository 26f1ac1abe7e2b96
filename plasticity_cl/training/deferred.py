"""Accuracy and loss whose sums wait: a batch costs a comparison, and the device is waited for when a value is read."""

from __future__ import annotations

from itertools import groupby
from typing import Any
from weakref import ref

import torch
from avalanche.evaluation.metrics.accuracy import Accuracy, EpochAccuracy, ExperienceAccuracy, StreamAccuracy
from avalanche.evaluation.metrics.loss import EpochLoss, ExperienceLoss, LossMetric, StreamLoss
from torch import Tensor

from plasticity_cl.training.avalanche_names import inner_metric, running_mean, set_inner_metric, share_running_mean
from plasticity_cl.training.learner import Learner

DEFERRABLE = frozenset({EpochAccuracy, ExperienceAccuracy, StreamAccuracy, EpochLoss, ExperienceLoss, StreamLoss})
"""Avalanche's metrics that emit nothing after a batch and look at nothing but the batch."""

_TOGETHER = 64


_compared: tuple[Any, Any, int, int, Tensor] = (lambda: None, lambda: None, 0, 0, torch.empty(0))


def compare(output: Tensor, target: Tensor) -> Tensor | None:
    """Where the largest output is the class; worked out once for all that ask about a batch one after the other.

    Args:
        output: ``[b, C]`` logits.
        target: ``[b]`` classes.

    Returns:
        ``[b]`` bool; ``None`` for tensors of other shapes.
    """
    global _compared
    of_output, of_target, version, target_version, hits = _compared
    if (
        of_output() is output
        and of_target() is target
        and output._version == version
        and target._version == target_version
    ):
        return hits
    if output.dim() != 2 or target.dim() != 1 or not output.shape[0] == target.shape[0] > 0:
        return None
    hits = output.argmax(1) == target
    if not output.is_inference() and not target.is_inference():
        _compared = (ref(output), ref(target), output._version, target._version, hits)
    return hits


class Hits:
    """Right predictions of each batch, counted many batches at a time."""

    def __init__(self) -> None:
        self._waiting: list[Tensor] = []
        self._counts: list[Tensor] = []
        self._sizes: list[int] = []

    def add(self, hits: Tensor, size: int) -> None:
        """Take in a batch of ``size`` samples: ``[size]`` bool, as :func:`compare` gives them."""
        self._waiting.append(hits)
        self._sizes.append(size)
        if len(self._waiting) == _TOGETHER:
            self._count()

    def take(self) -> list[tuple[int, int]]:
        """Right predictions and size of each batch since the last call; waits for the device."""
        self._count()
        counts = torch.cat(self._counts).tolist() if self._counts else []
        taken = list(zip(counts, self._sizes, strict=True))
        self._counts, self._sizes = [], []
        return taken

    def _count(self) -> None:
        for _, batches in groupby(self._waiting, lambda hits: hits.shape):
            self._counts.append(torch.stack(list(batches)).sum(1))
        self._waiting = []


class Losses:
    """The loss of each batch, read from the device many batches at a time."""

    def __init__(self) -> None:
        self._waiting: list[Tensor] = []
        self._values: list[Tensor] = []
        self._sizes: list[int] = []

    def add(self, loss: Tensor, size: int) -> None:
        """Take in the loss of a batch of ``size`` samples, one number in a tensor of any shape."""
        self._waiting.append(loss.detach() if loss.requires_grad else loss)
        self._sizes.append(size)
        if len(self._waiting) == _TOGETHER:
            self._stack()

    def take(self) -> list[tuple[float, int]]:
        """Loss and size of each batch since the last call; waits for the device."""
        self._stack()
        values = [value for stacked in self._values for value in stacked.tolist()]
        taken = list(zip(values, self._sizes, strict=True))
        self._values, self._sizes = [], []
        return taken

    def _stack(self) -> None:
        # Batches of several kinds of tensor in one sum are possible, and worth one more line.
        for _, losses in groupby(self._waiting, lambda loss: (loss.dtype, loss.shape, loss.device)):
            self._values.append(torch.stack(list(losses)).flatten())
        self._waiting = []


class Weights:
    """What each batch weighs in a mean over samples, worked out many batches at a time.

    Args:
        ignored: The class whose samples weigh nothing.
        of_classes: ``[C]``: what a sample of each class weighs; 1 when ``None``.
    """

    def __init__(self, ignored: int, of_classes: Tensor | None = None) -> None:
        self._ignored, self._of_classes = ignored, of_classes
        self._waiting: list[Tensor] = []
        self._sums: list[Tensor] = []

    def add(self, target: Tensor) -> None:
        """Take in the classes of a batch, ``[b]`` or ``[b, ...]``."""
        self._waiting.append(target)
        # Targets of every pixel would be much to keep.
        if len(self._waiting) == _TOGETHER or target.dim() > 1:
            self._sum()

    def take(self) -> list[float]:
        """The weight of each batch since the last call; waits for the device."""
        self._sum()
        taken = [weight for sums in self._sums for weight in sums.tolist()]
        self._sums = []
        return taken

    def _sum(self) -> None:
        for _, batches in groupby(self._waiting, lambda target: target.shape):
            targets = torch.stack(list(batches))
            counted = targets != self._ignored
            if self._of_classes is not None:
                counted = self._of_classes[targets * counted] * counted
            self._sums.append(counted.flatten(1).sum(1, dtype=torch.float64))
        self._waiting = []


class DeferredAccuracy(Accuracy):  # type: ignore[misc]
    """Avalanche's accuracy, to the last bit, from :class:`Hits`.

    Args:
        original: The metric that it stands in for, with what it has seen.
    """

    def __init__(self, original: Accuracy) -> None:
        share_running_mean(self, original)
        self.waiting = Hits()

    def update(self, predicted_y: Tensor, true_y: Tensor) -> None:
        """Take in a batch, as Avalanche's metric does."""
        hits = compare(predicted_y, true_y)
        if hits is not None:
            self.waiting.add(hits, len(hits))
        else:
            self._settle()
            super().update(predicted_y, true_y)

    def result(self) -> float:
        """The accuracy over all batches since the last reset."""
        self._settle()
        return float(super().result())

    def reset(self) -> None:
        """Forget all batches."""
        self.waiting.take()
        super().reset()

    def _settle(self) -> None:
        mean = running_mean(self)
        for hits, size in self.waiting.take():
            mean.update(hits / size, size)


class DeferredLoss(LossMetric):  # type: ignore[misc]
    """Avalanche's mean loss, to the last bit, from :class:`Losses`.

    Args:
        original: The metric that it stands in for, with what it has seen.
    """

    def __init__(self, original: LossMetric) -> None:
        share_running_mean(self, original)
        self.waiting = Losses()

    def update(self, loss: Tensor, patterns: int) -> None:
        """Take in a batch, as Avalanche's metric does."""
        self.waiting.add(loss if loss.numel() == 1 else loss.mean(), patterns)

    def result(self) -> float:
        """The mean loss over all batches since the last reset."""
        self._settle()
        return float(super().result())

    def reset(self) -> None:
        """Forget all batches."""
        self.waiting.take()
        super().reset()

    def _settle(self) -> None:
        mean = running_mean(self)
        for loss, size in self.waiting.take():
            mean.update(loss, weight=size)


def deferred(metric: Any) -> DeferredAccuracy | DeferredLoss | None:
    """Make one of :data:`DEFERRABLE` sum up when its value is read; the values are the same.

    Args:
        metric: A plugin metric of exactly such a class.

    Returns:
        Its inner metric from now on; ``None`` where it has been given another one and stays as it is.
    """
    inner = inner_metric(metric)
    if type(inner) is Accuracy:
        inner = DeferredAccuracy(inner)
        set_inner_metric(metric, inner)
    elif type(inner) is LossMetric:
        inner = DeferredLoss(inner)
        set_inner_metric(metric, inner)
    return inner if isinstance(inner, DeferredAccuracy | DeferredLoss) else None


def take_batch(accuracies: list[DeferredAccuracy], losses: list[DeferredLoss], strategy: Learner) -> None:
    """Give the current batch of ``strategy`` to metrics, as each of them would take it."""
    output, target, loss = strategy.mb_output, strategy.mb_y, strategy.loss
    size = target.shape[0]
    hits = compare(output, target) if accuracies else None
    for accuracy in accuracies:
        if hits is None:
            accuracy.update(output, target)
        else:
            accuracy.waiting.add(hits, size)
    for metric in losses:
        metric.update(loss, size)
