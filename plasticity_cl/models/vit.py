"""A small vision transformer."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from plasticity_cl.errors import UserError
from plasticity_cl.models.layers import Activation, Normalization, image_shape, normalized_activation
from plasticity_cl.parts.values import Count, limit

HEAD_WIDTH = 16
HIDDEN_FACTOR = 4
MIN_SIDE = 4


def patch_side(height: int, width: int) -> int:
    """Choose the side of the square patches: the largest that divides both sides and is at most sqrt(shorter side).

    Images of 8, 28, 32 and 224 pixels get patches of 2, 4, 4 and 14, that is 16, 49, 64 and 256 tokens.
    """
    largest = math.isqrt(min(height, width))
    return max(side for side in range(1, largest + 1) if height % side == 0 and width % side == 0)


def position_code(rows: int, columns: int, width: int) -> Tensor:
    """Compute the fixed position code [rows * columns, width]: sine and cosine of row and of column.

    A quarter of the width each, at the frequencies 10000^(-i / (width / 4)) (Vaswani et al. 2017, in two dimensions as
    in Beyer et al. 2022).
    """
    frequencies = 10000.0 ** (-torch.arange(width // 4) / (width // 4))
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angles = [position.reshape(-1, 1) * frequencies for position in (row, column)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017).

    Written out with a softmax instead of torch's fused kernel, which cannot be differentiated twice on every device.

    Args:
        width: Width of a token, a multiple of ``HEAD_WIDTH``.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.n_heads = width // HEAD_WIDTH
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens x [N, T, width] to [N, T, width]."""
        heads = self.queries_keys_values(x).unflatten(2, (3, self.n_heads, HEAD_WIDTH)).permute(2, 0, 3, 1, 4)
        queries, keys, values = heads[0], heads[1], heads[2]
        weights = (queries @ keys.transpose(-2, -1) * HEAD_WIDTH**-0.5).softmax(dim=-1)
        return self.projection((weights @ values).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and a two-layer perceptron, each beside a shortcut and after a LayerNorm (Dosovitskiy et al. 2021).

    Args:
        width: Width of a token.
        activation: One of ``ACTIVATIONS``.
        normalization: One of ``NORMALIZATIONS``, put before the activation, or ``None``.
    """

    def __init__(self, width: int, activation: str, normalization: str | None) -> None:
        super().__init__()
        hidden = HIDDEN_FACTOR * width
        self.attention = nn.Sequential(nn.LayerNorm(width), Attention(width))
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, hidden),
            *normalized_activation(activation, normalization, hidden),
            nn.Linear(hidden, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens x [N, T, width] to [N, T, width]."""
        x = x + self.attention(x)
        return x + self.mlp(x)  # type: ignore[no-any-return]


class ViT(nn.Module):
    """A plain vision transformer: fixed position code, no class token, mean of the tokens (Beyer et al. 2022).

    Hence every parameter belongs to a Linear, a Conv2d or a normalisation. With ``normalization=None`` it has the
    LayerNorms of the standard network, before attention, before the perceptron and at the end; a kind puts one more, of
    that kind, directly before each activation. Weights of Linear layers start from a normal distribution of standard
    deviation 0.02 cut at twice that, biases from zero, the patch embedding and the output as torch does.

    Args:
        input_shape: Channels, height and width of an image of at least 4 x 4.
        n_outputs: Number of outputs.
        activation: One of ``ACTIVATIONS``; "gelu" is the usual one.
        width: Width of a token, a multiple of 16, which is the width of a head.
        depth: Number of blocks.
        normalization: One of ``NORMALIZATIONS``, or ``None``.

    Raises:
        UserError: The image is too small, or the width is not a multiple of 16.
    """

    positions: Tensor

    def __init__(
        self,
        input_shape: tuple[int, ...],
        n_outputs: int,
        *,
        width: Count = 64,
        depth: Count = 4,
        activation: Activation = "relu",
        normalization: Normalization | None = None,
    ) -> None:
        super().__init__()
        limit(Count, "width", width)
        limit(Count, "depth", depth)
        channels, height, side = image_shape("vit", input_shape)
        if min(height, side) < MIN_SIDE:
            raise UserError(f"vit needs images of at least {MIN_SIDE} x {MIN_SIDE}, got {height} x {side}")
        if width % HEAD_WIDTH:
            raise UserError(f"the width of vit must be a multiple of {HEAD_WIDTH}, got {width}")
        patch = patch_side(height, side)
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)
        self.register_buffer("positions", position_code(height // patch, side // patch, width), persistent=False)
        self.blocks = nn.Sequential(*[Block(width, activation, normalization) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, n_outputs)

        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [N, channels, height, width] to [N, n_outputs]."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.output(self.norm(self.blocks(tokens)).mean(1))  # type: ignore[no-any-return]
