"""What a run is: every number that its result depends on, in one typed block. Light to import."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from plasticity_cl.errors import UserError, unknown_name
from plasticity_cl.experiments.catalogue import EXECUTORS
from plasticity_cl.metrics.catalogue import write_diagnostics
from plasticity_cl.models.catalogue import MODELS
from plasticity_cl.scenarios.catalogue import SCENARIOS, SOURCES, check_source
from plasticity_cl.strategies.catalogue import fresh_name, normalise, read_strategy
from plasticity_cl.training.catalogue import OPTIMIZERS

FORMAT = 2
"""Of what stands in a run directory. 1, which says no number, had single options of parts as fields of its own."""

SCORES = {"accuracy": "accuracy", "bounded-r2": "bounded R2", "r2": "R2"}
"""Scores by name, and what they are called in words."""
_SUITABLE = {"classification": ("accuracy",), "regression": ("bounded-r2", "r2")}
_CHANGES_NO_FRESH_NETWORK = ("threshold", "n_fresh", "diagnostics", "baseline")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all runs of a comparison have in common.

    A part (scenario, source, model, optimizer, strategy, diagnostic) is written name:option=value,option=value, or
    name=value for its first option; a dotted path names a part of your own. `plasticity-cl list NAME` says its options.
    """

    scenario: str = "label-reset"
    """The stream, for instance label-reset:fraction=0.5; `plasticity-cl list` names them all."""
    source: str = "digits"
    """The data set the stream is made of, for instance image-folder=photos."""
    model: str = "mlp"
    """The network, for instance mlp:width=256,activation=gelu."""
    optimizer: str = "adam"
    """The optimizer, for instance adam:lr=3e-4,betas=0.9/0.99."""
    epochs: int = 20
    """Passes over each experience."""
    batch_size: int = 32
    """Samples in a batch."""
    score: str | None = None
    """accuracy for classes, bounded-r2 or r2 for numbers; accuracy and bounded-r2 if not given."""
    baseline: str = "finetune"
    """Strategy whose fresh networks are the reference that all strategies have in common."""
    n_fresh: int = 5
    """Fresh networks that stand for all, where experiences are exchangeable."""
    threshold: float = 0.9
    """Score that counts as learned, for the steps to it."""
    diagnostics: str = "all"
    """none, light, all (curvature, trainability and pictures, too), or names joined by +."""
    device: str = "cpu"
    """Where to train: cpu, cuda, cuda:1, ..."""
    threads: int = 1
    """CPU threads of a run; another number can change the last bits."""


@dataclass(frozen=True, kw_only=True)
class RunSpec(Settings):
    """One strategy on one stream with one seed.

    Parts are written name, name=value or name:option=value,option=value; `plasticity-cl list NAME` says the options.
    """

    strategy: str = "finetune"
    """Interventions joined by +, its own settings after @: layernorm+l2=1e-3@optimizer=adam:lr=3e-4."""
    seed: int = 0
    """Root of every draw: stream, initialisation, batch order."""


@dataclass(frozen=True, kw_only=True)
class CompareSpec(Settings):
    """Several strategies on one stream, each with several seeds.

    Parts are written name, name=value or name:option=value,option=value; `plasticity-cl list NAME` says the options.
    """

    strategies: tuple[str, ...] = ("finetune", "layernorm", "l2", "layernorm+l2")
    """Strategies to compare, each as for run --strategy."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each strategy runs once with each."""

    def runs(self) -> list[RunSpec]:
        """Every run of the comparison.

        Raises:
            UserError: If there is no strategy or no seed, or one stands there twice.
        """
        for name, values in (("strategies", self.strategies), ("seeds", self.seeds)):
            if not values:
                raise UserError(f"{name} is empty: give at least one")
        names = [normalise(strategy) for strategy in self.strategies]
        both: list[tuple[str, list[Any]]] = [("strategy", names), ("seed", list(self.seeds))]
        for name, listed in both:
            twice = [item for item in listed if listed.count(item) > 1]
            if twice:
                raise UserError(f"{name} {twice[0]} stands there twice: each is run once with each seed")
        common = {field.name: getattr(self, field.name) for field in dataclasses.fields(Settings)}
        return [RunSpec(**common, strategy=name, seed=seed) for seed in self.seeds for name in names]


@dataclass(frozen=True)
class Machine:
    """Where and how runs are done. Nothing here changes a result."""

    data_root: str | None = None
    """Folder of the data sets; $PLASTICITY_CL_DATA or ~/.cache/plasticity-cl if not given."""
    download: bool = False
    """Fetch a missing data set."""
    jobs: int | None = None
    """Processes at a time; one for each CPU if not given."""
    executor: str = "processes"
    """Who does the runs: processes, in-turn, or one of your own."""


_DEFAULTS: Mapping[str, Any] = {field.name: field.default for field in dataclasses.fields(RunSpec)}


