"""The pages in docs/ name all that is public and nothing that is not, and their links and pictures lead somewhere."""

import dataclasses
import inspect
import io
import math
import re
import shlex
from pathlib import Path
from typing import Any, TextIO

import pytest
import torch
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from torch import nn

from plasticity_cl import diagnostics
from plasticity_cl.cli import main
from plasticity_cl.diagnostics.norms import LayerValues
from plasticity_cl.diagnostics.trainability import RandomTargetFit
from plasticity_cl.diagnostics.units import LayerUnits, UnitSummary
from plasticity_cl.metrics import SeparationMetric, plasticity_metrics
from plasticity_cl.scenarios import LabelReset, load_source

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(DOCS.glob("*.md"))
PROJECT_PAGES = [DOCS.parent / name for name in ("CONTRIBUTING.md", "CHANGELOG.md")]
DIAGNOSTICS = (DOCS / "diagnostics.md").read_text(encoding="utf-8")

RESULTS = (
    *(UnitSummary, LayerUnits, diagnostics.UnitStatistics, diagnostics.FeatureRank, diagnostics.TargetStatistics),
    *(diagnostics.NTKStatistics, diagnostics.HessianExtremes, diagnostics.LossAlongGradient),
    *(diagnostics.Trainability, RandomTargetFit),
)
# What holds the parts of a result, and is no quantity.
HOLDERS = {"total", "layers", "moments"}
KINDS = {"trace", "full", "sum", "loss"}


def quantities(result: type) -> set[str]:
    """Names of the fields and properties that a result reports."""
    fields = {field.name for field in dataclasses.fields(result)}
    return (fields | {name for name, _ in inspect.getmembers(result, lambda v: isinstance(v, property))}) - HOLDERS


def emitted() -> set[str]:
    """Flat names that the results of a small network with every kind of nonlinearity emit, without their layers."""
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))
    inputs = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    statistics = diagnostics.unit_statistics(model, inputs, diagnostics.unit_statistics(model, inputs))
    norms = LayerValues(1.0, {"first": 1.0}).scalars("parameter_norm")
    ranks = diagnostics.feature_rank(diagnostics.penultimate_features(model, inputs)).scalars()
    targets = diagnostics.target_statistics(inputs[:, 0]).scalars()
    return {name.split("/")[0] for name in (*statistics.scalars(), *ranks, *targets, *norms)}


def commands() -> list[list[str]]:
    """What the pages tell to type, but for the reader's own packages and files."""
    shell = [
        block
        for page in (*PAGES, *PROJECT_PAGES, DOCS.parent / "README.md")
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    ]
    lines = [shlex.split(line, comments=True) for block in shell for line in re.sub(r"\\\n", " ", block).splitlines()]
    ours = [words[1:] for words in lines if words and words[0].endswith("plasticity-cl")]
    return [words for words in ours if not re.search(r"\b(my_\w+\.|experiment\.toml|report)\b", " ".join(words))]


