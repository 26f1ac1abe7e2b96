"""Units and their preactivations (mechanism 1: preactivation distribution shift).

Preactivations z are the inputs of a nonlinearity phi, activations h = phi(z) its outputs. A unit is a feature of a
dense layer or of a token model, or a channel of a convolution; its samples are all rows, tokens or positions of the
batch.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import accumulate
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from plasticity_cl.diagnostics.activations import visit_nonlinearities
from plasticity_cl.diagnostics.following import Nonlinearity
from plasticity_cl.errors import UserError

_Array: TypeAlias = NDArray[np.float64]

_HINGES = {"relu", "leaky_relu", "prelu", "rrelu"}
"""Linear on either side of zero, so that everything follows from z alone."""

_RELU_FAMILY = _HINGES | {"relu6"}

_LINEAR = 1e-3
"""A smooth unit is linear on the data where 1 - corr(z, phi(z))^2 is below this."""

_BLOCK = 1 << 18
"""Elements reduced at a time, so that what the reductions share stays in a core's cache."""

_TIE = 1e-6
"""Relative rounding that must not decide whether a mean meets its bound."""

_LEAST_RATIO = 2.0**-23
"""Ratios of standard deviations below the spacing of float32 at 1 count as this."""

_CANCELLING = 100.0
"""The difference of moments loses so many roundings at most."""

_MAP = 36
"""Feature maps of fewer positions are reduced as columns: a row so short costs more than copying it."""


@dataclass(frozen=True, kw_only=True)
class UnitSummary:
    """Unit diagnostics of one layer, or of all layers together. NaN stands for "not defined here".

    Shares are over the units of the layer, or over all units of the layers where the quantity is defined.

    Attributes:
        units: Number of units.
        dead_units: Share with max z <= 0. Defined for the ReLU family: (leaky, parametric, randomised) ReLU and ReLU6.
        linearised_units: Share that is linear on the data ("zombie" units, Lyle et al. 2024): min z > 0 for the ReLU
            family but ReLU6, and 1 - corr(z, phi(z))^2 < 1e-3 for the others, with its limit, linear, for constant z.
        dormant_units: Share with E|h_i| / mean_k E|h_k| <= tau, the mean over the same layer (ReDo, Sokar et al. 2023);
            all units of a layer that is all zero.
        rare_units: Share that is non-zero on less than a threshold of the samples (Dohare et al. 2024).
        saturated_units: Share with E|phi'(z)| < eps. Not defined for the ReLU family but ReLU6.
        activation_sparsity: Share of entries of h that are exactly zero, over all entries (some peers' "dead" units).
        sign_entropy: Mean over units of H(p), p = P(z > 0), in bits.
        sign_entropy_ratio: sign_entropy over the reference's; not defined where that is 0.
        mean_shift: Mean over units of |mu - mu0| / sigma0, against the reference. Units that were constant then are
            left out of this and of all below.
        mean_shift_p95: Its 95th percentile over units.
        log_scale_shift: Mean over units of log(sigma / sigma0), signed, the ratio no smaller than 2^-23.
        log_scale_shift_p95: Its 95th percentile over units.
        preactivation_shift: Mean over units of W2 = sqrt((mu - mu0)^2 + (sigma - sigma0)^2) / sigma0.
        preactivation_shift_p95: Its 95th percentile over units.
    """

    units: int
    dead_units: float = math.nan
    linearised_units: float = math.nan
    dormant_units: float = math.nan
    rare_units: float = math.nan
    saturated_units: float = math.nan
    activation_sparsity: float = math.nan
    sign_entropy: float = math.nan
    sign_entropy_ratio: float = math.nan
    mean_shift: float = math.nan
    mean_shift_p95: float = math.nan
    log_scale_shift: float = math.nan
    log_scale_shift_p95: float = math.nan
    preactivation_shift: float = math.nan
    preactivation_shift_p95: float = math.nan


_SHIFTS = ("mean_shift", "log_scale_shift", "preactivation_shift")

_SHARES = tuple(field.name for field in fields(UnitSummary) if field.name != "units")