def check(spec: RunSpec) -> RunSpec:
    """Check everything that can be checked without loading data or a network.

    Returns:
        The spec with every part in its canonical spelling.

    Raises:
        UserError: For the first value that is unknown or out of range.
    """
    scenario, source = SCENARIOS.read(spec.scenario), SOURCES.read(spec.source)
    check_source(scenario.name, source.name)
    model, optimizer = MODELS.read(spec.model), OPTIMIZERS.read(spec.optimizer)
    for name in ("epochs", "batch_size", "n_fresh", "threads"):
        value = getattr(spec, name)
        if value < 1:
            raise UserError(f"{name} is {value}: it must be at least 1")
    if not spec.threshold <= 1:
        raise UserError(f"threshold is {spec.threshold}: it must be at most 1, since no accuracy and no R2 is above")
    if spec.score is not None:
        ours = "classification" if scenario.name in SCENARIOS else None
        check_score(spec.score, scenario.name, scenario_facts(spec).get("task", ours))
    return dataclasses.replace(
        spec,
        scenario=scenario.text,
        source=source.text,
        model=model.text,
        optimizer=optimizer.text,
        diagnostics=write_diagnostics(spec.diagnostics),
        strategy=normalise(spec.strategy),
        baseline=fresh_name(spec.baseline),
    )


def check_machine(machine: Machine) -> None:
    """Check how runs are to be done.

    Raises:
        UserError: If there is no such executor, or fewer than one process.
    """
    if machine.jobs is not None and machine.jobs < 1:
        raise UserError(f"jobs is {machine.jobs}: it must be at least 1")
    EXECUTORS.read(machine.executor)


def check_score(score: str, scenario: str, task: str | None) -> None:
    """Check that a score suits the targets of a scenario.

    Args:
        score: Its name.
        scenario: The scenario's name, for the message.
        task: What its targets are; ``None`` where that is not known yet.

    Raises:
        UserError: If it is unknown, or does not suit them.
    """
    if score not in SCORES:
        raise unknown_name("score", score, SCORES)
    if task is not None and score not in _SUITABLE[task]:
        raise UserError(f"score {score} does not suit {scenario}: choose {' or '.join(_SUITABLE[task])}")


def default_score(task: str) -> str:
    """The score that suits what the targets are: ``classification`` or ``regression``."""
    return _SUITABLE[task][0]


def own_settings(spec: RunSpec) -> RunSpec:
    """The spec with the settings that its strategy has for itself in the place of those that all have in common."""
    settings: dict[str, Any] = dict(read_strategy(spec.strategy).settings)
    for name in settings.keys() & {"epochs", "batch_size"}:
        settings[name] = int(settings[name])
    return dataclasses.replace(spec, **settings)


def fresh_spec(spec: RunSpec) -> RunSpec:
    """The spec of the fresh networks of a run.

    Only the interventions that act on a first experience remain: elastic weight consolidation, replay and the like have
    no past to keep, so ``ewc=100`` and ``finetune`` share their fresh networks.
    """
    return dataclasses.replace(spec, strategy=fresh_name(spec.strategy))


def baseline_spec(spec: RunSpec) -> RunSpec:
    """The spec of the fresh networks that all strategies are compared with: the baseline's, on the scenario's twin.

    A twin is the same stream without what the scenario makes hard: options that the scenario states as the fact
    ``twin``. For the baseline itself, on a scenario without one, it is the spec of its own fresh networks.
    """
    of_twin = SCENARIOS.read(spec.scenario, scenario_facts(spec).get("twin")).text
    return dataclasses.replace(spec, strategy=fresh_name(spec.baseline), scenario=of_twin)


def scenario_facts(spec: RunSpec) -> Mapping[str, Any]:
    """What the scenario of a spec states of itself, read without importing it."""
    return SCENARIOS.facts(SCENARIOS.read(spec.scenario).name)


def usual_length(spec: RunSpec) -> int:
    """About how many experiences the stream has, as far as can be said without making it."""
    scenario = SCENARIOS.read(spec.scenario)
    of_signature = SCENARIOS.options(scenario.name).get("n_experiences")
    stated = scenario_facts(spec).get("length", 1)
    length = scenario.options.get("n_experiences", getattr(of_signature, "default", None))
    return length if isinstance(length, int) else stated


def identity(fields: Mapping[str, Any]) -> str:
    """A hash of what was given in a spec.

    What has its default is left out, so that a field that is added later leaves all identities as they are.

    Args:
        fields: Of a spec, by name.
    """
    given = {name: value for name, value in fields.items() if name not in _DEFAULTS or value != _DEFAULTS[name]}
    return hashlib.sha256(json.dumps([FORMAT, given], sort_keys=True).encode()).hexdigest()[:32]


def completed(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a spec that was saved; those that were added since have their defaults."""
    return {**_DEFAULTS, **fields}


def of_fresh_network(spec: RunSpec) -> dict[str, Any]:
    """The fields of a spec that a fresh network depends on."""
    fields = dataclasses.asdict(spec)
    return {name: value for name, value in fields.items() if name not in _CHANGES_NO_FRESH_NETWORK}
