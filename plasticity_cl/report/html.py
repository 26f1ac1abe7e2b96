"""The report: one HTML file that opens from disk, and the figures beside it as PNG, SVG and PDF."""

from __future__ import annotations

import base64
import io
import math
import multiprocessing
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from plasticity_cl.errors import UserError
from plasticity_cl.report.drawing import Drawing, Look, Shared, cells_for_a_page, looks, pdf, png, svg
from plasticity_cl.report.figures import diagnostics_figure, learning_figure, parts_figure, separation_figure
from plasticity_cl.report.page import DEFINITIONS, HEAD
from plasticity_cl.report.read import OF_NETWORK, Comparison, Run, comparisons, read_bytes, read_runs
from plasticity_cl.report.statistics import (
    FEWEST,
    Estimate,
    Standing,
    Summary,
    estimate,
    mean_where_defined,
    paired_difference,
    simultaneous,
    standing,
)
from plasticity_cl.report.verdicts import NOT_COUNTED, headline, verdict
from plasticity_cl.report.wording import SPLITS, about, diagnostic_in_words, in_words, interval, number
from plasticity_cl.writing import write_atomically

Standings = Mapping[str, Standing]  # by stream

_MEANING = {"train": "trainability", "test": "generalisation"}
_SEPARATION = {"learned", "final", "fresh", "plasticity_loss", "forgetting", "total", "baseline", "handicap", "chance"}
_PICTURE_COLOURS = 64
_MECHANISM = "mechanism: "
"""Before the kind of a figure that shows a mechanism, whatever that is called."""


@dataclass(frozen=True)
class _Drawn:
    """A figure to be: how to draw it, and what it says."""

    draw: Callable[[], Drawing | None]
    caption: str
    alt: str


def write_report(directory: Path) -> Path:
    """Write ``report.html`` and ``figures/*`` into a result folder, from the run directories below it.

    The report needs no other file: figures are embedded, as drawings that follow the reader's width and choice of a
    light or a dark page. The files in ``figures/`` are for papers. The same runs give the same bytes. Every file is
    replaced as a whole, so that a reader never sees half of one.

    Args:
        directory: The result folder.

    Returns:
        The path of the report.

    Raises:
        UserError: The folder has no runs or a broken one, or cannot be written to.
    """
    directory = Path(directory)
    runs = read_runs(directory)
    compared = comparisons(runs)
    look = looks(run.strategy for run in runs)
    file_names = _file_names(comparison.title for comparison in compared)
    sections, links, shared = [], [], Shared()
    writers = []
    for i, (comparison, file_name) in enumerate(zip(compared, file_names, strict=True)):
        standings = {stream: standing(comparison, stream) for stream in comparison.streams}
        figures, for_papers = {}, {}
        kinds = _figures(comparison, standings, look)
        kinds_in_files = _file_names(kind.removeprefix(_MECHANISM) for kind in kinds)
        for (kind, drawn), kind_in_file in zip(kinds.items(), kinds_in_files, strict=True):
            if (drawing := drawn.draw()) is None:
                continue
            content = svg(drawing.figure)
            path = directory / "figures" / f"{file_name}-{kind_in_file}"
            _write(path.with_name(f"{path.name}.svg"), content)
            for_papers[path] = drawing.figure
            figures[kind] = _embedded(drawing, cells_for_a_page(drawing, content, shared), drawn)
        writers.append(_beside(partial(_write_for_papers, for_papers)))
        sections.append(_section(comparison, standings, look, figures, f"comparison-{i}"))
        links.append(f'<li><a href="#comparison-{i}">{escape(comparison.title)}</a></li>')
    contents = f'<nav><ul>{"".join(links)}<li><a href="#definitions">What the words mean</a></li></ul></nav>'
    page = [
        HEAD.replace("</style>", f"{shared.sheet}</style>"),
        shared.definitions,
        contents,
        _alarms(runs),
        *sections,
        DEFINITIONS,
        "</body>",
        "</html>",
        "",
    ]
    _write(directory / "report.html", "\n".join(page).encode())
    for finish in writers:
        finish()
    return directory / "report.html"


