"""Fresh networks, trained on one experience alone while a run goes on and without disturbing it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.plugins.clock import Clock
from avalanche.training.templates import SupervisedTemplate as AvalancheTemplate
from avalanche.training.templates.base_sgd import PeriodicEval
from torch import nn

from plasticity_cl.errors import UserError
from plasticity_cl.seeding import preserve_rng
from plasticity_cl.training import SupervisedTemplate

FreshFactory = Callable[[], nn.Module | AvalancheTemplate]


class FreshNetworks:
    """Trains a fresh network on each experience as the watched strategy is about to do.

    Args:
        factory: Gives a network at its initialisation, or a whole strategy around one. A network is trained with the
            watched strategy's criterion, batch size, epochs and kind of optimizer, and with copies of its plugins as
            they were before any training; a strategy of another class than Avalanche's template may do more than its
            plugins say, so give a factory of strategies for those.
    """

    def __init__(self, factory: FreshFactory) -> None:
        self._factory = factory
        self._plugins: list[Any] | None = None
        self._criterion: Any = None
        self._fresh: AvalancheTemplate | None = None

    def remember(self, strategy: AvalancheTemplate) -> None:
        """Copy the strategy's plugins and criterion; to be called before it trains for the first time."""
        if self._plugins is None:
            own = (EvaluationPlugin, PeriodicEval, Clock)
            self._plugins = copy.deepcopy([plugin for plugin in strategy.plugins if not isinstance(plugin, own)])
            self._criterion = copy.deepcopy(strategy._criterion)

    def train(self, strategy: AvalancheTemplate) -> None:
        """Train a fresh network on the strategy's current experience, in the batch order that it is about to use."""
        self.remember(strategy)
        with preserve_rng(), torch.enable_grad():
            with preserve_rng():
                self._fresh = self._make(strategy)
            self._fresh.train(strategy.experience, eval_streams=[])

    def score(self, strategy: AvalancheTemplate, metric: Any) -> float:
        """Score the last fresh network on the experience that the strategy is being evaluated on.

        Args:
            strategy: The watched strategy, in an evaluation.
            metric: A plugin metric whose ``result()`` is the score of an evaluated experience.
        """
        if self._fresh is None:
            return float("nan")
        evaluator = self._fresh.evaluator
        evaluator.metrics = [metric]
        try:
            with preserve_rng():
                self._fresh.eval([strategy.experience])
        finally:
            evaluator.metrics = []
        return float(metric.result())

    def _make(self, strategy: AvalancheTemplate) -> AvalancheTemplate:
        made = self._factory()
        if isinstance(made, AvalancheTemplate):
            return made
        if not isinstance(made, nn.Module):
            raise UserError(
                "the factory of fresh networks must return a torch.nn.Module or an Avalanche strategy, "
                f"it returned a {type(made).__name__}"
            )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="No loggers specified")
            evaluator = EvaluationPlugin(collect_all=False)
        return SupervisedTemplate(
            model=made,
            optimizer=_same_optimizer(strategy.optimizer, made),
            criterion=copy.deepcopy(self._criterion),
            train_mb_size=strategy.train_mb_size,
            train_epochs=strategy.train_epochs,
            eval_mb_size=strategy.eval_mb_size,
            device=strategy.device,
            plugins=copy.deepcopy(self._plugins),
            evaluator=evaluator,
        )


def _same_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module) -> torch.optim.Optimizer:
    options = {key: value for key, value in optimizer.param_groups[0].items() if key in optimizer.defaults}
    return type(optimizer)(model.parameters(), **options)
