"""Target shift: regression whose target mean moves from experience to experience."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from plasticity_cl.errors import UserError, unknown_name
from plasticity_cl.parts import facts
from plasticity_cl.parts.values import Count, Positive, limit
from plasticity_cl.scenarios.sources.source import Source
from plasticity_cl.scenarios.stream import InMemoryScenario, Split, first_samples, source_samples
from plasticity_cl.seeding import generator
from plasticity_cl.training import Samples

Schedule = Literal["constant", "alternating", "growing", "random-walk"]
Targets = Literal["noise", "sine", "label"]

_FREQUENCY = 1e5
_HIDDEN = 32


def target_means(schedule: str | Sequence[float], n_experiences: int, target_mean: float, seed: int) -> list[float]:
    """The target mean of each experience.

    Args:
        schedule: ``constant``: always ``target_mean``. ``alternating``: 0, ``target_mean``, 0, ... ``growing``: from 0
            to ``target_mean`` in equal steps. ``random-walk``: starts at 0, steps are Gaussian with a standard
            deviation of ``target_mean / sqrt(n_experiences)``. Or the means themselves, one for each experience.
        n_experiences: How many means.
        target_mean: The scale of the named schedules.
        seed: Root of the random walk.

    Raises:
        UserError: If the schedule is unknown, or a list of another length than ``n_experiences``.
    """
    if not isinstance(schedule, str):
        if len(schedule) != n_experiences:
            raise UserError(f"the schedule lists {len(schedule)} target means for {n_experiences} experiences")
        return [float(mean) for mean in schedule]
    if schedule == "constant":
        return [target_mean] * n_experiences
    if schedule == "alternating":
        return [target_mean * (k % 2) for k in range(n_experiences)]
    if schedule == "growing":
        return [target_mean * k / max(n_experiences - 1, 1) for k in range(n_experiences)]
    if schedule == "random-walk":
        steps = _steady(torch.randn(n_experiences, generator=generator(seed, "random-walk"), dtype=torch.float64))
        steps[0] = 0.0
        scale = target_mean / math.sqrt(n_experiences)
        return [scale * float(position) for position in steps.cumsum(0)]
    raise unknown_name("schedule", schedule, get_args(Schedule))


def _steady(values: Tensor) -> Tensor:
    # Machines differ in the last bits of normals, sines and sums; six decimals are the same on all.
    return values.round(decimals=6)


def _sine_targets(inputs: Tensor, seed: int, k: int) -> Tensor:
    """sin(1e5 f(x)), ``[n]`` float64, for a random two-layer tanh network f of experience ``k``."""
    random = generator(seed, "sine", k)
    flat = inputs.flatten(1).double() / (255 if inputs.dtype == torch.uint8 else 1)
    first = torch.randn(flat.shape[1], _HIDDEN, generator=random, dtype=torch.float64)
    second = torch.randn(_HIDDEN, 1, generator=random, dtype=torch.float64)
    hidden = torch.tanh(_exact_product(flat, first) / math.sqrt(flat.shape[1]))
    return torch.sin(_FREQUENCY * _exact_product(hidden, second).squeeze(1) / math.sqrt(_HIDDEN))


def _exact_product(left: Tensor, right: Tensor) -> Tensor:
    # In fixed point no order of summation matters; the frequency would blow the last bits of a float product up.
    return ((left * 2**20).round().long() @ (right * 2**20).round().long()).double() / 2**40


@facts(
    task="regression",
    forgetting_counts=False,
    twin={"schedule": "constant", "mean": 0.0},
    twin_words="the zero-mean twin, so that the handicap is what a large target mean costs even a fresh network",
)
def TargetShift(
    source: Source,
    n_experiences: Count = 8,
    *,
    schedule: Schedule | Sequence[float] = "alternating",
    mean: float = 100.0,
    std: Positive = 1.0,
    targets: Targets = "noise",
    n_samples: Count | None = 256,
    seed: int = 0,
) -> InMemoryScenario:
    """Regression on the images of a source, with targets ``mean_k + std * z``.

    The third mechanism of the seed (Lyle et al. 2024): a large target mean sits in one direction of the features. z has
    mean 0 and standard deviation 1 over the training samples, to six decimals, so that mean and scale are controlled
    apart. Targets are ``[n, 1]`` float32.

    Its zero-mean twin is the stream with the same z and all means 0: ``schedule="constant", mean=0``. What a
    mean costs shows against the twin alone: a fresh network has to carry the mean of its experience as well as a worn
    one, so the difference between these two cannot see it. In runs the baseline is therefore trained on the twin, and
    its handicap is what the mean costs a fresh network. The same images get other targets at every experience: the old
    ones no longer hold, so forgetting them is no damage.

    Args:
        source: Images, and for ``targets="label"`` their classes.
        n_experiences: Length of the stream.
        schedule: How the mean moves: ``constant``, ``alternating``, ``growing``, ``random-walk``, or a list of means.
        mean: The scale of the named schedules.
        std: Standard deviation of the targets of every experience.
        targets: What z is before it is standardised. ``noise``: Gaussian, drawn anew at each experience, nothing to
            generalise. ``sine``: sin(1e5 f(x)) for a random network f drawn anew at each experience. ``label``: the
            class number, the same at each experience; the only one that can be learned for the test images.
        n_samples: Use the first so many training images only; all when ``None``.
        seed: Root of all draws.

    Raises:
        UserError: If a name is unknown, ``std`` is not above 0, or a size is out of range.
    """
    limit(Positive, "std", std)
    if targets not in get_args(Targets):
        raise unknown_name("targets", targets, get_args(Targets))
    size = first_samples(source, n_samples)
    if size < 2:
        raise UserError("n_samples is 1: a target needs at least 2 samples to have a standard deviation")
    means = target_means(schedule, n_experiences, mean, seed)

    def raw(split: Split, k: int) -> Tensor:
        inputs, labels = (
            (source.train_inputs[:size], source.train_labels[:size])
            if split == "train"
            else (source.test_inputs, source.test_labels)
        )
        if targets == "label":
            return labels.double()
        if targets == "sine":
            return _sine_targets(inputs, seed, k)
        return torch.randn(len(inputs), generator=generator(seed, "target-noise", split, k), dtype=torch.float64)

    def samples(split: Split, k: int) -> Samples:
        reference = raw("train", k)
        values = reference if split == "train" else raw(split, k)
        standard = _steady((values - reference.mean()) / reference.std(correction=0))
        shifted = (means[k] + std * standard).float().unsqueeze(1)
        return source_samples(source, split, shifted, size=size if split == "train" else None)

    return InMemoryScenario(
        "target-shift",
        n_experiences,
        lambda k: samples("train", k),
        lambda k: samples("test", k),
        input_shape=source.input_shape,
        n_outputs=1,
    )