def _write_for_papers(figures: Mapping[Path, Figure]) -> None:
    for path, figure in figures.items():
        _write(path.with_name(f"{path.name}.png"), png(figure))
        _write(path.with_name(f"{path.name}.pdf"), pdf(figure))


def _beside(work: Callable[[], None]) -> Callable[[], None]:
    """Do some work in a process beside this one; what is returned waits for it, and does what was not done there."""
    if "fork" not in multiprocessing.get_all_start_methods():
        return work

    def quietly() -> None:
        try:
            work()
        except UserError:
            os._exit(1)  # this process will meet the same error, and tell it

    process = multiprocessing.get_context("fork").Process(target=quietly)
    process.start()

    def finish() -> None:
        process.join()
        if process.exitcode:
            work()

    return finish


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, content)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def _file_names(titles: Iterable[str]) -> list[str]:
    """Make file names of titles: lower-case letters, digits and hyphens, each different from the others."""
    names: list[str] = []
    for title in titles:
        stem = re.sub(r"[^a-z0-9.=]+", "-", title.lower()).strip("-.")[:80] or "comparison"
        name, i = stem, 2
        while name in names:
            name, i = f"{stem}-{i}", i + 1
        names.append(name)
    return names


def _figures(comparison: Comparison, standings: Standings, look: Mapping[str, Look]) -> dict[str, _Drawn]:
    """What there may be to draw, by kind."""
    summaries = {stream: there.summaries for stream, there in standings.items()}
    figures = {
        "parts": _Drawn(
            lambda: parts_figure(comparison, standings, look),
            "From the common reference (tick) to a strategy's own fresh networks (diamond) is the handicap, from there "
            "to what was learned (marker; small dots are the seeds) the plasticity loss"
            + (", and from there to the cross what was forgotten." if comparison.forgetting_counts else ".")
            + " Bars are 95% intervals that hold together in each panel.",
            "One row a strategy: common reference, own fresh networks, learned. "
            + _numbers(summaries, "baseline", "fresh", "learned"),
        ),
        "separation": _Drawn(
            lambda: separation_figure(comparison, standings, look),
            "To the right what a strategy did not learn that its own fresh networks do, upwards what it learned and "
            "then lost. Small dots are the seeds; bars are 95% intervals that hold together in each panel."
            + (" Grey lines join equal sums." if comparison.forgetting_counts else ""),
            f"Scatter of plasticity loss against forgetting. {_numbers(summaries, 'plasticity_loss', 'forgetting')}",
        ),
    }
    for stream in comparison.streams:
        figures[f"learning-{stream}"] = _Drawn(
            lambda stream=stream: learning_figure(comparison, standings[stream], look),  # type: ignore[misc]
            f"Score on {SPLITS[stream]} right after training on each experience (solid, thin for each seed), of the "
            "strategy's own fresh networks trained on it alone (dashed), and of the common reference (dotted); the "
            "area between the first two is the net plasticity loss. Bands are 95% t intervals, each for its "
            "experience alone.",
            "Learning score and references over experiences, one panel a strategy. In the last experiences: "
            + _numbers({stream: summaries[stream]}, "learned_last", "fresh_last"),
        )
    known = comparison.quantities
    for mechanism, measured in comparison.mechanisms.items():
        words = [diagnostic_in_words(metric, known.get(metric), layers) for metric, layers in measured.items()]
        figures[f"{_MECHANISM}{mechanism}"] = _Drawn(
            lambda mechanism=mechanism: diagnostics_figure(comparison, look, mechanism),  # type: ignore[misc]
            f"{mechanism}, at the end of experiences: means over seeds with 95% t intervals, each for its experience "
            "alone. Dots are the seeds at the end.",
            f"Diagnostics over experiences, one panel each: {', '.join(words)}. A table below has the last values.",
        )
    return figures


def _numbers(summaries: Mapping[str, Mapping[str, Summary]], *parts: str) -> str:
    """Say what a figure shows to those who cannot see it."""
    sentences = []
    for stream, of_stream in summaries.items():
        strategies = "; ".join(
            f"{name}: " + ", ".join(f"{_words(part)} {number(getattr(summary, part).mean)}" for part in parts)
            for name, summary in of_stream.items()
        )
        sentences.append(f"On {SPLITS[stream]}, {strategies}.")
    return " ".join(sentences)