@pytest.mark.parametrize("words", commands(), ids=lambda words: " ".join(words)[:60])
def test_commands_on_the_pages_are_right(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Up to the folder that they write to: the last thing that is looked at before anything is trained."""
    trains = words[0] in ("run", "compare")
    code = main([*words, "--out", "/proc/none"] if trains else words)
    assert (code, capsys.readouterr().err.partition(" to /proc/none")[0]) == (
        (2, "plasticity-cl: cannot write") if trains else (0, "")
    )


@pytest.mark.parametrize("page", [*PAGES, *PROJECT_PAGES, DOCS.parent / "README.md"], ids=lambda page: page.name)
def test_no_page_holds_what_a_merge_left_in_it(page: Path) -> None:
    assert not re.search(r"^(<<<<<<<|=======$|>>>>>>>)", page.read_text(encoding="utf-8"), flags=re.MULTILINE)


def test_there_are_commands_on_the_pages() -> None:
    assert sum("compare" in words for words in commands()) >= 4


def names_on_the_page() -> set[str]:
    return {word for span in re.findall(r"`([^`\n]+)`", DIAGNOSTICS) for word in re.findall(r"\w+", span)}


@pytest.mark.parametrize("name", diagnostics.__all__)
def test_every_public_diagnostic_is_on_the_page(name: str):
    assert name in names_on_the_page()


@pytest.mark.parametrize("result", RESULTS, ids=lambda result: result.__name__)
def test_every_reported_quantity_is_on_the_page(result: type):
    assert quantities(result) - names_on_the_page() == set()


def test_every_emitted_scalar_is_on_the_page():
    assert len(emitted()) > 20
    assert emitted() - names_on_the_page() == set()


def test_what_the_tables_define_exists():
    known = set(diagnostics.__all__).union(*(quantities(result) for result in RESULTS), KINDS)
    defined = set(re.findall(r"^\| `(\w+)`", DIAGNOSTICS, flags=re.MULTILINE))
    assert len(defined) >= 40
    assert defined - known == set()


@pytest.mark.parametrize(
    ("function", "bound"),
    [("unit_statistics", "tau"), ("unit_statistics", "threshold"), ("unit_statistics", "eps"), ("srank", "delta")],
)
def test_bounds_on_the_page_are_the_defaults(function: str, bound: str):
    default = inspect.signature(getattr(diagnostics, function)).parameters[bound].default
    assert re.findall(rf"\b{bound} = ([\d.]*\d)", DIAGNOSTICS) == [str(default)]


def anchors(page: Path) -> set[str]:
    """What a heading is called in a link: lower case, without punctuation, blanks as hyphens."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, *PROJECT_PAGES], ids=lambda page: page.name)
def test_links_and_pictures_lead_somewhere(page: Path):
    links = re.findall(r"!?\[[^\]]*\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    for link in links:
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_commands_on_the_page_are_scripts():
    commands = re.findall(r"`python (\S+\.py)", DIAGNOSTICS)
    assert len(commands) >= 2
    for command in commands:
        assert (DOCS.parent / command).is_file(), command


@pytest.mark.slow
def test_the_examples_of_the_page_on_the_separation_run():
    class MyPlugin(SupervisedPlugin):
        def __init__(self, file: TextIO, model: nn.Module) -> None:
            super().__init__()
            self.file, self.model = file, model

    def make_network() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    finetune = [SeparationMetric({"test": [0.5, 0.5]})]
    names: dict[str, Any] = {
        **{"torch": torch, "Naive": Naive, "EvaluationPlugin": EvaluationPlugin, "MyPlugin": MyPlugin},
        **{"plasticity_metrics": plasticity_metrics, "make_network": make_network, "open": lambda *_: io.StringIO()},
    }
    stream = LabelReset(load_source("digits"), 2, n_samples=64)
    for metrics in (finetune, None):
        if metrics is None:
            names["metrics_of_finetune"] = finetune
            for example in re.findall(r"```python\n(.*?)```", (DOCS / "separation.md").read_text(), flags=re.DOTALL):
                exec(compile(example, "separation.md", "exec"), names)
            metrics = names["metrics"]
        model = make_network()
        optimizer = torch.optim.Adam(model.parameters())
        evaluator = EvaluationPlugin(metrics, loggers=[])
        strategy = Naive(model=model, optimizer=optimizer, train_mb_size=16, evaluator=evaluator)
        for k, experience in enumerate(stream.train_stream):
            strategy.train(experience, eval_streams=[])
            strategy.eval(stream.test_stream[k : k + 1])
    assert all(math.isfinite(value) for value in metrics[0].result()["test"].plasticity_loss)


def examples(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


# The page on the separation leaves out what its reader has; its test is above.
WHOLE = [page for page in PAGES if examples(page) and page.name != "separation.md"]


@pytest.fixture
def run_page(tmp_path, monkeypatch):
    """Run all examples of a page, as one script, and return the names that it made."""
    monkeypatch.chdir(tmp_path)

    def run(page: Path) -> dict[str, Any]:
        names: dict[str, Any] = {"__name__": "__main__"}
        for example in examples(page):
            exec(compile(example, page.name, "exec"), names)
        return names

    return run


def test_every_page_with_whole_examples_is_run_below():
    assert {page.name for page in WHOLE} == {
        *("quick-start.md", "fresh-reference.md", "interventions.md", "streams.md", "own-part.md")
    }


def test_the_quick_start_tells_forgetting_from_plasticity_loss(run_page, tmp_path):
    separation = run_page(DOCS / "quick-start.md")["separation"]
    assert separation.forgetting[:-1].mean() > 0.4
    assert separation.plasticity_loss.mean() < separation.forgetting.mean() / 2
    assert (separation.handicap + separation.plasticity_loss + separation.forgetting == separation.total).all()
    assert (tmp_path / "log.txt").stat().st_size > 0


@pytest.mark.parametrize("name", ["fresh-reference.md", "interventions.md", "streams.md"])
def test_what_the_examples_of_a_page_assert_holds(run_page, name):
    assert sum(example.count("assert ") for example in examples(DOCS / name)) >= 1
    run_page(DOCS / name)


def test_the_own_method_and_the_own_stream_of_the_page_do_what_they_say(run_page):
    names = run_page(DOCS / "own-part.md")
    benchmark, anchor = names["benchmark"], names["Anchor"](10.0)
    turned = benchmark.train_stream[1].samples.inputs
    assert (turned == benchmark.train_stream[0].samples.inputs.rot90(1, (2, 3))).all()
    assert len(benchmark.train_stream) == len(benchmark.test_stream) == 4
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    evaluator = EvaluationPlugin(loggers=[])
    strategy = Naive(model=model, optimizer=optimizer, train_mb_size=500, plugins=[anchor], evaluator=evaluator)
    strategy.train(benchmark.train_stream[0], eval_streams=[])
    assert all((w == a).all() for w, a in zip(model.parameters(), anchor.anchor, strict=True))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
            parameter += 1
    anchor.after_backward(strategy)
    assert all(torch.allclose(parameter.grad, torch.tensor(20.0)) for parameter in model.parameters())


def test_the_pages_name_every_script_in_examples():
    names = {path.name for path in (DOCS.parent / "examples").glob("*.py")}
    assert names == set(re.findall(r"^\| `(\w+\.py)` ", (DOCS / "quick-start.md").read_text(), flags=re.MULTILINE))
