"""Means and bootstrap intervals over seeds: of one number a run, of curves, and of the separation of a strategy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from plasticity_cl.report.read import Run

Array = NDArray[np.float64]

LAST = 5
RESAMPLES = 4000
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its interval.

    Attributes:
        mean: The mean; NaN without values.
        low: Lower end of the interval; NaN with fewer than two seeds.
        high: Upper end, likewise.
        n: How many seeds there are in it.
    """

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Curve:
    """Means over seeds at each experience, with intervals; NaN where no seed has a value.

    Attributes:
        experiences: The experiences, ascending, shape [K].
        mean: Shape [K].
        low: Shape [K].
        high: Shape [K].
    """

    experiences: NDArray[np.int64]
    mean: Array
    low: Array
    high: Array


@dataclass(frozen=True)
class Summary:
    """What a strategy's finished runs say on one stream. Scores are means over experiences, then over seeds.

    Attributes:
        learned: A_kk, the score right after training on k, in the last five experiences, or in all if there are fewer.
        fresh: S_k, the score of a fresh network trained on k alone, in the same experiences.
        plasticity_loss: S_k - A_kk over all experiences.
        forgetting: A_kk - A_Kk over all experiences; the last, which cannot be forgotten yet, counts with its zero, so
            that plasticity loss and forgetting add up to the total.
        total: S_k - A_Kk over all experiences.
        excess: Plasticity loss minus forgetting, seed by seed: whether the one is surely larger than the other.
        last: How many experiences ``learned`` and ``fresh`` are means of.
        finished: How many runs there are in it.
        left_out: The diverged and unfinished runs, which enter no mean.
    """

    learned: Estimate
    fresh: Estimate
    plasticity_loss: Estimate
    forgetting: Estimate
    total: Estimate
    excess: Estimate
    last: int
    finished: int
    left_out: tuple[Run, ...]


