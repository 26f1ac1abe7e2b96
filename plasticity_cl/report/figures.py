"""The figures of a comparison, drawn without a display and without global state of matplotlib."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from plasticity_cl.report.read import BASELINE, Comparison, Run, strategy_order
from plasticity_cl.report.statistics import Array, Curve, Estimate, Summary, curve, summarise
from plasticity_cl.report.wording import SPLITS, abbreviate, diagnostic_in_words, number, plain, with_interval

# Okabe and Ito's palette, which stays apart under all common kinds of colour blindness, less its yellow, which is too
# pale for lines on white. Marker shapes tell strategies apart where there are more of them than colours.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = ("s", "^", "D", "v", "P", "X", "p", "<", ">", "h", "*")
_INK, _MUTED, _FAINT = "#222222", "#666666", "#cccccc"

_STYLE = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#ececec",
    "grid.linewidth": 0.8,
    "lines.solid_capstyle": "round",
    "text.parse_math": False,  # a dollar sign in a strategy's name is a dollar sign
    "figure.dpi": 160,
    "savefig.dpi": 160,
}
_DASHES = (0, (4, 2))
_LINE = 0.22  # inches, of a title or a legend


@dataclass(frozen=True)
class Look:
    """How a strategy is drawn in every figure of a report.

    Attributes:
        colour: As ``#rrggbb``.
        marker: matplotlib's name of its marker.
    """

    colour: str
    marker: str


def looks(strategies: Iterable[str]) -> dict[str, Look]:
    """Give every strategy a colour and a marker; the baseline's is grey.

    Args:
        strategies: The strategies of a whole report.

    Returns:
        A look for each.
    """
    others = sorted(set(strategies) - {BASELINE}, key=strategy_order)
    chosen = {name: Look(_COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)]) for i, name in enumerate(others)}
    return {BASELINE: Look("#444444", "o"), **chosen}


@contextmanager
def _drawing() -> Iterator[None]:
    """Draw in the report's style whatever the user's settings are, and leave those as they were."""
    with matplotlib.style.context(["default", _STYLE]):
        yield


def png(figure: Figure) -> bytes:
    """Encode a figure as PNG, without metadata, so that the same figure gives the same bytes.

    Args:
        figure: What one of the functions below returns.

    Returns:
        The file's content.
    """
    buffer = io.BytesIO()
    with _drawing():
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def learning_figure(comparison: Comparison, stream: str, look: Mapping[str, Look]) -> Figure | None:
    """Draw the learning score over experiences against the fresh reference, one panel a strategy.

    Solid is A_kk, dashed S_k, the area between them the net plasticity loss; bands are 95% bootstrap intervals over
    seeds. The other strategies' A_kk stand behind in grey. Runs that did not finish are drawn thin, up to a cross.

    Args:
        comparison: The comparison.
        stream: ``"train"`` or ``"test"``.
        look: From :func:`looks`.

    Returns:
        The figure, or None where nothing was measured on this stream.
    """
    if stream not in comparison.streams:
        return None
    learned = {
        name: curve([run.series("learned", stream) for run in runs if run.finished])
        for name, runs in comparison.strategies.items()
    }
    low, high, cut = _score_limits(comparison, stream)
    with _drawing():
        handles: list[tuple[Any, str]] = [
            (Line2D([], [], color=_INK, linewidth=2), "right after training on k\n(band: 95% interval over seeds)"),
            (Line2D([], [], color=_INK, linewidth=1.4, linestyle=_DASHES), "fresh network, trained on k alone"),
            (Patch(color=_tint("#000000", 0.1)), "between the two: net plasticity loss"),
        ]
        if len(learned) > 1:
            handles.append((Line2D([], [], color=_FAINT), "the other strategies"))
        if any(not run.finished for run in comparison.runs):
            handles.append(
                (Line2D([], [], color=_INK, linewidth=0.8, marker="x"), "run that diverged or did not finish")
            )
        title = f"{comparison.title}: learning on {SPLITS[stream]}"
        title += f" (scores below {number(low)} are cut off)" if cut else ""
        figure, panels = _grid(len(learned), 2.4, title, handles)
        short = abbreviate(learned, 24 if len(learned) not in (2, 4) else 38)
        for panel, (name, runs) in zip(panels, comparison.strategies.items(), strict=True):
            for other, behind in learned.items():
                if other != name:
                    panel.plot(behind.experiences, behind.mean, color=_FAINT, linewidth=1, zorder=1)
            _draw_learning(panel, runs, stream, look[name])
            panel.set_title(f"{short[name]}\n", loc="left", fontweight="bold", color=_INK, linespacing=1.5)
            panel.annotate(
                _subtitle(summarise(runs, stream)), (0, 1), (0, 6), "axes fraction", "offset points",
                fontsize=9, color=_MUTED,
            )  # fmt: skip
            panel.set_ylim(low, high)
        _label_outer_axes(panels, _score_name(comparison.score))
        return figure


def separation_figure(comparison: Comparison, look: Mapping[str, Look]) -> Figure | None:
    """Draw plasticity loss against forgetting, one point a strategy, one panel a stream, with lines of constant total.

    Both axes have one scale, so that a step to the right costs as much as a step up; bars are 95% bootstrap intervals.
    Values beyond 5, which only R2 has, are drawn on a scale that is linear up to 1 and logarithmic beyond.

    Args:
        comparison: The comparison.
        look: From :func:`looks`.

    Returns:
        The figure, or None where no finished run has a fresh reference.
    """
    summaries = {
        stream: {name: summarise(runs, stream) for name, runs in comparison.strategies.items()}
        for stream in comparison.streams
    }
    points = {
        stream: {
            name: (s.plasticity_loss, s.forgetting) for name, s in of_stream.items() if math.isfinite(s.total.mean)
        }
        for stream, of_stream in summaries.items()
    }
    points = {stream: known for stream, known in points.items() if known}
    if not points:
        return None
    parts = [part for known in points.values() for pair in known.values() for part in pair]
    ends = [end for part in parts for end in (part.mean, part.low, part.high) if math.isfinite(end)]
    wide = max(map(abs, ends)) > 5
    low, high = _separation_limits(min(ends), max(ends), wide)
    with _drawing():
        # Square panels of 3.8 inches, with fixed margins for title and labels.
        width = 4.5 * len(points) + 0.15
        title = _title_lines(comparison.title, width)
        height = 4.75 + _LINE * len(title)
        figure = Figure(figsize=(width, height))
        panels = [
            figure.add_axes(((0.65 + 4.5 * i) / width, 0.55 / height, 3.8 / width, 3.8 / height))
            for i in range(len(points))
        ]
        for panel, (stream, known) in zip(panels, points.items(), strict=True):
            panel.grid(visible=False)
            if wide:
                panel.set_xscale("symlog", linthresh=1)
                panel.set_yscale("symlog", linthresh=1)
                panel.xaxis.set_major_formatter(_tick)
                panel.yaxis.set_major_formatter(_tick)
            panel.set(xlim=(low, high), ylim=(low, high))
            panel.axhline(0, color=_MUTED, linewidth=0.8, zorder=1)
            panel.axvline(0, color=_MUTED, linewidth=0.8, zorder=1)
            for name, (x, y) in known.items():
                colour = look[name].colour
                panel.plot([x.low, x.high], [y.mean, y.mean], color=colour, linewidth=1.6, zorder=3)
                panel.plot([x.mean, x.mean], [y.low, y.high], color=colour, linewidth=1.6, zorder=3)
                panel.plot(x.mean, y.mean, look[name].marker, color=colour, markersize=9, mec="white", zorder=4)
            panel.set_title(f"{_score_name(comparison.score)} on {SPLITS[stream]}", loc="left", color=_INK)
            if any(math.isfinite(x.low) for x, _ in known.values()):
                panel.set_title("bars: 95% intervals", loc="right", fontsize=8, color=_MUTED)
            panel.set_xlabel("plasticity loss: not learned  →")
        panels[0].set_ylabel("forgetting: learned, then lost  →")
        figure.suptitle("\n".join(title), x=0.01, y=1 - 0.1 / height, ha="left", fontsize=11)
        renderer = FigureCanvasAgg(figure).get_renderer()
        for panel, known in zip(panels, points.values(), strict=True):
            taken = [box for x, y in known.values() for box in _boxes(panel, x, y)]
            _draw_totals(panel, renderer, low, high, wide, taken)
            _label_points(panel, renderer, known, taken)
        return figure


def diagnostics_figure(comparison: Comparison, look: Mapping[str, Look], mechanism: str) -> Figure | None:
    """Draw the diagnostics of a mechanism over experiences, one panel a diagnostic, one line a strategy.

    A diagnostic's total over layers is drawn; where it has none, the mean over its layers. Percentiles are left to the
    tables.

    Args:
        comparison: The comparison.
        look: From :func:`looks`.
        mechanism: One of ``comparison.mechanisms``.

    Returns:
        The figure, or None where nothing of it was measured.
    """
    measured = comparison.mechanisms.get(mechanism, {})
    found = {metric: layers for metric, layers in measured.items() if not metric.endswith("_p95")}
    if not found:
        return None
    with _drawing():
        short = abbreviate(comparison.strategies, 34)
        handles = [
            (Line2D([], [], color=look[n].colour, marker=look[n].marker, markersize=5, linewidth=1.8), short[n])
            for n in comparison.strategies
        ]
        figure, panels = _grid(len(found), 2.1, f"{comparison.title}: {mechanism}", handles)
        for panel, (metric, layers) in zip(panels, found.items(), strict=True):
            same = _draw_diagnostic(panel, comparison, metric, layers, look)
            words = diagnostic_in_words(metric, layers) + (", the same for all" if same else "")
            panel.set_title(plain(words), loc="left", color=_INK)
        _label_outer_axes(panels, "")
        return figure


def _draw_diagnostic(
    panel: Any, comparison: Comparison, metric: str, layers: Sequence[str], look: Mapping[str, Look]
) -> bool:
    """Draw one diagnostic, once where it is the same for all strategies, and say whether it is."""
    lines = {
        name: curve([run.diagnostic(metric, layers) for run in runs if run.finished])
        for name, runs in comparison.strategies.items()
    }
    first, *others = lines.values()
    same = bool(others) and all(np.array_equal(first.mean, other.mean, equal_nan=True) for other in others)
    if same:
        _draw_line(panel, first, Look(_INK, ""), 0)
    else:
        for turn, (name, line) in enumerate(lines.items()):
            _draw_line(panel, line, look[name], turn)
    for name, runs in comparison.strategies.items():
        _draw_unfinished(panel, [run.diagnostic(metric, layers) for run in runs if not run.finished], look[name])
    _scale_diagnostic(panel)
    return same


def _draw_learning(panel: Any, runs: Sequence[Run], stream: str, look: Look) -> None:
    learned, fresh = (
        curve([run.series(metric, stream) for run in runs if run.finished]) for metric in ("learned", "fresh")
    )
    both, of_learned, of_fresh = np.intersect1d(learned.experiences, fresh.experiences, return_indices=True)
    panel.fill_between(
        both, learned.mean[of_learned], fresh.mean[of_fresh], color=look.colour, alpha=0.1, linewidth=0, zorder=2
    )
    panel.fill_between(fresh.experiences, fresh.low, fresh.high, color=_INK, alpha=0.2, linewidth=0, zorder=3)
    lone = {"marker": "_", "markersize": 14} if len(fresh.experiences) == 1 else {}
    panel.plot(fresh.experiences, fresh.mean, color=_INK, linewidth=1.3, linestyle=_DASHES, zorder=5, **lone)
    _draw_line(panel, learned, look, 0)
    _draw_unfinished(panel, [run.series("learned", stream) for run in runs if not run.finished], look)


def _draw_line(panel: Any, line: Curve, look: Look, turn: int) -> None:
    """Draw a mean with its band, and markers at places of its own, so that lines that coincide are told apart."""
    every = max(1, len(line.experiences) // 6)
    panel.fill_between(line.experiences, line.low, line.high, color=look.colour, alpha=0.25, linewidth=0, zorder=3)
    panel.plot(
        line.experiences, line.mean, color=look.colour, linewidth=1.8, zorder=4, marker=look.marker,
        markevery=(turn % every, every), markersize=5, markeredgecolor="white", markeredgewidth=0.6,
    )  # fmt: skip


def _draw_unfinished(panel: Any, series: Iterable[Mapping[int, float]], look: Look) -> None:
    for seed in series:
        if seed:
            panel.plot(list(seed), list(seed.values()), color=look.colour, linewidth=0.8, zorder=3)
            panel.plot(*max(seed.items()), "x", color=_INK, markersize=6, markeredgewidth=1.5, zorder=6)


def _subtitle(summary: Summary) -> str:
    if summary.finished == 0:
        return "no finished run"
    if summary.plasticity_loss.n == 0:
        return "no fresh reference"
    return f"plasticity loss {with_interval(summary.plasticity_loss)}"


def _score_limits(comparison: Comparison, stream: str) -> tuple[float, float, bool]:
    """Choose the limits of the score's axis, and say whether they cut anything off.

    R2 has no lower bound, and one slip to -1000 would flatten everything else.
    """
    scores = [
        value
        for run in comparison.runs
        for metric in ("learned", "fresh")
        for value in run.series(metric, stream).values()
        if math.isfinite(value)
    ]
    lowest, highest = min(scores, default=0.0), max(scores, default=1.0)
    low, high = max(min(lowest, 0.0), -1.0), max(highest, 1.0)
    margin = 0.04 * (high - low)
    return low - margin, high + margin, lowest < low - margin


def _separation_limits(lowest: float, highest: float, wide: bool) -> tuple[float, float]:
    """One pair of limits for both axes that holds every bar's end and zero, with room for markers and labels."""
    if wide:
        return (lowest * 4 - 0.5 if lowest < 0 else -0.5), max(highest, 1.0) * 4
    span = max(highest, 0.05) - min(lowest, 0.0)
    return min(lowest, 0.0) - 0.08 * span, max(highest, 0.05) + 0.12 * span


