"""Watching a forward pass at the level of functions: its nonlinearities, and its last linear layer."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from plasticity_cl.diagnostics.following import Following, Nonlinearity
from plasticity_cl.diagnostics.undisturbed import ordinary_tensor, undisturbed
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
    with undisturbed(model) as network, torch.no_grad(), _eager():
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


class _LastLinearMode(TorchFunctionMode):
    """Keeps the arguments of the last call of ``F.linear``, the function behind ``nn.Linear``."""

    call: tuple[Tensor, Tensor, Tensor | None] | None = None

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.linear:
            self.call = _linear_arguments(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _linear_arguments(
    input: Tensor, weight: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    return input, weight, bias


def last_linear(model: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Run one forward pass in eval mode and return what the linear layer executed last was called with.

    Args:
        model: A network that calls ``nn.Linear`` (or ``F.linear``) at least once.
        inputs: A batch, as the model takes it.

    Returns:
        Its features [n, d], where every position before the last dimension counts as a sample; its weight [C, d]; and
        its bias [C] or None. All detached, the features a copy.

    Raises:
        UserError: If no linear layer was executed.
    """
    mode = _LastLinearMode()
    with undisturbed(model) as network, torch.no_grad(), _eager():
        with mode:
            network(ordinary_tensor(inputs))
        if mode.call is None:
            raise UserError(
                "the network executed no linear layer, so it has no penultimate features; pass features yourself"
            )
        features, weight, bias = mode.call
        features = features.detach().reshape(-1, features.shape[-1]).clone()
    return features, weight.detach(), None if bias is None else bias.detach()


@contextmanager
def _eager() -> Iterator[None]:
    """Run compiled networks as they were written: compiled code does not pass function modes."""
    if "torch._dynamo" in sys.modules:
        with torch.compiler.set_stance("force_eager"):
            yield
    else:
        yield
