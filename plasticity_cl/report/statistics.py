"""Means over seeds with Student t intervals, paired contrasts of strategies, and the ranking that these allow."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from plasticity_cl.report.read import Comparison, Run

Array = NDArray[np.float64]
Key = TypeVar("Key")

LAST = 5
LEVEL = 0.95
FEWEST = 3  # seeds that an interval needs: the t of two seeds is 12.7, which says nothing
# Below this a difference of scores is called nothing: a hundredth of accuracy, or of bounded R2.
NEGLIGIBLE = 0.01


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its interval.

    Attributes:
        mean: The mean; NaN without values.
        low: Lower end of the interval; NaN with fewer than three seeds.
        high: Upper end, likewise.
        n: How many seeds there are in it.
        values: The values of these seeds.
    """

    mean: float
    low: float
    high: float
    n: int
    values: tuple[float, ...] = ()

    @property
    def margin(self) -> float:
        """Half the interval's width; NaN where there is none."""
        return (self.high - self.low) / 2

    @property
    def varies(self) -> bool:
        """Whether there is an interval, and a width in it that is more than rounding."""
        return self.margin > 1e-12 * max(map(abs, self.values), default=0.0)


@dataclass(frozen=True)
class Curve:
    """Means over seeds at each experience, with intervals; NaN where no seed has a value.

    Attributes:
        experiences: The experiences, ascending, shape [K].
        mean: Shape [K].
        low: Shape [K].
        high: Shape [K].
        seeds: The values of each seed, shape [n, K].
    """

    experiences: NDArray[np.int64]
    mean: Array
    low: Array
    high: Array
    seeds: Array


@dataclass(frozen=True)
class Summary:
    """What a strategy's finished runs say on one stream. Scores are means over experiences, then over seeds.

    Attributes:
        learned: A_kk, the score right after training on k.
        fresh: S_k, the score of a fresh network trained on k alone with the same strategy.
        baseline: S_ref, the common reference: the score of a fresh network of the baseline strategy.
        handicap: S_ref - S_k; not known in results of older versions.
        plasticity_loss: S_k - A_kk.
        forgetting: A_kk - A_Kk; the last experience, which cannot be forgotten yet, counts with its zero, so that the
            parts add up to the total.
        total: S_ref - A_Kk, or S_k - A_Kk where the common reference is not known.
        excess: Plasticity loss minus forgetting: whether the one is surely larger than the other.
        chance: The score of the best constant prediction.
        above_chance: Learned minus chance.
        learned_last: ``learned`` in the last five experiences, or in all if there are fewer.
        fresh_last: ``fresh`` in the same experiences.
        last: How many experiences these are.
        finished: How many runs there are in it.
        left_out: The diverged, failed and unfinished runs, which enter no mean.
        forgetting_counts: Whether what is forgotten is damage: not where old labels no longer hold.
    """

    learned: Estimate
    fresh: Estimate
    baseline: Estimate
    handicap: Estimate
    plasticity_loss: Estimate
    forgetting: Estimate
    total: Estimate
    excess: Estimate
    chance: Estimate
    above_chance: Estimate
    learned_last: Estimate
    fresh_last: Estimate
    last: int
    finished: int
    left_out: tuple[Run, ...]
    forgetting_counts: bool

    @property
    def at_chance(self) -> bool:
        """Whether what was learned is not known to lie above chance: by its interval, or with few seeds by its mean."""
        above = self.above_chance
        return above.n > 0 and not (above.mean >= NEGLIGIBLE and (above.low > 0 or above.n < FEWEST))

    @property
    def handicapped(self) -> bool:
        """Whether fresh networks of the strategy surely learn less than the common reference, by a tenth of it."""
        return self.handicap.low > 0 and self.handicap.mean >= max(0.1 * self.baseline.mean, NEGLIGIBLE)


