"""Runs and comparisons: what stands in a run directory, that it is reproducible, and what survives an accident."""

import csv
import dataclasses
import errno
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from avalanche.evaluation.metrics import Accuracy
from avalanche.training.plugins import EvaluationPlugin
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

import plasticity_cl
from plasticity_cl.cli import main
from plasticity_cl.errors import UserError
from plasticity_cl.experiments.build import open_recipe
from plasticity_cl.experiments.compare import compare, plan, problems, run_all
from plasticity_cl.experiments.directory import (
    check_out,
    disk_errors,
    finished_state,
    folder_name,
    locked,
    run_directory,
    write_status,
)
from plasticity_cl.experiments.fresh import cache_key
from plasticity_cl.experiments.moved import MOVED, new_spelling
from plasticity_cl.experiments.run import run
from plasticity_cl.experiments.spec import (
    FORMAT,
    CompareSpec,
    Machine,
    RunSpec,
    baseline_spec,
    check,
    fresh_spec,
    identity,
    of_fresh_network,
)
from plasticity_cl.experiments.spec_file import read_toml
from plasticity_cl.scenarios.catalogue import SCENARIOS as CATALOGUE

SMALL = {"n_experiences": 3, "n_samples": 96, "epochs": 2, "width": 16}


def rows(directory):
    with (directory / "metrics.csv").open(newline="") as file:
        return {
            (row["metric"], row["stream"], row["layer"], int(row["experience"])): float(row["value"])
            for row in csv.DictReader(file)
        }


def spec(**fields):
    """A small run; options of scenario, model and optimizer by their names alone."""
    return small_spec(**(SMALL | fields))


def small_spec(**fields):
    texts = new_spelling(fields, fields)
    return check(RunSpec(**{name: value for name, value in fields.items() if name not in MOVED} | texts))


def saved(s):
    """A spec as it stands in a run directory."""
    return {"format": FORMAT, **dataclasses.asdict(s)}


def do(out, *specs, jobs=1):
    return run_all({run_directory(out, s): s for s in specs}, out / "fresh", Machine(jobs=jobs))


NAMES = ("learned", "final", "fresh", "baseline", "handicap", "plasticity_loss", "forgetting", "total")
STRATEGIES = ["finetune", "layernorm+l2", "ewc=100", "replay=50+layernorm"]
SCENARIOS = [
    {"scenario": "label-reset"},
    {"scenario": "class-incremental"},
    {"scenario": "target-shift", "strategy": "scale-invariant"},
    {"scenario": "noisy-start"},
]


@pytest.mark.parametrize("fields", SCENARIOS, ids=lambda fields: fields["scenario"])
def test_every_row_keeps_the_identity_and_every_experience_has_its_rows(tmp_path, fields):
    s = spec(**fields)
    assert do(tmp_path, s) == {run_directory(tmp_path, s): "done"}
    values = rows(run_directory(tmp_path, s))
    for stream in ("train", "test"):
        for k in range(3):
            learned, final, fresh, baseline, handicap, lost, forgotten, total = (
                values[metric, stream, "", k] for metric in NAMES
            )
            assert handicap == baseline - fresh
            assert lost == fresh - learned
            assert forgotten == learned - final
            assert total == handicap + lost + forgotten == baseline - final
            assert np.isfinite(total)
            assert ("score_before_training", stream, "", k) in values
        assert values["forgetting", stream, "", 2] == 0
    for metric in ("dead_units", "linearised_units", "effective_rank", "parameter_norm"):
        assert [values[metric, "probe", "", k] for k in range(3)]
    for metric in ("area_under_learning_curve", "task_loss"):
        assert [values[metric, "train", "", k] for k in range(3)]
    assert all(np.isfinite(value) for value in values.values()), "what was not reached has no row"


@pytest.mark.parametrize("fields", SCENARIOS, ids=lambda fields: fields["scenario"])
def test_chance_is_the_score_of_the_best_constant_prediction(tmp_path, fields):
    s = spec(**fields)
    do(tmp_path, s)
    values = rows(run_directory(tmp_path, s))
    for stream, experiences in open_recipe(s).scenario.streams.items():
        for k, experience in enumerate(experiences):
            targets = [experience.dataset[i][1].item() for i in range(len(experience.dataset))]
            if fields["scenario"] == "target-shift":
                best = 0.5
            else:
                best = max(targets.count(constant) / len(targets) for constant in set(targets))
            assert values["chance", stream, "", k] == best


def test_the_status_says_what_the_scores_are_and_whether_forgetting_counts(tmp_path):
    said = {}
    for fields in (*SCENARIOS, {"scenario": "target-shift", "score": "r2"}):
        s = spec(**fields, n_experiences=1, diagnostics="none")
        do(tmp_path / str(len(said)), s)
        status = json.loads((run_directory(tmp_path / str(len(said)), s) / "status.json").read_text())
        said[CATALOGUE.read(s.scenario).name, s.score or "by the targets"] = (
            status["score"],
            status["forgetting_counts"],
        )
    assert said == {
        ("label-reset", "by the targets"): ("accuracy", False),
        ("class-incremental", "by the targets"): ("accuracy", True),
        ("noisy-start", "by the targets"): ("accuracy", False),
        ("target-shift", "by the targets"): ("bounded R2", False),
        ("target-shift", "r2"): ("R2", False),
    }


