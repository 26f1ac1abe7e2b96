"""Norms (mechanism 2: growth of parameters). All are Euclidean, in float64."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from plasticity_cl.errors import UserError


@dataclass(frozen=True)
class Norms:
    """A Euclidean norm, in total and by layer.

    Attributes:
        total: Root of the sum of squares over all parameters; a shared parameter counts once.
        layers: The same for the parameters that each module holds itself, by the module's name.
    """

    total: float
    layers: dict[str, float]


def parameter_norm(model: nn.Module) -> Norms:
    """||w|| of all parameters, frozen ones too. Compare it with the same network's at initialisation."""
    return _norms({name: parameter.detach() for name, parameter in model.named_parameters()})


def gradient_norm(model: nn.Module) -> Norms:
    """||g|| of the gradients that the parameters hold now; parameters without a gradient count as 0."""
    return _norms(
        {
            name: torch.zeros(1) if parameter.grad is None else parameter.grad.detach()
            for name, parameter in model.named_parameters()
        }
    )


def feature_norm(features: Tensor) -> float:
    """Mean over samples of ||f_i||.

    Args:
        features: ``[n, d]``.

    Raises:
        UserError: If it is no matrix with at least one sample.
    """
    if features.ndim != 2 or not len(features):
        raise UserError(f"features must be a matrix [samples, features], not {list(features.shape)}")
    return float(torch.linalg.vector_norm(features.detach().double(), dim=1).mean())


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the parameters, for :func:`update_ratio` after some steps."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def update_ratio(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> Norms:
    """||dW|| / ||W||, the relative size of real steps.

    Args:
        before: Parameters by name before the steps; see :func:`snapshot`.
        after: The same after the steps.

    Returns:
        The ratio over all parameters, and by layer; infinite where W was 0 and moved, 0 where it was 0 and did not.

    Raises:
        UserError: If the two differ in names or shapes.
    """
    shapes_before = {name: tuple(value.shape) for name, value in before.items()}
    shapes_after = {name: tuple(value.shape) for name, value in after.items()}
    if shapes_before != shapes_after:
        name = next(n for n in {**shapes_before, **shapes_after} if shapes_before.get(n) != shapes_after.get(n))
        raise UserError(
            f"parameter {name} has shape {shapes_before.get(name)} before and {shapes_after.get(name)} after the steps"
        )
    weights = _norms(before)
    steps = _norms({name: after[name].detach().double() - value.detach().double() for name, value in before.items()})
    ratios = {name: _ratio(steps.layers[name], weights.layers[name]) for name in weights.layers}
    return Norms(_ratio(steps.total, weights.total), ratios)


def effective_learning_rate(learning_rate: float, weight_norm: float, *, adaptive: bool) -> float:
    """How fast the direction of a scale-invariant layer's weights turns, those before a normalisation.

    Gradients of such weights shrink as 1 / ||W||, so growth of the norm slows learning down: eta / ||W||^2 for SGD, and
    eta / ||W|| for optimizers that normalise the gradient, as Adam does (van Laarhoven 2017; Lyle et al. 2024).

    Args:
        learning_rate: eta.
        weight_norm: ||W|| of the layer.
        adaptive: Whether the optimizer normalises gradients.
    """
    return _ratio(learning_rate, weight_norm if adaptive else weight_norm**2)


def _ratio(numerator: float, denominator: float) -> float:
    if denominator:
        return numerator / denominator
    return math.inf if numerator else 0.0


def _norms(tensors: Mapping[str, Tensor]) -> Norms:
    norms = {name: float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) for name, tensor in tensors.items()}
    layers: dict[str, list[float]] = {}
    for name, norm in norms.items():
        layers.setdefault(name.rpartition(".")[0], []).append(norm)
    return Norms(math.hypot(*norms.values()), {name: math.hypot(*parts) for name, parts in layers.items()})
