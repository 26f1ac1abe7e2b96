"""A part of somebody else's is one file: each kind, from a package that did not exist before, in one command.

The package is written here: a file for each part, and for those that are to have a name, one line in its list of entry
points. Nothing of ours is edited.
"""

import csv
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from plasticity_cl.report import read_runs

FILES = {
    "stream": '''
        """Own stream."""
        import torch
        from plasticity_cl.scenarios import Source
        from plasticity_cl.scenarios.stream import InMemoryScenario, source_samples
        from plasticity_cl.seeding import generator


        def Shuffled(source: Source, n_experiences: int = 2, *, share: float = 1.0, seed: int = 0) -> InMemoryScenario:
            """The labels of the first samples change places.

            Args:
                source: Images and labels.
                n_experiences: Length of the stream.
                share: Of the samples that are used.
                seed: Root of all draws.
            """
            size = round(share * len(source.train_labels))

            def train(k):
                order = torch.randperm(size, generator=generator(seed, "shuffled", k))
                return source_samples(source, "train", source.train_labels[:size][order], size=size)

            return InMemoryScenario(
                "shuffled", n_experiences, train, lambda k: source_samples(source, "test", source.test_labels),
                input_shape=source.input_shape, n_outputs=source.n_classes,
            )
    ''',
    "source": '''
        import torch
        from plasticity_cl.scenarios import Source
        from plasticity_cl.seeding import generator


        def blobs(n: int = 60, *, distance: float = 3.0) -> Source:
            """Two Gaussian clusters."""
            random = generator(0, "blobs")
            labels = torch.arange(n) % 2
            images = torch.randn(n, 1, 4, 4, generator=random) + distance * labels[:, None, None, None]
            return Source("blobs", images, labels, images, labels, 2, (), ())
    ''',
    "model": '''
        import math
        from torch import nn


        class Net(nn.Sequential):
            """One hidden layer."""

            def __init__(self, input_shape: tuple[int, ...], n_outputs: int, hidden: int = 8) -> None:
                flat = nn.Linear(math.prod(input_shape), hidden)
                super().__init__(nn.Flatten(), flat, nn.ReLU(), nn.Linear(hidden, n_outputs))
    ''',
    "optimizer": '''
        import torch


        class Signs(torch.optim.Optimizer):
            """Steps of one size."""

            def __init__(self, params, lr: float = 0.01) -> None:
                super().__init__(params, {"lr": lr})

            @torch.no_grad()
            def step(self, closure=None):
                for group in self.param_groups:
                    for parameter in group["params"]:
                        if parameter.grad is not None:
                            parameter -= group["lr"] * parameter.grad.sign()
    ''',
    "plugin": '''
        import torch
        from avalanche.training.plugins import SupervisedPlugin


        class Noise(SupervisedPlugin):
            """Adds noise to the gradients.

            Args:
                strength: Its standard deviation.
                seed: Root of the noise.
            """

            def __init__(self, strength: float = 0.1, *, seed: int = 0) -> None:
                super().__init__()
                self.strength, self.random = strength, torch.Generator().manual_seed(seed)

            def after_backward(self, strategy, *args, **kwargs):
                for parameter in strategy.model.parameters():
                    if parameter.grad is not None:
                        parameter.grad += self.strength * torch.randn(parameter.shape, generator=self.random)
    ''',
    "metric": '''
        from plasticity_cl.metrics import ProbeMetric
        from plasticity_cl.quantity import Quantity


        class Largest(ProbeMetric):
            """The largest weight."""

            group = "mine"
            quantities = {"largest_weight": Quantity("largest weight of all", mechanism="My mechanism", worse="up")}

            def __init__(self, every: int = 1) -> None:
                super().__init__(2, every, "end")

            def measure(self, strategy, run):
                return {"largest_weight": max(float(p.detach().abs().max()) for p in strategy.model.parameters())}
    ''',
    "executor": '''
        from pathlib import Path
        from plasticity_cl.experiments.in_turn import InTurn


        class Written(InTurn):
            """In turn, and writes down how many it does."""

            def __init__(self, file: str) -> None:
                self.file = file

            def do_all(self, waiting, progress):
                for job, outcome in super().do_all(waiting, progress):
                    with Path(self.file).open("a") as file:
                        print(outcome.state, file=file)
                    yield job, outcome
    ''',
}

ENTRY_POINTS = """
[plasticity_cl.scenarios]
shuffled = stranger.stream:Shuffled
[plasticity_cl.sources]
blobs = stranger.source:blobs
[plasticity_cl.models]
net = stranger.model:Net
[plasticity_cl.optimizers]
signs = stranger.optimizer:Signs
[plasticity_cl.strategies]
noise = stranger.plugin:Noise
[plasticity_cl.metrics]
largest = stranger.metric:Largest
[plasticity_cl.executors]
written = stranger.executor:Written
"""

