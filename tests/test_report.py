"""The report: what is read, the numbers in it against hand computation, and what must hold for any input."""

from __future__ import annotations

import base64
import itertools
import json
import math
import random
import re
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg

from plasticity_cl.errors import UserError
from plasticity_cl.report import read_runs, summary_table, write_report
from plasticity_cl.report.figures import diagnostics_figure, learning_figure, looks, png, separation_figure
from plasticity_cl.report.read import Comparison, Run, comparisons
from plasticity_cl.report.statistics import (
    Estimate,
    Summary,
    bootstrap,
    curve,
    estimate,
    mean_where_defined,
    paired_difference,
    summarise,
)
from plasticity_cl.report.wording import abbreviate, against_baseline, comparison_verdict, dominant, number, verdict

Series = Sequence[float]


def spec_of(strategy: str, seed: int, **fields: Any) -> dict[str, Any]:
    return {"scenario": "label-reset", "source": "digits", "strategy": strategy, "seed": seed, "lr": 0.001, **fields}


def rows_of(learned: Series, final: Series | None, fresh: Series | None, stream: str = "train") -> list[str]:
    """The rows that a run writes: the scores, and the separation where all of it is known."""
    rows = []
    for k, score in enumerate(learned):
        values = {"learned": score}
        if final:
            values |= {"final": final[k], "forgetting": score - final[k]}
        if fresh:
            values |= {"fresh": fresh[k], "plasticity_loss": fresh[k] - score}
        if final and fresh:
            values |= {"total": fresh[k] - final[k]}
        rows += [f"{metric},{stream},,{k},{value!r}" for metric, value in values.items()]
    return rows


def probe_rows(metric: str, series: Series, layer: str = "") -> list[str]:
    return [f"{metric},probe,{layer},{k},{value!r}" for k, value in enumerate(series)]


def write_run(
    path: Path,
    spec: Mapping[str, Any],
    rows: Sequence[str],
    status: Mapping[str, str] | None = None,
) -> Path:
    path.mkdir(parents=True)
    (path / "spec.json").write_text(json.dumps(spec))
    (path / "metrics.csv").write_text("\n".join(["metric,stream,layer,experience,value", *rows, ""]))
    (path / "status.json").write_text(json.dumps(status or {"state": "done", "message": "", "score": "accuracy"}))
    return path


def mean(values: Series) -> float:
    return sum(values) / len(values)


# Three seeds of two strategies, seven experiences, of which the last five count for "learned" and "fresh".
FRESH = [[0.9 + 0.01 * seed] * 7 for seed in range(3)]
LEARNED = {
    "finetune": [[0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3 + 0.03 * seed] for seed in range(3)],
    "layernorm+l2=0.001": [[0.88 + 0.01 * seed] * 7 for seed in range(3)],
}
FINAL = {
    name: [[0.1 + 0.02 * seed] * 6 + [series[-1]] for seed, series in enumerate(of_seeds)]
    for name, of_seeds in LEARNED.items()
}


def write_results(directory: Path) -> Path:
    """A comparison with train and test, diagnostics, and a third strategy of which one seed diverged."""
    for name, seed in itertools.product(LEARNED, range(3)):
        learned, final, fresh = LEARNED[name][seed], FINAL[name][seed], FRESH[seed]
        rows = rows_of(learned, final, fresh) + rows_of(*([v / 2 for v in s] for s in (learned, final, fresh)), "test")
        rows += probe_rows("dead_units", [0.01 * seed + 0.1 * k * (name == "finetune") for k in range(7)])
        rows += probe_rows("effective_rank", [10.0] * 7, "0") + probe_rows(
            "effective_rank", [20.0 + seed + len(name)] * 7, "2"
        )
        rows += probe_rows("target_mean", [4.5] * 7)
        rows += [f"steps_to_threshold,train,,{k},{100.0 if k < 5 else math.nan}" for k in range(7)]
        write_run(directory / name / f"seed{seed}", spec_of(name, seed), rows)
    for seed in range(2):
        rows = rows_of(LEARNED["finetune"][seed], FINAL["finetune"][seed], FRESH[seed])
        write_run(directory / "l2=9" / f"seed{seed}", spec_of("l2=9", seed), rows)
    write_run(
        directory / "l2=9" / "seed2",
        spec_of("l2=9", 2),
        rows_of([0.7, 0.123], None, [0.9, 0.9]),
        {"state": "diverged", "message": "the loss became NaN in experience 2", "score": "accuracy"},
    )
    return directory


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = write_results(tmp_path_factory.mktemp("results"))
    write_report(directory)
    return directory


@pytest.fixture(scope="module")
def comparison(results: Path) -> Comparison:
    (only,) = comparisons(read_runs(results))
    return only


