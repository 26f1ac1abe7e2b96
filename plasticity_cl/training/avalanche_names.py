"""What Avalanche keeps to itself and we need all the same: every private name of Avalanche's stands in this file alone.

``tests/training/test_avalanche_names.py`` holds it. Only the hooks that Avalanche's template calls, and that a template
of ours must override to be called, are written where they are overridden.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from avalanche.benchmarks import OnlineCLExperience
from avalanche.benchmarks.utils.transform_groups import EmptyTransformGroups
from avalanche.evaluation import GenericPluginMetric
from avalanche.evaluation.metrics.accuracy import Accuracy
from torch import Tensor

LossFunction = Callable[[Any, Tensor], Tensor]
"""Of what a network gives and the targets; a module or a function."""

# ------------------------------------------------------------------------------------------------- of a strategy


def criterion_of(strategy: Any) -> LossFunction:
    """The loss function of a strategy; ``strategy.criterion()`` is its value for the current batch."""
    return strategy._criterion  # type: ignore[no-any-return]


def set_criterion(strategy: Any, criterion: LossFunction) -> None:
    """Give a strategy another loss function."""
    strategy._criterion = criterion


def is_stopping(strategy: Any) -> bool:
    """Whether somebody has called ``strategy.stop_training()``, which is heeded before the next batch."""
    return strategy._stop_training  # type: ignore[no-any-return]


def evaluation_streams(strategy: Any) -> list[Any]:
    """What ``train()`` evaluates on while it goes on; nothing elsewhere."""
    return list(strategy._eval_streams or [])


def joint_experiences(strategy: Any) -> list[Any]:
    """The experiences that Avalanche's ``JointTraining`` is being trained on at once."""
    return list(strategy._experiences)


# ---------------------------------------------------------------------------------- of experiences and data sets


def whole_experience(experience: Any) -> Any:
    """The experience that a mini experience of an online stream is part of; any other experience itself.

    In a metric's hooks Avalanche shows all of an experience; elsewhere a mini experience may keep its origin to itself.
    """
    return experience.origin_experience if isinstance(experience, OnlineCLExperience) else experience


def stream_of(experience: Any) -> Any:
    """The stream of the (whole) experience; ``None`` for an experience that stands alone."""
    return getattr(whole_experience(experience), "_origin_stream", None)


def shown_whole(dataset: Any) -> tuple[Any, list[Any]]:
    """The data set that an Avalanche data set shows all of, and the transforms through which it shows it.

    Returns:
        The inner data set and the current transforms, outermost first. ``(None, [])`` for a subset, a concatenation,
        anything that adds an attribute to what it shows, and data sets that are not Avalanche's.
    """
    if any(attribute.use_in_getitem for attribute in getattr(dataset, "_data_attributes", {}).values()):
        return None, []
    inner: Any = getattr(dataset, "_flat_data", None)
    transforms: list[Any] = []
    while hasattr(inner, "_datasets"):
        if len(inner._datasets) != 1 or inner._indices is not None:
            return None, []
        for groups in (inner._transform_groups, inner._frozen_transform_groups):
            transform = None if isinstance(groups, EmptyTransformGroups) else groups[groups.current_group]
            if transform is not None:
                transforms.append(transform)
        inner = inner._datasets[0]
    return inner, transforms


# ------------------------------------------------------------------------- of metrics and the evaluation plugin

ACTIVE = "_active"
"""Key of ``vars(evaluator)``: whether it collects metrics. Its own attribute access takes a microsecond."""
WAITING_VALUES = "_metric_values"
"""Key of ``vars(evaluator)``: values that loggers have not seen yet."""

# When a metric built on Avalanche's GenericPluginMetric does anything: its mode, and what must be set to this moment.
_GENERIC_EVENTS = {
    "before_training": ("train", "_reset_at", "stream"),
    "before_training_exp": ("train", "_reset_at", "experience"),
    "before_training_epoch": ("train", "_reset_at", "epoch"),
    "before_training_iteration": ("train", "_reset_at", "iteration"),
    "after_training_iteration": ("train", "_mode", "train"),
    "after_training_epoch": ("train", "_emit_at", "epoch"),
    "after_training_exp": ("train", "_emit_at", "experience"),
    "after_training": ("train", "_emit_at", "stream"),
    "before_eval": ("eval", "_reset_at", "stream"),
    "before_eval_exp": ("eval", "_reset_at", "experience"),
    "before_eval_iteration": ("eval", "_reset_at", "iteration"),
    "after_eval_iteration": ("eval", "_mode", "eval"),
    "after_eval_exp": ("eval", "_emit_at", "experience"),
    "after_eval": ("eval", "_emit_at", "stream"),
}


def generic_metric_acts(metric: GenericPluginMetric, event: str) -> bool | None:
    """Whether a metric does anything at ``event``; ``None`` where it is not Avalanche's generic metric that acts."""
    method = getattr(type(metric), event, None)
    if event not in _GENERIC_EVENTS or method is not getattr(GenericPluginMetric, event) or event in vars(metric):
        return None
    mode, attribute, moment = _GENERIC_EVENTS[event]
    return bool(metric._mode == mode and getattr(metric, attribute) == moment)


def begins_anew(metric: Any) -> bool:
    """Whether a metric is Avalanche's generic one that is reset at each stream, experience, epoch or iteration."""
    return isinstance(metric, GenericPluginMetric) and metric._reset_at != "never"


def inner_metric(metric: Any) -> Any:
    """What sums up in a generic metric; ``None`` where a metric of losses was given another one than it sums up in."""
    inner = metric._metric
    return None if getattr(metric, "_loss", inner) is not inner else inner


def set_inner_metric(metric: Any, inner: Any) -> None:
    """Let a generic metric sum up in ``inner``."""
    metric._metric = inner
    if hasattr(metric, "_loss"):
        metric._loss = inner


def running_mean(metric: Any) -> Any:
    """The mean that Avalanche's ``Accuracy`` or ``LossMetric`` keeps."""
    return metric._mean_accuracy if isinstance(metric, Accuracy) else metric._mean_loss


def share_running_mean(metric: Any, original: Any) -> None:
    """Let a metric that was not initialised go on with the mean of another one of its kind."""
    setattr(metric, "_mean_accuracy" if isinstance(metric, Accuracy) else "_mean_loss", running_mean(original))
