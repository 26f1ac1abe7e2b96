"""ResNet-18 and ResNet-50 as torchvision has them, for larger images and weights trained on ImageNet."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import nn
from torchvision.models import resnet18, resnet50

from plasticity_cl.errors import UserError, unknown_name
from plasticity_cl.models.layers import Normalization, make_normalization
from plasticity_cl.parts.values import File
from plasticity_cl.seeding import derive_seed, preserve_rng

IMAGENET_RESNETS = {"imagenet-resnet18": resnet18, "imagenet-resnet50": resnet50}
"""torchvision's networks by the names they have here. (``resnet18`` is ours, with the stem for small images.)"""

_HEAD = ("fc.weight", "fc.bias")
_OF_BATCH_NORM = ("running_mean", "running_var", "num_batches_tracked")


def make_imagenet_resnet(
    name: str,
    n_outputs: int,
    *,
    normalization: Normalization = "batch",
    weights: File | None = None,
    seed: int,
) -> nn.Module:
    """Make torchvision's ResNet (He et al. 2016), with a new head of ``n_outputs``.

    ``normalization`` takes the place of the batch normalisations; the weights of convolutions and head are the same for
    every kind. To have a layer normalisation before every nonlinearity and keep the batch normalisations, with the
    weights and statistics that were trained with them, use :class:`~plasticity_cl.strategies.LayerNormPlugin` or
    :func:`~plasticity_cl.models.insert_normalization` on ``normalization="batch"``.

    Args:
        name: One of ``IMAGENET_RESNETS``.
        n_outputs: Number of outputs.
        normalization: One of :data:`~plasticity_cl.models.NORMALIZATIONS`; "batch" is the published network.
        weights: A file with a state dict, as torchvision publishes them, loaded by :func:`load_weights`.
        seed: Root of the random initialisation. Global generators stay as they were.

    Returns:
        A network that maps [N, 3, height, width] to [N, n_outputs], on the CPU, in training mode; its last layer is
        ``fc``, an ``nn.Linear``.

    Raises:
        UserError: For an unknown name, or weights that do not fit.
    """
    if name not in IMAGENET_RESNETS:
        raise unknown_name("network", name, IMAGENET_RESNETS)
    if n_outputs < 1:
        raise UserError(f"n_outputs is {n_outputs}: it must be at least 1")
    make_normalization(normalization, 2, 2)
    norm_layer = None if normalization == "batch" else partial(make_normalization, normalization, spatial_dims=2)
    with preserve_rng(), torch.device("cpu"):
        torch.default_generator.manual_seed(derive_seed(int(seed), "initialisation"))
        network: nn.Module = IMAGENET_RESNETS[name](num_classes=n_outputs, norm_layer=norm_layer)
    if weights is not None:
        load_weights(network, Path(weights))
    return network


def load_weights(network: nn.Module, path: Path) -> None:
    """Load a state dict from a file into a ResNet, in place. Nothing but tensors is read from the file.

    Where the head of the file has another number of outputs, the network keeps its own. Where the network has no batch
    normalisations, their running statistics are left out, and what was scale and shift of theirs becomes that of the
    normalisations in their place: a starting point, not the function that was trained.

    Args:
        network: From :func:`make_imagenet_resnet`.
        path: The file.

    Raises:
        UserError: If the file is missing, is no state dict, or is one of another network.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"there is no file of weights {path}") from None
    except Exception as error:  # unpickling raises whatever foreign bytes make it raise
        raise UserError(f"{path} is no file of weights that torch.save wrote: {type(error).__name__}") from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{path} holds no state dict: save network.state_dict(), as torchvision publishes them")
    own = network.state_dict()
    if any(key in state and key in own and state[key].shape != own[key].shape for key in _HEAD):
        state = {key: value for key, value in state.items() if key not in _HEAD}
    given = {key: v for key, v in state.items() if key in own or key.rpartition(".")[2] not in _OF_BATCH_NORM}
    wanted = [key for key in own if key not in _HEAD and not key.endswith("num_batches_tracked")]
    missing = [key for key in wanted if key not in given]
    foreign = [key for key in given if key not in own]
    unlike = [key for key in given if key in own and given[key].shape != own[key].shape]
    for keys, what in ((missing, "does not have"), (foreign, "has"), (unlike, "has in another shape")):
        if keys:
            raise UserError(f"{path} is of another network: it {what} {keys[0]} ({len(keys)} such parts)")
    network.load_state_dict(given, strict=False)
