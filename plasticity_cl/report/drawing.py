"""How every figure of a report looks: one style, one look a strategy, and the files that a figure becomes."""

from __future__ import annotations

import functools
import io
import math
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any
from xml.etree import ElementTree

import matplotlib.style
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font

from plasticity_cl.report.read import BASELINE, strategy_order

INK, MUTED, FAINT, GRID, PAPER = "#222222", "#666666", "#cccccc", "#ececec", "#ffffff"
# Okabe and Ito's palette, which stays apart under all common kinds of colour blindness, less its yellow, which is too
# pale for lines on white. Marker shapes tell strategies apart where there are more of them than colours.
_GREY = "#444444"
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_MARKERS = ("s", "^", "D", "v", "P", "X", "p", "<", ">", "h", "*")
DARK = {
    INK: "#e9e9ec",
    MUTED: "#a5a5ad",
    FAINT: "#55555c",
    GRID: "#2c2c32",
    PAPER: "#17171a",
    _GREY: "#c4c4c8",
    "#0072b2": "#3aa0e0",
    "#d55e00": "#f08040",
    "#009e73": "#22c795",
    "#cc79a7": "#e09cc4",
    "#e69f00": "#f0b030",
    "#56b4e9": "#86cbf3",
}
"""What each colour becomes on a dark page."""

# Verdana has the widths of DejaVu Sans, and is there where that is not.
_FONTS = "'DejaVu Sans', Verdana, sans-serif"
_SVG = "{http://www.w3.org/2000/svg}"
_LINE = 0.22  # inches, of a title or a legend's entry

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
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "lines.solid_capstyle": "round",
    "text.parse_math": False,  # a dollar sign in a strategy's name is a dollar sign
    "figure.dpi": 160,
    "savefig.dpi": 160,
    "svg.fonttype": "none",  # text stays text: smaller, sharp, and to be edited in a drawing program
    "svg.hashsalt": "plasticity-cl",
}


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
    return {BASELINE: Look(_GREY, "o"), **chosen}


@functools.cache
def _characters() -> frozenset[int]:
    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())


def drawable(text: str) -> str:
    """Replace whatever the figures' font cannot show, so that a character has a width and a line stays a line."""
    return "".join(c if c.isprintable() and ord(c) in _characters() else "?" for c in text)


@contextmanager
def drawing() -> Iterator[None]:
    """Draw in the report's style whatever the user's settings are, and leave those as they were."""
    with matplotlib.style.context(["default", _STYLE]):
        yield


@dataclass(frozen=True)
class Drawing:
    """A figure, and the cells that it is made of, which a page may lay out in its own way.

    Attributes:
        figure: The figure, with a title over all cells.
        cells: For each cell the axes in it, and its left, top, width and height in inches.
    """

    figure: Figure
    cells: tuple[tuple[Any, tuple[float, float, float, float]], ...]


@dataclass(frozen=True)
class Margins:
    """The room around the axes in a cell, in inches."""

    left: float = 0.62
    right: float = 0.12
    top: float = 0.5
    bottom: float = 0.5


def grid(
    n: int,
    size: tuple[float, float],
    title: str,
    handles: Sequence[tuple[Any, str]],
    margins: Margins,
    columns: int = 3,
) -> tuple[Drawing, list[Any]]:
    """Make a figure of n panels in rows, with a legend as its last cell.

    All places are fixed: to fit them would take longer than to draw the figure.

    Args:
        n: How many panels.
        size: Width and height of a panel's cell, in inches.
        title: What stands above all panels.
        handles: The legend's entries.
        margins: The room around a panel within its cell.
        columns: How many cells stand in a row at most.

    Returns:
        The drawing, and the axes of its panels.
    """
    columns = min(columns, n + 1)
    width = columns * size[0]
    lines = textwrap.wrap(drawable(title), int(11.5 * width))
    above = 0.1 + _LINE * len(lines)
    legend_height = 0.15 + _LINE * 0.9 * sum(text.count("\n") + 1 for _, text in handles)
    heights = [size[1]] * math.ceil(n / columns)
    if n % columns == 0:
        heights.append(0.0)  # a row for the legend alone
    heights[-1] = max(heights[-1], legend_height)
    height = above + sum(heights)
    figure = Figure(figsize=(width, height))
    figure.text(0.1 / width, 1 - 0.08 / height, "\n".join(lines), ha="left", va="top", fontsize=11)
    cells = []
    for i in range(n + 1):
        row, column = divmod(i, columns)
        left, top = column * size[0], above + sum(heights[:row])
        deep = legend_height if i == n else size[1]
        around = Margins(0.1, 0.1, 0.05, 0.05) if i == n else margins
        across, down = size[0] - around.left - around.right, deep - around.top - around.bottom
        bottom = height - top - deep + around.bottom
        axes = figure.add_axes(((left + around.left) / width, bottom / height, across / width, down / height))
        axes.set_gid(f"cell-{i}")
        cells.append((axes, (left, top, size[0], deep)))
    legend, _ = cells[-1]
    legend.set_axis_off()
    legend.legend(*zip(*handles, strict=True), loc="upper left", borderaxespad=0, labelspacing=0.4)
    return Drawing(figure, tuple(cells)), [axes for axes, _ in cells[:-1]]