BY_PATH = {
    "scenario": "stranger.stream.Shuffled",
    "source": "stranger.source.blobs",
    "model": "stranger.model.Net",
    "optimizer": "stranger.optimizer.Signs",
    "strategy": "stranger.plugin.Noise",
    "metric": "stranger.metric.Largest",
    "executor": "stranger.executor.Written",
}
BY_NAME = dict(zip(BY_PATH, ("shuffled", "blobs", "net", "signs", "noise", "largest", "written"), strict=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a package in it, as one that was written this morning or one that was installed."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "stranger").mkdir()
    (folder / "stranger" / "__init__.py").write_text("")
    for name, text in FILES.items():
        (folder / "stranger" / f"{name}.py").write_text(textwrap.dedent(text))
    installed = folder / "stranger-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text(ENTRY_POINTS)
    return folder


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # Not with -m, which would put the folder on the path by itself.
    start = [sys.executable, "-c", "import sys; from plasticity_cl.cli import main; sys.exit(main())"]
    environment = os.environ | {"PYTHONSAFEPATH": "1"}
    return subprocess.run(
        [*start, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def shape(values: list[dict[str, str]]) -> set[tuple[str, str]]:
    return {(row["metric"], row["stream"]) for row in values}


@pytest.mark.slow
@pytest.mark.parametrize(("names", "executor"), [(BY_PATH, "own"), (BY_NAME, "own"), (BY_PATH, "processes")])
def test_every_kind_of_part_is_compared_and_found_in_the_report(folder: Path, names, executor) -> None:
    out = folder / f"{names['scenario']}-{executor}"
    own = f"{names['strategy']}:strength=0.3"
    arguments = ["--scenario", f"{names['scenario']}:n_experiences=3,share=0.5", "--source", f"{names['source']}=80"]
    arguments += ["--model", f"{names['model']}:hidden=6", "--optimizer", f"{names['optimizer']}:lr=0.02"]
    arguments += ["--strategies", "finetune", own, f"l2=0.01+{own}@epochs=2@optimizer=adam", "--seeds", "0", "1"]
    arguments += ["--diagnostics", f"norms+{names['metric']}", "--epochs", "2", "--out", str(out)]
    done = folder / f"{names['executor']}.txt"
    arguments += ["--executor", f"{names['executor']}:file={done}"] if executor == "own" else ["--jobs", "2"]
    finished = command(folder, "compare", *arguments)
    assert finished.returncode == 0, finished.stderr
    runs = read_runs(out)
    strategies = {run.strategy for run in runs}
    path = f"{names['strategy']}=0.3"
    assert strategies == {"finetune", path, f"l2=0.01+{path}@optimizer=adam@epochs=2"}
    assert {run.state for run in runs} == {"done"}
    for run in runs:
        spec = json.loads((out / run.path / "spec.json").read_text())
        assert spec["scenario"] == f"{names['scenario']}:n_experiences=3,share=0.5"
        assert spec["model"] == f"{names['model']}:hidden=6"
        rows = list(csv.DictReader((out / run.path / "metrics.csv").open()))
        assert {("largest_weight", "probe"), ("learned", "train"), ("plasticity_loss", "test")} <= shape(rows)
    finetune, noise = (
        [run.series("largest_weight", "probe") for run in runs if run.strategy == name] for name in ("finetune", path)
    )
    assert finetune != noise, "the plugin acts"
    assert noise[0] != noise[1], "and draws from the run's seed"
    page = (out / "report.html").read_text()
    for word in ("My mechanism", "largest weight of all", names["strategy"]):
        assert word in page
    assert names["strategy"].split(".")[0] in finished.stdout
    if executor == "own":
        # Three strategies with two seeds each, and a reference for each, of which the baseline's is finetune's.
        assert done.read_text().split() == ["done"] * 12
        done.unlink()


def test_an_own_part_is_listed_with_its_options_and_nothing_heavy_is_imported(folder: Path) -> None:
    program = (
        "import sys; from plasticity_cl.cli import main\n"
        "code = main(['list', 'stranger.stream.Shuffled', 'noise', 'net'])\n"
        "sys.exit(', '.join({'torch', 'avalanche', 'numpy'} & {*sys.modules}) or code)"
    )
    shown = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    for word in ("n_experiences", "whole number; default 2", "share", "strength", "Its standard deviation", "hidden"):
        assert word in shown.stdout
    for word in ("source ", "seed", "input_shape"):
        assert word not in shown.stdout
    listed = command(folder, "list").stdout
    for name in BY_NAME.values():
        assert f"\n  {name} " in listed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--strategy", "stranger.plugin.Nois"], "unknown name in stranger.plugin 'Nois'; did you mean Noise"),
        (["--strategy", "stranger.plugni.Noise"], "unknown name in stranger 'plugni"),
        (["--strategy", "strange.plugin.Noise"], "there is no module strange for strange.plugin.Noise"),
        (["--strategy", "noize"], "unknown strategy 'noize'; did you mean noise"),
        (["--strategy", "noise:strenght=3"], "unknown option of strategy noise 'strenght'; did you mean strength"),
        (["--strategy", "noise=loud"], "strength is loud: it must be a finite number"),
        (["--strategy", "stranger.model.Net"], "strategy stranger.model.Net"),
        (["--scenario", "stranger.source.blobs"], "scenario stranger.source.blobs"),
        (["--model", "stranger.plugin.Noise"], "which is no torch.nn.Module"),
        (["--optimizer", "stranger.model.Net"], "optimizer stranger.model.Net"),
        (["--diagnostics", "stranger.plugin.Noise"], "which is no Avalanche metric"),
        (["--strategy", "broken.Plugin"], "broken.py, line 2"),
        (
            ["--strategy", "absent.Plugin"],
            "absent cannot be imported: ModuleNotFoundError: No module named 'not_there'",
        ),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_mistakes_with_own_parts_are_answered_in_one_line(folder: Path, arguments, message) -> None:
    (folder / "broken.py").write_text("class Plugin:\n    def __init__(self: pass\n")
    (folder / "absent.py").write_text("from not_there import Base\n\n\nclass Plugin(Base):\n    pass\n")
    stream = [] if "--scenario" in arguments else ["--scenario", "label-reset:n_experiences=1,n_samples=32"]
    others = ["--epochs", "1", "--jobs", "1", "--out", str(folder / "mistaken")]
    finished = command(folder, "run", *stream, *arguments, *others)
    lines = [line for line in finished.stderr.splitlines() if "runs done" not in line]
    assert finished.returncode == 2, finished.stderr
    assert len(lines) == 1, finished.stderr
    assert message in lines[0]
