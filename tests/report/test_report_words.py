"""The report in words: numbers, names, verdicts, and the table of the terminal."""

from __future__ import annotations

import dataclasses
import math
import re
import textwrap
from collections.abc import Sequence

import pytest
import report_writer as written
from hypothesis import given
from hypothesis import strategies as st
from report_writer import compared, in_memory, mean, rows_of, write_results

from plasticity_cl.report import read_runs, summary_table
from plasticity_cl.report.read import Run
from plasticity_cl.report.statistics import Summary, standing, summarise
from plasticity_cl.report.verdicts import NOT_COUNTED, dominant, headline, verdict
from plasticity_cl.report.wording import abbreviate, interval, listed, number

# Numbers and names


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.125, "0.12"), (-0.004, "0.00"), (-0.5, "-0.50"), (9.996, "10.0"), (99.96, "100"), (999.6, "1.0k"),
        (-1234.0, "-1.2k"), (12345.0, "12k"), (999_600.0, "1.0M"), (3.4e8, "340M"), (9.996e8, "1e9"), (-2e12, "-2e12"),
        (math.nan, "-"), (-math.inf, "-inf"), (1e300, "inf"),
    ],
)  # fmt: skip
def test_numbers_in_few_characters(value: float, text: str) -> None:
    assert number(value) == text


@given(st.floats(allow_nan=False))
def test_numbers_keep_their_size_and_width(value: float) -> None:
    text = number(value)
    assert len(text) <= 5
    if abs(value) < 1e99:
        read = float(text.replace("k", "e3").replace("M", "e6"))
        assert abs(read - value) <= max(0.005, 0.5 * abs(value)) + 1e-9


def test_names_are_abbreviated_from_their_longest_words() -> None:
    names = ["layernorm+l2=0.001", "finetune", "layernorm+l2=0.001+scale-invariant", "x" * 20, "x" * 19 + "y"]
    assert list(abbreviate(names, 16).values()) == [
        "layern.+l2=0.001", "finetune", "lay.+l2=0.001+..", "xxxxxxxxxxxxxxx.", "xxxxxxxxxxxxxx~2"
    ]  # fmt: skip


@given(st.lists(st.text(max_size=30), min_size=1, max_size=12, unique=True), st.integers(6, 30))
def test_abbreviations_fit_and_stay_apart(names: list[str], width: int) -> None:
    short = abbreviate(names, width)
    assert len(set(short.values())) == len(names)
    assert all(len(text) <= width and text.isascii() and "\n" not in text for text in short.values())
    assert all(short[name] == name for name in names if len(name) <= width and re.fullmatch(r"[a-z0-9=.+]+", name))


def test_names_are_listed() -> None:
    assert [listed(names) for names in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == ["", "a", "a and b", "a, b and c"]
    assert listed("abcdef") == "a, b, c, d, e and f"
    assert listed("abcdefgh") == "a, b, c, d, e and 3 others"


# Verdicts


def runs_of(
    strategy: str,
    plasticity_loss: float,
    forgetting: float,
    handicap: float | None = None,
    *,
    spread: float = 0.0,
    seeds: int = 3,
    reference: float = 0.75,
    chance: float | None = None,
    counts: bool = True,
) -> list[Run]:
    """One run a seed with these parts; plasticity loss and forgetting differ by seed, in opposite directions."""
    fresh = reference - (handicap or 0.0)
    runs = []
    for seed in range(seeds):
        off = spread * (seed - (seeds - 1) / 2)
        learned = fresh - plasticity_loss - off
        rows = rows_of(
            [learned],
            [learned - forgetting + off],
            [fresh],
            baseline=None if handicap is None else [reference],
            chance=chance,
        )
        runs.append(in_memory(strategy, seed, rows, forgetting_counts=counts))
    return runs


def a_summary(*parts: float, **options: float) -> Summary:
    return summarise(runs_of("a", *parts, **options), "train")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("plasticity_loss", "forgetting", "said"),
    [
        (0.51, 0.02, "Of the 0.53 lost against its own fresh networks, 96% is lost ability to learn and 4% is"),
        (0.5, 0.001, "Of the 0.50 lost against its own fresh networks, all is lost ability to learn"),
        (0.012, 0.0, "Of the 0.01 lost against its own fresh networks, all is lost ability to learn"),
        (0.5, -0.001, "Of the 0.50 lost against its own fresh networks, all is lost ability to learn"),
        (0.0, 0.4, "Of the 0.40 lost against its own fresh networks, all is forgetting: it still learns as well"),
        (1.0, 4999.0, "less than 1% is lost ability to learn and more than 99% is forgetting"),
        (-0.1, 0.4, "It learns 0.10 better than its own fresh networks (what it carries over helps more"),
        (-0.1, 0.4, "and forgets 0.40: it ends 0.30 below them."),
        (-0.4, 0.1, "it ends 0.30 above them."),
        (-0.1, 0.0, "It learns 0.10 better than its own fresh networks and keeps what it learned: nothing is lost."),
        (0.4, -0.1, "It learns 0.40 less than its own fresh networks, but what it learned improves by 0.10 later on"),
        (0.0, -0.1, "It learns as well as its own fresh networks, and what it learned improves by 0.10 later on."),
        (-0.2, -0.1, "It learns 0.20 better than its own fresh networks, and what it learned improves by another 0.10"),
        (0.004, -0.003, "Nothing to speak of is lost against its own fresh networks (plasticity loss 0.00, forgetting"),
    ],
)
def test_verdicts(plasticity_loss: float, forgetting: float, said: str) -> None:
    words = verdict(a_summary(plasticity_loss, forgetting))
    assert said in words
    learned = number(0.75 - plasticity_loss)
    assert words.endswith(f"In the last experience it learns to {learned}, its fresh networks to 0.75.")