def _embedded(drawing: Drawing, cells: Sequence[str], drawn: _Drawn) -> str:
    _, (_, _, inches, _) = drawing.cells[0]
    return (
        f'<figure><div class="cells" style="--cell:{6 * inches:g}rem" role="img" aria-label="{escape(drawn.alt)}">'
        f"{''.join(cells)}</div><figcaption>{_prose(drawn.caption)}</figcaption></figure>"
    )


def _section(
    comparison: Comparison, standings: Standings, look: Mapping[str, Look], figures: Mapping[str, str], anchor: str
) -> str:
    verdicts = [
        f'<p class="lead"><strong>On {SPLITS[stream]}</strong> ({_MEANING[stream]}). '
        f"{_prose(headline(comparison, there))}</p>"
        for stream, there in standings.items()
    ]
    parts = [
        f'<section><h2 id="{anchor}">{escape(comparison.title)}</h2>',
        *(verdicts or ['<p class="lead">Nothing was measured yet.</p>']),
        figures.get("parts", ""),
        "<h3>Strategy by strategy</h3>",
        _strategy_verdicts(comparison, standings, look),
        figures.get("separation", ""),
    ]
    for stream, there in standings.items():
        parts += [
            f"<h3>{SPLITS[stream].capitalize()}: {_MEANING[stream]}</h3>",
            _separation_table(comparison, there, look),
            _against_baseline(comparison, there, look),
            _by_experience(comparison, there, look) if comparison.scenario == "target-shift" else "",
            figures.get(f"learning-{stream}", ""),
        ]
    for mechanism in comparison.mechanisms:
        if figure := figures.get(f"{_MECHANISM}{mechanism}"):
            parts += [f"<h3>{escape(mechanism)}</h3>", figure]
    parts += [_pictures(comparison), _other_measures(comparison, look), _runs_and_spec(comparison, look), "</section>"]
    return "\n".join(part for part in parts if part)


def _strategy_verdicts(comparison: Comparison, standings: Standings, look: Mapping[str, Look]) -> str:
    order = next((there.summaries for there in standings.values()), comparison.strategies)
    items = []
    for name in order:
        texts = "".join(
            f"<p><strong>{SPLITS[stream].capitalize()}.</strong> {_prose(verdict(there.summaries[name]))}</p>"
            for stream, there in standings.items()
        )
        items.append(f"<dt>{_named(name, look)}</dt><dd>{texts or '<p>Nothing was measured yet.</p>'}</dd>")
    return f'<dl class="verdicts">{"".join(items)}</dl>'


def _separation_table(comparison: Comparison, there: Standing, look: Mapping[str, Look]) -> str:
    summaries, counts = there.summaries, comparison.forgetting_counts
    known = any(summary.handicap.n for summary in summaries.values())
    measured = {
        name: [
            summary.learned,
            *([summary.handicap] if known else []),
            summary.plasticity_loss,
            summary.forgetting,
        ]
        for name, summary in summaries.items()
    }
    corrected, family = simultaneous(measured)
    heads = [
        *("rank", "learned", *(["common reference", "handicap"] if known else ["fresh"]), "plasticity loss"),
        *(["forgetting", "total"] if counts else ["forgetting, not counted"]),
        "seeds",
    ]
    rows = {}
    for name, summary in summaries.items():
        cells = [_cell(part, _missing(part, summary.finished)) for part in corrected[name]]
        cells.insert(1, _mean_cell(summary.baseline if known else summary.fresh))
        if counts:
            cells.append(_mean_cell(summary.total if summary.handicap.n or not known else estimate([])))
        runs = summary.finished + len(summary.left_out)
        seeds = f"{summary.finished} of {runs}" if summary.left_out else str(runs)
        rows[name] = [f"<td>{_rank(name, there)}</td>", *cells, f"<td>{seeds}</td>"]
    score = f"{comparison.score[:1].upper()}{comparison.score[1:]}".replace("R2", "R²")
    sums = (
        "Common reference − learned = handicap + plasticity loss"
        + (", and with forgetting the total. " if counts else ". ")
        if known
        else "These results have no common reference. "
    )
    reference = f"The common reference: {comparison.reference}. " if known else ""
    caption = (
        f"{score} on {SPLITS[there.stream]}: means over experiences, then over seeds. {sums}{reference}"
        f"Plasticity loss is net: transfer is in it. {_intervals(family)} Ranks are by what was learned; strategies of "
        f"different ranks are told apart by paired differences.{'' if counts else f' {NOT_COUNTED}'}"
    )
    return _table(caption, heads, rows, look)


