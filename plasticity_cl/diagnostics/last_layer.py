"""The last linear layer of a network, found by running it: what it is called with, and which module it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from plasticity_cl.diagnostics.undisturbed import eager, ordinary_tensor, undisturbed
from plasticity_cl.errors import UserError


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
    with undisturbed(model) as network, torch.no_grad(), eager():
        with mode:
            network(ordinary_tensor(inputs))
        if mode.call is None:
            raise UserError(
                "the network executed no linear layer, so it has no penultimate features; pass features yourself"
            )
        features, weight, bias = mode.call
        features = features.detach().reshape(-1, features.shape[-1]).clone()
    return features, weight.detach(), None if bias is None else bias.detach()


def output_layer(model: nn.Module, inputs: Tensor) -> nn.Linear | None:
    """Run one forward pass in eval mode and return the ``nn.Linear`` whose output is that of the network.

    That is the module to exchange for another number of outputs, where :func:`last_linear` tells what goes into the
    last linear function, be it a module or not.

    Args:
        model: Any network.
        inputs: A batch, as the model takes it.

    Returns:
        The module; ``None`` where the network's output does not come directly out of one.
    """
    calls: list[tuple[nn.Linear, Tensor]] = []

    def note(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, nn.Linear)
        calls.append((module, output))

    hooks = [module.register_forward_hook(note) for module in model.modules() if isinstance(module, nn.Linear)]
    try:
        with undisturbed(model), torch.no_grad():
            result = model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return next((layer for layer, output in calls if output is result), None)
