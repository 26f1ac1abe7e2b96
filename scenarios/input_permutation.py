"""Input permutation: at every experience the pixels stand in another order."""

from __future__ import annotations

import math

import torch

from plasticity_cl.parts import facts
from plasticity_cl.parts.values import Count
from plasticity_cl.scenarios.sources.source import Source
from plasticity_cl.scenarios.stream import InMemoryScenario, first_samples, source_samples
from plasticity_cl.seeding import generator


@facts(exchangeable=True)
def InputPermutation(
    source: Source, n_experiences: Count = 20, *, n_samples: Count | None = None, seed: int = 0
) -> InMemoryScenario:
    """The same labels at every experience, with the pixels of all images in an order drawn for it.

    Every experience is permuted, the first one too, so that all are equally hard. The classes are those of the source.
    No two experiences contradict each other: one network could do well on all of them, and forgetting is damage.

    Args:
        source: Images and true labels.
        n_experiences: Length of the stream.
        n_samples: Use the first so many training images only.
        seed: Root of all draws.

    Raises:
        UserError: If ``n_samples`` or ``n_experiences`` is out of range.
    """
    size = first_samples(source, n_samples)
    n_pixels = math.prod(source.input_shape)

    def order(k: int) -> torch.Tensor:
        return torch.randperm(n_pixels, generator=generator(seed, "input-permutation", k))

    return InMemoryScenario(
        "input-permutation",
        n_experiences,
        lambda k: source_samples(source, "train", source.train_labels[:size], size=size, permutation=order(k)),
        lambda k: source_samples(source, "test", source.test_labels, permutation=order(k)),
        input_shape=source.input_shape,
        n_outputs=source.n_classes,
    )