@dataclass(frozen=True, kw_only=True)
class LayerUnits(UnitSummary):
    """Unit diagnostics of one layer, with the moments of each unit, for histograms.

    Attributes:
        nonlinearity: Name of phi, for instance ``"relu"``.
        samples: Number of samples of each unit: rows, times tokens or positions.
        mean: mu, mean of z, [units], float64 on the CPU, as all below.
        std: sigma, standard deviation of z over the samples (the mean square, not corrected for their number).
        positive: P(z > 0).
        magnitude: E|h|.
    """

    nonlinearity: str
    samples: int
    mean: Tensor
    std: Tensor
    positive: Tensor
    magnitude: Tensor


@dataclass(frozen=True)
class UnitStatistics:
    """Unit diagnostics of a network on a batch.

    Attributes:
        total: All layers together, every unit with the same weight (every entry, in ``activation_sparsity``).
        layers: Each nonlinearity by its place, in order of execution.
    """

    total: UnitSummary
    layers: dict[str, LayerUnits]

    @property
    def moments(self) -> dict[str, Tensor]:
        """What a later call needs as its reference: for each layer mu, sigma and P(z > 0), [3, units], float64."""
        return {name: torch.stack([layer.mean, layer.std, layer.positive]) for name, layer in self.layers.items()}

    def scalars(self) -> dict[str, float]:
        """Return all that is defined under flat names: ``"dead_units"`` in total, ``"dead_units/LAYER"`` for each."""
        summaries = {"": self.total} | {f"/{name}": layer for name, layer in self.layers.items()}
        values = {share + at: getattr(summary, share) for at, summary in summaries.items() for share in _SHARES}
        return {name: value for name, value in values.items() if not math.isnan(value)}


def dead_units(preactivations: Tensor) -> float:
    """Share of units with max over samples of z <= 0, which a ReLU never lets pass.

    Args:
        preactivations: z, [n, units].

    Returns:
        A share in [0, 1].

    Raises:
        UserError: If the matrix is empty, has not two dimensions, or holds NaN or infinities; as all functions here.
    """
    return _share(_checked(preactivations, "preactivations").amax(0) <= 0)


def linearised_units(preactivations: Tensor, activations: Tensor | None = None) -> float:
    """Share of units that are linear on the data ("zombie" units, Lyle et al. 2024, arXiv 2402.18762).

    Args:
        preactivations: z, [n, units].
        activations: None for the ReLU family, where a unit is linear if min over samples of z > 0. For others phi(z),
            [n, units]: a unit is linear if 1 - corr(z, phi(z))^2 < 1e-3, and, as the limit, if its z is constant.

    Returns:
        A share in [0, 1].
    """
    z = _checked(preactivations, "preactivations")
    if activations is None:
        return _share(z.amin(0) > 0)
    h = _checked(activations, "activations")
    if h.shape != z.shape:
        raise UserError(f"activations {list(h.shape)} and preactivations {list(z.shape)} differ in shape")
    constant = (z == z[0]).all(0)
    z, h = _scaled(z - z.mean(0)), _scaled(h - h.mean(0))
    return _share(constant | ((z * h).sum(0).square() > (1 - _LINEAR) * z.square().sum(0) * h.square().sum(0)))


def dormant_units(activations: Tensor, tau: float = 0.025) -> float:
    """Share of units with E|h_i| / mean_k E|h_k| <= tau (ReDo, Sokar et al. 2023, equation 1).

    Args:
        activations: h of one layer, [n, units]. A layer that is all zero counts as all dormant.
        tau: Bound; 0 asks for units that are zero on every sample.

    Returns:
        A share in [0, 1].
    """
    magnitude = _scaled(_checked(activations, "activations")).abs().mean(0)
    return _share(magnitude <= tau * magnitude.mean() * (1 + _TIE))


def rare_units(activations: Tensor, threshold: float = 0.01) -> float:
    """Share of units that are non-zero on less than ``threshold`` of the samples (Dohare et al. 2024, CIFAR code).

    Args:
        activations: h, [n, units].
        threshold: Bound on the share of samples.

    Returns:
        A share in [0, 1].
    """
    return _share((_checked(activations, "activations") != 0).double().mean(0) < threshold)


def saturated_units(derivatives: Tensor, eps: float = 0.01) -> float:
    """Share of units with E|phi'(z)| < eps, for smooth nonlinearities: almost no gradient passes them.

    Args:
        derivatives: phi'(z), [n, units].
        eps: Bound.

    Returns:
        A share in [0, 1].
    """
    return _share(_checked(derivatives, "derivatives").abs().mean(0) < eps * (1 - _TIE))


