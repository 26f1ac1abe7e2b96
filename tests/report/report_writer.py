"""Result folders as runs write them, for the tests of the report."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from plasticity_cl.metrics import landscape_metrics, mechanism_metrics, plasticity_metrics
from plasticity_cl.quantity import Quantity, quantities_of, to_json
from plasticity_cl.report.read import Comparison, Run

Series = Sequence[float]
OURS = quantities_of([*plasticity_metrics(), *mechanism_metrics(), *landscape_metrics()])
"""What a run with all our metrics says of them."""


def spec_of(strategy: str, seed: int, **fields: Any) -> dict[str, Any]:
    return {"scenario": "label-reset", "source": "digits", "strategy": strategy, "seed": seed, "lr": 0.001, **fields}


def rows_of(
    learned: Series,
    final: Series | None,
    fresh: Series | None,
    stream: str = "train",
    baseline: Series | None = None,
    chance: float | None = None,
) -> list[str]:
    """The rows that a run writes: the scores, and the separation where all of it is known.

    Without a baseline as results of older versions have it.
    """
    rows = []
    for k, score in enumerate(learned):
        values = {"learned": score}
        if final:
            values |= {"final": final[k], "forgetting": score - final[k]}
        if fresh:
            values |= {"fresh": fresh[k], "plasticity_loss": fresh[k] - score}
        if final and fresh:
            values |= {"total": fresh[k] - final[k]}
        if baseline and fresh:
            values |= {"baseline": baseline[k], "handicap": baseline[k] - fresh[k]}
            values |= {"total": baseline[k] - final[k]} if final else {}
        if chance is not None:
            values |= {"chance": chance}
        rows += [f"{metric},{stream},,{k},{value!r}" for metric, value in values.items()]
    return rows


def probe_rows(metric: str, series: Series, layer: str = "") -> list[str]:
    return [f"{metric},probe,{layer},{k},{value!r}" for k, value in enumerate(series)]


def write_run(
    path: Path,
    spec: Mapping[str, Any],
    rows: Sequence[str],
    status: Mapping[str, Any] | None = None,
    quantities: Mapping[str, Quantity] | None = OURS,
) -> Path:
    """Write a run directory; without ``quantities`` as version 0.2.0 wrote it."""
    path.mkdir(parents=True)
    if quantities is not None:
        (path / "metrics.json").write_text(to_json(quantities))
    (path / "spec.json").write_text(json.dumps(spec))
    (path / "metrics.csv").write_text("\n".join(["metric,stream,layer,experience,value", *rows, ""]))
    (path / "status.json").write_text(json.dumps(status or {"state": "done", "message": "", "score": "accuracy"}))
    return path


def in_memory(strategy: str, seed: int, rows: Sequence[str], state: str = "done", **fields: Any) -> Run:
    values: dict[tuple[str, str, str], dict[int, float]] = {}
    for row in rows:
        metric, stream, layer, k, value = row.split(",")
        values.setdefault((metric, stream, layer), {})[int(k)] = float(value)
    fields = {"quantities": OURS, **fields}
    return Run(Path(f"{strategy}-{seed}"), spec_of(strategy, seed), state, "accuracy", "", values, **fields)


def compared(*runs: Run, **fields: Any) -> Comparison:
    """A comparison of runs, in the order of their strategies' first runs."""
    names = dict.fromkeys(run.strategy for run in runs)
    strategies = {name: tuple(run for run in runs if run.strategy == name) for name in names}
    return Comparison(**{"title": "t", "spec": {}, "score": "accuracy", "strategies": strategies} | fields)


def mean(values: Series) -> float:
    return sum(values) / len(values)


# Three seeds of two strategies, seven experiences, of which the last five count as the last. The common reference is
# half a hundredth above finetune's own fresh networks: other draws of the same thing.
FRESH = [[0.9 + 0.01 * seed] * 7 for seed in range(3)]
BASELINE = [[0.905 + 0.012 * seed] * 7 for seed in range(3)]
CHANCE = 0.125
LEARNED = {
    "finetune": [[0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3 + 0.03 * seed] for seed in range(3)],
    "layernorm+l2=0.001": [[0.88 + 0.01 * seed] * 7 for seed in range(3)],
}
FINAL = {
    name: [[0.1 + 0.02 * seed] * 6 + [series[-1]] for seed, series in enumerate(of_seeds)]
    for name, of_seeds in LEARNED.items()
}


def write_results(directory: Path) -> Path:
    """A comparison with train and test, diagnostics, and a third strategy of which one seed diverged."""
    for name, seed in itertools.product(LEARNED, range(3)):
        scores = LEARNED[name][seed], FINAL[name][seed], FRESH[seed]
        halves = ([v / 2 for v in series] for series in scores)
        rows = rows_of(*scores, baseline=BASELINE[seed], chance=CHANCE)
        rows += rows_of(*halves, "test", [v / 2 for v in BASELINE[seed]], CHANCE / 2)
        rows += probe_rows("dead_units", [0.01 * seed + 0.1 * k * (name == "finetune") for k in range(7)])
        rows += probe_rows("effective_rank", [10.0] * 7, "0")
        rows += probe_rows("effective_rank", [20.0 + seed + len(name)] * 7, "2")
        rows += probe_rows("target_mean", [4.5] * 7)
        rows += [f"steps_to_threshold,train,,{k},100.0" for k in range(5)]
        rows += [f"epoch_score,train,epoch{e},{k},0.5" for k in range(7) for e in range(3)]
        write_run(directory / name / f"seed{seed}", spec_of(name, seed), rows)
    for seed in range(2):
        scores = LEARNED["finetune"][seed], FINAL["finetune"][seed], FRESH[seed]
        write_run(
            directory / "l2=9" / f"seed{seed}",
            spec_of("l2=9", seed),
            rows_of(*scores, baseline=BASELINE[seed], chance=CHANCE),
        )
    write_run(
        directory / "l2=9" / "seed2",
        spec_of("l2=9", 2),
        rows_of([0.7, 0.123], None, [0.9, 0.9]),
        {"state": "diverged", "message": "the loss became NaN in experience 2", "score": "accuracy"},
    )
    return directory


class Page(HTMLParser):
    """A parsed page: its elements, the tables' cells, its text; fails on tags that do not nest."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.text = ""
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += (" " if self.open[-1] == "small" else "") + data
