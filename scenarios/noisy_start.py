"""Noisy start: noise labels first, clean data after. The stream that costs plasticity and no memory."""

from __future__ import annotations

import torch
from torch import Tensor

from plasticity_cl.errors import UserError
from plasticity_cl.parts import facts
from plasticity_cl.parts.values import Count, Whole
from plasticity_cl.scenarios.sources.source import Source
from plasticity_cl.scenarios.stream import InMemoryScenario, Split, first_samples, source_samples
from plasticity_cl.seeding import generator


@facts(forgetting_counts=False)
def NoisyStart(
    source: Source,
    n_experiences: Count = 20,
    *,
    noisy: Whole | None = None,
    n_samples: Count | None = None,
    seed: int = 0,
) -> InMemoryScenario:
    """The same images at every experience; their labels are noise in the early ones and true in the last.

    In the first ``noisy`` experiences the labels of training and test images are drawn at random, anew each time: there
    is nothing in them to be learned for the test images, and so nothing to be forgotten. On the test stream forgetting
    is near zero by construction, and what a clean experience lacks against a fresh network is lost plasticity. (On the
    training stream the noise itself is memorised, and forgotten, which is no damage: the true labels have taken its
    place.) A warm start in the sense of Ash and Adams (2020),
    made harder by label noise as in Lyle et al. (2023).

    Args:
        source: Images and true labels.
        n_experiences: Length of the stream.
        noisy: How many early experiences have noise labels; all but the last when ``None``.
        n_samples: Use the first so many training images only.
        seed: Root of all draws.

    Raises:
        UserError: If ``noisy`` leaves no clean experience, or a size is out of range.
    """
    size = first_samples(source, n_samples)
    n_noisy = n_experiences - 1 if noisy is None else noisy
    if n_experiences > 0 and not 0 <= n_noisy < n_experiences:
        raise UserError(f"noisy is {n_noisy}: of {n_experiences} experiences at least the last must be clean")

    def labels(split: Split, true: Tensor, k: int) -> Tensor:
        if k >= n_noisy:
            return true
        return torch.randint(source.n_classes, (len(true),), generator=generator(seed, "noisy-start", split, k))

    return InMemoryScenario(
        "noisy-start",
        n_experiences,
        lambda k: source_samples(source, "train", labels("train", source.train_labels[:size], k), size=size),
        lambda k: source_samples(source, "test", labels("test", source.test_labels, k)),
        input_shape=source.input_shape,
        n_outputs=source.n_classes,
    )
