"""Norms of parameters, gradients, updates and features (mechanism 2: growth of parameters).

All norms are Euclidean. A layer is a module that owns parameters, with all of them (weight and bias) taken together; a
parameter that the network itself owns, a class token for instance, is a layer of its own. NaN and infinities are passed
on, because a norm that is not finite is the finding.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from plasticity_cl.diagnostics.undisturbed import outside_of_modes
from plasticity_cl.errors import UserError

_ADAM_LIKE = (
    *(torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam, torch.optim.Adamax),
    *(torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.Adadelta),
)


@dataclass(frozen=True)
class LayerValues:
    """A value for a network and for each of its layers.

    Attributes:
        total: All layers together.
        layers: By name of the layer, in the order of the network.
    """

    total: float
    layers: dict[str, float]

    def scalars(self, name: str) -> dict[str, float]:
        """Return flat names: ``name`` in total, ``name/layer`` for a layer."""
        return {name: self.total} | {f"{name}/{layer}": value for layer, value in self.layers.items()}


def parameter_norm(model: nn.Module) -> LayerValues:
    """Compute ||W|| of each layer and of all parameters together; a shared parameter counts once.

    Args:
        model: Any network. Frozen parameters count too.

    Returns:
        Norms. For growth, divide by those of the same network at initialisation.
    """
    return _norms(model.named_parameters())


def gradient_norm(model: nn.Module) -> LayerValues:
    """Compute the norm of the gradients that the parameters hold; a parameter without one counts as zero.

    Args:
        model: A network after ``backward``.

    Returns:
        Norms.

    Raises:
        UserError: If no parameter holds a gradient.
    """
    parameters = dict(model.named_parameters())
    if all(parameter.grad is None for parameter in parameters.values()):
        raise UserError(
            "no parameter holds a gradient; call backward first, and measure before the gradients are cleared"
        )
    return _norms(
        (name, parameter.new_zeros(1) if parameter.grad is None else parameter.grad)
        for name, parameter in parameters.items()
    )


def feature_norm(features: Tensor) -> float:
    """Compute the mean over samples of ||f_i||.

    Args:
        features: [n, ...]; each sample is flattened.

    Returns:
        The norm; 0 without samples.
    """
    if not features.numel():
        return 0.0
    return float(torch.linalg.vector_norm(features.detach().double().flatten(1), dim=1).mean())


def parameter_snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Copy the parameters, for :func:`update_ratio`.

    Args:
        model: Any network.

    Returns:
        Detached copies by name.
    """
    with outside_of_modes():
        return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def update_ratio(before: Mapping[str, Tensor], after: nn.Module) -> LayerValues:
    """Compute ||dW|| / ||W||, W the parameters before and W + dW those after one or more real optimizer steps.

    Args:
        before: Parameters by name, as :func:`parameter_snapshot` copied them before the step.
        after: The network after the step.

    Returns:
        Ratios; 0 where nothing moved, infinity where a layer moved away from all zeros.

    Raises:
        UserError: If the network has other parameters than before.
    """
    now = dict(after.named_parameters())
    for name in [*before, *(name for name in now if name not in before)]:
        if name not in now or name not in before or now[name].shape != before[name].shape:
            raise UserError(f"parameter {name!r} is not the same before and after; take both from one network")
    step = _norms((name, _wide(parameter) - _wide(before[name])) for name, parameter in now.items())
    start = _norms((name, before[name]) for name in now)
    layers = {name: _ratio(norm, start.layers[name]) for name, norm in step.layers.items()}
    return LayerValues(_ratio(step.total, start.total), layers)


def effective_learning_rate(model: nn.Module, optimizer: torch.optim.Optimizer) -> LayerValues:
    """Compute the learning rate in units of the weights: eta / ||W||^2 for SGD, eta / ||W|| for Adam-like optimizers.

    For a layer whose output does not depend on the scale of its weights (followed by a normalisation), this is what
    sets the speed of learning, so growing weights slow it down (van Laarhoven 2017, Lyle et al. 2024). Gradients of
    such a layer shrink as 1 / ||W||; Adam-like steps do not shrink with them, hence the other power. Of other layers
    it says little.

    Args:
        model: Any network; its weights of two and more dimensions are looked at, not biases and scales.
        optimizer: The optimizer that trains them. Adam-like are those that divide by a running size of the gradient:
            Adam, AdamW, NAdam, RAdam, Adamax, RMSprop, Adagrad, Adadelta.

    Returns:
        Rates of each weight, by name; in total the formula for all weights as one, with the learning rates averaged
        by squared norm. Infinity where all weights are zero, NaN where one is not finite. Momentum is not in it.

    Raises:
        UserError: If the optimizer is neither SGD nor Adam-like, or holds none of the weights.
    """
    if isinstance(optimizer, torch.optim.SGD | torch.optim.ASGD):
        power = 2
    elif isinstance(optimizer, _ADAM_LIKE):
        power = 1
    else:
        raise UserError(
            f"the effective learning rate is defined for SGD and Adam-like optimizers, not {type(optimizer).__name__}"
        )
    rates = {id(parameter): float(group["lr"]) for group in optimizer.param_groups for parameter in group["params"]}
    weights = {name: p for name, p in model.named_parameters() if p.ndim > 1 and id(p) in rates}
    if not weights:
        raise UserError("the optimizer holds no weight matrix of this network")
    norms = {name: _norm(weight) for name, weight in weights.items()}
    total = math.hypot(*norms.values())
    own = {name: rates[id(weight)] for name, weight in weights.items()}
    layers = {name: _rate(own[name], norm, power) for name, norm in norms.items()}
    rate = sum(own[name] * (norm / total) ** 2 for name, norm in norms.items()) if total else max(own.values())
    return LayerValues(_rate(rate, total, power), layers)


def _rate(rate: float, norm: float, power: int) -> float:
    if not math.isfinite(norm):
        return math.nan
    return _ratio(rate, norm) if power == 1 else _ratio(_ratio(rate, norm), norm)


def _norms(tensors: Iterable[tuple[str, Tensor]]) -> LayerValues:
    layers: dict[str, float] = {}
    for name, tensor in tensors:
        layer = name.rpartition(".")[0] or name
        layers[layer] = math.hypot(layers.get(layer, 0.0), _norm(tensor))
    return LayerValues(math.hypot(*layers.values()), layers)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))


def _norm(tensor: Tensor) -> float:
    """Row by row in the tensor's precision (float32 over millions of entries is off by 1e-5), then in float64."""
    tensor = tensor.detach()
    if tensor.ndim > 1:
        rows = torch.linalg.vector_norm(
            tensor.flatten(1), dim=1, dtype=torch.promote_types(tensor.dtype, torch.float32)
        )
        norm = float(torch.linalg.vector_norm(rows.double()))
        # Where squares of single precision may have overflowed or vanished, all is done in float64.
        if 1e-12 < norm < 1e18:
            return norm
    return float(torch.linalg.vector_norm(tensor.double()))


def _ratio(value: float, by: float) -> float:
    if by == 0:
        return math.inf if value > 0 else value
    return value / by