def test_the_baseline_has_no_handicap_and_no_other_strategy_has_its_scores(tmp_path):
    specs = [spec(strategy=name, epochs=8) for name in ("finetune", "ewc=100", "layernorm", "l2=0.1")]
    do(tmp_path, *specs)
    found = [rows(run_directory(tmp_path, s)) for s in specs]
    for stream in ("train", "test"):
        for k in range(3):
            assert [values["handicap", stream, "", k] for values in found[:2]] == [0, 0]
            common = {values["baseline", stream, "", k] for values in found}
            assert common == {found[0]["fresh", stream, "", k]}
    assert any(found[2]["handicap", "train", "", k] for k in range(3))
    assert any(found[3]["handicap", "train", "", k] for k in range(3))


def test_another_baseline_is_a_choice(tmp_path):
    specs = [spec(strategy=name, baseline="replay=20 + LayerNorm") for name in ("finetune", "layernorm")]
    assert [s.baseline for s in specs] == ["layernorm"] * 2
    do(tmp_path, *specs)
    finetune, layernorm = (rows(run_directory(tmp_path, s)) for s in specs)
    for k in range(3):
        assert layernorm["handicap", "train", "", k] == 0
        assert finetune["baseline", "train", "", k] == layernorm["fresh", "train", "", k]


def test_a_large_mean_is_compared_with_its_zero_mean_twin(tmp_path):
    fields = {"scenario": "target-shift", "epochs": 20, "diagnostics": "none"}
    shifted = [spec(strategy=name, **fields) for name in ("finetune", "layernorm")]
    twin = spec(schedule="constant", target_mean=0.0, **fields)
    do(tmp_path / "shifted", *shifted)
    do(tmp_path / "twin", twin)
    without = rows(run_directory(tmp_path / "twin", twin))
    for s in shifted:
        values = rows(run_directory(tmp_path / "shifted", s))
        for stream in ("train", "test"):
            for k in range(3):
                assert values["baseline", stream, "", k] == without["fresh", stream, "", k]
    finetune = rows(run_directory(tmp_path / "shifted", shifted[0]))
    assert [finetune["handicap", "train", "", k] for k in (0, 2)] == [0, 0]
    assert finetune["handicap", "train", "", 1] > 0.1


@pytest.mark.parametrize(("score", "of_r2"), [("bounded-r2", lambda r2: 1 / (2 - r2)), ("r2", lambda r2: r2)])
def test_the_score_of_a_regression_is_that_of_its_predictions(tmp_path, score, of_r2):
    s = spec(scenario="target-shift", score=score, epochs=20)
    do(tmp_path, s)
    saved = torch.load(run_directory(tmp_path, s) / "snapshot.pt", weights_only=True)
    recipe = open_recipe(s)
    scenario, network = recipe.scenario, recipe.strategy(EvaluationPlugin()).model
    network.load_state_dict(saved["model"])
    x, y = scenario.train_stream[2].samples.batch(torch.arange(96))
    with torch.no_grad():
        error = (network.eval()(x).double() - y.double()).square().sum()
    r2 = float(1 - error / (y.double() - y.double().mean()).square().sum())
    assert rows(run_directory(tmp_path, s))["final", "train", "", 2] == pytest.approx(of_r2(r2), abs=1e-6)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_same_spec_gives_the_same_bytes_alone_or_in_processes(tmp_path, strategy):
    s = spec(strategy=strategy, scenario="class-incremental")
    written = []
    for name, jobs in (("one", 1), ("two", 1)):
        do(tmp_path / name, s, jobs=jobs)
        written.append((run_directory(tmp_path / name, s) / "metrics.csv").read_bytes())
    assert written[0] == written[1]


@pytest.mark.slow
def test_processes_give_the_bytes_of_one_process(tmp_path):
    specs = [spec(strategy=name, seed=seed) for name in ("finetune", "l2") for seed in (0, 1)]
    one, many = do(tmp_path / "one", *specs, jobs=1), do(tmp_path / "many", *specs, jobs=2)
    assert set(one.values()) == set(many.values()) == {"done"}
    for s in specs:
        first, second = (run_directory(tmp_path / name, s) / "metrics.csv" for name in ("one", "many"))
        assert first.read_bytes() == second.read_bytes()


def test_a_run_is_a_plain_loop_over_avalanche(tmp_path):
    s = spec(strategy="layernorm+l2")
    do(tmp_path, s)
    values = rows(run_directory(tmp_path, s))
    recipe = open_recipe(s)
    cl = recipe.strategy(EvaluationPlugin())
    for k, experience in enumerate(recipe.scenario.train_stream):
        recipe.seed_experience(k)
        cl.train(experience, eval_streams=[])
        score = Accuracy()
        with torch.no_grad():
            x, y = experience.samples.batch(torch.arange(len(experience.dataset)))
            score.update(cl.model.eval()(x), y)
        assert values["learned", "train", "", k] == pytest.approx(score.result(), abs=2**-31)