@given(st.floats(-2, 2), st.floats(-2, 2))
def test_shares_are_given_only_where_both_parts_are_losses_and_add_up(
    plasticity_loss: float, forgetting: float
) -> None:
    summary = a_summary(plasticity_loss, forgetting)
    shares = [int(share) for share in re.findall(r"(\d+)%", verdict(summary))]
    lost, forgotten = summary.plasticity_loss.mean, summary.forgetting.mean
    if min(lost, forgotten) >= 0.01:
        assert sum(shares) == 100
        assert abs(shares[0] - 100 * lost / (lost + forgotten)) <= 1
    else:
        assert shares == []


@pytest.mark.parametrize(
    ("handicap", "plasticity_loss", "said"),
    [
        (0.25, 0.02, "It learns to 0.48, 0.27 below the common reference (0.75): handicap 0.25, plasticity loss 0.02."),
        (-0.2, 0.05, "It learns to 0.90, 0.15 above the common reference (0.75): handicap -0.20, plasticity loss 0.05"),
        (0.0, 0.0, "It learns to 0.75, as much as the common reference (0.75): handicap 0.00, plasticity loss 0.00."),
    ],
)
def test_verdicts_stand_against_the_common_reference(handicap: float, plasticity_loss: float, said: str) -> None:
    words = verdict(a_summary(plasticity_loss, 0.0, handicap))
    assert words.startswith(said)
    little = "Its fresh networks reach only 0.50, so it has little to lose."
    assert (little in words) == (handicap == 0.25)


def test_a_small_handicap_is_no_excuse() -> None:
    words = verdict(a_summary(-0.01, 0.0, 0.03, reference=1.0))
    assert "handicap 0.03" in words
    assert "little to lose" not in words


def test_verdicts_say_how_sure_they_are() -> None:
    assert "do not settle which of the two is larger" in verdict(a_summary(0.3, 0.25, spread=0.1))
    assert "do not settle" not in verdict(a_summary(0.5, 0.1, spread=0.01))
    assert "This is one seed: too few for an interval" in verdict(a_summary(0.5, 0.1, seeds=1))
    assert "These are 2 seeds: too few for an interval" in verdict(a_summary(0.5, 0.1, seeds=2))
    assert "That is not told from chance (0.12)." in verdict(a_summary(0.62, 0.0, 0.0, chance=0.125))
    assert "chance" not in verdict(a_summary(0.5, 0.0, 0.0, chance=0.125))
    nothing = summarise([in_memory("a", 0, rows_of([0.5], None, None), state="running")], "train")
    assert verdict(nothing) == "No run finished, so there is no verdict."
    alone = summarise([in_memory("a", 0, rows_of([0.5, 0.5], [0.25, 0.5], None))], "train")
    assert verdict(alone) == "There is no fresh reference, so only forgetting is known: 0.12."
    assert verdict(summarise([in_memory("a", 0, [])], "train")) == "The separation was not measured."