def activation_sparsity(activations: Tensor) -> float:
    """Share of entries that are exactly zero. Some peers log this as "dead" units, which it is not.

    Args:
        activations: h, [n, units].

    Returns:
        A share in [0, 1].
    """
    return _share(_checked(activations, "activations") == 0)


def sign_entropy(preactivations: Tensor) -> float:
    """Mean over units of H(p) = -p log2 p - (1-p) log2 (1-p), p = P(z > 0) over samples, in bits.

    Args:
        preactivations: z, [n, units].

    Returns:
        0 where no unit's sign depends on the sample, at most 1.
    """
    positive = (_checked(preactivations, "preactivations") > 0).double().mean(0)
    return float(_entropy(positive.cpu().numpy()).mean())


@dataclass(frozen=True)
class PreactivationShift:
    """How far the preactivations of each unit have moved, all [units], NaN for units that were constant before.

    Attributes:
        location: (mu - mu0) / sigma0.
        log_scale: log(sigma / sigma0), the ratio no smaller than 2^-23: a unit that became constant has a value too.
        distance: W2 = sqrt((mu - mu0)^2 + (sigma - sigma0)^2) / sigma0.
    """

    location: Tensor
    log_scale: Tensor
    distance: Tensor


def preactivation_shift(preactivations: Tensor, initial: Tensor) -> PreactivationShift:
    """Compare preactivations with those of the same units at initialisation, on the same samples.

    The distance is the 2-Wasserstein distance of the Gaussians with the same moments, in units of the initial sigma.

    Args:
        preactivations: z, [n, units].
        initial: z at initialisation, [n, units].

    Returns:
        The shift of each unit.
    """
    now, then = _checked(preactivations, "preactivations"), _checked(initial, "initial preactivations")
    if now.shape[1] != then.shape[1]:
        raise UserError(f"there are preactivations of {now.shape[1]} units and initial ones of {then.shape[1]}")
    moments = [each.cpu().numpy() for z in (now, then) for each in (z.mean(0), z.std(0, correction=0))]
    return PreactivationShift(*(torch.from_numpy(part) for part in _shift(*moments)))


def _share(mask: Tensor) -> float:
    return float(mask.double().mean())


def _scaled(values: Tensor) -> Tensor:
    """Divide by the largest in size, so that no sum or square overflows or vanishes."""
    return values / (float(values.abs().max()) or 1.0)


def _checked(values: Tensor, what: str) -> Tensor:
    """Values of units as float64, [n, units]."""
    if values.ndim != 2 or not values.numel():
        raise UserError(f"{what} must be a matrix [samples, units] with at least one of each, not {list(values.shape)}")
    values = values.detach().double()
    if not values.isfinite().all():
        raise UserError(f"{what} hold NaN or infinities: the network has diverged")
    return values


def unit_statistics(
    model: nn.Module,
    inputs: Tensor,
    reference: UnitStatistics | Mapping[str, Tensor] | None = None,
    *,
    tau: float = 0.025,
    threshold: float = 0.01,
    eps: float = 0.01,
) -> UnitStatistics:
    """Compute every diagnostic of units and preactivations, in one forward pass that stores no activations.

    Nonlinearities are found as they are applied, as modules or as functions, also in place. The pass runs in eval mode
    and leaves the model as it was. Counts are exact. Moments are taken block by block, centred where |mu| / sigma is
    large, and joined in float64 by the parallel algorithm of Chan et al. (1979).

    Elementwise functions of preactivations count in whatever way they are written: ``clamp``, ``where``, ``sin``, a
    product, a formula. One warning names what could not be looked into, such as recurrent kernels.

    Args:
        model: Any network in plain PyTorch.
        inputs: A batch, as the model takes it.
        reference: The same network's statistics at its initialisation, on the same batch, or their ``moments``.
        tau: Bound of dormant units.
        threshold: Bound of rare units.
        eps: Bound of saturated units.

    Returns:
        Statistics for each layer and in total; no layers and nothing defined where the model has no nonlinearity.

    Raises:
        UserError: If preactivations are NaN or infinite, the batch is empty, the model is TorchScript, or the reference
            has no layer in common with the network. Layers of another size than in the reference have no shift, and a
            warning names them.
    """
    collector = _Collector()
    visit_nonlinearities(model, inputs, collector.visit)
    with torch.inference_mode(False):
        moments = reference.moments if isinstance(reference, UnitStatistics) else reference
        return _statistics(collector.layers, moments, tau, threshold, eps)