@pytest.mark.slow
def test_fresh_networks_are_shared_only_where_that_is_true(tmp_path):
    specs = [spec(strategy=name) for name in ("finetune", "ewc=100", "replay=50", "layernorm")]
    do(tmp_path, *specs)
    records = [json.loads(path.read_text()) for path in (tmp_path / "fresh").glob("*.json")]
    assert sorted({record["spec"]["strategy"] for record in records}) == ["finetune", "layernorm"]
    assert len(records) == 2 * 3
    alone = spec(strategy="ewc=100", n_experiences=1)
    do(tmp_path / "alone", alone)
    assert rows(run_directory(tmp_path / "alone", alone))["plasticity_loss", "train", "", 0] == 0


def test_fresh_references_are_read_from_the_cache(tmp_path):
    s = spec()
    do(tmp_path, s)
    before = rows(run_directory(tmp_path, s))
    cached = sorted((tmp_path / "fresh").glob("*.json"))
    record = json.loads(cached[0].read_text())
    true, record["scores"]["train"] = record["scores"]["train"], 0.25
    cached[0].write_text(json.dumps(record))
    run(s, tmp_path / "again", tmp_path / "fresh")
    after = rows(tmp_path / "again")
    assert after["learned", "train", "", 0] == before["learned", "train", "", 0]
    found = 3 * before["fresh", "train", "", 0] - 3 * after["fresh", "train", "", 0] + 0.25
    assert found == pytest.approx(true), "only the score of one experience was changed"


@pytest.mark.parametrize(
    "damage",
    [
        lambda record: record["spec"].update(epochs=50),
        lambda record: record["spec"].update(strategy="l2=0.001"),
        lambda record: record["spec"].update(of_a_later_version=True),
        lambda record: record.update(experience=record["experience"] + 1),
        lambda record: record.update(torch="1.0.0"),
        lambda record: record.pop("plasticity_cl"),
        lambda record: record["scores"].update(train="0.25"),
        lambda record: record["scores"].update(train=True),
        lambda record: record["scores"].pop("test"),
        lambda record: record.update(scores=[0.25, 0.25]),
        lambda record: record.update(spec=None),
        lambda record: record.update(format=1),
        lambda record: record.pop("format"),
        None,
    ],
)
def test_a_cached_score_that_is_not_of_this_network_is_refused_and_kept(tmp_path, damage):
    s = spec(diagnostics="none", n_experiences=1)
    do(tmp_path, s)
    (cached,) = (tmp_path / "fresh").glob("*.json")
    record = json.loads(cached.read_text())
    record["scores"]["train"] = 0.25
    if damage is not None:
        damage(record)
    cached.write_text(json.dumps(record) if damage is not None else "{ half a fi")
    before = cached.read_bytes()
    with pytest.raises(UserError, match="is no fresh reference of this run, or a damaged one: move it away"):
        run(s, tmp_path / "again", tmp_path / "fresh")
    assert cached.read_bytes() == before
    cached.unlink()
    run(s, tmp_path / "again", tmp_path / "fresh")
    again, first = tmp_path / "again", run_directory(tmp_path, s)
    assert (again / "metrics.csv").read_bytes() == (first / "metrics.csv").read_bytes()


def test_a_field_that_was_added_later_leaves_cached_fresh_networks_as_they_are(tmp_path):
    s = spec(diagnostics="none", n_experiences=1)
    do(tmp_path, s)
    (cached,) = (tmp_path / "fresh").glob("*.json")
    record = json.loads(cached.read_text())
    del record["spec"]["threads"], record["spec"]["optimizer"]
    record["scores"]["train"] = 0.25
    cached.write_text(json.dumps(record))
    run(s, tmp_path / "again", tmp_path / "fresh")
    assert rows(tmp_path / "again")["fresh", "train", "", 0] == 0.25


def test_the_name_in_the_cache_depends_on_what_a_fresh_network_depends_on(tmp_path):
    s = spec(strategy="finetune")
    same = [{"threshold": 0.5}, {"n_fresh": 2}, {"diagnostics": "none"}, {"baseline": "l2"}, {"strategy": "ewc=3"}]
    other = [{"optimizer": "adam=0.1"}, {"seed": 1}, {"epochs": 3}, {"strategy": "l2"}, {"optimizer": "sgd"}]
    other += [{"threads": 2}, {"strategy": "l2@epochs=3"}, {"model": "mlp:width=8"}, {"source": "synthetic"}]
    other += [{"scenario": f"label-reset:{option}"} for option in ("fraction=0.5", "n_samples=64", "n_experiences=2")]

    def key(s, k):
        return cache_key(of_fresh_network(s), k)

    def name(fields):
        return key(fresh_spec(check(dataclasses.replace(s, **fields))), 1)

    assert {name(fields) for fields in same} == {name({})}
    assert len({name(fields) for fields in ({}, *other)}) == 1 + len(other)
    assert key(s, 0) != key(s, 1)


