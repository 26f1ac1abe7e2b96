"""Ranks of features: five measures that peers confuse, each under its own name.

For a feature matrix F [n, d], sigma_1 >= sigma_2 >= ... are its singular values and p_i = sigma_i / sum sigma. Every
measure is at most min(n, d), does not change when F is scaled or its features are rotated, and is 0 for an empty or
all-zero matrix. Features that are not a matrix, or hold NaN or infinities, raise :class:`UserError`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from plasticity_cl.diagnostics.last_layer import last_linear
from plasticity_cl.errors import UserError

_TIES = {torch.float64: 1e-12}
_TIE = 1e-6
"""Relative rounding that must not decide whether a partial sum reaches its bound, for what is not float64."""


@dataclass(frozen=True)
class FeatureRank:
    """Every rank of one feature matrix.

    Attributes:
        effective_rank: See :func:`effective_rank`.
        srank: See :func:`srank`.
        stable_rank: See :func:`stable_rank`.
        participation_ratio: See :func:`participation_ratio`.
        top_singular_share: See :func:`top_singular_share`.
        singular_values: sigma, [min(n, d)], descending, float64 on the CPU.
    """

    effective_rank: float
    srank: int
    stable_rank: float
    participation_ratio: float
    top_singular_share: float
    singular_values: Tensor

    def scalars(self) -> dict[str, float]:
        """Return the ranks under flat names."""
        names = ("effective_rank", "srank", "stable_rank", "participation_ratio", "top_singular_share")
        return {name: float(getattr(self, name)) for name in names}


def feature_rank(features: Tensor, delta: float = 0.01) -> FeatureRank:
    """Compute every rank of a feature matrix from one singular value decomposition, in float64.

    The decomposition is of F itself. The Gram matrix would take half the time, but loses all singular values below
    1e-8 sigma_1.

    Args:
        features: F, [n, d].
        delta: Share of the spectrum that ``srank`` may leave out.

    Returns:
        All five measures and the singular values.
    """
    matrix, scale = _scaled(features)
    sigma = torch.linalg.svdvals(matrix)
    return FeatureRank(
        effective_rank=_effective_rank(sigma),
        srank=count_to_share(sigma, delta, features.dtype),
        stable_rank=_stable_rank(sigma),
        participation_ratio=_participation_ratio(matrix),
        top_singular_share=_top_singular_share(sigma),
        singular_values=(sigma * scale).cpu(),
    )


def effective_rank(features: Tensor) -> float:
    """Compute exp(-sum p log p), p = sigma / sum sigma (Roy and Vetterli 2007).

    Args:
        features: F, [n, d].

    Returns:
        1 for a matrix of rank one, min(n, d) for equal singular values.
    """
    return _effective_rank(_singular_values(features))


def srank(features: Tensor, delta: float = 0.01) -> int:
    """Compute the smallest k with sum_{i<=k} sigma_i >= (1 - delta) sum sigma (Kumar et al. 2021, their srank_delta).

    Two peers call this "stable rank"; see :func:`stable_rank` for what goes by that name elsewhere.

    Args:
        features: F, [n, d].
        delta: Share of the spectrum that may be left out, in [0, 1).

    Returns:
        A number of directions.
    """
    return count_to_share(_singular_values(features), delta, features.dtype)


def stable_rank(features: Tensor) -> float:
    """Compute ||F||_F^2 / ||F||_2^2 = sum sigma^2 / sigma_1^2 (Rudelson and Vershynin 2007).

    Args:
        features: F, [n, d].

    Returns:
        At most the rank.
    """
    return _stable_rank(_singular_values(features))


def participation_ratio(features: Tensor) -> float:
    """Compute (tr C)^2 / tr(C^2), C the covariance of the features (as in Gao et al. 2017).

    This measure alone centres the features: it is 0 where they do not depend on the sample, and it does not see a mean
    that the others see. It needs no decomposition.

    Args:
        features: F, [n, d].

    Returns:
        1 if the features vary in one direction only, at most min(n - 1, d).
    """
    return _participation_ratio(_scaled(features)[0])


def top_singular_share(features: Tensor) -> float:
    """Compute sigma_1 / sum sigma: a large mean of the features sits in one direction (mechanism 3).

    Args:
        features: F, [n, d].

    Returns:
        1 for a matrix of rank one, 1 / min(n, d) for equal singular values.
    """
    return _top_singular_share(_singular_values(features))


def penultimate_features(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return what goes into the linear layer that is executed last, in eval mode, leaving the model as it was.

    Args:
        model: A network that calls ``nn.Linear`` (or ``F.linear``) at least once.
        inputs: A batch, as the model takes it.

    Returns:
        Features [n, d], detached. Where the layer is applied to every token, every token is a sample.

    Raises:
        UserError: If no linear layer is executed.
    """
    return last_linear(model, inputs)[0]


def _scaled(features: Tensor) -> tuple[Tensor, float]:
    """Return the features in float64, divided by the largest in size so that no square overflows, and that divisor."""
    if features.ndim != 2:
        raise UserError(
            f"features must be a matrix [samples, features], not {list(features.shape)}; flatten them first"
        )
    matrix = features.detach().double()
    scale = float(matrix.abs().max()) if matrix.numel() else 0.0
    if not scale < float("inf"):
        raise UserError("features hold NaN or infinities: the network has diverged")
    return (matrix / scale, scale) if scale else (matrix, 1.0)


def _singular_values(features: Tensor) -> Tensor:
    sigma: Tensor = torch.linalg.svdvals(_scaled(features)[0])
    return sigma


def _effective_rank(sigma: Tensor) -> float:
    if not sigma.any():
        return 0.0
    p = sigma / sigma.sum()
    return float(torch.special.entr(p).sum().exp())


def count_to_share(values: Tensor, delta: float, precision: torch.dtype) -> int:
    """Count the leading values that a sum needs to reach the share 1 - delta of the whole.

    A partial sum that meets the bound but for rounding has reached it: 99 of 100 equal values are 99% of their sum.

    Args:
        values: ``[n]``, none negative, descending, float64.
        delta: Share that may be left out, in [0, 1).
        precision: Type of the numbers that the values were computed from.

    Returns:
        The smallest such count; 0 if all values are zero.

    Raises:
        UserError: If delta is out of range.
    """
    if not 0 <= delta < 1:
        raise UserError(f"delta is the share of the spectrum that may be left out, from 0 to below 1, not {delta}")
    if not values.any():
        return 0
    reached = values.cumsum(0)
    return int((reached < (1 - delta) * reached[-1] * (1 - _TIES.get(precision, _TIE))).sum()) + 1


def _stable_rank(sigma: Tensor) -> float:
    return float((sigma / sigma[0]).square().sum()) if sigma.any() else 0.0


def _participation_ratio(matrix: Tensor) -> float:
    if not len(matrix):
        return 0.0
    # From the first sample on: features that do not depend on the sample become exactly zero.
    matrix = matrix - matrix[0]
    matrix = matrix - matrix.mean(0)
    scale = matrix.abs().max() if matrix.numel() else matrix.sum()
    if scale == 0:
        return 0.0
    matrix = matrix / scale
    gram = matrix @ matrix.T if len(matrix) < matrix.shape[1] else matrix.T @ matrix
    return float(gram.diagonal().sum().square() / gram.square().sum())


def _top_singular_share(sigma: Tensor) -> float:
    return float(sigma[0] / sigma.sum()) if sigma.any() else 0.0
