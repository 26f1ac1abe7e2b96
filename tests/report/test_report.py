"""The report: what is read, the page against hand computation, and what must hold for any input."""

from __future__ import annotations

import base64
import io
import itertools
import math
import os
import re
import shutil
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from PIL import Image
from report_writer import (
    BASELINE,
    FINAL,
    FRESH,
    LEARNED,
    Page,
    mean,
    probe_rows,
    rows_of,
    spec_of,
    write_results,
    write_run,
)

from plasticity_cl.errors import UserError
from plasticity_cl.report import read_runs, summary_table, write_report
from plasticity_cl.report.read import Comparison, comparisons
from plasticity_cl.report.statistics import estimate


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = write_results(tmp_path_factory.mktemp("results"))
    write_report(directory)
    return directory


@pytest.fixture(scope="module")
def comparison(results: Path) -> Comparison:
    (only,) = comparisons(read_runs(results))
    return only


def page_of(directory: Path) -> Page:
    return Page((directory / "report.html").read_text(encoding="utf-8"))


# Reading


def test_runs_are_read_as_written(results: Path) -> None:
    runs = {(run.strategy, run.seed): run for run in read_runs(results)}
    assert len(runs) == 9
    run = runs["finetune", 1]
    assert run.path == Path("finetune/seed1")
    assert run.spec == spec_of("finetune", 1)
    assert (run.state, run.score, run.finished) == ("done", "accuracy", True)
    assert run.series("learned", "train") == dict(enumerate(LEARNED["finetune"][1]))
    assert run.series("learned", "test")[0] == 0.45
    assert run.series("effective_rank", "probe", "2") == dict.fromkeys(range(7), 29.0)
    assert run.diagnostic("effective_rank", ("0", "2")) == dict.fromkeys(range(7), 19.5)
    assert run.forgetting_counts
    assert run.series("no such metric", "train") == {}
    diverged = runs["l2=9", 2]
    assert not diverged.finished
    assert diverged.message == "the loss became NaN in experience 2"
    assert diverged.series("learned", "train") == {0: 0.7, 1: 0.123}


def test_an_unfinished_run_may_end_anywhere(tmp_path: Path) -> None:
    path = write_run(
        tmp_path / "a", spec_of("finetune", 0), rows_of([0.5, 0.25], None, [0.75, 0.875]), {"state": "running"}
    )
    whole = (path / "metrics.csv").read_bytes()
    (full,) = read_runs(tmp_path)
    written = [(key, k, value) for key, series in full.values.items() for k, value in series.items()]
    for cut in range(len(whole) + 1):
        (path / "metrics.csv").write_bytes(whole[:cut])
        (run,) = read_runs(tmp_path)
        values = [(key, k, value) for key, series in run.values.items() for k, value in series.items()]
        assert set(values) <= set(written)
        assert len(values) == max(whole[:cut].count(b"\n") - 1, 0)


def test_a_run_killed_early_counts_as_unfinished(tmp_path: Path) -> None:
    path = write_run(tmp_path / "a", spec_of("finetune", 0), rows_of([0.5], None, None))
    (path / "status.json").unlink()
    (run,) = read_runs(tmp_path)
    assert (run.state, run.finished, run.score) == ("running", False, None)
    (path / "metrics.csv").unlink()
    (run,) = read_runs(tmp_path)
    assert run.values == {}
    report = write_report(tmp_path)
    assert "Nothing was measured yet" in report.read_text()


def test_a_row_written_again_by_a_resumed_run_replaces_the_first(tmp_path: Path) -> None:
    write_run(tmp_path / "a", spec_of("finetune", 0), ["learned,train,,0,0.5", "learned,train,,0,0.625"])
    (run,) = read_runs(tmp_path)
    assert run.series("learned", "train") == {0: 0.625}


def break_file(name: str, content: str | None) -> Any:
    def apply(path: Path) -> None:
        if content is None:
            (path / name).unlink()
        else:
            (path / name).write_text(content)

    return apply


HEADER = "metric,stream,layer,experience,value\n"