@dataclass(frozen=True)
class Ranking:
    """Strategies in the order of one number, as far as the seeds tell them apart.

    Attributes:
        ranks: Best first. A rank ends where every strategy above is surely better than every one below, so that
            strategies of different ranks are always told apart, and those of one rank need not be.
        better: The pairs of which the first is surely better: their paired difference is at least a hundredth of
            score, and its interval, corrected for the number of pairs, lies on that side of zero.
    """

    ranks: Mapping[str, int]
    better: frozenset[tuple[str, str]]

    @property
    def leaders(self) -> tuple[str, ...]:
        """The strategies than which none is surely better."""
        worse = {below for _, below in self.better}
        return tuple(name for name in self.ranks if name not in worse)

    @property
    def first(self) -> str:
        """The strategy that is surely better than every other, or nothing."""
        return self._extreme(0)

    @property
    def last(self) -> str:
        """The strategy that is surely worse than every other, or nothing."""
        return self._extreme(1)

    def _extreme(self, side: int) -> str:
        counts = {name: sum(pair[side] == name for pair in self.better) for name in self.ranks}
        return next((name for name, count in counts.items() if count == len(counts) - 1 > 0), "")


@dataclass(frozen=True)
class Standing:
    """The strategies of a comparison on one stream: in which order they stand, and which do not take part.

    Attributes:
        stream: ``"train"`` or ``"test"``.
        summaries: Each strategy's summary, in the order of a table: ranked, at chance level, with too few seeds.
        ranking: By what was learned; more is better.
        at_chance: Strategies whose learned score does not lie above chance. They are left out of the ranking.
        too_few: Strategies with fewer than three finished seeds, which have no intervals and cannot be ranked.
    """

    stream: str
    summaries: Mapping[str, Summary]
    ranking: Ranking
    at_chance: tuple[str, ...]
    too_few: tuple[str, ...]


def t_interval(values: Array, family: int = 1) -> tuple[Array, Array]:
    """Student's t interval of the mean, one of a family that holds all its means at once in 95% of cases.

    mean -+ t(1 - 0.05 / (2 family), n - 1) s / sqrt(n), the Bonferroni correction for ``family`` intervals. Exact for
    normal values; see ``tests/report/test_report_statistics.py`` for what it covers, and Hesterberg 2015 (The American
    Statistician 69:371) for why not a percentile bootstrap, which is much too narrow with few seeds.

    Args:
        values: One row a seed, shape [n, ...].
        family: How many intervals are read together.

    Returns:
        The lower and the upper ends, shape [...]; NaN where n < 3.
    """
    n = len(values)
    if n < FEWEST:
        nothing = np.full(values.shape[1:], math.nan)
        return nothing, nothing
    with np.errstate(over="ignore", invalid="ignore"):
        mean = values.mean(axis=0)
        half = stdtrit(n - 1, 1 - (1 - LEVEL) / (2 * family)) * values.std(axis=0, ddof=1) / math.sqrt(n)
        return mean - half, mean + half


def estimate(values: Iterable[float], family: int = 1) -> Estimate:
    """Mean and interval of one value a seed; seeds without a finite value are left out.

    Args:
        values: One value a seed.
        family: As for :func:`t_interval`.

    Returns:
        The estimate, and in ``n`` how many seeds had a value.
    """
    array = np.array([value for value in values if math.isfinite(value)], dtype=np.float64)
    if len(array) == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    low, high = t_interval(array, family)
    with np.errstate(over="ignore"):
        return Estimate(float(array.mean()), float(low), float(high), len(array), tuple(array.tolist()))


def simultaneous(table: Mapping[Key, Sequence[Estimate]]) -> tuple[dict[Key, list[Estimate]], int]:
    """Correct the intervals of a table for their number.

    Intervals of no width do not count: they are what they are for any number, as that of a difference which is zero by
    definition.

    Args:
        table: Rows of estimates.

    Returns:
        The same table, with intervals that all hold at once in 95% of cases, and how many there are.
    """
    family = sum(cell.varies for row in table.values() for cell in row)
    return {key: [estimate(cell.values, max(family, 1)) for cell in row] for key, row in table.items()}, family