class Page(HTMLParser):
    """A parsed page: its elements, the tables' cells, its text; fails on tags that do not nest."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.text = ""
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += (" " if self.open[-1] == "small" else "") + data


def page_of(directory: Path) -> Page:
    return Page((directory / "report.html").read_text(encoding="utf-8"))


# Reading


def test_runs_are_read_as_written(results: Path) -> None:
    runs = {(run.strategy, run.seed): run for run in read_runs(results)}
    assert len(runs) == 9
    run = runs["finetune", 1]
    assert run.path == Path("finetune/seed1")
    assert run.spec == spec_of("finetune", 1)
    assert (run.state, run.score, run.finished) == ("done", "accuracy", True)
    assert run.series("learned", "train") == dict(enumerate(LEARNED["finetune"][1]))
    assert run.series("learned", "test")[0] == 0.45
    assert run.series("effective_rank", "probe", "2") == dict.fromkeys(range(7), 29.0)
    assert run.diagnostic("effective_rank", ("0", "2")) == dict.fromkeys(range(7), 19.5)
    assert run.series("no such metric", "train") == {}
    diverged = runs["l2=9", 2]
    assert not diverged.finished
    assert diverged.message == "the loss became NaN in experience 2"
    assert diverged.series("learned", "train") == {0: 0.7, 1: 0.123}


def test_an_unfinished_run_may_end_anywhere(tmp_path: Path) -> None:
    path = write_run(
        tmp_path / "a", spec_of("finetune", 0), rows_of([0.5, 0.25], None, [0.75, 0.875]), {"state": "running"}
    )
    whole = (path / "metrics.csv").read_bytes()
    (full,) = read_runs(tmp_path)
    written = [(key, k, value) for key, series in full.values.items() for k, value in series.items()]
    for cut in range(len(whole) + 1):
        (path / "metrics.csv").write_bytes(whole[:cut])
        (run,) = read_runs(tmp_path)
        values = [(key, k, value) for key, series in run.values.items() for k, value in series.items()]
        assert set(values) <= set(written)
        assert len(values) == max(whole[:cut].count(b"\n") - 1, 0)


def test_a_run_killed_early_counts_as_unfinished(tmp_path: Path) -> None:
    path = write_run(tmp_path / "a", spec_of("finetune", 0), rows_of([0.5], None, None))
    (path / "status.json").unlink()
    (run,) = read_runs(tmp_path)
    assert (run.state, run.finished, run.score) == ("running", False, None)
    (path / "metrics.csv").unlink()
    (run,) = read_runs(tmp_path)
    assert run.values == {}
    report = write_report(tmp_path)
    assert "Nothing was measured yet" in report.read_text()


def test_a_row_written_again_by_a_resumed_run_replaces_the_first(tmp_path: Path) -> None:
    write_run(tmp_path / "a", spec_of("finetune", 0), ["learned,train,,0,0.5", "learned,train,,0,0.625"])
    (run,) = read_runs(tmp_path)
    assert run.series("learned", "train") == {0: 0.625}


def break_file(name: str, content: str | None) -> Any:
    def apply(path: Path) -> None:
        if content is None:
            (path / name).unlink()
        else:
            (path / name).write_text(content)

    return apply


HEADER = "metric,stream,layer,experience,value\n"


@pytest.mark.parametrize(
    ("damage", "named", "said"),
    [
        (break_file("spec.json", '{"scenario": '), "spec.json", "not JSON"),
        (break_file("spec.json", "[1]"), "spec.json", "not a JSON object"),
        (break_file("spec.json", '{"scenario": "x", "seed": 0}'), "spec.json", "does not say the strategy"),
        (
            break_file("spec.json", '{"scenario": "x", "seed": 0, "strategy": "y", "a": [1]}'),
            "spec.json",
            "'a' is a list",
        ),
        (break_file("status.json", "done"), "status.json", "not JSON"),
        (break_file("metrics.csv", None), "metrics.csv", "cannot read"),
        (break_file("metrics.csv", ""), "metrics.csv", "header"),
        (break_file("metrics.csv", "name,value\n"), "metrics.csv", "header"),
        (
            break_file("metrics.csv", HEADER + "learned,train,,0,0.5\nlearned,train\n"),
            "metrics.csv",
            "line 3 has 2 fields",
        ),
        (break_file("metrics.csv", HEADER + "learned,train,,0,high\n"), "metrics.csv", "line 2"),
        (break_file("metrics.csv", HEADER + "learned,train,,first,0.5\n"), "metrics.csv", "line 2"),
        (break_file("metrics.csv", HEADER + "learned,train,,0,"), "metrics.csv", "line 2"),
        (break_file("metrics.csv", HEADER + 'learned,"train'), "metrics.csv", "broken"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, damage: Any, named: str, said: str) -> None:
    path = write_run(tmp_path / "a" / "b", spec_of("finetune", 0), rows_of([0.5], [0.5], [0.5]))
    damage(path)
    with pytest.raises(UserError) as error:
        read_runs(tmp_path)
    assert str(path / named) in str(error.value)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_without_runs_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such directory"):
        read_runs(tmp_path / "missing")
    with pytest.raises(UserError, match=re.escape(f"run `plasticity-cl compare ... --out {tmp_path}` first")):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_same_run_twice_is_refused(tmp_path: Path) -> None:
    for name in ("a", "copy of a"):
        write_run(tmp_path / name, spec_of("finetune", 0), rows_of([0.5], [0.5], [0.5]))
    with pytest.raises(UserError, match="are the same run"):
        read_runs(tmp_path)


def test_runs_that_differ_in_more_than_strategy_and_seed_are_not_compared(tmp_path: Path) -> None:
    rows = rows_of([0.5], [0.5], [0.5])
    write_run(tmp_path / "1", spec_of("finetune", 0, n_experiences=1, epochs=3), rows)
    write_run(tmp_path / "2", spec_of("ewc=1", 7, n_experiences=1, epochs=3, note=None), rows)
    write_run(tmp_path / "3", spec_of("finetune", 0, n_experiences=1, epochs=4), rows)
    write_run(tmp_path / "4", spec_of("finetune", 0, n_experiences=2, epochs=4), rows)
    write_run(tmp_path / "5", {**spec_of("finetune", 0), "source": "mnist"}, rows)
    found = comparisons(read_runs(tmp_path))
    assert [[str(run.path) for run in c.runs] for c in found] == [["1", "2"], ["3"], ["4"], ["5"]]
    assert [c.title for c in found] == [
        "label-reset on digits, 1 experience, epochs=3",
        "label-reset on digits, 1 experience, epochs=4",
        "label-reset on digits, 2 experiences, epochs=4",
        "label-reset on mnist, 1 experience",
    ]


def test_the_baseline_comes_first_and_combinations_last(comparison: Comparison) -> None:
    assert list(comparison.strategies) == ["finetune", "l2=9", "layernorm+l2=0.001"]
    assert comparison.mechanisms == {
        "Mechanism 1: units and preactivations": {"dead_units": ("",)},
        "Mechanism 3: regression targets": {"target_mean": ("",)},
        "Features": {"effective_rank": ("0", "2")},
    }
    assert comparison.layers == {"dead_units": ("",), "effective_rank": ("0", "2"), "target_mean": ("",)}


# Statistics


def test_bootstrap_equals_a_loop() -> None:
    values = [0.3, 0.9, 0.4, 0.45, 0.7]
    draws = np.random.default_rng(5).integers(0, 5, size=(999, 5))
    means = sorted(mean([values[i] for i in draw]) for draw in draws)
    low, high = bootstrap(np.array(values), seed=5, resamples=999)
    # With 999 draws, the 2.5% quantile lies 24.95 steps up.
    assert float(low) == pytest.approx(means[24] + 0.95 * (means[25] - means[24]), abs=1e-12)
    assert float(high) == pytest.approx(means[973] + 0.05 * (means[974] - means[973]), abs=1e-12)


def test_bootstrap_intervals_cover_the_mean_as_often_as_they_say() -> None:
    draws = np.random.default_rng(0).normal(size=(20, 600))
    low, high = bootstrap(draws, resamples=1000)
    assert 0.90 <= np.mean((low <= 0) & (high >= 0)) <= 0.96
    # With three seeds the interval is the range, which holds the mean in 1 - 2/8 of all cases.
    low, high = bootstrap(draws[:3])
    np.testing.assert_allclose(low, draws[:3].min(axis=0))
    np.testing.assert_allclose(high, draws[:3].max(axis=0))
    assert 0.70 <= np.mean((low <= 0) & (high >= 0)) <= 0.80


finite = st.floats(-1e6, 1e6)


@given(st.lists(finite, min_size=2, max_size=6), st.floats(-10, 10))
def test_bootstrap_stays_within_the_values_and_moves_with_them(values: list[float], shift: float) -> None:
    array = np.array(values)
    low, high = bootstrap(array, resamples=200)
    scale = max(map(abs, values), default=0) + abs(shift) + 1
    assert min(values) - 1e-9 * scale <= low <= high <= max(values) + 1e-9 * scale
    again, _ = bootstrap(array, resamples=200)
    assert low == again
    moved, _ = bootstrap(array + shift, resamples=200)
    assert float(moved) == pytest.approx(float(low) + shift, abs=1e-9 * scale)
    mirrored = [-float(end) for end in bootstrap(-array, resamples=200)][::-1]
    assert mirrored == pytest.approx([float(low), float(high)], abs=1e-9 * scale)


def test_one_seed_has_no_interval_and_seeds_without_a_value_do_not_count() -> None:
    one = estimate([0.5])
    assert (one.mean, one.n) == (0.5, 1)
    assert math.isnan(one.low)
    assert math.isnan(one.high)
    assert math.isnan(estimate([]).mean)
    assert estimate([0.25, math.nan, 0.75, math.inf]) == estimate([0.25, 0.75])


def test_curves_average_over_the_seeds_that_got_there() -> None:
    line = curve([{0: 1.0, 1: 2.0, 3: 5.0}, {0: 3.0, 1: 4.0}, {0: 5.0, 1: math.nan}])
    assert line.experiences.tolist() == [0, 1, 3]
    assert line.mean.tolist() == [3.0, 3.0, 5.0]
    assert (line.low[0], line.high[0]) == (1.0, 5.0)
    assert (line.low[1], line.high[1]) == (2.0, 4.0)
    assert math.isnan(line.low[2])
    assert curve([]).mean.shape == (0,)


def test_a_summary_equals_means_by_hand(comparison: Comparison) -> None:
    for name in LEARNED:
        summary = summarise(comparison.strategies[name], "train")
        learned = [mean(series[-5:]) for series in LEARNED[name]]
        losses = [mean([s - a for s, a in zip(FRESH[i], LEARNED[name][i], strict=True)]) for i in range(3)]
        forgetting = [mean([a - b for a, b in zip(LEARNED[name][i], FINAL[name][i], strict=True)]) for i in range(3)]
        for part, by_hand in (
            (summary.learned, learned),
            (summary.fresh, [0.9, 0.91, 0.92]),
            (summary.plasticity_loss, losses),
            (summary.forgetting, forgetting),
        ):
            assert part.mean == pytest.approx(mean(by_hand), abs=1e-12)
            # Three seeds: the interval is the range, by test_bootstrap_intervals_cover_....
            assert (part.low, part.high) == (pytest.approx(min(by_hand)), pytest.approx(max(by_hand)))
            assert part.n == 3
        assert summary.total.mean == pytest.approx(summary.plasticity_loss.mean + summary.forgetting.mean, abs=1e-12)
        assert summary.excess.mean == pytest.approx(summary.plasticity_loss.mean - summary.forgetting.mean, abs=1e-12)
        assert (summary.last, summary.finished, summary.left_out) == (5, 3, ())


def test_diverged_runs_enter_no_mean(comparison: Comparison) -> None:
    summary = summarise(comparison.strategies["l2=9"], "train")
    without = summarise(comparison.strategies["finetune"][:2], "train")
    assert (summary.finished, [run.seed for run in summary.left_out]) == (2, [2])
    assert summary.plasticity_loss == without.plasticity_loss
    assert summary.learned == without.learned


def in_memory(strategy: str, seed: int, rows: Sequence[str], state: str = "done") -> Run:
    values: dict[tuple[str, str, str], dict[int, float]] = {}
    for row in rows:
        metric, stream, layer, k, value = row.split(",")
        values.setdefault((metric, stream, layer), {})[int(k)] = float(value)
    return Run(Path(f"{strategy}-{seed}"), spec_of(strategy, seed), state, "accuracy", "", values)


@given(st.data())
def test_the_parts_add_up_to_the_total(data: st.DataObject) -> None:
    k = data.draw(st.integers(1, 8))
    scores = st.lists(st.floats(-1, 1), min_size=k, max_size=k)
    rows = [rows_of(data.draw(scores), data.draw(scores), data.draw(scores)) for _ in range(2)]
    hole = data.draw(st.integers(0, k))  # an experience of which the end was not measured
    rows[1] = [row for row in rows[1] if not re.match(f"(final|forgetting|total),train,,{hole},", row)]
    summary = summarise([in_memory("a", seed, of_seed) for seed, of_seed in enumerate(rows)], "train")
    if summary.total.n == 2:
        parts = summary.plasticity_loss.mean + summary.forgetting.mean
        assert parts == pytest.approx(summary.total.mean, abs=1e-12)


def test_differences_to_the_baseline_are_paired_by_seed() -> None:
    # Seeds differ much more than strategies do: unpaired, the interval would hold zero.
    def runs(strategy: str, worse: float, seeds: Sequence[int]) -> list[Run]:
        return [in_memory(strategy, s, rows_of([0.2 * s - worse], [0.2 * s - worse], [1.0])) for s in seeds]

    difference = paired_difference(
        runs("b", 0.05, [0, 1, 2, 4]), runs("a", 0.0, [3, 2, 1, 0]), "plasticity_loss", "train"
    )
    assert (difference.mean, difference.low, difference.high) == (pytest.approx(0.05),) * 3
    assert difference.n == 3


def test_measures_without_a_value_are_left_out_and_counted() -> None:
    run = in_memory("a", 0, [f"steps_to_threshold,train,,{k},{v}" for k, v in enumerate([10.0, 30.0, "nan", "inf"])])
    steps, share = mean_where_defined([run], "steps_to_threshold", "train")
    assert (steps.mean, share) == (20.0, 0.5)


# Words


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.125, "0.12"), (-0.004, "0.00"), (-0.5, "-0.50"), (9.996, "10.0"), (99.96, "100"), (999.6, "1.0k"),
        (-1234.0, "-1.2k"), (12345.0, "12k"), (999_600.0, "1.0M"), (3.4e8, "340M"), (9.996e8, "1e9"), (-2e12, "-2e12"),
        (math.nan, "-"), (-math.inf, "-inf"), (1e300, "inf"),
    ],
)  # fmt: skip
def test_numbers_in_few_characters(value: float, text: str) -> None:
    assert number(value) == text


@given(st.floats(allow_nan=False))
def test_numbers_keep_their_size_and_width(value: float) -> None:
    text = number(value)
    assert len(text) <= 5
    if abs(value) < 1e99:
        read = float(text.replace("k", "e3").replace("M", "e6"))
        assert abs(read - value) <= max(0.005, 0.5 * abs(value)) + 1e-9


def an_estimate(value: float, spread: float = 0.0) -> Estimate:
    return Estimate(value, value - spread, value + spread, 3)


def a_summary(plasticity_loss: float, forgetting: float, spread: float = 0.0, finished: int = 3) -> Summary:
    return Summary(
        learned=an_estimate(0.25),
        fresh=an_estimate(0.75),
        plasticity_loss=an_estimate(plasticity_loss, spread),
        forgetting=an_estimate(forgetting, spread),
        total=an_estimate(plasticity_loss + forgetting, spread),
        excess=an_estimate(plasticity_loss - forgetting, spread),
        last=5,
        finished=finished,
        left_out=(),
    )


@pytest.mark.parametrize(
    ("plasticity_loss", "forgetting", "said"),
    [
        (0.51, 0.02, "Of the 0.53 lost against a fresh network, 96% is lost ability to learn and 4% is forgetting."),
        (0.5, 0.001, "Of the 0.50 lost against a fresh network, all is lost ability to learn"),
        (0.012, 0.0, "Of the 0.01 lost against a fresh network, all is lost ability to learn"),
        (0.5, -0.001, "Of the 0.50 lost against a fresh network, all is lost ability to learn"),
        (0.0, 0.4, "Of the 0.40 lost against a fresh network, all is forgetting: it still learns as well"),
        (1.0, 4999.0, "less than 1% is lost ability to learn and more than 99% is forgetting"),
        (-0.1, 0.4, "It learns 0.10 better than a fresh network (what it carries over helps more"),
        (-0.1, 0.4, "and forgets 0.40: in all it ends 0.30 below fresh networks."),
        (-0.4, 0.1, "in all it ends 0.30 above fresh networks."),
        (-0.1, 0.0, "It learns 0.10 better than a fresh network and keeps what it learned: nothing is lost."),
        (0.4, -0.1, "It learns 0.40 less than a fresh network, but what it learned improves by 0.10 later on"),
        (0.0, -0.1, "It learns as well as a fresh network, and what it learned improves by 0.10 later on."),
        (-0.2, -0.1, "It learns 0.20 better than a fresh network, and what it learned improves by another 0.10"),
        (0.004, -0.003, "Nothing to speak of is lost against a fresh network (plasticity loss 0.00, forgetting 0.00)."),
    ],
)
def test_verdicts(plasticity_loss: float, forgetting: float, said: str) -> None:
    words = verdict(a_summary(plasticity_loss, forgetting))
    assert said in words
    assert words.endswith("In the last 5 experiences it learns to 0.25, fresh networks to 0.75.")


@given(st.floats(-2, 2), st.floats(-2, 2))
def test_shares_are_given_only_where_both_parts_are_losses_and_add_up(
    plasticity_loss: float, forgetting: float
) -> None:
    shares = [int(share) for share in re.findall(r"(\d+)%", verdict(a_summary(plasticity_loss, forgetting)))]
    if min(plasticity_loss, forgetting) >= 0.01:
        assert sum(shares) == 100
        assert abs(shares[0] - 100 * plasticity_loss / (plasticity_loss + forgetting)) <= 1
    else:
        assert shares == []


def test_verdicts_say_how_sure_they_are() -> None:
    assert "do not settle which of the two is larger" in verdict(a_summary(0.3, 0.25, spread=0.1))
    assert "do not settle" not in verdict(a_summary(0.5, 0.1, spread=0.1))
    assert "one seed, so there is no interval" in verdict(a_summary(0.5, 0.1, finished=1))
    nothing = summarise([in_memory("a", 0, rows_of([0.5], None, None), state="running")], "train")
    assert verdict(nothing) == "No run finished, so there is no verdict."
    alone = summarise([in_memory("a", 0, rows_of([0.5, 0.5], [0.25, 0.5], None))], "train")
    assert verdict(alone) == "There is no fresh reference, so only forgetting is known: 0.12."
    assert verdict(summarise([in_memory("a", 0, [])], "train")) == "The separation was not measured."


def test_the_larger_part_is_named() -> None:
    assert dominant(a_summary(0.5, 0.1)) == "plasticity loss"
    assert dominant(a_summary(-0.5, 0.1)) == "forgetting"
    assert dominant(a_summary(0.005, -0.2)) == ""
    assert dominant(summarise([], "train")) == ""


def test_strategies_are_compared_in_words() -> None:
    words = comparison_verdict({"plain": a_summary(0.5, 0.1), "ewc": a_summary(0.3, 0.0), "norm": a_summary(0.0, 0.2)})
    assert "plain loses most, 0.60 [0.60, 0.60], more of it through plasticity loss; norm loses least, 0.20" in words
    assert "norm keeps the ability to learn best: plasticity loss 0.00" in words
    assert "ewc forgets least, 0.00 [0.00, 0.00], but learns 0.30 less, and what was not learned cannot" in words
    alike = comparison_verdict({"a": a_summary(0.5, 0.4), "b": a_summary(0.1, 0.8)})
    assert "all strategies lose about as much in all, 0.90 to 0.90" in alike
    same = comparison_verdict({"a": a_summary(0.5, 0.4), "b": a_summary(0.505, 0.4)})
    assert "All learn about equally well" in same
    assert "All forget about as much" in same
    assert comparison_verdict({"a": a_summary(0.5, 0.02)}).startswith("Only a can be judged. Of the 0.52 lost")
    assert "nothing to compare" in comparison_verdict({"a": summarise([], "train")})


def test_strategies_are_set_against_the_baseline(comparison: Comparison) -> None:
    words = against_baseline(comparison, "layernorm+l2=0.001", "train")
    losses = [mean(LEARNED["layernorm+l2=0.001"][i]) - mean(LEARNED["finetune"][i]) for i in range(3)]
    low, high = f"{min(losses):.2f}", f"{max(losses):.2f}"
    assert f"Against finetune: plasticity loss {mean(losses):.2f} lower [{low}, {high}] and forgetting " in words
    assert "higher" in words
    assert against_baseline(comparison, "finetune", "train") == ""
    assert against_baseline(comparison, "l2=9", "train").count("about the same") == 2


def test_names_are_abbreviated_from_their_longest_words() -> None:
    names = ["layernorm+l2=0.001", "finetune", "layernorm+l2=0.001+scale-invariant", "x" * 20, "x" * 19 + "y"]
    assert list(abbreviate(names, 16).values()) == [
        "layern.+l2=0.001", "finetune", "lay.+l2=0.001+..", "xxxxxxxxxxxxxxx.", "xxxxxxxxxxxxxx~2"
    ]  # fmt: skip


@given(st.lists(st.text(max_size=30), min_size=1, max_size=12, unique=True), st.integers(6, 30))
def test_abbreviations_fit_and_stay_apart(names: list[str], width: int) -> None:
    short = abbreviate(names, width)
    assert len(set(short.values())) == len(names)
    assert all(len(text) <= width and text.isascii() and "\n" not in text for text in short.values())
    assert all(short[name] == name for name in names if len(name) <= width and re.fullmatch(r"[a-z0-9=.+]+", name))


# Tables


def test_the_text_table_equals_hand_computation(results: Path) -> None:
    table = summary_table(read_runs(results))
    assert table.splitlines()[0] == "label-reset on digits, 7 experiences: accuracy on training data"
    losses, forgetting = (
        [mean([a - b for a, b in zip(x[i], y["finetune"][i], strict=True)]) for i in range(3)]
        for x, y in ((FRESH, LEARNED), (LEARNED["finetune"], FINAL))
    )
    cells = [
        "finetune",
        f"{mean([mean(series[-5:]) for series in LEARNED['finetune']]):.2f}",
        "0.91",
        *(f"{mean(part):.2f} [{min(part):.2f},{max(part):.2f}]" for part in (losses, forgetting)),
        f"{mean(losses) + mean(forgetting):.2f}",
        "3",
    ]
    row = next(line for line in table.splitlines() if line.startswith("finetune"))
    assert row.split() == " ".join(cells).split()
    assert "2/3*" in next(line for line in table.splitlines() if line.startswith("l2=9"))
    footnote = " ".join(table.split())
    assert "* l2=9: seed 2 diverged (the loss became NaN in experience 2). Not in the means." in footnote


def test_the_test_table_follows_where_it_tells_a_different_story() -> None:
    def runs(test: tuple[Series, Series, Series]) -> list[Run]:
        return [in_memory("finetune", 0, rows_of([0.5, 0.5], [0.25, 0.5], [0.5, 0.5]) + rows_of(*test, "test"))]

    same = summary_table(runs(([0.5, 0.5], [0.25, 0.5], [0.5, 0.5])))
    nothing_learned = summary_table(runs(([0.1, 0.1], [0.1, 0.1], [0.1, 0.1])))
    less_general = summary_table(runs(([0.5, 0.5], [0.5, 0.5], [0.5, 0.75])))
    assert "test data" not in same
    assert "test data" not in nothing_learned
    assert "accuracy on test data" in less_general
    assert "test data" in summary_table(runs(([0.5, 0.5], [0.5, 0.5], [0.5, 0.75])), stream="test")


score = st.one_of(st.floats(-1, 1), st.floats(-1e15, 1e15))


@given(
    st.lists(st.text(min_size=1, max_size=100), min_size=1, max_size=4, unique=True),
    st.lists(st.tuples(score, score, score), min_size=1, max_size=3),
    st.sampled_from(["done", "running", "diverged"]),
)
def test_the_text_table_fits_eighty_columns(
    names: list[str], scores: list[tuple[float, float, float]], state: str
) -> None:
    rows = rows_of(*(list(series) for series in zip(*scores, strict=True)))
    runs = [in_memory(name, seed, rows, state if seed == 2 else "done") for name in names for seed in range(3)]
    lines = summary_table(runs).splitlines()
    assert all(len(line) <= 80 and line.isascii() and line.isprintable() for line in lines)
    assert len([line for line in lines if line.endswith(" 3" if state == "done" else "2/3*")]) >= len(names)


# The page


def test_the_page_equals_hand_computation(results: Path) -> None:
    train, test, *others = page_of(results).tables
    assert train[0] == [
        "strategy",
        "learned, last 5",
        "fresh, last 5",
        "plasticity loss",
        "forgetting",
        "total",
        "seeds",
    ]
    for table, scale in ((train, 1.0), (test, 0.5)):
        rows = {row[0]: row[1:] for row in table}
        for name in LEARNED:
            seeds = [
                (mean(a[-5:]), mean(s[-5:]), mean(s) - mean(a), mean(a) - mean(f), mean(s) - mean(f))
                for s, a, f in zip(FRESH, LEARNED[name], FINAL[name], strict=True)
            ]
            for cell, values in zip(rows[name], zip(*seeds, strict=True), strict=False):
                numbers = [scale * v for v in (mean(values), min(values), max(values))]
                read = [float(text) for text in re.findall(r"-?[\d.]+", cell.replace("−", "-"))]
                assert read == pytest.approx(numbers, abs=0.00051)
            assert rows[name][-1] == "3"
    assert {row[0]: row for row in train}["l2=9"][-1] == "2 of 3"
    measures = {tuple(table[0]): {row[0]: row[1:] for row in table} for table in others}
    steps = measures["strategy", "steps to threshold"]["finetune"]
    assert steps == ["100.0 [100.0, 100.0] in 71% of experiences"]
    assert measures["strategy", "dead units"]["finetune"] == ["0.610 [0.600, 0.620]"]
    assert measures["strategy", "effective rank (mean over layers)"]["finetune"] == ["19.50 [19.00, 20.00]"]
    assert measures["strategy", "target mean"]["finetune"] == ["4.500 [4.500, 4.500]"]
    assert measures["strategy", "0", "2"]["finetune"] == ["10.00 [10.00, 10.00]", "29.00 [28.00, 30.00]"]


def test_the_page_says_what_the_words_mean_and_what_was_run(results: Path) -> None:
    page = page_of(results)
    text = " ".join(page.text.split())
    for words in (
        "It is a net deficit", "What was never learned cannot be forgotten", "4000 draws", "95% percentile bootstrap",
        "On training data (trainability)", "On test data (generalisation)",
        "1 of 9 runs did not reach the end", "l2=9, seed 2: diverged: the loss became NaN in experience 2",
    ):  # fmt: skip
        assert words in text
    assert ["lr", "0.001"] in itertools.chain(*page.tables)
    assert ["l2=9", "2", "diverged: the loss became NaN in experience 2", "l2=9/seed2"] in itertools.chain(*page.tables)


def test_the_page_needs_no_other_file(results: Path) -> None:
    source = (results / "report.html").read_text()
    page = Page(source)
    figures = sorted((results / "figures").iterdir())
    assert [path.name for path in figures] == [
        f"label-reset-on-digits-7-experiences-{kind}.png"
        for kind in (
            *("features", "learning-test", "learning-train", "mechanism-1-units-and-preactivations"),
            *("mechanism-3-regression-targets", "separation"),
        )
    ]
    images = [attributes for tag, attributes in page.elements if tag == "img"]
    embedded = {base64.b64decode(str(image["src"]).removeprefix("data:image/png;base64,")) for image in images}
    assert embedded == {path.read_bytes() for path in figures}
    assert all(len(str(image["alt"])) > 60 for image in images)
    assert not {tag for tag, _ in page.elements} & {"script", "link", "iframe", "object", "form", "base"}
    assert all(str(attributes.get("href", "#")).startswith("#") for _, attributes in page.elements)
    ids = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    assert {str(a["href"])[1:] for _, a in page.elements if "href" in a} == ids
    for external in ("http:", "https:", "url(", "@import", "//"):
        assert external not in re.sub(r'base64,[^"]*', "", source)


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    hostile = "$\\frac$<script>alert(1)</script>\"'><img src=x onerror=alert(2)> $x^2$ &amp; %s {0}"
    spec = {**spec_of(hostile, 0), "source": hostile, hostile: hostile}
    rows = [*rows_of([0.5, 0.5], [0.5, 0.5], [0.5, 0.5]), *probe_rows('"<b>bold'.replace('"', ""), [1.0, 2.0], "<i>")]
    write_run(tmp_path / "a<b>&", spec, rows)
    write_run(tmp_path / "b", {**spec, "seed": 1}, rows, {"state": "diverged", "message": hostile, "score": "<u>"})
    report = write_report(tmp_path)
    page = Page(report.read_text())
    assert not {tag for tag, _ in page.elements} & {"script", "b", "i", "u"}
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert all(str(a["src"]).startswith("data:image/png;base64,") for tag, a in page.elements if tag == "img")
    assert page.text.count(hostile) >= 6
    assert [row for table in page.tables for row in table if row == [hostile, hostile]]
    names = [path.name for path in (tmp_path / "figures").iterdir()]
    assert all(re.fullmatch(r"[a-z0-9.=-]+\.png", name) for name in names)


def chunks(content: bytes) -> list[bytes]:
    """The kinds of the parts of a PNG file."""
    kinds, at = [], 8
    while at < len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        kinds.append(content[at + 4 : at + 8])
        at += 12 + length
    return kinds


def test_the_same_runs_give_the_same_bytes_wherever_they_lie(results: Path, tmp_path: Path) -> None:
    shutil.copytree(results, tmp_path / "elsewhere", ignore=shutil.ignore_patterns("figures", "report.html"))
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "savefig.dpi": 30}):
        settings = dict(matplotlib.rcParams)
        report = write_report(tmp_path / "elsewhere")
        assert dict(matplotlib.rcParams) == settings
    assert report.read_bytes() == (results / "report.html").read_bytes()
    for path in (results / "figures").iterdir():
        assert (tmp_path / "elsewhere" / "figures" / path.name).read_bytes() == path.read_bytes()
        assert set(chunks(path.read_bytes())) == {b"IHDR", b"pHYs", b"IDAT", b"IEND"}


def test_comparisons_of_one_name_get_figures_of_their_own(tmp_path: Path) -> None:
    rows = rows_of([0.5], [0.5], [0.5])
    write_run(tmp_path / "1", {**spec_of("finetune", 0), "source": "a/b"}, rows)
    write_run(tmp_path / "2", {**spec_of("finetune", 0), "source": "a b"}, rows)
    write_report(tmp_path)
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == [
        f"label-reset-on-a-b-1-experience{number}-{kind}.png"
        for number in ("-2", "")
        for kind in ("learning-train", "separation")
    ]


def test_a_failed_report_leaves_the_old_one_whole(tmp_path: Path) -> None:
    write_run(tmp_path / "a", spec_of("finetune", 0), rows_of([0.5], [0.25], [0.75]))
    old = write_report(tmp_path).read_bytes()
    files = sorted(tmp_path.rglob("*"))
    write_run(tmp_path / "b", spec_of("ewc=1", 0), rows_of([0.5], [0.25], [0.75]))
    # A disk that is full half way through the page: no file may grow beyond the largest figure and a bit.
    limit = max(path.stat().st_size for path in (tmp_path / "figures").iterdir()) * 3 // 2
    assert limit < len(old)
    code = (
        "import resource, signal, sys; from pathlib import Path; from plasticity_cl.report import write_report\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "write_report(Path(sys.argv[1]))"
    )
    failed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert failed.stderr.strip().splitlines()[-1].startswith("plasticity_cl.errors.UserError: cannot write")
    assert (tmp_path / "report.html").read_bytes() == old
    assert sorted(p for p in tmp_path.rglob("*") if "b" not in p.relative_to(tmp_path).parts) == files


def test_a_reader_never_sees_half_a_report(tmp_path: Path) -> None:
    write_run(tmp_path / "a", spec_of("finetune", 0), rows_of([0.5], [0.25], [0.75]))
    report = write_report(tmp_path)
    seen: set[bytes] = set()
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.add(report.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for seed in range(1, 4):
        write_run(tmp_path / f"seed{seed}", spec_of("finetune", seed), rows_of([0.5], [0.25], [0.75]))
        write_report(tmp_path)
    done.set()
    reader.join()
    assert len(seen) > 1
    assert all(content.endswith(b"</html>\n") for content in seen)


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    write_run(tmp_path / "a", spec_of("finetune", 0), rows_of([0.5], [0.5], [0.5]))
    (tmp_path / "figures").write_text("in the way")
    with pytest.raises(UserError, match=f"cannot write {re.escape(str(tmp_path / 'figures'))}"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_the_report_loads_neither_torch_nor_pyplot() -> None:
    heavy = ("torch", "avalanche", "matplotlib.pyplot")
    code = f"import sys, plasticity_cl.report; print([name for name in {heavy} if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


# Figures


def test_figures_draw_the_means(comparison: Comparison) -> None:
    look = looks(comparison.strategies)
    figure = learning_figure(comparison, "train", look)
    assert figure is not None
    panel = figure.axes[0]
    assert "finetune" in panel.get_title(loc="left")
    own = {line.get_linestyle(): line for line in panel.lines if line.get_zorder() >= 4}
    by_hand = [mean([LEARNED["finetune"][seed][k] for seed in range(3)]) for k in range(7)]
    assert own["-"].get_ydata() == pytest.approx(by_hand)
    assert own["--"].get_ydata() == pytest.approx([0.91] * 7)
    figure = separation_figure(comparison, look)
    assert figure is not None
    points = {
        line.get_color(): line.get_xydata()[0] for line in figure.axes[0].lines if line.get_marker() not in ("", "None")
    }
    for name, runs in comparison.strategies.items():
        summary = summarise(runs, "train")
        assert points[look[name].colour] == pytest.approx([summary.plasticity_loss.mean, summary.forgetting.mean])


def test_diverged_runs_are_drawn_up_to_their_end(comparison: Comparison) -> None:
    figure = learning_figure(comparison, "train", looks(comparison.strategies))
    assert figure is not None
    crosses = [line.get_xydata().tolist() for line in figure.axes[1].lines if line.get_marker() == "x"]
    assert crosses == [[[1.0, 0.123]]]


def test_a_diagnostic_that_is_the_same_for_all_is_drawn_once(comparison: Comparison) -> None:
    without = Comparison("t", {}, "accuracy", {name: comparison.strategies[name] for name in LEARNED})
    drawn = {}
    for mechanism in without.mechanisms:
        figure = diagnostics_figure(without, looks(comparison.strategies), mechanism)
        assert figure is not None
        drawn |= {panel.get_title(loc="left"): len(panel.lines) for panel in figure.axes}
    assert drawn == {"dead units": 2, "effective rank (mean over layers)": 2, "target mean, the same for all": 1}


def test_percentiles_are_left_to_the_tables() -> None:
    rows = [*probe_rows("preactivation_shift", [1.0, 2.0]), *probe_rows("preactivation_shift_p95", [3.0, 4.0])]
    comparison = Comparison("t", {}, "accuracy", {"finetune": (in_memory("finetune", 0, rows),)})
    ((mechanism, measured),) = comparison.mechanisms.items()
    figure = diagnostics_figure(comparison, looks(["finetune"]), mechanism)
    assert list(measured) == ["preactivation_shift", "preactivation_shift_p95"]
    assert figure is not None
    assert [panel.get_title(loc="left") for panel in figure.axes if panel.lines] == ["preactivation shift"]


def test_a_diagnostic_nobody_knows_is_drawn_with_the_others() -> None:
    run = in_memory("finetune", 0, [*probe_rows("new_b", [1.0, 2.0]), *probe_rows("new_a", [3.0, 4.0])])
    comparison = Comparison("t", {}, "accuracy", {"finetune": (run,)})
    assert comparison.mechanisms == {"Other diagnostics": {"new_a": ("",), "new_b": ("",)}}


def test_the_first_and_the_last_picture_of_the_first_seed_are_on_the_page(tmp_path: Path) -> None:
    rows = rows_of([0.5, 0.5], [0.5, 0.5], [0.5, 0.5])
    for seed in (0, 1):
        pictures = tmp_path / f"{seed}" / "pictures"
        write_run(tmp_path / f"{seed}", spec_of("finetune", seed), rows)
        pictures.mkdir()
        for k in (0, 7, 19):
            (pictures / f"network-{k:04d}.png").write_bytes(b"picture %d of seed %d" % (k, seed))
        (pictures / "notes.png").write_bytes(b"of no experience")
    page = Page(write_report(tmp_path).read_text())
    sources = [str(a["src"]).removeprefix("data:image/png;base64,") for tag, a in page.elements if tag == "img"]
    contents = [base64.b64decode(source) for source in sources]
    drawn = [content for content in contents if b"picture" in content]
    assert drawn == [b"picture 0 of seed 0", b"picture 19 of seed 0"]
    assert "finetune, seed 0, after training on experience 19" in page.text


def test_nothing_measured_draws_nothing() -> None:
    empty = Comparison("t", {}, "accuracy", {"finetune": (in_memory("finetune", 0, []),)})
    look = looks(["finetune"])
    assert learning_figure(empty, "train", look) is None
    assert separation_figure(empty, look) is None
    assert empty.mechanisms == {}
    assert diagnostics_figure(empty, look, "Features") is None


def test_a_score_without_lower_bound_does_not_flatten_the_rest() -> None:
    run = in_memory("finetune", 0, rows_of([0.9, -5000.0, 0.5], [0.1, -5000.0, 0.5], [0.99] * 3))
    regression = Comparison("shift", {}, "R2", {"finetune": (run,)})
    figure = learning_figure(regression, "train", looks(["finetune"]))
    assert figure is not None
    low, high = figure.axes[0].get_ylim()
    assert -1.2 < low < -1
    assert 1 < high < 1.2
    assert "below -1.08 are cut off" in figure.get_suptitle()
    figure = separation_figure(regression, looks(["finetune"]))
    assert figure is not None
    assert (figure.axes[0].get_xscale(), figure.axes[0].get_yscale()) == ("symlog", "symlog")
    assert figure.axes[0].get_xlim() == figure.axes[0].get_ylim()
    assert png(figure).startswith(b"\x89PNG")


def test_every_strategy_looks_different() -> None:
    look = looks([f"strategy{i}" for i in range(40)])
    assert len(set(look.values())) == 41
    assert look == looks(reversed([f"strategy{i}" for i in range(40)]))


@pytest.mark.parametrize("seed", range(5))
def test_labels_do_not_cover_points_or_each_other(seed: int) -> None:
    draw = random.Random(seed)
    names = ["finetune", "ewc=100", "l2=0.001", "layernorm", "layernorm+l2=0.001", "replay=200"]
    strategies = {
        name: (
            in_memory(
                name, 0, rows_of([0.9 - (x := draw.random()) * 0.5], [0.9 - x * 0.5 - draw.random() * 0.4], [0.9])
            ),
        )
        for name in names
    }
    figure = separation_figure(Comparison("t", {}, "accuracy", strategies), looks(names))
    assert figure is not None
    renderer = FigureCanvasAgg(figure).get_renderer()
    panel = figure.axes[0]
    labels = [text.get_window_extent(renderer) for text in panel.texts if text.get_text()]
    points = [panel.transData.transform(line.get_xydata()[0]) for line in panel.lines if line.get_marker() in "o^sDvPX"]
    assert len(points) == len(names)
    for first, second in itertools.combinations(labels, 2):
        assert not first.overlaps(second)
    for label in labels:
        assert not any(label.contains(*point) for point in points)
        assert panel.bbox.contains(label.x0, label.y0)
        assert panel.bbox.contains(label.x1, label.y1)
