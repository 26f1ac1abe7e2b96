"""ResNet-18 with the stem for small images."""

from __future__ import annotations

from torch import Tensor, nn

from plasticity_cl.errors import UserError
from plasticity_cl.models.layers import Activation, Normalization, image_shape, make_activation, make_normalization
from plasticity_cl.parts.values import Count, limit

N_STAGES = 4
MIN_SIDE = 2 ** (N_STAGES - 1)


def _convolution(n_in: int, n_out: int, kernel: int, stride: int, normalization: str | None) -> list[nn.Module]:
    """Make a convolution, followed by its normalisation; without one the convolution has a bias of its own."""
    convolution = nn.Conv2d(n_in, n_out, kernel, stride, padding=kernel // 2, bias=normalization is None)
    return [convolution] if normalization is None else [convolution, make_normalization(normalization, n_out, 2)]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, and an activation of their sum (He et al. 2016).

    Args:
        n_in: Channels in.
        n_out: Channels out.
        stride: Of the first convolution; where it or the channels change the shape, the shortcut is a 1x1 convolution.
        activation: One of ``ACTIVATIONS``.
        normalization: One of ``NORMALIZATIONS``, after each convolution, or ``None``.
    """

    def __init__(self, n_in: int, n_out: int, stride: int, activation: str, normalization: str | None) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            *_convolution(n_in, n_out, 3, stride, normalization),
            make_activation(activation),
            *_convolution(n_out, n_out, 3, 1, normalization),
        )
        reshapes = stride != 1 or n_in != n_out
        self.shortcut = nn.Sequential(*_convolution(n_in, n_out, 1, stride, normalization) if reshapes else [])
        self.activation = make_activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [N, n_in, H, W] to [N, n_out, H / stride, W / stride]."""
        return self.activation(self.branch(x) + self.shortcut(x))  # type: ignore[no-any-return]


class ResNet18(nn.Module):
    """ResNet-18 (He et al. 2016) with a 3x3 stem of stride 1 and no pooling after it, as is usual for 32x32 images.

    ``normalization="batch"`` is the standard network. Any kind sits where batch normalisation does, after each
    convolution: the sum of a block reaches its activation as it is. To normalise the sums as well, use
    :func:`plasticity_cl.models.insert_normalization`.

    With ``normalization=None`` there are no normalisation layers. The convolutions then have biases, and the last
    convolution of each block starts at 1 / sqrt(number of blocks) of its usual scale, so that the variance grows by a
    factor below e over the whole depth and not by 2 a block (Hanin and Rolnick 2018).

    All convolutions start from Kaiming's normal initialisation (fan-out, gain of ReLU), the output as torch does.

    Args:
        input_shape: Channels, height and width of an image of at least 8 x 8.
        n_outputs: Number of outputs.
        activation: One of ``ACTIVATIONS``.
        width: Channels of the stem and of the first of the four stages; each later stage has twice as many.
        depth: Blocks a stage; 2 makes 18 layers.
        normalization: One of ``NORMALIZATIONS``, or ``None``.

    Raises:
        UserError: The image is too small.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        n_outputs: int,
        *,
        width: Count = 64,
        depth: Count = 2,
        activation: Activation = "relu",
        normalization: Normalization | None = None,
    ) -> None:
        super().__init__()
        limit(Count, "width", width)
        limit(Count, "depth", depth)
        channels, height, side = image_shape("resnet18", input_shape)
        if min(height, side) < MIN_SIDE:
            raise UserError(f"resnet18 needs images of at least {MIN_SIDE} x {MIN_SIDE}, got {height} x {side}")
        self.stem = nn.Sequential(*_convolution(channels, width, 3, 1, normalization), make_activation(activation))
        blocks: list[BasicBlock] = []
        n_in = width
        for stage in range(N_STAGES):
            n_out = width * 2**stage
            for block in range(depth):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(BasicBlock(n_in, n_out, stride, activation, normalization))
                n_in = n_out
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.output = nn.Linear(n_in, n_outputs)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if normalization is None:
            for basic_block in blocks:
                last = basic_block.branch[-1]
                assert isinstance(last, nn.Conv2d)
                last.weight.data.mul_(len(blocks) ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [N, channels, height, width] to [N, n_outputs]."""
        return self.output(self.pool(self.blocks(self.stem(x))).flatten(1))  # type: ignore[no-any-return]
