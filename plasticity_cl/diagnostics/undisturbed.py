"""A guard for looking at a network without leaving a trace in it, whatever modes of torch are on outside."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from plasticity_cl.errors import UserError
from plasticity_cl.seeding import preserve_rng

_HALF = (torch.float16, torch.bfloat16)

_Callable = TypeVar("_Callable", bound=Callable[..., Any])


@contextmanager
def undisturbed(model: nn.Module, differentiable: bool = False) -> Iterator[nn.Module]:
    """Put ``model`` into eval mode for the block, then restore every mode flag, gradient and RNG state.

    Eval mode is what makes per-sample quantities defined (batch normalisation in training mode couples the samples) and
    keeps buffers as they are. Everything is restored, module by module, also when the block raises. Inside, gradients
    are on, inference mode and autocast off.

    Args:
        model: The network to look at. The gradients it holds are set aside: inside the block ``.grad`` is ``None``.
        differentiable: Whether derivatives are wanted, which half precision is too coarse for.

    Yields:
        The network, to be looked at in place of ``model``: a copy where it was made in inference mode, whose tensors
        autograd refuses, or is in half precision and derivatives are wanted, which the copy gives in single precision.
    """
    with outside_of_modes():
        network = ordinary(model, single_precision=differentiable)
        modes = [(module, module.training) for module in network.modules()]
        parameters = [p for module, _ in modes for p in module._parameters.values() if p is not None]
        gradients = [(parameter, parameter.grad) for parameter in parameters]
        with preserve_rng():
            try:
                for module, _ in modes:
                    _set_mode(module, False)
                for parameter, _ in gradients:
                    parameter.grad = None
                yield network
            finally:
                for module, mode in modes:
                    _set_mode(module, mode)
                for parameter, gradient in gradients:
                    parameter.grad = gradient


def _set_mode(module: nn.Module, training: bool) -> None:
    """Set the flag of one module, past nn.Module.__setattr__, which takes long for so little."""
    attributes = vars(module)
    if "training" in attributes:
        attributes["training"] = training
    else:
        module.training = training


@contextmanager
def outside_of_modes() -> Iterator[None]:
    """Switch gradients on, and inference mode and autocast off."""
    cast = [device for device in ("cpu", "cuda") if torch.is_autocast_enabled(device)]
    with torch.inference_mode(False), torch.enable_grad():
        try:
            for device in cast:
                torch.set_autocast_enabled(device, False)
            yield
        finally:
            for device in cast:
                torch.set_autocast_enabled(device, True)


@contextmanager
def eager() -> Iterator[None]:
    """Run compiled networks as they were written: compiled code does not pass function modes."""
    if "torch._dynamo" in sys.modules:
        with torch.compiler.set_stance("force_eager"):
            yield
    else:
        yield


def ordinary(module: nn.Module, single_precision: bool) -> nn.Module:
    """Give a module that can be differentiated: itself, or a copy; called outside of inference mode.

    Args:
        module: Any module.
        single_precision: Whether half precision is made single.

    Raises:
        UserError: If a copy is needed and the module cannot be copied.
    """
    # By hand: parameters() and buffers() would take more time than the rest of a look at a small network.
    owned = [held for part in module.modules() for held in (part._parameters, part._buffers)]
    tensors = [tensor for held in owned for tensor in held.values() if tensor is not None]
    half = single_precision and any(tensor.dtype in _HALF for tensor in tensors)
    if not (half or any(tensor.is_inference() for tensor in tensors)):
        return module
    copied = copied_module(module)
    return copied.float() if half else copied


def copied_module(module: nn.Module) -> nn.Module:
    """Copy a module, without the gradients it holds.

    Raises:
        UserError: If it cannot be copied.
    """
    try:
        copied = copy.deepcopy(module)
    except (RuntimeError, TypeError) as error:
        raise UserError(f"the network cannot be copied: {str(error).splitlines()[0]}") from error
    copied.zero_grad(set_to_none=True)
    return copied


def ordinary_tensor(values: Tensor, single_precision: bool = False) -> Tensor:
    """Detach a batch, and copy it where it was made in inference mode or is wanted in single precision."""
    if single_precision and values.dtype in _HALF:
        return values.detach().float()
    return values.clone() if values.is_inference() else values.detach()


def ordinary_loss(loss: _Callable) -> _Callable:
    """The same for a loss, which holds tensors where it is a module: weights of classes, for instance."""
    return ordinary(loss, single_precision=True) if isinstance(loss, nn.Module) else loss  # type: ignore[return-value]
