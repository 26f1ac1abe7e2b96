"""An L2 penalty on the weights, against their growth (mechanism 2)."""

from __future__ import annotations

from typing import Any

import torch

from plasticity_cl.parts.values import Strength, limit
from plasticity_cl.strategies.intervention import Intervention
from plasticity_cl.training.learner import Learner


class L2Plugin(Intervention):
    """Adds the gradient of ``strength * sum(w ** 2)``, which is ``2 * strength * w``, to the gradients.

    The sum is over every parameter that is optimised and has a gradient, biases and normalisation included; others are
    left alone. The penalty is nowhere in ``strategy.loss``, so the reported loss is the task's.

    This is ``weight_decay=2 * strength`` in PyTorch's SGD and Adam, whose convention is ``strength / 2 * sum(w ** 2)``,
    bit for bit. Under Adam the penalty passes through the moments; for decay that does not, see
    :class:`~plasticity_cl.strategies.WeightDecayPlugin`.

    Args:
        strength: The penalty's factor, at least 0.

    Raises:
        UserError: If ``strength`` is negative or not finite.
    """

    def __init__(self, strength: Strength = 1e-3) -> None:
        super().__init__()
        self.strength = limit(Strength, "the strength of an L2 penalty", strength)

    @torch.no_grad()
    def after_backward(self, strategy: Learner, *args: Any, **kwargs: Any) -> None:
        """Add the penalty's gradient."""
        for group in strategy.optimizer.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                torch._foreach_add_([p.grad for p in parameters], parameters, alpha=2 * self.strength)
