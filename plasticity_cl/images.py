"""Images as they are stored, and as a network takes them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from plasticity_cl.errors import UserError


def to_float(inputs: Tensor, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor) -> Tensor:
    """Standardise a batch of published images: ``(x / 255 - mean) / std`` per channel.

    Args:
        inputs: ``[..., C, H, W]``, uint8; or floating point, which passes through as it is.
        mean: One number a channel, in units of ``[0, 1]``.
        std: One number a channel, in the same units.

    Returns:
        The same shape; float32 where ``inputs`` was uint8.

    Raises:
        UserError: For another dtype, or constants that do not fit the channels.
    """
    if inputs.is_floating_point():
        return inputs
    if inputs.dtype != torch.uint8:
        raise UserError(f"images must be uint8 or floating point, got {inputs.dtype}")
    if inputs.dim() < 3 or not len(mean) == len(std) == inputs.shape[-3]:
        raise UserError(
            f"images [..., C, H, W] need a mean and a std per channel, got images {list(inputs.shape)}, "
            f"{len(mean)} means and {len(std)} stds"
        )
    shift, scale = (
        255 * torch.as_tensor(constant, device=inputs.device, dtype=torch.float32).view(-1, 1, 1)
        for constant in (mean, std)
    )
    # Converted first: subtracting from the uint8 images themselves takes ten times as long on a CPU.
    return inputs.float().sub_(shift).div_(scale)
