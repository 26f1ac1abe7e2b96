"""Run directories, read back: each run's spec, state and values, and the comparisons that runs belong to."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plasticity_cl.errors import UserError

HEADER = ["metric", "stream", "layer", "experience", "value"]
BASELINE = "finetune"
TWIN = "on the zero-mean twin, so that the handicap is what a large target mean costs even a fresh network"
OTHER = "Other diagnostics"
MECHANISMS: Mapping[str, tuple[str, ...]] = {
    "Mechanism 1: units and preactivations": (
        *("preactivation_shift", "mean_shift", "log_scale_shift", "sign_entropy", "sign_entropy_ratio", "dead_units"),
        *("linearised_units", "dormant_units", "rare_units", "saturated_units", "activation_sparsity"),
        *("preactivation_shift_p95", "mean_shift_p95", "log_scale_shift_p95"),
    ),
    "Mechanism 2: norms": (
        *("parameter_norm", "parameter_norm_ratio", "gradient_norm", "update_ratio", "effective_learning_rate"),
    ),
    "Mechanism 3: regression targets": (
        *("target_mean", "target_std", "offset_to_scale", "output_bias_share", "output_top_direction_share"),
    ),
    "Features": (
        *("effective_rank", "srank", "stable_rank", "participation_ratio", "top_singular_share", "feature_norm"),
    ),
    "Tangent kernel": (
        *("ntk_effective_rank", "ntk_srank", "ntk_participation_ratio", "ntk_trace_over_top", "ntk_condition_number"),
        *("gradient_mean_cosine", "gradient_diagonal_plus_rank_one"),
    ),
    "Curvature and trainability": ("hessian_largest", "hessian_smallest", "probe_loss", "probe_loss_ratio"),
}
"""Which diagnostics show what, in the order of a report; whatever else was measured comes last, by name."""
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
    """

    path: Path
    spec: Mapping[str, Any]
    state: str
    score: str | None
    message: str
    values: Mapping[tuple[str, str, str], Mapping[int, float]]
    pictures: Mapping[str, Mapping[int, Path]] = dataclasses.field(default_factory=dict)
    forgetting_counts: bool = True

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
        series = [self.series(metric, "probe", layer) for layer in layers]
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
        twin = f" {TWIN}" if _part(self.spec.get("scenario")) == "target-shift" else ""
        return f"fresh {self.spec.get('baseline', 'baseline')} networks{twin}"

    @property
    def baseline(self) -> str:
        """The strategy that the others are set against, where it is among them; otherwise nothing."""
        return next((n for n in (str(self.spec.get("baseline")), BASELINE) if n in self.strategies), "")

    @property
    def streams(self) -> tuple[str, ...]:
        """Which of train and test the learning score was measured on."""
        return tuple(s for s in ("train", "test") if any(run.series("learned", s) for run in self.runs))

    @property
    def mechanisms(self) -> dict[str, dict[str, tuple[str, ...]]]:
        """For each mechanism its diagnostics, with the layers that stand for each: a total, or else all layers."""
        layers = self.layers
        known = {metric for metrics in MECHANISMS.values() for metric in metrics}
        others = tuple(sorted(set(layers) - known))
        found = {
            title: {m: ("",) if "" in layers[m] else layers[m] for m in metrics if m in layers}
            for title, metrics in {**MECHANISMS, OTHER: others}.items()
        }
        return {title: metrics for title, metrics in found.items() if metrics}

    @property
    def layers(self) -> dict[str, tuple[str, ...]]:
        """For each diagnostic the layers it was measured on, in alphabetical order; the total is the empty name."""
        layers: dict[str, set[str]] = {}
        for run in self.runs:
            for metric, stream, layer in run.values:
                if stream == "probe":
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
    return re.split("[:=]", str(text or ""), maxsplit=1)[0]


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


def _read_values(path: Path, finished: bool) -> dict[tuple[str, str, str], dict[int, float]]:
    if not finished and not path.exists():
        return {}
    content = read_bytes(path)
    if not finished:
        # A run that was killed may have left half a line. Even where that half can be read it is not to be trusted:
        # 0.1 may be the beginning of 0.1875.
        content = content[: content.rfind(b"\n") + 1]
        if not content:
            return {}
    values: dict[tuple[str, str, str], dict[int, float]] = {}
    try:
        rows = csv.reader(content.decode().splitlines(), strict=True)
        header = next(rows, [])
        if header != HEADER:
            raise ValueError(f"its header is {','.join(header)!r}, not {','.join(HEADER)!r}")
        for row in rows:
            if len(row) != len(HEADER):
                raise ValueError(f"line {rows.line_num} has {len(row)} fields, not {len(HEADER)}")
            metric, stream, layer, experience, value = row
            try:
                if not 0 <= int(experience) < 2**31:
                    raise ValueError(f"experience {experience} is out of range")
                values.setdefault((metric, stream, layer), {})[int(experience)] = float(value)
            except ValueError as error:
                raise ValueError(f"line {rows.line_num}: {error}") from error
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path} is broken: {error}") from error
    return values
