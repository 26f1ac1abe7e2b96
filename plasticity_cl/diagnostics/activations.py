"""Watching a forward pass at the level of functions: its nonlinearities, and its last linear layer.

Hooks on modules see a nonlinearity only where it is a module. A function mode sees it in every spelling (``nn.ReLU()``,
``F.relu(z)``, ``torch.relu(z)``, ``z.relu_()``), because the module forms call the functions.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from plasticity_cl.diagnostics.undisturbed import ordinary_tensor, undisturbed
from plasticity_cl.errors import UserError

_ELEMENTWISE = (
    *("relu", "leaky_relu", "prelu", "rrelu", "relu6", "hardtanh", "threshold"),
    *("gelu", "silu", "mish", "hardswish", "elu", "selu", "celu", "softplus", "tanh", "sigmoid", "hardsigmoid"),
    *("softsign", "logsigmoid", "tanhshrink", "hardshrink", "softshrink"),
)


def _spellings() -> dict[Callable[..., Any], str]:
    known: dict[Callable[..., Any], str] = {torch.special.expit: "sigmoid", F.tanhshrink: "tanhshrink"}
    for name in _ELEMENTWISE:
        for holder in (torch, F, torch.Tensor):
            for spelling in (name, f"{name}_"):
                function = getattr(holder, spelling, None)
                if function is not None:
                    known[function] = name
    return known


NONLINEARITIES = _spellings()
"""Every elementwise nonlinearity that is recognised, in every spelling, and its name."""

_UNIT_AXIS: dict[Callable[..., Any], int] = {
    F.linear: -1,
    F.layer_norm: -1,
    F.rms_norm: -1,
    F.embedding: -1,
    F.batch_norm: 1,
    F.group_norm: 1,
    F.instance_norm: 1,
    torch.conv1d: -2,
    torch.conv2d: -3,
    torch.conv3d: -4,
    torch.conv_transpose1d: -2,
    torch.conv_transpose2d: -3,
    torch.conv_transpose3d: -4,
}
"""The dimension that counts units in what these functions return."""


@dataclass(frozen=True)
class Nonlinearity:
    """One elementwise nonlinearity about to be applied in a forward pass.

    Attributes:
        layer: Where it is applied, for instance ``"layer1.0.relu"``; a place met again gets ``_2``, ``_3``, and so on.
        name: Which one, for instance ``"gelu"``.
        preactivations: Its input z, of any shape.
        unit_axis: The dimension of ``preactivations`` that counts units, as a non-negative number.
        arguments: What else it was called with: positional arguments after the first, and keywords.
        function: The function as it was called, perhaps one that works in place.
    """

    layer: str
    name: str
    preactivations: Tensor
    unit_axis: int
    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    function: Callable[..., Any]

    def apply(self, values: Tensor) -> Tensor:
        """Apply the nonlinearity, elementwise, to other values; in-place spellings overwrite them."""
        result: Tensor = self.function(values, *self.arguments[0], **self.arguments[1])
        return result


class _NonlinearityMode(TorchFunctionMode):
    """Calls ``visit`` before each nonlinearity of the forward pass of ``model``."""

    def __init__(self, model: nn.Module, visit: Callable[[Nonlinearity], None]) -> None:
        super().__init__()
        self._visit = visit
        # Wrappers of torch.compile are left out, so that a network has the same names before and after.
        self._names = {id(module): name.replace("_orig_mod.", "") for name, module in model.named_modules()}
        self._layers: set[str] = set()
        self._times: dict[str, int] = {}
        self._unit_axes: dict[int, tuple[int, int]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = NONLINEARITIES.get(func)
        if name is not None:
            self._before(func, name, args, kwargs, sys._getframe(1))
            return func(*args, **kwargs)
        output = func(*args, **kwargs)
        axis = _UNIT_AXIS.get(func)
        if axis is not None and output.ndim > 1 and not (func is F.layer_norm and _normalises_maps(*args, **kwargs)):
            axis %= output.ndim
            self._unit_axes[output.ndim] = (axis, output.shape[axis])
        return output

    def _before(
        self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any], frame: FrameType
    ) -> None:
        z = args[0] if args else kwargs["input"]
        named = {key: value for key, value in kwargs.items() if key != "input"}
        # A nonlinearity of a parameter (a positive scale, a gate) says nothing of units on data.
        if not z.is_floating_point() or not z.numel() or isinstance(z, nn.Parameter):
            return
        if name == "hardtanh" and (args[1] if len(args) > 1 else named.get("min_val", -1.0)) == 0:
            name = "relu6"  # nn.ReLU6 is spelt so
        axis = 1 if name == "prelu" and z.ndim > 1 else self._axis_of_units(z)
        self._visit(Nonlinearity(self._layer(func, frame), name, z.detach(), axis, (args[1:], named), func))

    def _axis_of_units(self, z: Tensor) -> int:
        axis, units = self._unit_axes.get(z.ndim, (0, -1))
        if z.ndim > 1 and z.shape[axis] == units:
            return axis
        return 1 if z.ndim > 3 else max(z.ndim - 1, 0)

    def _layer(self, func: Callable[..., Any], frame: FrameType | None) -> str:
        """Name the place of a call after the innermost of the model's modules that is running.

        The running module is read off the call stack, where it is the ``self`` of its ``forward``: unlike hooks this
        needs nothing to be attached to the model, and it also sees a ``forward`` that is called directly.
        """
        name = ""
        while frame is not None:
            module = frame.f_locals.get("self")
            if isinstance(module, nn.Module) and id(module) in self._names:
                name = self._names[id(module)]
                if not name or next(module.children(), None) is not None:
                    name = f"{name}.{func.__name__.strip('_')}".lstrip(".")
                break
            frame = frame.f_back
        name = layer = name or func.__name__.strip("_")
        while layer in self._layers:
            self._times[name] = count = self._times.get(name, 1) + 1
            layer = f"{name}_{count}"
        self._layers.add(layer)
        return layer


def _normalises_maps(input: Tensor, normalized_shape: Sequence[int], *args: object, **kwargs: object) -> bool:
    """Layer normalisation over several dimensions, which does not say which of them counts units."""
    return len(normalized_shape) > 1


def visit_nonlinearities(model: nn.Module, inputs: Tensor, visit: Callable[[Nonlinearity], None]) -> None:
    """Run one forward pass in eval mode, without gradients, and visit each nonlinearity right before it is applied.

    What counts units is found from what the data last went through: the last dimension after a linear layer, layer or
    RMS normalisation or an embedding, the channel dimension after a convolution, batch, group or instance
    normalisation, where the number of dimensions and of units fits; otherwise the second of four and more dimensions,
    else the last.

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
    with undisturbed(model) as network, torch.no_grad(), _eager(), _NonlinearityMode(network, visit):
        network(ordinary_tensor(inputs))


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