def _draw_totals(panel: Any, renderer: Any, low: float, high: float, wide: bool, taken: list[Array]) -> None:
    """Draw lines of constant total, each with its label where it covers least; add the labels' boxes to ``taken``."""
    if wide:
        totals = [10.0**exponent for exponent in range(math.ceil(math.log10(high)))]
        along = np.concatenate([np.linspace(low, 1, 100), np.geomspace(1, high, 300)])
    else:
        totals = [t for t in MaxNLocator(5).tick_values(low, 1.6 * high) if high * 0.05 < t < 1.6 * high]
        along = np.linspace(low, high, 200)
    for total in totals:
        xs = np.unique([along, total - along])  # points that are dense where x is small, and where y is
        xs = xs[(np.minimum(xs, total - xs) >= low) & (np.maximum(xs, total - xs) <= high)]
        panel.plot(xs, total - xs, color=_FAINT, linewidth=0.8, zorder=0.5)
        pixels = panel.transData.transform(np.column_stack([xs, total - xs]))
        steps = np.gradient(pixels, axis=0)
        angles = np.degrees(np.arctan2(steps[:, 1], steps[:, 0]))
        label = panel.text(
            0, 0, f"total {total:g}", fontsize=8, color=_MUTED, ha="center", va="center", rotation_mode="anchor",
            zorder=0.6, bbox={"facecolor": "white", "linewidth": 0, "pad": 0.8},
        )  # fmt: skip

        def put(i: int, label: Any = label, xs: Array = xs, total: float = total, angles: Array = angles) -> Array:
            label.set(position=(xs[i], total - xs[i]), rotation=angles[i])
            return np.array(label.get_window_extent(renderer).extents)

        # From three quarters down the line outwards, so that without obstacles the labels stand in a row.
        places = sorted(np.linspace(0, len(xs) - 1, 17).astype(int)[1:-1], key=lambda i: abs(i - 0.75 * len(xs)))
        costs = _costs(np.array([put(i) for i in places]), taken, panel)
        taken.append(put(places[int(np.argmin(costs))]))