@pytest.mark.parametrize(
    ("damage", "named", "said"),
    [
        (break_file("spec.json", '{"scenario": '), "spec.json", "not JSON"),
        (break_file("spec.json", "[1]"), "spec.json", "not a JSON object"),
        (break_file("spec.json", '{"scenario": "x", "seed": 0}'), "spec.json", "does not say the strategy"),
        (
            break_file("spec.json", '{"scenario": "x", "seed": 0, "strategy": "y", "a": [1]}'),
            "spec.json",
            "'a' is a list",
        ),
        (break_file("status.json", "done"), "status.json", "not JSON"),
        (break_file("metrics.csv", None), "metrics.csv", "cannot read"),
        (break_file("metrics.csv", ""), "metrics.csv", "header"),
        (break_file("metrics.csv", "name,value\n"), "metrics.csv", "header"),
        (
            break_file("metrics.csv", HEADER + "learned,train,,0,0.5\nlearned,train\n"),
            "metrics.csv",
            "line 3 has 2 fields",
        ),
        (break_file("metrics.csv", HEADER + "learned,train,,0,high\n"), "metrics.csv", "line 2"),
        (break_file("metrics.csv", HEADER + "learned,train,,first,0.5\n"), "metrics.csv", "line 2"),
        (break_file("metrics.csv", HEADER + "learned,train,,0,"), "metrics.csv", "line 2"),
        (break_file("metrics.csv", HEADER + 'learned,"train'), "metrics.csv", "broken"),
        (break_file("metrics.csv", HEADER + f"learned,train,,{10**30},0.5\n"), "metrics.csv", "out of range"),
        (break_file("metrics.csv", HEADER + "learned,train,,-1,0.5\n"), "metrics.csv", "out of range"),
        (break_file("metrics.csv", HEADER + "learned,train,,0,0.5\0\n"), "metrics.csv", "line 2"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, damage: Any, named: str, said: str) -> None:
    path = write_run(tmp_path / "a" / "b", spec_of("finetune", 0), rows_of([0.5], [0.5], [0.5]))
    damage(path)
    with pytest.raises(UserError) as error:
        read_runs(tmp_path)
    assert str(path / named) in str(error.value)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_without_runs_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such directory"):
        read_runs(tmp_path / "missing")
    with pytest.raises(UserError, match=re.escape(f"run `plasticity-cl compare ... --out {tmp_path}` first")):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_same_run_twice_is_refused(tmp_path: Path) -> None:
    for name in ("a", "copy of a"):
        write_run(tmp_path / name, spec_of("finetune", 0), rows_of([0.5], [0.5], [0.5]))
    with pytest.raises(UserError, match="are the same run"):
        read_runs(tmp_path)


def test_runs_that_differ_in_more_than_strategy_and_seed_are_not_compared(tmp_path: Path) -> None:
    rows = rows_of([0.5], [0.5], [0.5])
    write_run(tmp_path / "1", spec_of("finetune", 0, n_experiences=1, epochs=3), rows)
    write_run(tmp_path / "2", spec_of("ewc=1", 7, n_experiences=1, epochs=3, note=None), rows)
    write_run(tmp_path / "3", spec_of("finetune", 0, n_experiences=1, epochs=4), rows)
    write_run(tmp_path / "4", spec_of("finetune", 0, n_experiences=2, epochs=4), rows)
    write_run(tmp_path / "5", {**spec_of("finetune", 0), "source": "mnist"}, rows)
    found = comparisons(read_runs(tmp_path))
    assert [[str(run.path) for run in c.runs] for c in found] == [["1", "2"], ["3"], ["4"], ["5"]]
    assert [c.title for c in found] == [
        "label-reset on digits, 1 experience, epochs=3",
        "label-reset on digits, 1 experience, epochs=4",
        "label-reset on digits, 2 experiences, epochs=4",
        "label-reset on mnist, 1 experience",
    ]


def test_the_baseline_comes_first_and_combinations_last(comparison: Comparison) -> None:
    assert list(comparison.strategies) == ["finetune", "l2=9", "layernorm+l2=0.001"]
    assert comparison.mechanisms == {
        "Mechanism 1: units and preactivations": {"dead_units": ("",)},
        "Mechanism 3: regression targets": {"target_mean": ("",)},
        "Features": {"effective_rank": ("0", "2")},
    }
    assert comparison.layers == {"dead_units": ("",), "effective_rank": ("0", "2"), "target_mean": ("",)}


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    write_run(tmp_path / "a", spec_of("finetune", 0), rows_of([0.5], [0.5], [0.5]))
    (tmp_path / "a" / "metrics.csv").unlink()
    (tmp_path / "a" / "metrics.csv").mkdir()
    with pytest.raises(UserError, match=re.escape(f"cannot read {tmp_path / 'a' / 'metrics.csv'}: Is a directory")):
        read_runs(tmp_path)


@pytest.mark.parametrize("kept", ["a", "b"])
def test_a_locked_run_is_named_and_not_left_out(tmp_path: Path, kept: str) -> None:
    """By a user who is not the superuser, who may open everything."""
    for seed, name in enumerate("ab"):
        write_run(tmp_path / name, spec_of("finetune", seed), rows_of([0.5], [0.5], [0.5]))
    locked = tmp_path / ("b" if kept == "a" else "a")
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.geteuid() and folder != folder.parent and not folder.stat().st_mode & 0o001:
            folder.chmod(0o755)
    locked.chmod(0)
    try:
        read = os.fork() if os.geteuid() == 0 else None
        if read is None:
            with pytest.raises(UserError, match=f"cannot read {re.escape(str(locked))}: Permission denied"):
                read_runs(tmp_path)
        elif read == 0:
            os.setuid(65534)
            try:
                read_runs(tmp_path)
                os._exit(1)
            except UserError as error:
                os._exit(0 if str(error) == f"cannot read {locked}: Permission denied" else 2)
            finally:
                os._exit(3)
        else:
            assert os.waitstatus_to_exitcode(os.waitpid(read, 0)[1]) == 0
    finally:
        locked.chmod(0o755)


def test_whether_forgetting_counts_is_read(tmp_path: Path) -> None:
    status = {"state": "done", "message": "", "score": "accuracy"}
    for seed, counts in enumerate(({}, {"forgetting_counts": True}, {"forgetting_counts": False})):
        write_run(tmp_path / str(seed), spec_of("a", seed), rows_of([0.5], [0.5], [0.5]), status | counts)
    runs = read_runs(tmp_path)
    assert [run.forgetting_counts for run in runs] == [True, True, False]
    assert [c.forgetting_counts for c in comparisons(runs)] == [False]
    assert [c.forgetting_counts for c in comparisons(runs[:2])] == [True]


def test_runs_of_different_scores_are_not_compared(tmp_path: Path) -> None:
    for seed, score in enumerate(("R2", "bounded R2", "bounded R2")):
        status = {"state": "done", "message": "", "score": score}
        write_run(tmp_path / str(seed), spec_of("finetune", seed), rows_of([0.5], [0.5], [0.5]), status)
    write_run(tmp_path / "3", spec_of("finetune", 3), [], {"state": "running"})
    found = comparisons(read_runs(tmp_path))
    assert [(c.score, [run.seed for run in c.runs]) for c in found] == [("R2", [0, 3]), ("bounded R2", [1, 2])]
    assert found[1].title == "label-reset on digits, 1 experience, score=bounded R2"


# The page


def read_cell(cell: str) -> list[float]:
    return [float(text) for text in re.findall(r"-?[\d.]+", cell.replace("−", "-"))]


def test_the_page_equals_hand_computation(results: Path) -> None:
    train, against, test, against_on_test, *others = page_of(results).tables
    assert train[0] == [
        *("strategy", "rank", "learned", "common reference", "handicap", "plasticity loss", "forgetting", "total"),
        "seeds",
    ]
    for table, scale in ((train, 1.0), (test, 0.5)):
        rows = {row[0]: row[1:] for row in table}
        for name in LEARNED:
            seeds = [
                (mean(a), mean(r), mean(r) - mean(s), mean(s) - mean(a), mean(a) - mean(f), mean(r) - mean(f))
                for r, s, a, f in zip(BASELINE, FRESH, LEARNED[name], FINAL[name], strict=True)
            ]
            with_interval = [True, False, True, True, True, False]
            for cell, values, wide in zip(rows[name][1:-1], zip(*seeds, strict=True), with_interval, strict=True):
                # Two strategies with three seeds each, four intervals each, of which one has no width.
                of = estimate([scale * value for value in values], family=7)
                assert read_cell(cell) == pytest.approx([of.mean, of.low, of.high][: 3 if wide else 1], abs=0.00051)
            assert rows[name][-1] == "3"
            assert rows[name][0] == {"finetune": "2", "layernorm+l2=0.001": "1"}[name]
    assert {row[0]: row for row in train}["l2=9"][1] == "–"
    assert {row[0]: row for row in train}["l2=9"][-1] == "2 of 3"
    (row,) = [row for row in against if row[0] == "layernorm+l2=0.001"]
    a, b, final, theirs = (
        LEARNED["layernorm+l2=0.001"],
        LEARNED["finetune"],
        FINAL["layernorm+l2=0.001"],
        FINAL["finetune"],
    )
    learned = estimate([mean(x) - mean(y) for x, y in zip(a, b, strict=True)], family=3)
    forgetting = [mean(x) - mean(f) - (mean(y) - mean(g)) for x, f, y, g in zip(a, final, b, theirs, strict=True)]
    assert read_cell(row[1]) == pytest.approx([learned.mean, learned.low, learned.high], abs=0.00051)
    assert read_cell(row[4])[0] == pytest.approx(mean(forgetting), abs=0.00051)
    assert [row[0] for row in against_on_test] == ["strategy", "layernorm+l2=0.001"]
    measures = {tuple(table[0]): {row[0]: row[1:] for row in table} for table in others}
    steps = measures["strategy", "steps to threshold"]
    assert steps["finetune"] == ["100.0 [100.0, 100.0] reached in 15 of 21 experiences"]
    assert steps["l2=9"] == ["– reached in 0 of 14 experiences"]
    units = estimate([0.6, 0.61, 0.62], family=2)
    assert read_cell(measures["strategy", "dead units"]["finetune"][0]) == pytest.approx(
        [units.mean, units.low, units.high], abs=0.00051
    )
    ranks = measures["strategy", "0", "2"]["finetune"]
    assert [read_cell(cell)[0] for cell in ranks] == [10.0, 29.0]
    assert measures["strategy", "target mean"]["finetune"] == ["4.500 [4.500, 4.500]"]


def test_rows_that_the_report_does_not_know_do_not_break_it(results: Path) -> None:
    page = page_of(results)
    assert "epoch score" not in page.text
    assert not any("epoch_score" in str(attributes) for _, attributes in page.elements)


def test_the_page_says_what_the_words_mean_and_what_was_run(results: Path) -> None:
    page = page_of(results)
    text = " ".join(page.text.split())
    for words in (
        "It is a net deficit", "What was never learned cannot be forgotten", "Student’s t", "Bonferroni",
        "widened so that all 7 hold together", "Handicap, Sref − Sk", "Chance", "left may look better than",
        "On training data (trainability)", "On test data (generalisation)", "layernorm+l2=0.001 learns most: 0.89",
        "1 of 9 runs did not reach the end", "l2=9, seed 2: diverged: the loss became NaN in experience 2",
        "1 of 3 runs of l2=9 did not finish: the numbers are those of the others.",
    ):  # fmt: skip
        assert words in text, words
    assert ["lr", "0.001"] in itertools.chain(*page.tables)
    assert ["score", "accuracy"] in itertools.chain(*page.tables)
    assert ["l2=9", "2", "diverged: the loss became NaN in experience 2", "l2=9/seed2"] in itertools.chain(*page.tables)


def test_the_page_needs_no_other_file(results: Path) -> None:
    source = (results / "report.html").read_text()
    page = Page(source)
    assert sorted(path.name for path in (results / "figures").iterdir()) == [
        f"label-reset-on-digits-7-experiences-{kind}.{suffix}"
        for kind in (
            *("features", "learning-test", "learning-train", "mechanism-1-units-and-preactivations"),
            *("mechanism-3-regression-targets", "parts", "separation"),
        )
        for suffix in ("pdf", "png", "svg")
    ]
    drawings = [attributes for _, attributes in page.elements if attributes.get("role") == "img"]
    assert len(drawings) == 7
    assert all(len(str(drawing["aria-label"])) > 60 for drawing in drawings)
    assert not {tag for tag, _ in page.elements} & {"script", "link", "iframe", "object", "form", "base"}
    links = [attributes["href"] for tag, attributes in page.elements if tag != "use" and "href" in attributes]
    used = [attributes["href"] for tag, attributes in page.elements if tag == "use"]
    clips = re.findall(r'clip-path="url\((.*?)\)"', source)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {str(href)[1:] for href in (*links, *used, *clips)} == set(ids)
    for external in ("http:", "https:", "@import", "//"):
        assert external not in source


def test_the_page_follows_a_dark_screen_and_a_narrow_one(results: Path) -> None:
    source = (results / "report.html").read_text()
    cells = re.findall(r'<svg class="cell".*?</svg>', source)
    assert len(cells) > 12
    sheet = re.sub(r":root\{.*?\}", "", source.partition("<style>")[2].partition("</style>")[0])
    drawn = "".join(re.findall(r"\.s\d+\{.*?\}", sheet))
    # No colour in a drawing but by a variable, no background, and no width in pixels.
    assert not re.search(r"#[0-9a-f]{6}", drawn + "".join(cells))
    assert "var(--222222)" in drawn
    assert all(re.match(r'<svg class="cell" viewBox="[\d. ]+">', cell) for cell in cells)
    assert source.count("prefers-color-scheme: dark") + source.count("prefers-color-scheme:dark") >= 2
    widths = {float(box.split()[2]) for box in re.findall(r'viewBox="([\d. ]+)"', source)}
    assert max(widths) <= 4 * 72  # a cell fills the width of a phone, and its letters can still be read there
    # Earlier versions of Matplotlib write the size, weight and family of a font as one.
    sizes = [float(size) for size in re.findall(r"font(?:-size)?:(?:[^;}]* )?([\d.]+)px", drawn)]
    assert (max(sizes), min(sizes) >= 8) == (10, True)


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    hostile = "$\\frac$<script>alert(1)</script>\"'><img src=x onerror=alert(2)> $x^2$ &amp; %s {0}"
    spec = {**spec_of(hostile, 0), "source": hostile, hostile: hostile}
    rows = [*rows_of([0.5, 0.5], [0.5, 0.5], [0.5, 0.5]), *probe_rows('"<b>bold'.replace('"', ""), [1.0, 2.0], "<i>")]
    write_run(tmp_path / "a<b>&", spec, rows)
    write_run(tmp_path / "b", {**spec, "seed": 1}, rows, {"state": "diverged", "message": hostile, "score": "<u>"})
    report = write_report(tmp_path)
    page = Page(report.read_text())
    assert not {tag for tag, _ in page.elements} & {"script", "b", "i", "u"}
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert all(str(a["src"]).startswith("data:image/png;base64,") for tag, a in page.elements if tag == "img")
    assert page.text.count(hostile) >= 6
    assert [row for table in page.tables for row in table if row == [hostile, hostile]]
    names = [path.name for path in (tmp_path / "figures").iterdir()]
    assert all(re.fullmatch(r"[a-z0-9.=-]+\.(png|svg|pdf)", name) for name in names)
    for path in (tmp_path / "figures").glob("*.svg"):
        assert {element.tag.rpartition("}")[2] for element in ElementTree.parse(path).iter()} <= DRAWN


DRAWN = {"svg", "defs", "style", "g", "path", "text", "tspan", "use", "clipPath", "rect"}


def chunks(content: bytes) -> list[bytes]:
    """The kinds of the parts of a PNG file."""
    kinds, at = [], 8
    while at < len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        kinds.append(content[at + 4 : at + 8])
        at += 12 + length
    return kinds


def test_the_same_runs_give_the_same_bytes_wherever_they_lie(results: Path, tmp_path: Path) -> None:
    shutil.copytree(results, tmp_path / "elsewhere", ignore=shutil.ignore_patterns("figures", "report.html"))
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "savefig.dpi": 30}):
        settings = dict(matplotlib.rcParams)
        report = write_report(tmp_path / "elsewhere")
        assert dict(matplotlib.rcParams) == settings
    assert report.read_bytes() == (results / "report.html").read_bytes()
    for path in (results / "figures").iterdir():
        assert (tmp_path / "elsewhere" / "figures" / path.name).read_bytes() == path.read_bytes()
        if path.suffix == ".png":
            assert set(chunks(path.read_bytes())) == {b"IHDR", b"pHYs", b"IDAT", b"IEND"}