@dataclass(frozen=True)
class _Layer:
    """Sums over the samples of one layer, still on its device.

    Attributes:
        name: Where the nonlinearity is applied.
        nonlinearity: Which one.
        samples: Number of samples of each unit.
        rounding: Relative spacing of the numbers that were summed.
        sums: Mean of z, sum of its squared deviations, number of z > 0 and sum of |h|, [4, units]. For all but ReLU,
            where the rest follows, [7, units] with the number of h != 0, whether the unit is linear, and E|phi'(z)|,
            which is NaN for a hinge.
    """

    name: str
    nonlinearity: str
    samples: int
    rounding: float
    sums: Tensor


class _Collector:
    """Reduces the preactivations of each layer, before its nonlinearity is applied, block by block."""

    def __init__(self) -> None:
        self.layers: list[_Layer] = []
        self._buffer = torch.empty(0)

    def visit(self, call: Nonlinearity) -> None:
        """Add a layer, in place of those that are parts of it."""
        if call.replaces:
            self.layers = [layer for layer in self.layers if layer.name not in call.replaces]
        matrix, dim = _as_matrix(call.preactivations, call.unit_axis)
        reduce = self._reduce_hinge if call.name in _HINGES else self._reduce_smooth
        rows = max(1, _BLOCK // matrix.shape[1])
        if dim == 0 and len(matrix) <= rows:
            sums, samples = reduce(matrix, dim, call), len(matrix)
        else:
            parts = [reduce(matrix[start : start + rows], dim, call) for start in range(0, len(matrix), rows)]
            if dim == 0:
                blocks = torch.stack(parts, dim=1)
                counts = [min(rows, len(matrix) - start) for start in range(0, len(matrix), rows)]
            else:
                blocks = torch.cat(parts, dim=1).reshape(len(parts[0]), -1, call.preactivations.shape[call.unit_axis])
                counts = [matrix.shape[1]] * blocks.shape[1]
            sums, samples = _joined(blocks, counts), sum(counts)
        if call.name in _HINGES and call.name != "relu":
            sums = _with_slope(sums, samples, _negative_slope(call))
        elif call.name != "relu":
            sums = _with_linearity(sums, samples)
        self.layers.append(_Layer(call.layer, call.name, samples, torch.finfo(self._buffer.dtype).eps, sums))

    def _reduce_hinge(self, block: Tensor, dim: int, call: Nonlinearity) -> Tensor:
        """Return mean of z, sum of its squared deviations, number of z > 0, sum of max(z, 0).

        For all but ReLU also the number of z > 0 less the number of z < 0.
        """
        block = _widened(block)
        buffer = self._like(block)
        mean = block.mean(dim)
        squares = self._squares(block, mean, dim)
        positive_part = torch.clamp_min(block, 0, out=buffer).sum(dim)
        positives = buffer.sign_().sum(dim)
        parts = [mean, squares, positives, positive_part]
        if call.name != "relu":
            parts.append(torch.sign(block, out=buffer).sum(dim))
        return torch.stack(parts)

    def _reduce_smooth(self, block: Tensor, dim: int, call: Nonlinearity) -> Tensor:
        """Return the first three of a hinge, then sum of |h|, number of h != 0, sum of |phi'(z)|, and of h its mean.

        Last come the sum of squared deviations of h and that of the products of deviations of z and h.
        """
        block = _widened(block)
        buffer = self._like(block)
        with torch.enable_grad():
            z = block.detach().requires_grad_()
            h = call.apply(z.clone()).to(z.dtype)
            # A step has no derivative, which is to say that it is zero.
            (derivative,) = torch.autograd.grad(h, z, buffer.fill_(1)) if h.requires_grad else (torch.zeros_like(z),)
        h = h.detach()
        positives = torch.clamp_min(block, 0, out=buffer).sign_().sum(dim)
        magnitude = torch.abs(h, out=buffer).sum(dim)
        nonzeros = buffer.sign_().sum(dim)
        derivatives = derivative.abs_().sum(dim)
        mean, mean_h = block.mean(dim), h.mean(dim)
        # The h of a saturated unit may be too small to square in float32.
        scale = torch.where(magnitude > 0, magnitude / block.shape[dim], 1.0)
        z_deviation = torch.sub(block, mean.unsqueeze(dim), out=buffer)
        h_deviation = h.sub_(mean_h.unsqueeze(dim)).div_(scale.unsqueeze(dim))
        products = torch.mul(z_deviation, h_deviation, out=derivative).sum(dim) * scale.double()
        squares, squares_h = z_deviation.square_().sum(dim), h_deviation.square_().sum(dim) * scale.double().square()
        return torch.stack([mean, squares, positives, magnitude, nonzeros, derivatives, mean_h, squares_h, products])

    def _squares(self, block: Tensor, mean: Tensor, dim: int) -> Tensor:
        """Return the sum of squared deviations, of feature maps by the difference of moments where nothing cancels."""
        if dim == 1:
            of_mean = mean.square() * block.shape[1]
            squares: Tensor = torch.linalg.vector_norm(block, dim=1).square_() - of_mean
            if (squares * _CANCELLING > of_mean).all():
                return squares
        return torch.sub(block, mean.unsqueeze(dim), out=self._like(block)).square_().sum(dim)

    def _like(self, block: Tensor) -> Tensor:
        """Return memory for intermediate values, the same for every block."""
        size = block.numel()
        if self._buffer.numel() < size or self._buffer.dtype != block.dtype or self._buffer.device != block.device:
            self._buffer = torch.empty(max(size, _BLOCK), dtype=block.dtype, device=block.device)
        return self._buffer[:size].view(block.shape)


def _joined(blocks: Tensor, counts: list[int]) -> Tensor:
    """Join the sums of blocks, [quantities, blocks, units], by the parallel algorithm of Chan et al. (1979)."""
    blocks = blocks.double()
    weights = blocks.new_tensor(counts)[:, None]
    sums = blocks.sum(1)

    def deviations(row: int) -> Tensor:
        """Replace the means of blocks by the mean of all; return how far the blocks are off, [blocks, units]."""
        sums[row] = (weights * blocks[row]).sum(0) / weights.sum()
        return blocks[row] - sums[row]

    z = deviations(0)
    sums[1] += (weights * z.square()).sum(0)
    if len(sums) == 9:
        h = deviations(6)
        sums[7] += (weights * h.square()).sum(0)
        sums[8] += (weights * z * h).sum(0)
    return sums


def _with_slope(sums: Tensor, samples: int, slope: Tensor) -> Tensor:
    """Finish a hinge whose negative side has a slope: what is negative is known from the sum of z."""
    mean, squares, positives, positive_part, signs = sums.double()
    magnitude = positive_part + slope.abs() * (positive_part - samples * mean).clamp_min(0)
    nonzeros = positives + (slope != 0) * (positives - signs)
    undefined = torch.full_like(mean, math.nan)
    return torch.stack([mean, squares, positives, magnitude, nonzeros, positives == samples, undefined])


def _with_linearity(sums: Tensor, samples: int) -> Tensor:
    """Finish a smooth nonlinearity."""
    *first, derivatives, _, squares_h, products = sums.double()
    # 1 - corr^2 < 1e-3 without a division, so that a saturated unit, whose h is constant, is not linear.
    linear = products.square() > (1 - _LINEAR) * first[1] * squares_h
    return torch.stack([*first, linear, derivatives / samples])


def _as_matrix(z: Tensor, unit_axis: int) -> tuple[Tensor, int]:
    """Arrange z as a matrix, without copying it where its memory allows.

    Returns:
        The matrix and the dimension of it that counts samples. That is the first, [samples, units], where units are
        next to each other in memory or feature maps are small; else the last, where each row is a map, by channel.
    """
    if z.ndim == 2:
        return (z if unit_axis == 1 else z.T), 0
    if z.ndim < 2:
        return z.reshape(-1, 1), 0
    positions = math.prod(z.shape[unit_axis + 1 :])
    if positions < _MAP or z.stride(unit_axis) == 1:
        return z.movedim(unit_axis, -1).reshape(-1, z.shape[unit_axis]), 0
    return z.reshape(-1, positions), 1


def _widened(block: Tensor) -> Tensor:
    return block.float() if block.dtype in (torch.float16, torch.bfloat16) else block


def _negative_slope(call: Nonlinearity) -> Tensor:
    """Slope below zero, one or [units]."""
    if call.name == "prelu":
        positional, named = call.arguments
        weight: Tensor = positional[0] if positional else named["weight"]
        return weight.detach()
    slope: Tensor = -call.apply(call.preactivations.new_full((1,), -1.0))
    return slope


def _entropy(p: _Array) -> _Array:
    """Entropy of a coin with probability p, in bits."""
    q, tiny = 1 - p, np.finfo(np.float64).tiny
    entropy: _Array = -(p * np.log2(np.maximum(p, tiny)) + q * np.log2(np.maximum(q, tiny)))
    return entropy


def _statistics(
    layers: list[_Layer], reference: Mapping[str, Tensor] | None, tau: float, threshold: float, eps: float
) -> UnitStatistics:
    """Turn sums into statistics, all layers in one array: they are so small that the calls are what costs."""
    if not layers:
        return UnitStatistics(UnitSummary(units=0), {})
    sizes = [layer.sums.shape[1] for layer in layers]
    parts = [slice(end - size, end) for size, end in zip(sizes, accumulate(sizes), strict=True)]
    starts = np.array([part.start for part in parts])
    samples = np.repeat([float(layer.samples) for layer in layers], sizes)
    rounding = np.repeat([layer.rounding for layer in layers], sizes)
    mean, squares, positives, magnitude = torch.cat([layer.sums[:4] for layer in layers], dim=1).cpu().double().numpy()
    for layer, total in zip(layers, np.add.reduceat(squares + magnitude, starts).tolist(), strict=True):
        if not math.isfinite(total):
            raise UserError(
                f"preactivations of layer {layer.name!r} are NaN, infinite or too large to square: the network diverged"
            )
    # The mean of equal values is off by a few roundings, which must not pass for a spread.
    squares[squares <= samples * (16 * rounding * mean) ** 2] = 0.0
    std = np.sqrt(squares / samples)
    positive = positives / samples
    magnitude /= samples
    mean_magnitude = np.repeat(np.add.reduceat(magnitude, starts) / sizes, sizes)
    dead = (positives == 0).astype(np.float64)
    linear, nonzero, saturated = positives == samples, positive.copy(), np.full_like(mean, math.nan)
    for layer, part in zip(layers, parts, strict=True):
        if layer.nonlinearity != "relu":
            nonzeros, linear[part], derivative = layer.sums[4:].cpu().double().numpy()
            nonzero[part] = nonzeros / layer.samples
        if layer.nonlinearity not in _HINGES:
            linear[part] |= squares[part] == 0
            saturated[part] = derivative < eps * (1 - _TIE)
        if layer.nonlinearity not in _RELU_FAMILY:
            dead[part] = math.nan
    columns = {
        "dead_units": dead,
        "linearised_units": linear,
        "dormant_units": magnitude <= tau * mean_magnitude * (1 + _TIE),
        "rare_units": nonzero < threshold,
        "saturated_units": saturated,
        "activation_sparsity": 1 - nonzero,
        "sign_entropy": _entropy(positive),
    }
    if reference is not None:
        mean0, std0, positive0 = _reference_moments(reference, {a.name: n for a, n in zip(layers, sizes, strict=True)})
        location, log_scale, distance = _shift(mean, std, mean0, std0)
        columns |= dict(zip(_SHIFTS, (np.abs(location), log_scale, distance), strict=True))
        columns["initial_entropy"] = _entropy(positive0)
        columns["entropy_now"] = np.where(np.isnan(positive0), math.nan, columns["sign_entropy"])
    table = np.array([*columns.values()], dtype=np.float64)
    entries = np.ones((len(columns), len(layers)))
    entries[list(columns).index("activation_sparsity")] = [layer.samples for layer in layers]
    summaries = [dict(zip(columns, row, strict=True)) for row in _means(table, entries, starts)]
    if reference is not None:
        first = list(columns).index(_SHIFTS[0])
        shifts = table[first : first + len(_SHIFTS)]
        for summary, part in zip(summaries, [*parts, slice(None)], strict=True):
            entropy0, entropy = summary.pop("initial_entropy"), summary.pop("entropy_now")
            summary["sign_entropy_ratio"] = entropy / entropy0 if entropy0 else math.nan
            for name, percentile in zip(_SHIFTS, _percentiles(shifts[:, part]), strict=True):
                summary[f"{name}_p95"] = percentile
    moments = torch.from_numpy(np.array([mean, std, positive, magnitude]))
    named = {}
    for layer, summary, part in zip(layers, summaries[:-1], parts, strict=True):
        named[layer.name] = LayerUnits(
            units=part.stop - part.start,
            **summary,
            nonlinearity=layer.nonlinearity,
            samples=layer.samples,
            mean=moments[0, part],
            std=moments[1, part],
            positive=moments[2, part],
            magnitude=moments[3, part],
        )
    return UnitStatistics(UnitSummary(units=len(mean), **summaries[-1]), named)


def _reference_moments(reference: Mapping[str, Tensor], sizes: dict[str, int]) -> _Array:
    """Join the reference's layers in the order of the network's: mean, standard deviation and P(z > 0), [3, units].

    Layers that it has not, or with another number of units, have NaN there, and so nothing to be compared with: of a
    layer that grew nobody knows which units are the old ones.
    """
    known = {name for name, units in sizes.items() if name in reference and reference[name].shape == (3, units)}
    if sizes and not sizes.keys() & reference.keys():
        raise UserError(
            "the reference has other layers or units than the network; take it from the same network at initialisation"
        )
    if any(not reference[name].isfinite().all() for name in known):
        raise UserError("the moments of the reference hold NaN or infinities; take them from a network that is finite")
    left_out = [name for name in sizes if name not in known]
    if left_out:
        warnings.warn(
            f"no shift for layers of another size than in the reference, or not in it: {', '.join(left_out)}",
            stacklevel=4,
        )
    return np.concatenate(
        [reference[name].numpy() if name in known else np.full((3, units), math.nan) for name, units in sizes.items()],
        axis=1,
    )


def _shift(mean: _Array, std: _Array, mean0: _Array, std0: _Array) -> tuple[_Array, _Array, _Array]:
    """Return location, log scale and distance of each unit, see ``PreactivationShift``."""
    scale = np.where(std0 > 0, std0, math.nan)
    location = (mean - mean0) / scale
    return location, np.log(np.maximum(std / scale, _LEAST_RATIO)), np.hypot(location, (std - std0) / scale)


def _means(table: _Array, entries: _Array, starts: NDArray[np.int64]) -> list[list[float]]:
    """Average quantities [quantities, units] over the units of each layer, then over all units, leaving out NaN.

    Args:
        table: The quantities of each unit, [quantities, units].
        entries: Weight of a unit of each layer in the average over all, [quantities, layers].
        starts: First unit of each layer.

    Returns:
        One row a layer and one for all, each a list over quantities; NaN where no unit has the quantity.
    """
    defined = ~np.isnan(table)
    counts = np.add.reduceat(defined, starts, axis=1, dtype=np.float64)
    sums = np.add.reduceat(np.where(defined, table, 0.0), starts, axis=1)
    with np.errstate(invalid="ignore"):
        means = np.column_stack([sums / counts, (entries * sums).sum(1) / (entries * counts).sum(1)])
    rows: list[list[float]] = means.T.tolist()
    return rows


def _percentiles(values: _Array, share: float = 0.95) -> list[float]:
    """Interpolate linearly between order statistics of each row, [rows, units], whose NaN are in the same columns.

    This is NumPy's default at a tenth of its time for few values.
    """
    count = len(values[0]) - int(np.isnan(values[0]).sum())
    if not count:
        return [math.nan] * len(values)
    position = share * (count - 1)
    below = int(position)
    above = min(below + 1, count - 1)
    ordered = np.partition(values, (below, above), axis=1)
    percentiles: list[float] = (
        ordered[:, below] + (position - below) * (ordered[:, above] - ordered[:, below])
    ).tolist()
    return percentiles