def _label_points(
    panel: Any, renderer: Any, points: Mapping[str, tuple[Estimate, Estimate]], taken: list[Array]
) -> None:
    """Write each strategy's name beside its point where it covers least, with a line to the point if it is far off."""
    short = abbreviate(points, 24)
    per_point = panel.figure.dpi / 72
    distances, angles = (grid.ravel() for grid in np.meshgrid(range(8, 121, 8), np.linspace(0, 2, 17)[:-1] * math.pi))
    nearest_first = np.argsort(distances, kind="stable")
    distances, angles = distances[nearest_first], angles[nearest_first]
    for name, (x, y) in points.items():
        label = panel.annotate(
            short[name], (x.mean, y.mean), (0, 0), textcoords="offset points", fontsize=9, color=_INK,
            ha="center", va="center", zorder=6,
            bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 0.5},
        )  # fmt: skip
        extent = label.get_window_extent(renderer)
        half_width, half_height = extent.width / per_point / 2, extent.height / per_point / 2
        dx = (distances + half_width) * np.cos(angles)
        dy = (distances + half_height) * np.sin(angles)
        boxes = np.array(extent.extents) + per_point * np.column_stack([dx, dy, dx, dy])
        best = int(np.argmin(_costs(boxes, taken, panel)))
        label.set_position((dx[best], dy[best]))
        taken.append(boxes[best])
        if distances[best] > 8:
            # To the label's nearest point; the point's centre is where the offsets are zero.
            centre, half = np.array([dx[best], dy[best]]), np.array([half_width, half_height])
            end = tuple(np.clip(0, centre - half, centre + half))
            panel.annotate(
                "", (x.mean, y.mean), end, textcoords="offset points", zorder=2,
                arrowprops={"arrowstyle": "-", "color": _MUTED, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4},
            )  # fmt: skip