def test_comparisons_of_one_name_get_figures_of_their_own(tmp_path: Path) -> None:
    rows = rows_of([0.5], [0.5], [0.5])
    write_run(tmp_path / "1", {**spec_of("finetune", 0), "source": "a/b"}, rows)
    write_run(tmp_path / "2", {**spec_of("finetune", 0), "source": "a b"}, rows)
    write_report(tmp_path)
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == [
        f"label-reset-on-a-b-1-experience{number}-{kind}.{suffix}"
        for number in ("-2", "")
        for kind in ("learning-train", "parts", "separation")
        for suffix in ("pdf", "png", "svg")
    ]


def test_a_failed_report_leaves_the_old_one_whole(tmp_path: Path) -> None:
    write_run(tmp_path / "a", spec_of("finetune", 0), rows_of([0.5], [0.25], [0.75]))
    old = write_report(tmp_path).read_bytes()
    files = sorted(tmp_path.rglob("*"))
    write_run(tmp_path / "b", spec_of("ewc=1", 0), rows_of([0.5], [0.25], [0.75]))
    # A disk that is full half way through the figures.
    limit = len(old) // 2
    assert limit < max(path.stat().st_size for path in (tmp_path / "figures").iterdir())
    code = (
        "import resource, signal, sys; from pathlib import Path; from plasticity_cl.report import write_report\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "write_report(Path(sys.argv[1]))"
    )
    failed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert failed.stderr.strip().splitlines()[-1].startswith("plasticity_cl.errors.UserError: cannot write")
    assert (tmp_path / "report.html").read_bytes() == old
    assert sorted(p for p in tmp_path.rglob("*") if "b" not in p.relative_to(tmp_path).parts) == files


