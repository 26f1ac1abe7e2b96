"""Regression targets, and where a network keeps their mean (mechanism 3: large regression target means)."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from plasticity_cl.diagnostics.last_layer import last_linear
from plasticity_cl.errors import UserError


@dataclass(frozen=True)
class TargetStatistics:
    """Location and scale of regression targets.

    Attributes:
        target_mean: Mean over samples and outputs.
        target_std: Standard deviation over samples, as a root mean square over outputs; not corrected for the number of
            samples.
        offset_to_scale: |mean| / std; with several outputs the root mean square of their means over target_std. 0 where
            the mean is 0, infinity where the targets are constant and not 0.
    """

    target_mean: float
    target_std: float
    offset_to_scale: float

    def scalars(self) -> dict[str, float]:
        """Return the values under flat names."""
        return asdict(self)


def target_statistics(targets: Tensor) -> TargetStatistics:
    """Measure how far the targets of an experience are from zero, against how much they vary.

    Args:
        targets: Regression targets, [n] or [n, outputs].

    Returns:
        Mean, standard deviation, and their ratio.

    Raises:
        UserError: If there are no targets, or they hold NaN or infinities.
    """
    if not targets.numel() or not targets.ndim:
        raise UserError(
            f"targets must be [samples] or [samples, outputs] with at least one of each, not {list(targets.shape)}"
        )
    values = targets.detach().double().reshape(len(targets), -1)
    if not values.isfinite().all():
        raise UserError("targets hold NaN or infinities")
    # Divided by a power of two near the largest, so that no square overflows or vanishes.
    scale = 2.0 ** (math.frexp(float(values.abs().max()))[1] - 1)
    values = values / scale
    # From the first sample on: equal targets have a standard deviation of exactly zero.
    from_first = values - values[0]
    mean = values[0] + from_first.mean(0)
    std = float((from_first - from_first.mean(0)).square().mean().sqrt())
    offset = float(mean.square().mean().sqrt())
    ratio = offset / std if std else (math.inf if offset else 0.0)
    return TargetStatistics(target_mean=float(mean.mean()) * scale, target_std=std * scale, offset_to_scale=ratio)


def output_bias_share(model: nn.Module, inputs: Tensor) -> float:
    """Compute how much of the mean output is carried by the output bias rather than by features.

    With y = W f + b the linear layer executed last, the mean output is W E[f] + b, and the share is
    ||b|| / (||b|| + ||W E[f]||). The definition is ours: it stays in [0, 1] when the two cancel, and for one output it
    is the part of the mean that is b when they agree in sign. Networks could carry a large offset in b, but leave it
    to their features (Lyle et al. 2024).

    Args:
        model: A network that calls ``nn.Linear`` (or ``F.linear``) at least once.
        inputs: A batch, as the model takes it.

    Returns:
        0 without a bias or with a zero one (and where both parts are zero), 1 if features carry nothing of the mean.

    Raises:
        UserError: If no linear layer is executed, or the output is not finite.
    """
    features, weight, bias = last_linear(model, inputs)
    by_bias = 0.0 if bias is None else float(torch.linalg.vector_norm(bias.double()))
    by_features = float(torch.linalg.vector_norm(weight.double() @ features.double().mean(0)))
    if not math.isfinite(by_bias + by_features):
        raise UserError("the output of the last linear layer is NaN or infinite: the network has diverged")
    return by_bias / (by_bias + by_features) if by_bias else 0.0


def output_top_direction_share(model: nn.Module, inputs: Tensor) -> float:
    """Compute how much of the mean output is carried by the features' top singular direction.

    With F the features (not centred), v its first right singular vector, and y = W f + b, the mean output has the parts
    W v v' E[f], W (E[f] - v v' E[f]) and b; the share is the norm of the first over the sum of the three norms. The
    definition is ours, beside :func:`output_bias_share`: near 1, a large target mean sits in one direction of the
    features, which then is all that a kernel sees of them (Lyle et al. 2024).

    Args:
        model: A network that calls ``nn.Linear`` (or ``F.linear``) at least once.
        inputs: A batch, as the model takes it.

    Returns:
        A share in [0, 1]; 0 where the output is zero.

    Raises:
        UserError: If no linear layer is executed, or the output is not finite.
    """
    features, weight, bias = last_linear(model, inputs)
    features, weight = features.double(), weight.double()
    mean = features.mean(0)
    if not math.isfinite(float((weight @ mean).sum() + (0.0 if bias is None else bias.double().sum()))):
        raise UserError("the output of the last linear layer is NaN or infinite: the network has diverged")
    top = torch.linalg.svd(features, full_matrices=False).Vh[0]
    in_top = (top @ mean) * top
    parts = [weight @ in_top, weight @ (mean - in_top), *([] if bias is None else [bias.double()])]
    by_top, *others = (float(torch.linalg.vector_norm(part)) for part in parts)
    return by_top / (by_top + sum(others)) if by_top else 0.0