def _boxes(panel: Any, x: Estimate, y: Estimate) -> list[Array]:
    """The places that a point and its bars cover, as left, bottom, right, top in pixels."""
    point, *ends = panel.transData.transform(
        [(x.mean, y.mean), (x.low, y.mean), (x.high, y.mean), (x.mean, y.low), (x.mean, y.high)]
    )
    marker, bar = 6 * panel.figure.dpi / 72, 3.0
    boxes = [(point, point, marker), (ends[0], ends[1], bar), (ends[2], ends[3], bar)]
    covered = [np.concatenate([lower - margin, upper + margin]) for lower, upper, margin in boxes]
    return [box for box in covered if np.isfinite(box).all()]


def _costs(boxes: Array, taken: Sequence[Array], panel: Any) -> Array:
    """How many square pixels each box covers of what is there already, and four times what sticks out of the panel."""

    def common(others: Array) -> Array:
        lower = np.maximum(boxes[:, None, :2], others[None, :, :2])
        upper = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
        return np.asarray(np.clip(upper - lower, 0, None).prod(axis=-1).sum(axis=-1))

    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=-1)
    outside = areas - common(np.array([panel.bbox.extents]))
    return np.asarray(np.round(4 * outside + common(np.array(taken)), 3))


def _scale_diagnostic(panel: Any) -> None:
    """Start at zero where nothing is negative, and go over to a logarithmic scale where sizes differ a hundredfold."""
    values = np.concatenate([line.get_ydata() for line in panel.lines] or [np.zeros(0)]).astype(float)
    values = values[np.isfinite(values)]
    if len(values) == 0 or values.min() < 0:
        return
    if values.max() > max(100 * values.min(), 10) and values.min() > 0:
        panel.set_yscale("log")
        panel.yaxis.set_major_formatter(_tick)
        panel.yaxis.set_minor_formatter(lambda *_: "")
    else:
        top = 1.08 * values.max() or 1.0
        panel.set_ylim(-0.03 * top, top)


