"""The rows and pictures of a run: appended only, the same numbers as ever, and continued after a stop."""

from __future__ import annotations

import csv
import io
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import BaseLogger
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from plasticity_cl import table
from plasticity_cl.errors import UserError
from plasticity_cl.experiments.pictures import PictureLogger
from plasticity_cl.experiments.rows import RowLogger, write_quantities
from plasticity_cl.metrics import Scalar, SeparationMetric, mechanism_metrics, plasticity_metrics
from plasticity_cl.metrics.identity import number_of
from plasticity_cl.metrics.scalar import Shown
from plasticity_cl.quantity import Quantity, from_json
from plasticity_cl.scenarios import LabelReset, load_source
from plasticity_cl.training import SupervisedTemplate

DIGITS = load_source("digits")


class Version020(BaseLogger):
    """What version 0.2.0 made of a run: one row a value, sorted, the separation's rows in place of earlier ones."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[tuple[str, str, str, int], float] = {}

    def log_metrics(self, metric_values: Sequence[MetricValue]) -> None:
        for value in metric_values:
            if isinstance(value, Scalar):
                self.rows[value.metric, value.stream, value.layer, value.x_plot] = value.value

    def finish(self, separations: Any, chance: Any) -> str:
        for stream, scores in chance.items():
            self.rows |= {("chance", stream, "", k): score for k, score in enumerate(scores)}
        for stream, separation in separations.items():
            for metric, values in vars(separation).items():
                for k, value in enumerate(values):
                    if value == value:
                        self.rows[metric, stream, "", k] = float(value)
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(("metric", "stream", "layer", "experience", "value"))
        writer.writerows((*key, repr(value)) for key, value in sorted(self.rows.items()))
        return buffer.getvalue()


def learner(metrics: Sequence[Any], loggers: Sequence[Any], template: type = SupervisedTemplate) -> Any:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    return template(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-2),
        train_mb_size=32,
        train_epochs=2,
        eval_mb_size=256,
        evaluator=EvaluationPlugin(*metrics, loggers=list(loggers), collect_all=False),
    )


def test_the_numbers_are_those_of_version_020_and_no_byte_is_written_twice(tmp_path: Path) -> None:
    scenario, path, before = LabelReset(DIGITS, 4, n_samples=96), tmp_path / "metrics.csv", Version020()
    reference = {stream: [0.9 + k / 7 for k in range(4)] for stream in ("train", "test")}
    baseline = {stream: [0.95] * 4 for stream in ("train", "test")}
    metrics = [*plasticity_metrics(reference=reference, baseline=baseline), *mechanism_metrics()]
    rows = RowLogger(path)
    strategy = learner(metrics, [rows, before])
    seen, inode = [path.read_bytes()], path.stat().st_ino
    for k, experience in enumerate(scenario.train_stream):
        strategy.train(experience, eval_streams=[])
        for stream in (scenario.train_stream, scenario.test_stream):
            strategy.eval(stream[max(k - 1, 0) : k + 1])
        seen.append(path.read_bytes())
    for stream in (scenario.train_stream, scenario.test_stream):
        strategy.eval(stream)
    seen.append(path.read_bytes())
    (separation,) = [metric for metric in metrics if isinstance(metric, SeparationMetric)]
    chance = {stream: [0.1 + k / 3 for k in range(4)] for stream in ("train", "test")}
    rows.finish(separation.result(), chance)
    written = path.read_bytes()
    wanted = before.finish(separation.result(), chance)

    for earlier, later in itertools.pairwise([*seen, written]):
        assert len(earlier) < len(later)
        assert later.startswith(earlier), "append-only"
    assert path.stat().st_ino == inode
    last = {tuple(row[:4]): row for row in csv.reader(io.StringIO(written.decode()))}
    header, *others = last.values()
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(sorted(others, key=lambda row: (*row[:3], int(row[3]))))
    assert buffer.getvalue() == wanted, "to the last character"
    read = table.read(wanted.encode())
    assert table.read(written) == read
    assert list(read) == list(table.read(written)), "in the same order: sums of floating-point numbers depend on it"
    assert all(list(table.read(written)[key]) == list(series) for key, series in read.items())
    rounded = [key for key in last if last[key][0] == "learned" and written.count(",".join(last[key][:4]).encode()) > 1]
    assert rounded, "there are rows that come again at the end"


def scalars(n: int) -> list[list[Scalar]]:
    """What a metric emits at n events."""
    return [[Scalar(None, "g", f"m{i % 2}", 1 / (i + 3), i // 2, layer="l" * i), MetricValue(None, "x", 1.0, i)]
            for i in range(n)]  # fmt: skip


@given(st.integers(0, 6), st.integers(0, 6), st.integers(0, 40))
@settings(max_examples=60, deadline=None)
def test_a_run_that_was_stopped_anywhere_ends_with_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, kept: int, further: int, half: int
) -> None:
    folder = tmp_path_factory.mktemp("run")
    whole, stopped = folder / "whole.csv", folder / "stopped.csv"
    values = scalars(kept + further + 2)
    uninterrupted = RowLogger(whole)
    for value in values:
        uninterrupted.log_metrics(value)
    uninterrupted.finish({}, {"train": [0.1, 0.2]})

    first = RowLogger(stopped)
    for value in values[:kept]:
        first.log_metrics(value)
    torch.save(first.state_dict(), folder / "state.pt")
    for value in values[kept : kept + further]:
        first.log_metrics(value)
    with stopped.open("ab") as file:
        file.write(b"m0,probe,layer,3,0.1234567890123456789012"[:half])
    again = RowLogger(stopped)
    again.load_state_dict(torch.load(folder / "state.pt", weights_only=True))
    for value in values[kept:]:
        again.log_metrics(value)
    again.finish({}, {"train": [0.1, 0.2]})
    assert stopped.read_bytes() == whole.read_bytes()


def test_a_file_that_lost_rows_since_cannot_be_continued(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.csv"
    path.parent.mkdir()
    rows = RowLogger(path)
    rows.log_metrics(scalars(1)[0])
    state = rows.state_dict()
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=f"holds {state['bytes'] - 1} bytes and held {state['bytes']} .*remove") as said:
        RowLogger(path).load_state_dict(state)
    assert "\n" not in str(said.value)


def test_without_a_state_rows_begin_anew(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("of another run")
    rows = RowLogger(path)
    rows.log_metrics(scalars(1)[0])
    assert path.read_text() == table.header() + table.row("m0", "", "", 0, 1 / 3)
    path.write_text("of another run")
    RowLogger(path).finish({}, {})
    assert path.read_text() == table.header()


def test_a_row_belongs_to_an_experience(tmp_path: Path) -> None:
    rows = RowLogger(tmp_path / "metrics.csv")
    rows.log_metrics([Scalar(None, "wilds", "stream_accuracy", 0.5, -1, stream="test")])
    rows.log_metrics([Scalar(None, "wilds", "stream_accuracy", 0.75, 0, stream="test")])
    rows.finish({}, {})
    read = table.read((tmp_path / "metrics.csv").read_bytes())
    assert read == {("stream_accuracy", "test", ""): {0: 0.75}}, "-1 is before any training"


def test_a_disk_that_is_full_stops_the_run_with_an_error(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").symlink_to("/dev/full")
    rows = RowLogger(tmp_path / "metrics.csv")
    with pytest.raises(OSError, match="No space left|Invalid argument"):
        rows.log_metrics(scalars(1)[0])


class Theirs(PluginMetric[float]):
    """A metric as strangers write them: plain values at every event, each with another number."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[str, str, int, float]] = []

    def reset(self) -> None:
        pass

    def result(self) -> float:
        return float(len(self.events))

    def emit(self, event: str, experience: Any = None) -> list[MetricValue]:
        stream, number = ("", -1) if experience is None else (experience.origin_stream.name, number_of(experience))
        value = self.result()
        self.events.append((event, stream, number, value))
        return [
            MetricValue(self, event, value, 77),
            MetricValue(self, f"{event}/flag", True, 77),
            MetricValue(self, f"{event}/text", "text", 77),
            MetricValue(self, f"{event}/of", {"a": np.float64(value), "b": int(value)}, 77),
        ]

    def after_training_iteration(self, strategy: Any) -> list[MetricValue]:
        return self.emit("iteration")

    def after_training_epoch(self, strategy: Any) -> list[MetricValue]:
        return self.emit("epoch")

    def after_training_exp(self, strategy: Any) -> list[MetricValue]:
        return self.emit("trained")

    def after_eval_iteration(self, strategy: Any) -> list[MetricValue]:
        return self.emit("eval iteration")

    def after_eval_exp(self, strategy: Any) -> list[MetricValue]:
        return self.emit("evaluated", strategy.experience)

    def after_eval(self, strategy: Any) -> list[MetricValue]:
        return self.emit("evaluated all,\nof a stream")


