"""Every part of every catalogue keeps what its kind promises: a part is under test by being listed."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from published_writer import PUBLISHED, publish
from wilds_writer import write_iwildcam

from plasticity_cl.errors import UserError
from plasticity_cl.experiments.catalogue import EXECUTORS
from plasticity_cl.metrics.catalogue import METRICS
from plasticity_cl.models.catalogue import MODELS
from plasticity_cl.parts.signature import REQUIRED
from plasticity_cl.parts.values import File, Folder
from plasticity_cl.scenarios.catalogue import SCENARIOS, SOURCES
from plasticity_cl.strategies.catalogue import COMPONENTS, make_plugins, normalise
from plasticity_cl.testing import (
    check_executor,
    check_intervention,
    check_metric,
    check_model,
    check_optimizer,
    check_scenario,
    check_source,
)
from plasticity_cl.testing.bench import TASKS, learn, undisturbed, weights
from plasticity_cl.testing.promises import difference, require_finite
from plasticity_cl.training.catalogue import OPTIMIZERS


@pytest.mark.parametrize("name", COMPONENTS)
def test_every_intervention_keeps_its_promises(name):
    check_intervention(name)


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_scenario_keeps_its_promises(name, tmp_path):
    check_scenario(name, data_root=tmp_path)


@pytest.mark.parametrize("name", MODELS)
def test_every_network_keeps_its_promises(name):
    check_model(name)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_keeps_its_promises(name):
    check_optimizer(name)


@pytest.mark.parametrize("name", METRICS)
def test_every_diagnostic_keeps_its_promises(name):
    check_metric(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXECUTORS)
def test_every_executor_keeps_its_promises(name):
    check_executor(name)


# Sources of files: what is published is written in small, and an option that must be given is given


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_keeps_its_promises(name, tmp_path, monkeypatch):
    if name in PUBLISHED:
        publish(monkeypatch, name, tmp_path)
    elif SOURCES[name].check:
        write_iwildcam(tmp_path)
    written = {Folder: write_images, File: write_arrays}
    required = {o: a.type for o, a in SOURCES.options(name).items() if a.default is REQUIRED}
    options = {option: str(written[kind](tmp_path)) for option, kind in required.items()}
    check_source(SOURCES.read({"name": name, **options}).text, data_root=tmp_path)


def write_images(folder: Path) -> Path:
    draw = np.random.default_rng(0)
    for number in range(12):
        place = folder / "pictures, with + and @" / f"class {number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (9, 7, 3), dtype=np.uint8)).save(place / f"{number}.png")
    return place.parent


def write_arrays(folder: Path) -> Path:
    draw = np.random.default_rng(0)
    inputs = {f"{split}_inputs": draw.integers(0, 256, (8, 3, 6, 6), dtype=np.uint8) for split in ("train", "test")}
    np.savez(folder / "mine.npz", **inputs, train_labels=np.arange(8) % 3, test_labels=np.arange(8) % 3)
    return folder / "mine.npz"


# Any two interventions together


def outcome(text: str, task: str) -> dict | str:
    """The weights after two experiences, or the refusal."""
    try:
        with undisturbed():
            return weights(learn(lambda: make_plugins(text), task))
    except UserError as error:
        return str(error)


@pytest.fixture(scope="module")
def alone() -> dict[str, set[str]]:
    """The tasks of each intervention."""
    return {name: {task for task in TASKS if isinstance(outcome(name, task), dict)} for name in COMPONENTS}


@pytest.mark.slow
@pytest.mark.parametrize("first", COMPONENTS)
def test_any_two_interventions_go_together_in_either_order(first, alone):
    for one, other in combinations(COMPONENTS, 2):
        if one != first:
            continue
        if COMPONENTS[one].path == COMPONENTS[other].path:
            for pair in (f"{one}+{other}", f"{other}+{one}"):
                with pytest.raises(UserError, match="has both .*; choose one of them") as caught:
                    normalise(pair)
                assert "\n" not in str(caught.value)
            continue
        for task in TASKS:
            there, back = outcome(f"{one}+{other}", task), outcome(f"{other}+{one}", task)
            if task in alone[one] & alone[other]:
                assert isinstance(there, dict), (one, other, task, there)
                require_finite(there, f"{one}+{other}")
                assert not difference(there, back), (one, other, task)
            else:
                assert isinstance(there, str), (one, other, task)
                assert there == back
                assert "\n" not in there
