"""The report's figures: what is drawn where, and what must hold for any comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from report_writer import LEARNED, OURS, compared, in_memory, mean, probe_rows, rows_of, write_results

from plasticity_cl.report import read_runs
from plasticity_cl.report.drawing import DARK, Drawing, Shared, cells_for_a_page, looks, pdf, png, svg
from plasticity_cl.report.figures import diagnostics_figure, learning_figure, parts_figure, separation_figure
from plasticity_cl.report.read import Comparison, Run, comparisons
from plasticity_cl.report.statistics import Standing, standing, summarise
from plasticity_cl.report.wording import worse


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    (only,) = comparisons(read_runs(write_results(tmp_path_factory.mktemp("results"))))
    return only


def standings(comparison: Comparison) -> dict[str, Standing]:
    return {stream: standing(comparison, stream) for stream in comparison.streams}


def panels(drawing: Drawing | None) -> dict[str, Any]:
    """The panels of a figure by title."""
    assert drawing is not None
    return {axes.get_title(loc="left").strip(): axes for axes, _ in drawing.cells[:-1]}


def legend(drawing: Drawing | None) -> list[str]:
    assert drawing is not None
    return [text.get_text() for text in drawing.cells[-1][0].get_legend().get_texts()]


def lines(axes: Any, marker: str | None = None, style: str | None = None) -> list[np.ndarray[Any, Any]]:
    return [
        line.get_xydata()
        for line in axes.lines
        if marker in (None, line.get_marker()) and style in (None, line.get_linestyle())
    ]


def everything(comparison: Comparison) -> list[Drawing]:
    look = looks(comparison.strategies)
    of = standings(comparison)
    found = [
        parts_figure(comparison, of, look),
        separation_figure(comparison, of, look),
        *(learning_figure(comparison, there, look) for there in of.values()),
        *(diagnostics_figure(comparison, look, mechanism) for mechanism in comparison.mechanisms),
    ]
    return [drawing for drawing in found if drawing is not None]


def test_curves_are_the_means_over_seeds(comparison: Comparison) -> None:
    there = standing(comparison, "train")
    drawn = panels(learning_figure(comparison, there, looks(comparison.strategies)))
    assert list(drawn) == list(there.summaries)
    axes = drawn["finetune"]
    by_hand = [mean([LEARNED["finetune"][seed][k] for seed in range(3)]) for k in range(7)]
    solid = [xy[:, 1] for xy in lines(axes, marker="o", style="-")]
    assert [pytest.approx(by_hand)] == solid
    assert any(np.allclose(xy[:, 1], 0.91) for xy in lines(axes, style="--") if len(xy) == 7)
    assert any(np.allclose(xy[:, 1], 0.917) for xy in lines(axes, style="--") if len(xy) == 7)
    for seed in range(3):
        assert any(np.allclose(xy[:, 1], LEARNED["finetune"][seed]) for xy in lines(axes, style="-"))


def test_every_seed_is_a_dot(comparison: Comparison) -> None:
    look = looks(comparison.strategies)
    parts = panels(parts_figure(comparison, standings(comparison), look))["training data"]
    scatter = panels(separation_figure(comparison, standings(comparison), look))["training data"]
    units = panels(diagnostics_figure(comparison, look, "Mechanism 1: units and preactivations"))["dead units"]

    def dots(axes: Any) -> list[list[float]]:
        small = [line for line in axes.lines if line.get_marker() == "o" and line.get_markersize() == 3]
        return [point.tolist() for line in small for point in line.get_xydata()]

    for runs in comparison.strategies.values():
        summary = summarise(runs, "train")
        for value in summary.learned.values:
            assert any(x == pytest.approx(value) for x, _ in dots(parts))
        for point in zip(summary.plasticity_loss.values, summary.forgetting.values, strict=True):
            assert any(dot == pytest.approx(list(point)) for dot in dots(scatter))
    for seed in range(3):
        assert any(dot == pytest.approx([6, 0.01 * seed + 0.6]) for dot in dots(units))


def test_the_parts_stand_between_the_references(comparison: Comparison) -> None:
    there = standings(comparison)
    axes = panels(parts_figure(comparison, there, looks(comparison.strategies)))["training data"]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == list(there["train"].summaries)
    top, bottom = axes.get_ylim()
    assert top > bottom  # the first row is the highest
    for row, summary in enumerate(there["train"].summaries.values()):
        single = [line for line in axes.lines if len(line.get_xydata()) == 1 and line.get_ydata()[0] == row]
        at = {line.get_marker(): line.get_xydata()[0] for line in single}
        assert at["|"] == pytest.approx([summary.baseline.mean, row])
        assert at["D"] == pytest.approx([summary.fresh.mean, row])
        assert at["x"][0] == pytest.approx(summary.learned.mean - summary.forgetting.mean)
        assert any(np.allclose(xy, [[0.125, row - 0.42], [0.125, row + 0.42]]) for xy in lines(axes, style="--"))


def test_forgetting_that_does_not_count_is_not_drawn_as_damage() -> None:
    def drawn(counts: bool) -> tuple[list[str], str, int]:
        runs = [in_memory("a", s, rows_of([0.6], [0.2], [0.9]), forgetting_counts=counts) for s in range(3)]
        comparison = compared(*runs)
        of, look = standings(comparison), looks(["a"])
        scatter = panels(separation_figure(comparison, of, look))["training data"]
        sums = [line for line in scatter.lines if line.get_zorder() == 0.5]
        return legend(parts_figure(comparison, of, look)), scatter.get_ylabel(), len(sums)

    entries, label, sums = drawn(True)
    assert "left at the end" in entries
    assert label == "forgetting (worse →)"
    assert sums > 0
    entries, label, sums = drawn(False)
    assert "left at the end" not in entries
    assert label == "forgetting (not counted)"
    assert sums == 0


def test_diverged_runs_are_drawn_up_to_their_end(comparison: Comparison) -> None:
    drawn = panels(learning_figure(comparison, standing(comparison, "train"), looks(comparison.strategies)))
    assert [xy.tolist() for xy in lines(drawn["l2=9"], marker="x")] == [[[1.0, 0.123]]]


def test_a_diagnostic_that_is_the_same_for_all_is_drawn_once(comparison: Comparison) -> None:
    without = compared(*(run for name in LEARNED for run in comparison.strategies[name]))
    drawn = {}
    for mechanism in without.mechanisms:
        for title, axes in panels(diagnostics_figure(without, looks(LEARNED), mechanism)).items():
            drawn[title] = len([line for line in axes.lines if line.get_linewidth() == 1.8])
    assert drawn == {"dead units": 2, "effective rank (mean over layers)": 2, "target mean, the same for all": 1}


def test_percentiles_are_left_to_the_tables() -> None:
    rows = [*probe_rows("preactivation_shift", [1.0, 2.0]), *probe_rows("preactivation_shift_p95", [3.0, 4.0])]
    comparison = compared(in_memory("finetune", 0, rows))
    ((mechanism, measured),) = comparison.mechanisms.items()
    assert list(measured) == ["preactivation_shift", "preactivation_shift_p95"]
    assert list(panels(diagnostics_figure(comparison, looks([]), mechanism))) == ["preactivation shift"]


def test_a_diagnostic_nobody_knows_is_drawn_with_the_others() -> None:
    run = in_memory("finetune", 0, [*probe_rows("new_b", [1.0, 2.0]), *probe_rows("new_a", [3.0, 4.0])])
    assert compared(run).mechanisms == {"Other diagnostics": {"new_a": ("",), "new_b": ("",)}}


def test_every_panel_says_which_way_is_bad(comparison: Comparison) -> None:
    look, of = looks(comparison.strategies), standings(comparison)
    for axes in panels(parts_figure(comparison, of, look)).values():
        assert axes.get_xlabel() == "accuracy (better →)"
    for axes in panels(learning_figure(comparison, of["train"], look)).values():
        assert axes.get_ylabel() == "accuracy (better →)"
    for axes in panels(separation_figure(comparison, of, look)).values():
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("plasticity loss (worse →)", "forgetting (worse →)")
    said = {}
    for mechanism in comparison.mechanisms:
        for title, axes in panels(diagnostics_figure(comparison, look, mechanism)).items():
            said[title] = [text.get_text() for text in axes.texts]
    assert said == {
        "dead units": ["↑ worse"],
        "effective rank (mean over layers)": ["↓ worse"],
        "target mean": ["set by the stream"],
    }
    assert worse(OURS["activation_sparsity"]) == "not good or bad in itself"
    assert worse(None) == "", "of what nobody described it is not known"


def test_the_diagnostics_page_agrees_on_which_way_is_bad() -> None:
    """docs/diagnostics.md says of each diagnostic whether wear makes it rise or fall."""
    text = (Path(__file__).parents[2] / "docs" / "diagnostics.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.replace("\\|", "¦").splitlines()]
    readings = {row[0].strip("`"): row[-1] for row in rows if row[0].startswith("`") and len(row) in (3, 4)}
    agreed = []
    for metric, quantity in OURS.items():
        way = worse(quantity)
        reading = readings.get(metric.removesuffix("_p95").removeprefix("ntk_"), "")
        if quantity.worse != "neither" and reading.startswith(("rises", "falls")):
            assert {"rises": "↑", "falls": "↓"}[reading[:5]] == way[0], metric
            agreed.append(metric)
    assert len(agreed) >= 15


def test_bands_end_within_the_panel() -> None:
    rows = [rows_of([0.99, score, 0.98], [0.9] * 3, [1.0] * 3) for score in (1.0, 0.6, 0.99)]
    rows = [of + probe_rows("dead_units", [0.9, v, 0.1]) + probe_rows("ntk_condition_number", [1.0, 1e4 * v, 50.0])
            for of, v in zip(rows, (0.1, 0.9, 0.5), strict=True)]  # fmt: skip
    comparison = compared(*(in_memory("finetune", seed, of) for seed, of in enumerate(rows)))
    look = looks([])
    drawn = panels(learning_figure(comparison, standing(comparison, "train"), look))
    for mechanism in comparison.mechanisms:
        drawn |= panels(diagnostics_figure(comparison, look, mechanism))
    assert len(drawn) == 3
    for title, axes in drawn.items():
        bottom, top = axes.get_ylim()
        ends = np.concatenate([path.vertices[:, 1] for band in axes.collections for path in band.get_paths()])
        assert ends.max() < top, title
        # Nothing here can be negative: a band ends at zero, above the panel's bottom where that can be shown.
        assert ends.min() >= 0
        assert axes.get_yscale() == "log" or bottom < ends.min(), title
    assert max(path.vertices[:, 1].max() for band in drawn["finetune"].collections for path in band.get_paths()) <= 1


@pytest.mark.parametrize("experiences", [1, 2, 3])
def test_two_points_make_no_line(experiences: int) -> None:
    rows = [
        rows_of([0.5 + 0.01 * s] * experiences, [0.5] * experiences, [0.9] * experiences)
        + probe_rows("hessian_largest", [3.0 + s] * experiences)
        for s in range(3)
    ]
    comparison = compared(*(in_memory("finetune", s, of) for s, of in enumerate(rows)))
    look = looks([])
    for drawing in (
        learning_figure(comparison, standing(comparison, "train"), look),
        diagnostics_figure(comparison, look, "Curvature and trainability"),
    ):
        ((_, axes),) = panels(drawing).items()
        joined = [line for line in axes.lines if line.get_linestyle() != "None" and len(line.get_xdata()) > 1]
        assert bool(joined) == (experiences > 2)
        assert any(line.get_marker() == "o" for line in axes.lines)


def test_nothing_measured_draws_nothing() -> None:
    empty = compared(in_memory("finetune", 0, []))
    look = looks(["finetune"])
    assert learning_figure(empty, standing(empty, "train"), look) is None
    assert parts_figure(empty, standings(empty), look) is None
    assert separation_figure(empty, standings(empty), look) is None
    assert empty.mechanisms == {}
    assert diagnostics_figure(empty, look, "Features") is None


def test_a_score_without_lower_bound_does_not_flatten_the_rest() -> None:
    run = in_memory("finetune", 0, rows_of([0.9, -5000.0, 0.5], [0.1, -5000.0, 0.5], [0.99] * 3))
    regression = compared(run, score="R2")
    look = looks(["finetune"])
    (axes,) = panels(learning_figure(regression, standing(regression, "train"), look)).values()
    low, high = axes.get_ylim()
    assert -1.2 < low < -1
    assert 1 < high < 1.2
    assert axes.get_ylabel() == "R², cut at -1.08 (better →)"
    drawing = separation_figure(regression, standings(regression), look)
    (axes,) = panels(drawing).values()
    assert (axes.get_xscale(), axes.get_yscale()) == ("symlog", "symlog")
    assert axes.get_xlim() == axes.get_ylim()
    assert drawing is not None
    assert png(drawing.figure).startswith(b"\x89PNG")


def test_letters_that_the_font_has_are_drawn() -> None:
    comparison = compared(
        *(in_memory("naïve→β网", s, rows_of([0.5], [0.5], [0.9])) for s in range(3)), title="Größe\n网"
    )
    drawing = parts_figure(comparison, standings(comparison), looks(comparison.strategies))
    assert drawing is not None
    (axes,) = panels(drawing).values()
    assert [label.get_text() for label in axes.get_yticklabels()] == ["naïve→β?"]
    assert drawing.figure.texts[0].get_text().startswith("Größe??: what was learned")
    assert "naïve→β?".encode() in svg(drawing.figure)


# Looks


def test_every_strategy_looks_different() -> None:
    look = looks([f"strategy{i}" for i in range(40)])
    assert len(set(look.values())) == 41
    assert look == looks(reversed([f"strategy{i}" for i in range(40)]))


def contrast(first: str, second: str) -> float:
    """By WCAG 2."""

    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    lighter, darker = sorted((luminance(first), luminance(second)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def test_text_and_lines_stand_out_on_light_and_dark_pages() -> None:
    for paper, shown in (("#ffffff", {c: c for c in DARK}), ("#17171a", DARK)):
        for text in ("#222222", "#666666"):
            assert contrast(shown[text], paper) >= 4.5
        for look in looks([f"s{i}" for i in range(6)]).values():
            assert contrast(shown[look.colour], paper) >= 2.2
    dark = [contrast(DARK[look.colour], "#17171a") for look in looks([f"s{i}" for i in range(6)]).values()]
    assert min(dark) >= 4.5


@settings(max_examples=6)
@given(
    st.lists(
        st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=5
    ),
    st.sampled_from([1, 2, 4]),
)  # fmt: skip
def test_no_text_leaves_its_cell(scores: list[tuple[float, float, float]], seeds: int) -> None:
    runs: list[Run] = []
    for i, (learned, final, fresh) in enumerate(scores):
        for seed in range(seeds):
            rows = rows_of([learned] * 4, [final] * 4, [fresh] * 4, baseline=[0.9] * 4, chance=0.1)
            rows += probe_rows("hessian_largest", [10 ** (6 * learned - 3), 1.0, -final, 2.0])
            rows += probe_rows("parameter_norm", [1e-5 * fresh + 1e-7, 1e-5, 0.5 * final, 1e5 * learned])
            runs.append(in_memory(f"layernorm+l2=0.00{i}+replay=200", seed, rows))
    comparison = compared(*runs, title="label-reset on digits, 4 experiences, with a title that is long " * 2)
    for drawing in everything(comparison):
        renderer = FigureCanvasAgg(drawing.figure).get_renderer()
        height, dpi = drawing.figure.get_figheight(), drawing.figure.dpi
        for axes, (left, top, width, deep) in drawing.cells:
            box = axes.get_tightbbox(renderer)
            assert box.x0 >= left * dpi - 1
            assert box.x1 <= (left + width) * dpi + 1
            assert box.y1 <= (height - top) * dpi + 1
            assert box.y0 >= (height - top - deep) * dpi - 1


# Files


def test_files_are_the_same_each_time(comparison: Comparison) -> None:
    first, second = (everything(comparison)[0] for _ in range(2))
    for encode in (png, svg, pdf):
        assert encode(first.figure) == encode(second.figure)
    assert b"background" not in svg(first.figure)
    assert pdf(first.figure).startswith(b"%PDF")


def test_a_cell_shows_its_own_panel_alone(comparison: Comparison) -> None:
    drawing = learning_figure(comparison, standing(comparison, "train"), looks(comparison.strategies))
    assert drawing is not None
    shared = Shared()
    cells = cells_for_a_page(drawing, svg(drawing.figure), shared)
    assert len(cells) == 4
    names = list(standing(comparison, "train").summaries)
    for cell, name in zip(cells, names, strict=False):
        assert f">{name}<" in cell
        assert not any(f">{other}<" in cell for other in names if other != name)
    assert "fresh network, trained on k alone" in cells[-1]
    assert "font-family" not in "".join(cells)
