"""Class-incremental: every experience brings classes of its own. The stream on which networks forget."""

from __future__ import annotations

import torch
from torch import Tensor

from plasticity_cl.errors import UserError
from plasticity_cl.parts.values import Count
from plasticity_cl.scenarios.sources.source import Source
from plasticity_cl.scenarios.stream import InMemoryScenario, Split, first_samples, source_samples
from plasticity_cl.seeding import generator
from plasticity_cl.training import Samples


def ClassIncremental(
    source: Source, n_experiences: Count = 5, *, n_samples: Count | None = None, seed: int = 0
) -> InMemoryScenario:
    """The classes of a source, in a random order, dealt out over the experiences; one output for every class.

    What was learned of a class stays true, so forgetting it is damage.

    Where the number of classes is no multiple of the number of experiences, the first experiences have one class more.

    Args:
        source: Images and true labels.
        n_experiences: Length of the stream, at most the number of classes.
        n_samples: Use the first so many training images only.
        seed: Root of all draws.

    Raises:
        UserError: If there are more experiences than classes, or ``n_samples`` or ``n_experiences`` is out of range.
    """
    size = first_samples(source, n_samples)
    if n_experiences > source.n_classes:
        raise UserError(
            f"n_experiences is {n_experiences}: {source.name} has {source.n_classes} classes, each experience needs one"
        )
    classes = torch.randperm(source.n_classes, generator=generator(seed, "class-incremental"))

    def rows(labels: Tensor, k: int) -> Tensor:
        return torch.isin(labels, classes.tensor_split(n_experiences)[k]).nonzero().squeeze(1)

    def samples(split: Split, labels: Tensor, k: int) -> Samples:
        indices = rows(labels, k)
        return source_samples(source, split, labels[indices], indices=indices)

    return InMemoryScenario(
        "class-incremental",
        n_experiences,
        lambda k: samples("train", source.train_labels[:size], k),
        lambda k: samples("test", source.test_labels, k),
        input_shape=source.input_shape,
        n_outputs=source.n_classes,
    )