def test_forgetting_that_does_not_count_is_in_no_sum() -> None:
    words = verdict(a_summary(0.2, 0.4, 0.0, counts=False))
    assert "It learns 0.20 less than its own fresh networks" in words
    assert "Of old labels it forgets 0.40, which does not count here." in words
    assert "0.60" not in words
    assert "%" not in words
    assert dominant(a_summary(0.2, 0.4, counts=False)) == "plasticity loss"
    assert dominant(a_summary(0.0, 0.4, counts=False)) == ""


def test_the_larger_part_is_named() -> None:
    assert dominant(a_summary(0.5, 0.1)) == "plasticity loss"
    assert dominant(a_summary(-0.5, 0.1)) == "forgetting"
    assert dominant(a_summary(0.005, -0.2)) == ""
    assert dominant(summarise([], "train")) == ""


# The headline


def said_of(*strategies: Sequence[Run], **fields: object) -> str:
    comparison = compared(*(run for runs in strategies for run in runs), **fields)
    return headline(comparison, standing(comparison, "train"))


def test_the_headline_ranks_by_what_was_learned_and_says_who_has_little_to_lose() -> None:
    words = said_of(
        runs_of("finetune", 0.37, 0.1, 0.0, spread=0.01, reference=0.61),
        runs_of("layernorm", 0.27, 0.3, -0.38, spread=0.01, reference=0.61),
        runs_of("l2=0.001", 0.05, 0.05, 0.14, spread=0.01, reference=0.61),
    )
    assert words.startswith(
        "layernorm learns most: 0.72, 0.11 above the common reference. finetune learns least: 0.24."
    )
    assert (
        "l2=0.001 loses least plasticity (0.05), but its fresh networks reach 0.47 where the common reference reaches "
        "0.61: it has little to lose."
    ) in words
    assert "finetune loses most plasticity (0.37)." in words
    assert "l2=0.001 forgets least (0.05), but learns 0.30 less than layernorm, and what was not learned" in words
    assert "In all, layernorm and" not in words
    assert "In all, layernorm loses least (0.19) and finetune loses most (0.47, most of it through plasticity" in words


def test_without_a_common_reference_strategies_are_set_against_finetunes_fresh_networks() -> None:
    words = said_of(
        runs_of("finetune", 0.37, 0.1, spread=0.01),
        runs_of("l2", 0.05, 0.0, spread=0.01, reference=0.47),
    )
    assert words.startswith("l2 learns most: 0.42. finetune learns least: 0.38.")
    assert "l2 loses least plasticity (0.05), but its fresh networks reach 0.47 where finetune's reach 0.75" in words
    assert "common reference" not in words
    assert "In all" not in words


def test_the_headline_ranks_nothing_inside_the_intervals() -> None:
    words = said_of(
        runs_of("a", 0.3, 0.1, 0.0, spread=0.2),
        runs_of("b", 0.25, 0.15, 0.0, spread=-0.2),
    )
    assert words == ("The seeds do not tell apart how much the strategies learn (0.45 to 0.50): no order is given.")


def test_the_headline_names_those_that_share_the_lead() -> None:
    words = said_of(
        runs_of("a", 0.1, 0.0, 0.0, spread=0.02),
        runs_of("b", 0.12, 0.0, 0.0, spread=-0.02),
        runs_of("c", 0.6, 0.0, 0.0, spread=0.01),
    )
    assert words.startswith("a (0.65) and b (0.63) learn most and are not told apart. c learns least: 0.15.")
    assert "c loses most plasticity (0.60)." in words
    assert "loses least plasticity" not in words
    assert "forgets" not in words


def test_the_headline_leaves_chance_level_out() -> None:
    words = said_of(
        runs_of("finetune", 0.1, 0.2, 0.0, spread=0.01, chance=0.5),
        runs_of("ewc=1e9", 0.3, 0.01, 0.0, spread=0.01, chance=0.5),
    )
    assert words == (
        "Only finetune can be ranked: it learns to 0.65, 0.10 below the common reference. Not told from chance level, "
        "and so not ranked: ewc=1e9 (0.45, chance is 0.50). What it loses says nothing: who has learned nothing has "
        "nothing to lose."
    )


