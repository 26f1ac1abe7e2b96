"""The size of the last step that an optimizer takes on an experience, wherever its training ends."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.templates import SupervisedTemplate as AvalancheTemplate
from avalanche.training.templates.base_sgd import PeriodicEval
from torch import Tensor, nn

from plasticity_cl.diagnostics import parameter_snapshot, update_ratio
from plasticity_cl.metrics.look import inner_network
from plasticity_cl.training.avalanche_names import is_stopping
from plasticity_cl.training.hooks import is_overridden

_AFTER_A_STEP = ("after_update", "after_training_iteration")
_IN_AN_EVALUATION = (
    *("before_eval", "before_eval_exp", "before_eval_iteration", "before_eval_forward", "after_eval_forward"),
    *("after_eval_iteration", "after_eval_exp", "after_eval"),
)


class LastStep:
    """Watches a strategy's optimizer for the last step of a training, without a copy of the parameters at each step.

    A training can end

    - with an epoch: the last step of each epoch is kept, by the length of the loader;
    - within an epoch, because somebody called ``stop_training()``, which is heeded before the next batch. At a step
      the call is known if it came before. After the step only plugins, metrics and loggers that act there can call:
      where there are any but Avalanche's and ours, every step is kept. So it is where the loader has no length, and
      in strategies with a loop or a step of their own.

    What was kept counts only if it was the last step indeed.

    Args:
        strategy: About to train on an experience, its loader and optimizer made.
    """

    def __init__(self, strategy: AvalancheTemplate) -> None:
        # The optimizer must not keep the strategy alive.
        self._strategy = weakref.ref(strategy)
        self._length = 0 if _may_end_anywhere(strategy) else _length(strategy.dataloader)
        self._steps = self._kept = 0
        self._before: dict[str, Tensor] = {}
        self._after: dict[str, Tensor] = {}
        self._error: Exception | None = None
        self._hooks = [
            strategy.optimizer.register_step_pre_hook(self._before_step),
            strategy.optimizer.register_step_post_hook(self._after_step),
        ]

    def close(self) -> None:
        """Leave the optimizer as it was."""
        for hook in self._hooks:
            hook.remove()

    def ratio(self) -> float | None:
        """||dW|| / ||W|| of the last step so far; ``None`` if there was none, or if it was another than foreseen."""
        if self._error is not None:
            raise self._error
        if not self._after or self._kept != self._steps:
            return None
        # What the network was: early stopping may have put back other parameters since.
        then = cast(nn.Module, SimpleNamespace(named_parameters=self._after.items))
        return update_ratio(self._before, then).total

    def _before_step(self, optimizer: Any, *_: Any) -> None:
        strategy = self._strategy()
        if strategy is None or optimizer is not strategy.optimizer:
            return
        self._steps += 1
        done = strategy.clock.train_epoch_iterations
        self._after = {}
        self._before = {}
        if done + 1 >= self._length or is_stopping(strategy):
            self._before = self._parameters(strategy)

    def _after_step(self, optimizer: Any, *_: Any) -> None:
        strategy = self._strategy()
        if self._before and strategy is not None and optimizer is strategy.optimizer:
            self._after = self._parameters(strategy)
            self._kept = self._steps

    def _parameters(self, strategy: AvalancheTemplate) -> dict[str, Tensor]:
        try:
            return parameter_snapshot(inner_network(strategy.model))
        except Exception as error:  # it would end the training
            self._error = error
            return {}


def _length(loader: Any) -> int:
    try:
        return len(loader)
    except (TypeError, AttributeError, NotImplementedError):
        return 0


def _may_end_anywhere(strategy: AvalancheTemplate) -> bool:
    """Whether somebody can end the training after a step that was not known to be the last."""
    if any(_is_foreign(getattr(type(strategy), part)) for part in ("training_epoch", "optimizer_step")):
        return True
    events: tuple[str, ...] = _AFTER_A_STEP
    if any(isinstance(part, PeriodicEval) and part.peval_mode == "iteration" for part in strategy.plugins):
        events += _IN_AN_EVALUATION
    return any(
        _is_foreign(type(part)) and any(is_overridden(part, event) for event in events) for part in _parts(strategy)
    )


def _parts(strategy: AvalancheTemplate) -> Iterator[Any]:
    for plugin in strategy.plugins:
        yield plugin
        if isinstance(plugin, EvaluationPlugin):
            yield from (*plugin.metrics, *plugin.loggers)


def _is_foreign(part: Any) -> bool:
    return not part.__module__.startswith(("avalanche.", "plasticity_cl."))
