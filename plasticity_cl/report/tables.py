"""The summary as plain text that fits a terminal of 80 columns."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence

from plasticity_cl.report.read import Comparison, Run, comparisons
from plasticity_cl.report.statistics import FEWEST, Estimate, Standing, Summary, simultaneous, standing
from plasticity_cl.report.verdicts import NOT_COUNTED, dominant, left_out_in_words
from plasticity_cl.report.wording import SPLITS, abbreviate, number, plain

WIDTH = 80
_LEGEND = (
    "All numbers are means over experiences, then over seeds. learned: the score right after training on an "
    "experience. common reference: the score of a fresh baseline network on it. handicap: how much less the "
    "strategy's own fresh networks reach; plasticity loss: how much less than those the trained network learns (net: "
    "transfer is in it); forgetting: how much of that is gone at the end. common reference - learned = handicap + "
    "plasticity loss; with forgetting that is the total. Negative is better.",
    f"+-: Student t intervals over seeds, from {FEWEST} seeds on, widened (Bonferroni) so that all of a table hold at "
    "once in 95% of cases. rank: by what was learned; strategies of "
    "different ranks are told apart by paired differences, seed by seed.",
)


def summary_table(runs: list[Run], stream: str = "train") -> str:
    """Write each comparison's separation as text, 80 columns wide, in plain ASCII.

    Strategies stand in the order of what they learned, those of one rank are not told apart, and those at chance level
    have none. Long strategy names are abbreviated. Runs that diverged or did not finish are marked, named below their
    table, and enter no mean. A training table is followed by the test table where the two tell a different story: where
    on test data some strategy loses mostly in a way in which it does not on training data.

    Args:
        runs: What :func:`plasticity_cl.report.read_runs` returns.
        stream: ``"train"`` (trainability) or ``"test"`` (generalisation).

    Returns:
        The tables, without a line feed at the end.
    """
    blocks = []
    for comparison in comparisons(runs):
        there = standing(comparison, stream)
        blocks.append(_table(comparison, there))
        if stream == "train" and "test" in comparison.streams:
            on_test = standing(comparison, "test")
            if _differs(on_test.summaries, there.summaries):
                blocks.append(_table(comparison, on_test))
    return "\n\n".join([*blocks, *(textwrap.fill(paragraph, WIDTH) for paragraph in _LEGEND)])


def _differs(test: Mapping[str, Summary], train: Mapping[str, Summary]) -> bool:
    return any(dominant(summary) not in ("", dominant(train[name])) for name, summary in test.items())


def _table(comparison: Comparison, there: Standing) -> str:
    summaries = there.summaries
    counts = comparison.forgetting_counts
    handicap_known = any(summary.handicap.n for summary in summaries.values())
    columns = {
        "learned": [summary.learned for summary in summaries.values()],
        "handicap": [summary.handicap for summary in summaries.values()],
        "plasticity loss": [summary.plasticity_loss for summary in summaries.values()],
        "forgetting" if counts else "(forgetting)": [summary.forgetting for summary in summaries.values()],
    }
    if not handicap_known:
        del columns["handicap"]
    estimates, family = simultaneous(columns)
    texts = {head: ([number(e.mean) for e in of], [_margin(e) for e in of]) for head, of in estimates.items()}
    if counts:
        totals = [number(s.total.mean) if s.handicap.n or not handicap_known else "-" for s in summaries.values()]
        texts["total"] = (totals, [""] * len(totals))
    texts["seeds"] = ([_seeds(summary) for summary in summaries.values()], [""] * len(summaries))
    ranks = [_rank(name, there) for name in summaries]

    heads = {head: head.split(" ") if len(head) > 12 else ["", head] for head in texts}
    widths = [max(map(len, [*heads[head], *above, *below])) + 2 for head, (above, below) in texts.items()]
    room = WIDTH - sum(widths) - 5
    names = abbreviate(summaries, max(min(room, max(len(name) for name in summaries)), 8))
    first = max(len("strategy"), *map(len, names.values()))

    def line(rank: str, name: str, cells: Sequence[str]) -> str:
        numbers = "".join(text.rjust(width) for text, width in zip(cells, widths, strict=True))
        return f"{rank:>4} {name.ljust(first)}{numbers}".rstrip()

    title = f"{comparison.title}: {comparison.score} on {SPLITS[there.stream]}"
    lines = textwrap.wrap(plain(title), WIDTH)
    lines += textwrap.wrap(_reference(comparison, summaries), WIDTH)
    lines.append(line("", "", [head[0] for head in heads.values()]))
    lines.append(line("rank", "strategy", [head[1] for head in heads.values()]))
    for i, name in enumerate(summaries):
        lines.append(line(ranks[i], names[name], [above[i] for above, _ in texts.values()]))
        if any(below[i] for _, below in texts.values()):
            lines.append(line("", "", [below[i] for _, below in texts.values()]))
    if family:
        lines.append(f"     +- of {family} intervals that hold together")
    for name in there.at_chance:
        lines += _note(f"{names[name]}: at chance level ({number(summaries[name].chance.mean)}), not ranked.")
    for name, summary in summaries.items():
        if summary.left_out:
            lines += _note(f"* {names[name]}: {left_out_in_words(summary.left_out)}. Not in the means.")
    if not counts:
        lines += _note(NOT_COUNTED)
    return "\n".join(lines)


def _reference(comparison: Comparison, summaries: Mapping[str, Summary]) -> str:
    known = [summary.baseline.mean for summary in summaries.values() if summary.baseline.n]
    if not known:
        return ""
    low, high = number(min(known)), number(max(known))
    reached = low if low == high else f"{low} to {high}, as seeds finished"
    return f"common reference: {reached}, {comparison.reference}"


def _rank(name: str, there: Standing) -> str:
    if len(there.ranking.ranks) < 2 or name not in there.ranking.ranks:
        return "-"
    return str(there.ranking.ranks[name])


def _margin(estimate: Estimate) -> str:
    return "" if math.isnan(estimate.low) else f"+-{number(estimate.margin)}"


def _seeds(summary: Summary) -> str:
    return (
        f"{summary.finished}/{summary.finished + len(summary.left_out)}*" if summary.left_out else str(summary.finished)
    )


def _note(text: str) -> list[str]:
    return textwrap.wrap(plain(text), WIDTH, subsequent_indent="  ")
