"""Numbers, names and verdicts in words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from plasticity_cl.report.read import BASELINE, Comparison
from plasticity_cl.report.statistics import Estimate, Summary, paired_difference

# Below this a difference of scores is called nothing: a hundredth of accuracy, or of R2.
NEGLIGIBLE = 0.01

SPLITS = {"train": "training data", "test": "test data", "ood": "data out of distribution"}


def number(value: float, digits: int = 2) -> str:
    """Write a number in few characters, for two digits at most five.

    Args:
        value: The number. From 1e99 on it is called infinite.
        digits: Decimals of numbers below ten; larger numbers get fewer, and from a thousand on k, M, or 1e9.

    Returns:
        The number, or ``-`` for NaN.
    """
    if math.isnan(value):
        return "-"
    if abs(value) >= 1e99:
        return "inf" if value > 0 else "-inf"
    for scale, unit, most in ((1.0, "", digits), (1e3, "k", 1), (1e6, "M", 1)):
        for decimals in range(most, -1, -1):
            text = f"{value / scale:.{decimals}f}"
            if abs(float(text)) < (10 ** (1 + most - decimals) if decimals else 1000):
                return (text.lstrip("-") if float(text) == 0 else text) + unit
    mantissa, exponent = f"{value:.0e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def interval(estimate: Estimate, digits: int = 2, comma: str = ", ") -> str:
    """Write an estimate's interval, ``[0.51, 0.55]``; nothing where one seed gives none."""
    if math.isnan(estimate.low):
        return ""
    return f"[{number(estimate.low, digits)}{comma}{number(estimate.high, digits)}]"


def with_interval(estimate: Estimate, digits: int = 2, comma: str = ", ") -> str:
    """Write an estimate as ``0.53 [0.51, 0.55]``."""
    return f"{number(estimate.mean, digits)} {interval(estimate, digits, comma)}".rstrip()


def diagnostic_in_words(metric: str, layers: Sequence[str]) -> str:
    """Name a diagnostic and the layers that it is taken over."""
    words = metric.replace("_", " ")
    if len(layers) > 1:
        return f"{words} (mean over layers)"
    return f"{words} ({layers[0]})" if layers[0] else words


def plain(text: str) -> str:
    """Replace whatever is not a printable ASCII character, so that a character is a column and a line stays a line."""
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in text)


def abbreviate(names: Iterable[str], width: int) -> dict[str, str]:
    """Shorten strategy names to a width, and keep them apart.

    The longest words are cut first and values stay whole: ``layernorm+l2=0.001`` becomes ``layern.+l2=0.001``. Names
    that are still too long lose their end; names that became alike are numbered.

    Args:
        names: The names.
        width: The largest number of characters, at least 6.

    Returns:
        The short form of each name, in printable ASCII.
    """
    short: dict[str, str] = {}
    for name in names:
        candidate = _shorten(plain(name), width)
        tag = 2
        while candidate in short.values():
            candidate = f"{_shorten(plain(name), width)[: width - len(f'~{tag}')]}~{tag}"
            tag += 1
        short[name] = candidate
    return short


def _shorten(name: str, width: int) -> str:
    parts = [part.partition("=") for part in name.split("+")]
    lengths = [len(word) for word, _, _ in parts]

    def written() -> str:
        words = [w if n == len(w) else f"{w[:n]}." for (w, _, _), n in zip(parts, lengths, strict=True)]
        return "+".join(word + sign + value for word, (_, sign, value) in zip(words, parts, strict=True))

    while len(written()) > width and max(lengths) > 3:
        lengths[lengths.index(max(lengths))] -= 1
    return written() if len(written()) <= width else f"{written()[: width - 2]}.."


def dominant(summary: Summary) -> str:
    """Name the larger part of what is lost: ``"plasticity loss"``, ``"forgetting"``, or nothing if neither counts."""
    plasticity_loss, forgetting = summary.plasticity_loss.mean, summary.forgetting.mean
    if not max(plasticity_loss, forgetting) >= NEGLIGIBLE:
        return ""
    return "plasticity loss" if plasticity_loss > forgetting else "forgetting"


def verdict(summary: Summary) -> str:
    """Say what a strategy loses against fresh networks, and in which of the two ways.

    Args:
        summary: The strategy on one stream.

    Returns:
        A few sentences.
    """
    if summary.finished == 0:
        return "No run finished, so there is no verdict."
    if math.isnan(summary.total.mean):
        if math.isnan(summary.forgetting.mean):
            return "The separation was not measured."
        return f"There is no fresh reference, so only forgetting is known: {with_interval(summary.forgetting)}."
    sentences = [_separation_in_words(summary)]
    if summary.finished == 1:
        sentences.append("This is one seed, so there is no interval.")
    elif dominant(summary) and summary.excess.low <= 0 <= summary.excess.high:
        sentences.append(f"These {summary.excess.n} seeds do not settle which of the two is larger.")
    span = "the last experience" if summary.last == 1 else f"the last {summary.last} experiences"
    sentences.append(
        f"In {span} it learns to {number(summary.learned.mean)}, fresh networks to {number(summary.fresh.mean)}."
    )
    return " ".join(sentences)