def curve(series: Sequence[Mapping[int, float]]) -> Curve:
    """Mean and interval over seeds at each experience, each interval for itself.

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
            low[columns], high[columns] = t_interval(block)
    return Curve(np.array(experiences, dtype=np.int64), mean, low, high, values.reshape(len(series), len(experiences)))


def per_experience(run: Run, metric: str, stream: str) -> dict[int, float]:
    """A metric's finite values, over the experiences where all of the separation is known, so that its parts add up.

    Args:
        run: The run.
        metric: The metric, for instance ``"forgetting"``.
        stream: ``"train"`` or ``"test"``.

    Returns:
        The value at each of these experiences; at all where there is no separation.
    """
    separated = {k for k, value in run.series("total", stream).items() if math.isfinite(value)}
    return {
        k: value
        for k, value in run.series(metric, stream).items()
        if math.isfinite(value) and (k in separated or not separated)
    }


def mean_over_experiences(run: Run, metric: str, stream: str) -> float:
    """Mean of :func:`per_experience`; NaN where nothing was measured."""
    return _mean(per_experience(run, metric, stream).values())


def mean_where_defined(runs: Sequence[Run], metric: str, stream: str) -> tuple[Estimate, int, int]:
    """Mean of a metric over the experiences where it is defined, then over seeds.

    Some measures have no value where what they wait for never happens, such as the steps to a threshold.

    Args:
        runs: The runs, one a seed.
        metric: The metric.
        stream: ``"train"`` or ``"test"``.

    Returns:
        The estimate, in how many experiences of all runs together the metric has a finite value, and how many
        experiences there are: those with a learned score, or where there is none those with a row of the metric.
    """
    values = [run.series(metric, stream) for run in runs]
    defined = [[value for value in seed.values() if math.isfinite(value)] for seed in values]
    experiences = [set(run.series("learned", stream)) | set(seed) for run, seed in zip(runs, values, strict=True)]
    return estimate(map(_mean, defined)), sum(map(len, defined)), sum(map(len, experiences))


def summarise(runs: Sequence[Run], stream: str) -> Summary:
    """Summarise the runs of one strategy, each interval for itself.

    Args:
        runs: Its runs, one a seed.
        stream: ``"train"`` (trainability) or ``"test"`` (generalisation).

    Returns:
        The summary of the finished ones.
    """
    finished = [run for run in runs if run.finished]
    last = {run.path: sorted(run.series("learned", stream))[-LAST:] for run in finished}

    def overall(metric: str) -> Estimate:
        return estimate(mean_over_experiences(run, metric, stream) for run in finished)

    def in_the_last(metric: str) -> Estimate:
        return estimate(_mean(run.series(metric, stream).get(k, math.nan) for k in last[run.path]) for run in finished)

    return Summary(
        learned=overall("learned"),
        fresh=overall("fresh"),
        baseline=overall("baseline"),
        handicap=overall("handicap"),
        plasticity_loss=overall("plasticity_loss"),
        forgetting=overall("forgetting"),
        total=overall("total"),
        excess=estimate(_contrast(run, "plasticity_loss", run, "forgetting", stream) for run in finished),
        chance=overall("chance"),
        above_chance=estimate(_contrast(run, "learned", run, "chance", stream) for run in finished),
        learned_last=in_the_last("learned"),
        fresh_last=in_the_last("fresh"),
        last=max((len(experiences) for experiences in last.values()), default=LAST),
        finished=len(finished),
        left_out=tuple(run for run in runs if not run.finished),
        forgetting_counts=all(run.forgetting_counts for run in runs),
    )


def paired_difference(
    runs: Sequence[Run], others: Sequence[Run], metric: str, stream: str, family: int = 1
) -> Estimate:
    """How much a metric differs from that of another strategy, seed by seed, over the experiences that both have.

    Args:
        runs: The strategy's runs.
        others: The other's runs. Seeds that did not finish in both are left out.
        metric: The metric.
        stream: ``"train"`` or ``"test"``.
        family: As for :func:`t_interval`.

    Returns:
        The first minus the second.
    """
    of_seed = {run.seed: run for run in others if run.finished}
    return estimate(
        (
            _contrast(run, metric, of_seed[run.seed], metric, stream)
            for run in runs
            if run.finished and run.seed in of_seed
        ),
        family,
    )


def rank(strategies: Mapping[str, Sequence[Run]], metric: str, stream: str, higher_is_better: bool) -> Ranking:
    """Rank strategies by paired contrasts, one of each pair, corrected for their number.

    Args:
        strategies: The runs of each.
        metric: What to rank by.
        stream: ``"train"`` or ``"test"``.
        higher_is_better: The direction.

    Returns:
        The ranking.
    """
    sign = 1.0 if higher_is_better else -1.0
    pairs = list(combinations(strategies, 2))
    better = set()
    for first, second in pairs:
        difference = paired_difference(strategies[first], strategies[second], metric, stream, len(pairs))
        if abs(difference.mean) >= NEGLIGIBLE and (difference.low > 0 or difference.high < 0):
            better.add((first, second) if sign * difference.mean > 0 else (second, first))
    means = {
        name: estimate(mean_over_experiences(run, metric, stream) for run in runs if run.finished).mean
        for name, runs in strategies.items()
    }
    # Being told apart is not transitive: a rank ends only where everything above is better than everything below.
    order = sorted(strategies, key=lambda name: -sign * means[name])
    ranks: dict[str, int] = {}
    for i, name in enumerate(order):
        begins = all((above, below) in better for above in order[:i] for below in order[i:])
        ranks[name] = i + 1 if begins else ranks[order[i - 1]]
    return Ranking(ranks, frozenset(better))


def standing(comparison: Comparison, stream: str) -> Standing:
    """Rank the strategies of a comparison by what they learned, leaving out what cannot be ranked.

    Args:
        comparison: The comparison.
        stream: ``"train"`` or ``"test"``.

    Returns:
        Their standing.
    """
    summaries = {name: summarise(runs, stream) for name, runs in comparison.strategies.items()}
    chances, _ = simultaneous({name: [summary.above_chance] for name, summary in summaries.items()})
    summaries = {
        name: replace(summary, above_chance=chances[name][0], forgetting_counts=comparison.forgetting_counts)
        for name, summary in summaries.items()
    }
    measured = [name for name, summary in summaries.items() if summary.learned.n]
    at_chance = tuple(name for name in measured if summaries[name].at_chance)
    too_few = tuple(name for name in measured if summaries[name].learned.n < FEWEST and name not in at_chance)
    runs = comparison.strategies
    ranking = rank({n: runs[n] for n in measured if n not in (*at_chance, *too_few)}, "learned", stream, True)

    def by_learned(names: Iterable[str]) -> list[str]:
        return sorted(names, key=lambda name: -summaries[name].learned.mean)

    nothing = [name for name in summaries if name not in measured]
    order = [*ranking.ranks, *by_learned(too_few), *by_learned(at_chance), *nothing]
    return Standing(stream, {name: summaries[name] for name in order}, ranking, at_chance, too_few)


def _contrast(first: Run, first_metric: str, second: Run, second_metric: str, stream: str) -> float:
    """Mean difference over the experiences that have both values; NaN where there are none."""
    ours, theirs = per_experience(first, first_metric, stream), per_experience(second, second_metric, stream)
    return _mean(value - theirs[k] for k, value in ours.items() if k in theirs)


def _mean(values: Iterable[float]) -> float:
    array = np.array(list(values), dtype=np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        return float(array.mean()) if len(array) else math.nan
