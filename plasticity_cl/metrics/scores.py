"""Scores of a data set, accumulated batch by batch without waiting for the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from plasticity_cl.errors import UserError
from plasticity_cl.training.deferred import Hits, compare


class Score(Protocol):
    """A score where higher is better."""

    def update(self, output: Tensor, target: Tensor) -> None:
        """Take in a batch."""

    def result(self) -> float:
        """The score of all batches since it was made; NaN before the first."""


class Accuracy:
    """The share of samples whose largest output is their class."""

    def __init__(self) -> None:
        self._hits = Hits()
        self._correct = self._seen = 0

    def update(self, output: Tensor, target: Tensor) -> None:
        """Take in a batch.

        Args:
            output: ``[b, C]`` logits.
            target: ``[b]`` classes.

        Raises:
            UserError: If the shapes are others.
        """
        hits = compare(output, target)
        if hits is None:
            raise UserError(
                f"outputs {list(output.shape)} do not give one class for each of {list(target.shape)} targets"
            )
        self._hits.add(hits, len(target))

    def result(self) -> float:
        """Correct over seen, in [0, 1]."""
        for hits, size in self._hits.take():
            self._correct += hits
            self._seen += size
        return self._correct / self._seen if self._seen else float("nan")


class R2:
    """The coefficient of determination, 1 - sum (y - f)^2 / sum (y - mean y)^2, of a whole data set.

    From sufficient statistics in float64, merged batch by batch (Chan, Golub and LeVeque 1979), so that a mean of 1e6
    costs no digits and the result does not depend on how the data were cut into batches beyond rounding. Means of
    per-batch R2, which Avalanche's unreleased version reports, are another quantity. With several outputs both sums run
    over all of them. NaN where all targets are the same.
    """

    def __init__(self) -> None:
        self._residual: Tensor | float = 0.0
        self._spread: Tensor | float = 0.0
        self._mean: Tensor | float = 0.0
        self._seen = 0

    @torch.no_grad()
    def update(self, output: Tensor, target: Tensor) -> None:
        """Take in a batch.

        Args:
            output: ``[b, d]`` or ``[b]`` predictions.
            target: ``[b, d]`` or ``[b]``, the same number of values.

        Raises:
            UserError: If the two hold different numbers of values: broadcasting would hide it.
        """
        if output.numel() != target.numel():
            raise UserError(
                f"the network gives {tuple(output.shape)} for targets of shape {tuple(target.shape)}; "
                "a criterion with encoded outputs must have a decode method"
            )
        y = target.reshape(len(target), -1).double()
        self._residual = self._residual + (output.reshape_as(y).double() - y).square().sum()
        batch, mean = len(y), y.mean(0)
        total = self._seen + batch
        shift = mean - self._mean
        self._spread = self._spread + (y - mean).square().sum() + (shift.square() * (self._seen * batch / total)).sum()
        self._mean = self._mean + shift * (batch / total)
        self._seen = total

    def result(self) -> float:
        """1 - residual / spread; at most 1."""
        spread = float(self._spread)
        return 1.0 - float(self._residual) / spread if spread > 0 else float("nan")


class BoundedR2(R2):
    """The coefficient of determination brought into [0, 1]: 1 / (2 - R2) = spread / (spread + residual)."""

    def result(self) -> float:
        """Spread / (spread + residual), in [0, 1]."""
        spread = float(self._spread)
        return spread / (spread + float(self._residual)) if spread > 0 else float("nan")


SCORES: dict[str, Callable[[], Score]] = {"accuracy": Accuracy, "bounded-r2": BoundedR2, "r2": R2}


def score_for(target: Tensor, choice: str | None = None) -> Score:
    """What ``choice`` names; without one bounded R2 for floating-point targets, accuracy for integers."""
    return SCORES[choice or ("bounded-r2" if target.is_floating_point() else "accuracy")]()