def test_the_headline_says_that_nothing_was_learned() -> None:
    words = said_of(*(runs_of(name, 0.0, 0.0, 0.0, reference=0.1, chance=0.1) for name in ("a", "b")))
    assert words == (
        "No strategy is told from chance level, so nothing is ranked: a (0.10, chance is 0.10) and b (0.10, chance is "
        "0.10)."
    )


def test_the_headline_says_that_few_seeds_are_not_ranked() -> None:
    two = said_of(runs_of("a", 0.1, 0.0, 0.0, seeds=2), runs_of("b", 0.5, 0.0, 0.0, seeds=2))
    assert two == "Intervals need 3 finished seeds: nothing is ranked."
    mixed = said_of(
        *(runs_of(name, loss, 0.0, 0.0, seeds=n) for name, loss, n in (("a", 0, 1), ("b", 0.5, 3), ("c", 0.1, 3)))
    )
    assert mixed.startswith("c learns most: 0.65")
    assert mixed.endswith("Intervals need 3 finished seeds: without them a cannot be ranked.")


def test_the_headline_says_that_seeds_are_missing() -> None:
    gone = in_memory("b", 3, rows_of([0.1], None, [0.9]), "diverged")
    words = said_of(runs_of("a", 0.1, 0.0, 0.0), [*runs_of("b", 0.5, 0.0, 0.0), gone])
    assert "1 of 4 runs of b did not finish: the numbers are those of the others." in words


def test_the_headline_does_not_count_what_no_longer_holds() -> None:
    options = {"spread": 0.01, "counts": False}
    words = said_of(runs_of("a", 0.1, 0.6, 0.0, **options), runs_of("b", 0.3, 0.1, 0.0, **options))
    assert words.endswith(NOT_COUNTED)
    for word in ("forgets", "In all", "0.60", "0.70", "0.40"):
        assert word not in words


def test_the_headline_of_a_target_shift_says_what_the_mean_costs_fresh_networks() -> None:
    words = said_of(
        runs_of("finetune", 0.1, 0.0, 0.3, spread=0.01, reference=0.98),
        runs_of("scale-invariant=-10..110", 0.02, 0.0, 0.0, spread=0.01, reference=0.98),
        spec={"scenario": "target-shift"},
    )
    assert "Against the zero-mean twin the stream costs fresh networks: finetune 0.30." in words


def test_one_strategy_and_none() -> None:
    assert said_of(runs_of("a", 0.5, 0.02)).startswith("Only a can be judged. Of the 0.52 lost")
    empty = compared(in_memory("a", 0, [], "running"))
    assert "nothing to compare" in headline(empty, standing(empty, "train"))


@given(st.data())
def test_nothing_is_called_most_or_least_that_is_not_surely_so(data: st.DataObject) -> None:
    """Whatever the numbers, a superlative belongs to a strategy whose every seed lies beyond the mean of the others."""
    names = ["a", "b", "c"][: data.draw(st.integers(2, 3))]
    score = st.floats(0, 1)
    values = {name: data.draw(st.lists(score, min_size=3, max_size=3)) for name in names}
    runs = [
        [in_memory(name, s, rows_of([v], [v], [1.0], baseline=[1.0])) for s, v in enumerate(of)]
        for name, of in values.items()
    ]
    words = said_of(*runs)
    if found := re.match(r"(\w) learns most", words):
        for other in set(names) - set(found.group(1)):
            assert mean(values[found.group(1)]) >= mean(values[other]) + 0.0099
    means = {name: mean(of) for name, of in values.items()}
    if found := re.search(r"(\w) learns least", words):
        assert means[found.group(1)] == min(means.values())


# Tables


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> str:
    return summary_table(read_runs(write_results(tmp_path_factory.mktemp("results"))))


