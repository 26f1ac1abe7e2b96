"""What metrics promise."""

from __future__ import annotations

import math
import warnings
from typing import Any

from avalanche.evaluation import PluginMetric
from torch import Tensor, nn

from plasticity_cl.metrics import Scalar
from plasticity_cl.metrics.catalogue import METRICS, make_diagnostics, write_diagnostics
from plasticity_cl.quantity import quantities_of
from plasticity_cl.seeding import rng_state
from plasticity_cl.strategies import Finetune
from plasticity_cl.testing.bench import (
    N_EXPERIENCES,
    TASKS,
    Emitted,
    build,
    go_on,
    learn,
    network,
    stream,
    undisturbed,
    weights,
)
from plasticity_cl.testing.promises import (
    SPELLING,
    STATE,
    BrokenError,
    Part,
    difference,
    made_by,
    name_of,
    promise,
    require_spelling,
    require_untouched,
    saved,
    seed_generators,
)
from plasticity_cl.training.snapshot import restore, snapshot_of

WATCHES = "the training that it watches is what it is without it"
EMITS = "it says something of classes or of numbers"
DESCRIBED = "what it says of its numbers is true of them"
FAILURE = "what fails in it ends no training and leaves no old value"

_LAST = N_EXPERIENCES - 1


def check_metric(metric: Part) -> None:
    """Check what a metric promises.

    - **Spelling**: one that is named reads back from its text, from ``diagnostics`` in TOML, and from ``spec.json``.
    - **Watching**: weights and random numbers at the end are the same, to the last bit, with it and without it.
    - **Something** is emitted, on a stream of classes or on one of numbers.
    - **Described**: where it has ``quantities``, every number that it emits is one of them, and within its bounds.
    - **State**: stopped between two experiences, made anew and loaded with ``weights_only=True``, it emits what it
      would have emitted.
    - **Failure**: where the network refuses to be looked at, the training goes on as it would have; and of a look that
      failed, ``result()`` has no value from before.

    Args:
        metric: The metric: a name with its options, a dotted path, or what makes it.

    Raises:
        AssertionError: For the first promise that is broken, in one line.
    """
    name = name_of(metric)

    def make() -> Any:
        made = make_diagnostics(metric)[0] if isinstance(metric, str) else made_by(metric)
        if not isinstance(made, PluginMetric):
            raise BrokenError(f"it made a {type(made).__name__}, which is no Avalanche metric")
        return made

    with undisturbed():
        if isinstance(metric, str):
            with promise(name, SPELLING):
                chosen = METRICS.read(metric)
                require_spelling("diagnostics", write_diagnostics, [chosen])
        with promise(name, WATCHES):
            make()  # what modules draw when they are imported is their own affair
        emits = False
        for task in TASKS:
            emitted = Emitted()
            with promise(name, WATCHES):
                alone = learn(list, task, n=N_EXPERIENCES)
                state = rng_state()
                watched = learn(list, task, n=N_EXPERIENCES, metrics=[make()], loggers=[emitted])
                require_untouched(state)
                found = difference(weights(alone), weights(watched))
                if found:
                    raise BrokenError(found)
            emits = emits or bool(emitted.values)
            with promise(name, DESCRIBED):
                _require_described(make(), emitted)
            with promise(name, STATE):
                _goes_on(make, task, emitted)
            with promise(name, FAILURE):
                _fails_quietly(make, task)
        with promise(name, EMITS):
            if not emits:
                raise BrokenError(f"nothing was emitted in {N_EXPERIENCES} experiences of either")


def _require_described(metric: Any, emitted: Emitted) -> None:
    quantities = quantities_of([metric])
    for value in emitted.values if quantities else ():
        name, number = value.metric if isinstance(value, Scalar) else value.name, value.value
        if isinstance(number, bool) or not isinstance(number, int | float):
            continue
        if name not in quantities:
            raise BrokenError(f"it emits {name}, and its quantities are {', '.join(quantities)}")
        low, high = quantities[name].low, quantities[name].high
        if (low is not None and number < low) or (high is not None and number > high):
            raise BrokenError(f"{name} is {number:.9g}, and its bounds are {low} and {high}")


def _goes_on(make: Any, task: str, whole: Emitted) -> None:
    before, emitted = Emitted(), Emitted()
    stored = saved(snapshot_of(learn(list, task, n=_LAST, metrics=[make()], loggers=[before])))
    seed_generators(9)
    resumed = build([], task, metrics=[make()], loggers=[emitted])
    restore(resumed, stored, stream(task).train_stream[0])
    go_on(resumed, task, range(_LAST, N_EXPERIENCES))
    expected, after = whole.plain()[len(before.values) :], emitted.plain()
    if len(expected) != len(after):
        raise BrokenError(
            f"it emits {len(after)} values after going on, and a run that was not stopped {len(expected)} there"
        )
    for (name, at, value), (name_then, at_then, value_then) in zip(expected, after, strict=True):
        found = difference(value, value_then, name)
        if (name, at) != (name_then, at_then) or found:
            raise BrokenError(f"{found or f'{name_then} comes in place of {name}'}; let state_dict() hold it all")


class _Shy(nn.Module):
    """A network that, once it is told so, runs for the learner alone."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.is_shy, self.is_asked = inner, False, False

    def forward(self, inputs: Tensor) -> Tensor:
        if self.is_shy and not self.is_asked:
            raise RuntimeError("this network does not want to be looked at")
        return self.inner(inputs)  # type: ignore[no-any-return]


class _Asking(Finetune):
    """The learner that it runs for."""

    def forward(self) -> Any:
        self.model.is_asked = True
        try:
            return super().forward()
        finally:
            self.model.is_asked = False


def _fails_quietly(make: Any, task: str) -> None:
    def learned(metrics: list[Any], emitted: Emitted) -> dict[str, Tensor]:
        seed_generators(0)
        strategy = build([], task, model=_Shy(network(task)), template=_Asking, metrics=metrics, loggers=[emitted])
        go_on(strategy, task, range(_LAST))
        emitted.values.clear()
        strategy.model.is_shy = True
        go_on(strategy, task, [_LAST])
        return weights(strategy)

    metric, emitted = make(), Emitted()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        watched = learned([metric], emitted)
    found = difference(learned([], Emitted()), watched)
    if found:
        raise BrokenError(found)
    if not any("no value" in str(warning.message) for warning in said):
        return
    result = metric.result()
    values = result.values() if isinstance(result, dict) else [] if result is None else [result]
    fresh = [value.value for value in emitted.values if isinstance(value.value, int | float)]
    for value in values:
        if isinstance(value, int | float) and not math.isnan(value) and value not in fresh:
            raise BrokenError(f"result() still has {value:.9g}, which is of an experience before")