def png(figure: Figure) -> bytes:
    """Encode a figure as PNG on white, without metadata, so that the same figure gives the same bytes."""
    return _encoded(figure, "png", {"Software": None})


def pdf(figure: Figure) -> bytes:
    """Encode a figure as PDF without a background, and without dates."""
    return _encoded(figure, "pdf", {"CreationDate": None, "Creator": None, "Producer": None}, transparent=True)


def svg(figure: Figure) -> bytes:
    """Encode a figure as SVG without a background, and without dates."""
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    content = _encoded(figure, "svg", nothing, transparent=True).decode()
    return re.sub(r"font-family: [^;\"]*", f"font-family: {_FONTS}", content).encode()


class Shared:
    """What the drawings of a page have in common: styles, whose colours follow a light or a dark page, and markers."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._definitions: dict[str, str] = {}

    def name(self, style: str) -> str:
        """The class that stands for a style."""
        shown = re.sub(r"#[0-9a-fA-F]{6}", _variable, re.sub(r"\s*([:;])\s*", r"\1", style))
        shown = re.sub(r"font-family:[^;]*;?", "", shown)
        return self._names.setdefault(shown, f"s{len(self._names)}")

    def define(self, identifier: str, element: ElementTree.Element) -> None:
        """Take up what drawings refer to. Its name is a hash of its content, so that all may share it."""
        if identifier not in self._definitions:
            self._definitions[identifier] = _compact(element, {}, self)

    @property
    def definitions(self) -> str:
        """An element that shows nothing and holds what drawings refer to."""
        return f'<svg class="shared" width="0" height="0"><defs>{"".join(self._definitions.values())}</defs></svg>'

    @property
    def sheet(self) -> str:
        """The style sheet, with the palette."""
        light, dark = ("".join(f"--{c[1:]}:{c if of is None else of[c]};" for c in DARK) for of in (None, DARK))
        palette = f":root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}"
        base = f".cell{{font-family:{_FONTS};stroke-linejoin:round}}.shared{{position:absolute}}"
        return palette + base + "".join(f".{name}{{{style}}}" for style, name in self._names.items())


def cells_for_a_page(drawing: Drawing, content: bytes, shared: Shared) -> list[str]:
    """Cut a figure into its cells, each an SVG element of its own that takes the width it is given.

    Args:
        drawing: The drawing.
        content: What :func:`svg` makes of its figure.
        shared: Takes up the styles and definitions that are used.

    Returns:
        The elements.
    """
    root = ElementTree.fromstring(content)
    groups = {group.get("id"): group for group in root.iter(f"{_SVG}g")}
    definitions = {
        str(element.get("id")): element for defs in root.iter(f"{_SVG}defs") for element in defs if element.get("id")
    }
    cells = []
    for axes, (left, top, width, height) in drawing.cells:
        inside = "".join(_compact(child, definitions, shared) for child in groups[axes.get_gid()])
        box = " ".join(f"{72 * size:.1f}" for size in (left, top, width, height))
        cells.append(f'<svg class="cell" viewBox="{box}">{inside}</svg>')
    return cells


def _compact(element: ElementTree.Element, definitions: Mapping[str, ElementTree.Element], shared: Shared) -> str:
    """Write an element in few characters: its style as a class, coordinates to a tenth of a point.

    Names are dropped but in a definition, which is written with no ``definitions`` of its own.
    """
    tag = element.tag.removeprefix(_SVG)
    if tag == "defs":
        return ""
    attributes = []
    for key, value in element.attrib.items():
        name = key.rpartition("}")[2]
        if reference := re.fullmatch(r"#(\w+)|url\(#(\w+)\)", value):
            identifier = reference[1] or reference[2]
            shared.define(identifier, definitions[identifier])
        if name == "style":
            name, value = "class", shared.name(value)
        elif name == "id" and definitions:
            continue
        elif name in ("d", "x", "y", "width", "height", "transform", "points"):
            value = _shorter(value)
        if value:
            attributes.append(f' {name}="{escape(value)}"')
    text = escape(element.text, quote=False) if element.text and element.text.strip() else ""
    inside = text + "".join(_compact(child, definitions, shared) for child in element)
    if tag == "g" and not attributes:
        return inside
    return f"<{tag}{''.join(attributes)}>{inside}</{tag}>" if inside else f"<{tag}{''.join(attributes)}/>"


def _shorter(value: str) -> str:
    """Round the numbers of a path or a place to a tenth, and leave out turns by nothing."""
    rounded = re.sub(r"-?\d+\.\d+", lambda match: f"{float(match.group()):.1f}".removesuffix(".0"), value)
    if re.match(r"rotate\(-?0 ", rounded):
        return ""
    return re.sub(r"\s*([A-Za-z])\s*", r"\1", rounded) if rounded.startswith("M") else rounded


def _variable(match: re.Match[str]) -> str:
    colour = match.group().lower()
    return f"var(--{colour[1:]})" if colour in DARK else colour


def _encoded(figure: Figure, kind: str, metadata: dict[str, Any], **options: Any) -> bytes:
    buffer = io.BytesIO()
    with drawing():
        figure.savefig(buffer, format=kind, metadata=metadata, **options)
    return buffer.getvalue()
