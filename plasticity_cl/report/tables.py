"""The summary as plain text that fits a terminal of 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from plasticity_cl.report.read import Comparison, Run, comparisons
from plasticity_cl.report.statistics import Summary, summarise
from plasticity_cl.report.wording import SPLITS, abbreviate, dominant, number, plain, with_interval

WIDTH = 80
_HEADINGS = ("score", "fresh", "plasticity loss", "forgetting", "total", "seeds")
_LEGEND = (
    "score: right after training on an experience, fresh: of a fresh network trained on it alone, both in the last "
    "experiences; the rest: means over all experiences [95% bootstrap interval over seeds]. total = plasticity loss + "
    "forgetting. Plasticity loss is net: transfer is in it."
)


def summary_table(runs: list[Run], stream: str = "train") -> str:
    """Write each comparison's separation as text, 80 columns wide, in plain ASCII.

    Long strategy names are abbreviated. Runs that diverged or did not finish are marked, named below their table, and
    enter no mean. A training table is followed by the test table where the two tell a different story: where on test
    data some strategy loses mostly in a way in which it does not on training data.

    Args:
        runs: What :func:`plasticity_cl.report.read_runs` returns.
        stream: ``"train"`` (trainability) or ``"test"`` (generalisation).

    Returns:
        The tables, without a line feed at the end.
    """
    blocks = []
    for comparison in comparisons(runs):
        blocks.append(_table(comparison, stream))
        if stream == "train" and _test_differs(comparison):
            blocks.append(_table(comparison, "test"))
    return "\n\n".join([*blocks, textwrap.fill(_LEGEND, WIDTH)])


def _test_differs(comparison: Comparison) -> bool:
    if "test" not in comparison.streams:
        return False
    return any(
        dominant(summarise(runs, "test")) not in ("", dominant(summarise(runs, "train")))
        for runs in comparison.strategies.values()
    )


def _table(comparison: Comparison, stream: str) -> str:
    summaries = {name: summarise(runs, stream) for name, runs in comparison.strategies.items()}
    cells = {name: _cells(summary) for name, summary in summaries.items()}
    widths = [max(len(text) for text in column) for column in zip(_HEADINGS, *cells.values(), strict=True)]
    gaps = (2,) * len(widths)
    if max(len(plain(name)) for name in cells) > WIDTH - sum(widths) - sum(gaps):
        gaps = (1, 1, 2, 2, 1, 1)
    names = abbreviate(cells, max(WIDTH - sum(widths) - sum(gaps), 6))
    first = max(len("strategy"), *(len(name) for name in names.values()))
    columns = [gap + width for gap, width in zip(gaps, widths, strict=True)]

    def line(name: str, texts: Sequence[str]) -> str:
        return name.ljust(first) + "".join(text.rjust(width) for text, width in zip(texts, columns, strict=True))

    title = f"{comparison.title}: {comparison.score} on {SPLITS[stream]}"
    last = max(summary.last for summary in summaries.values())
    above = " " * first + f"  last {last}".center(sum(columns[:2]))
    above += "  mean over all experiences".center(sum(columns[2:4]))
    lines = [*textwrap.wrap(plain(title), WIDTH), above, line("strategy", _HEADINGS)]
    lines += [line(names[name], texts) for name, texts in cells.items()]
    for name, summary in summaries.items():
        lines += _footnote(names[name], summary.left_out)
    return "\n".join(text.rstrip() for text in lines)


def _cells(summary: Summary) -> list[str]:
    seeds = f"{summary.finished}/{summary.finished + len(summary.left_out)}*" if summary.left_out else summary.finished
    return [
        number(summary.learned.mean),
        number(summary.fresh.mean),
        with_interval(summary.plasticity_loss, comma=","),
        with_interval(summary.forgetting, comma=","),
        number(summary.total.mean),
        str(seeds),
    ]


def _footnote(name: str, left_out: Sequence[Run]) -> list[str]:
    if not left_out:
        return []
    seeds: dict[str, list[str]] = {}
    for run in left_out:
        seeds.setdefault(run.state_in_words + (f" ({run.message})" if run.message else ""), []).append(str(run.seed))
    states = "; ".join(f"seed{'s' * (len(of) > 1)} {', '.join(of)} {state}" for state, of in seeds.items())
    return textwrap.wrap(plain(f"* {name}: {states}. Not in the means."), WIDTH, subsequent_indent="  ")