def _separation_in_words(summary: Summary) -> str:
    plasticity_loss, forgetting, total = (
        estimate.mean for estimate in (summary.plasticity_loss, summary.forgetting, summary.total)
    )
    loses, gains = plasticity_loss >= NEGLIGIBLE, plasticity_loss <= -NEGLIGIBLE
    forgets, improves = forgetting >= NEGLIGIBLE, forgetting <= -NEGLIGIBLE
    net = f"in all it ends {number(abs(total))} {'below' if total >= 0 else 'above'} fresh networks"
    better = f"It learns {number(-plasticity_loss)} better than a fresh network"
    if gains and improves:
        return f"{better}, and what it learned improves by another {number(-forgetting)} later on: nothing is lost."
    if gains and forgets:
        return (
            f"{better} (what it carries over helps more than lost ability to learn hurts) and forgets "
            f"{number(forgetting)}: {net}."
        )
    if gains:
        return f"{better} and keeps what it learned: nothing is lost."
    if loses and improves:
        return (
            f"It learns {number(plasticity_loss)} less than a fresh network, but what it learned improves by "
            f"{number(-forgetting)} later on instead of being forgotten: {net}."
        )
    if improves:
        return f"It learns as well as a fresh network, and what it learned improves by {number(-forgetting)} later on."
    if not loses and not forgets:
        return (
            "Nothing to speak of is lost against a fresh network (plasticity loss "
            f"{number(plasticity_loss)}, forgetting {number(forgetting)})."
        )
    lost = f"Of the {number(total)} lost against a fresh network,"
    if not forgets:
        return f"{lost} all is lost ability to learn; nothing to speak of is forgotten."
    if not loses:
        return f"{lost} all is forgetting: it still learns as well as a fresh network."
    share = 100 * plasticity_loss / total
    return f"{lost} {_percent(share)} is lost ability to learn and {_percent(100 - share)} is forgetting."


def _percent(share: float) -> str:
    """Round so that two shares still add up to 100, and that a share that exists is not called 0%."""
    if share < 1:
        return "less than 1%"
    return "more than 99%" if share > 99 else f"{round(share)}%"


def against_baseline(comparison: Comparison, strategy: str, stream: str) -> str:
    """Say how a strategy differs from the baseline in both parts, seed by seed; nothing without a baseline.

    Args:
        comparison: The comparison.
        strategy: The strategy's name.
        stream: ``"train"`` or ``"test"``.

    Returns:
        A sentence, or the empty string.
    """
    if strategy == BASELINE or BASELINE not in comparison.strategies:
        return ""
    differences = [
        (words, paired_difference(comparison.strategies[strategy], comparison.strategies[BASELINE], metric, stream))
        for words, metric in (("plasticity loss", "plasticity_loss"), ("forgetting", "forgetting"))
    ]
    if any(math.isnan(difference.mean) for _, difference in differences):
        return ""
    return f"Against {BASELINE}: " + " and ".join(f"{words} {_change(d)}" for words, d in differences) + "."


def _change(difference: Estimate) -> str:
    if abs(difference.mean) < NEGLIGIBLE:
        return "about the same"
    if difference.mean > 0:
        return f"{number(difference.mean)} higher {interval(difference)}".rstrip()
    mirrored = Estimate(-difference.mean, -difference.high, -difference.low, difference.n)
    return f"{number(mirrored.mean)} lower {interval(mirrored)}".rstrip()


def comparison_verdict(summaries: Mapping[str, Summary]) -> str:
    """Say which strategy loses most and least, which learns best and which forgets least.

    Args:
        summaries: Each strategy's summary on one stream.

    Returns:
        One paragraph.
    """
    known = {name: summary for name, summary in summaries.items() if math.isfinite(summary.total.mean)}
    if not known:
        return "No run finished with a fresh reference, so there is nothing to compare."
    if len(known) == 1:
        ((name, summary),) = known.items()
        return f"Only {name} can be judged. {verdict(summary)}"
    sentences = [_totals_compared(known)]
    learning = {name: summary.plasticity_loss for name, summary in known.items()}
    keeping = {name: summary.forgetting for name, summary in known.items()}
    learner, keeper = (min(part, key=lambda name: part[name].mean) for part in (learning, keeping))
    if _alike(learning):
        sentences.append(f"All learn about equally well (plasticity loss {_range(learning)}).")
    else:
        sentences.append(
            f"{learner} keeps the ability to learn best: plasticity loss {with_interval(learning[learner])}."
        )
    if _alike(keeping):
        sentences.append(f"All forget about as much ({_range(keeping)}).")
        return " ".join(sentences)
    less = learning[keeper].mean - learning[learner].mean
    trade = (
        f", but learns {number(less)} less, and what was not learned cannot be forgotten" if less >= NEGLIGIBLE else ""
    )
    sentences.append(f"{keeper} forgets least, {with_interval(keeping[keeper])}{trade}.")
    return " ".join(sentences)


def _totals_compared(known: Mapping[str, Summary]) -> str:
    totals = {name: summary.total for name, summary in known.items()}
    most, least = (choose(totals, key=lambda name: totals[name].mean) for choose in (max, min))
    if totals[most].mean < NEGLIGIBLE:
        return f"No strategy ends measurably below fresh networks: {most} loses most, {with_interval(totals[most])}."
    if _alike(totals):
        return f"Against fresh networks all strategies lose about as much in all, {_range(totals)}."
    through = f", more of it through {dominant(known[most])}" if dominant(known[most]) else ""
    return (
        f"Against fresh networks {most} loses most, {with_interval(totals[most])}{through}; {least} loses least, "
        f"{with_interval(totals[least])}."
    )


def _alike(estimates: Mapping[str, Estimate]) -> bool:
    """Whether the means lie within a hundredth of score, or a twentieth of the largest, of each other."""
    means = [estimate.mean for estimate in estimates.values()]
    return max(means) - min(means) < max(0.05 * max(map(abs, means)), NEGLIGIBLE)


def _range(estimates: Mapping[str, Estimate]) -> str:
    means = [estimate.mean for estimate in estimates.values()]
    return f"{number(min(means))} to {number(max(means))}"
