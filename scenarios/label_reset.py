"""Label reset: at every experience the labels of a fraction of the samples are drawn anew."""

from __future__ import annotations

import torch
from torch import Tensor

from plasticity_cl.parts import facts
from plasticity_cl.parts.values import Count, Share, limit
from plasticity_cl.scenarios.sources.source import Source
from plasticity_cl.scenarios.stream import InMemoryScenario, first_samples, source_samples
from plasticity_cl.seeding import generator


def redraw_labels(labels: Tensor, n_classes: int, fraction: float, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw the labels of a fraction of the samples anew, uniformly over all classes.

    A label drawn anew may be the old one: with labels that are never the true ones, the true one could be guessed.

    Args:
        labels: ``[n]`` int64.
        n_classes: Labels are drawn from 0 to ``n_classes - 1``.
        fraction: Share of the samples; ``round(fraction * n)`` of them, chosen without replacement.
        random: Source of the draws.

    Returns:
        The new labels ``[n]``, and the positions ``[round(fraction * n)]`` whose labels were drawn.
    """
    redrawn = torch.randperm(len(labels), generator=random)[: round(fraction * len(labels))]
    new = labels.clone()
    new[redrawn] = torch.randint(n_classes, (len(redrawn),), generator=random)
    return new, redrawn


@facts(exchangeable=True, forgetting_counts=False)
def LabelReset(
    source: Source, n_experiences: Count = 40, *, fraction: Share = 1.0, n_samples: Count | None = None, seed: int = 0
) -> InMemoryScenario:
    """The same images at every experience, with the labels of a fraction of them drawn anew.

    The seed's first experiment (Lyle et al. 2024): with ``fraction=1`` nothing learned earlier is of use, all
    experiences are equally hard for a fresh network, and what a worn network lacks against a fresh one is plasticity.
    Every experience starts from the true labels, so that any experience can be made without the ones before it. The
    test stream has the test images with their true labels: at ``fraction=1`` its scores are at chance. Labels that were
    drawn anew no longer hold when they are drawn again, so forgetting them is no damage.

    Args:
        source: Images and true labels.
        n_experiences: Length of the stream.
        fraction: Share of the training labels drawn anew at each experience, in (0, 1].
        n_samples: Use the first so many training images only.
        seed: Root of all draws.

    Raises:
        UserError: If ``fraction`` is outside (0, 1], or ``n_samples`` or ``n_experiences`` out of range.
    """
    limit(Share, "fraction", fraction)
    size = first_samples(source, n_samples)
    labels = source.train_labels[:size]

    def train_labels(k: int) -> Tensor:
        return redraw_labels(labels, source.n_classes, fraction, generator(seed, "label-reset", k))[0]

    return InMemoryScenario(
        "label-reset",
        n_experiences,
        lambda k: source_samples(source, "train", train_labels(k), size=size),
        lambda k: source_samples(source, "test", source.test_labels),
        input_shape=source.input_shape,
        n_outputs=source.n_classes,
    )
