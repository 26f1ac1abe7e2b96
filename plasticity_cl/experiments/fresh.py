"""The fresh reference S_k: networks trained on one experience alone, cached on disk by what they depend on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from avalanche.training.plugins import EvaluationPlugin

import plasticity_cl
from plasticity_cl.experiments.build import build_strategy, seed_experience
from plasticity_cl.experiments.directory import disk_errors, write_atomically
from plasticity_cl.experiments.spec import RunSpec, fresh_spec
from plasticity_cl.metrics import ExperienceScore
from plasticity_cl.scenarios.stream import InMemoryScenario

STREAMS = ("train", "test")


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
        spec: The run that is to be compared with them.
        scenario: Its stream.
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
        score = _read(path)
        if score is None:
            score = _train_fresh(fresh, scenario, k)
            with disk_errors(cache):
                cache.mkdir(parents=True, exist_ok=True)
                record = {"spec": dataclasses.asdict(fresh), "experience": k, "scores": score}
                write_atomically(path, json.dumps(record, indent=2) + "\n")
        for stream in STREAMS:
            scores[stream].append(score[stream])
        tick()
    if not scenario.exchangeable:
        return scores
    return {stream: [float(np.mean(values))] * n_experiences for stream, values in scores.items()}


def _key(spec: RunSpec, k: int) -> str:
    # Threshold, diagnostics and the number of fresh networks change nothing in a fresh network; versions may.
    fields = dataclasses.asdict(spec) | {"threshold": None, "n_fresh": None, "diagnostics": None}
    depends_on = [fields, k, plasticity_cl.__version__, torch.__version__]
    return hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()[:32]


def _read(path: Path) -> dict[str, float] | None:
    try:
        scores = json.loads(path.read_text(encoding="utf-8"))["scores"]
        return {stream: float(scores[stream]) for stream in STREAMS}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _train_fresh(spec: RunSpec, scenario: InMemoryScenario, k: int) -> dict[str, float]:
    metric = ExperienceScore()
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
