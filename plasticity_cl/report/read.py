"""Run directories, read back: each run's spec, state and values, and the comparisons that runs belong to."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plasticity_cl import table
from plasticity_cl.errors import UserError
from plasticity_cl.parts import grammar
from plasticity_cl.quantity import Quantity, from_json

BASELINE = "finetune"
TWIN = "the zero-mean twin, so that the handicap is what a large target mean costs even a fresh network"
"""What target shift was set against before runs said it themselves."""
OTHER = "Other diagnostics"
OF_NETWORK = ("probe", "")
"""Streams of what is measured on a network at the end of a training, and not on the data of a stream."""
_TOLD_APART_BY = ("strategy", "seed")


@dataclass(frozen=True)
class Run:
    """One run, as its directory tells it.

    Attributes:
        path: The run directory, relative to the result folder.
        spec: What was run, as in ``spec.json``.
        state: ``"done"``, ``"diverged"``, ``"failed"``, or ``"running"``, which is also what a run that was killed says
            of itself.
        score: The score's name, such as ``"accuracy"``; None where the run did not get far enough to say.
        message: Why a run diverged, or nothing.
        pictures: What the run drew, for each name the file at each experience.
        values: For each (metric, stream, layer), the value at each experience. Where a resumed run wrote a row twice,
            the later one.
        forgetting_counts: Whether what is forgotten is damage: not where old labels no longer hold.
        twin: The stream on which the networks of the common reference are trained, in words, where it is another one.
        quantities: What is known of the metrics, by name and in the order of a report.
    """

    path: Path
    spec: Mapping[str, Any]
    state: str
    score: str | None
    message: str
    values: Mapping[tuple[str, str, str], Mapping[int, float]]
    pictures: Mapping[str, Mapping[int, Path]] = dataclasses.field(default_factory=dict)
    forgetting_counts: bool = True
    twin: str = ""
    quantities: Mapping[str, Quantity] = dataclasses.field(default_factory=dict)

    @property
    def strategy(self) -> str:
        """The strategy's name."""
        return str(self.spec["strategy"])

    @property
    def seed(self) -> Any:
        """The seed, which tells apart runs of one strategy."""
        return self.spec["seed"]

    @property
    def finished(self) -> bool:
        """Whether the run got to its end. Only such runs enter means."""
        return self.state == "done"

    @property
    def state_in_words(self) -> str:
        """The state for readers: a run that says it is running may as well have been killed."""
        return {"done": "finished", "running": "unfinished"}.get(self.state, self.state)

    def series(self, metric: str, stream: str, layer: str = "") -> Mapping[int, float]:
        """The metric's value at each experience; empty where nothing was measured."""
        return self.values.get((metric, stream, layer), {})

    def diagnostic(self, metric: str, layers: Sequence[str]) -> Mapping[int, float]:
        """A diagnostic's mean over layers at each experience."""
        series = [self.series(metric, "probe", layer) or self.series(metric, "", layer) for layer in layers]
        experiences = sorted(set().union(*series))
        with np.errstate(over="ignore", invalid="ignore"):
            return {k: float(np.mean([of_layer[k] for of_layer in series if k in of_layer])) for k in experiences}


