"""The fresh reference S_k: networks trained on one experience alone, cached on disk by what they depend on."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from avalanche.training.plugins import EvaluationPlugin

import plasticity_cl
from plasticity_cl.errors import UserError
from plasticity_cl.experiments.build import Recipe
from plasticity_cl.experiments.directory import disk_errors
from plasticity_cl.experiments.spec import FORMAT, completed, identity
from plasticity_cl.metrics.experience_score import ExperienceScore, score_on
from plasticity_cl.writing import write_atomically

STREAMS = ("train", "test")


def fresh_experiences(n_fresh: int, n_experiences: int, *, exchangeable: bool) -> list[int]:
    """The experiences that get a fresh network: all, or a few, evenly spaced, where experiences are exchangeable."""
    if not exchangeable or n_fresh >= n_experiences:
        return list(range(n_experiences))
    return [int(k) for k in np.linspace(0, n_experiences - 1, n_fresh).round()]


def fresh_reference(recipe: Recipe, cache: Path, tick: Callable[[], None] = lambda: None) -> dict[str, list[float]]:
    """S_k on training and test data, for every experience.

    Where experiences are exchangeable, the mean over a few fresh networks stands for all.

    Args:
        recipe: How a fresh network is trained.
        cache: Folder of the cache.
        tick: Called after each fresh network.

    Returns:
        For each stream, one score an experience.

    Raises:
        UserError: If the cache cannot be written, or holds something else under the same name.
    """
    n_experiences = len(recipe.scenario.train_stream)
    scores: dict[str, list[float]] = {stream: [] for stream in STREAMS}
    for k in fresh_experiences(recipe.n_fresh, n_experiences, exchangeable=recipe.scenario.exchangeable):
        path = cache / f"{cache_key(recipe.given, k)}.json"
        score = _read(path, recipe.given, k)
        if score is None:
            score = _train_fresh(recipe, k)
            with disk_errors(cache):
                cache.mkdir(parents=True, exist_ok=True)
                record = {"format": FORMAT, "spec": recipe.given, "experience": k, **_versions(), "scores": score}
                write_atomically(path, json.dumps(record, indent=2) + "\n")
        for stream in STREAMS:
            scores[stream].append(score[stream])
        tick()
    if not recipe.scenario.exchangeable:
        return scores
    return {stream: [float(np.mean(values))] * n_experiences for stream, values in scores.items()}


def cache_key(given: Mapping[str, Any], k: int) -> str:
    """The name of a fresh network in the cache.

    Args:
        given: All that it depends on.
        k: The experience that it is trained on.
    """
    return identity({**given, "experience": k, **_versions()})


def _versions() -> dict[str, str]:
    return {"plasticity_cl": plasticity_cl.__version__, "torch": str(torch.__version__)}


def _read(path: Path, given: Mapping[str, Any], k: int) -> dict[str, float] | None:
    """The scores in a file of the cache; nothing where there is no such file.

    Raises:
        UserError: If it is not of this network: it is not to be written over.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    try:
        record = json.loads(text)
        saved = {
            name: value for name, value in completed(record["spec"]).items() if name in given or name in record["spec"]
        }
        found = [record["format"], saved, record["experience"], {name: record[name] for name in _versions()}]
        scores = {stream: record["scores"][stream] for stream in STREAMS}
        known = found == [FORMAT, dict(given), k, _versions()]
    except (ValueError, KeyError, TypeError, AttributeError):
        known, scores = False, {}
    if not known or not all(type(score) is float for score in scores.values()):
        raise UserError(f"{path} is no fresh reference of this run, or a damaged one: move it away")
    return scores


def _train_fresh(recipe: Recipe, k: int) -> dict[str, float]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No loggers specified")
        evaluator = EvaluationPlugin(collect_all=False)
    strategy = recipe.strategy(evaluator)
    recipe.seed_experience(k)
    strategy.train(recipe.scenario.train_stream[k], eval_streams=[])
    metric = ExperienceScore(recipe.score)
    return {stream: score_on(strategy, recipe.scenario.streams[stream][k : k + 1], metric) for stream in STREAMS}