def test_each_fresh_network_is_trained_once_whoever_waits_for_it(tmp_path, monkeypatch):
    import plasticity_cl.experiments.fresh as module

    trained, train = [], module._train_fresh

    def counted(recipe, k):
        given = recipe.given
        schedule = CATALOGUE.read(given["scenario"]).options.get("schedule")
        trained.append((given["strategy"], schedule, given["seed"], k))
        return train(recipe, k)

    monkeypatch.setattr(module, "_train_fresh", counted)
    fields = {"scenario": "target-shift", "diagnostics": "none"}
    names = ("layernorm", "l2", "ewc=100", "finetune")
    do(tmp_path, *(spec(strategy=name, seed=seed, **fields) for seed in (0, 1) for name in names))
    streams = [("finetune", "constant"), ("finetune", None), ("layernorm", None), ("l2=0.001", None)]
    assert sorted(trained, key=str) == sorted(
        ((*stream, seed, k) for stream in streams for seed in (0, 1) for k in range(3)), key=str
    )


@pytest.mark.parametrize("scenario", ["label-reset", "target-shift"])
def test_a_run_waits_for_its_references_and_no_reference_is_computed_by_two_processes(tmp_path, scenario):
    names = ("layernorm", "finetune", "ewc=100", "l2")
    specs = [spec(scenario=scenario, strategy=name, seed=seed) for name in names for seed in (0, 1)]
    waiting = plan({run_directory(tmp_path, s): s for s in specs}, tmp_path, Machine())
    behind = {job: first for first, others in waiting.items() for job in others}
    assert len(behind) == sum(map(len, waiting.values())), "a job waits for one other"
    references = [job.spec for job in {*waiting, *behind} if job.directory is None]
    assert len(set(references)) == len(references)
    for job in behind:
        if job.directory is not None:
            done = {behind[job].spec}
            if behind[job] in behind:
                done.add(behind[behind[job]].spec)
            assert done >= {fresh_spec(job.spec), baseline_spec(job.spec)}


def test_finished_runs_are_not_done_again_and_unfinished_ones_are(tmp_path):
    s = spec()
    do(tmp_path, s)
    directory = run_directory(tmp_path, s)
    stamp = (directory / "metrics.csv").stat().st_mtime_ns
    assert do(tmp_path, s) == {directory: "done"}
    assert (directory / "metrics.csv").stat().st_mtime_ns == stamp
    before = sorted(path.relative_to(directory) for path in directory.rglob("*"))
    write_status(directory, "running", "accuracy")
    (directory / "notes.txt").write_text("mine")
    (directory / "pictures" / "mine.jpg").write_text("mine")
    (directory / ".spec.json.1").write_text("{ half a fi")
    (directory / "error.txt").write_text("of an earlier try")
    do(tmp_path, s)
    assert (directory / "metrics.csv").stat().st_mtime_ns != stamp
    after = {path.relative_to(directory) for path in directory.rglob("*")}
    mine = {Path("notes.txt"), Path("pictures/mine.jpg")}
    events = {path for path in before if "tfevents" in path.name}
    assert mine <= after, "what is not ours is kept"
    assert after - mine - {path for path in after if "tfevents" in path.name} == {*before} - events
    assert len([path for path in after if "tfevents" in path.name]) == len(events) == 1


