"""Samples at which diagnostics look: drawn by a seed of their own, so that looking moves no generator."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from plasticity_cl.errors import UserError
from plasticity_cl.seeding import generator, preserve_rng
from plasticity_cl.training.avalanche_names import whole_experience
from plasticity_cl.training.in_memory import samples_of


@dataclass(frozen=True)
class Batch:
    """Samples to look at.

    Attributes:
        inputs: ``[n, ...]``.
        targets: ``[n]`` or ``[n, ...]``.
        task_labels: ``[n]`` int64; 0 where the data have none.
    """

    inputs: Tensor
    targets: Tensor
    task_labels: Tensor


def random_samples(learner: Any, size: int) -> Batch:
    """Draw samples of a learner's current experience, on its device, as they are evaluated.

    They are drawn without replacement by a seed of their own, in the order of the data: the same for two data sets of
    one length, whatever else was drawn before, and of all classes where the data are ordered by class. Of a mini
    experience in an online stream they are samples of the whole experience. No generator moves, whatever transforms
    draw.

    Args:
        learner: In a hook of a metric, where all of its experience can be seen.
        size: How many; all where there are no more.

    Raises:
        UserError: If there is no sample, or if inputs or targets are not one tensor each, of one shape.
    """
    dataset = whole_experience(learner.experience).dataset.eval()
    if not len(dataset):
        raise UserError("the experience has no samples")
    rows = torch.randperm(len(dataset), generator=generator(0, "probe samples"))[:size].sort().values
    samples = samples_of(dataset)
    labels = torch.zeros(len(rows), dtype=torch.int64)
    if samples is not None:
        inputs, targets = samples.batch(rows)
    else:
        with preserve_rng():
            items = [dataset[row] for row in rows.tolist()]
        inputs, targets = (_stack(name, [item[part] for item in items]) for part, name in enumerate(_PARTS))
        if len(items[0]) > len(_PARTS):
            with contextlib.suppress(TypeError, ValueError):  # what comes last need not be a task label
                labels = torch.tensor([int(item[-1]) for item in items])
    return Batch(*(part.to(learner.device) for part in (inputs, targets, labels)))


_PARTS = ("inputs", "targets")


def _stack(name: str, values: list[Any]) -> Tensor:
    if not isinstance(values[0], Tensor | int | float | complex) and not hasattr(values[0], "__array__"):
        raise UserError(f"the {name} of a sample are a {type(values[0]).__name__}: a diagnostic takes one tensor")
    tensors = [torch.as_tensor(value) for value in values]
    if len({tensor.shape for tensor in tensors}) > 1:
        raise UserError(f"the {name} of samples differ in shape: a diagnostic takes one tensor for all of them")
    return torch.stack(tensors)
