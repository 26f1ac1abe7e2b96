"""Watching a forward pass at the level of functions for its nonlinearities."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from plasticity_cl.diagnostics.following import Following, Nonlinearity
from plasticity_cl.diagnostics.undisturbed import eager, ordinary_tensor, undisturbed
from plasticity_cl.errors import UserError

_CALLER = 4
"""From the warning to whoever called ``unit_statistics``."""


def visit_nonlinearities(model: nn.Module, inputs: Tensor, visit: Callable[[Nonlinearity], None]) -> None:
    """Run one forward pass in eval mode, without gradients, and visit each nonlinearity right before it is applied.

    What counts units is the last dimension after a linear layer, layer or RMS normalisation or an embedding, and the
    channel dimension after a convolution, batch, group or instance normalisation; it is followed through everything
    that moves data about. Where it was lost, the dimension of what the data last went through is taken if the number of
    dimensions and of units fits; otherwise the second of four and more dimensions, else the last.

    One warning names what could not be looked into: recurrent kernels, elementwise functions of several preactivations,
    and what hides behind other code than PyTorch's functions.

    Args:
        model: Any network in plain PyTorch; also traced by torch.fx or compiled.
        inputs: A batch, as the model takes it.
        visit: Called once for each application, in order of execution, without recording gradients.

    Raises:
        UserError: If the model holds TorchScript, inside of which nothing can be seen, or if the batch is empty.
    """
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise UserError("a TorchScript module hides its nonlinearities; pass the network it was scripted from")
    if not inputs.numel():
        raise UserError("the batch of inputs is empty; pass at least one sample")
    with undisturbed(model) as network, torch.no_grad(), eager():
        following = Following(network, visit)
        batch = ordinary_tensor(inputs)
        following.given(batch)
        try:
            with following:
                outputs = network(batch)
            following.finish(outputs)
        finally:
            following.clear()
    if following.unseen:
        warnings.warn(
            f"nonlinearities that are not counted as units: {'; '.join(following.unseen)}", stacklevel=_CALLER
        )