def _intervals(family: int) -> str:
    """Say in a caption what the intervals of its table are."""
    if family == 0:
        return f"Intervals need {FEWEST} seeds that differ."
    return f"Brackets: 95% t interval{'s' if family > 1 else ''} over seeds" + (
        f", widened so that all {family} hold together." if family > 1 else "."
    )


def _rank(name: str, there: Standing) -> str:
    if name in there.at_chance:
        return "at chance"
    return str(there.ranking.ranks.get(name, "–")) if len(there.ranking.ranks) > 1 else "–"


def _against_baseline(comparison: Comparison, there: Standing, look: Mapping[str, Look]) -> str:
    """Paired differences of every strategy to the baseline; nothing without a baseline."""
    if not comparison.baseline:
        return ""
    metrics = ("learned", "fresh", "plasticity_loss", "forgetting")
    baseline = comparison.strategies[comparison.baseline]
    differences = {
        name: [paired_difference(comparison.strategies[name], baseline, metric, there.stream) for metric in metrics]
        for name in there.summaries
        if name != comparison.baseline
    }
    differences = {name: row for name, row in differences.items() if any(cell.n for cell in row)}
    if not differences:
        return ""
    corrected, family = simultaneous(differences)
    rows = {
        name: [*map(_cell, cells), f"<td>{max(cell.n for cell in cells)}</td>"] for name, cells in corrected.items()
    }
    caption = (
        f"Differences to {comparison.baseline} on {SPLITS[there.stream]}, seed by seed over the seeds and experiences "
        f"that both have. {_intervals(family)}"
    )
    return _table(caption, [*map(_words, metrics), "seeds"], rows, look)


