"""Label permutation: at every experience the classes get each other's names."""

from __future__ import annotations

import torch
from torch import Tensor

from plasticity_cl.parts import facts
from plasticity_cl.parts.values import Count
from plasticity_cl.scenarios.sources.source import Source
from plasticity_cl.scenarios.stream import InMemoryScenario, first_samples, source_samples
from plasticity_cl.seeding import generator


@facts(exchangeable=True, forgetting_counts=False)
def LabelPermutation(
    source: Source, n_experiences: Count = 20, *, n_samples: Count | None = None, seed: int = 0
) -> InMemoryScenario:
    """The same images at every experience, with the classes renamed by a permutation drawn for it.

    What was learned of the images stays of use, unlike under :func:`LabelReset`; only the last layer must change. An
    image has one name at a time: the old ones no longer hold, so forgetting them is no damage.

    Args:
        source: Images and true labels.
        n_experiences: Length of the stream.
        n_samples: Use the first so many training images only.
        seed: Root of all draws.

    Raises:
        UserError: If ``n_samples`` or ``n_experiences`` is out of range.
    """
    size = first_samples(source, n_samples)

    def renamed(labels: Tensor, k: int) -> Tensor:
        return torch.randperm(source.n_classes, generator=generator(seed, "label-permutation", k))[labels]

    return InMemoryScenario(
        "label-permutation",
        n_experiences,
        lambda k: source_samples(source, "train", renamed(source.train_labels[:size], k), size=size),
        lambda k: source_samples(source, "test", renamed(source.test_labels, k)),
        input_shape=source.input_shape,
        n_outputs=source.n_classes,
    )
