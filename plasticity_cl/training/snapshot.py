"""Snapshots of a run between two experiences, from which a run that was stopped goes on as if it had not been."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.plugins.clock import Clock
from avalanche.training.templates import SupervisedTemplate as AvalancheTemplate
from avalanche.training.templates.base_sgd import PeriodicEval
from torch import nn

from plasticity_cl.errors import UserError, in_one_line
from plasticity_cl.seeding import restore_rng, rng_state
from plasticity_cl.training.avalanche_names import begins_anew, criterion_of


@runtime_checkable
class HasState(Protocol):
    """A plugin, metric, logger or loader that remembers something from one experience to the next, or says that not."""

    def state_dict(self) -> dict[str, Any]:
        """What it remembers: tensors, numbers, strings, ``None``, and lists, tuples and dictionaries of them."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave, in an object that was made with the same arguments."""


@runtime_checkable
class ChangesNetwork(Protocol):
    """A plugin that changes the network before the first training, as :class:`~plasticity_cl.strategies.NetworkPlugin`.

    Weights are loaded into the network as it is afterwards.
    """

    def prepare(self, strategy: Any, experience: Any) -> None:
        """Change the network of ``strategy``, unless that is done already; ``experience`` shows what the data are."""

    def is_prepared(self, strategy: Any) -> bool:
        """Whether it has been changed."""
        ...


@runtime_checkable
class MeetsBeforeTraining(Protocol):
    """A metric that has to see a strategy as it was made, before a snapshot is loaded into it."""

    def meet(self, strategy: Any) -> None:
        """See ``strategy``, which has not trained yet."""


def snapshot_of(strategy: AvalancheTemplate) -> dict[str, Any]:
    """All that a strategy would have to know to go on: network, optimizer, plugins, metrics, loggers, random numbers.

    Take it between two experiences, after the evaluations that follow on the first: what is in the middle of something
    is not in it, nor are the values that Avalanche's evaluator has collected. Save it with ``torch.save`` and read it
    with ``torch.load(..., weights_only=True)``.

    Args:
        strategy: Any strategy of Avalanche's or of ours.

    Returns:
        A dictionary of tensors, numbers, strings and collections of them, which nothing that goes on changes. Its
        ``model`` and ``optimizer`` are what their ``state_dict()`` gives.

    Raises:
        UserError: If one metric serves several strategies.
    """
    criterion = criterion_of(strategy)
    parts = {kind: [_state_of(part) for part in found] for kind, found in _parts(strategy).items()}
    snapshot = {
        "model": strategy.model.state_dict(),
        "optimizer": strategy.optimizer.state_dict(),
        "optimizer_is_made": strategy.optimized_param_id is not None,
        "criterion": criterion.state_dict() if isinstance(criterion, nn.Module) else {},
        "clock": dict(vars(strategy.clock)),
        "prepared": [plugin.is_prepared(strategy) for plugin in _network_plugins(strategy)],
        **parts,
        "random": _random_state(),
    }
    return copy.deepcopy(snapshot)


