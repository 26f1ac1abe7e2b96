"""The report's statistics: intervals and what they cover, paired contrasts, ranks, means over experiences."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence

import numpy as np
import pytest
import report_writer as written
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from report_writer import compared, in_memory, mean, rows_of

from plasticity_cl.report.read import Run
from plasticity_cl.report.statistics import (
    Estimate,
    curve,
    estimate,
    mean_where_defined,
    paired_difference,
    rank,
    simultaneous,
    standing,
    summarise,
    t_interval,
)

# Intervals


@given(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=8), st.integers(1, 50))
def test_the_interval_is_students(values: list[float], family: int) -> None:
    found = estimate(values, family)
    spread = np.std(values, ddof=1)
    half = scipy.stats.t.ppf(1 - 0.025 / family, len(values) - 1) * spread / math.sqrt(len(values))
    assert found.mean == pytest.approx(mean(values), abs=1e-9)
    assert found.margin == pytest.approx(half, rel=1e-6, abs=1e-9)
    assert found.values == tuple(values)


@pytest.mark.parametrize("n", [3, 5, 10])
def test_single_intervals_cover_the_mean_of_normal_seeds_in_95_of_100_cases(n: int) -> None:
    low, high = t_interval(np.random.default_rng(n).normal(0.3, 0.1, size=(n, 4000)))
    assert 0.93 <= np.mean((low <= 0.3) & (high >= 0.3)) <= 0.97


@pytest.mark.parametrize("n", [3, 5, 10])
def test_paired_intervals_cover_the_difference_of_normal_seeds(n: int) -> None:
    # Seeds differ much more than strategies do, and strategies react to seeds alike: only pairs show the difference.
    random = np.random.default_rng(n)
    covered = []
    for _ in range(1000):
        of_seed = random.normal(0.5, 0.2, size=n)
        first, second = (of_seed + random.normal(0, 0.01, size=n) + shift for shift in (0.05, 0.0))
        runs = [
            [in_memory(name, s, [f"learned,train,,0,{float(v)!r}"]) for s, v in enumerate(values)]
            for name, values in (("a", first), ("b", second))
        ]
        difference = paired_difference(*runs, "learned", "train")
        assert difference.margin < 0.2
        covered.append(difference.low <= 0.05 <= difference.high)
    assert 0.93 <= np.mean(covered) <= 0.97


@pytest.mark.parametrize("n", [3, 5, 10])
@pytest.mark.parametrize("correlation", [0.0, 0.8])
def test_all_intervals_of_a_table_hold_together_in_95_of_100_cases(n: int, correlation: float) -> None:
    random = np.random.default_rng(n)
    held = []
    for _ in range(700):
        common = random.normal(size=(n, 1))
        cells = math.sqrt(correlation) * common + math.sqrt(1 - correlation) * random.normal(size=(n, 20))
        table = {row: [estimate(cells[:, 4 * row + column]) for column in range(4)] for row in range(5)}
        corrected, family = simultaneous(table)
        assert family == 20
        held.append(all(cell.low <= 0 <= cell.high for row in corrected.values() for cell in row))
    # Bonferroni: at least 95%, and hardly more where the cells are independent.
    assert np.mean(held) >= 0.93
    assert correlation > 0 or np.mean(held) <= 0.97


def test_only_the_intervals_that_are_there_make_the_others_wider() -> None:
    three = estimate([0.1, 0.2, 0.4])
    table, family = simultaneous({"a": [three, estimate([0.5])], "b": [estimate([]), estimate([0.1, 0.3])]})
    assert family == 1
    assert table["a"][0] == three
    assert [cell.n for cell in (*table["a"], *table["b"])] == [3, 1, 0, 2]
    assert simultaneous({"a": [estimate([0.5])]})[1] == 0
    # What is zero by definition makes nothing wider.
    assert simultaneous({"a": [three, estimate([0.0] * 3)]}) == ({"a": [three, estimate([0.0] * 3)]}, 1)


@pytest.mark.parametrize("values", [[], [0.5], [0.25, 0.75], [0.25, 0.75, math.nan], [math.inf, -math.inf, math.nan]])
def test_fewer_than_three_seeds_have_no_interval(values: list[float]) -> None:
    known = [value for value in values if math.isfinite(value)]
    found = estimate(values)
    assert (found.n, math.isnan(found.low), math.isnan(found.high)) == (len(known), True, True)
    assert math.isnan(found.mean) if not known else found.mean == mean(known)


def test_seeds_without_a_value_do_not_count() -> None:
    assert estimate([0.25, math.nan, 0.75, math.inf, 0.5]) == estimate([0.25, 0.75, 0.5])


def test_seeds_that_agree_give_an_interval_of_no_width() -> None:
    same = estimate([0.5] * 4, family=10)
    assert (same.mean, same.low, same.high) == (0.5, 0.5, 0.5)


def test_numbers_that_overflow_do_not_end_the_report() -> None:
    huge = estimate([1e308, 1e308, -1e308])
    assert not math.isfinite(huge.low)


@given(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=6), st.floats(-10, 10))
def test_intervals_move_with_the_values(values: list[float], shift: float) -> None:
    here, there, mirrored = (estimate(of) for of in (values, [v + shift for v in values], [-v for v in values]))
    assert here.low <= here.mean <= here.high
    assert there.low == pytest.approx(here.low + shift, abs=1e-8)
    assert (mirrored.low, mirrored.high) == pytest.approx((-here.high, -here.low), abs=1e-9)


def test_curves_average_over_the_seeds_that_got_there() -> None:
    line = curve([{0: 1.0, 1: 2.0, 3: 5.0}, {0: 3.0, 1: 4.0}, {0: 5.0, 1: math.nan}])
    assert line.experiences.tolist() == [0, 1, 3]
    assert line.mean.tolist() == [3.0, 3.0, 5.0]
    at_0 = estimate([1.0, 3.0, 5.0])
    assert (line.low[0], line.high[0]) == pytest.approx((at_0.low, at_0.high))
    assert np.isnan(line.low[1:]).all()
    assert line.seeds.shape == (3, 3)
    assert curve([]).mean.shape == (0,)
    assert curve([{}, {}]).seeds.shape == (2, 0)


# Summaries


def runs_of(name: str, seeds: Sequence[int] = range(3)) -> list[Run]:
    learned, final, fresh, baseline = written.LEARNED[name], written.FINAL[name], written.FRESH, written.BASELINE
    return [
        in_memory(name, s, rows_of(learned[s], final[s], fresh[s], baseline=baseline[s], chance=written.CHANCE))
        for s in seeds
    ]


def test_a_summary_equals_means_by_hand() -> None:
    for name in written.LEARNED:
        summary = summarise(runs_of(name), "train")
        a, f, s, r = written.LEARNED[name], written.FINAL[name], written.FRESH, written.BASELINE
        for part, by_hand in (
            (summary.learned, [mean(a[i]) for i in range(3)]),
            (summary.fresh, [mean(s[i]) for i in range(3)]),
            (summary.baseline, [mean(r[i]) for i in range(3)]),
            (summary.handicap, [mean(r[i]) - mean(s[i]) for i in range(3)]),
            (summary.plasticity_loss, [mean(s[i]) - mean(a[i]) for i in range(3)]),
            (summary.forgetting, [mean(a[i]) - mean(f[i]) for i in range(3)]),
            (summary.total, [mean(r[i]) - mean(f[i]) for i in range(3)]),
            (summary.above_chance, [mean(a[i]) - written.CHANCE for i in range(3)]),
            (summary.learned_last, [mean(a[i][-5:]) for i in range(3)]),
            (summary.fresh_last, [mean(s[i][-5:]) for i in range(3)]),
        ):
            assert part.values == pytest.approx(by_hand, abs=1e-12)
            expected = estimate(by_hand)
            assert (part.mean, part.low, part.high) == pytest.approx((expected.mean, expected.low, expected.high))
        assert (summary.last, summary.finished, summary.left_out) == (5, 3, ())


def test_diverged_runs_enter_no_mean() -> None:
    gone = in_memory("finetune", 2, rows_of([0.7, 0.123], None, [0.9, 0.9]), "diverged")
    summary = summarise([*runs_of("finetune", [0, 1]), gone], "train")
    without = summarise(runs_of("finetune", [0, 1]), "train")
    assert (summary.finished, summary.left_out) == (2, (gone,))
    assert summary.plasticity_loss.values == without.plasticity_loss.values
    assert summary.learned.values == without.learned.values


@given(st.data())
def test_the_parts_add_up_to_the_total(data: st.DataObject) -> None:
    k = data.draw(st.integers(1, 8))
    scores = st.lists(st.floats(-1, 1), min_size=k, max_size=k)
    with_baseline = data.draw(st.booleans())
    rows = [
        rows_of(*(data.draw(scores) for _ in range(3)), baseline=data.draw(scores) if with_baseline else None)
        for _ in range(2)
    ]
    hole = data.draw(st.integers(0, k))  # an experience of which the end was not measured
    rows[1] = [row for row in rows[1] if not re.match(f"(final|forgetting|total),train,,{hole},", row)]
    summary = summarise([in_memory("a", seed, of_seed) for seed, of_seed in enumerate(rows)], "train")
    if summary.total.n == 2:
        own = summary.plasticity_loss.mean + summary.forgetting.mean
        handicap = summary.handicap.mean if with_baseline else 0.0
        assert handicap + own == pytest.approx(summary.total.mean, abs=1e-12)
        if with_baseline:
            shortfall = summary.baseline.mean - summary.learned.mean
            assert shortfall == pytest.approx(handicap + summary.plasticity_loss.mean, abs=1e-12)


def test_measures_without_a_value_are_left_out_and_counted() -> None:
    rows = [f"learned,train,,{k},0.5" for k in range(6)]
    rows += [f"steps_to_threshold,train,,{k},{v}" for k, v in ((0, 10.0), (1, 30.0), (4, "nan"))]
    steps, defined, experiences = mean_where_defined([in_memory("a", 0, rows)], "steps_to_threshold", "train")
    assert (steps.mean, defined, experiences) == (20.0, 2, 6)
    never = in_memory("a", 1, rows[:6])
    assert mean_where_defined([never], "steps_to_threshold", "train")[1:] == (0, 6)
    alone = in_memory("a", 2, ["stream_accuracy,test,,5,0.5"])
    assert mean_where_defined([alone], "stream_accuracy", "test")[1:] == (1, 1)


# Contrasts and ranks


def scored(strategy: str, scores: Sequence[float] | dict[int, float], chance: float | None = None) -> list[Run]:
    """One run a seed that learns one experience to a score."""
    of_seed = scores if isinstance(scores, dict) else dict(enumerate(scores))
    return [in_memory(strategy, s, rows_of([v], [v], [v], baseline=[v], chance=chance)) for s, v in of_seed.items()]


def test_differences_are_paired_by_seed_and_experience() -> None:
    def runs(strategy: str, worse: float, seeds: Sequence[int], k: Sequence[float]) -> list[Run]:
        return [in_memory(strategy, s, [f"learned,train,,{i},{0.2 * s - 0.3 * i - worse!r}" for i in k]) for s in seeds]

    difference = paired_difference(
        runs("b", 0.05, [0, 1, 2, 4], [0, 1]), runs("a", 0.0, [3, 2, 1, 0], [1, 2]), "learned", "train"
    )
    assert (difference.mean, difference.low, difference.high) == (pytest.approx(-0.05),) * 3
    assert difference.n == 3


def ranks(strategies: dict[str, list[Run]], metric: str = "learned", higher: bool = True) -> dict[str, int]:
    return dict(rank(strategies, metric, "train", higher).ranks)


def test_ranks_end_where_strategies_are_told_apart() -> None:
    noise = [0.0, 0.01, -0.01, 0.005]
    strategies = {
        name: scored(name, [level + spread * e for e in noise])
        for name, level, spread in (("low", 0.3, 1), ("high", 0.9, 1), ("high too", 0.88, -1), ("middle", 0.6, 0.5))
    }
    found = rank(strategies, "learned", "train", True)
    assert dict(found.ranks) == {"high": 1, "high too": 1, "middle": 3, "low": 4}
    assert (found.leaders, found.first, found.last) == (("high", "high too"), "", "low")
    mirrored = rank(strategies, "learned", "train", False)
    assert dict(mirrored.ranks) == {"low": 1, "middle": 2, "high too": 3, "high": 3}
    assert (mirrored.first, mirrored.last) == ("low", "")


def test_strategies_of_different_ranks_are_always_told_apart() -> None:
    """Being told apart is not transitive: the wide one stands between two that are told apart."""
    strategies = {
        "upper": scored("upper", [0.47, 0.48, 0.46, 0.47, 0.47]),
        "lower": scored("lower", [0.40, 0.40, 0.41, 0.40, 0.39]),
        "wide": scored("wide", [0.2, 0.6, 0.1, 0.5, 0.3]),
        "best": scored("best", [0.96, 0.95, 0.97, 0.96, 0.96]),
    }
    found = rank(strategies, "learned", "train", True)
    assert ("upper", "lower") in found.better
    assert dict(found.ranks) == {"best": 1, "upper": 2, "lower": 2, "wide": 2}
    assert found.leaders == ("best",)


def test_differences_inside_the_interval_are_not_ranked() -> None:
    wide = {"a": scored("a", [0.5, 0.9, 0.1]), "b": scored("b", [0.4, 0.3, 0.6])}
    assert ranks(wide) == {"a": 1, "b": 1}
    # Less than a hundredth is nothing, be it ever so sure.
    assert ranks({"a": scored("a", [0.5] * 5), "b": scored("b", [0.495] * 5)}) == {"a": 1, "b": 1}
    assert ranks({"a": scored("a", [0.5] * 5), "b": scored("b", [0.48] * 5)}) == {"a": 1, "b": 2}


def test_the_correction_is_for_all_pairs() -> None:
    # One pair of t = 5 at five seeds: p = 0.0075, sure alone (0.05), and not among 10 pairs (0.005).
    steps = np.array([0.5, 1.0, 1.5, 0.6, 1.4]) * 0.05
    assert 0.005 < scipy.stats.ttest_1samp(steps, 0).pvalue < 0.05
    two = {"a": scored("a", (0.4 + steps).tolist()), "b": scored("b", [0.4] * 5)}
    assert ranks(two) == {"a": 1, "b": 2}
    far = {f"far{i}": scored(f"far{i}", [0.1 - 0.02 * i] * 5) for i in range(3)}
    found = ranks(two | far)
    assert (found["a"], found["b"]) == (1, 1)
    assert [found[name] for name in far] == [3, 4, 5]


def test_strategies_without_common_seeds_are_not_told_apart() -> None:
    apart = {"a": scored("a", {0: 0.9, 1: 0.9, 2: 0.9}), "b": scored("b", {2: 0.1, 3: 0.1, 4: 0.1})}
    assert ranks(apart) == {"a": 1, "b": 1}


def test_false_orders_are_rare_where_all_strategies_are_alike() -> None:
    random = np.random.default_rng(0)
    wrong = 0
    for _ in range(300):
        strategies = {name: scored(name, random.normal(0.5, 0.1, size=5).tolist()) for name in "abcd"}
        wrong += bool(rank(strategies, "learned", "train", True).better)
    assert wrong / 300 <= 0.08


def test_chance_level_and_few_seeds_are_left_out_of_the_ranking() -> None:
    runs = [
        *scored("finetune", [0.5, 0.51, 0.49], 0.1),
        *scored("good", [0.9, 0.91, 0.9], 0.1),
        *scored("nothing", [0.1, 0.11, 0.1], 0.1),
        *scored("nobody knows", [0.1, 0.9, 0.2], 0.1),
        *scored("two", [0.95, 0.95], 0.1),
        *scored("two at chance", [0.1, 0.105], 0.1),
    ]
    found = standing(compared(*runs), "train")
    assert dict(found.ranking.ranks) == {"good": 1, "finetune": 2}
    assert found.at_chance == ("nothing", "nobody knows", "two at chance")
    assert found.too_few == ("two",)
    assert list(found.summaries) == ["good", "finetune", "two", "nobody knows", "nothing", "two at chance"]


def test_results_without_chance_are_ranked() -> None:
    found = standing(compared(*scored("a", [0.1, 0.1, 0.1]), *scored("b", [0.2, 0.2, 0.2])), "train")
    assert dict(found.ranking.ranks) == {"b": 1, "a": 2}
    assert found.at_chance == ()


def test_thirty_strategies_are_ranked() -> None:
    runs = itertools.chain.from_iterable(
        scored(f"s{i:02}", [i / 40 + e for e in (0, 1e-4, 2e-4, 1e-4)]) for i in range(30)
    )
    found = standing(compared(*runs), "train")
    assert list(found.ranking.ranks.values()) == list(range(1, 31))
    assert list(found.ranking.ranks) == [f"s{i:02}" for i in reversed(range(30))]


def test_an_estimate_has_half_the_width_as_margin() -> None:
    assert Estimate(0.5, 0.25, 0.75, 3).margin == 0.25
