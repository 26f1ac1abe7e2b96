"""What an intervention promises."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from avalanche.training import Naive
from avalanche.training.plugins import EWCPlugin as AvalancheEWCPlugin
from avalanche.training.plugins import ReplayPlugin as AvalancheReplayPlugin
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor

from plasticity_cl.errors import UserError
from plasticity_cl.metrics import NormMetric, SeparationMetric
from plasticity_cl.parts import Chosen
from plasticity_cl.parts.signature import REQUIRED
from plasticity_cl.strategies import Finetune
from plasticity_cl.strategies.catalogue import COMPONENTS, make_plugins, normalise, read_strategy
from plasticity_cl.strategies.ewc import EWCPlugin
from plasticity_cl.strategies.replay import ReplayPlugin
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
    require_finite,
    require_spelling,
    saved,
    seed_generators,
    takes,
)
from plasticity_cl.training.learner import criterion_of
from plasticity_cl.training.snapshot import HasState, restore, snapshot_of

Make = Callable[[], Sequence[Any]]

OFF = "switched off it is finetuning, bit for bit"
FINITE = "all stays finite"
SEED = "the seed decides all that it draws"
FROZEN = "frozen parameters stay untouched"
COMPANY = "it goes with EWC and replay, the same on Avalanche's template and on ours"
LOSS = "it leaves the task's loss alone"
COPY = "a copy of the strategy acts like the original"


def check_intervention(plugin: Part, *, off: Part | None = None) -> None:
    """Check what an intervention promises.

    - **Off is off**: at strength 0, weights are those of finetuning, bit for bit. What is off is ``off``; without it,
      a part that is named has its first option at 0, where that is a float that may be 0. Others are not asked.
    - **Finite**: weights and metrics, on a perceptron and a convolutional network, with classes and with numbers as
      targets. An intervention that is for one of the two alone refuses the other by a ``UserError``.
    - **Spelling**: a part that is named reads back from its text, from a table in TOML, and from ``spec.json``.
    - **Seed**: what Python's, NumPy's and torch's generators hold when the strategy is made changes nothing, torch's
      being seeded before each experience; and where it takes a ``seed``, another one makes a difference.
    - **Frozen** parameters, ``requires_grad=False``, stay what they are.
    - **State**: stopped between two experiences, made anew and loaded with ``weights_only=True``, a run ends with the
      same weights and random numbers. This takes ``state_dict()`` and ``load_state_dict(state)``.
    - **Company**: beside EWC and replay, ours and Avalanche's own, weights stay finite; alone and beside them, they are
      the same on Avalanche's ``Naive`` and on our template.
    - **Loss**: ``strategy.task_loss`` is a function of outputs and targets alone; a penalty is added to
      ``strategy.loss`` in ``before_backward`` or to the gradients, and the loss stays as it was from there on.
    - **Copies**: a fresh network, trained by a copy of the strategy, ends like the original after its first experience.

    Args:
        plugin: The intervention: a name with its options, a dotted path, or what makes it.
        off: The same, doing nothing.

    Raises:
        AssertionError: For the first promise that is broken, in one line.
    """
    name, make, other = name_of(plugin), _maker(plugin, 0), _maker(plugin, 1)
    with undisturbed():
        if isinstance(plugin, str):
            with promise(name, SPELLING):
                require_spelling("strategy", normalise, read_strategy(plugin).interventions)
        with promise(name, FINITE):
            tasks = _tasks(make)
        for task in tasks:
            with promise(name, FINITE):
                _stays_finite(make, task)
            without = _off(plugin) if off is None else _maker(off, 0)
            if without is not None:
                with promise(name, OFF):
                    _require_same(learn(list, task), learn(without, task))
            with promise(name, SEED):
                _draws_by_seed(make, other if _takes_seed(plugin) else None, task)
            with promise(name, FROZEN):
                _spares_frozen(make, task)
            with promise(name, STATE):
                _goes_on(make, task)
            with promise(name, COMPANY):
                _goes_with_others(make, task)
            with promise(name, LOSS):
                learn(lambda: [*make(), _WatchLoss()], task)
            with promise(name, COPY):
                _copies_alike(make, task)


def _maker(part: Part, seed: int) -> Make:
    if isinstance(part, str):
        return lambda: make_plugins(part, seed=seed)
    return lambda: [made_by(part, seed=seed)]


def _takes_seed(part: Part) -> bool:
    if not isinstance(part, str):
        return takes(part, "seed")
    return any(_has_seed(chosen) for chosen in read_strategy(part).interventions)


def _has_seed(chosen: Chosen) -> bool:
    return any(argument.name == "seed" for argument in COMPONENTS.signature(chosen.name).arguments)


def _off(part: Part) -> Make | None:
    """The same part with its first option at 0, where that is a float; ``None`` where there is no such thing."""
    chosen = read_strategy(part).interventions if isinstance(part, str) else ()
    if len(chosen) != 1:
        return None
    first = next(iter(COMPONENTS.options(chosen[0].name).values()), None)
    if first is None or isinstance(first.default, bool) or not isinstance(_example(first, chosen[0]), float):
        return None
    try:
        text = COMPONENTS.read(chosen[0], {first.name: 0.0}).text
        make_plugins(text)
    except UserError:
        return None
    return _maker(text, 0)


def _example(first: Any, chosen: Chosen) -> Any:
    return chosen.options.get(first.name) if first.default is REQUIRED else first.default


def _tasks(make: Make) -> list[str]:
    """The tasks that it does not refuse."""
    refused = {}
    for task in TASKS:
        try:
            learn(make, task)
        except UserError as error:
            refused[task] = str(error)
    if len(refused) == len(TASKS):
        raise BrokenError(f"it refuses both tasks ({'; '.join(refused.values())})")
    return [task for task in TASKS if task not in refused]


def _require_same(one: Any, other: Any) -> None:
    found = difference(weights(one), weights(other))
    if found:
        raise BrokenError(found)


def _stays_finite(make: Make, task: str) -> None:
    for kind in ("mlp", "cnn"):
        emitted = Emitted()
        made = network(task, kind)
        strategy = learn(make, task, model=made, metrics=[NormMetric()], loggers=[emitted])
        require_finite(weights(strategy), f"{kind}'s")
        require_finite({name: value for name, _, value in emitted.plain()}, f"{kind}'s metric")


def _goes_on(make: Make, task: str) -> None:
    for plugin in make():
        if not isinstance(plugin, HasState):
            raise BrokenError(
                f"{type(plugin).__name__} has no state_dict() and load_state_dict(state): give it both, or the base "
                "class plasticity_cl.strategies.Intervention; {} is the state of what remembers nothing"
            )
    stop = N_EXPERIENCES - 1
    whole = learn(make, task, n=N_EXPERIENCES)
    stored = saved(snapshot_of(learn(make, task, n=stop)))
    seed_generators(9)
    resumed = build(make(), task)
    restore(resumed, stored, stream(task).train_stream[0])
    go_on(resumed, task, range(stop, N_EXPERIENCES))
    found = difference(saved(snapshot_of(whole)), saved(snapshot_of(resumed)))
    if found:
        raise BrokenError(f"after going on, {found}; let state_dict() hold all that it remembers")


def _draws_by_seed(make: Make, other: Make | None, task: str) -> None:
    first = learn(make, task, before=1)
    found = difference(weights(first), weights(learn(make, task, before=2)))
    if found:
        raise BrokenError(
            f"with other states of the global generators {found}; draw from a generator of its own, made from seed"
        )
    if other is not None and not difference(weights(first), weights(learn(other, task, before=1))):
        raise BrokenError("it takes a seed, and seeds 0 and 1 give the same weights")


def _spares_frozen(make: Make, task: str) -> None:
    made = network(task)
    frozen = {name: parameter for name, parameter in made.named_parameters() if name.startswith("1.")}
    for parameter in frozen.values():
        parameter.requires_grad_(False)
    before = {name: parameter.detach().clone() for name, parameter in frozen.items()}
    strategy = learn(make, task, model=made)
    found = difference(before, {name: parameter.detach() for name, parameter in frozen.items()})
    if found:
        raise BrokenError(f"{found}; act on parameters that require a gradient and have one")
    here = {id(parameter) for parameter in strategy.model.parameters()}
    for name, parameter in frozen.items():
        if id(parameter) not in here or parameter.requires_grad:
            raise BrokenError(f"{name} is another parameter afterwards, or no longer frozen")


def _goes_with_others(make: Make, task: str) -> None:
    def ours() -> list[Any]:
        return [EWCPlugin(10.0), ReplayPlugin(8)]

    def avalanches() -> list[Any]:
        return [AvalancheEWCPlugin(10.0, mode="online", decay_factor=1.0), AvalancheReplayPlugin(mem_size=8)]

    for company, others in (("alone", list), ("beside ours", ours), ("beside Avalanche's", avalanches)):

        def together(others: Make = others) -> list[Any]:
            plugins = make()
            return [*plugins, *(o for o in others() if not any(_alike(o, plugin) for plugin in plugins))]

        naive, finetune = (
            weights(learn(together, task, template=template, n=N_EXPERIENCES)) for template in (Naive, Finetune)
        )
        require_finite(naive, f"{company}, of")
        found = difference(naive, finetune)
        if found:
            raise BrokenError(f"{company}, {found} between Avalanche's Naive and our template")


def _alike(one: Any, other: Any) -> bool:
    return isinstance(one, type(other)) or isinstance(other, type(one))


class _WatchLoss(SupervisedPlugin):  # type: ignore[misc]
    """Comes last, and finds out who changes the loss where it should not be changed."""

    def before_backward(self, strategy: Any, **_: Any) -> None:
        self._loss = strategy.loss.detach().clone()

    def after_training_iteration(self, strategy: Any, **_: Any) -> None:
        with torch.no_grad():
            expected = criterion_of(strategy)(strategy.mb_output, strategy.mb_y)
        advice = "add a penalty to strategy.loss in before_backward, or its gradient in after_backward"
        if difference(expected, strategy.task_loss):
            raise BrokenError(
                f"strategy.task_loss is {float(strategy.task_loss):.6g}, and the criterion of the outputs is "
                f"{float(expected):.6g}; {advice}"
            )
        if difference(self._loss, strategy.loss.detach()):
            raise BrokenError(
                f"strategy.loss was {float(self._loss):.6g} in the backward pass and is {float(strategy.loss):.6g} "
                f"after it; {advice}"
            )


class _Fit:
    """A score that tells apart what accuracy does not: minus the loss, summed."""

    def __init__(self) -> None:
        self._sum = 0.0

    def update(self, output: Tensor, target: Tensor) -> None:
        if target.is_floating_point():
            self._sum -= float((output.reshape(target.shape).double() - target.double()).square().sum())
        else:
            self._sum -= float(F.cross_entropy(output.double(), target, reduction="sum"))

    def result(self) -> float:
        return self._sum


def _copies_alike(make: Make, task: str) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        metric = SeparationMetric(lambda: network(task), score=_Fit)
        learn(make, task, n=1, metrics=[metric])
    table = metric.result()["train"]
    if len(table.fresh) != 1 or table.fresh[0] != table.fresh[0]:
        why = next((str(one.message) for one in said if "no value" in str(one.message)), "no score of it")
        raise BrokenError(why)
    if table.fresh[0] != table.learned[0]:
        raise BrokenError(
            f"after the first experience the original scores {table.learned[0]:.9g}, and a fresh network, "
            f"trained in the same way, {table.fresh[0]:.9g}"
        )