def files(folder):
    """Every file below a folder, with its bytes."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


FOREIGN = {
    "of version 0.1.0": lambda d, s: write_run(d, s, version=None),
    "of version 0.1.0, unfinished": lambda d, s: write_run(d, s, version=None, state="running"),
    "of another version": lambda d, s: write_run(d, s, version="9.9.9"),
    "with a field less": lambda d, s: write_run(d, {k: v for k, v in s.items() if k != "epochs"}),
    "with a field more": lambda d, s: write_run(d, s | {"momentum": 0.9}),
    "with another value": lambda d, s: write_run(d, s | {"optimizer": "adam=0.5"}),
    "of version 0.2.0": lambda d, s: write_run(d, {k: v for k, v in s.items() if k != "format"}, version="0.2.0"),
    "of a later format": lambda d, s: write_run(d, s | {"format": 3}),
    "that is no JSON": lambda d, s: write_run(d, s) or (d / "spec.json").write_text("{"),
    "that is a list": lambda d, s: write_run(d, s) or (d / "spec.json").write_text("[]"),
    "without a spec": lambda d, s: write_run(d, s) or (d / "spec.json").unlink(),
    "of somebody else": lambda d, s: d.mkdir(parents=True) or (d / "thesis.tex").write_text("mine"),
}


def write_run(directory, saved, version=plasticity_cl.__version__, state="done"):
    directory.mkdir(parents=True)
    status = {"state": state, "message": "", "score": "accuracy"} | ({"version": version} if version else {})
    (directory / "spec.json").write_text(json.dumps(saved))
    (directory / "status.json").write_text(json.dumps(status))
    (directory / "metrics.csv").write_text("precious")
    (directory / "snapshot.pt").write_text("precious")


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_run_directory_that_is_not_understood_is_refused_and_never_touched(tmp_path, kind):
    s = spec()
    directory = run_directory(tmp_path, s)
    FOREIGN[kind](directory, saved(s))
    before = files(tmp_path)
    for refused in (
        lambda: run(s, directory, tmp_path.parent / "fresh"),
        lambda: compare([s], tmp_path, Machine(jobs=1)),
        lambda: do(tmp_path, s),
    ):
        with pytest.raises(UserError, match="choose another --out, or move it away") as caught:
            refused()
        assert "\n" not in str(caught.value)
        assert files(tmp_path) == before
    if "0.1.0" in kind:
        assert "holds results of an earlier version" in str(caught.value)


def test_a_field_that_was_added_later_leaves_finished_runs_finished(tmp_path):
    s = spec()
    fields = saved(s)
    for name in ("threads", "score", "threshold", "n_fresh"):
        del fields[name]
        write_run(run_directory(tmp_path / name, s), fields)
        assert finished_state(run_directory(tmp_path / name, s), s) == "done"
        check_out(tmp_path / name, s)
        changed = {"threads": 2, "score": "accuracy", "threshold": 0.5, "n_fresh": 3}
        other = dataclasses.replace(s, **{name: changed[name]})
        with pytest.raises(UserError, match=f"{name} is .* there, not"):
            check_out(tmp_path / name, other)


@given(st.dictionaries(st.sampled_from(["epochs", "batch_size", "threads", "seed"]), st.integers(1, 99)))
def test_the_identity_of_a_run_is_what_was_given(given):
    default = dataclasses.asdict(RunSpec())
    fields = default | given
    assert identity(fields) == identity({name: value for name, value in fields.items() if value != default[name]})
    assert identity(fields | {"of_a_later_version": 1}) != identity(fields)
    assert (identity(fields) == identity(default)) == (fields == default)


NAMES_OF_STRATEGIES = st.text("abc019=+:,.@-_/\\% é", min_size=1, max_size=300)


@given(NAMES_OF_STRATEGIES, NAMES_OF_STRATEGIES)
@example(".", "..")
@example("..", "%2E%2E")
def test_no_strategy_gets_out_of_its_folder_and_no_two_share_one(one, other):
    names = [folder_name(text) for text in (one, other)]
    assert (names[0] == names[1]) == (one == other)
    for name in names:
        assert len(name.encode()) <= 255
        assert Path("out", name).parent == Path("out")
        assert name not in (".", "..")


def test_a_finished_run_is_not_run_over(tmp_path):
    s = spec()
    write_run(tmp_path / "run", saved(s))
    with pytest.raises(UserError, match="holds a finished run"):
        run(s, tmp_path / "run", tmp_path / "fresh")
    assert (tmp_path / "run" / "metrics.csv").read_text() == "precious"


def test_a_directory_that_another_command_works_in_is_left_alone(tmp_path):
    s, other = (spec(strategy=name, n_experiences=1, diagnostics="none") for name in ("finetune", "l2"))
    directory = run_directory(tmp_path, s)
    write_run(directory, saved(s), state="running")
    before = files(directory)
    with locked(directory):
        states = do(tmp_path, s, other)
        assert states[run_directory(tmp_path, other)] == "done"
        assert states[directory].startswith(f"failed: another command works in {directory}")
        assert files(directory) == before
    assert set(do(tmp_path, s, other).values()) == {"done"}


def test_results_under_another_spelling_are_refused_and_not_made_anew_beside(tmp_path):
    s = spec(strategy="ewc=1e9")
    old = saved(s) | {"strategy": "ewc=1000000000"}
    write_run(tmp_path / old["strategy"] / "seed0", old, version=None)
    before = files(tmp_path)
    with pytest.raises(UserError, match="holds results of an earlier version"):
        compare([s], tmp_path, Machine(jobs=1))
    assert files(tmp_path) == before


def test_a_loss_that_becomes_nan_marks_the_run_and_lets_the_others_go_on(tmp_path):
    wild, tame = (
        spec(scenario="target-shift", optimizer="sgd", lr=lr, target_mean=1e4, epochs=3) for lr in (1e-2, 1e-7)
    )
    runs = {tmp_path / "wild" / "r": wild, tmp_path / "tame" / "r": tame}
    states = run_all(runs, tmp_path / "fresh", Machine(jobs=1))
    (line,) = problems(states)
    assert line.startswith(f"{tmp_path / 'wild' / 'r'} diverged: the loss became")
    assert states == {tmp_path / "wild" / "r": "diverged", tmp_path / "tame" / "r": "done"}
    status = json.loads((tmp_path / "wild" / "r" / "status.json").read_text())
    assert status["message"].startswith("the loss became")
    assert "experience 1" in status["message"]
    values = rows(tmp_path / "wild" / "r")
    assert np.isfinite(values["learned", "train", "", 0])
    assert ("learned", "train", "", 1) not in values
    assert finished_state(tmp_path / "wild" / "r", wild) == "diverged"


class NothingIsAsItSeems(nn.Module):
    """Outputs that are NaN in evaluation, with a finite loss in training, as statistics of a normalisation have it."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x) if self.training else self.model(x) * math.nan


def test_outputs_that_become_nan_under_a_finite_loss_mark_the_run(tmp_path, monkeypatch):
    import plasticity_cl.experiments.build as module

    network = module.make_model
    monkeypatch.setattr(module, "make_model", lambda *of, **more: NothingIsAsItSeems(network(*of, **more)))
    s = spec(diagnostics="none")
    assert do(tmp_path, s) == {run_directory(tmp_path, s): "diverged"}
    assert "outputs became nan" in problems(do(tmp_path, s))[0]


