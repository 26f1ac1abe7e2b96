"""Networks by name, initialised from a seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import nn

from plasticity_cl.errors import UserError, unknown_name
from plasticity_cl.models.cnn import CNN
from plasticity_cl.models.mlp import MLP
from plasticity_cl.models.resnet import ResNet18
from plasticity_cl.models.vit import ViT
from plasticity_cl.seeding import derive_seed, preserve_rng


@dataclass(frozen=True)
class ModelEntry:
    """A network in the catalogue: its class, its default width and depth, and whether it takes images only."""

    network: Callable[..., nn.Module]
    width: int
    depth: int
    images_only: bool


MODELS: dict[str, ModelEntry] = {
    "mlp": ModelEntry(MLP, width=128, depth=3, images_only=False),
    "cnn": ModelEntry(CNN, width=32, depth=2, images_only=True),
    "resnet18": ModelEntry(ResNet18, width=64, depth=2, images_only=True),
    "vit": ModelEntry(ViT, width=64, depth=4, images_only=True),
}
"""The networks, by name. What width and depth mean is said in the class of each."""


def _require_positive(what: str, value: int) -> None:
    if not isinstance(value, Integral) or value < 1:
        raise UserError(f"{what} must be a whole number of at least 1, got {value!r}")


def make_model(
    name: str,
    input_shape: tuple[int, ...],
    n_outputs: int,
    *,
    activation: str = "relu",
    width: int | None = None,
    depth: int | None = None,
    normalization: str | None = None,
    seed: int,
) -> nn.Module:
    """Make a network, on the CPU, in training mode.

    The initial weights are drawn from the seed alone, and every global random number generator stays as it was. The
    same seed gives the same bits; in all but ``resnet18``, networks that differ in ``normalization`` or ``activation``
    only start from the same weights, since normalisations and activations draw nothing.

    The last layer to run is an ``nn.Linear``: its input is the network's features.

    Args:
        name: One of ``MODELS``: "mlp", "cnn", "resnet18" or "vit".
        input_shape: Shape of one input, without the batch: any shape for "mlp", (channels, height, width) for the rest.
        n_outputs: Number of outputs.
        activation: One of ``ACTIVATIONS``.
        width: Width in the network's own sense, ``None`` for its default: units of a hidden layer (mlp, 128), channels
            of the first stage (cnn, 32; resnet18, 64), width of a token (vit, 64).
        depth: Depth in the network's own sense, ``None`` for its default: hidden layers (mlp, 3), stages (cnn, 2),
            blocks a stage (resnet18, 2), blocks (vit, 4).
        normalization: One of ``NORMALIZATIONS``, directly before the activations (in resnet18 after each convolution);
            ``None`` adds none. The standard ResNet-18 is ``normalization="batch"``.
        seed: Root of the random initialisation.

    Returns:
        A network that maps [N, *input_shape] to [N, n_outputs].

    Raises:
        UserError: A name is not known, a number is below 1, or the input's shape does not suit the network.
    """
    if name not in MODELS:
        raise unknown_name("network", name, MODELS)
    entry = MODELS[name]
    width = entry.width if width is None else width
    depth = entry.depth if depth is None else depth
    for what, value in (("n_outputs", n_outputs), ("width", width), ("depth", depth)):
        _require_positive(what, value)
    if not input_shape:
        raise UserError("input_shape is empty; give the shape of one input, without the batch")
    for size in input_shape:
        _require_positive("each size in input_shape", size)
    if entry.images_only and len(input_shape) != 3:
        raise UserError(f"{name} takes images of shape (channels, height, width), got {tuple(input_shape)}")
    with preserve_rng(), torch.device("cpu"):
        # torch.manual_seed would also reseed the generators of other devices, which may not exist yet to be restored.
        torch.default_generator.manual_seed(derive_seed(int(seed), "initialisation"))
        return entry.network(
            input_shape, n_outputs, activation=activation, width=width, depth=depth, normalization=normalization
        )