@pytest.mark.parametrize("template", [SupervisedTemplate, Naive])
def test_numbers_of_other_metrics_are_kept_once_an_experience(tmp_path: Path, template: type) -> None:
    scenario, theirs, rows = LabelReset(DIGITS, 3, n_samples=64), Theirs(), RowLogger(tmp_path / "m.csv")
    strategy = learner([theirs], [rows], template)
    streams = (scenario.train_stream, scenario.test_stream)
    for k, experience in enumerate(scenario.train_stream):
        for stream in streams:
            strategy.eval(stream[k : k + 1])  # ahead of the training
        strategy.train(experience, eval_streams=[])
        for stream in streams:
            strategy.eval(stream[max(k - 1, 0) : k + 1])
        strategy.eval(scenario.train_stream)  # which is ahead of it in part
    for stream in streams:
        strategy.eval(stream)
    rows.finish({}, {})

    wanted: dict[tuple[str, str, str], dict[int, float]] = {}
    trained, covered = -1, []
    for event, stream_of_event, number, value in theirs.events:
        if event == "trained":
            trained += 1
            wanted.setdefault((event, "", ""), {})[trained] = value
        elif event == "evaluated":
            covered.append((stream_of_event, number))
            if number <= trained:
                wanted.setdefault((event, stream_of_event, ""), {})[trained] = value
        elif event.startswith("evaluated all"):
            if all(number <= trained for _, number in covered):
                wanted.setdefault(("evaluated all, of a stream", covered[-1][0], ""), {})[trained] = value
            covered = []
    wanted |= {(f"{name}/of/{p}", stream, at): of for (name, stream, at), of in wanted.items() for p in "ab"}
    assert table.read((tmp_path / "m.csv").read_bytes()) == wanted
    assert len(wanted) == 15
    assert all(sorted(series) == [0, 1, 2] for series in wanted.values())