def test_diverged_runs_end_a_command_with_1_and_a_line_a_strategy(tmp_path, capsys):
    arguments = [
        "compare",
        "--scenario",
        "label-reset:n_experiences=2,n_samples=64",
        "--epochs",
        "1",
        "--model",
        "mlp=8",
    ]
    arguments += [
        "--optimizer",
        "adam=1e10",
        "--strategies",
        "finetune",
        "l2",
        "--seeds",
        "0",
        "1",
        "--diagnostics",
        "none",
        "--jobs",
        "1",
    ]
    assert main([*arguments, "--out", str(tmp_path)]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if "runs done" not in line]
    assert [line.partition(" diverged: the loss became")[0] for line in lines] == [
        f"plasticity-cl: {tmp_path / name} (seed0, seed1)" for name in ("finetune", "l2=0.001")
    ]
    assert (tmp_path / "report.html").exists()
    assert main([*arguments, "--out", str(tmp_path)]) == 1, "and the next time, too"


ERRORS = [
    ZeroDivisionError("one over nothing"),
    ValueError("two\nlines"),
    FileNotFoundError(2, "No such file or directory", "/data/image.png"),
    PermissionError(13, "Permission denied", "/data/image.png"),
    OSError("a loader's own"),
    OSError(28, "No space left on device"),
    MemoryError(),
    SystemExit(3),
]


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_an_error_in_training_is_written_down_in_a_line_and_stops_no_other_run(tmp_path, monkeypatch, error):
    import plasticity_cl.experiments.run as module

    true_train = module._train

    def broken(recipe, *rest):
        if recipe.given["strategy"].startswith("l2"):
            raise error
        return true_train(recipe, *rest)

    monkeypatch.setattr(module, "_train", broken)
    specs = [spec(strategy=name, n_experiences=1, diagnostics="none") for name in ("l2", "finetune")]
    states = do(tmp_path, *specs)
    said = f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")
    assert list(states.values()) == [f"failed: {said}", "done"]
    failed = run_directory(tmp_path, specs[0])
    assert "in broken" in (failed / "error.txt").read_text()
    assert json.loads((failed / "status.json").read_text())["message"] == said
    assert json.loads((failed / "spec.json").read_text()) == saved(specs[0])
    assert problems(states) == [f"{failed} failed: {said}; see {failed / 'error.txt'}"]
    monkeypatch.undo()
    assert list(do(tmp_path, *specs).values()) == ["done", "done"], "a failed run is done again"
    assert not (failed / "error.txt").exists()


@pytest.mark.slow
def test_a_last_batch_of_one_sample_fails_what_has_batch_norm_and_says_what_to_do(tmp_path):
    specs = [
        spec(strategy=name, seed=seed, n_samples=97, n_experiences=1, diagnostics="none")
        for name in ("batchnorm", "finetune")
        for seed in (0, 1)
    ]
    states = do(tmp_path, *specs, jobs=2)
    assert [state.partition(":")[0] for state in states.values()] == ["failed", "failed", "done", "done"]
    (line,) = problems(states)
    assert "(seed0, seed1) failed: the last batch of an experience has one sample" in line
    assert "choose another batch_size or n_samples" in line


def test_a_mistake_that_concerns_one_strategy_stops_no_other(tmp_path):
    specs = [spec(strategy=name, n_experiences=1, diagnostics="none") for name in ("scale-invariant", "finetune")]
    states = do(tmp_path, *specs)
    assert [state.partition(":")[0] for state in states.values()] == ["failed", "done"]
    assert "is for regression" in problems(states)[0]
    assert not (run_directory(tmp_path, specs[0]) / "error.txt").exists(), "a mistake of the user's needs no traceback"


def test_a_mistake_that_concerns_all_is_said_once(tmp_path):
    with pytest.raises(UserError, match="n_samples is 5000"):
        do(tmp_path, *(spec(strategy=name, n_samples=5000) for name in ("finetune", "l2", "ewc")))
    assert not list(tmp_path.rglob("spec.json"))