def test_the_text_table_equals_hand_computation(table: str) -> None:
    lines = table.splitlines()
    assert lines[0] == "label-reset on digits, 7 experiences: accuracy on training data"
    assert lines[1] == "common reference: 0.91 to 0.92, as seeds finished, fresh baseline networks"
    assert lines[3].split() == ["rank", "strategy", "learned", "handicap", "loss", "forgetting", "total", "seeds"]
    learned, final = written.LEARNED["finetune"], written.FINAL["finetune"]
    parts = [
        [mean(a) for a in learned],
        [mean(r) - mean(s) for r, s in zip(written.BASELINE, written.FRESH, strict=True)],
        [mean(s) - mean(a) for s, a in zip(written.FRESH, learned, strict=True)],
        [mean(a) - mean(f) for a, f in zip(learned, final, strict=True)],
    ]
    row = next(i for i, line in enumerate(lines) if " finetune " in line)
    total = mean([mean(r) - mean(f) for r, f in zip(written.BASELINE, final, strict=True)])
    assert lines[row].split() == ["2", "finetune", *(f"{mean(of):.2f}" for of in parts), f"{total:.2f}", "3"]
    # Two strategies with three seeds each, of which one loses the same in all of them: seven intervals.
    quantile = 11.7687  # t of 1 - 0.025 / 7 with 2 degrees of freedom
    margins = [quantile * math.sqrt(sum((v - mean(of)) ** 2 for v in of) / 2 / 3) for of in parts]
    assert lines[row + 1].split() == [f"+-{margin:.2f}" for margin in margins]
    assert any("+- of 7 intervals that hold together" in line for line in lines)


def test_the_text_table_marks_what_is_not_ranked_and_why(table: str) -> None:
    assert table.splitlines()[4].split()[:2] == ["1", "layernorm+l2=0.001"]
    row = next(line for line in table.splitlines() if "l2=9" in line)
    assert row.split()[0] == "-"
    assert row.endswith("2/3*")
    footnotes = " ".join(table.split())
    assert "* l2=9: seed 2 diverged (the loss became NaN in experience 2). Not in the means." in footnotes


def test_the_text_table_names_chance_level_and_does_not_rank_it() -> None:
    runs = [
        *runs_of("finetune", 0.1, 0.2, 0.0, chance=0.125),
        *runs_of("l2=10", 0.02, 0.0, 0.6, chance=0.125),
        *runs_of("l2=1", 0.02, 0.0, 0.4, chance=0.125),
    ]
    found = summary_table(runs)
    ranks = {line.split()[1]: line.split()[0] for line in found.splitlines()[4:9] if not line.strip().startswith("+")}
    assert ranks == {"finetune": "1", "l2=1": "2", "l2=10": "-"}
    assert "l2=10: at chance level (0.12), not ranked." in found


def test_the_text_table_of_a_stream_that_breaks_old_labels_has_no_total() -> None:
    found = summary_table(runs_of("finetune", 0.1, 0.2, 0.0, counts=False))
    heads = next(line for line in found.splitlines() if "strategy" in line).split()
    assert heads == ["rank", "strategy", "learned", "handicap", "loss", "(forgetting)", "seeds"]
    assert NOT_COUNTED in " ".join(found.split())


def test_the_text_table_reads_results_without_a_common_reference() -> None:
    found = summary_table([*runs_of("finetune", 0.1, 0.2), *runs_of("layernorm", 0.05, 0.2)])
    heads = next(line for line in found.splitlines() if "strategy" in line).split()
    assert heads == ["rank", "strategy", "learned", "loss", "forgetting", "total", "seeds"]
    assert next(line for line in found.splitlines() if " finetune " in line).split()[-2:] == ["0.30", "3"]
    assert "common reference:" not in found.split("All numbers")[0]


def test_results_with_and_without_a_common_reference_are_not_summed_alike() -> None:
    found = summary_table([*runs_of("finetune", 0.1, 0.2), *runs_of("layernorm", 0.05, 0.2, -0.2)])
    assert next(line for line in found.splitlines() if " finetune " in line).split()[3:] == [
        "-",
        "0.10",
        "0.20",
        "-",
        "3",
    ]


def test_the_text_table_says_what_a_target_shift_is_held_against() -> None:
    runs = [
        dataclasses.replace(run, spec={**run.spec, "scenario": "target-shift"})
        for run in runs_of("finetune", 0.1, 0.2, 0.3)
    ]
    found = " ".join(summary_table(runs).split())
    assert "common reference: 0.75, fresh baseline networks on the zero-mean twin, so that the handicap is" in found