@pytest.mark.parametrize("template", [SupervisedTemplate, Naive])
def test_avalanches_own_metrics_are_kept_at_the_end_of_experiences(tmp_path: Path, template: type) -> None:
    stream, rows = LabelReset(DIGITS, 2, n_samples=64).train_stream, RowLogger(tmp_path / "m.csv")
    metrics = accuracy_metrics(minibatch=True, epoch=True, experience=True, stream=True)
    strategy = learner([metrics], [rows], template)
    accuracies = []
    for experience in stream:
        strategy.train(experience, eval_streams=[])
        accuracies.append(strategy.eval(stream[: len(accuracies) + 1]))
    rows.finish({}, {})
    read = table.read((tmp_path / "m.csv").read_bytes())
    assert {stream for _, stream, _ in read} == {"train"}
    assert [name for name, _, _ in read] == [
        "Top1_Acc_Exp/eval_phase/train_stream/Exp000",
        "Top1_Acc_Exp/eval_phase/train_stream/Exp001",
        "Top1_Acc_Stream/eval_phase/train_stream",
    ]
    for (name, _, _), series in read.items():
        assert series == {k: values[name] for k, values in enumerate(accuracies) if k or not name.endswith("Exp001")}


def test_the_state_knows_what_was_trained_on(tmp_path: Path) -> None:
    stream = LabelReset(DIGITS, 2, n_samples=64).train_stream
    rows = RowLogger(tmp_path / "m.csv")
    learner([Theirs()], [rows]).train(stream[0], eval_streams=[])
    again = RowLogger(tmp_path / "m.csv")
    again.load_state_dict(rows.state_dict())
    strategy = learner([Theirs()], [again])
    strategy.eval(stream[:1])
    strategy.eval(stream)
    read = table.read((tmp_path / "m.csv").read_bytes())
    assert read["evaluated", "train", ""] == {0: 4.0}, "of the first experience, the only one that was trained on"
    assert read["evaluated all, of a stream", "train", ""] == {0: 2.0}, "the second one ran ahead"


def test_what_numbers_are_is_written_beside_them(tmp_path: Path) -> None:
    theirs = Theirs()
    theirs.quantities = {"trained": Quantity("how much they trained", "Their mechanism", "up")}  # type: ignore[attr-defined]
    write_quantities(tmp_path / "metrics.json", [*plasticity_metrics(), Theirs(), theirs])
    read = from_json((tmp_path / "metrics.json").read_bytes())
    assert read["trained"] == Quantity("how much they trained", "Their mechanism", "up")
    assert {"learned", "steps_to_threshold", "chance"} < set(read)
    assert "iteration" not in read


def test_a_picture_is_whole_or_not_there(tmp_path: Path) -> None:
    logger, picture = PictureLogger(tmp_path / "pictures"), Image.new("RGB", (4, 3), (10, 20, 30))
    logger.log_metrics([MetricValue(None, "pictures/network", Shown(picture), 2), MetricValue(None, "x", 1.0, 2)])
    path = tmp_path / "pictures" / "network-0002.png"
    with Image.open(path) as read:
        assert read.getpixel((0, 0)) == (10, 20, 30)
    content = path.read_bytes()
    path.with_name(f".{path.name}.{os.getpid()}").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as said:
        logger.log_metrics([MetricValue(None, "pictures/network", Shown(picture), 2)])
    assert said.value.filename == str(path)
    assert path.read_bytes() == content
    assert os.listdir(path.parent) == [path.name]
    again = PictureLogger(tmp_path / "pictures")
    again.load_state_dict(logger.state_dict())
    again.log_metrics([MetricValue(None, "pictures/network", Shown(picture), 2)])
    assert path.read_bytes() == content