def _tick(value: float, _position: object) -> str:
    return f"{value:g}".replace("-", "−") if abs(value) < 1e4 else f"{value:.0e}".replace("e+0", "e")


def _score_name(score: str) -> str:
    return "R²" if score == "R2" else plain(score)


def _tint(colour: str, alpha: float) -> tuple[float, ...]:
    return tuple(1 - alpha * (1 - channel) for channel in to_rgb(colour))


def _grid(n: int, row_height: float, title: str, handles: Sequence[tuple[Any, str]]) -> tuple[Figure, list[Any]]:
    """Make a figure with a title, n panels in rows, and a legend in a place left over or else below the panels."""
    columns = {1: 1, 2: 2, 4: 2}.get(n, 3)
    rows = math.ceil(n / columns)
    width = 9.0 if columns > 1 else 6.0
    lines = _title_lines(title, width)
    inside = columns * rows > n and len(handles) <= 7
    below = 0 if inside else math.ceil((len(handles) + 1) / columns)
    height = row_height * rows + _LINE * (len(lines) + below) + 0.2
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=11)
    places = list(figure.subplots(rows, columns, squeeze=False).flat)
    for place in places[n:]:
        place.set_axis_off()
    entries = list(zip(*handles, strict=True))
    if inside:
        places[n].legend(*entries, loc="center left", borderaxespad=0, labelspacing=0.8)
    else:
        figure.legend(*entries, loc="outside lower left", ncols=columns)
    return figure, places[:n]


def _label_outer_axes(panels: Sequence[Any], vertical: str) -> None:
    """Write axis labels where the panel below or to the left does not say it already."""
    for panel in panels:
        place = panel.get_subplotspec()
        panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        if panel.dataLim.width == 0:  # one experience
            panel.set(xlim=(panel.dataLim.x0 - 0.5, panel.dataLim.x0 + 0.5), xticks=[panel.dataLim.x0])
        below = any(
            other.get_subplotspec().colspan == place.colspan
            and other.get_subplotspec().rowspan.start > place.rowspan.start
            for other in panels
        )
        if not below:
            panel.set_xlabel("experience k")
        if place.is_first_col():
            panel.set_ylabel(vertical)


def _title_lines(text: str, width: float) -> list[str]:
    """Break a title into lines that fit a figure's width, in inches."""
    return textwrap.wrap(plain(text), int(11.5 * width))