@dataclass(frozen=True)
class Comparison:
    """Runs that differ in strategy and seed alone.

    Attributes:
        title: A short name, unique among the comparisons made together.
        spec: The fields that all runs share.
        score: The score's name.
        strategies: The runs of each strategy by seed. The baseline comes first, combinations come last.
    """

    title: str
    spec: Mapping[str, Any]
    score: str
    strategies: Mapping[str, tuple[Run, ...]]

    @property
    def runs(self) -> tuple[Run, ...]:
        """All runs, strategy by strategy."""
        return tuple(run for runs in self.strategies.values() for run in runs)

    @property
    def forgetting_counts(self) -> bool:
        """Whether what is forgotten is damage in this comparison."""
        return all(run.forgetting_counts for run in self.runs)

    @property
    def reference(self) -> str:
        """What the common reference is, in words."""
        twin = f" on {self.twin}" if self.twin else ""
        return f"fresh {self.spec.get('baseline', 'baseline')} networks{twin}"

    @property
    def twin(self) -> str:
        """The stream that the networks of the common reference are trained on, in words; empty where it is the same."""
        stated = next((run.twin for run in self.runs if run.twin), "")
        old = "format" not in self.spec and _part(self.spec.get("scenario")) == "target-shift"
        return stated or (TWIN if old else "")

    @property
    def twin_name(self) -> str:
        """The twin's name alone."""
        return self.twin.partition(",")[0]

    @property
    def baseline(self) -> str:
        """The strategy that the others are set against, where it is among them; otherwise nothing."""
        return next((n for n in (str(self.spec.get("baseline")), BASELINE) if n in self.strategies), "")

    @property
    def streams(self) -> tuple[str, ...]:
        """Which of train and test the learning score was measured on."""
        return tuple(s for s in ("train", "test") if any(run.series("learned", s) for run in self.runs))

    @property
    def quantities(self) -> dict[str, Quantity]:
        """What is known of the metrics: of each, what the first run says that knows it."""
        found: dict[str, Quantity] = {}
        for run in self.runs:
            for metric, quantity in run.quantities.items():
                found.setdefault(metric, quantity)
        return found

    @property
    def mechanisms(self) -> dict[str, dict[str, tuple[str, ...]]]:
        """For each mechanism its diagnostics, with the layers that stand for each: a total, or else all layers.

        The numbered mechanisms come first, then the others as the runs have them, and last what has no mechanism.
        """
        layers, known = self.layers, self.quantities
        found: dict[str, dict[str, tuple[str, ...]]] = {}
        for metric in (*known, *sorted(set(layers) - set(known))):
            if metric in layers:
                title = (known[metric].mechanism if metric in known else "") or OTHER
                found.setdefault(title, {})[metric] = ("",) if "" in layers[metric] else layers[metric]
        return dict(sorted(found.items(), key=lambda item: _place(item[0])))

    @property
    def layers(self) -> dict[str, tuple[str, ...]]:
        """For each diagnostic of a network the layers it was measured on, in order; the total is the empty name."""
        layers: dict[str, set[str]] = {}
        for run in self.runs:
            for metric, stream, layer in run.values:
                if stream in OF_NETWORK:
                    layers.setdefault(metric, set()).add(layer)
        return {metric: tuple(sorted(of_metric)) for metric, of_metric in layers.items()}


