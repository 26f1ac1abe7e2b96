"""Regression targets (mechanism 3: large target means)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from plasticity_cl.diagnostics.undisturbed import undisturbed
from plasticity_cl.errors import UserError


@dataclass(frozen=True)
class TargetStatistics:
    """Moments of an experience's targets, over all values.

    Attributes:
        mean: Their mean.
        std: Their standard deviation (of the values, not corrected for their number).
        offset_to_scale: |mean| / std, what makes a task ill-conditioned for a loss that is not scale-invariant;
            infinite where std is 0 and the mean is not, 0 where both are.
    """

    mean: float
    std: float
    offset_to_scale: float


def target_statistics(targets: Tensor) -> TargetStatistics:
    """Moments of regression targets, in float64.

    Args:
        targets: Any shape, floating point.

    Raises:
        UserError: If there are none.
    """
    if not targets.numel():
        raise UserError("there are no targets to describe: the experience is empty")
    values = targets.detach().double()
    mean, std = float(values.mean()), float(values.std(correction=0))
    # A constant leaves rounding of its mean behind.
    std = 0.0 if bool((values == values.flatten()[0]).all()) else std
    ratio = abs(mean) / std if std else (math.inf if mean else 0.0)
    return TargetStatistics(mean, std, ratio)


def output_bias_share(model: nn.Module, inputs: Tensor) -> float:
    """How much of the mean output is carried by the output bias rather than by features: <b, m> / ||m||^2.

    m is the mean output over the batch, b the bias of the linear layer that gives the output; m - b is what the
    features carry. 1 where the bias carries all of the mean, 0 where the features do; it can lie outside when they
    oppose. A network could represent a large mean by its bias alone, and does not (Lyle et al. 2024).

    Args:
        model: A network whose output is that of a linear layer; left as it was.
        inputs: A batch, as the model takes it.

    Returns:
        The share; NaN where the mean output is 0; 0 where the layer has no bias.

    Raises:
        UserError: If the output does not come directly out of a linear layer.
    """
    executed: list[tuple[nn.Module, Tensor]] = []
    hooks = [
        module.register_forward_hook(lambda module, _, output: executed.append((module, output)))
        for module in model.modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        with undisturbed(model), torch.no_grad():
            result = model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    if not executed or executed[-1][1] is not result:
        raise UserError(f"the output of {type(model).__name__} does not come directly out of a linear layer")
    bias = executed[-1][0].bias
    mean = result.double().flatten(0, -2).mean(0)
    if not mean.any():
        return math.nan
    return 0.0 if bias is None else float(bias.detach().double() @ mean / (mean @ mean))