@pytest.mark.slow
def test_a_reader_never_sees_half_a_report(tmp_path: Path) -> None:
    write_run(tmp_path / "a", spec_of("finetune", 0), rows_of([0.5], [0.25], [0.75]))
    report = write_report(tmp_path)
    seen: set[bytes] = set()
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.add(report.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for seed in range(1, 4):
        write_run(tmp_path / f"seed{seed}", spec_of("finetune", seed), rows_of([0.5], [0.25], [0.75]))
        write_report(tmp_path)
    done.set()
    reader.join()
    assert len(seen) > 1
    assert all(content.endswith(b"</html>\n") for content in seen)


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    write_run(tmp_path / "a", spec_of("finetune", 0), rows_of([0.5], [0.5], [0.5]))
    (tmp_path / "figures").write_text("in the way")
    with pytest.raises(UserError, match=f"cannot write {re.escape(str(tmp_path / 'figures'))}"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


# What strangers have


def status_of(score: str = "accuracy", state: str = "done", counts: bool = True) -> dict[str, Any]:
    return {"state": state, "message": "", "score": score, "forgetting_counts": counts}


@pytest.mark.parametrize("scenario", ["target-shift", "target-shift:schedule=constant,mean=9", "target-shift=constant"])
def test_a_target_shift_is_shown_against_its_zero_mean_twin(tmp_path: Path, scenario: str) -> None:
    for seed in range(3):
        spec = {**spec_of("finetune", seed), "scenario": scenario}
        rows = rows_of([0.95, 0.4], [0.1, 0.4], [0.97, 0.6], baseline=[0.97, 0.98], chance=0.5)
        rows += probe_rows("target_mean", [0.0, 100.0] if seed else [math.inf, -math.inf])
        write_run(tmp_path / str(seed), spec, rows, status_of("bounded R2", counts=False))
    page = Page(write_report(tmp_path).read_text())
    (table,) = [table for table in page.tables if table[0][0] == "experience"]
    assert table[0] == ["experience", "target mean", "zero-mean twin", "finetune"]
    assert table[2:] == [["0", "0.00", "0.97", "0.97", "0.95"], ["1", "100", "0.98", "0.60", "0.40"]]
    text = " ".join(page.text.split())
    assert "so that the handicap is what a large target mean costs even a fresh network" in text
    assert "forgetting is shown and not counted as damage" in text
    # Without what an older version did not write, the rest is still there.
    for path in tmp_path.rglob("metrics.csv"):
        kept = [
            row for row in path.read_text().splitlines() if not re.match("baseline|handicap|chance|target_mean", row)
        ]
        path.write_text("\n".join([*kept, ""]))
    page = Page(write_report(tmp_path).read_text())
    (table,) = [table for table in page.tables if table[0][0] == "experience"]
    assert table[0] == ["experience", "finetune"]
    assert table[2:] == [["0", "0.97", "0.95"], ["1", "0.60", "0.40"]]


def test_differences_are_to_the_baseline_of_the_spec(tmp_path: Path) -> None:
    for name, seed in itertools.product(("finetune", "l2=0.1", "replay"), range(3)):
        rows = rows_of([0.5], [0.5], [0.9], baseline=[0.9])
        write_run(tmp_path / f"{name}{seed}", spec_of(name, seed, baseline="l2=0.1"), rows)
    (comparison,) = comparisons(read_runs(tmp_path))
    assert (comparison.baseline, comparison.reference) == ("l2=0.1", "fresh l2=0.1 networks")
    page = Page(write_report(tmp_path).read_text())
    assert "Differences to l2=0.1 on training data" in page.text
    assert [row[0] for row in page.tables[1]] == ["strategy", "finetune", "replay"]


@pytest.mark.parametrize("seeds", [1, 2, 3])
@pytest.mark.parametrize("strategies", [1, 2])
@pytest.mark.parametrize("experiences", [1, 3])
def test_small_results_have_a_report(tmp_path: Path, seeds: int, strategies: int, experiences: int) -> None:
    for seed, i in itertools.product(range(seeds), range(strategies)):
        scores = [0.5 + 0.01 * seed + 0.1 * i] * experiences
        rows = rows_of(scores, scores, [0.9] * experiences, baseline=[0.9] * experiences, chance=0.1)
        rows += probe_rows("dead_units", [0.1] * experiences)
        write_run(tmp_path / f"{i}-{seed}", spec_of(f"s{i}", seed), rows)
    text = " ".join(Page(write_report(tmp_path).read_text()).text.split())
    table = summary_table(read_runs(tmp_path))
    assert ("+-" in table.split("All numbers")[0]) == (seeds >= 3)
    if strategies == 2:
        assert ("s1 learns most" in text) == (seeds >= 3)
        assert ("nothing is ranked" in text) == (seeds < 3)


def test_thirty_strategies_with_names_of_all_kinds_have_a_report(tmp_path: Path) -> None:
    names = [f"strategy{i}" for i in range(27)] + ["x" * 300, "naïve→网络", "<b>&amp;"]
    for i, name in enumerate(names):
        for seed in range(3):
            rows = rows_of([0.3 + 0.01 * i], [0.3], [0.9], baseline=[0.9], chance=0.1)
            write_run(tmp_path / f"{i}-{seed}", spec_of(name, seed), rows)
    page = Page(write_report(tmp_path).read_text())
    assert all(any(row[0] == name for row in page.tables[0]) for name in names)
    assert page.tables[0][1][:2] == ["<b>&amp;", "1"]
    assert all(len(line) <= 80 for line in summary_table(read_runs(tmp_path)).splitlines())


def test_diverged_runs_alone_have_a_report(tmp_path: Path) -> None:
    for seed in range(2):
        rows = rows_of([0.5, math.inf, math.nan], None, [0.9, 0.9, 0.9])
        write_run(tmp_path / str(seed), spec_of("finetune", seed), rows, status_of(state="diverged"))
    text = Page(write_report(tmp_path).read_text()).text
    assert "No run finished, so there is nothing to compare." in text
    assert "0/2*" in summary_table(read_runs(tmp_path))


def test_values_that_are_no_numbers_do_not_end_the_report(tmp_path: Path) -> None:
    wild = [math.nan, math.inf, -math.inf, 1e308, -1e308, 1e-308, 0.5]
    for seed in range(3):
        rows = rows_of([0.5] * 7, [0.5] * 7, [0.9] * 7, baseline=[0.9] * 7)
        rows += [row for layer in "ab" for row in probe_rows("feature_norm", wild[seed:] + wild[:seed], layer)]
        rows += [f"task_loss,train,,{k},{value!r}" for k, value in enumerate(wild)]
        write_run(tmp_path / str(seed), spec_of("finetune", seed), rows)
    assert "feature norm" in Page(write_report(tmp_path).read_text()).text


def test_the_first_and_the_last_picture_of_the_first_seed_are_on_the_page(tmp_path: Path) -> None:
    rows = rows_of([0.5, 0.5], [0.5, 0.5], [0.5, 0.5])
    for seed in (0, 1):
        pictures = tmp_path / f"{seed}" / "pictures"
        write_run(tmp_path / f"{seed}", spec_of("finetune", seed), rows)
        pictures.mkdir()
        for k in (0, 7, 19):
            Image.new("RGB", (30, 10), (10 * k, 200 * seed, 7)).save(pictures / f"network-{k:04d}.png")
        (pictures / "notes.png").write_bytes(b"of no experience")
    page = Page(write_report(tmp_path).read_text())
    sources = [str(a["src"]).removeprefix("data:image/png;base64,") for tag, a in page.elements if tag == "img"]
    shown = [Image.open(io.BytesIO(base64.b64decode(source))).convert("RGB") for source in sources]
    assert [(picture.size, picture.getpixel((3, 3))) for picture in shown] == [
        ((30, 10), (0, 0, 7)),
        ((30, 10), (190, 0, 7)),
    ]
    assert "finetune, seed 0, after training on experience 19" in page.text
    (tmp_path / "0" / "pictures" / "network-0000.png").write_bytes(b"half a picture")
    with pytest.raises(UserError, match=r"network-0000.png is not a picture: remove it"):
        write_report(tmp_path)


def test_pictures_take_little_room_on_the_page(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(128, 20, size=(300, 900, 3)).clip(0, 255).astype(np.uint8)
    write_run(tmp_path / "a", spec_of("finetune", 0), rows_of([0.5], [0.5], [0.5]))
    (tmp_path / "a" / "pictures").mkdir()
    path = tmp_path / "a" / "pictures" / "network-0000.png"
    Image.fromarray(noise).save(path)
    page = Page(write_report(tmp_path).read_text())
    (source,) = [str(attributes["src"]) for tag, attributes in page.elements if tag == "img"]
    assert len(source) < path.stat().st_size / 2


def test_the_report_loads_neither_torch_nor_pyplot() -> None:
    heavy = ("torch", "avalanche", "matplotlib.pyplot")
    code = f"import sys, plasticity_cl.report; print([name for name in {heavy} if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