@pytest.mark.slow
def test_a_killed_comparison_is_continued(tmp_path):
    arguments = ["compare", "--out", str(tmp_path / "out"), "--strategies", "finetune", "l2", "--seeds", "0", "1"]
    arguments += ["--scenario", "label-reset:n_experiences=30,n_samples=96", "--epochs", "20", "--model", "mlp=16"]
    arguments += ["--jobs", "1"]
    command = [sys.executable, "-m", "plasticity_cl", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    done = tmp_path / "out" / "finetune" / "seed0" / "status.json"
    for _ in range(1200):
        if done.exists() and json.loads(done.read_text())["state"] == "done":
            break
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    stamp = done.stat().st_mtime_ns
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert done.stat().st_mtime_ns == stamp
    states = [json.loads(path.read_text())["state"] for path in (tmp_path / "out").rglob("status.json")]
    assert states == ["done"] * 4


@pytest.mark.slow
@pytest.mark.parametrize("given", ["file", "stdin"])
def test_a_comparison_in_a_plain_script_survives_a_killed_worker_with_the_same_bytes(tmp_path, given):
    """No main guard, and one of the workers is killed as soon as there are two."""
    script = (
        "from pathlib import Path\n"
        "from plasticity_cl.experiments.compare import compare\n"
        "from plasticity_cl.experiments.spec import CompareSpec, Machine\n"
        "print('begun', flush=True)\n"
        "fields = {'scenario': 'label-reset:n_experiences=3,n_samples=96', 'model': 'mlp:width=16', 'epochs': 40}\n"
        "fields['diagnostics'] = 'none'\n"
        "spec = CompareSpec(strategies=('finetune', 'l2'), seeds=(0,), **fields)\n"
        f"print(sorted(compare(spec.runs(), Path({str(tmp_path / 'many')!r}), Machine(jobs=2)).values()))\n"
    )
    (tmp_path / "mine.py").write_text(script)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "mine.py") if given == "file" else "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    if given == "stdin":
        process.stdin.write(script)
    process.stdin.close()
    process.stdin = None
    for _ in range(6000):
        if process.poll() is not None or list(tmp_path.rglob("status.json")):
            break
        time.sleep(0.02)
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True).stdout
    pairs = [tuple(map(int, line.split())) for line in listed.splitlines()]
    (server,) = (pid for pid, parent in pairs if parent == process.pid)
    os.kill(next(pid for pid, parent in pairs if parent == server), signal.SIGKILL)
    shown, said = process.communicate(timeout=300)
    assert shown == "begun\n['done', 'done']\n"
    lines = [line for line in said.splitlines() if "runs done" not in line]
    assert lines in ([], ["a worker process was killed by SIGKILL (out of memory?): its run is done again"])
    s = spec(epochs=40, diagnostics="none")
    do(tmp_path / "one", s)
    first, second = (run_directory(tmp_path / name, s) / "metrics.csv" for name in ("many", "one"))
    assert first.read_bytes() == second.read_bytes()


def test_out_with_other_results_is_refused(tmp_path):
    s = spec()
    do(tmp_path, s)
    check_out(tmp_path, spec(strategy="l2", seed=7))
    with pytest.raises(UserError, match="other results \\(epochs is 2 there, not 3\\)"):
        check_out(tmp_path, spec(epochs=3))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("")
    with pytest.raises(UserError, match="files that are no results"):
        check_out(tmp_path / "notes", s)
    with pytest.raises(UserError, match="is a file"):
        check_out(tmp_path / "notes" / "mine.txt", s)


def test_a_disk_that_refuses_is_named(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    for directory, cache in ((blocked / "run", tmp_path / "fresh"), (tmp_path / "run", blocked / "fresh")):
        with pytest.raises(UserError, match="cannot write to .*file"):
            run(spec(n_experiences=1, diagnostics="none"), directory, cache)


REFUSALS = [
    (OSError(errno.ENOENT, "gone", "{}/metrics.csv"), True),
    (OSError(errno.EACCES, "not allowed", "{}/tensorboard/events"), True),
    (OSError(errno.EACCES, "not allowed", "{}/.."), True),
    (OSError(errno.EDQUOT, "quota exceeded"), True),
    (OSError(errno.ENOENT, "gone", "/data/image.png"), False),
    (OSError(errno.EACCES, "not allowed", "{}-data/image.png"), False),
    (OSError(errno.ECONNRESET, "connection reset"), False),
    (OSError("a word"), False),
    (BrokenPipeError(errno.EPIPE, "broken pipe"), False),
]


@pytest.mark.parametrize(("error", "is_ours"), REFUSALS, ids=repr)
def test_only_what_is_refused_in_the_run_directory_is_an_error_of_writing(tmp_path, error, is_ours):
    folder = tmp_path / "run"
    if error.filename is not None:
        error = OSError(error.errno, error.strerror, os.path.normpath(error.filename.format(folder)))
    with pytest.raises(UserError if is_ours else OSError) as caught, disk_errors(folder):
        raise error
    if is_ours:
        assert str(caught.value) == f"cannot write to {folder}: {error.strerror}"
    else:
        assert caught.value is error


@pytest.mark.slow
def test_a_full_disk_is_told_in_one_line(tmp_path):
    """The size of files is limited, which refuses to write as a full disk does: without a name."""
    script = (
        "import resource, signal, sys\n"
        "from plasticity_cl.cli import main\n"
        "import plasticity_cl.experiments.run\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "stream = 'label-reset:n_experiences=1,n_samples=96'\n"
        f"sys.exit(main(['run', '--scenario', stream, '--epochs', '1', '--jobs', '1', '--out', "
        f"{str(tmp_path / 'out')!r}]))\n"
    )
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    lines = [line for line in finished.stderr.splitlines() if "runs done" not in line]
    assert (finished.returncode, lines) == (
        2,
        [f"plasticity-cl: cannot write to {tmp_path / 'out' / 'finetune' / 'seed0'}: File too large"],
    )


def test_snapshots_load_safely_and_are_the_final_network(tmp_path):
    s = spec(strategy="layernorm")
    do(tmp_path, s)
    saved = torch.load(run_directory(tmp_path, s) / "snapshot.pt", weights_only=True)
    recipe = open_recipe(s)
    scenario, cl = recipe.scenario, recipe.strategy(EvaluationPlugin())
    cl.eval(scenario.train_stream[:1])
    cl.model.load_state_dict(saved["model"])
    x, y = scenario.train_stream[2].samples.batch(torch.arange(96))
    with torch.no_grad():
        accuracy = float((cl.model.eval()(x).argmax(1) == y).double().mean())
    assert rows(run_directory(tmp_path, s))["final", "train", "", 2] == pytest.approx(accuracy, abs=2**-31)


def test_a_toml_file_is_the_same_spec(tmp_path):
    path = tmp_path / "experiment.toml"
    path.write_text(
        'scenario = "target-shift:mean=5"\nstrategies = ["finetune", "l2=1e-4"]\nseeds = [3]\nthreshold = 1'
    )
    wanted = CompareSpec(scenario="target-shift:mean=5", strategies=("finetune", "l2=1e-4"), seeds=(3,), threshold=1.0)
    assert read_toml(path, CompareSpec) == wanted
    assert [(s.strategy, s.seed) for s in wanted.runs()] == [("finetune", 3), ("l2=0.0001", 3)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch = 3", "unknown key 'epoch'; did you mean epochs"),
        ("epochs = 3.5", "epochs must be an integer, not 3.5"),
        ('batch_size = "all"', "batch_size must be an integer, not 'all'"),
        ("n_samples = 100", "write scenario = 'label-reset:n_samples=100'"),
        (
            'scenario = {name = "target-shift", men = 1}',
            "unknown option of scenario target-shift 'men'; did you mean mean",
        ),
        ("scenario = {mean = 1}", "a scenario given as a table needs a name"),
        ("scenario = 3", "scenario must be a string or a table, not 3"),
        ('strategies = [{name = "l3"}]', "unknown strategy 'l3'; did you mean l2"),
        ("epochs = true", "epochs must be an integer, not True"),
        ("seeds = 3", "seeds must be a list of integers, not 3"),
        ("scenario = label-reset", "is not a TOML file"),
    ],
)
def test_mistakes_in_a_toml_file_are_named(tmp_path, text, message):
    path = tmp_path / "experiment.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_toml(path, CompareSpec)


