"""The figures of a comparison, drawn without a display and without global state of matplotlib.

Each is a grid of cells, so that a page can lay them out in as many columns as there is room for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from plasticity_cl.report.drawing import FAINT, INK, MUTED, PAPER, Drawing, Look, Margins, drawable, drawing, grid
from plasticity_cl.report.read import Comparison, Run
from plasticity_cl.report.statistics import (
    Array,
    Curve,
    Estimate,
    Standing,
    Summary,
    curve,
    simultaneous,
)
from plasticity_cl.report.wording import SPLITS, abbreviate, diagnostic_in_words, number, worse

_DASHES, _DOTS = (0, (4, 2)), (0, (1, 1.6))
_SEED: Mapping[str, Any] = {"markersize": 3, "alpha": 0.6, "markeredgewidth": 0}
_MOST_BEHIND = 8  # strategies up to which every panel shows the others in grey


def parts_figure(comparison: Comparison, standings: Mapping[str, Standing], look: Mapping[str, Look]) -> Drawing | None:
    """Draw for each strategy the way from the common reference to what it learned, one row each, best first.

    From the common reference (a tick) to the strategy's own fresh networks (an open diamond): the handicap. From there
    to what was learned (the strategy's marker, with its interval and one dot a seed): the plasticity loss. From there
    to what is left at the end (a cross), where forgetting counts.

    Args:
        comparison: The comparison.
        standings: Its standing on each stream.
        look: From :func:`~plasticity_cl.report.drawing.looks`.

    Returns:
        The figure, or None where nothing was measured.
    """
    shown = {
        stream: {name: s for name, s in standing.summaries.items() if s.learned.n}
        for stream, standing in standings.items()
    }
    shown = {stream: summaries for stream, summaries in shown.items() if summaries}
    if not shown:
        return None
    everything = [summary for summaries in shown.values() for summary in summaries.values()]
    reference, chance, final = (
        any(summary.baseline.n for summary in everything),
        any(summary.chance.n for summary in everything),
        comparison.forgetting_counts and any(summary.forgetting.n for summary in everything),
    )
    fresh = any(summary.fresh.n for summary in everything)
    handles: list[tuple[Any, str]] = []
    if reference:
        tick = Line2D([], [], color=INK, marker="|", markersize=11, markeredgewidth=1.6, linestyle="none")
        handles.append((tick, "common reference"))
    if fresh:
        handles.append((_open_diamond(), "own fresh networks"))
        handles.append((Line2D([], [], color=MUTED, linewidth=5, alpha=0.45), "plasticity loss"))
    learned = Line2D([], [], color=INK, marker="o", markersize=6, linewidth=1.6)
    handles.append((learned, "learned, 95% interval;\nsmall: each seed"))
    if final:
        handles.append((Line2D([], [], color=INK, marker="x", linestyle=_DOTS, linewidth=1), "left at the end"))
    if chance:
        handles.append((Line2D([], [], color=MUTED, linestyle=_DASHES, linewidth=1), "chance"))
    rows = max(len(summaries) for summaries in shown.values())
    with drawing():
        title = f"{comparison.title}: what was learned, against the common reference"
        size = (4.0, 0.34 * rows + 0.85)
        figure, panels = grid(len(shown), size, title, handles, Margins(left=1.5, top=0.3, bottom=0.55), columns=2)
        for panel, (stream, summaries) in zip(panels, shown.items(), strict=True):
            short = abbreviate(summaries, 19, drawable)
            learned_of, _ = simultaneous({name: [summary.learned] for name, summary in summaries.items()})
            for row, (name, summary) in enumerate(summaries.items()):
                _draw_parts(panel, row, summary, learned_of[name][0], look[name], final)
            if comparison.score in ("accuracy", "bounded R2"):
                panel.set_xlim(-0.03, 1.03)
            panel.set_ylim(len(summaries) - 0.4, -0.6)
            panel.set_yticks(range(len(summaries)), [short[name] for name in summaries])
            panel.tick_params(axis="y", length=0)
            panel.grid(visible=False, axis="y")
            panel.set_title(SPLITS[stream], loc="left")
            panel.set_xlabel(f"{_score_name(comparison.score)} (better →)")
        return figure


def learning_figure(comparison: Comparison, standing: Standing, look: Mapping[str, Look]) -> Drawing | None:
    """Draw the learning score over experiences against both references, one panel a strategy, best first.

    Solid is A_kk, dashed S_k, dotted S_ref, the area between the first two the net plasticity loss; bands are pointwise
    95% t intervals over seeds, thin lines the seeds. The other strategies' A_kk stand behind in grey. Runs that did not
    finish are drawn up to a cross.

    Args:
        comparison: The comparison.
        standing: Its standing on the stream to draw.
        look: From :func:`~plasticity_cl.report.drawing.looks`.

    Returns:
        The figure, or None where nothing was measured on this stream.
    """
    stream = standing.stream
    if stream not in comparison.streams:
        return None
    strategies = {name: comparison.strategies[name] for name in standing.summaries}
    learned = {
        name: curve([run.series("learned", stream) for run in runs if run.finished])
        for name, runs in strategies.items()
    }
    low, high, cut = _score_limits(comparison, stream)
    with drawing():
        handles: list[tuple[Any, str]] = [
            (Line2D([], [], color=INK, linewidth=2), "right after training on k;\nthin: each seed"),
            (Line2D([], [], color=INK, linewidth=1.4, linestyle=_DASHES), "fresh network, trained on k alone"),
        ]
        if any(run.series("baseline", stream) for run in comparison.runs):
            line = Line2D([], [], color=INK, linewidth=1.4, linestyle=_DOTS)
            handles.append((line, "common reference: fresh baseline"))
        handles.append((Patch(color=INK, alpha=0.12, linewidth=0), "net plasticity loss"))
        if any(np.isfinite(of.low).any() for of in learned.values()):
            handles.append((Patch(color=INK, alpha=0.3, linewidth=0), "95% interval at each k alone"))
        behind = 1 < len(learned) <= _MOST_BEHIND
        if behind:
            handles.append((Line2D([], [], color=FAINT), "the other strategies"))
        if any(not run.finished for run in comparison.runs):
            handles.append((Line2D([], [], color=INK, linewidth=0.8, marker="x"), "run that did not finish"))
        title = f"{comparison.title}: learning on {SPLITS[stream]}"
        figure, panels = grid(len(learned), (3.0, 2.5), title, handles, Margins(left=0.75))
        short = abbreviate(learned, 24, drawable)
        for panel, (name, runs) in zip(panels, strategies.items(), strict=True):
            if behind:
                for other, means in learned.items():
                    if other != name and len(means.experiences) > 2:
                        panel.plot(means.experiences, means.mean, color=FAINT, linewidth=1, zorder=1)
            _draw_learning(panel, runs, stream, look[name], comparison.score)
            _title(panel, short[name], _subtitle(standing.summaries[name]), weight="bold")
            panel.set_ylim(low, high)
            lowest = f", cut at {number(low)}" if cut else ""
            panel.set_ylabel(f"{_score_name(comparison.score)}{lowest} (better →)")
        _count_experiences(panels)
        return figure


def separation_figure(
    comparison: Comparison, standings: Mapping[str, Standing], look: Mapping[str, Look]
) -> Drawing | None:
    """Draw plasticity loss against forgetting, one marker a strategy and one dot a seed, one panel a stream.

    Both axes have one scale, so that a step to the right costs as much as a step up, and grey lines join equal sums
    where forgetting counts. Bars are 95% t intervals, corrected for the number of bars in a panel. Values beyond 5,
    which only R2 has, are drawn on a scale that is linear up to 1 and logarithmic beyond.

    Args:
        comparison: The comparison.
        standings: Its standing on each stream.
        look: From :func:`~plasticity_cl.report.drawing.looks`.

    Returns:
        The figure, or None where no finished run has a fresh reference.
    """
    points = {}
    for stream, standing in standings.items():
        known = {n: [s.plasticity_loss, s.forgetting] for n, s in standing.summaries.items() if s.total.n}
        if known:
            points[stream], _ = simultaneous(known)
    if not points:
        return None
    parts = [part for known in points.values() for pair in known.values() for part in pair]
    ends = [end for part in parts for end in (part.low, part.high, *part.values) if math.isfinite(end)]
    wide = max(map(abs, ends)) > 5
    low, high = _separation_limits(min(ends), max(ends), wide)
    names = list(dict.fromkeys(name for known in points.values() for name in known))
    with drawing():
        short = abbreviate(names, 34, drawable)
        handles = [(_marker(look[name]), short[name]) for name in names]
        figure, panels = grid(len(points), (3.0, 3.0), comparison.title, handles, Margins(0.72, 0.14, 0.32, 0.54))
        for panel, (stream, known) in zip(panels, points.items(), strict=True):
            panel.grid(visible=False)
            if wide:
                panel.set_xscale("symlog", linthresh=1)
                panel.set_yscale("symlog", linthresh=1)
                panel.xaxis.set_major_formatter(_tick)
                panel.yaxis.set_major_formatter(_tick)
            panel.set(xlim=(low, high), ylim=(low, high))
            panel.axhline(0, color=MUTED, linewidth=0.8, zorder=1)
            panel.axvline(0, color=MUTED, linewidth=0.8, zorder=1)
            if comparison.forgetting_counts:
                _draw_sums(panel, low, high, wide)
            for name, (x, y) in known.items():
                colour = look[name].colour
                if x.n == y.n:
                    panel.plot(x.values, y.values, "o", color=colour, zorder=2.5, **_SEED)
                panel.plot([x.low, x.high], [y.mean, y.mean], color=colour, linewidth=1.4, zorder=3)
                panel.plot([x.mean, x.mean], [y.low, y.high], color=colour, linewidth=1.4, zorder=3)
                panel.plot(x.mean, y.mean, look[name].marker, color=colour, markersize=8, mec=PAPER, zorder=4)
            panel.set_title(SPLITS[stream], loc="left")
            panel.set_xlabel("plasticity loss (worse →)")
            panel.set_ylabel(f"forgetting ({'worse →' if comparison.forgetting_counts else 'not counted'})")
        return figure


def diagnostics_figure(comparison: Comparison, look: Mapping[str, Look], mechanism: str) -> Drawing | None:
    """Draw the diagnostics of a mechanism over experiences, one panel a diagnostic, one line a strategy.

    A diagnostic's total over layers is drawn; where it has none, the mean over its layers. Each seed's last value is a
    dot. Percentiles are left to the tables.

    Args:
        comparison: The comparison.
        look: From :func:`~plasticity_cl.report.drawing.looks`.
        mechanism: One of ``comparison.mechanisms``.

    Returns:
        The figure, or None where nothing of it was measured.
    """
    measured, known = comparison.mechanisms.get(mechanism, {}), comparison.quantities
    found = {metric: layers for metric, layers in measured.items() if not metric.endswith("_p95")}
    if not found:
        return None
    with drawing():
        short = abbreviate(comparison.strategies, 34, drawable)
        handles = [(_marker(look[name], 1.8), short[name]) for name in comparison.strategies]
        figure, panels = grid(len(found), (3.0, 2.3), f"{comparison.title}: {mechanism}", handles, Margins())
        for panel, (metric, layers) in zip(panels, found.items(), strict=True):
            same = _draw_diagnostic(panel, comparison, metric, layers, look)
            words = _cut(diagnostic_in_words(metric, known.get(metric), layers))
            _title(panel, drawable(words + (", the same for all" if same else "")), worse(known.get(metric)))
        _count_experiences(panels)
        return figure


def _marker(look: Look, line: float = 0.0) -> Line2D:
    return Line2D([], [], color=look.colour, marker=look.marker, markersize=6, linewidth=line, markeredgecolor=PAPER)


def _open_diamond() -> Line2D:
    return Line2D([], [], color=INK, marker="D", markersize=5, markerfacecolor="none", linestyle="none")


def _draw_parts(panel: Any, row: int, summary: Summary, learned: Estimate, look: Look, final: bool) -> None:
    here = [row, row]
    if summary.chance.n:
        edges = [row - 0.42, row + 0.42]
        panel.plot([summary.chance.mean] * 2, edges, color=MUTED, linewidth=1, linestyle=_DASHES, zorder=1)
    if summary.baseline.n and summary.fresh.n:
        panel.plot([summary.baseline.mean, summary.fresh.mean], here, color=INK, linewidth=1, zorder=2)
    if summary.baseline.n:
        panel.plot(summary.baseline.mean, row, "|", color=INK, markersize=13, markeredgewidth=1.6, zorder=3)
    if summary.fresh.n:
        line = [summary.fresh.mean, learned.mean]
        panel.plot(line, here, color=look.colour, linewidth=6, alpha=0.35, zorder=2, solid_capstyle="butt")
        panel.plot(summary.fresh.mean, row, "D", color=INK, markersize=5, markerfacecolor="none", zorder=3)
    if final and summary.forgetting.n:
        left = learned.mean - summary.forgetting.mean
        panel.plot([learned.mean, left], here, color=look.colour, linewidth=1, linestyle=_DOTS, zorder=2)
        panel.plot(left, row, "x", color=look.colour, markersize=5, zorder=3)
    below = [row + 0.3] * learned.n
    panel.plot(learned.values, below, "o", color=look.colour, zorder=3, **_SEED)
    panel.plot([learned.low, learned.high], here, color=look.colour, linewidth=1.6, zorder=4)
    panel.plot(learned.mean, row, look.marker, color=look.colour, markersize=7, markeredgecolor=PAPER, zorder=5)


def _draw_diagnostic(
    panel: Any, comparison: Comparison, metric: str, layers: Sequence[str], look: Mapping[str, Look]
) -> bool:
    """Draw one diagnostic, once where it is the same for all strategies, and say whether it is."""
    lines = {
        name: _above_zero(curve([run.diagnostic(metric, layers) for run in runs if run.finished]))
        for name, runs in comparison.strategies.items()
    }
    first, *others = lines.values()
    same = bool(others) and all(np.array_equal(first.mean, other.mean, equal_nan=True) for other in others)
    shown = [(Look(INK, "o"), first)] if same else [(look[name], line) for name, line in lines.items()]
    for turn, (how, line) in enumerate(shown):
        # Markers of strategies stand side by side.
        span = max(line.experiences.tolist(), default=0) - min(line.experiences.tolist(), default=0)
        _draw_line(panel, line, how, turn, shift=(turn - (len(shown) - 1) / 2) * 0.03 * max(span, 1))
        for seed in line.seeds:
            known = np.flatnonzero(np.isfinite(seed))
            if len(known) and len(line.experiences) > 2:
                at = known[-1]
                panel.plot(line.experiences[at], seed[at], "o", color=how.colour, zorder=5, **_SEED)
    for name, runs in comparison.strategies.items():
        _draw_unfinished(panel, [run.diagnostic(metric, layers) for run in runs if not run.finished], look[name])
    _scale_diagnostic(panel, [line for _, line in shown])
    return same


def _draw_learning(panel: Any, runs: Sequence[Run], stream: str, look: Look, score: str) -> None:
    finished = [run for run in runs if run.finished]
    learned, fresh, baseline = (
        _within(curve([run.series(metric, stream) for run in finished]), score)
        for metric in ("learned", "fresh", "baseline")
    )
    both, of_learned, of_fresh = np.intersect1d(learned.experiences, fresh.experiences, return_indices=True)
    if len(both) > 2:
        panel.fill_between(
            both, learned.mean[of_learned], fresh.mean[of_fresh], color=look.colour, alpha=0.1, linewidth=0, zorder=2
        )
        for seed in learned.seeds:
            panel.plot(learned.experiences, seed, color=look.colour, linewidth=0.5, alpha=0.55, zorder=3)
    _draw_reference(panel, baseline, _DOTS)
    _draw_reference(panel, fresh, _DASHES)
    _draw_line(panel, learned, look, 0)
    _draw_unfinished(panel, [run.series("learned", stream) for run in runs if not run.finished], look)


def _draw_reference(panel: Any, line: Curve, dashes: Any) -> None:
    """Draw the mean of a reference: a line, or ticks where there are too few experiences for one."""
    few = {"marker": "_", "markersize": 16} if len(line.experiences) <= 2 else {}
    style = "none" if few else dashes
    panel.plot(line.experiences, line.mean, color=INK, linewidth=1.3, linestyle=style, zorder=5, **few)


def _draw_line(panel: Any, line: Curve, look: Look, turn: int, shift: float = 0.0) -> None:
    """Draw a mean with its band, and markers at places of its own, so that lines that coincide are told apart.

    Up to two experiences make no line: they are drawn as markers with bars and a dot a seed, side by side.
    """
    if len(line.experiences) <= 2:
        at = line.experiences + shift
        for seed in line.seeds:
            panel.plot(at, seed, "o", color=look.colour, zorder=3, **_SEED)
        panel.vlines(at, line.low, line.high, color=look.colour, linewidth=1.4, zorder=4)
        panel.plot(at, line.mean, look.marker, color=look.colour, markersize=6, mec=PAPER, mew=0.6, zorder=5)
        return
    every = max(1, len(line.experiences) // 6)
    panel.fill_between(line.experiences, line.low, line.high, color=look.colour, alpha=0.2, linewidth=0, zorder=3)
    panel.plot(
        line.experiences, line.mean, color=look.colour, linewidth=1.8, zorder=4, marker=look.marker,
        markevery=(turn % every, every), markersize=5, markeredgecolor=PAPER, markeredgewidth=0.6,
    )  # fmt: skip


def _draw_unfinished(panel: Any, series: Iterable[Mapping[int, float]], look: Look) -> None:
    for seed in series:
        if seed:
            line = {"linewidth": 0.8} if len(seed) > 2 else {"linestyle": "none", "marker": ".", "markersize": 4}
            panel.plot(list(seed), list(seed.values()), color=look.colour, zorder=3, **line)
            panel.plot(*max(seed.items()), "x", color=INK, markersize=6, markeredgewidth=1.5, zorder=6)


def _title(panel: Any, title: str, below: str, weight: str = "normal") -> None:
    """Write a panel's title, and in grey a second line below it."""
    panel.set_title(f"{title}\n", loc="left", fontweight=weight, color=INK, linespacing=1.5)
    panel.annotate(below, (0, 1), (0, 6), "axes fraction", "offset points", fontsize=9, color=MUTED)


def _cut(words: str, most: int = 48) -> str:
    """End what is too long for the title of a panel."""
    return words if len(words) <= most else f"{words[: most - 2]}.."


def _subtitle(summary: Summary) -> str:
    if summary.finished == 0:
        return "no finished run"
    if summary.plasticity_loss.n == 0:
        return "no fresh reference"
    handicap = f"handicap {number(summary.handicap.mean)}, " if summary.handicap.n else ""
    return f"{handicap}plasticity loss {number(summary.plasticity_loss.mean)}".replace("-", "−")


def _within(line: Curve, score: str) -> Curve:
    """Cut intervals where the score itself ends: the mean of scores up to 1 lies nowhere above 1."""
    floor = 0.0 if score in ("accuracy", "bounded R2") else -math.inf
    ceiling = 1.0 if score in ("accuracy", "bounded R2", "R2") else math.inf
    low, high = np.clip(line.low, floor, ceiling), np.clip(line.high, floor, ceiling)
    return Curve(line.experiences, line.mean, low, high, line.seeds)


def _above_zero(line: Curve) -> Curve:
    """Cut intervals at zero where no value is negative: shares, ranks and norms have no mean below it either."""
    if (line.seeds < 0).any():
        return line
    return Curve(line.experiences, line.mean, np.maximum(line.low, 0), line.high, line.seeds)


def _score_limits(comparison: Comparison, stream: str) -> tuple[float, float, bool]:
    """Choose the limits of the score's axis, and say whether they cut anything off.

    R2 has no lower bound, and one slip to -1000 would flatten everything else.
    """
    curves = [
        _within(curve([run.series(metric, stream) for run in runs if run.finished]), comparison.score)
        for runs in comparison.strategies.values()
        for metric in ("learned", "fresh", "baseline")
    ]
    unfinished = [
        value for run in comparison.runs if not run.finished for value in run.series("learned", stream).values()
    ]
    ends = np.concatenate([np.ravel(of) for c in curves for of in (c.seeds, c.low, c.high)] + [np.array(unfinished)])
    ends = ends[np.isfinite(ends)]
    lowest, highest = (float(ends.min()), float(ends.max())) if len(ends) else (0.0, 1.0)
    low, high = max(min(lowest, 0.0), -1.0), max(highest, 1.0)
    margin = 0.04 * (high - low)
    return low - margin, high + margin, lowest < low - margin


def _separation_limits(lowest: float, highest: float, wide: bool) -> tuple[float, float]:
    """One pair of limits for both axes that holds every bar's end and zero, with room for markers."""
    if wide:
        return (lowest * 2 - 0.5 if lowest < 0 else -0.5), max(highest, 1.0) * 2
    span = max(highest, 0.05) - min(lowest, 0.0)
    return min(lowest, 0.0) - 0.08 * span, max(highest, 0.05) + 0.08 * span


def _draw_sums(panel: Any, low: float, high: float, wide: bool) -> None:
    """Draw lines of constant sum, each named at its upper end."""
    if wide:
        sums = [10.0**exponent for exponent in range(math.ceil(math.log10(high)))]
        along = np.concatenate([np.linspace(low, 1, 100), np.geomspace(1, high, 300)])
    else:
        sums = [s for s in MaxNLocator(5).tick_values(low, 1.6 * high) if high * 0.05 < s < 1.6 * high]
        along = np.linspace(low, high, 3)
    for total in sums:
        xs = np.unique(np.concatenate([along, total - along]))
        xs = xs[(np.minimum(xs, total - xs) >= low) & (np.maximum(xs, total - xs) <= high)]
        if len(xs) < 2 or xs[-1] - xs[0] < 0.2 * (high - low):
            continue  # too near a corner for a name
        panel.plot(xs, total - xs, color=FAINT, linewidth=0.8, zorder=0.5)
        where = {"ha": "left", "va": "bottom", "fontsize": 8, "color": MUTED}
        panel.annotate(f"{total:g}", (xs[0], total - xs[0]), (11, -9), textcoords="offset points", zorder=0.6, **where)


def _scale_diagnostic(panel: Any, lines: Sequence[Curve]) -> None:
    """Show every interval whole; start at zero where nothing is negative; go over to a logarithmic scale where sizes
    differ a hundredfold.
    """  # noqa: D205
    drawn: list[Array] = [np.asarray(line.get_ydata(), dtype=float) for line in panel.lines]
    values = np.concatenate([np.ravel(of) for of in drawn] or [np.zeros(0)])
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return
    ends = np.concatenate([values, *(of[np.isfinite(of)] for line in lines for of in (line.low, line.high))])
    if values.min() > 0 and values.max() > max(100 * values.min(), 10):
        panel.set_yscale("log")
        panel.set_ylim(values.min() / 2, 1.5 * ends.max())
        panel.yaxis.set_major_formatter(_tick)
        panel.yaxis.set_minor_formatter(lambda *_: "")
        return
    low, high = min(0.0, float(ends.min())), max(0.0, float(ends.max()))
    margin = 0.05 * (high - low) or 0.5
    panel.set_ylim(low - margin, high + margin)
    panel.yaxis.set_major_formatter(_tick)


def _tick(value: float, _position: object) -> str:
    text = f"{value:.6g}" if abs(value) < 1e4 else f"{value:.1e}".replace(".0e", "e")
    return text.replace("e+0", "e").replace("e-0", "e-").replace("-", "−")


def _score_name(score: str) -> str:
    return drawable(score).replace("R2", "R²")


def _count_experiences(panels: Sequence[Any]) -> None:
    """Name the axis of experiences, with whole numbers."""
    for panel in panels:
        panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        if panel.dataLim.width < 1:  # one experience
            middle = round(panel.dataLim.x0) if math.isfinite(panel.dataLim.x0) else 0
            panel.set(xlim=(middle - 0.5, middle + 0.5), xticks=[middle])
        panel.set_xlabel("experience k")
