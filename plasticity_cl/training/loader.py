"""What the template needs of a loader to take its steps at the speed of a bare loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Protocol

from torch import Tensor


class DeviceLoader(Protocol):
    """A loader that yields batches which are on the learner's device already.

    Where a learner's ``dataloader`` is one, :class:`~plasticity_cl.training.SupervisedTemplate` takes the batches as
    they come: no collating, no moving. What the loader does between two batches is its own affair. One that draws from
    a replay buffer, and acts in an environment to fill it, makes a reinforcement-learning agent of the template.

    A template gets it from its ``make_train_dataloader``, or from a plugin that sets ``strategy.dataloader`` in
    ``before_training_exp``. One pass over it is an epoch.
    """

    batches_on_device: ClassVar[bool]
    """``True`` in a class that keeps this protocol."""

    def __iter__(self) -> Iterator[Sequence[Tensor]]:
        """Batches, each a list of inputs ``[b, ...]`` and targets ``[b]`` or ``[b, ...]``.

        Whatever follows is for plugins; where the experience has task labels, the last is those of the batch.
        """
        ...

    def __len__(self) -> int:
        """Batches in a pass, which is the number of updates in an epoch."""
        ...


def gives_device_batches(loader: Any) -> bool:
    """Whether ``loader`` is a :class:`DeviceLoader`."""
    return getattr(loader, "batches_on_device", False) is True
