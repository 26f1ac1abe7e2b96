"""What a run is: every number that its result depends on, in one typed block. Light to import."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from plasticity_cl.errors import UserError, unknown_name
from plasticity_cl.names import ACTIVATIONS, IMAGENET_NETWORKS, NETWORKS, NORMALIZATIONS
from plasticity_cl.scenarios.catalogue import SCENARIOS, check_scenario, check_source
from plasticity_cl.strategies.catalogue import fresh_name, normalise

OPTIMIZERS = ("adam", "adamw", "sgd")
DIAGNOSTICS = ("none", "light", "all")
SCORES = {"accuracy": "accuracy", "bounded-r2": "bounded R2", "r2": "R2"}
"""Scores by name, and what they are called in words."""
_SCENARIO_OPTIONS = tuple(sorted({option for entry in SCENARIOS.values() for option in entry.options}))


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all runs of a comparison have in common."""

    scenario: str = "label-reset"
    """The stream; `plasticity-cl list` names them all."""
    source: str = "digits"
    """The data set the stream is made of."""
    n_experiences: int | None = None
    """Length of the stream; the scenario's own default if not given."""
    n_samples: int | None = None
    """Use the first so many training samples only."""
    fraction: float | None = None
    """label-reset: share of the labels drawn anew."""
    schedule: str | None = None
    """target-shift: constant, alternating, growing or random-walk."""
    target_mean: float | None = None
    """target-shift: scale of the schedule."""
    target_std: float | None = None
    """target-shift: standard deviation of the targets."""
    targets: str | None = None
    """target-shift: noise, sine or label."""
    noisy: int | None = None
    """noisy-start: how many early experiences have noise labels."""
    by: str | None = None
    """iwildcam: what an experience is: a location, a time or a cluster of locations."""
    size: int | None = None
    """iwildcam: height and width of the images in pixels."""
    min_size: int | None = None
    """iwildcam: leave out experiences with fewer images."""
    epochs: int = 20
    """Passes over each experience."""
    batch_size: int = 32
    """Samples in a batch."""
    model: str = "mlp"
    """The network; `plasticity-cl list` names them all. imagenet-resnet18 and imagenet-resnet50 are torchvision's."""
    weights: str | None = None
    """imagenet-resnet18 and -50: file of pretrained weights."""
    width: int | None = None
    """Width of the network; its own default if not given."""
    depth: int | None = None
    """Depth of the network; its own default if not given."""
    activation: str = "relu"
    """Nonlinearity of the network."""
    normalization: str | None = None
    """Normalisation built into the network; none if not given."""
    optimizer: str = "adam"
    """adam, adamw or sgd."""
    lr: float = 1e-3
    """Learning rate."""
    score: str | None = None
    """accuracy for classes, bounded-r2 or r2 for numbers; accuracy and bounded-r2 if not given."""
    baseline: str = "finetune"
    """Strategy whose fresh networks are the reference that all strategies have in common."""
    n_fresh: int = 5
    """Fresh networks that stand for all, where experiences are exchangeable."""
    threshold: float = 0.9
    """Score that counts as learned, for the steps to it."""
    diagnostics: str = "all"
    """none; light (units, features, norms, targets, kernel); or all (curvature, trainability and pictures too)."""
    device: str = "cpu"
    """Where to train: cpu, cuda, cuda:1, ..."""
    threads: int = 1
    """CPU threads of a run; another number can change the last bits."""

    def scenario_options(self) -> dict[str, Any]:
        """The scenario's options that were given."""
        names = ("n_experiences", "n_samples", *_SCENARIO_OPTIONS)
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


@dataclass(frozen=True, kw_only=True)
class RunSpec(Settings):
    """One strategy on one stream with one seed."""

    strategy: str = "finetune"
    """Interventions, joined by +, for instance layernorm+l2=1e-3."""
    seed: int = 0
    """Root of every draw: stream, initialisation, batch order."""


@dataclass(frozen=True, kw_only=True)
class CompareSpec(Settings):
    """Several strategies on one stream, each with several seeds."""

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