def restore(strategy: AvalancheTemplate, snapshot: dict[str, Any], experience: Any) -> None:
    """Let a new strategy go on where another one, made alike, was when the snapshot was taken.

    What plugins change in the network is changed first, then weights are loaded. torch's, NumPy's and Python's global
    generators get the state that they had.

    Args:
        strategy: Made as the one of the snapshot was, and not trained or evaluated yet.
        snapshot: As :func:`snapshot_of` gave it, or as ``torch.load(..., weights_only=True)`` read it.
        experience: One of the stream, which shows what inputs and targets are like.

    Raises:
        UserError: If the strategy is not as new or has other parts than the one of the snapshot; if the network has
            other weights; or if one of the parts has a past and no state, so that the run would go on otherwise.
    """
    if strategy.optimized_param_id is not None or strategy.clock.train_iterations:
        raise UserError("a snapshot is loaded into a new strategy, and this one has trained already: make it anew")
    parts = _parts(strategy)
    for kind, found in parts.items():
        _compare(kind, [_name(part) for part in found], [saved["name"] for saved in snapshot[kind]])
    for metric in parts["metrics"]:
        if isinstance(metric, MeetsBeforeTraining):
            metric.meet(strategy)
    strategy.model.to(strategy.device)
    for plugin, done in zip(_network_plugins(strategy), snapshot["prepared"], strict=True):
        if done:
            plugin.prepare(strategy, experience)
    snapshot = copy.deepcopy(snapshot)  # optimizers take over the very tensors that they are given
    _load(strategy.model, snapshot["model"])
    if snapshot["optimizer_is_made"]:
        strategy.make_optimizer(reset_optimizer_state=True)
    try:
        strategy.optimizer.load_state_dict(snapshot["optimizer"])
    except (ValueError, KeyError) as error:
        raise UserError(f"the optimizer is another one than that of the snapshot: {in_one_line(error)[:300]}") from None
    criterion = criterion_of(strategy)
    if isinstance(criterion, nn.Module):
        _load(criterion, snapshot["criterion"])
    for kind, found in parts.items():
        for part, saved in zip(found, snapshot[kind], strict=True):
            if saved["state"] is not None:
                part.load_state_dict(saved["state"])
            elif not _holds_nothing(part):
                raise UserError(
                    f"{_name(part)} cannot go on from a snapshot: give it state_dict() and load_state_dict(state); "
                    "{} is a state for what remembers nothing"
                )
    vars(strategy.clock).update(snapshot["clock"])
    _restore_random(snapshot["random"])


def _parts(strategy: AvalancheTemplate) -> dict[str, list[Any]]:
    evaluators = [plugin for plugin in strategy.plugins if isinstance(plugin, EvaluationPlugin)]
    return {
        "plugins": [p for p in strategy.plugins if not isinstance(p, EvaluationPlugin | PeriodicEval | Clock)],
        "metrics": [metric for evaluator in evaluators for metric in evaluator.metrics],
        "loggers": [logger for evaluator in evaluators for logger in evaluator.loggers],
    }


def _network_plugins(strategy: AvalancheTemplate) -> Iterator[ChangesNetwork]:
    return (plugin for plugin in strategy.plugins if isinstance(plugin, ChangesNetwork))


def _name(part: Any) -> str:
    return f"{type(part).__module__}.{type(part).__qualname__}"


def _state_of(part: Any) -> dict[str, Any]:
    return {"name": _name(part), "state": part.state_dict() if isinstance(part, HasState) else None}


def _holds_nothing(part: Any) -> bool:
    """Whether a part of Avalanche's begins anew with each experience, or only writes."""
    return begins_anew(part) or type(part).__module__.startswith("avalanche.logging.")


def _compare(kind: str, found: list[str], saved: list[str]) -> None:
    if found != saved:
        raise UserError(
            f"the {kind} of the strategy are {', '.join(found) or 'none'}, and those of the snapshot "
            f"{', '.join(saved) or 'none'}: make the strategy as it was made then"
        )


def _load(module: nn.Module, state: dict[str, Any]) -> None:
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"the snapshot is of another {type(module).__name__}: {in_one_line(error)[:300]}") from None


def _random_state() -> dict[str, Any]:
    python, numpy, cpu, cuda = rng_state()
    name, keys, *rest = numpy
    return {"python": python, "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *rest), "cpu": cpu, "cuda": cuda}


def _restore_random(state: dict[str, Any]) -> None:
    name, keys, *rest = state["numpy"]
    numpy = (name, keys.cpu().numpy().astype(np.uint32), *rest)
    cuda = None if state["cuda"] is None else [generator.cpu() for generator in state["cuda"]]
    version, internal, gauss = state["python"]
    restore_rng(((version, tuple(internal), gauss), numpy, state["cpu"].cpu(), cuda))
