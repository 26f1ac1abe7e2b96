"""The command line as a user meets it: help, errors in one line, tables in 80 columns, files where they should be."""

import json
import subprocess
import sys
import time

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from plasticity_cl.cli import main

SMALL = ["--n-experiences", "3", "--n-samples", "96", "--epochs", "2", "--width", "16", "--jobs", "1"]


def command(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "plasticity_cl", *arguments], capture_output=True, text=True, timeout=300, **options
    )


def test_help_names_every_command_and_imports_nothing_heavy():
    script = (
        "import sys, plasticity_cl.cli as c\n"
        "try: c.main(['--help'])\n"
        "except SystemExit as e: print(e.code, sorted({'torch', 'avalanche', 'numpy', 'matplotlib'} & {*sys.modules}))"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout
    for name in ("run", "compare", "report", "list"):
        assert name in shown
    assert shown.splitlines()[-1] == "0 []"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "--scenario", "label-rest"], "unknown scenario 'label-rest'; did you mean label-reset"),
        (["compare", "--source", "digit"], "unknown source 'digit'; did you mean digits"),
        (["compare", "--strategies", "finetune", "layernrom"], "unknown strategy 'layernrom'; did you mean layernorm"),
        (["run", "--strategy", "l2=-1"], "l2"),
        (["run", "--model", "mpl"], "unknown network 'mpl'; did you mean mlp"),
        (["compare", "--n-experiences", "0"], "n_experiences is 0"),
        (["compare", "--fraction", "1.5"], "fraction is 1.5"),
        (
            ["compare", "--scenario", "class-incremental", "--fraction", "0.5"],
            "class-incremental has no option fraction",
        ),
        (["run", "--source", "cifar10", "--data-root", "{tmp}/none"], "cifar10"),
        (["run", "--device", "cuda:7"], "device cuda:7 is not there"),
        (["run", "--jobs", "0"], "jobs is 0"),
        (["run", "--config", "{tmp}/unknown.toml"], "unknown key 'epoch'; did you mean epochs"),
        (["compare", "--config={tmp}/gone.toml"], "no file"),
        (["report", "{tmp}/nowhere"], "nowhere"),
        (["report", "{tmp}"], "plasticity-cl compare"),
        (["run", "--out", "{tmp}/mine"], "holds files that are no results"),
    ],
)
def test_a_mistake_gives_one_line_and_exit_code_2(tmp_path, capsys, arguments, message):
    (tmp_path / "unknown.toml").write_text("epoch = 3")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    arguments = [argument.replace("{tmp}", str(tmp_path)) for argument in arguments]
    if arguments[0] != "report" and not any("--out" in argument for argument in arguments):
        arguments += ["--out", str(tmp_path / "out")]
    if "--jobs" not in arguments and arguments[0] != "report":
        arguments += ["--jobs", "1"]
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert shown.err.startswith("plasticity-cl: ")
    assert message in shown.err
    assert (tmp_path / "mine" / "thesis.tex").exists()


def test_an_unknown_option_exits_with_2(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["compare", "--stratgies", "finetune"])
    assert exit_.value.code == 2
    assert "--strategies" in capsys.readouterr().err


def test_compare_writes_table_report_rows_and_events(tmp_path):
    out = tmp_path / "out"
    finished = command(
        "compare", *SMALL, "--out", str(out), "--strategies", "finetune", "layernorm+l2=1e-3", "--seeds", "0", "1"
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == "", "quiet when piped"
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


def test_options_on_the_command_line_go_before_the_file(tmp_path):
    path = tmp_path / "experiment.toml"
    path.write_text('n_experiences = 2\nn_samples = 64\nepochs = 9\nwidth = 16\nstrategy = "l2=1e-4"')
    finished = command("run", "--config", str(path), "--epochs", "1", "--jobs", "1", "--out", str(tmp_path / "out"))
    assert finished.returncode == 0, finished.stderr
    spec = json.loads((tmp_path / "out" / "l2=0.0001" / "seed0" / "spec.json").read_text())
    assert (spec["epochs"], spec["n_experiences"], spec["strategy"]) == (1, 2, "l2=0.0001")


def test_list_names_everything(capsys):
    from plasticity_cl.models import MODELS
    from plasticity_cl.scenarios.catalogue import SCENARIOS
    from plasticity_cl.scenarios.sources import SOURCES
    from plasticity_cl.strategies.catalogue import COMPONENTS

    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    for name in (*SCENARIOS, *SOURCES, *MODELS, *COMPONENTS):
        assert name in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_an_interrupt_ends_with_one_line_and_no_process_left(tmp_path):
    import os
    import signal

    process = subprocess.Popen(
        [sys.executable, "-m", "plasticity_cl", "compare", "--out", str(tmp_path / "out"), "--epochs", "500"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for _ in range(1200):
        if list(tmp_path.rglob("*.json")):
            break
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, shown = process.communicate(timeout=60)
    assert process.returncode == 130
    assert shown.splitlines()[-1].startswith("plasticity-cl: interrupted")
    assert "Traceback" not in shown
    time.sleep(2)
    left = subprocess.run(["ps", "-eo", "sess,stat,cmd"], capture_output=True, text=True).stdout
    assert not [
        line for line in left.splitlines() if line.split()[0] == str(process.pid) and "Z" not in line.split()[1]
    ]
