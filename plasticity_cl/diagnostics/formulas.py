"""Names of elementwise functions, told by their values."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_GRID = torch.linspace(-8, 8, 65, dtype=torch.float64)
"""Zero and the ends are among these."""
_FAR = torch.tensor([-1e4, -1.0, 1.0, 1e4], dtype=torch.float64)

_KNOWN: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "silu": F.silu,
    "quick_gelu": lambda z: z * torch.sigmoid(1.702 * z),
    "mish": F.mish,
    "softplus": F.softplus,
    "elu": F.elu,
    "selu": F.selu,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "softsign": F.softsign,
    "logsigmoid": F.logsigmoid,
    "tanhshrink": F.tanhshrink,
    "sin": torch.sin,
    "cos": torch.cos,
}


def name_of(function: Callable[[Tensor], Any], device: torch.device) -> str | None:
    """Name a function that is written in another way, such as ``z * (z > 0)`` or ``0.5 * z * (1 + erf(z / 2**0.5))``.

    Args:
        function: Elementwise.
        device: Where its constants are.

    Returns:
        The name of a usual nonlinearity; ``"linear"`` for a function that is none; None for any other.
    """
    values = _values(function, _GRID, device)
    left, minus, plus, right = _values(function, _FAR, device).tolist()
    if _alike(values, plus * _GRID):
        return "linear"
    if (
        right == 1e4
        and plus == 1.0
        and -1 < minus < 1
        and _alike(values, torch.where(_GRID > 0, _GRID, -minus * _GRID))
    ):
        return "relu" if minus == 0 else "leaky_relu"
    if left == 0 and 0 < right < 1e4 and _alike(values, _GRID.clamp(0, right)):
        return "relu6"
    if left == -1 and right == 1 and _alike(values, _GRID.clamp(-1, 1)):
        return "hardtanh"
    if math.isfinite(right) and any(_alike(values, F.gelu(_GRID, approximate=how)) for how in ("none", "tanh")):
        return "gelu"
    return next((name for name, known in _KNOWN.items() if _alike(values, known(_GRID))), None)


def _values(function: Callable[[Tensor], Any], at: Tensor, device: torch.device) -> Tensor:
    values: Tensor = function(at.to(device, copy=True))
    return values.cpu().double().expand(at.shape)


def _alike(values: Tensor, expected: Tensor) -> bool:
    return torch.allclose(values, expected, rtol=1e-5, atol=1e-6)