def test_a_missing_toml_file_is_named(tmp_path):
    with pytest.raises(UserError, match="no file .*gone.toml"):
        read_toml(tmp_path / "gone.toml", RunSpec)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scenario": "label-rest"}, "unknown scenario 'label-rest'; did you mean label-reset"),
        ({"strategy": "layernrom"}, "unknown strategy 'layernrom'; did you mean layernorm"),
        ({"optimizer": "adm"}, "unknown optimizer 'adm'; did you mean adam"),
        ({"epochs": 0}, "epochs is 0"),
        ({"scenario": "label-reset:n_experiences=0"}, "n_experiences is 0: it must be a whole number of 1 or more"),
        ({"scenario": "label-reset:fraction=1.5"}, "fraction is 1.5: it must be above 0 and at most 1"),
        ({"scenario": "label-reset:schedule=growing"}, "unknown option of scenario label-reset 'schedule'"),
        ({"optimizer": "adam=nan"}, "lr is nan: it must be a finite number"),
        ({"strategy": "l2@epochs=0"}, "epochs of a strategy is 0: it must be a whole number of 1 or more"),
        ({"strategy": "l2@lr=1"}, "unknown setting in strategy 'l2@lr=1': 'lr'"),
        ({"score": "acuracy"}, "unknown score 'acuracy'; did you mean accuracy"),
        ({"score": "r2"}, "score r2 does not suit label-reset: choose accuracy"),
        ({"score": "accuracy", "scenario": "target-shift"}, "does not suit target-shift: choose bounded-r2 or r2"),
        ({"baseline": "layernrom"}, "unknown strategy 'layernrom'; did you mean layernorm"),
    ],
)
def test_mistakes_in_a_spec_are_named(fields, message):
    with pytest.raises(UserError, match=message):
        check(RunSpec(**fields))


def test_a_comparison_without_strategies_or_with_one_twice_is_refused():
    with pytest.raises(UserError, match="strategies is empty"):
        CompareSpec(strategies=()).runs()
    with pytest.raises(UserError, match="strategy l2=0.001 stands there twice"):
        CompareSpec(strategies=("l2=1e-3", "l2=0.001")).runs()
    with pytest.raises(UserError, match="seed 1 stands there twice"):
        CompareSpec(seeds=(1, 1)).runs()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"source": "digit"}, "unknown source 'digit'; did you mean digits"),
        ({"model": "mlpp"}, "unknown .*'mlpp'; did you mean mlp"),
        ({"device": "tpu9"}, "unknown device 'tpu9'"),
        ({"device": "cuda:99"}, "device cuda:99 is not there"),
        ({"n_samples": 10**6}, "digits has 1437 training samples"),
    ],
)
def test_mistakes_found_while_building_are_named_and_leave_no_run_behind(tmp_path, fields, message):
    with pytest.raises(UserError, match=message):
        do(tmp_path, spec(**fields))
    assert not list(tmp_path.rglob("status.json"))
