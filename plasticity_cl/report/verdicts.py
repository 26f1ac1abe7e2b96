"""Verdicts in words: what each strategy loses and how, and which strategies the seeds tell apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from plasticity_cl.report.read import BASELINE, Comparison, Run
from plasticity_cl.report.statistics import FEWEST, NEGLIGIBLE, Ranking, Standing, Summary, rank
from plasticity_cl.report.wording import listed, number

NOT_COUNTED = "Old labels do not hold on this stream, so forgetting is shown and not counted as damage."


def dominant(summary: Summary) -> str:
    """Name the larger part of what is lost: ``"plasticity loss"``, ``"forgetting"``, or nothing if neither counts."""
    plasticity_loss = summary.plasticity_loss.mean
    forgetting = summary.forgetting.mean if summary.forgetting_counts else 0.0
    if not max(plasticity_loss, forgetting) >= NEGLIGIBLE:
        return ""
    return "plasticity loss" if plasticity_loss > forgetting else "forgetting"


def verdict(summary: Summary) -> str:
    """Say what a strategy learns against the common reference, and what it loses against its own fresh networks.

    Args:
        summary: The strategy on one stream.

    Returns:
        A few sentences.
    """
    if summary.finished == 0:
        return "No run finished, so there is no verdict."
    if summary.learned.n == 0:
        return "The separation was not measured."
    if math.isnan(summary.plasticity_loss.mean):
        if math.isnan(summary.forgetting.mean):
            return "The separation was not measured."
        return f"There is no fresh reference, so only forgetting is known: {number(summary.forgetting.mean)}."
    sentences = [_against_reference(summary)] if summary.handicap.n else []
    if summary.at_chance:
        sentences.append(f"That is not told from chance ({number(summary.chance.mean)}).")
    elif summary.handicapped and summary.plasticity_loss.mean < summary.handicap.mean:
        sentences.append(f"Its fresh networks reach only {number(summary.fresh.mean)}, so it has little to lose.")
    sentences.append(_separation_in_words(summary) if summary.forgetting_counts else _learning_in_words(summary))
    if summary.learned.n < FEWEST:
        sentences.append(f"{_seeds(summary.learned.n)}: too few for an interval, so this may be chance.")
    elif summary.forgetting_counts and dominant(summary) and summary.excess.low <= 0 <= summary.excess.high:
        sentences.append(f"These {summary.excess.n} seeds do not settle which of the two is larger.")
    span = "the last experience" if summary.last == 1 else f"the last {summary.last} experiences"
    sentences.append(
        f"In {span} it learns to {number(summary.learned_last.mean)}, its fresh networks to "
        f"{number(summary.fresh_last.mean)}."
    )
    return " ".join(sentences)


def _seeds(n: int) -> str:
    return "This is one seed" if n == 1 else f"These are {n} seeds"


def _against_reference(summary: Summary) -> str:
    parts = f"handicap {number(summary.handicap.mean)}, plasticity loss {number(summary.plasticity_loss.mean)}"
    return f"It learns to {number(summary.learned.mean)}, {_below(summary)} ({number(summary.baseline.mean)}): {parts}."


def _below(summary: Summary) -> str:
    """How far what was learned lies from the common reference."""
    shortfall = summary.baseline.mean - summary.learned.mean
    if abs(shortfall) < NEGLIGIBLE:
        return "as much as the common reference"
    return f"{number(abs(shortfall))} {'below' if shortfall > 0 else 'above'} the common reference"


def _learning_in_words(summary: Summary) -> str:
    """The verdict where forgetting is no damage."""
    plasticity_loss, forgetting = summary.plasticity_loss.mean, summary.forgetting.mean
    if plasticity_loss >= NEGLIGIBLE:
        learning = f"It learns {number(plasticity_loss)} less than its own fresh networks: lost ability to learn."
    elif plasticity_loss <= -NEGLIGIBLE:
        learning = f"It learns {number(-plasticity_loss)} better than its own fresh networks: nothing is lost."
    else:
        learning = "It learns as well as its own fresh networks."
    if not forgetting >= NEGLIGIBLE:
        return learning
    return f"{learning} Of old labels it forgets {number(forgetting)}, which does not count here."


def _separation_in_words(summary: Summary) -> str:
    plasticity_loss, forgetting = summary.plasticity_loss.mean, summary.forgetting.mean
    total = plasticity_loss + forgetting
    loses, gains = plasticity_loss >= NEGLIGIBLE, plasticity_loss <= -NEGLIGIBLE
    forgets, improves = forgetting >= NEGLIGIBLE, forgetting <= -NEGLIGIBLE
    net = f"it ends {number(abs(total))} {'below' if total >= 0 else 'above'} them"
    better = f"It learns {number(-plasticity_loss)} better than its own fresh networks"
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
            f"It learns {number(plasticity_loss)} less than its own fresh networks, but what it learned improves by "
            f"{number(-forgetting)} later on instead of being forgotten: {net}."
        )
    if improves:
        return (
            f"It learns as well as its own fresh networks, and what it learned improves by {number(-forgetting)} "
            "later on."
        )
    if not loses and not forgets:
        return (
            "Nothing to speak of is lost against its own fresh networks (plasticity loss "
            f"{number(plasticity_loss)}, forgetting {number(forgetting)})."
        )
    lost = f"Of the {number(total)} lost against its own fresh networks,"
    if not forgets:
        return f"{lost} all is lost ability to learn; nothing to speak of is forgotten."
    if not loses:
        return f"{lost} all is forgetting: it still learns as well as they do."
    share = 100 * plasticity_loss / total
    return f"{lost} {_percent(share)} is lost ability to learn and {_percent(100 - share)} is forgetting."


def _percent(share: float) -> str:
    """Round so that two shares still add up to 100, and that a share that exists is not called 0%."""
    if share < 1:
        return "less than 1%"
    return "more than 99%" if share > 99 else f"{round(share)}%"


def headline(comparison: Comparison, standing: Standing) -> str:
    """Say which strategy learns most, loses least and most, as far as the seeds tell, and what is not ranked and why.

    Args:
        comparison: The comparison.
        standing: Its standing on one stream.

    Returns:
        One paragraph.
    """
    known = {name: summary for name, summary in standing.summaries.items() if summary.learned.n}
    if not known:
        return "No run finished, so there is nothing to compare."
    sentences: list[str] = []
    if len(known) == 1:
        ((name, summary),) = known.items()
        sentences.append(f"Only {name} can be judged. {verdict(summary)}")
    else:
        sentences += _ranked(comparison, standing)
    if standing.at_chance:
        sentences.append(_at_chance(standing))
    if standing.too_few and len(known) > 1:
        every = len(standing.too_few) == len(known)
        those = "nothing is" if every else f"without them {listed(standing.too_few)} cannot be"
        sentences.append(f"Intervals need {FEWEST} finished seeds: {those} ranked.")
    if losses := [
        f"{len(summary.left_out)} of {summary.finished + len(summary.left_out)} runs of {name}"
        for name, summary in known.items()
        if summary.left_out
    ]:
        sentences.append(f"{listed(losses)} did not finish: the numbers are those of the others.")
    if not comparison.forgetting_counts:
        sentences.append(NOT_COUNTED)
    return " ".join(sentences)


def _at_chance(standing: Standing) -> str:
    found = [
        f"{name} ({number(standing.summaries[name].learned.mean)}, chance is "
        f"{number(standing.summaries[name].chance.mean)})"
        for name in standing.at_chance
    ]
    if len(found) == sum(summary.learned.n > 0 for summary in standing.summaries.values()) > 1:
        return f"No strategy is told from chance level, so nothing is ranked: {listed(found)}."
    theirs = "What they lose" if len(found) > 1 else "What it loses"
    return (
        f"Not told from chance level, and so not ranked: {listed(found)}. {theirs} says nothing: who has learned "
        "nothing has nothing to lose."
    )


def _ranked(comparison: Comparison, standing: Standing) -> list[str]:
    """What paired contrasts of the strategies settle: of what was learned, of plasticity loss, and of the rest."""
    summaries, ranking = standing.summaries, standing.ranking
    names = list(ranking.ranks)
    if not names:
        return []
    if len(names) == 1:
        (name,) = names
        where = f", {_below(summaries[name])}" if summaries[name].baseline.n else ""
        return [f"Only {name} can be ranked: it learns to {number(summaries[name].learned.mean)}{where}."]
    sentences = [_learned_most(ranking, summaries)]
    runs = {name: comparison.strategies[name] for name in names}
    if all(summaries[name].plasticity_loss.n for name in names):
        sentences += _least_lost(rank(runs, "plasticity_loss", standing.stream, False), ranking, summaries)
    if comparison.scenario == "target-shift":
        costs = [f"{name} {number(summaries[name].handicap.mean)}" for name in names if summaries[name].handicapped]
        sentences += (
            [f"Against the zero-mean twin the target means cost fresh networks: {listed(costs)}."] if costs else []
        )
    if comparison.forgetting_counts and all(summaries[name].forgetting.n for name in names):
        sentences += _least_forgotten(rank(runs, "forgetting", standing.stream, False), summaries)
        if all(summaries[name].handicap.n for name in names):
            sentences += _least_in_all(rank(runs, "total", standing.stream, False), summaries)
    return sentences


def _learned_most(ranking: Ranking, summaries: Mapping[str, Summary]) -> str:
    def score(name: str) -> str:
        return number(summaries[name].learned.mean)

    names, leaders = list(ranking.ranks), ranking.leaders
    if not ranking.better:
        scores = [summaries[name].learned.mean for name in names]
        return (
            f"The seeds do not tell apart how much the strategies learn ({number(min(scores))} to "
            f"{number(max(scores))}): no order is given."
        )
    if ranking.first:
        where = f", {_below(summaries[ranking.first])}" if summaries[ranking.first].baseline.n else ""
        found = f"{ranking.first} learns most: {score(ranking.first)}{where}."
    elif len(leaders) == 1:
        found = f"No strategy learns surely more than {leaders[0]} ({score(leaders[0])})."
    else:
        found = f"{listed([f'{name} ({score(name)})' for name in leaders])} learn most and are not told apart."
    return f"{found} {ranking.last} learns least: {score(ranking.last)}." if ranking.last else found


def _least_lost(by_loss: Ranking, by_learned: Ranking, summaries: Mapping[str, Summary]) -> list[str]:
    """Which strategy loses least and most plasticity; where little is lost because little is learned, that it is so."""
    sentences = []
    if least := by_loss.first:
        loss = summaries[least].plasticity_loss.mean
        sentences.append(f"{least} loses least plasticity ({number(loss)}){_little_to_lose(least, summaries)}.")
    elif by_loss.better:
        poor = [name for name in by_loss.leaders if _little_to_lose(name, summaries)]
        sentences += [
            f"{name} loses little plasticity ({number(summaries[name].plasticity_loss.mean)})"
            f"{_little_to_lose(name, summaries)}."
            for name in poor
        ]
    if most := by_loss.last:
        sentences.append(f"{most} loses most plasticity ({number(summaries[most].plasticity_loss.mean)}).")
    return sentences


def _little_to_lose(name: str, summaries: Mapping[str, Summary]) -> str:
    """Where fresh networks of a strategy learn surely less than the reference: that they do."""
    summary = summaries[name]
    if summary.handicap.n:
        reference, words, handicapped = summary.baseline.mean, "the common reference reaches", summary.handicapped
    elif BASELINE in summaries:
        reference, words = summaries[BASELINE].fresh.mean, f"{BASELINE}'s reach"
        handicapped = summary.fresh.high < summaries[BASELINE].fresh.low
    else:
        return ""
    if not handicapped or reference - summary.fresh.mean < NEGLIGIBLE:
        return ""
    return f", but its fresh networks reach {number(summary.fresh.mean)} where {words} {number(reference)}: it has " \
        "little to lose"  # fmt: skip


def _least_forgotten(by_forgetting: Ranking, summaries: Mapping[str, Summary]) -> list[str]:
    sentences = []
    if least := by_forgetting.first:
        most_learned = max(by_forgetting.ranks, key=lambda name: summaries[name].learned.mean)
        less = summaries[most_learned].learned.mean - summaries[least].learned.mean
        trade = (
            f", but learns {number(less)} less than {most_learned}, and what was not learned cannot be forgotten"
            if less >= NEGLIGIBLE
            else ""
        )
        sentences.append(f"{least} forgets least ({number(summaries[least].forgetting.mean)}){trade}.")
    if most := by_forgetting.last:
        sentences.append(f"{most} forgets most ({number(summaries[most].forgetting.mean)}).")
    return sentences


def _least_in_all(by_total: Ranking, summaries: Mapping[str, Summary]) -> list[str]:
    parts = []
    if least := by_total.first:
        parts.append(f"{least} loses least ({number(summaries[least].total.mean)})")
    if most := by_total.last:
        through = f", most of it through {dominant(summaries[most])}" if dominant(summaries[most]) else ""
        parts.append(f"{most} loses most ({number(summaries[most].total.mean)}{through})")
    return [f"In all, {' and '.join(parts)}."] if parts else []


def left_out_in_words(runs: Sequence[Run]) -> str:
    """Name the seeds of runs that did not finish, with what became of them."""
    seeds: dict[str, list[str]] = {}
    for run in runs:
        seeds.setdefault(run.state_in_words + (f" ({run.message})" if run.message else ""), []).append(str(run.seed))
    return "; ".join(f"seed{'s' * (len(of) > 1)} {', '.join(of)} {state}" for state, of in seeds.items())