def check(spec: RunSpec) -> RunSpec:
    """Check everything that can be checked without loading data or a network.

    Returns:
        The spec with strategy and baseline in their canonical spelling, and the score's name.

    Raises:
        UserError: For the first value that is unknown or out of range.
    """
    check_scenario(spec.scenario, spec.scenario_options())
    check_source(spec.scenario, spec.source)
    if spec.weights is not None and not spec.model.startswith("imagenet-"):
        raise UserError(f"weights are for imagenet-resnet18 and imagenet-resnet50; {spec.model} starts from a seed")
    if spec.model.startswith("imagenet-") and (spec.width, spec.depth, spec.activation) != (None, None, "relu"):
        raise UserError(f"{spec.model} has a width, a depth and an activation of its own: leave these out")
    for kind, given, known in (
        ("network", spec.model, (*NETWORKS, *IMAGENET_NETWORKS)),
        ("activation", spec.activation, ACTIVATIONS),
        ("normalization", spec.normalization, NORMALIZATIONS),
        ("optimizer", spec.optimizer, OPTIMIZERS),
        ("choice of diagnostics", spec.diagnostics, DIAGNOSTICS),
    ):
        if given is not None and given not in known:
            raise unknown_name(kind, given, known)
    for name in ("n_experiences", "n_samples", "width", "depth", "epochs", "batch_size", "n_fresh", "threads"):
        value = getattr(spec, name)
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}: it must be at least 1")
    if spec.fraction is not None and not 0 < spec.fraction <= 1:
        raise UserError(f"fraction is {spec.fraction}: it must be above 0 and at most 1")
    if not 0 < spec.lr < math.inf:
        raise UserError(f"lr is {spec.lr}: it must be above 0 and finite")
    if not spec.threshold <= 1:
        raise UserError(f"threshold is {spec.threshold}: it must be at most 1, since no accuracy and no R2 is above")
    return dataclasses.replace(
        spec, strategy=normalise(spec.strategy), baseline=fresh_name(spec.baseline), score=score_of(spec)
    )


def score_of(spec: RunSpec) -> str:
    """The name of the score of a run: what was asked for, or else what suits the scenario.

    Raises:
        UserError: If it is unknown, or does not suit the scenario.
    """
    suitable = ("bounded-r2", "r2") if SCENARIOS[spec.scenario].regression else ("accuracy",)
    if spec.score is None:
        return suitable[0]
    if spec.score not in SCORES:
        raise unknown_name("score", spec.score, SCORES)
    if spec.score not in suitable:
        raise UserError(f"score {spec.score} does not suit {spec.scenario}: choose {' or '.join(suitable)}")
    return spec.score


def fresh_spec(spec: RunSpec) -> RunSpec:
    """The spec of the fresh networks of a run.

    Only the interventions that act on a first experience remain: elastic weight consolidation, replay and the like have
    no past to keep, so ``ewc=100`` and ``finetune`` share their fresh networks.
    """
    return dataclasses.replace(spec, strategy=fresh_name(spec.strategy))


def baseline_spec(spec: RunSpec) -> RunSpec:
    """The spec of the fresh networks that all strategies are compared with: the baseline's, on the scenario's twin.

    For the baseline itself, on a scenario without a twin, it is that of its own fresh networks.
    """
    return dataclasses.replace(spec, strategy=fresh_name(spec.baseline), **SCENARIOS[spec.scenario].twin)


S = TypeVar("S", RunSpec, CompareSpec)


def read_toml(path: Path, kind: type[S]) -> S:
    """Read a spec from a TOML file with the fields of ``kind``.

    Raises:
        UserError: If the file is missing or no TOML, or a key is unknown, or a value is of the wrong type.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path} is not a TOML file: {error}") from None
    hints = get_type_hints(kind)
    for key, value in values.items():
        if key not in hints:
            raise UserError(f"{path}: {unknown_name('key', key, hints)}")
        values[key] = _typed(path, key, value, hints[key])
    return kind(**values)


def _typed(path: Path, key: str, value: Any, hint: Any) -> Any:
    options = get_args(hint) or (hint,)
    if hint in (tuple[str, ...], tuple[int, ...]):
        item = options[0]
        if isinstance(value, list) and all(type(entry) is item for entry in value):
            return tuple(value)
        raise UserError(f"{path}: {key} must be a list of {'strings' if item is str else 'integers'}, not {value!r}")
    if float in options and type(value) is int:
        return float(value)
    if type(value) in options:
        return value
    names = {str: "a string", int: "an integer", float: "a number"}
    raise UserError(f"{path}: {key} must be {' or '.join(names[o] for o in options if o in names)}, not {value!r}")