def test_the_text_table_names_the_baseline() -> None:
    runs = [dataclasses.replace(run, spec={**run.spec, "baseline": "l2=0.1"}) for run in runs_of("a", 0.1, 0.2, 0.3)]
    assert "\ncommon reference: 0.75, fresh l2=0.1 networks\n" in summary_table(runs)


def test_the_test_table_follows_where_it_tells_a_different_story() -> None:
    def runs(test: tuple[Sequence[float], Sequence[float], Sequence[float]]) -> list[Run]:
        return [in_memory("finetune", 0, rows_of([0.5, 0.5], [0.25, 0.5], [0.5, 0.5]) + rows_of(*test, "test"))]

    same = summary_table(runs(([0.5, 0.5], [0.25, 0.5], [0.5, 0.5])))
    nothing_learned = summary_table(runs(([0.1, 0.1], [0.1, 0.1], [0.1, 0.1])))
    less_general = summary_table(runs(([0.5, 0.5], [0.5, 0.5], [0.5, 0.75])))
    assert "test data" not in same
    assert "test data" not in nothing_learned
    assert "accuracy on test data" in less_general
    assert "test data" in summary_table(runs(([0.5, 0.5], [0.5, 0.5], [0.5, 0.75])), stream="test")


score = st.one_of(st.floats(-1, 1), st.floats(-1e15, 1e15))


@given(
    st.lists(st.text(min_size=1, max_size=100), min_size=1, max_size=4, unique=True),
    st.lists(st.tuples(score, score, score, score), min_size=1, max_size=3),
    st.sampled_from(["done", "running", "diverged"]),
    st.booleans(),
)
def test_the_text_table_fits_eighty_columns(
    names: list[str], scores: list[tuple[float, float, float, float]], state: str, with_baseline: bool
) -> None:
    learned, final, fresh, baseline = (list(series) for series in zip(*scores, strict=True))
    rows = rows_of(learned, final, fresh, baseline=baseline if with_baseline else None, chance=0.1)
    runs = [in_memory(name, seed, rows, state if seed == 3 else "done") for name in names for seed in range(4)]
    lines = summary_table(runs).splitlines()
    assert all(len(line) <= 80 and line.isascii() and (line.isprintable()) for line in lines)
    assert len([line for line in lines if line.endswith(" 4" if state == "done" else "3/4*")]) >= len(names)


def test_five_strategies_read_well() -> None:
    """The whole table, as it is printed."""
    runs = [
        run
        for name, loss, forgetting, handicap in (
            ("finetune", 0.37, 0.15, 0.0),
            ("ewc=1e9", 0.49, 0.01, 0.0),
            ("l2=0.001", 0.02, 0.3, 0.14),
            ("layernorm", 0.2, 0.69, -0.38),
            ("layernorm+l2=0.001", 0.03, 0.83, -0.38),
        )
        for run in runs_of(
            name, loss, forgetting, handicap, reference=0.61, seeds=5, spread=0.004, chance=0.12, counts=False
        )
    ]
    expected = """
    label-reset on digits, 1 experience: accuracy on training data
    common reference: 0.61, fresh baseline networks
                                                plasticity
    rank strategy            learned  handicap        loss  (forgetting)  seeds
       1 layernorm+l2=0.001     0.96     -0.38        0.03          0.83      5
                              +-0.02    +-0.00      +-0.02        +-0.02
       2 layernorm              0.79     -0.38        0.20          0.69      5
                              +-0.02    +-0.00      +-0.02        +-0.02
       3 l2=0.001               0.45      0.14        0.02          0.30      5
                              +-0.02    +-0.00      +-0.02        +-0.02
       4 finetune               0.24      0.00        0.37          0.15      5
                              +-0.02    +-0.00      +-0.02        +-0.02
       - ewc=1e9                0.12      0.00        0.49          0.01      5
                              +-0.02    +-0.00      +-0.02        +-0.02
         +- of 15 intervals that hold together
    ewc=1e9: at chance level (0.12), not ranked.
    """
    assert summary_table(runs).startswith(textwrap.dedent(expected).strip("\n"))


def test_intervals_are_written_in_brackets() -> None:
    assert interval(a_summary(0.3, 0.1, spread=0.0).plasticity_loss) == "[0.30, 0.30]"
    assert interval(a_summary(0.3, 0.1, seeds=2).plasticity_loss) == ""
