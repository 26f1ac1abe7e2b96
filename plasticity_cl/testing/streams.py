"""What scenarios and sources promise."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plasticity_cl.experiments.build import Scenario, as_scenario
from plasticity_cl.scenarios.catalogue import SCENARIOS, SOURCES, make_scenario
from plasticity_cl.scenarios.sources import load_source
from plasticity_cl.seeding import rng_state
from plasticity_cl.testing.bench import undisturbed
from plasticity_cl.testing.promises import (
    SPELLING,
    UNTOUCHED,
    BrokenError,
    Part,
    difference,
    made_by,
    name_of,
    promise,
    require_finite,
    require_spelling,
    require_untouched,
    seed_generators,
    takes,
)

SEED = "the seed decides all its data"
ORDER = "an experience is the same in any order of access"
LENGTH = "its streams are as long as is asked for"
TARGETS = "inputs and targets are what it says"
STATED = "it says what its experiences are"
FITS = "a scenario is made of it"

_LOOKED_AT = 128


def check_scenario(
    scenario: Part,
    *,
    source: str | Any = None,
    data_root: str | Path | None = None,
) -> None:
    """Check what a scenario promises.

    - **Spelling**: one that is named reads back from its text, from a table in TOML, and from ``spec.json``.
    - **Length**: there are as many experiences to test as to train, and ``n_experiences`` of them where it has that.
    - **What it says**: ``task`` is one of two words, ``exchangeable`` and ``forgetting_counts`` are true or false.
    - **Targets**: whole numbers ``[n]`` from 0 to below ``n_outputs``; or in a regression floats, ``n_outputs`` a
      sample. Inputs are finite floats of ``input_shape``.
    - **Seed**: the same seed gives the same data, whatever the global generators hold, and these stay untouched.
    - **Order**: an experience is the same whenever it is asked for, in whatever order.

    Args:
        scenario: The scenario: a name with its options, a dotted path, or a class or function of ``source`` and
            ``seed``.
        source: What it is made of, or the name of that; by default the first source of the catalogue that suits it
            and needs no files.
        data_root: The data folder of that source.

    Raises:
        AssertionError: For the first promise that is broken, in one line.
    """
    name = name_of(scenario)
    with undisturbed():
        if source is None:
            source = _source_for(scenario)
        made_of = load_source(source, data_root=data_root) if isinstance(source, str) else source

        def make(seed: int = 0, **options: Any) -> Scenario:
            if isinstance(scenario, str):
                made: Any = make_scenario(scenario, made_of, seed=seed, **options)
            else:
                made = made_by(scenario, source=made_of, seed=seed, **options)
            return as_scenario(made, name)

        if isinstance(scenario, str):
            with promise(name, SPELLING):
                require_spelling("scenario", lambda given: SCENARIOS.read(given).text, [SCENARIOS.read(scenario)])
        with promise(name, LENGTH):
            seed_generators(1)
            state = rng_state()
            first = make()
            n = len(first.train_stream)
            if n < 1 or n != len(first.test_stream):
                raise BrokenError(f"it has {n} experiences to train and {len(first.test_stream)} to test")
            if _has_length(scenario):
                _require_length(make(n_experiences=2), 2)
        with promise(name, STATED):
            if first.task not in ("classification", "regression"):
                raise BrokenError(f"task is {first.task!r}: classification or regression")
            for fact in ("exchangeable", "forgetting_counts"):
                if not isinstance(getattr(first, fact), bool):
                    raise BrokenError(f"{fact} is {getattr(first, fact)!r}: True or False")
        picks = sorted({0, n // 2, n - 1})
        with promise(name, TARGETS):
            forwards = _data(first, picks)
            for where, (inputs, targets) in forwards.items():
                _require_targets(first, where, inputs, targets)
        with promise(name, UNTOUCHED):
            require_untouched(state)
        with promise(name, ORDER):
            backwards = _data(first, reversed(picks))
            fresh = _data(make(), picks[-1:])
            for other in (backwards, fresh):
                _require_same({where: forwards[where] for where in other}, other, "asked for in another order")
        with promise(name, SEED):
            seed_generators(2)
            _require_same(forwards, _data(make(), picks), "with other states of the global generators")


def check_source(source: Part, *, data_root: str | Path | None = None) -> None:
    """Check what a source promises.

    - **Spelling**: one that is named reads back from its text, from a table in TOML, and from ``spec.json``.
    - **Fits**: a scenario of the catalogue takes what it gives, and makes a stream of it whose inputs and targets are
      what the stream says they are. Images and labels in memory, for most of them, are a
      :class:`~plasticity_cl.scenarios.sources.source.Source`.
    - **Seed**: it is the same each time, whatever the global generators hold, and these stay untouched.

    Args:
        source: The source: a name with its options, a dotted path, or a class or function.
        data_root: The data folder.

    Raises:
        AssertionError: For the first promise that is broken, in one line.
    """
    name = name_of(source)

    def load() -> Any:
        if isinstance(source, str):
            return load_source(source, data_root=data_root)
        return made_by(source, data_root=data_root, download=False)

    with undisturbed():
        if isinstance(source, str):
            with promise(name, SPELLING):
                require_spelling("source", lambda given: SOURCES.read(given).text, [SOURCES.read(source)])
        with promise(name, FITS):
            load()  # what modules draw when they are imported is their own affair
            seed_generators(1)
            state = rng_state()
            made = load()
            kind = type(made).__name__
            suits = next((known for known in SCENARIOS if kind in SCENARIOS.signature(known).takes), None)
            if suits is None:
                raise BrokenError(f"no scenario is made of a {kind}; give a plasticity_cl.scenarios.sources.Source")
            stream = as_scenario(make_scenario(suits, made, seed=0, n_experiences=2), suits)
            first = _data(stream, [0])
            for where, (inputs, targets) in first.items():
                _require_targets(stream, where, inputs, targets)
        with promise(name, UNTOUCHED):
            require_untouched(state)
        with promise(name, SEED):
            seed_generators(2)
            again = as_scenario(make_scenario(suits, load(), seed=0, n_experiences=2), suits)
            _require_same(first, _data(again, [0]), "with other states of the global generators")


def _source_for(scenario: Part) -> str:
    """The first source that needs no files and suits a scenario."""
    wanted = SCENARIOS.signature(SCENARIOS.read(scenario).name).takes if isinstance(scenario, str) else frozenset()
    ready = [name for name in SOURCES if not SOURCES[name].check]
    return next((name for name in ready if SOURCES.signature(name).gives in wanted), ready[0])


def _has_length(scenario: Part) -> bool:
    if isinstance(scenario, str):
        return "n_experiences" in SCENARIOS.options(SCENARIOS.read(scenario).name)
    return takes(scenario, "n_experiences")


def _require_length(scenario: Scenario, wanted: int) -> None:
    for stream in ("train", "test"):
        found = len(scenario.streams[stream])
        if found != wanted:
            raise BrokenError(f"with n_experiences = {wanted} the {stream} stream has {found}")


def _data(scenario: Scenario, picks: Iterable[int]) -> dict[str, tuple[Tensor, Tensor]]:
    """Inputs and targets of some experiences, of each of them at most some that are evenly spaced."""
    found = {}
    for k in picks:
        for name in ("train", "test"):
            dataset = scenario.streams[name][k].dataset
            rows = torch.linspace(0, len(dataset) - 1, min(len(dataset), _LOOKED_AT)).long().tolist()
            inputs, targets = zip(*(dataset[row][:2] for row in rows), strict=True)
            found[f"{name} experience {k}"] = (
                torch.stack([torch.as_tensor(one) for one in inputs]),
                torch.stack([torch.as_tensor(one) for one in targets]),
            )
    return found


def _require_targets(scenario: Scenario, where: str, inputs: Tensor, targets: Tensor) -> None:
    if not inputs.is_floating_point() or inputs.shape[1:] != tuple(scenario.input_shape):
        raise BrokenError(
            f"inputs of {where} are {inputs.dtype} {list(inputs.shape[1:])}, and its input_shape is "
            f"{list(scenario.input_shape)}"
        )
    require_finite({"inputs": inputs, "targets": targets}, f"{where}'s")
    n = scenario.n_outputs
    if scenario.task == "classification":
        if targets.is_floating_point() or targets.dim() != 1:
            raise BrokenError(f"targets of {where} are {targets.dtype} {list(targets.shape)}, not classes [n]")
        if not 0 <= int(targets.min()) <= int(targets.max()) < n:
            low, high = int(targets.min()), int(targets.max())
            raise BrokenError(f"targets of {where} go from {low} to {high}, and n_outputs is {n}")
    elif not targets.is_floating_point() or targets.numel() != n * len(targets):
        raise BrokenError(f"targets of {where} are {targets.dtype} {list(targets.shape)}, and n_outputs is {n}")


def _require_same(one: dict[str, Any], other: dict[str, Any], when: str) -> None:
    for where, data in one.items():
        for what, before, after in zip(("inputs", "targets"), data, other[where], strict=True):
            found = difference(before, after, f"{what} of {where}")
            if found:
                raise BrokenError(f"{when}, {found}")
