"""The report learns from the run directory what was measured: our metrics, a stranger's, and those of nobody."""

from __future__ import annotations

import html
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from avalanche.training.plugins import EvaluationPlugin
from report_writer import OURS, Page, compared, in_memory, probe_rows, rows_of, spec_of, write_run
from torch import nn

from plasticity_cl.errors import UserError
from plasticity_cl.experiments.rows import RowLogger, write_quantities
from plasticity_cl.metrics import ProbeMetric, Scalar, UnitMetric
from plasticity_cl.quantity import Quantity, to_json
from plasticity_cl.report import read_runs, write_report
from plasticity_cl.report.drawing import looks
from plasticity_cl.report.figures import diagnostics_figure
from plasticity_cl.report.read import comparisons
from plasticity_cl.report.wording import about, diagnostic_in_words, worse
from plasticity_cl.scenarios import LabelReset, load_source
from plasticity_cl.training import SupervisedTemplate


class Drift(ProbeMetric):
    """A stranger's diagnostic that says what it is."""

    group = "theirs"
    needs_samples = False
    quantities: Mapping[str, Quantity] = {
        "drift": Quantity("drift of the <first> layer", "Their $mechanism$", "up", low=0, unit="radians"),
        "drift_of_layer": Quantity("drift, by layer", "Their $mechanism$"),
    }

    def __init__(self) -> None:
        super().__init__(2, 1, "end")

    def measure(self, strategy: Any, run: Any) -> dict[str, float]:
        return {"drift": 0.25, "drift_of_layer/a": 1.0, "drift_of_layer/b": 3.0, "unsaid": 0.5}


