"""A spec opened: the stream, the strategy and the seeds of a run. After this, only parts travel on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

from plasticity_cl.errors import UserError
from plasticity_cl.experiments.spec import (
    Machine,
    RunSpec,
    baseline_spec,
    check_score,
    default_score,
    fresh_spec,
    of_fresh_network,
    own_settings,
    scenario_facts,
)
from plasticity_cl.metrics.catalogue import make_diagnostics
from plasticity_cl.models import make_model
from plasticity_cl.scenarios.catalogue import SCENARIOS, make_scenario
from plasticity_cl.scenarios.sources import load_source
from plasticity_cl.seeding import derive_seed
from plasticity_cl.strategies.catalogue import make_plugins
from plasticity_cl.training import SupervisedTemplate
from plasticity_cl.training.catalogue import OPTIMIZERS

EVALUATION_BATCH = 512


@runtime_checkable
class Scenario(Protocol):
    """What a run needs of a stream: an Avalanche benchmark that says what its targets are."""

    train_stream: Any
    test_stream: Any
    streams: Mapping[str, Any]
    input_shape: tuple[int, ...]
    n_outputs: int
    task: str
    exchangeable: bool
    forgetting_counts: bool


@dataclass(frozen=True)
class Recipe:
    """How one strategy is trained on one stream.

    Attributes:
        scenario: The stream.
        score: What is scored, by name.
        strategy: Makes the strategy around a network at its initialisation, from its metrics and loggers.
        seed_experience: Seeds what is drawn while training on experience ``k``: batch order and dropout. It depends on
            the seed and the experience alone, so that a fresh network sees the very same batches.
        n_fresh: How many fresh networks stand for all, where experiences are exchangeable.
        given: All that a network trained on one experience depends on, to know it again.
    """

    scenario: Scenario
    score: str
    strategy: Callable[[EvaluationPlugin], SupervisedTemplate]
    seed_experience: Callable[[int], None]
    n_fresh: int
    given: Mapping[str, Any]


@dataclass(frozen=True)
class Opened:
    """The parts of a run.

    Attributes:
        run: The run itself.
        fresh: Its fresh networks, S_k.
        baseline: The fresh networks that all strategies are compared with, S_ref; on the scenario's twin, where it has
            one.
        make_metrics: Makes the metrics beside the separation: the chosen diagnostics, and what the scenario brings.
        threshold: Score that counts as learned.
        twin_words: What the twin is, in words, and what the handicap against it is; empty where there is none.
    """

    run: Recipe
    fresh: Recipe
    baseline: Recipe
    make_metrics: Callable[[], list[Any]]
    threshold: float
    twin_words: str


def open_run(spec: RunSpec, machine: Machine = Machine()) -> Opened:  # noqa: B008 - immutable
    """Make the parts of a run.

    Raises:
        UserError: If a name is unknown, a value out of its range, the data set missing, or the device not there.
    """
    scenario = _scenario(spec, machine)
    base = baseline_spec(spec)
    twin = scenario if base.scenario == spec.scenario else _scenario(base, machine)

    def metrics() -> list[Any]:
        return [*make_diagnostics(spec.diagnostics), *getattr(scenario, "metrics", list)()]

    return Opened(
        _recipe(spec, scenario),
        _recipe(fresh_spec(spec), scenario),
        _recipe(base, twin),
        metrics,
        spec.threshold,
        "" if twin is scenario else str(scenario_facts(spec).get("twin_words", "its twin")),
    )


def open_recipe(spec: RunSpec, machine: Machine = Machine()) -> Recipe:  # noqa: B008 - immutable
    """Make what is trained by one spec alone, without what it is compared with.

    Raises:
        UserError: As :func:`open_run` does.
    """
    return _recipe(spec, _scenario(spec, machine))


def _recipe(spec: RunSpec, scenario: Scenario) -> Recipe:
    name = SCENARIOS.read(spec.scenario).name
    score = default_score(scenario.task) if spec.score is None else spec.score
    check_score(score, name, scenario.task)
    settings = own_settings(spec)
    device = _device(spec.device)

    def strategy(evaluator: EvaluationPlugin) -> SupervisedTemplate:
        model = make_model(
            settings.model, scenario.input_shape, scenario.n_outputs, seed=derive_seed(spec.seed, "model")
        ).to(device)
        return SupervisedTemplate(
            model=model,
            optimizer=_optimizer(settings.optimizer, model.parameters()),
            criterion=nn.CrossEntropyLoss() if scenario.task == "classification" else nn.MSELoss(),
            train_mb_size=settings.batch_size,
            train_epochs=settings.epochs,
            eval_mb_size=EVALUATION_BATCH,
            device=device,
            plugins=make_plugins(spec.strategy, seed=derive_seed(spec.seed, "plugins")),
            evaluator=evaluator,
        )

    return Recipe(scenario, score, strategy, partial(_seed_experience, spec.seed), spec.n_fresh, of_fresh_network(spec))


def _seed_experience(seed: int, k: int) -> None:
    torch.manual_seed(derive_seed(seed, "experience", k))


def _scenario(spec: RunSpec, machine: Machine) -> Scenario:
    source = load_source(spec.source, data_root=machine.data_root, download=machine.download)
    made = make_scenario(spec.scenario, source, seed=derive_seed(spec.seed, "stream"))
    return as_scenario(made, SCENARIOS.read(spec.scenario).name)


def as_scenario(benchmark: Any, name: str) -> Scenario:
    """Fill in what an Avalanche benchmark does not say of itself.

    Args:
        benchmark: With a ``train_stream`` and a ``test_stream`` of as many experiences; what else
            :class:`Scenario` has is taken for a classification of what the first sample shows.
        name: Its name, for messages.

    Raises:
        UserError: If it is no such benchmark.
    """
    if isinstance(benchmark, Scenario):
        return benchmark
    if not all(hasattr(benchmark, stream) for stream in ("train_stream", "test_stream")):
        raise UserError(f"scenario {name} made a {type(benchmark).__name__}, without a train_stream and a test_stream")
    sizes = len(benchmark.train_stream), len(benchmark.test_stream)
    if sizes[0] != sizes[1]:
        raise UserError(f"scenario {name} has {sizes[0]} experiences to train and {sizes[1]} to test: give as many")
    first = torch.as_tensor(benchmark.train_stream[0].dataset[0][0])
    stated = {"task": "classification", "exchangeable": False, "forgetting_counts": True, "input_shape": first.shape}
    for attribute, value in stated.items():
        if not hasattr(benchmark, attribute):
            setattr(benchmark, attribute, value)
    if not hasattr(benchmark, "n_outputs"):
        labels = (max(map(int, e.dataset.targets)) for s in (benchmark.train_stream, benchmark.test_stream) for e in s)
        benchmark.n_outputs = 1 + max(labels)
    if not isinstance(benchmark, Scenario):
        raise UserError(f"scenario {name} made a {type(benchmark).__name__}, which is no Avalanche benchmark")
    return benchmark


def _optimizer(text: str, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    optimizer = OPTIMIZERS.make(text, params=parameters)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UserError(f"optimizer {text} made a {type(optimizer).__name__}, which is no torch.optim.Optimizer")
    return optimizer


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"unknown device {name!r}; for instance cpu, cuda or cuda:1") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device {name} is not there: torch sees {torch.cuda.device_count()} CUDA devices; use cpu")
    return device
