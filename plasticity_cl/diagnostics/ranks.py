"""Ranks of features: how many directions a layer uses.

For features F ``[n, d]`` with singular values s_1 >= s_2 >= ..., p_i = s_i / sum s. Every rank lies between 0, for an
empty or all-zero matrix, and min(n, d), and is invariant to scale, to the order of samples and to rotations of the
features. Kernels have squared singular values as eigenvalues: see :mod:`plasticity_cl.diagnostics.ntk` for those.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from plasticity_cl.diagnostics.undisturbed import undisturbed
from plasticity_cl.errors import UserError


@dataclass(frozen=True)
class FeatureRank:
    """Every rank of one feature matrix; see the functions of the same names."""

    effective_rank: float
    srank: int
    stable_rank: float
    participation_ratio: float
    top_singular_share: float

    def scalars(self) -> dict[str, float]:
        """The ranks by name."""
        return {name: float(value) for name, value in asdict(self).items()}


def effective_rank(features: Tensor) -> float:
    """exp(-sum p log p), the exponential of the spectrum's entropy (Roy and Vetterli 2007).

    Args:
        features: ``[n, d]``.

    Returns:
        Between 0 and min(n, d); r where r singular values are equal and the others 0.

    Raises:
        UserError: If the features are no matrix, or hold NaN or infinities; as all functions here.
    """
    return _effective_rank(_singular_values(features))


def srank(features: Tensor, delta: float = 0.01) -> int:
    """The smallest k with s_1 + ... + s_k >= (1 - delta) sum s (Kumar et al. 2021). Some peers call this "stable rank".

    Args:
        features: ``[n, d]``.
        delta: Share of the sum that may be missing, in [0, 1).
    """
    if not 0 <= delta < 1:
        raise UserError(f"delta is {delta}: it must be at least 0 and below 1")
    return _srank(_singular_values(features), delta)


def stable_rank(features: Tensor) -> float:
    """||F||_F^2 / ||F||_2^2 = sum s^2 / s_1^2."""
    return _stable_rank(_singular_values(features))


def participation_ratio(features: Tensor) -> float:
    """(tr C)^2 / tr(C^2) for the covariance C of the features: the number of directions in which they vary.

    The one rank here that centres the features, so a constant offset does not count. At most min(n - 1, d).
    """
    return _participation_ratio(_matrix(features))


def top_singular_share(features: Tensor) -> float:
    """s_1 / sum s: near 1 where one direction holds everything, as a large target mean makes it (mechanism 3)."""
    return _top_singular_share(_singular_values(features))


def feature_rank(features: Tensor) -> FeatureRank:
    """Every rank, from one decomposition.

    Args:
        features: ``[n, d]``.
    """
    values = _singular_values(features)
    return FeatureRank(
        effective_rank=_effective_rank(values),
        srank=_srank(values, 0.01),
        stable_rank=_stable_rank(values),
        participation_ratio=_participation_ratio(_matrix(features)),
        top_singular_share=_top_singular_share(values),
    )


def penultimate_features(model: nn.Module, inputs: Tensor) -> Tensor:
    """The features that the last layer sees: the input of the linear layer that is executed last.

    Args:
        model: A network; left as it was.
        inputs: A batch, as the model takes it.

    Returns:
        ``[n, d]``, samples and, where there are any, tokens in the rows; detached, in the model's own precision.

    Raises:
        UserError: If no linear layer is executed.
    """
    last: list[Tensor] = []

    def keep(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        last[:] = arguments[:1]

    hooks = [module.register_forward_pre_hook(keep) for module in model.modules() if isinstance(module, nn.Linear)]
    try:
        with undisturbed(model), torch.no_grad():
            model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    if not last:
        raise UserError(f"{type(model).__name__} executes no linear layer, whose input would be the features")
    # Cloned: a layer after it may have worked in place on what it was given.
    return last[0].reshape(-1, last[0].shape[-1]).detach().clone()


def _matrix(features: Tensor) -> Tensor:
    if features.ndim != 2:
        raise UserError(f"features must be a matrix [samples, features], not {list(features.shape)}")
    features = features.detach().double()
    if not features.isfinite().all():
        raise UserError("features hold NaN or infinities: the network has diverged")
    return features


def _singular_values(features: Tensor) -> Tensor:
    """Descending, scaled so that the largest is 1; empty where all are 0."""
    matrix = _matrix(features)
    if not matrix.numel() or not matrix.any():
        return matrix.new_empty(0)
    # Scaled first: squares of features of 1e-200 would vanish.
    values = torch.linalg.svdvals(matrix / matrix.abs().max())
    values = values / values[0]
    # What rounding leaves of a zero would count as a direction.
    return values[values > max(matrix.shape) * torch.finfo(features.dtype).eps * 0.5]


def _effective_rank(values: Tensor) -> float:
    if not len(values):
        return 0.0
    p = values / values.sum()
    return float((-(p * p.log()).sum()).exp())


def _srank(values: Tensor, delta: float) -> int:
    if not len(values):
        return 0
    sums = values.cumsum(0)
    return int((sums < (1 - delta) * sums[-1]).sum()) + 1


def _stable_rank(values: Tensor) -> float:
    return float(values.square().sum()) if len(values) else 0.0


def _top_singular_share(values: Tensor) -> float:
    return float(1 / values.sum()) if len(values) else 0.0


def _participation_ratio(matrix: Tensor) -> float:
    if not matrix.numel():
        return 0.0
    size = matrix.abs().max()
    centred = matrix - matrix.mean(0)
    # Constant features: what is left is rounding.
    if not size or centred.abs().max() <= 8 * torch.finfo(torch.float64).eps * size:
        return 0.0
    centred = centred / centred.abs().max()
    gram = centred @ centred.T if centred.shape[0] < centred.shape[1] else centred.T @ centred
    return float(gram.trace().square() / gram.square().sum())
