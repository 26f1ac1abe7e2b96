"""Which plugins act at which event of a training loop, so that only those are called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.templates.base_sgd import PeriodicEval

from plasticity_cl.training.avalanche_names import ACTIVE, WAITING_VALUES, generic_metric_acts
from plasticity_cl.training.deferred import DEFERRABLE, DeferredAccuracy, DeferredLoss, deferred, take_batch
from plasticity_cl.training.learner import Learner

_EMPTY = frozenset({"BaseSGDPlugin", "BasePlugin", "SupervisedPlugin", "PluginMetric", "BaseLogger"})

_BATCH_EVENTS = ("after_training_iteration", "after_eval_iteration")

Hook = Callable[..., Any]


class Hooks(dict[str, list[Hook]]):
    """The hooks of a list of plugins: from an event to what is to be called, in the order of the plugins.

    Args:
        plugins: As they are now; :meth:`current` tells whether the hooks still are theirs.
    """

    def __init__(self, plugins: list[Any]) -> None:
        super().__init__()
        self.plugins = list(plugins)
        self._evaluators = [
            (vars(plugin), list(plugin.metrics), list(plugin.loggers))
            for plugin in plugins
            if isinstance(plugin, EvaluationPlugin)
        ]

    def __missing__(self, event: str) -> list[Hook]:
        hooks = [hook for plugin in self.plugins if (hook := _hook(plugin, event)) is not None]
        self[event] = hooks
        return hooks

    def __reduce__(self) -> tuple[type[Hooks], tuple[list[Any]]]:
        # A hook holds on to the plugin that it was made for: the copy of a strategy makes its own.
        return Hooks, ([],)

    def current(self, plugins: list[Any]) -> bool:
        """Whether these are the hooks of ``plugins``, also when metrics or loggers have come or gone."""
        if plugins != self.plugins:
            return False
        for attributes, metrics, loggers in self._evaluators:
            if attributes["metrics"] != metrics or attributes["loggers"] != loggers:
                return False
        return True


def _hook(plugin: Any, event: str) -> Hook | None:
    if type(plugin) is EvaluationPlugin:
        return _evaluator_hook(plugin, event)
    if type(plugin) is PeriodicEval and event in _BATCH_EVENTS and plugin.peval_mode != "iteration":
        return None
    if isinstance(plugin, EvaluationPlugin) or is_overridden(plugin, event):
        return getattr(plugin, event, None)
    return None


def _evaluator_hook(evaluator: EvaluationPlugin, event: str) -> Hook | None:
    """What Avalanche's evaluator does at ``event``, without calling the metrics that do nothing.

    Avalanche copies the experience at every event, so that metrics see all of it. Metrics that only take in the batch
    have no need of that.
    """
    quiet: list[Hook] = []
    others: list[Any] = []
    accuracies: list[DeferredAccuracy] = []
    losses: list[DeferredLoss] = []
    for metric in evaluator.metrics:
        if not _metric_acts(metric, event):
            continue
        inner = deferred(metric) if event in _BATCH_EVENTS and type(metric) in DEFERRABLE else None
        if isinstance(inner, DeferredAccuracy):
            accuracies.append(inner)
        elif isinstance(inner, DeferredLoss):
            losses.append(inner)
        elif event in _BATCH_EVENTS and getattr(metric, "takes_only_the_batch", False):
            quiet.append(getattr(metric, event))
        else:
            others.append(metric)
    if event == "before_eval" and evaluator.strict_checks:
        return getattr(evaluator, event)  # type: ignore[no-any-return]
    if accuracies or losses:
        quiet.append(partial(take_batch, accuracies, losses))
    loggers_act = any(is_overridden(logger, event) for logger in evaluator.loggers)
    if not quiet and not others and not loggers_act:
        return None
    attributes = vars(evaluator)  # the evaluator's own attribute access takes a microsecond

    def hook(strategy: Learner, **_: Any) -> None:
        if attributes[ACTIVE]:
            for take in quiet:
                take(strategy)
            if others or loggers_act or attributes[WAITING_VALUES]:
                _emit(evaluator, attributes, others, strategy, event)

    return hook


def _emit(
    evaluator: EvaluationPlugin, attributes: dict[str, Any], metrics: list[Any], strategy: Learner, event: str
) -> None:
    experience = strategy.experience
    if experience is not None:
        strategy.experience = experience.logging()
    try:
        for metric in metrics:
            values = getattr(metric, event)(strategy)
            if isinstance(values, Sequence):
                for value in values:
                    evaluator.publish_metric_value(value)
            elif values is not None:
                evaluator.publish_metric_value(values)
        for logger in evaluator.loggers:
            logger.log_metrics(attributes[WAITING_VALUES])
            if hasattr(logger, event):
                getattr(logger, event)(strategy, attributes[WAITING_VALUES])
        attributes[WAITING_VALUES] = []
    finally:
        strategy.experience = experience


def _metric_acts(metric: Any, event: str) -> bool:
    acts = generic_metric_acts(metric, event)
    return is_overridden(metric, event) if acts is None else acts


def is_overridden(part: Any, event: str) -> bool:
    """Whether ``part`` does anything at ``event``: Avalanche's base classes have an empty method for every event."""
    method = getattr(type(part), event, None)
    if method is None or event in getattr(part, "__dict__", {}):
        return hasattr(part, event)
    return getattr(method, "__qualname__", "").split(".")[0] not in _EMPTY
