"""Activations and normalisations by name, in the two layouts that occur: features in the last dimension, and maps."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from plasticity_cl.errors import UserError, unknown_name
from plasticity_cl.models.nonlinearities import ACTIVATIONS

Activation = Literal["relu", "leaky_relu", "gelu", "tanh", "silu"]
Normalization = Literal["layer", "batch", "rms", "group"]

NORMALIZATIONS: tuple[str, ...] = get_args(Normalization)
"""The kinds of normalisation, by name: see :func:`make_normalization`."""

EPS = 1e-5
"""Added to the variance or mean square, the same in every kind, so that kinds differ in what they average only."""

CHANNELS_PER_GROUP = 16
MAX_GROUPS = 32
NORM_CLASSES: tuple[type[nn.Module], ...]


def _rows(x: Tensor) -> Tensor:
    """Flatten every dimension but the last: [..., C] to [rows, C]."""
    return x.reshape(-1, x.size(-1))


class FeatureBatchNorm(nn.BatchNorm1d):
    """Batch normalisation of features in the last dimension: x [..., C], statistics over all leading dimensions."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise x [..., C]."""
        return super().forward(_rows(input)).reshape(input.shape)


class FeatureGroupNorm(nn.GroupNorm):
    """Group normalisation of features in the last dimension: x [..., C], every row by itself."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise x [..., C]."""
        return super().forward(_rows(input)).reshape(input.shape)


class MapRMSNorm(nn.Module):
    """RMS normalisation of feature maps: x [N, C, *space] by its root mean square over C and space, scale per channel.

    The extent is that of ``GroupNorm(1, C)``, so that "rms" and "layer" on maps differ in the centring alone. (Some
    networks take the mean square over channels at each position instead.)

    Args:
        channels: C.
        eps: Added to the mean square.
    """

    def __init__(self, channels: int, eps: float = EPS) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [N, C, *space]."""
        mean_square = x.square().flatten(1).mean(1)
        per_sample = (-1, *[1] * (x.ndim - 1))
        per_channel = (1, -1, *[1] * (x.ndim - 2))
        return x * torch.rsqrt(mean_square + self.eps).reshape(per_sample) * self.weight.reshape(per_channel)

    def extra_repr(self) -> str:
        """Describe the layer in its printed form."""
        return f"{self.weight.numel()}, eps={self.eps}"


NORM_CLASSES = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm, nn.RMSNorm, MapRMSNorm)


def image_shape(network: str, input_shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Channels, height and width of an image.

    Args:
        network: The name of the network that takes it, for the message.
        input_shape: Shape of one input.

    Raises:
        UserError: If it is no image.
    """
    if len(input_shape) != 3:
        raise UserError(f"{network} takes images of shape (channels, height, width), got {tuple(input_shape)}")
    channels, height, width = input_shape
    return channels, height, width


def make_activation(name: str) -> nn.Module:
    """Make an activation module.

    Args:
        name: One of ``ACTIVATIONS``.

    Raises:
        UserError: The name is not known.
    """
    if name not in ACTIVATIONS:
        raise unknown_name("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]()


def _groups(channels: int) -> int:
    """Return the most groups, up to ``MAX_GROUPS``, that leave ``CHANNELS_PER_GROUP`` channels or more in each."""
    fitting = [g for g in range(1, MAX_GROUPS + 1) if channels % g == 0 and channels // g >= CHANNELS_PER_GROUP]
    return max(fitting, default=1)


def make_normalization(kind: str, channels: int, spatial_dims: int = 0) -> nn.Module:
    """Make a normalisation layer, with the affine of its kind set to the identity.

    ========= ========================================== ===============================================
    kind      features [..., C] (``spatial_dims=0``)     maps [N, C, *space] (``spatial_dims`` 1 to 3)
    ========= ========================================== ===============================================
    ``layer`` LayerNorm over C                           GroupNorm(1, C): over C and space of each sample
    ``batch`` BatchNorm, over all leading dimensions     BatchNorm1d, 2d or 3d
    ``rms``   RMSNorm over C                             root mean square over C and space of each sample
    ``group`` GroupNorm of each row                      GroupNorm
    ========= ========================================== ===============================================

    Maps get layer normalisation as ``GroupNorm(1, C)``: mean and variance over channels and positions together (Ba et
    al. 2016 over all units of the layer), while scale and shift are per channel, so that the parameters do not depend
    on the size of the image. "group" takes as many groups as leave 16 channels or more in each, at most 32 (Wu and He
    2018); below 32 channels that is one group, which is the same as "layer".

    Args:
        kind: One of ``NORMALIZATIONS``.
        channels: C.
        spatial_dims: 0 for features in the last dimension, otherwise the number of spatial dimensions of the maps.

    Raises:
        UserError: The kind is not known, or a single feature would be normalised by itself, which erases it.
    """
    if kind not in NORMALIZATIONS:
        raise unknown_name("normalization", kind, NORMALIZATIONS)
    if channels == 1 and spatial_dims == 0 and kind != "batch":
        raise UserError(
            f"{kind!r} normalisation over a single unit erases its input; use 2 units or more, or normalization 'batch'"
        )
    if kind == "group":
        norm = FeatureGroupNorm if spatial_dims == 0 else nn.GroupNorm
        return norm(_groups(channels), channels, eps=EPS)
    if kind == "batch":
        return (FeatureBatchNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[spatial_dims](channels, eps=EPS)
    if kind == "rms":
        return nn.RMSNorm(channels, eps=EPS) if spatial_dims == 0 else MapRMSNorm(channels)
    return nn.LayerNorm(channels, eps=EPS) if spatial_dims == 0 else nn.GroupNorm(1, channels, eps=EPS)


def normalization_kinds(module: nn.Module) -> frozenset[str]:
    """Say which kinds of normalisation a module is: none, one, or for ``GroupNorm(1, C)`` both "layer" and "group"."""
    if isinstance(module, nn.LayerNorm):
        return frozenset({"layer"})
    if isinstance(module, nn.GroupNorm):
        return frozenset({"layer", "group"} if module.num_groups == 1 else {"group"})
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return frozenset({"batch"})
    return frozenset({"rms"} if isinstance(module, nn.RMSNorm | MapRMSNorm) else ())


def normalized_activation(
    activation: str, normalization: str | None, channels: int, spatial_dims: int = 0
) -> list[nn.Module]:
    """Make an activation, after the normalisation where one is named, in the order in which they are applied.

    Args:
        activation: One of ``ACTIVATIONS``.
        normalization: One of ``NORMALIZATIONS``, or ``None`` for none.
        channels: As in :func:`make_normalization`.
        spatial_dims: As in :func:`make_normalization`.
    """
    norm = [] if normalization is None else [make_normalization(normalization, channels, spatial_dims)]
    return [*norm, make_activation(activation)]