def bootstrap(values: Array, *, seed: int = 0, resamples: int = RESAMPLES, level: float = LEVEL) -> tuple[Array, Array]:
    """Percentile bootstrap interval of the mean.

    Seeds are drawn with replacement; the interval's ends are quantiles of the means of these draws (Efron and
    Tibshirani 1993, section 13.3). With few seeds it is too narrow: it never reaches beyond the smallest and the
    largest value, so with three seeds of a symmetric distribution it holds the mean in three of four cases, not 95%.

    Args:
        values: One row a seed, shape [n, ...]; what is in a row is drawn together.
        seed: Seed of the draws: the same values give the same interval.
        resamples: How many draws.
        level: The interval's nominal coverage.

    Returns:
        The lower and the upper ends, shape [...]; NaN where n < 2, since one seed says nothing of the spread.
    """
    n = len(values)
    if n < 2:
        nothing = np.full(values.shape[1:], math.nan)
        return nothing, nothing
    draws = np.random.default_rng(seed).integers(0, n, size=(resamples, n))
    totals = np.zeros((resamples, *values.shape[1:]))
    for column in draws.T:  # n additions, instead of one array of resamples x n x ... values
        totals += values[column]
    low, high = np.quantile(totals / n, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def estimate(values: Iterable[float]) -> Estimate:
    """Mean and interval of one value a seed; seeds without a finite value are left out.

    Args:
        values: One value a seed.

    Returns:
        The estimate, and in ``n`` how many seeds had a value.
    """
    array = np.array([value for value in values if math.isfinite(value)], dtype=np.float64)
    if len(array) == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    low, high = bootstrap(array)
    return Estimate(float(array.mean()), float(low), float(high), len(array))


def curve(series: Sequence[Mapping[int, float]]) -> Curve:
    """Mean and interval over seeds at each experience.

    Args:
        series: For each seed, the value at each experience. At each experience the seeds that have a finite value
            there count.

    Returns:
        The curve over every experience that any seed names.
    """
    experiences = sorted(set().union(*series))
    values = np.array([[seed.get(k, math.nan) for k in experiences] for seed in series], dtype=np.float64)
    mean, low, high = (np.full(len(experiences), math.nan) for _ in range(3))
    present = np.isfinite(values)
    for pattern in np.unique(present, axis=1).T if experiences else ():  # mostly one: every seed at every experience
        columns = (present == pattern[:, None]).all(axis=0)
        if pattern.any():
            block = values[np.ix_(pattern, columns)]
            mean[columns] = block.mean(axis=0)
            low[columns], high[columns] = bootstrap(block)
    return Curve(np.array(experiences, dtype=np.int64), mean, low, high)


def mean_over_experiences(run: Run, metric: str, stream: str) -> float:
    """Mean of a metric over a run's experiences; NaN where nothing was measured.

    The parts of the separation are taken over the experiences where all of it is known, so that they add up.

    Args:
        run: The run.
        metric: The metric, for instance ``"forgetting"``.
        stream: ``"train"`` or ``"test"``.

    Returns:
        The mean.
    """
    series = run.series(metric, stream)
    separated = {k for k, value in run.series("total", stream).items() if math.isfinite(value)}
    return _mean(value for k, value in series.items() if k in separated or not separated)


def mean_where_defined(runs: Sequence[Run], metric: str, stream: str) -> tuple[Estimate, float]:
    """Mean of a metric over the experiences where it is defined, then over seeds.

    Some measures have no value where what they wait for never happens, such as the steps to a threshold.

    Args:
        runs: The runs, one a seed.
        metric: The metric.
        stream: ``"train"`` or ``"test"``.

    Returns:
        The estimate, and the share of all runs' experiences where the metric has a finite value.
    """
    values = [np.array(list(run.series(metric, stream).values()), dtype=np.float64) for run in runs]
    defined = [seed[np.isfinite(seed)] for seed in values]
    share = sum(map(len, defined)) / max(sum(map(len, values)), 1)
    return estimate(_mean(seed) for seed in defined), share


def summarise(runs: Sequence[Run], stream: str) -> Summary:
    """Summarise the runs of one strategy.

    Args:
        runs: Its runs, one a seed.
        stream: ``"train"`` (trainability) or ``"test"`` (generalisation).

    Returns:
        The summary of the finished ones.
    """
    finished = [run for run in runs if run.finished]
    last = {run.path: sorted(run.series("learned", stream))[-LAST:] for run in finished}

    def in_the_last(metric: str) -> Estimate:
        return estimate(_mean(run.series(metric, stream).get(k, math.nan) for k in last[run.path]) for run in finished)

    def overall(metric: str) -> Estimate:
        return estimate(mean_over_experiences(run, metric, stream) for run in finished)

    return Summary(
        learned=in_the_last("learned"),
        fresh=in_the_last("fresh"),
        plasticity_loss=overall("plasticity_loss"),
        forgetting=overall("forgetting"),
        total=overall("total"),
        excess=estimate(
            mean_over_experiences(run, "plasticity_loss", stream) - mean_over_experiences(run, "forgetting", stream)
            for run in finished
        ),
        last=max((len(experiences) for experiences in last.values()), default=LAST),
        finished=len(finished),
        left_out=tuple(run for run in runs if not run.finished),
    )


def paired_difference(runs: Sequence[Run], baseline: Sequence[Run], metric: str, stream: str) -> Estimate:
    """How much a metric's mean over experiences differs from the baseline's, seed by seed.

    Args:
        runs: The strategy's runs.
        baseline: The baseline's runs. Seeds that did not finish in both are left out.
        metric: The metric.
        stream: ``"train"`` or ``"test"``.

    Returns:
        Strategy minus baseline.
    """
    of_baseline = {run.seed: mean_over_experiences(run, metric, stream) for run in baseline if run.finished}
    return estimate(
        mean_over_experiences(run, metric, stream) - of_baseline[run.seed]
        for run in runs
        if run.finished and run.seed in of_baseline
    )


def _mean(values: Iterable[float]) -> float:
    array = np.array(list(values), dtype=np.float64)
    return float(array.mean()) if len(array) else math.nan
