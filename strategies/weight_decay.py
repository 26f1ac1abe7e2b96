"""Decoupled weight decay, against the growth of weights (mechanism 2)."""

from __future__ import annotations

from typing import Any

import torch

from plasticity_cl.parts.values import Strength, limit
from plasticity_cl.strategies.intervention import Intervention
from plasticity_cl.training.learner import Learner


class WeightDecayPlugin(Intervention):
    """Shrinks weights before each step of the optimizer: ``w <- (1 - lr * strength) * w``.

    With Adam this is AdamW (Loshchilov and Hutter 2019, algorithm 2, in PyTorch's form, where the learning rate is a
    factor of the decay), bit for bit; with any other optimizer the same decay. ``lr`` is that of the parameter's group
    at this step. Every parameter that is optimised and has a gradient decays, biases and normalisation included.

    Args:
        strength: Decay per step and unit of learning rate, at least 0: ``weight_decay`` of ``torch.optim.AdamW``.

    Raises:
        UserError: If ``strength`` is negative or not finite.
    """

    def __init__(self, strength: Strength = 1e-2) -> None:
        super().__init__()
        self.strength = limit(Strength, "the strength of weight decay", strength)

    @torch.no_grad()
    def before_update(self, strategy: Learner, *args: Any, **kwargs: Any) -> None:
        """Shrink the weights."""
        for group in strategy.optimizer.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                torch._foreach_mul_(parameters, 1 - float(group["lr"]) * self.strength)
