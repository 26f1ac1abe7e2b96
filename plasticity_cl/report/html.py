"""The report: one HTML file that opens from disk, and the figures beside it as PNG."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from matplotlib.figure import Figure

from plasticity_cl.errors import UserError
from plasticity_cl.report.figures import Look, diagnostics_figure, learning_figure, looks, png, separation_figure
from plasticity_cl.report.page import DEFINITIONS, HEAD
from plasticity_cl.report.read import Comparison, Run, comparisons, read_bytes, read_runs
from plasticity_cl.report.statistics import (
    Estimate,
    Summary,
    estimate,
    mean_where_defined,
    summarise,
)
from plasticity_cl.report.wording import (
    SPLITS,
    against_baseline,
    comparison_verdict,
    diagnostic_in_words,
    interval,
    number,
    verdict,
)

Summaries = Mapping[str, Mapping[str, Summary]]  # by stream, by strategy

_MEANING = {"train": "trainability", "test": "generalisation"}
_SEPARATION = {"learned", "final", "fresh", "plasticity_loss", "forgetting", "total"}


def write_report(directory: Path) -> Path:
    """Write ``report.html`` and ``figures/*.png`` into a result folder, from the run directories below it.

    The report needs no other file: figures are embedded. The same runs give the same bytes. Every file is replaced as a
    whole, so that a reader never sees half of one.

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
    sections, links = [], []
    for i, (comparison, file_name) in enumerate(zip(compared, file_names, strict=True)):
        summaries = {
            stream: {name: summarise(of_strategy, stream) for name, of_strategy in comparison.strategies.items()}
            for stream in comparison.streams
        }
        figures = {}
        for kind, (figure, caption, alt) in _figures(comparison, summaries, look).items():
            content = png(figure)
            (kind_in_file,) = _file_names([kind])
            _write(directory / "figures" / f"{file_name}-{kind_in_file}.png", content)
            figures[kind] = _embedded(content, figure.get_figwidth(), caption, alt)
        sections.append(_section(comparison, summaries, look, figures, f"comparison-{i}"))
        links.append(f'<li><a href="#comparison-{i}">{escape(comparison.title)}</a></li>')
    contents = f'<nav><ul>{"".join(links)}<li><a href="#definitions">What the words mean</a></li></ul></nav>'
    page = [HEAD, contents, _alarms(runs), *sections, DEFINITIONS, "</body>", "</html>", ""]
    _write(directory / "report.html", "\n".join(page).encode())
    return directory / "report.html"


def _write(path: Path, content: bytes) -> None:
    """Replace a file as a whole: write beside it, then rename."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(exist_ok=True)
        try:
            beside.write_bytes(content)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
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


def _figures(
    comparison: Comparison, summaries: Summaries, look: Mapping[str, Look]
) -> dict[str, tuple[Figure, str, str]]:
    """Draw what there is to draw: by kind, the figure, its caption, and its content in words."""
    figures = {}
    if separation := separation_figure(comparison, look):
        figures["separation"] = (
            separation,
            "Where the score goes: to the right what was not learned, upwards what was learned and then lost. Grey "
            "lines join equal totals; bars are 95% bootstrap intervals over seeds.",
            f"Scatter of plasticity loss against forgetting. {_numbers(summaries, 'plasticity_loss', 'forgetting')}",
        )
    for stream in comparison.streams:
        if learning := learning_figure(comparison, stream, look):
            figures[f"learning-{stream}"] = (
                learning,
                f"Score on {SPLITS[stream]} right after training on each experience (solid) and of a fresh network "
                "trained on it alone (dashed); the area between is the net plasticity loss. Bands are 95% bootstrap "
                "intervals over seeds.",
                "Learning score and fresh reference over experiences, one panel a strategy. In the last experiences: "
                + _numbers({stream: summaries[stream]}, "learned", "fresh"),
            )
    for mechanism, measured in comparison.mechanisms.items():
        if diagnostics := diagnostics_figure(comparison, look, mechanism):
            words = [diagnostic_in_words(metric, layers) for metric, layers in measured.items()]
            figures[mechanism] = (
                diagnostics,
                f"{mechanism}, at the end of experiences: means over seeds with 95% bootstrap intervals.",
                f"Diagnostics over experiences, one panel each: {', '.join(words)}. A table below has the last values.",
            )
    return figures


def _numbers(summaries: Summaries, *parts: str) -> str:
    """Say what a figure shows to those who cannot see it."""
    sentences = []
    for stream, of_stream in summaries.items():
        strategies = "; ".join(
            f"{name}: " + ", ".join(f"{_words(part)} {number(getattr(summary, part).mean)}" for part in parts)
            for name, summary in of_stream.items()
        )
        sentences.append(f"On {SPLITS[stream]}, {strategies}.")
    return " ".join(sentences)


def _embedded(content: bytes, inches: float, caption: str, alt: str) -> str:
    data = base64.b64encode(content).decode()
    width = 62 / 9 * inches  # rem: a figure of nine inches fills the page; on a narrow one wide figures scroll
    return (
        f'<figure><div class="scroll"><img style="max-width:{width:.1f}rem;min-width:{min(width, 34):.1f}rem" '
        f'alt="{escape(alt)}" src="data:image/png;base64,{data}"></div>'
        f"<figcaption>{_prose(caption)}</figcaption></figure>"
    )


def _section(
    comparison: Comparison, summaries: Summaries, look: Mapping[str, Look], figures: Mapping[str, str], anchor: str
) -> str:
    verdicts = [
        f'<p class="lead"><strong>On {SPLITS[stream]}</strong> ({_MEANING[stream]}). '
        f"{_prose(comparison_verdict(of_stream))}</p>"
        for stream, of_stream in summaries.items()
    ]
    parts = [
        f'<section><h2 id="{anchor}">{escape(comparison.title)}</h2>',
        *(verdicts or ['<p class="lead">Nothing was measured yet.</p>']),
        figures.get("separation", ""),
        "<h3>Strategy by strategy</h3>",
        _strategy_verdicts(comparison, summaries, look),
    ]
    for stream, of_stream in summaries.items():
        parts += [
            f"<h3>{SPLITS[stream].capitalize()}: {_MEANING[stream]}</h3>",
            _separation_table(comparison, stream, of_stream, look),
            figures.get(f"learning-{stream}", ""),
        ]
    for mechanism in comparison.mechanisms:
        if mechanism in figures:
            parts += [f"<h3>{escape(mechanism)}</h3>", figures[mechanism]]
    parts += [_pictures(comparison), _other_measures(comparison, look), _runs_and_spec(comparison, look), "</section>"]
    return "\n".join(part for part in parts if part)


def _strategy_verdicts(comparison: Comparison, summaries: Summaries, look: Mapping[str, Look]) -> str:
    items = []
    for name in comparison.strategies:
        texts = "".join(
            f"<p><strong>{SPLITS[stream].capitalize()}.</strong> "
            f"{_prose(f'{verdict(of_stream[name])} {against_baseline(comparison, name, stream)}'.strip())}</p>"
            for stream, of_stream in summaries.items()
        )
        items.append(f"<dt>{_named(name, look)}</dt><dd>{texts or '<p>Nothing was measured yet.</p>'}</dd>")
    return f'<dl class="verdicts">{"".join(items)}</dl>'


def _separation_table(
    comparison: Comparison, stream: str, summaries: Mapping[str, Summary], look: Mapping[str, Look]
) -> str:
    last = max(summary.last for summary in summaries.values())
    heads = [f"learned, last {last}", f"fresh, last {last}", "plasticity loss", "forgetting", "total", "seeds"]
    rows = {}
    for name, summary in summaries.items():
        parts = (summary.learned, summary.fresh, summary.plasticity_loss, summary.forgetting, summary.total)
        runs = summary.finished + len(summary.left_out)
        seeds = f"{summary.finished} of {runs}" if summary.left_out else str(runs)
        rows[name] = [*(_cell(part, _missing(part, summary.finished)) for part in parts), f"<td>{seeds}</td>"]
    score = comparison.score[:1].upper() + comparison.score[1:]
    caption = (
        f"{score} on {SPLITS[stream]}: means over experiences and seeds, with 95% bootstrap intervals over seeds. "
        "Plasticity loss is net: transfer is in it."
    )
    return _table(caption, heads, rows, look)


def _other_measures(comparison: Comparison, look: Mapping[str, Look]) -> str:
    """What else was measured: means over experiences, and the diagnostics at the end."""
    finished = {name: [run for run in runs if run.finished] for name, runs in comparison.strategies.items()}
    measured = {(metric, stream) for runs in finished.values() for run in runs for metric, stream, _ in run.values}
    tables = []
    for stream in (*SPLITS, ""):
        metrics = sorted(metric for metric, of_stream in measured if of_stream == stream and metric not in _SEPARATION)
        rows = {}
        for name, runs in finished.items():
            found = [mean_where_defined(runs, metric, stream) for metric in metrics]
            rows[name] = [
                _cell(mean, f"in {share:.0%} of experiences" if 0 < share < 1 else "") for mean, share in found
            ]
        if metrics:
            where = f" on {SPLITS[stream]}" if stream else ""
            caption = f"Other measures{where}: means over the experiences that have a value, and over seeds."
            tables.append(_table(caption, [_words(metric) for metric in metrics], rows, look))
    for mechanism, of_mechanism in comparison.mechanisms.items():
        heads = [diagnostic_in_words(metric, layers) for metric, layers in of_mechanism.items()]
        caption = f"{mechanism}, at the last experience measured: means over seeds."
        tables.append(_table(caption, heads, _last_values(finished, list(of_mechanism.items())), look))
    for metric, layers in comparison.layers.items():
        named = [layer for layer in layers if layer]
        if named:
            caption = f"{_words(metric).capitalize()} by layer, at the last experience measured: means over seeds."
            tables.append(_table(caption, named, _last_values(finished, [(metric, (at,)) for at in named]), look))
    return f"<details><summary>Other measures</summary>{''.join(tables)}</details>" if tables else ""


def _last_values(
    finished: Mapping[str, Sequence[Run]], columns: Sequence[tuple[str, tuple[str, ...]]]
) -> dict[str, list[str]]:
    rows: dict[str, list[str]] = {name: [] for name in finished}
    for metric, layers in columns:
        for name, runs in finished.items():
            series = [run.diagnostic(metric, layers) for run in runs]
            rows[name].append(_cell(estimate(of_run[max(of_run)] for of_run in series if of_run)))
    return rows


def _pictures(comparison: Comparison) -> str:
    """For each strategy, what the run with its first seed drew at the first and at the last experience."""
    parts = []
    for name, (run, *_) in comparison.strategies.items():
        for of_name in run.pictures.values():
            for k in sorted({min(of_name), max(of_name)}):
                caption = f"{name}, seed {run.seed}, after training on experience {k}"
                parts.append(
                    _embedded(
                        read_bytes(of_name[k]),
                        9,
                        caption,
                        f"{caption}: tangent kernel as a heat map of cosines with samples ordered by target, its "
                        "eigenvalues, and the loss along the negative gradient.",
                    )
                )
    if not parts:
        return ""
    return f"<details><summary>Kernels and loss landscapes, looked at</summary>{''.join(parts)}</details>"


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


def _table(caption: str, heads: Sequence[str], rows: Mapping[str, Sequence[str]], look: Mapping[str, Look]) -> str:
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in ("strategy", *heads))
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


def _missing(value: Estimate, finished: int) -> str:
    return f"{value.n} of {finished} seeds" if 0 < value.n < finished else ""


def _named(strategy: str, look: Mapping[str, Look]) -> str:
    """A strategy's name behind a patch of its colour in the figures."""
    return f'<span class="chip" style="background:{look[strategy].colour}"></span>{escape(strategy)}'


def _words(metric: str) -> str:
    return metric.replace("_", " ")


def _prose(text: str) -> str:
    """Escape a text, with minus signs where numbers are negative."""
    return re.sub(r"(^|[\s\[(])-(?=\d)", r"\1−", escape(text))