class Counter(PluginMetric[float]):
    """A stranger's metric that knows nothing of us, but for one line."""

    quantities: Mapping[str, Quantity] = {
        "theirs/count": Quantity("count of trainings", "Their $mechanism$", "away from 0")
    }

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def result(self) -> float:
        return float(self.count)

    def reset(self) -> None:
        self.count = 0

    def after_training_exp(self, strategy: Any) -> list[MetricValue]:
        self.count += 1
        return [MetricValue(self, "theirs/count", self.result(), 0), MetricValue(self, "nobody/knows", 2.5, 0)]

    def after_eval_exp(self, strategy: Any) -> list[Scalar]:
        return [Scalar(self, "g", "margin", 4.5, 0, stream="train"), Scalar(self, "g", "margin", 5.5, 0, stream="mine")]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a run with metrics of ours and of strangers, and the report of it."""
    out = tmp_path_factory.mktemp("results")
    path = write_run(out / "finetune" / "seed0", spec_of("finetune", 0), [], quantities=None)
    stream = LabelReset(load_source("digits"), 3, n_samples=64).train_stream
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    metrics, rows = [Drift(), UnitMetric(), Counter()], RowLogger(path / "metrics.csv")
    write_quantities(path / "metrics.json", metrics)
    strategy = SupervisedTemplate(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-2),
        train_mb_size=32,
        evaluator=EvaluationPlugin(*metrics, loggers=[rows], collect_all=False),
    )
    for experience in stream:
        strategy.train(experience, eval_streams=[])
        strategy.eval([experience])
    rows.finish({}, {})
    code = "import sys; from pathlib import Path; from plasticity_cl.report import write_report\n"
    code += f"write_report(Path({str(out)!r})); print({{'torch', 'avalanche'}} & set(sys.modules), __name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set() __main__\n", "from the run directory alone"
    return out


def test_a_strangers_metric_is_in_figures_and_tables_under_its_caption_and_mechanism(results: Path) -> None:
    (comparison,) = comparisons(read_runs(results))
    ours, theirs, others = comparison.mechanisms.items()
    assert ours[0] == "Mechanism 1: units and preactivations", "numbered mechanisms come first"
    assert theirs == (
        "Their $mechanism$",
        {"drift": ("",), "drift_of_layer": ("a", "b"), "theirs/count": ("",)},
    )
    assert others == ("Other diagnostics", {"nobody/knows": ("",), "unsaid": ("",)})

    page = Page((results / "report.html").read_text(encoding="utf-8"))
    heads = {head for rows in page.tables for head in rows[0]}
    assert {
        "drift of the <first> layer",
        "drift, by layer (mean over layers)",
        "count of trainings",
        "unsaid",
        "nobody/knows",
        "margin",
    } < heads
    assert "Their $mechanism$" in page.text
    assert "Drift, by layer by layer" in page.text
    hints = {attributes["title"] for tag, attributes in page.elements if tag == "th" and "title" in attributes}
    assert {"radians, at least 0; ↑ worse", "not good or bad in itself", "away from 0: worse"} < hints


def test_the_numbers_in_the_tables_are_those_that_were_emitted(results: Path) -> None:
    page = Page((results / "report.html").read_text(encoding="utf-8"))
    found = {
        head: cell for head_row, *rows in page.tables for row in rows for head, cell in zip(head_row, row, strict=False)
    }
    assert found["drift of the <first> layer"] == "0.250"
    assert found["drift, by layer (mean over layers)"] == "2.000"
    assert (found["a"], found["b"]) == ("1.000", "3.000")
    assert found["count of trainings"] == "3.000", "of the last experience"
    assert found["nobody/knows"] == "2.500"
    assert [rows[1][1] for rows in page.tables if rows[0][1:] == ["margin"]] == ["4.500", "5.500"]
    assert "Other measures on training data" in page.text
    assert "Other measures on mine" in page.text


def test_the_figures_say_the_caption_and_which_way_is_bad(results: Path) -> None:
    (comparison,) = comparisons(read_runs(results))

    def said(mechanism: str) -> dict[str, list[str]]:
        drawing = diagnostics_figure(comparison, looks(["finetune"]), mechanism)
        assert drawing is not None
        panels = [axes for axes, _ in drawing.cells[:-1]]
        return {axes.get_title(loc="left").strip(): [text.get_text() for text in axes.texts] for axes in panels}

    assert said("Their $mechanism$") == {
        "drift of the <first> layer": ["↑ worse"],
        "drift, by layer (mean over layers)": ["not good or bad in itself"],
        "count of trainings": ["away from 0: worse"],
    }
    assert said("Other diagnostics") == {"nobody/knows": [""], "unsaid": [""]}
    files = {path.name for path in (results / "figures").glob("*their-mechanism.svg")}
    assert len(files) == 1


def test_results_of_version_020_show_their_diagnostics_under_plain_names(tmp_path: Path) -> None:
    rows = [*rows_of([0.5, 0.4], [0.4, 0.4], [0.6, 0.6]), *probe_rows("dead_units", [0.1, 0.2])]
    rows += [*probe_rows("effective_rank", [3.0, 2.0], "0"), *probe_rows("effective_rank", [5.0, 4.0], "2")]
    write_run(tmp_path / "finetune", spec_of("finetune", 0), rows, quantities=None)
    (comparison,) = comparisons(read_runs(tmp_path))
    assert comparison.mechanisms == {"Other diagnostics": {"dead_units": ("",), "effective_rank": ("0", "2")}}
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    heads = [rows[0] for rows in page.tables]
    assert ["strategy", "dead units", "effective rank (mean over layers)"] in heads
    assert "worse" not in "".join(head for row in heads for head in row)


def test_runs_of_both_kinds_are_read_together(tmp_path: Path) -> None:
    rows = [*rows_of([0.5], [0.4], [0.6]), *probe_rows("dead_units", [0.1])]
    write_run(tmp_path / "a", spec_of("finetune", 0), rows, quantities=None)
    write_run(tmp_path / "b", spec_of("finetune", 1), rows)
    (comparison,) = comparisons(read_runs(tmp_path))
    assert comparison.mechanisms == {"Mechanism 1: units and preactivations": {"dead_units": ("",)}}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is broken: "),
        ("[1]", "is broken: it is not an object of objects"),
        ('{"drift": {"words": ""}}', "is broken: a quantity must say in words what it is"),
        (b"\xff\xfe\xfa", "is broken: "),
    ],
)
def test_a_broken_description_is_told_in_one_line(tmp_path: Path, content: str | bytes, said: str) -> None:
    path = write_run(tmp_path / "a", spec_of("finetune", 0), rows_of([0.5], [0.5], [0.5])) / "metrics.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=f"{re.escape(str(path))} {said}") as caught:
        read_runs(tmp_path)
    assert "\n" not in str(caught.value)


def test_mechanisms_stand_in_the_order_of_the_run_and_numbered_ones_first() -> None:
    theirs = {
        "a": Quantity("a"),
        "b": Quantity("b", "Zebra"),
        "c": Quantity("c", "Mechanism 4: theirs"),
        "d": Quantity("d", "Apple"),
        **OURS,
        "e": Quantity("e", "Zebra"),
    }
    names = ("e", "d", "c", "b", "a", "zz", "probe_loss", "target_mean", "dead_units", "feature_norm", "mean_shift")
    run = in_memory("finetune", 0, [row for name in names for row in probe_rows(name, [1.0])], quantities=theirs)
    assert [(title, list(metrics)) for title, metrics in compared(run).mechanisms.items()] == [
        ("Mechanism 1: units and preactivations", ["mean_shift", "dead_units"]),
        ("Mechanism 3: regression targets", ["target_mean"]),
        ("Mechanism 4: theirs", ["c"]),
        ("Zebra", ["b", "e"]),
        ("Apple", ["d"]),
        ("Features", ["feature_norm"]),
        ("Curvature and trainability", ["probe_loss"]),
        ("Other diagnostics", ["a", "zz"]),
    ]


def test_whatever_a_mechanism_is_called_it_takes_no_figure_away(tmp_path: Path) -> None:
    titles = ("parts", "separation", "learning-train", "Features", "features!", "</h3><script>")
    theirs = {f"m{i}": Quantity(f"m{i}", title) for i, title in enumerate(titles)}
    rows = [*rows_of([0.5, 0.4], [0.4, 0.4], [0.6, 0.6], baseline=[0.7, 0.7])]
    rows += [row for name in theirs for row in probe_rows(name, [0.1, 0.2])]
    for seed in range(2):
        write_run(tmp_path / str(seed), spec_of("finetune", seed), rows, quantities=theirs)
    source = write_report(tmp_path).read_text(encoding="utf-8")
    assert source.count("<figure>") == 3 + len(titles)
    for title in titles:
        assert f"<h3>{html.escape(title)}</h3>" in source
    assert len(list((tmp_path / "figures").glob("*.svg"))) == 3 + len(titles)
    Page(source)


@pytest.mark.parametrize(
    ("quantity", "said"),
    [
        (Quantity("x", low=0, high=1, unit="share", worse="up"), "share, from 0 to 1; ↑ worse"),
        (Quantity("x", low=1, worse="down"), "at least 1; ↓ worse"),
        (Quantity("x", high=2.5, worse="near 1"), "at most 2.5; near 1: worse"),
        (Quantity("x", worse="set by the stream", unit="s"), "s; set by the stream"),
        (Quantity("x"), "not good or bad in itself"),
        (None, ""),
    ],
)
def test_what_is_known_of_a_quantity_in_words(quantity: Quantity | None, said: str) -> None:
    assert about(quantity) == said
    assert worse(quantity) == said.split("; ")[-1]


def test_words_take_the_place_of_a_name() -> None:
    quantity = Quantity("Dead, or dying")
    assert diagnostic_in_words("dead_units", quantity, ("",)) == "Dead, or dying"
    assert diagnostic_in_words("dead_units", quantity, ("a", "b")) == "Dead, or dying (mean over layers)"
    assert diagnostic_in_words("dead_units", None, ("fc1",)) == "dead units (fc1)"


def test_our_own_words_are_our_names() -> None:
    """So that a reader of the table and a reader of the report speak of the same thing."""
    assert {name: quantity.words for name, quantity in OURS.items()} == {name: name.replace("_", " ") for name in OURS}
    assert len(to_json(OURS)) < 16_000