def _by_experience(comparison: Comparison, there: Standing, look: Mapping[str, Look]) -> str:
    """Each experience of a target shift against its zero-mean twin: means over the finished seeds."""
    finished = {name: [run for run in comparison.strategies[name] if run.finished] for name in there.summaries}
    every = [run for runs in finished.values() for run in runs]
    experiences = sorted(set().union(*(run.series("learned", there.stream) for run in every)))

    def mean(runs: Sequence[Run], metric: str, stream: str, k: int) -> str:
        found = estimate(run.series(metric, stream).get(k, math.nan) for run in runs)
        return f"<td>{_prose(number(found.mean)) if found.n else '–'}</td>"

    if not experiences:
        return ""
    twin = "zero-mean twin" if any(run.series("baseline", there.stream) for run in every) else ""
    head = '<th scope="col" rowspan="2">experience</th><th scope="col" rowspan="2">target mean</th>'
    head += f'<th scope="col" rowspan="2">{twin}</th>' if twin else ""
    head += "".join(f'<th scope="colgroup" colspan="2">{_named(name, look)}</th>' for name in finished)
    body = ""
    for k in experiences:
        cells = mean(every, "target_mean", "probe", k)
        cells += mean(every, "baseline", there.stream, k) if twin else ""
        for runs in finished.values():
            cells += mean(runs, "fresh", there.stream, k) + mean(runs, "learned", there.stream, k)
        body += f'<tr><th scope="row">{k}</th>{cells}</tr>'
    caption = (
        f"Experience by experience on {SPLITS[there.stream]}, means over seeds: what a fresh baseline network reaches "
        "on the zero-mean twin (the same targets with mean 0), and what each strategy's fresh networks and the trained "
        "network reach on the targets as they are. Twin − fresh is what a large mean costs even a fresh network; "
        "fresh − learned is the plasticity loss."
    )
    return (
        f'<div class="scroll"><table><caption>{escape(caption)}</caption><thead><tr>{head}</tr>'
        f"<tr>{'<th scope=col>fresh</th><th scope=col>learned</th>' * len(finished)}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def _other_measures(comparison: Comparison, look: Mapping[str, Look]) -> str:
    """What else was measured: means over experiences, and the diagnostics at the end."""
    finished = {name: [run for run in runs if run.finished] for name, runs in comparison.strategies.items()}
    measured = {
        (metric, stream) for runs in finished.values() for run in runs for metric, stream, at in run.values if not at
    }
    known, tables = comparison.quantities, []
    others = sorted({stream for _, stream in measured} - {*SPLITS, *OF_NETWORK})
    for stream in (*SPLITS, *others):
        metrics = sorted(metric for metric, of_stream in measured if of_stream == stream and metric not in _SEPARATION)
        if metrics:
            found = {
                name: [mean_where_defined(runs, metric, stream) for metric in metrics]
                for name, runs in finished.items()
            }
            corrected, family = simultaneous({name: [mean for mean, _, _ in row] for name, row in found.items()})
            rows = {
                name: [
                    _cell(mean, _where_defined(metric, defined, experiences))
                    for mean, metric, (_, defined, experiences) in zip(corrected[name], metrics, row, strict=True)
                ]
                for name, row in found.items()
            }
            caption = (
                f"Other measures on {SPLITS.get(stream, stream)}: means over the experiences that have a value, and "
                f"over seeds. {_intervals(family)}"
            )
            heads = [in_words(metric, known.get(metric)) for metric in metrics]
            tables.append(_table(caption, heads, rows, look, [about(known.get(metric)) for metric in metrics]))
    for mechanism, of_mechanism in comparison.mechanisms.items():
        heads = [diagnostic_in_words(metric, known.get(metric), layers) for metric, layers in of_mechanism.items()]
        rows, family = _last_values(finished, list(of_mechanism.items()))
        caption = f"{mechanism}, at the last experience measured: means over seeds. {_intervals(family)}"
        tables.append(_table(caption, heads, rows, look, [about(known.get(metric)) for metric in of_mechanism]))
    for metric, layers in comparison.layers.items():
        named = [layer for layer in layers if layer]
        if named:
            rows, family = _last_values(finished, [(metric, (at,)) for at in named])
            words = in_words(metric, known.get(metric))
            caption = f"{words[:1].upper()}{words[1:]} by layer, at the last experience measured: means over seeds. "
            tables.append(_table(caption + _intervals(family), named, rows, look))
    return f"<details><summary>Other measures</summary>{''.join(tables)}</details>" if tables else ""


def _where_defined(metric: str, defined: int, experiences: int) -> str:
    if defined == experiences:
        return ""
    return f"{'reached in ' if metric == 'steps_to_threshold' else 'in '}{defined} of {experiences} experiences"


def _last_values(
    finished: Mapping[str, Sequence[Run]], columns: Sequence[tuple[str, tuple[str, ...]]]
) -> tuple[dict[str, list[str]], int]:
    """The cells of a table of diagnostics, and how many intervals are in it."""
    values: dict[str, list[Estimate]] = {name: [] for name in finished}
    for metric, layers in columns:
        for name, runs in finished.items():
            series = [run.diagnostic(metric, layers) for run in runs]
            values[name].append(estimate(of_run[max(of_run)] for of_run in series if of_run))
    corrected, family = simultaneous(values)
    return {name: [_cell(value) for value in row] for name, row in corrected.items()}, family


def _pictures(comparison: Comparison) -> str:
    """For each strategy, what the run with its first seed drew at the first and at the last experience."""
    parts = []
    for name, (run, *_) in comparison.strategies.items():
        for of_name in run.pictures.values():
            for k in sorted({min(of_name), max(of_name)}):
                caption = f"{name}, seed {run.seed}, after training on experience {k}"
                alt = (
                    f"{caption}: tangent kernel as a heat map of cosines with samples ordered by target, its "
                    "eigenvalues, and the loss along the negative gradient."
                )
                data = base64.b64encode(_reduced(of_name[k])).decode()
                parts.append(
                    f'<figure><div class="scroll"><img class="raster" alt="{escape(alt)}" '
                    f'src="data:image/png;base64,{data}"></div><figcaption>{_prose(caption)}</figcaption></figure>'
                )
    if not parts:
        return ""
    return f"<details><summary>Kernels and loss landscapes, looked at</summary>{''.join(parts)}</details>"


def _reduced(path: Path) -> bytes:
    """A picture with fewer colours: the page holds many."""
    content = read_bytes(path)
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
            few = picture.convert("RGB").quantize(_PICTURE_COLOURS, dither=Image.Dither.NONE)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is not a picture: remove it, or make it anew") from error
    buffer = io.BytesIO()
    few.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _runs_and_spec(comparison: Comparison, look: Mapping[str, Look]) -> str:
    spec = "".join(
        f'<tr><th scope="row">{escape(field)}</th><td>{escape(str(value))}</td></tr>'
        for field, value in comparison.spec.items()
    )
    runs = "".join(
        f"<tr><td>{_named(run.strategy, look)}</td><td>{escape(str(run.seed))}</td>"
        f"<td>{escape(_state(run))}</td><td><code>{escape(str(run.path))}</code></td></tr>"
        for run in comparison.runs
    )
    return (
        "<details><summary>Runs and their spec</summary>"
        '<div class="scroll"><table class="texts"><caption>Spec, the same for all runs of this comparison</caption>'
        f"<tbody>{spec}</tbody></table></div>"
        '<div class="scroll"><table class="texts"><caption>Runs</caption><thead><tr><th scope="col">strategy</th>'
        '<th scope="col">seed</th><th scope="col">state</th><th scope="col">directory</th></tr></thead>'
        f"<tbody>{runs}</tbody></table></div></details>"
    )


def _alarms(runs: Sequence[Run]) -> str:
    """Name the runs that diverged or did not finish."""
    left_out = [run for run in runs if not run.finished]
    if not left_out:
        return ""
    items = "".join(
        f"<li>{escape(run.strategy)}, seed {escape(str(run.seed))}: {escape(_state(run))} "
        f"<code>{escape(str(run.path))}</code></li>"
        for run in left_out
    )
    return (
        f'<div class="warn" role="note">{len(left_out)} of {len(runs)} runs did not reach the end. They are drawn as '
        f"far as they got and enter no mean.<ul>{items}</ul></div>"
    )


def _state(run: Run) -> str:
    return f"{run.state_in_words}: {run.message}" if run.message else run.state_in_words


def _table(
    caption: str,
    heads: Sequence[str],
    rows: Mapping[str, Sequence[str]],
    look: Mapping[str, Look],
    hints: Sequence[str] = (),
) -> str:
    """A table with a row a strategy; hints say more of a column to who points at its head."""
    titles = [f' title="{escape(hint)}"' if hint else "" for hint in hints] or [""] * len(heads)
    head = '<th scope="col">strategy</th>' + "".join(
        f'<th scope="col"{title}>{escape(text)}</th>' for text, title in zip(heads, titles, strict=True)
    )
    body = "".join(
        f'<tr><th scope="row">{_named(name, look)}</th>{"".join(cells)}</tr>' for name, cells in rows.items()
    )
    return (
        f'<div class="scroll"><table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(value: Estimate, remark: str = "") -> str:
    """A mean to three decimals above its interval, and above a remark."""
    below = "".join(f"<small>{_prose(text)}</small>" for text in (interval(value, digits=3), remark) if text)
    return f"<td>{_prose(number(value.mean, digits=3)) if value.n else '–'}{below}</td>"


def _mean_cell(value: Estimate) -> str:
    return f"<td>{_prose(number(value.mean, digits=3)) if value.n else '–'}</td>"


def _missing(value: Estimate, finished: int) -> str:
    return f"{value.n} of {finished} seeds" if 0 < value.n < finished else ""


def _named(strategy: str, look: Mapping[str, Look]) -> str:
    """A strategy's name behind a patch of its colour in the figures."""
    kind = "name" if len(strategy) <= 24 else "long name"
    chip = f'<span class="chip" style="background:var(--{look[strategy].colour[1:]})"></span>'
    return f'<span class="{kind}">{chip}{escape(strategy)}</span>'


def _words(metric: str) -> str:
    return metric.replace("_", " ")


def _prose(text: str) -> str:
    """Escape a text, with minus signs where numbers are negative."""
    return re.sub(r"(^|[\s\[(])-(?=\d)", r"\1−", escape(text))
