"""Networks by name, initialised from a seed."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import torch
from torch import nn

from plasticity_cl.errors import UserError
from plasticity_cl.models.catalogue import MODELS
from plasticity_cl.seeding import derive_seed, preserve_rng


def _require_positive(what: str, value: int) -> None:
    if not isinstance(value, Integral) or value < 1:
        raise UserError(f"{what} must be a whole number of at least 1, got {value!r}")


def make_model(name: str, input_shape: tuple[int, ...], n_outputs: int, *, seed: int, **options: Any) -> nn.Module:
    """Make a network, on the CPU, in training mode.

    The initial weights are drawn from the seed alone, and every global random number generator stays as it was. The
    same seed gives the same bits; in all but ``resnet18``, networks that differ in ``normalization`` or ``activation``
    only start from the same weights, since normalisations and activations draw nothing.

    The last layer to run is an ``nn.Linear``: its input is the network's features.

    Args:
        name: One of :data:`~plasticity_cl.models.catalogue.MODELS`, with options or without: ``"mlp:width=256"``; or
            the dotted path of a class or function.
        input_shape: Shape of one input, without the batch: any shape for "mlp", (channels, height, width) for the rest.
        n_outputs: Number of outputs.
        seed: Root of the random initialisation.
        **options: Further options; those that are ``None`` have the network's own defaults. What they mean is said in
            the class of each network.

    Returns:
        A network that maps [N, *input_shape] to [N, n_outputs].

    Raises:
        UserError: A name is not known, a number is below 1, or the input's shape does not suit the network.
    """
    chosen = MODELS.read(name, {option: value for option, value in options.items() if value is not None})
    _require_positive("n_outputs", n_outputs)
    if not input_shape:
        raise UserError("input_shape is empty; give the shape of one input, without the batch")
    for size in input_shape:
        _require_positive("each size in input_shape", size)
    with preserve_rng(), torch.device("cpu"):
        # torch.manual_seed would also reseed the generators of other devices, which may not exist yet to be restored.
        torch.default_generator.manual_seed(derive_seed(int(seed), "initialisation"))
        network = MODELS.make(chosen, input_shape=tuple(input_shape), n_outputs=n_outputs, seed=seed)
    if not isinstance(network, nn.Module):
        raise UserError(f"network {chosen.name} made a {type(network).__name__}, which is no torch.nn.Module")
    return network
