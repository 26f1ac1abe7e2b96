"""A guard for looking at a network without leaving a trace in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from plasticity_cl.seeding import preserve_rng


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Put ``model`` into eval mode for the block, then restore every mode flag, gradient and RNG state.

    Eval mode is what makes per-sample quantities defined (batch normalisation in training mode couples the samples) and
    keeps buffers as they are. Everything is restored, module by module, also when the block raises.

    Args:
        model: The network to look at. The gradients it holds are set aside: inside the block ``.grad`` is ``None``.
    """
    modes = [(module, module.training) for module in model.modules()]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    with preserve_rng():
        try:
            for module, _ in modes:
                module.training = False
            for parameter, _ in gradients:
                parameter.grad = None
            with torch.enable_grad():
                yield
        finally:
            for module, mode in modes:
                module.training = mode
            for parameter, gradient in gradients:
                parameter.grad = gradient
