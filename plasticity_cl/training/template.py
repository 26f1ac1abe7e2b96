"""A drop-in for Avalanche's supervised template that trains in-memory streams at nearly the speed of a bare loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.templates import SupervisedTemplate as AvalancheTemplate
from torch import Tensor

from plasticity_cl.training.in_memory import SamplesLoader, samples_of

_ITERATION_EVENTS = (
    *("before_training_iteration", "before_forward", "after_forward", "before_backward", "after_backward"),
    *("before_update", "after_update", "after_training_iteration"),
    *("before_eval_iteration", "before_eval_forward", "after_eval_forward", "after_eval_iteration"),
)
_EMPTY = frozenset({"BaseSGDPlugin", "BasePlugin", "SupervisedPlugin", "PluginMetric", "BaseLogger"})


def _caller(event: str) -> Callable[..., None]:
    def call(self: SupervisedTemplate, **kwargs: Any) -> None:
        self._call_plugins(event, **kwargs)

    return call


class SupervisedTemplate(AvalancheTemplate):  # type: ignore[misc]
    """Avalanche's ``SupervisedTemplate`` with batches gathered from tensors and only overridden hooks called.

    It takes the same arguments, gives bit-identical weights, and runs any plugin. Where a data set is not plainly in
    memory (transforms, subsets, replay), where the loader is asked for workers, and where a plugin brings a loader of
    its own, it does exactly what Avalanche does.
    """

    task_loss: Tensor
    """The loss of the current batch as the criterion gave it: no penalty of a plugin is in it."""

    def make_train_dataloader(
        self, num_workers: int = 0, shuffle: bool = True, drop_last: bool = False, **kwargs: Any
    ) -> None:
        """Make ``self.dataloader`` for the current experience; gathers from tensors where the data set allows it."""
        samples = samples_of(self.adapted_dataset)
        if samples is None or num_workers > 0 or hasattr(self.experience, "task_labels"):
            super().make_train_dataloader(num_workers=num_workers, shuffle=shuffle, drop_last=drop_last, **kwargs)
        else:
            self.dataloader = SamplesLoader(
                samples.to(self.device), self.train_mb_size, shuffle=shuffle, drop_last=drop_last
            )

    def make_eval_dataloader(self, num_workers: int = 0, shuffle: bool = False, **kwargs: Any) -> None:
        """Make ``self.dataloader`` for an evaluation; gathers from tensors where the data set allows it."""
        samples = samples_of(self.adapted_dataset)
        if samples is None or num_workers > 0 or shuffle or hasattr(self.experience, "task_labels"):
            super().make_eval_dataloader(num_workers=num_workers, shuffle=shuffle, **kwargs)
        else:
            self.dataloader = SamplesLoader(samples.to(self.device), self.eval_mb_size, shuffle=False)

    def criterion(self) -> Tensor:
        """The loss of the current batch, kept as ``task_loss`` before any plugin adds to it."""
        loss: Tensor = super().criterion()
        self.task_loss = loss.detach()
        return loss

    def _before_training_exp(self, **kwargs: Any) -> None:
        self._known_plugins = []
        super()._before_training_exp(**kwargs)

    def _before_eval(self, **kwargs: Any) -> None:
        self._known_plugins = []
        super()._before_eval(**kwargs)

    def _call_plugins(self, event: str, **kwargs: Any) -> None:
        # Comparing two short lists by identity is what noticing a plugin added in mid-run costs.
        if self.plugins != self._known_plugins:
            self._known_plugins = list(self.plugins)
            self._callbacks = {name: [p for p in self.plugins if _acts(p, name)] for name in _ITERATION_EVENTS}
        for plugin in self._callbacks[event]:
            getattr(plugin, event)(self, **kwargs)

    _known_plugins: list[Any] = []  # noqa: RUF012 - replaced, never changed in place
    _callbacks: dict[str, list[Any]]

    _before_training_iteration = _caller("before_training_iteration")
    _before_forward = _caller("before_forward")
    _after_forward = _caller("after_forward")
    _before_backward = _caller("before_backward")
    _after_backward = _caller("after_backward")
    _before_update = _caller("before_update")
    _after_update = _caller("after_update")
    _after_training_iteration = _caller("after_training_iteration")
    _before_eval_iteration = _caller("before_eval_iteration")
    _before_eval_forward = _caller("before_eval_forward")
    _after_eval_forward = _caller("after_eval_forward")
    _after_eval_iteration = _caller("after_eval_iteration")


def _acts(plugin: Any, event: str) -> bool:
    """Whether ``plugin`` does anything at ``event``: Avalanche's base classes have an empty method for every event."""
    if isinstance(plugin, EvaluationPlugin):
        return any(_is_overridden(part, event) for part in (*plugin.metrics, *plugin.loggers))
    return _is_overridden(plugin, event)


def _is_overridden(part: Any, event: str) -> bool:
    method = getattr(type(part), event, None)
    if method is None or event in getattr(part, "__dict__", {}):
        return hasattr(part, event)
    return method.__qualname__.split(".")[0] not in _EMPTY
