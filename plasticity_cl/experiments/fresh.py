"""The fresh reference S_k: networks trained on one experience alone, cached on disk by what they depend on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from avalanche.training.plugins import EvaluationPlugin

import plasticity_cl
from plasticity_cl.experiments.build import build_strategy, seed_experience
from plasticity_cl.experiments.directory import disk_errors
from plasticity_cl.experiments.spec import RunSpec, fresh_spec, score_of
from plasticity_cl.metrics import ExperienceScore
from plasticity_cl.scenarios.stream import InMemoryScenario
from plasticity_cl.writing import write_atomically

STREAMS = ("train", "test")
_CHANGES_NOTHING = ("threshold", "n_fresh", "diagnostics", "baseline")
_DEFAULTS: Mapping[str, Any] = {field.name: field.default for field in dataclasses.fields(RunSpec)}


def fresh_experiences(n_fresh: int, n_experiences: int, *, exchangeable: bool) -> list[int]:
    """The experiences that get a fresh network: all, or a few, evenly spaced, where experiences are exchangeable."""
    if not exchangeable or n_fresh >= n_experiences:
        return list(range(n_experiences))
    return [int(k) for k in np.linspace(0, n_experiences - 1, n_fresh).round()]


def fresh_reference(
    spec: RunSpec, scenario: InMemoryScenario, cache: Path, tick: Callable[[], None] = lambda: None
) -> dict[str, list[float]]:
    """S_k on training and test data, for every experience.

    Where experiences are exchangeable, the mean over a few fresh networks stands for all.

    Args:
        spec: The run that is to be compared with them; for S_ref the
            :func:`~plasticity_cl.experiments.spec.baseline_spec` of it.
        scenario: The stream of ``spec``.
        cache: Folder of the cache.
        tick: Called after each fresh network.

    Returns:
        For each stream, one score an experience.

    Raises:
        UserError: If the cache cannot be written.
    """
    n_experiences = len(scenario.train_stream)
    scores: dict[str, list[float]] = {stream: [] for stream in STREAMS}
    fresh = fresh_spec(spec)
    for k in fresh_experiences(spec.n_fresh, n_experiences, exchangeable=scenario.exchangeable):
        path = cache / f"{_key(fresh, k)}.json"
        score = _read(path, fresh, k)
        if score is None:
            score = _train_fresh(fresh, scenario, k)
            with disk_errors(cache):
                cache.mkdir(parents=True, exist_ok=True)
                record = {"spec": dataclasses.asdict(fresh), "experience": k, **_versions(), "scores": score}
                write_atomically(path, json.dumps(record, indent=2) + "\n")
        for stream in STREAMS:
            scores[stream].append(score[stream])
        tick()
    if not scenario.exchangeable:
        return scores
    return {stream: [float(np.mean(values))] * n_experiences for stream, values in scores.items()}


def _versions() -> dict[str, str]:
    return {"plasticity_cl": plasticity_cl.__version__, "torch": str(torch.__version__)}


def _depends_on(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What a fresh network depends on, of the fields of a spec; the ones that are missing have their defaults."""
    return {name: value for name, value in {**_DEFAULTS, **fields}.items() if name not in _CHANGES_NOTHING}


def _key(spec: RunSpec, k: int) -> str:
    # Defaults are left out, so that a field that is added later leaves the keys of what was computed before.
    fields = _depends_on(dataclasses.asdict(spec))
    other = {name: value for name, value in fields.items() if value != _DEFAULTS[name]}
    return hashlib.sha256(json.dumps([other, k, _versions()], sort_keys=True).encode()).hexdigest()[:32]


def _read(path: Path, spec: RunSpec, k: int) -> dict[str, float] | None:
    """The scores in a file of the cache; nothing unless the file says that it is of this spec and experience."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        found = [_depends_on(record["spec"]), record["experience"], {name: record[name] for name in _versions()}]
        scores = {stream: record["scores"][stream] for stream in STREAMS}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if found != [_depends_on(dataclasses.asdict(spec)), k, _versions()]:
        return None
    return scores if all(type(score) is float for score in scores.values()) else None


def _train_fresh(spec: RunSpec, scenario: InMemoryScenario, k: int) -> dict[str, float]:
    metric = ExperienceScore(score_of(spec))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No loggers specified")
        evaluator = EvaluationPlugin(metric, collect_all=False)
    strategy = build_strategy(spec, scenario, evaluator)
    seed_experience(spec, k)
    strategy.train(scenario.train_stream[k], eval_streams=[])
    scores = {}
    for stream in STREAMS:
        strategy.eval(scenario.streams[stream][k : k + 1])
        scores[stream] = metric.result()
    return scores
