"""The command line as a user meets it: help, errors in one line, tables in 80 columns, files where they should be."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from plasticity_cl.cli import main
from plasticity_cl.experiments.spec import CompareSpec, Machine, RunSpec

STREAM = ["--scenario", "label-reset:n_experiences=3,n_samples=96"]
SMALL = [*STREAM, "--epochs", "2", "--model", "mlp:width=16", "--jobs", "1"]


LONG = ["--scenario", "label-reset:n_samples=96", "--epochs", "100", "--model", "mlp:width=16"]
LONG += ["--diagnostics", "none", "--jobs", "2"]


def without_progress(said):
    """The lines on the standard error stream, but for the one a minute that says how far the runs have come."""
    return [line for line in said.splitlines() if not re.match(r"\d+ of \d+ runs done", line)]


def command(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "plasticity_cl", *arguments], capture_output=True, text=True, timeout=300, **options
    )


HEAVY = "{'torch', 'avalanche', 'torchvision', 'numpy', 'scipy', 'sklearn', 'matplotlib', 'tensorboard', 'wilds'}"


def light(*arguments, **environment):
    """Run a command in a new process, and return its code, its output, what it says, and what heavy it imported."""
    script = (
        f"import sys, plasticity_cl.cli as c\ncode = c.main({[*arguments]!r})\n"
        f"print('imported', *sorted({HEAVY} & {{*sys.modules}}))\nsys.exit(code)"
    )
    finished = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, env=os.environ | environment
    )
    shown, _, imported = finished.stdout.rpartition("imported")
    return finished.returncode, shown, finished.stderr, imported.split()


@pytest.mark.parametrize("arguments", [["--help"], ["compare", "--help"], ["run", "-h"], ["list"], ["--version"]])
def test_help_lists_and_version_import_nothing_heavy(arguments):
    code, shown, said, imported = light(*arguments)
    assert (code, said, imported) == (0, "", [])
    names = {
        "--help": ("run", "compare", "report", "list"),
        "compare": ("--strategies", "--optimizer", "--device", "--out"),
    }
    for name in names.get(arguments[0], ("",)):
        assert name in shown


def test_help_of_a_command_names_every_field():
    _, shown, _, _ = light("compare", "--help")
    for field in (*dataclasses.fields(CompareSpec), *dataclasses.fields(Machine)):
        assert f"--{field.name.replace('_', '-')}" in shown


# Mistakes: one line each, code 2, and nothing heavy imported before the answer.

MISTAKES = [
    ([], "the command comes first: run, compare, report, list"),
    (["compar"], "unknown command 'compar'; did you mean compare"),
    (["--epochs", "3"], "the command comes first"),
    (["compare", "--stratgies", "finetune"], "unknown option of compare '--stratgies'; did you mean --strategies"),
    (["run", "--epoch=3"], "unknown option of run '--epoch'; did you mean --epochs"),
    (["run", "--seeds", "1"], "unknown option of run '--seeds'; did you mean --seed"),
    (["list", "--all"], "unknown option '--all': list has none"),
    (["run", "--epochs", "three"], "--epochs: invalid literal"),
    (["run", "--epochs"], "Missing value for argument '--epochs'"),
    (["run", "--config"], "Missing value for argument '--config'"),
    (["run", "finetune"], "Unrecognized options: finetune"),
    (["compare", "--seeds", "a"], "--seeds"),
    (["compare", "--seeds", "1", "0", "1"], "seed 1 stands there twice"),
    (["compare", "--strategies", "l2=1e9", "l2=1000000000"], "strategy l2=1e9 stands there twice"),
    (["report"], "Folder with runs"),
    (["report", "{tmp}/nowhere"], "nowhere"),
    (["run", "--config", "{tmp}/unknown.toml"], "unknown key 'epoch'; did you mean epochs"),
    (["compare", "--config={tmp}/gone.toml"], "no file"),
    (["compare", "--config", "{tmp}"], "cannot read"),
    (["compare", "--scenario", "label-rest"], "unknown scenario 'label-rest'; did you mean label-reset"),
    (["compare", "--source", "digit"], "unknown source 'digit'; did you mean digits"),
    (["run", "--source", "wilds"], "label-reset is not made of wilds: its sources are digits"),
    (["run", "--scenario", "iwildcam", "--source", "wild"], "unknown source 'wild'; did you mean wilds"),
    (["compare", "--strategies", "finetune", "layernrom"], "unknown strategy 'layernrom'; did you mean layernorm"),
    (["run", "--strategy", "l2=-1"], "l2"),
    (["run", "--model", "mpl"], "unknown network 'mpl'; did you mean mlp"),
    (["run", "--model", "imagenet-resnet34"], "unknown network 'imagenet-resnet34'; did you mean imagenet-resnet"),
    (["run", "--model", "mlp:activation=rely"], "unknown activation 'rely'; did you mean relu"),
    (["run", "--model", "mlp:normalization=batchnorm"], "unknown normalization 'batchnorm'; did you mean batch"),
    (["run", "--model", "mlp:widht=3"], "unknown option of network mlp 'widht'; did you mean width"),
    (["list", "target-shfit"], "unknown part 'target-shfit'; did you mean target-shift"),
    (["run", "--optimizer", "adm"], "unknown optimizer 'adm'; did you mean adam"),
    (["run", "--diagnostics", "lite"], "unknown choice of diagnostics 'lite'; did you mean light"),
    (["run", "--scenario", "target-shift:schedule=growin"], "unknown schedule 'growin'; did you mean growing"),
    (["run", "--scenario", "target-shift:targets=noises"], "unknown targets 'noises'; did you mean noise"),
    (["run", "--scenario", "target-shift:mean=inf"], "mean is inf"),
    (["run", "--scenario", "iwildcam:by=day", "--source", "camera-traps"], "unknown by 'day'"),
    (["compare", "--scenario", "label-reset:n_experiences=0"], "n_experiences is 0"),
    (["compare", "--model", "mlp:width=0"], "width is 0"),
    (["compare", "--model", "mlp:depth=-2"], "depth is -2"),
    (["compare", "--scenario", "label-reset:fraction=1.5"], "fraction is 1.5"),
    (["run", "--optimizer", "adam:lr=nan"], "lr is nan"),
    (["run", "--optimizer", "adam:lr=inf"], "lr is inf"),
    (["run", "--optimizer", "adam:betas=0.9"], "betas is 0.9: it must be 2 values"),
    (["run", "--executor", "process"], "unknown executor 'process'; did you mean processes"),
    (["run", "--scenario", "no_such_package.module.Stream"], "there is no module no_such_package"),
    (["run", "--strategy", "plasticity_cl.strategies.l2.L3Plugin"], "did you mean L2Plugin"),
    (["run", "--strategy", "l2@optimizer=adm"], "unknown optimizer 'adm'; did you mean adam"),
    (["run", "--source", "image-folder"], "source image-folder needs a value of folder"),
    (["run", "--source", "npz={tmp}/none.npz"], "it must be a file that is there"),
    (["run", "--lr", "1e-4"], "--lr is an option of a part: write --optimizer adam:lr=0.0001"),
    (
        ["compare", "--scenario", "target-shift", "--target-mean=5", "--n-samples", "64"],
        "--target-mean, --n-samples are options of a part: write --scenario target-shift:mean=5,n_samples=64",
    ),
    (["run", "--model", "cnn", "--width", "8"], "--width is an option of a part: write --model cnn:width=8"),
    (["run", "--threshold", "nan"], "threshold is nan"),
    (["run", "--jobs", "0"], "jobs is 0"),
    (
        ["compare", "--scenario", "class-incremental:fraction=0.5"],
        "unknown option of scenario class-incremental 'fraction'",
    ),
    (["run", "--source", "cifar10", "--data-root", "{tmp}"], "no cifar-10-batches-py/data_batch_1 there"),
    (["run", "--scenario", "iwildcam", "--source", "wilds", "--data-root", "{tmp}"], "no WILDS iWildCam"),
    (["run", "--model", "imagenet-resnet18:weights={tmp}/none.pt"], "it must be a file that is there"),
    (["run", "--device", "gpu"], "unknown device 'gpu'"),
    (["run", "--device", "cuda:x"], "unknown device 'cuda:x'"),
    (["run", "--out", "{tmp}/mine"], "holds files that are no results"),
    (["run", "--out", "{tmp}/unknown.toml"], "is a file"),
    (["run", "--out", "{tmp}/unknown.toml/under"], "is a file"),
    (["run", "--out", "/proc/none"], "cannot write to /proc/none"),
]


@pytest.fixture
def mistaken(tmp_path):
    (tmp_path / "unknown.toml").write_text("epoch = 3")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")

    def arguments(given):
        given = [argument.replace("{tmp}", str(tmp_path)) for argument in given]
        if given[:1] in (["run"], ["compare"]) and given[1:] and given[1] != "--out" and len(given[1:]) > 1:
            given += ["--out", str(tmp_path / "out")]
        return given

    yield arguments
    assert (tmp_path / "mine" / "thesis.tex").exists()
    assert not list(tmp_path.rglob("spec.json"))


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=lambda value: " ".join(value)[:40])
def test_a_mistake_gives_one_line_and_exit_code_2(mistaken, capsys, arguments, message):
    assert main(mistaken(arguments)) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert shown.err.startswith("plasticity-cl: ")
    assert message in shown.err


def test_mistakes_are_answered_before_anything_heavy_is_imported(mistaken):
    """All in one process, so that the one that imports something is found by its place."""
    calls = "".join(
        f"c.main({mistaken(given)!r}); heavy({given!r})\n"
        for given, _ in [*MISTAKES, (["run", "--device", "cuda"], ""), (["run", "--device", "mps"], "")]
        if "{tmp}/nowhere" not in given
    )
    script = (
        "import sys, plasticity_cl.cli as c\n"
        "def heavy(given):\n"
        f"    found = sorted({HEAVY} & {{*sys.modules}})\n"
        "    if found: sys.exit(f'{given} {found}')\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", script + calls],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )
    assert finished.returncode == 0, finished.stderr.splitlines()[-1]
    assert "device cuda is not there: CUDA_VISIBLE_DEVICES hides them all" in finished.stderr


def test_words_that_options_can_be_are_those_that_networks_are_made_with():
    from typing import get_args

    from plasticity_cl.models import layers, nonlinearities

    assert tuple(nonlinearities.ACTIVATIONS) == get_args(layers.Activation)
    assert get_args(layers.Normalization) == layers.NORMALIZATIONS


@pytest.mark.parametrize(
    "arguments", ["list", "--help", "compare --help", "--version", "report {runs}"], ids=lambda a: a.split()[0]
)
def test_a_reader_that_has_seen_enough_ends_a_command_silently(tmp_path, arguments):
    write_run(tmp_path)
    shell = f"'{sys.executable}' -m plasticity_cl {arguments.format(runs=tmp_path)} | true; echo ${{PIPESTATUS[0]}}"
    finished = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=60)
    assert finished.stderr == ""
    assert finished.stdout in ("141\n", "0\n"), (
        "as other commands are ended; or all was written before the reader ended"
    )
    if "report" in arguments:
        assert (tmp_path / "report.html").exists()


def test_output_that_nobody_can_read_ends_a_command_silently():
    reading, writing = os.pipe()
    os.close(reading)
    finished = subprocess.run([sys.executable, "-m", "plasticity_cl", "list"], stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (finished.returncode, finished.stderr) == (141, b"")


def write_run(folder):
    """A finished run, as far as a report needs it."""
    run = folder / "finetune" / "seed0"
    run.mkdir(parents=True)
    (run / "spec.json").write_text(json.dumps(dataclasses.asdict(RunSpec())))
    (run / "status.json").write_text('{"state": "done", "message": "", "score": "accuracy"}')
    rows = [f"{name},train,,0,0.5" for name in ("final", "forgetting", "fresh", "learned", "plasticity_loss", "total")]
    (run / "metrics.csv").write_text("\n".join(["metric,stream,layer,experience,value", *sorted(rows), ""]))


@pytest.mark.slow
def test_compare_writes_table_report_rows_and_events(tmp_path):
    out = tmp_path / "out"
    finished = command(
        "compare", *SMALL, "--out", str(out), "--strategies", "finetune", "layernorm+l2=1e-3", "--seeds", "0", "1"
    )
    assert finished.returncode == 0, finished.stderr
    assert without_progress(finished.stderr) == []
    assert max(len(line) for line in finished.stdout.splitlines() if str(tmp_path) not in line) <= 80
    assert "layernorm+l2=0.001" in finished.stdout
    assert (out / "report.html").stat().st_size > 10_000
    assert list((out / "figures").glob("*.png"))
    run = out / "layernorm+l2=0.001" / "seed1"
    assert json.loads((run / "status.json").read_text())["state"] == "done"
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert {tag.split("/")[0] for tag in events.Tags()["scalars"]} >= {"plasticity", "forgetting", "units"}

    again = command("compare", *SMALL, "--epochs", "3", "--out", str(out), "--strategies", "finetune", "--seeds", "0")
    assert again.returncode == 2
    assert "holds other results (epochs is 2 there, not 3)" in again.stderr
    added = command("compare", *SMALL, "--out", str(out), "--strategies", "l2", "--seeds", "0")
    assert added.returncode == 0, added.stderr
    assert "l2=0.001" in added.stdout
    assert "finetune" in added.stdout


@pytest.mark.slow
def test_options_on_the_command_line_go_before_the_file(tmp_path):
    path = tmp_path / "experiment.toml"
    path.write_text(
        'epochs = 9\nmodel = "mlp:width=16"\nscenario = {name = "label-reset", n_experiences = 2, n_samples = 64}\n'
        'strategy = {name = "l2", strength = 1e-4}'
    )
    finished = command("run", "--config", str(path), "--epochs", "1", "--jobs", "1", "--out", str(tmp_path / "out"))
    assert finished.returncode == 0, finished.stderr
    spec = json.loads((tmp_path / "out" / "l2=0.0001" / "seed0" / "spec.json").read_text())
    assert (spec["epochs"], spec["strategy"]) == (1, "l2=0.0001")
    assert spec["scenario"] == "label-reset:n_experiences=2,n_samples=64"


def test_list_names_everything(capsys):
    from plasticity_cl.experiments.catalogue import EXECUTORS
    from plasticity_cl.metrics.catalogue import METRICS
    from plasticity_cl.models import MODELS
    from plasticity_cl.scenarios.catalogue import SCENARIOS, SOURCES
    from plasticity_cl.strategies.catalogue import COMPONENTS
    from plasticity_cl.training.catalogue import OPTIMIZERS

    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    for name in (*SCENARIOS, *SOURCES, *MODELS, *OPTIMIZERS, *COMPONENTS, *METRICS, *EXECUTORS):
        assert name in shown
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.slow
def test_an_interrupt_ends_with_one_line_and_no_process_left(tmp_path):
    # A shell without job control starts its background processes with interrupts ignored: here they are heard.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, "-m", "plasticity_cl", "compare", "--out", str(tmp_path / "out"), *LONG],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    signal.signal(signal.SIGINT, before)
    for _ in range(1200):
        if list(tmp_path.rglob("*.json")):
            break
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, shown = process.communicate(timeout=60)
    assert process.returncode == 130
    assert without_progress(shown) == [
        "plasticity-cl: interrupted; what is finished is kept, and the same command goes on from there"
    ]
    left = subprocess.run(["ps", "-eo", "sess,stat,cmd"], capture_output=True, text=True).stdout
    assert not [
        line for line in left.splitlines() if line.split()[0] == str(process.pid) and "Z" not in line.split()[1]
    ]
