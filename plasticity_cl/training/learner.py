"""What plugins and probes need of whoever learns, and nothing more: any strategy of Avalanche's has it.

The loss function is had by :func:`~plasticity_cl.training.avalanche_names.criterion_of`: Avalanche's ``criterion()``
is not that function but its value for the current batch.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from plasticity_cl.training.avalanche_names import criterion_of, set_criterion
from plasticity_cl.training.probe_samples import Batch, random_samples

__all__ = ["Batch", "Learner", "criterion_of", "probe_samples", "set_criterion"]


class Learner(Protocol):
    """A network while it learns: a plugin's or a metric's hooks are called with one.

    Attributes:
        model: The network. A plugin may put another one in its place before the first training, see
            :class:`~plasticity_cl.strategies.NetworkPlugin`.
        optimizer: Of its parameters.
        device: Where it learns.
        is_training: Whether it learns; otherwise it is being evaluated.
        experience: The one that it learns or is evaluated on; ``None`` between two calls of ``train()`` or ``eval()``.
        dataloader: Gives the batches; it has a length where the number of updates is known.
        mb_x: Inputs of the current batch, ``[b, ...]``.
        mb_y: Its targets, ``[b]`` or ``[b, ...]``.
        mb_output: What the network gives for it.
        loss: The loss of the batch, with what plugins have added.
        plugins: All that act on it, in the order in which they do.
        clock: Counts iterations, epochs and experiences, Avalanche's ``Clock``.
    """

    model: nn.Module
    optimizer: Optimizer
    device: torch.device
    is_training: bool
    experience: Any
    dataloader: Any
    mb_output: Any
    loss: Tensor
    plugins: list[Any]
    clock: Any

    @property
    def mb_x(self) -> Any:
        """Inputs of the current batch."""

    @property
    def mb_y(self) -> Any:
        """Targets of the current batch."""

    def criterion(self) -> Tensor:
        """The loss of the current batch."""
        ...


def probe_samples(learner: Learner, n: int) -> Batch:
    """Samples of what a learner is learning, for a diagnostic to look at.

    A learner says itself which they are where it has a method ``probe_samples(n)``, as
    :class:`~plasticity_cl.training.SupervisedTemplate` has; of any other, they are
    :func:`~plasticity_cl.training.probe_samples.random_samples` of its experience.

    Args:
        learner: In a hook of a metric.
        n: How many at most.
    """
    own = getattr(learner, "probe_samples", None)
    return random_samples(learner, n) if own is None else own(n)
