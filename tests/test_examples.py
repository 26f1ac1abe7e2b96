"""The examples answer the questions that they ask, run as a user runs them: nothing of ours but the package at hand."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
# What one number is off by for being printed with three decimals, for each number in a sum.
ROUNDED = 5.1e-4

pytestmark = pytest.mark.slow


def printed(name: str, folder: Path) -> str:
    """What an example prints when it is run in an empty folder; nothing but that may be said or left there."""
    command = [sys.executable, str(EXAMPLES / f"{name}.py")]
    finished = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert list(folder.iterdir()) == []
    return finished.stdout


def rows(text: str) -> dict[str, list[float]]:
    """The numbers at the end of each line that ends in several, by what stands before them."""
    found = re.findall(r"^ *(\S.*?)((?: +-?\d+\.\d+){3,})$", text, flags=re.MULTILINE)
    return {name.strip(): [float(number) for number in numbers.split()] for name, numbers in found}


def tables(text: str) -> dict[str, np.ndarray]:
    """Tables that follow a line with their name and a line with their header: one row an experience."""
    parts = re.split(r"^(\S[^\n]*)\n +[a-z][^\n]*\n", text, flags=re.MULTILINE)[1:]
    return {
        name: np.array([[float(number) for number in line.split()] for line in body.splitlines() if line[0] == " "])
        for name, body in zip(parts[::2], parts[1::2], strict=True)
    }


def test_there_are_five_and_each_says_how_it_is_run():
    names = sorted(path.stem for path in EXAMPLES.glob("*.py"))
    assert names == ["multi_head", "online", "own_method", "own_stream", "regression"]
    for name in names:
        assert f"\n    python examples/{name}.py\n" in (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")


def test_an_own_method_forgets_where_it_is_weak_and_ossifies_where_it_is_strong(tmp_path):
    methods = rows(printed("own_method", tmp_path))
    assert list(methods) == ["finetune", "layernorm+l2", "anchor=0.1", "anchor=10"]
    for learned, handicap, plasticity_loss, forgetting, total, norm in methods.values():
        assert handicap + plasticity_loss + forgetting == pytest.approx(total, abs=4 * ROUNDED)
        assert 0 <= learned <= 1
        assert norm > 0
    loss = {name: row[2] for name, row in methods.items()}
    forgetting = {name: row[3] for name, row in methods.items()}
    assert methods["finetune"][1] == 0
    assert methods["anchor=10"][1] == 0  # it does nothing in the first experience, nor to a fresh network
    assert forgetting["finetune"] > 0.4
    assert forgetting["anchor=0.1"] > 0.4
    assert loss["anchor=0.1"] < 0.1
    assert forgetting["anchor=10"] < 0.1
    assert loss["anchor=10"] > 0.5


def test_turned_digits_are_forgotten_and_fainter_ones_are_helped_by_what_came_before(tmp_path):
    streams = tables(printed("own_stream", tmp_path))
    assert list(streams) == ["quarter turns", "fainter"]
    for table in streams.values():
        k, learned, plasticity_loss, forgetting, total = table.T
        assert k.tolist() == [0, 1, 2, 3]
        assert np.abs(plasticity_loss + forgetting - total).max() < 3 * ROUNDED
        assert (learned > 0.8).all()
        assert (plasticity_loss[0], forgetting[-1]) == (0, 0)
    turns, fainter = streams["quarter turns"], streams["fainter"]
    assert turns[0, 3] > 0.2
    assert np.abs(fainter[:, 3]).max() < 0.05
    assert (fainter[1:, 2] < -0.01).all()


def test_a_head_for_each_task_does_away_with_forgetting(tmp_path):
    text = printed("multi_head", tmp_path)
    found = {line[:22].strip(): re.findall(r"([a-z ]+?) +(-?\d\.\d+)", line[22:]) for line in text.splitlines()}
    heads = {name: {what.strip(): float(value) for what, value in numbers} for name, numbers in found.items()}
    assert list(heads) == ["one head", "a head for each task"]
    for parts in heads.values():
        assert parts["plasticity loss"] + parts["forgetting"] == pytest.approx(parts["total"], abs=3 * ROUNDED)
        assert parts["learned"] > 0.95
    assert heads["one head"]["forgetting"] > 0.6
    assert abs(heads["a head for each task"]["forgetting"]) < 0.1


def test_a_stream_seen_once_has_a_row_for_each_whole_experience(tmp_path):
    methods = tables(printed("online", tmp_path))
    assert list(methods) == ["finetune", "layernorm"]
    for table in methods.values():
        k, learned, fresh, plasticity_loss, forgetting, total = table.T
        assert k.tolist() == [0, 1, 2, 3, 4]
        assert np.abs(fresh - learned - plasticity_loss).max() < 3 * ROUNDED
        assert np.abs(plasticity_loss + forgetting - total).max() < 3 * ROUNDED
        assert (fresh > 0.9).all()
        assert forgetting[:-1].mean() > 0.5
    assert (methods["layernorm"][:, 1] > 0.8).all()


def test_squared_error_is_worn_by_a_large_mean_and_the_scale_invariant_loss_is_not(tmp_path):
    text = printed("regression", tmp_path)
    losses = tables(text)
    assert list(losses) == ["squared error", "scale-invariant, with layer norm"]
    for table in losses.values():
        mean, reference, learned, handicap, plasticity_loss = table.T
        assert mean.tolist() == [0, 100, 0]
        assert np.abs(handicap + plasticity_loss - (reference - learned)).max() < 4 * ROUNDED
        assert (reference > 0.9).all()
    squared, invariant = losses.values()
    assert squared[1, 3] > 0.5  # even a fresh network pays
    assert squared[2, 4] > 0.2  # and the one that goes on pays again when the mean is back
    assert np.abs(invariant[:, 3]).max() < 0.1
    assert invariant[2, 4] < 0.1
    directions = [float(number) for number in re.findall(r"at the end: ([\d.]+)$", text, flags=re.MULTILINE)]
    assert directions[1] > 2 * directions[0]
