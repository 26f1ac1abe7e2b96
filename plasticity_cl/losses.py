"""Regression losses whose gradient does not grow with the targets: cross-entropy over a discretised target range.

The squared error's gradient is as large as the error, so targets far from zero drive a network's features into one
direction (Lyle et al. 2024, "Disentangling the Causes of Plasticity Loss", mechanism 3). Here a target becomes a
distribution over ``n_bins`` fixed values, the network returns ``n_bins`` logits, and the gradient of a sample's
cross-entropy in its logits, ``softmax(logits) - encode(target)``, has a norm of at most sqrt(2) whatever the target.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plasticity_cl.errors import UserError, unknown_name

SCALES = ("linear", "symlog")
"""How bins are spaced: evenly in the target, or evenly in its :func:`symlog`."""


def symlog(x: Tensor) -> Tensor:
    """Compress symmetrically: ``sign(x) log(1 + |x|)`` (Hafner et al. 2023, DreamerV3).

    Args:
        x: Any shape, floating point.

    Returns:
        The same shape. The derivative is 1 / (1 + |x|), at zero too.
    """
    zero = x.new_zeros(())
    # At a tie maximum hands on half of the gradient, so that the derivative at zero is 1; sign and abs would make it 0.
    return torch.log1p(torch.maximum(x, zero)) - torch.log1p(torch.maximum(-x, zero))


def symexp(x: Tensor) -> Tensor:
    """Invert :func:`symlog`: ``sign(x) (exp(|x|) - 1)`` (Hafner et al. 2023, DreamerV3).

    Args:
        x: Any shape, floating point.

    Returns:
        The same shape. The derivative is exp(|x|), at zero too.
    """
    zero = x.new_zeros(())
    return torch.expm1(torch.maximum(x, zero)) - torch.expm1(torch.maximum(-x, zero))


class HistogramLoss(nn.Module, ABC):
    """Cross-entropy between a target's distribution over fixed bins and the softmax of the network's outputs.

    What the two losses of this file share. The bins' centres are evenly spaced in the transformed target ``t(y)``, with
    ``t`` the identity (``scale="linear"``) or :func:`symlog` (``scale="symlog"``). A target outside ``[low, high]``
    counts as the nearer end of the range. The bins are buffers: ``criterion.to(device)`` moves them. They stay in
    single precision where all else is moved to half of it, and targets are encoded and outputs decoded in single at
    least.

    Args:
        low: Smallest target that is told apart from smaller ones, in the targets' own units, for either scale.
        high: Largest target that is told apart from larger ones, in the targets' own units.
        n_bins: Outputs per target.
        scale: ``"linear"`` or ``"symlog"``.
        margin: Bins' widths between the first (last) centre and ``low`` (``high``).

    Raises:
        UserError: For an unknown scale, for a range that is empty or not finite, or for too few bins.
    """

    n_bins: int
    """Outputs per target: the width that the network's last layer must have."""
    _index: Tensor

    def __init__(self, low: float, high: float, n_bins: int, scale: str, margin: float) -> None:
        super().__init__()
        if scale not in SCALES:
            raise unknown_name("scale", scale, SCALES)
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise UserError(f"the target range must be finite with low < high, got low={low}, high={high}")
        if n_bins - 1 <= max(2 * margin, 0):
            raise UserError(f"n_bins must be more than {max(2 * margin, 0) + 1:g} here, got {n_bins}")
        self.low, self.high, self.n_bins, self.scale = low, high, n_bins, scale
        first, last = self._transform(torch.tensor([low, high], dtype=torch.float64)).tolist()
        self._width: float = (last - first) / (n_bins - 1 - 2 * margin)
        self._origin: float = first - margin * self._width
        self._ends = (margin, n_bins - 1 - margin)
        self._lay_bins(torch.get_default_dtype(), torch.get_default_device())

    def _lay_bins(self, dtype: torch.dtype, device: torch.device) -> None:
        """Number the bins, in single precision at least: bfloat16 cannot tell bins apart beyond the 256th."""
        wide = torch.promote_types(dtype, torch.float32)
        self.register_buffer("_index", torch.arange(self.n_bins, dtype=wide, device=device), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move as every module does (``to``, ``half``, ``cuda``), but number the bins anew."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._lay_bins(self._index.dtype, self._index.device)
        return self

    @property
    def centres(self) -> Tensor:
        """Transformed target in the middle of each bin, ``[n_bins]``, ascending."""
        return self._origin + self._width * self._index

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean over the batch of ``-sum_k encode(target)_k log softmax(output)_k``.

        Args:
            output: Logits, ``[B, n_bins]``.
            target: ``[B]`` or ``[B, 1]``, in the targets' own units.

        Returns:
            A scalar, in nats.

        Raises:
            UserError: For shapes that do not fit, or a target that is NaN or infinite.
        """
        if not _is_column(target) or output.shape != (target.shape[0], self.n_bins):
            raise UserError(
                f"output must be [B, {self.n_bins}] and target [B] or [B, 1], "
                f"got output {list(output.shape)} and target {list(target.shape)}"
            )
        probabilities = self.encode(target)
        dtype = torch.promote_types(output.dtype, probabilities.dtype)
        return F.cross_entropy(output.to(dtype), probabilities.to(dtype))

    def encode(self, target: Tensor) -> Tensor:
        """Give each target its distribution over the bins.

        Args:
            target: ``[B]`` or ``[B, 1]``, in the targets' own units; outside ``[low, high]`` it is clipped.

        Returns:
            Probabilities, ``[B, n_bins]``: none negative, rows sum to one.

        Raises:
            UserError: For another shape, or a target that is NaN or infinite.
        """
        if not _is_column(target):
            raise UserError(f"target must be [B] or [B, 1], got {list(target.shape)}")
        if not bool(torch.isfinite(target).all()):
            raise UserError("target holds NaN or infinite values; a loss needs finite ones")
        values = target.reshape(-1, 1).to(torch.promote_types(target.dtype, self._index.dtype))
        # Clipped as positions: rounding could carry a clipped target past the last centre.
        position = (self._transform(values) - self._origin) / self._width
        return self._distribution(position.clamp(*self._ends))

    def decode(self, output: Tensor) -> Tensor:
        """Read the predicted targets off the network's outputs: :meth:`expectation` of their softmax.

        Args:
            output: Logits, ``[B, n_bins]``.

        Returns:
            Predictions, ``[B]``, in the targets' own units.

        Raises:
            UserError: For another shape.
        """
        if output.dim() != 2 or output.shape[1] != self.n_bins:
            raise UserError(f"output must be [B, {self.n_bins}], got {list(output.shape)}")
        dtype = torch.promote_types(output.dtype, self._index.dtype)
        return self.expectation(F.softmax(output, dim=1, dtype=dtype))

    def expectation(self, probabilities: Tensor) -> Tensor:
        """Give each distribution its target: ``t^-1(sum_k p_k centre_k)``, with ``t`` the scale's transformation.

        On the symlog scale this is symexp of the expectation, not the expectation of symexp: only so is it the inverse
        of the two-hot :meth:`encode`. By Jensen's inequality a wide distribution over positive values is read as less
        than its mean.

        Args:
            probabilities: ``[B, n_bins]``, rows sum to one.

        Returns:
            Targets, ``[B]``, in their own units.
        """
        # Not a matrix product, which autocast and TF32 would round to a thousandth of the range.
        mean = self._origin + self._width * (probabilities * self._index).sum(dim=1)
        return symexp(mean) if self.scale == "symlog" else mean

    def extra_repr(self) -> str:
        """Name the range and the bins."""
        return f"low={self.low:g}, high={self.high:g}, n_bins={self.n_bins}, scale={self.scale!r}"

    def _transform(self, target: Tensor) -> Tensor:
        return symlog(target) if self.scale == "symlog" else target

    @abstractmethod
    def _distribution(self, position: Tensor) -> Tensor:
        """Turn positions in units of bins, ``[B, 1]``, where centre k lies at k, into probabilities ``[B, n_bins]``."""


def _is_column(target: Tensor) -> bool:
    return target.dim() == 1 or (target.dim() == 2 and target.shape[1] == 1)


class TwoHotLoss(HistogramLoss):
    """Cross-entropy against the two bins next to the target, weighted so that their mean is the target.

    Bins' centres run from ``low`` to ``high``, ends included. A target between centres c_k and c_k+1 puts
    (c_k+1 - t) / (c_k+1 - c_k) on bin k and the rest on bin k+1, so ``expectation(encode(y)) == y`` within the range up
    to rounding (the projection of Bellemare et al. 2017, C51, eq. 7, of a single value; Hafner et al. 2023, DreamerV3).
    Logits that give back y are the logarithms of these probabilities: ``decode(encode(y).log()) == y``.

    Args:
        low: First centre, in the targets' own units, for either scale. Smaller targets are clipped to it.
        high: Last centre, in the targets' own units. Larger targets are clipped to it.
        n_bins: Outputs per target, at least 2.
        scale: ``"linear"``: centres evenly spaced in the target, the better choice where the target's range is known.
            ``"symlog"``: evenly spaced in its :func:`symlog`, for unknown ranges, for instance ``low=-1e3, high=1e3``;
            a bin at y is 1 + abs(y) times as wide as one at zero.

    Raises:
        UserError: For an unknown scale, for a range that is empty or not finite, or for too few bins.
    """

    def __init__(self, low: float, high: float, n_bins: int = 101, scale: str = "linear") -> None:
        super().__init__(low, high, n_bins, scale, margin=0.0)

    def _distribution(self, position: Tensor) -> Tensor:
        return F.relu(1 - (position - self._index).abs())


class HLGaussLoss(HistogramLoss):
    """Cross-entropy against a Gaussian around the target, integrated over each bin.

    With edges e_0 .. e_n around the bins' centres and Phi the normal distribution function, ``p_k`` is proportional to
    Phi((e_k+1 - t) / sigma) - Phi((e_k - t) / sigma), normalised over the bins (Imani and White 2018, "Improving
    Regression Performance with Distributional Losses"; Farebrother et al. 2024, "Stop Regressing", HL-Gauss).

    Those papers let the edges run from ``low`` to ``high``, where a target at an end loses half of its Gaussian and is
    decoded about 0.8 sigma inside the range. Here the edges start three sigma outside, so that over all of ``[low,
    high]`` the transformed target is decoded with an error of at most exp(-2 pi^2 r^2) / pi + 0.005 r bins' widths for
    a sigma_ratio r of 0.5 or more: 0.38% of a width at 0.75. Below 0.5 the error grows, to at most half a width.

    Args:
        low: Lower end of the targets' range, in their own units, for either scale. Smaller targets are clipped to it.
        high: Upper end of the targets' range, in their own units. Larger targets are clipped to it.
        n_bins: Outputs per target, more than 6 sigma_ratio.
        sigma_ratio: Standard deviation of the Gaussian in bins' widths. 0.75, as in Farebrother et al. (2024), spreads
            a target over about six bins.
        scale: ``"linear"`` or ``"symlog"``, as for :class:`TwoHotLoss`. The Gaussian is one of the transformed target.

    Raises:
        UserError: For an unknown scale, for a range that is empty or not finite, for too few bins, or for a sigma_ratio
            that is not positive.
    """

    def __init__(
        self, low: float, high: float, n_bins: int = 101, sigma_ratio: float = 0.75, scale: str = "linear"
    ) -> None:
        if not (math.isfinite(sigma_ratio) and sigma_ratio > 0):
            raise UserError(f"sigma_ratio must be positive and finite, got {sigma_ratio}")
        # The outermost edges are half a bin beyond the outermost centres.
        super().__init__(low, high, n_bins, scale, margin=3 * sigma_ratio - 0.5)
        self.sigma_ratio = sigma_ratio

    def extra_repr(self) -> str:
        """Name the range, the bins and the width of the Gaussian."""
        return f"{super().extra_repr()}, sigma_ratio={self.sigma_ratio:g}"

    def _distribution(self, position: Tensor) -> Tensor:
        edges = torch.cat([self._index, self._index[-1:] + 1]) - 0.5
        below = torch.erf((edges - position) / (self.sigma_ratio * math.sqrt(2)))
        return (below[:, 1:] - below[:, :-1]) / (below[:, -1:] - below[:, :1])


LOSSES: dict[str, type[TwoHotLoss] | type[HLGaussLoss]] = {"two-hot": TwoHotLoss, "hl-gauss": HLGaussLoss}
"""Losses by the names that plugins and the catalogue use."""


def make_loss(name: str, low: float, high: float, n_bins: int = 101, scale: str = "linear") -> TwoHotLoss | HLGaussLoss:
    """Make a loss by its name.

    Args:
        name: ``"two-hot"`` or ``"hl-gauss"``.
        low: Lower end of the targets' range, in their own units.
        high: Upper end of the targets' range, in their own units.
        n_bins: Outputs per target.
        scale: ``"linear"`` or ``"symlog"``.

    Returns:
        The loss, callable as ``criterion(output, target)``.

    Raises:
        UserError: For an unknown name, or arguments that the loss does not take.
    """
    if name not in LOSSES:
        raise unknown_name("loss", name, LOSSES)
    return LOSSES[name](low, high, n_bins=n_bins, scale=scale)