def read_runs(directory: Path) -> list[Run]:
    """Read every run directory below a result folder, in the order of their paths.

    Args:
        directory: The result folder. A run directory is recognised by its ``spec.json``.

    Returns:
        The runs; diverged and unfinished ones have the values that were written in time.

    Raises:
        UserError: The folder is missing or holds no run, a file in it is broken, or two runs have the same spec.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"no such directory: {directory}")
    runs = [_read_run(folder, directory) for folder in sorted(_run_directories(directory))]
    if not runs:
        raise UserError(f"no runs in {directory}: run `plasticity-cl compare ... --out {directory}` first")
    seen: dict[object, Run] = {}
    for run in runs:
        twin = seen.setdefault((_shared_fields(run), run.strategy, run.seed), run)
        if twin is not run:
            raise UserError(f"{directory / twin.path} and {directory / run.path} are the same run: remove one of them")
    return runs


def comparisons(runs: Sequence[Run]) -> list[Comparison]:
    """Group runs whose specs agree in all fields except strategy and seed; a field that is null counts as absent.

    Runs that were scored by different scores, as by two versions of the software, are not compared either.

    Args:
        runs: What :func:`read_runs` returns.

    Returns:
        One comparison a group, in the order in which the runs first name them.
    """
    # A run that did not get far enough to name its score goes with those of its spec.
    scores = {_shared_fields(run): run.score for run in reversed(runs) if run.score}
    groups: dict[object, list[Run]] = {}
    for run in runs:
        fields = _shared_fields(run)
        groups.setdefault((fields, run.score or scores.get(fields)), []).append(run)
    of_groups = [next((run.score for run in group if run.score), "score") for group in groups.values()]
    specs = [
        {"score": score, **_without_nulls(group[0].spec)}
        for group, score in zip(groups.values(), of_groups, strict=True)
    ]
    return [
        Comparison(title=_title(spec, specs, group), spec=spec, score=score, strategies=_by_strategy(group))
        for spec, score, group in zip(specs, of_groups, groups.values(), strict=True)
    ]


def strategy_order(strategy: str) -> tuple[bool, int, str]:
    """A sort key: the baseline first, then single interventions, then combinations, each alphabetically."""
    return strategy != BASELINE, strategy.count("+"), strategy


def _place(mechanism: str) -> tuple[int, str]:
    numbered = mechanism.startswith("Mechanism ")
    return (0, mechanism) if numbered else (1 + (mechanism == OTHER), "")


def _run_directories(directory: Path) -> list[Path]:
    def refuse(error: OSError) -> None:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from error

    return [Path(folder) for folder, _, files in os.walk(directory, onerror=refuse) if "spec.json" in files]


def _by_strategy(runs: Sequence[Run]) -> dict[str, tuple[Run, ...]]:
    names = sorted({run.strategy for run in runs}, key=strategy_order)
    by_seed = sorted(runs, key=lambda run: (isinstance(run.seed, str), run.seed))
    return {name: tuple(run for run in by_seed if run.strategy == name) for name in names}


def _without_nulls(spec: Mapping[str, Any]) -> dict[str, Any]:
    return {field: value for field, value in spec.items() if value is not None and field not in _TOLD_APART_BY}


def _shared_fields(run: Run) -> frozenset[tuple[str, object]]:
    return frozenset(_without_nulls(run.spec).items())


def _title(spec: Mapping[str, Any], all_specs: Sequence[Mapping[str, Any]], runs: Sequence[Run]) -> str:
    """Scenario, source and number of experiences, then the fields that tell it from its namesakes."""
    scenario, source = _part(spec["scenario"]), _part(spec.get("source"))
    parts = [f"{scenario} on {source}" if source else scenario]
    # A spec that leaves the length to the scenario does not say it, but a finished run does.
    seen = max((len(run.series("learned", "train")) for run in runs if run.finished), default=0)
    if length := spec.get("n_experiences", seen):
        parts.append(f"{length} experience{'s' * (length != 1)}")
    namesakes = [s for s in all_specs if (_part(s["scenario"]), _part(s.get("source"))) == (scenario, source)]
    fields = dict.fromkeys(field for namesake in namesakes for field in namesake)
    for field in fields:
        if field != "n_experiences" and len({namesake.get(field) for namesake in namesakes}) > 1:
            parts.append(f"{field}={spec.get(field, 'none')}")
    return ", ".join(parts)


def _part(text: object) -> str:
    """The name of a part, without its options."""
    return grammar.name_of(str(text or ""))


def _read_run(path: Path, directory: Path) -> Run:
    spec = _read_object(path / "spec.json")
    for field in ("scenario", *_TOLD_APART_BY):
        if spec.get(field) is None:
            raise UserError(f"{path / 'spec.json'} does not say the {field}")
    for field, value in spec.items():
        if isinstance(value, list | dict):
            raise UserError(f"{path / 'spec.json'} is not flat: {field!r} is a {type(value).__name__}")
    status = _read_object(path / "status.json") if (path / "status.json").exists() else {}
    state = str(status.get("state", "running"))
    return Run(
        path=path.relative_to(directory),
        spec=spec,
        state=state,
        score=str(status["score"]) if status.get("score") else None,
        message=str(status.get("message") or ""),
        values=_read_values(path / "metrics.csv", finished=state == "done"),
        pictures=_find_pictures(path / "pictures"),
        forgetting_counts=status.get("forgetting_counts") is not False,
        twin=str(status.get("twin") or ""),
        quantities=_read_quantities(path / "metrics.json"),
    )


def _find_pictures(directory: Path) -> dict[str, dict[int, Path]]:
    found: dict[str, dict[int, Path]] = {}
    for path in sorted(directory.glob("*.png")):
        name, _, experience = path.stem.rpartition("-")
        if name and experience.isdecimal():
            found.setdefault(name, {})[int(experience)] = path
    return found


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_bytes(path))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object")
    return content


def read_bytes(path: Path) -> bytes:
    """Read a file as a whole.

    Raises:
        UserError: If it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def _read_values(path: Path, finished: bool) -> table.Values:
    if not finished and not path.exists():
        return {}
    content = read_bytes(path)
    if not finished:
        content = table.whole_lines(content)
        if not content:
            return {}
    try:
        return table.read(content)
    except ValueError as error:
        raise UserError(f"{path} is broken: {error}") from error


def _read_quantities(path: Path) -> dict[str, Quantity]:
    """What a run says of its numbers; nothing where it was made before runs did."""
    if not path.exists():
        return {}
    try:
        return from_json(read_bytes(path))
    except ValueError as error:
        raise UserError(f"{path} is broken: {error}") from error
