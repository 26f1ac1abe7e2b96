"""Following preactivations through a forward pass, function by function, to find every nonlinearity of units.

Hooks on modules see a nonlinearity only where it is a module. A function mode sees it in every spelling (``nn.ReLU()``,
``F.relu(z)``, ``torch.relu(z)``, ``z.relu_()``), because the module forms call the functions.

Other elementwise functions (``clamp``, ``maximum``, ``where``, ``sin``, products) are nonlinearities of units only if
they act on preactivations: what layers with parameters or normalisations give, moved about, added and scaled. There
they are followed, step by step, as a function of one tensor of preactivations, until something that is not elementwise
takes the result; so a formula that is written out counts as the one nonlinearity that it is. What bounds a norm, a
variance or an attention from below, a loss, or the network's inputs, does not count.
"""

from __future__ import annotations

import math
import sys
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from plasticity_cl.diagnostics.formulas import name_of
from plasticity_cl.diagnostics.unit_axes import Units, indexed, kept, one, permuted, reshaped, stacked, without
from plasticity_cl.models.nonlinearities import FUNCTIONS

_NAMED = frozenset(FUNCTIONS)
"""Elementwise nonlinearities that count wherever they are met, by the name of their functions and methods."""

_LAYERS: dict[str, int] = {
    **dict.fromkeys(("linear", "layer_norm", "rms_norm", "embedding", "bilinear", "multi_head_attention_forward"), -1),
    **dict.fromkeys(("batch_norm", "group_norm", "instance_norm"), 1),
    **{f"conv{n}d": -1 - n for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": -1 - n for n in (1, 2, 3)},
}
"""What gives preactivations, and the dimension that counts units in it."""

_AFFINE = frozenset(
    {"add", "sub", "rsub", "subtract", "mul", "multiply", "div", "divide", "true_divide", "neg", "negative"}
)
_PRODUCTS = frozenset({"mul", "multiply", "div", "divide", "true_divide"})

_COMPARISONS = frozenset(
    {
        *("gt", "ge", "lt", "le", "eq", "ne", "greater", "greater_equal", "less", "less_equal", "not_equal"),
        *(
            "logical_not",
            "logical_and",
            "logical_or",
            "bitwise_not",
            "invert",
            "bitwise_and",
            "and",
            "bitwise_or",
            "or",
        ),
    }
)
_SELECTIONS = _COMPARISONS | {"where", "masked_fill", "setitem", "type_as"}
"""Elementwise functions that say nothing of units where what they compare or select by is not a preactivation."""

_POINTWISE = _SELECTIONS | {
    *("clamp", "clip", "clamp_min", "clamp_max", "maximum", "minimum", "max", "min", "fmax", "fmin", "heaviside"),
    *(
        "abs",
        "absolute",
        "square",
        "pow",
        "float_power",
        "rpow",
        "exp",
        "exp2",
        "expm1",
        "log",
        "log1p",
        "log2",
        "log10",
    ),
    *(
        "sqrt",
        "rsqrt",
        "reciprocal",
        "rdiv",
        "rtruediv",
        "sin",
        "cos",
        "tan",
        "asin",
        "acos",
        "atan",
        "arctan",
        "arcsin",
    ),
    *("arccos", "sinh", "cosh", "asinh", "acosh", "atanh", "arctanh", "arcsinh", "erf", "erfc", "sign", "sgn", "sinc"),
    *("round", "floor", "ceil", "trunc", "frac", "logaddexp", "logaddexp2", "hypot", "atan2", "xlogy", "logit"),
    *("special_erf", "special_erfc", "special_exp2", "special_expm1", "special_log1p", "special_ndtr", "special_xlogy"),
    *("remainder", "fmod", "copysign", "special_sinc", "special_logit", "lerp", "addcmul", "addcdiv"),
}

_SAME = frozenset(
    {
        *(
            "clone",
            "contiguous",
            "detach",
            "to",
            "type",
            "float",
            "double",
            "half",
            "bfloat16",
            "cpu",
            "cuda",
            "dropout",
        ),
        *("dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout", "alias", "requires_grad"),
    }
)
"""What leaves the values as they are in eval mode."""

_PERMUTING = frozenset({"permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "t", "adjoint"})
_PERMUTING_GETTERS = frozenset({"T", "mT", "H", "mH"})
_RESHAPING = frozenset(
    {"reshape", "view", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as", "ravel"}
)
_SLICING = frozenset(
    {
        *(
            "cat",
            "concat",
            "concatenate",
            "chunk",
            "split",
            "tensor_split",
            "split_with_sizes",
            "narrow",
            "index_select",
        ),
        *("hsplit", "hstack", "vstack", "repeat", "tile", "repeat_interleave", "unsafe_chunk", "unsafe_split", "glu"),
    }
)
_REDUCING = frozenset({"mean", "sum", "max", "min", "amax", "amin", "median", "nanmean", "nansum", "select", "unbind"})
_FORGETTING = frozenset(
    {
        *("norm", "vector_norm", "linalg_norm", "linalg_vector_norm", "var", "std", "var_mean", "std_mean", "prod"),
        *("logsumexp", "softmax", "log_softmax", "softmin", "gumbel_softmax", "cdist", "pairwise_distance", "argmax"),
        *("cosine_similarity", "cross_entropy", "mse_loss", "l1_loss", "smooth_l1_loss", "nll_loss", "all", "any"),
        *("kl_div", "binary_cross_entropy_with_logits", "binary_cross_entropy", "huber_loss", "argmin", "topk", "sort"),
    }
)
"""What is no preactivation any more, and takes formulas for other ends: norms, losses, shares."""
_PRODUCT_OF_MATRICES = frozenset(
    {"matmul", "rmatmul", "mm", "bmm", "mv", "dot", "addmm", "baddbmm", "einsum", "tensordot", "outer", "inner"}
)
_MAKING = frozenset(
    {
        *("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "randint_like", "bernoulli"),
        *("new_zeros", "new_ones", "new_full", "new_empty", "new_tensor", "one_hot", "new"),
    }
)
"""What only takes shape and type of its input."""
_RECURRENT = frozenset(
    {*("lstm", "gru", "rnn_tanh", "rnn_relu"), *("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")}
)
_OUTSIDE = frozenset({"numpy", "array", "tolist", "data_ptr"})


@dataclass(frozen=True)
class Nonlinearity:
    """One elementwise nonlinearity about to be applied in a forward pass, or found to have been.

    Attributes:
        layer: Where it is applied, for instance ``"layer1.0.relu"``; a place met again gets ``_2``, ``_3``, and so on.
        name: Which one, for instance ``"gelu"``; for a formula without a name of its own that of its last function.
        preactivations: Its input z, of any shape.
        unit_axis: The dimension of ``preactivations`` that counts units, as a non-negative number.
        arguments: What else it was called with: positional arguments after the first, and keywords.
        function: The function as it was called, perhaps one that works in place.
        replaces: Layers met before that turned out to be parts of this one, which is a formula.
    """

    layer: str
    name: str
    preactivations: Tensor
    unit_axis: int
    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    function: Callable[..., Any]
    replaces: tuple[str, ...] = ()

    def apply(self, values: Tensor) -> Tensor:
        """Apply the nonlinearity, elementwise, to other values; in-place spellings overwrite them."""
        result: Tensor = self.function(values, *self.arguments[0], **self.arguments[1])
        return result


@dataclass(frozen=True)
class _Call:
    """What is known of a function by its name.

    Attributes:
        sort: The set above that it belongs to, or "" for any other function.
        name: Its name without the marks of a method or of working in place.
        in_place: Whether it overwrites its first argument.
    """

    sort: str
    name: str
    in_place: bool

    @classmethod
    def of(cls, function: Callable[..., Any]) -> _Call:
        """Look a function up."""
        name = getattr(function, "__name__", "")
        if name == "__get__":
            getter = function.__self__.__name__  # type: ignore[attr-defined]
            sort = "permuting" if getter in _PERMUTING_GETTERS else "same" if getter == "data" else "ignored"
            return cls(sort, getter, False)
        in_place = (name.endswith("_") and not name.endswith("__")) or name == "__setitem__"
        name = name.strip("_")
        return cls(_SORTS.get(name, ""), name, in_place)


_SORTS: dict[str, str] = {
    **dict.fromkeys(_POINTWISE, "pointwise"),
    **dict.fromkeys(_AFFINE, "affine"),
    **dict.fromkeys(_SAME, "same"),
    **dict.fromkeys(_PERMUTING, "permuting"),
    **dict.fromkeys(_RESHAPING, "reshaping"),
    **dict.fromkeys(_SLICING, "slicing"),
    **dict.fromkeys(_REDUCING - {"max", "min"}, "reducing"),
    **dict.fromkeys(_FORGETTING, "forgetting"),
    **dict.fromkeys(_PRODUCT_OF_MATRICES, "matrices"),
    **dict.fromkeys(_RECURRENT, "recurrent"),
    **dict.fromkeys(_MAKING, "making"),
    **dict.fromkeys(_OUTSIDE, "outside"),
    **dict.fromkeys(_LAYERS, "layer"),
    **dict.fromkeys(_NAMED, "named"),
    **{"stack": "stacking", "getitem": "indexing"},
    **dict.fromkeys(
        ("dim", "size", "stride", "numel", "item", "is_floating_point", "storage_offset", "get_device"), "ignored"
    ),
    **dict.fromkeys(("is_contiguous", "nelement", "ndimension", "is_complex", "set_grad_enabled", "len"), "ignored"),
}

_CALLS: dict[Callable[..., Any], _Call] = {}
"""Functions that were looked up."""

_CANONICAL = {"expit": "sigmoid", "special_expit": "sigmoid", "log_sigmoid": "logsigmoid"}


def _identity(values: Tensor) -> Tensor:
    return values


@dataclass(eq=False, slots=True)
class _Trace:
    """What is known of a tensor.

    Attributes:
        kind: ``"seen"``: made by a function that was seen, of no interest. ``"parameter"``: computed from parameters
            alone. ``"units"``: preactivations. ``"active"``: behind a nonlinearity that has been visited.
            ``"formula"``: a nonlinear function of preactivations that may still go on.
        units: What counts units in it; None if that is not known.
        source: The preactivations that it is an elementwise function of. A formula holds on to them.
        version: Of the source, so that a change in place does not go unnoticed.
        function: Which function of the source; elementwise, and so of any part of it.
        layers: Names of the layers visited on the way from the source.
        place: Where the formula ended so far.
        name: Name of the formula's last function.
    """

    kind: str
    units: Units | None = None
    source: weakref.ref[Tensor] | Tensor | None = None
    version: int = 0
    function: Callable[[Tensor], Any] = _identity
    layers: tuple[str, ...] = ()
    place: str = ""
    name: str = ""
    settled: bool = False

    @property
    def is_live(self) -> bool:
        """Whether it comes from preactivations."""
        return self.kind in ("units", "active", "formula")


_SEEN = _Trace("seen")
_PARAMETER = _Trace("parameter")


class Following(TorchFunctionMode):
    """Calls ``visit`` for each nonlinearity of the forward pass of ``model``, and follows what counts units.

    Args:
        model: The network.
        visit: Called once for each application, before it where the nonlinearity has a function of its own.
    """

    def __init__(self, model: nn.Module, visit: Callable[[Nonlinearity], None]) -> None:
        super().__init__()
        self._visit = visit
        # Wrappers of torch.compile are left out, so that a network has the same names before and after.
        self._names: dict[int, str] = {
            id(module): name.replace("_orig_mod.", "") for name, module in model.named_modules()
        }
        self._model = model
        self._layers: set[str] = set()
        self._times: dict[str, int] = {}
        self._traces: dict[int, tuple[weakref.ref[Tensor], _Trace]] = {}
        self._unit_axes: dict[int, tuple[int, int]] = {}
        self._has_formulas = False
        self.unseen: dict[str, None] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        call = _CALLS.get(func)
        if call is None:
            call = _CALLS[func] = _Call.of(func)
        if call.sort == "ignored":
            return func(*args, **(kwargs or {}))
        kwargs = kwargs or {}
        if call.sort == "named":
            return self._named(call, func, args, kwargs, sys._getframe(1))
        if call.sort == "layer":
            return self._layer(call, func, args, kwargs, sys._getframe(1))
        tensors = list(_tensors((args, kwargs)))
        live = [tensor for tensor in tensors if (trace := self._trace(tensor)) is not None and trace.is_live]
        if call.sort == "recurrent":
            return self._recurrent(call, func, args, kwargs, sys._getframe(1))
        if not live:
            result = func(*args, **kwargs)
            of_parameters = bool(tensors) and all(map(self._is_parameter, tensors))
            mixed = call.sort in ("affine", "matrices") and any(map(self._is_parameter, tensors))
            made = _PARAMETER if of_parameters else _Trace("units") if mixed else _SEEN
            for tensor in _tensors(result):
                self._mark(tensor, made)
            return result
        elementwise = call.sort in ("affine", "pointwise")
        if elementwise and call.name in ("max", "min") and not (len(args) > 1 and isinstance(args[1], Tensor)):
            elementwise = "other" in kwargs
        if elementwise:
            return self._elementwise(call, func, args, kwargs, tensors, live, sys._getframe(1))
        if call.sort == "same":
            result = func(*args, **kwargs)
            trace = self._trace(live[0])
            if isinstance(result, Tensor) and trace is not None:
                self._mark(result, trace)
            return result
        if call.sort == "making":
            result = func(*args, **kwargs)
            for tensor in _tensors(result):
                self._mark(tensor, _SEEN)
            return result
        if call.sort == "outside":
            self._unsee("what is computed outside of PyTorch after", func, sys._getframe(1))
        return self._moved(call, func, args, kwargs, tensors, live)

    def given(self, inputs: Tensor) -> None:
        """Note the network's input."""
        self._mark(inputs, _SEEN)

    def finish(self, outputs: object) -> None:
        """Visit the formulas that are the network's output, where they are functions that have a name."""
        for tensor in _tensors(outputs):
            self._settle(tensor, known_only=True)

    def _trace(self, tensor: Tensor) -> _Trace | None:
        entry = self._traces.get(id(tensor))
        return entry[1] if entry is not None and entry[0]() is tensor else None

    def _mark(self, tensor: Tensor, trace: _Trace) -> None:
        # By reference, because the number of a tensor that is gone may become that of another. A formula is dropped
        # with its tensor, since it holds on to another one.
        forget = self._forget if trace.kind == "formula" else None
        self._traces[id(tensor)] = (weakref.ref(tensor, forget), trace)

    def _forget(self, reference: weakref.ref[Tensor]) -> None:
        for key in [key for key, (known, _) in self._traces.items() if known is reference]:
            del self._traces[key]

    def clear(self) -> None:
        """Let go of all tensors."""
        self._traces.clear()

    def _is_parameter(self, tensor: Tensor) -> bool:
        trace = self._trace(tensor)
        return isinstance(tensor, nn.Parameter) if trace is None else trace.kind == "parameter"

    def _source(self, tensor: Tensor) -> tuple[Tensor | None, Callable[[Tensor], Any]]:
        """The preactivations that a live tensor is an elementwise function of, and that function."""
        trace = self._trace(tensor)
        assert trace is not None
        if isinstance(trace.source, Tensor):
            return trace.source, trace.function
        source = trace.source() if trace.source is not None else None
        if source is not None and source._version == trace.version:
            return source, trace.function
        return (tensor if trace.kind == "units" else None), _identity

    # What the functions do

    def _named(
        self, call: _Call, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], frame: FrameType
    ) -> Any:
        """A nonlinearity with a function of its own."""
        z: Tensor = args[0] if args else kwargs["input"]
        rest, named = args[1:], {key: value for key, value in kwargs.items() if key != "input"}
        # A nonlinearity of a parameter (a positive scale, a gate) says nothing of units on data.
        if self._is_parameter(z) or not z.is_floating_point() or not z.numel():
            result = func(*args, **kwargs)
            self._mark(result, _PARAMETER if self._is_parameter(z) else _SEEN)
            return result
        trace = self._trace(z)
        again = partial(_replay, _out_of_place(func, call), (_identity, *rest), named)
        if trace is not None and trace.kind == "formula" and call.name != "glu":
            trace.settled = True
            source, before = self._source(z)
            result = func(*args, **kwargs)
            made = _Trace("formula", trace.units, source, 0, _Composed(before, again), trace.layers)
            made.place, made.name = self._place(func, frame), call.name
            self._mark(result, made)
            return result
        self._settle(z)
        units = (trace.units if trace is not None else None) or self._guessed(z)
        name, function, arguments = _CANONICAL.get(call.name, call.name), func, (rest, named)
        shown = z.detach()
        if name == "glu":
            gate = partial(torch.chunk, chunks=2, dim=rest[0] if rest else named.get("dim", -1))
            shown, function, arguments = gate(shown)[1], torch.sigmoid, ((), {})
        elif name == "hardtanh" and _argument("min_val", 0, rest, named, -1.0) == 0:
            name = "relu6"  # nn.ReLU6 is spelt so
        elif name == "threshold" and _argument("threshold", 0, rest, named) == _argument("value", 1, rest, named) == 0:
            name = "relu"
        if name == "prelu" and z.ndim > 1 and _argument("weight", 0, rest, named).numel() > 1:
            units = Units((1,))
        arranged, axis = units.arranged(shown)
        layer = self._unique(self._place(func, frame))
        source, before = self._source(z) if trace is not None and trace.is_live else (None, _identity)
        self._visit(Nonlinearity(layer, name, arranged, axis, arguments, function))
        result = func(*args, **kwargs)
        made = _Trace("active", units, layers=(*(trace.layers if trace is not None else ()), layer))
        if source is not None and result is not z and call.name != "glu":
            made.source, made.version, made.function = weakref.ref(source), source._version, _Composed(before, again)
        self._mark(result, made)
        return result

    def _layer(
        self, call: _Call, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], frame: FrameType
    ) -> Any:
        """What gives preactivations."""
        x = args[0] if args else kwargs.get("input", kwargs.get("query"))
        if self._has_formulas:
            for tensor in _tensors((args, kwargs)):
                self._settle(tensor)
        if (
            isinstance(x, Tensor)
            and x.is_floating_point()
            and self._trace(x) is None
            and not isinstance(x, nn.Parameter)
            and not any(x is buffer for buffer in self._model.buffers())
        ):
            self._unsee("what computes the input of", func, frame)
        before = self._trace(x) if isinstance(x, Tensor) else None
        result = func(*args, **kwargs)
        output = result[0] if isinstance(result, tuple) else result
        units = None
        if call.name == "layer_norm" and len(args[1] if len(args) > 1 else kwargs["normalized_shape"]) > 1:
            # Over several dimensions it does not say which of them counts units.
            units = before.units if before is not None else None
        elif output.ndim > 1:
            units = one(_LAYERS[call.name], output.ndim)
            if units is not None:
                self._unit_axes[output.ndim] = (units.dims[0], output.shape[units.dims[0]])
        self._mark(output, _Trace("units", units))
        return result

    def _recurrent(
        self, call: _Call, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], frame: FrameType
    ) -> Any:
        """A recurrent layer, whose nonlinearities are inside of one kernel."""
        for tensor in _tensors((args, kwargs)):
            self._settle(tensor)
        self._unsee(f"those inside the recurrent kernel {call.name!r} of", func, frame)
        result = func(*args, **kwargs)
        for tensor in _tensors(result):
            self._mark(tensor, _Trace("active", one(-1, tensor.ndim) if tensor.ndim > 1 else None))
        return result

    def _elementwise(
        self,
        call: _Call,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tensors: list[Tensor],
        live: list[Tensor],
        frame: FrameType,
    ) -> Any:
        """An elementwise function of preactivations, of formulas, or of what is behind nonlinearities."""
        traces = [trace for tensor in live if (trace := self._trace(tensor)) is not None]
        kinds = {trace.kind for trace in traces}
        sources = {id(tensor): self._source(tensor) for tensor in live}
        source = sources[id(live[0])][0]
        shape = max((tensor.shape for tensor in live), key=math.prod)
        units = next((t.units for v, t in zip(live, traces, strict=True) if v.shape == shape and t.units), None)
        constants = {id(tensor): self._constant(tensor, call) for tensor in tensors if id(tensor) not in sources}
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if (
            source is None
            or any(other is not source for other, _ in sources.values())
            or any(constant is None for constant in constants.values())
            or len(given) < len(tensors)
            or "out" in kwargs
            or (call.name == "setitem" and not (isinstance(args[1], Tensor) and args[1].dtype is torch.bool))
        ):
            return self._combined(call, func, args, kwargs, traces, live, units, frame)
        held = source.detach().clone() if call.in_place and args[0] is source else source

        def operand(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return sources[id(value)][1] if id(value) in sources else constants[id(value)]

        function: Callable[[Tensor], Any]
        if call.name == "setitem":
            function = partial(_replay, torch.where, (operand(args[1]), operand(args[2]), operand(args[0])), {})
        else:
            template = tuple(operand(value) for value in args)
            function = partial(
                _replay, _out_of_place(func, call), template, {key: operand(value) for key, value in kwargs.items()}
            )
        layers = tuple(dict.fromkeys(layer for trace in traces for layer in trace.layers))
        linear = call.sort == "affine" and (len(live) == 1 or call.name not in _PRODUCTS)
        one_activation = kinds == {"active"} and len({trace.layers for trace in traces}) == 1
        result = func(*args, **kwargs)
        output = args[0] if call.name == "setitem" else result
        if not isinstance(output, Tensor):
            return result
        if (kinds == {"units"} and linear) or one_activation:
            made = _Trace("active", units, layers=layers) if one_activation else _Trace("units", units)
            if output is not source:
                made.source, made.version, made.function = weakref.ref(source), source._version, function
        else:
            self._has_formulas = True
            for trace in traces:
                trace.settled = True
            made = _Trace("formula", units, held, 0, function, layers, self._place(func, frame), call.name)
        self._mark(output, made)
        return result

    def _combined(
        self,
        call: _Call,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        traces: list[_Trace],
        live: list[Tensor],
        units: Units | None,
        frame: FrameType,
    ) -> Any:
        """An elementwise function of several independent things."""
        # Shares, such as a softmax that is written out, are no nonlinearity of single units.
        shares = call.name in ("div", "divide", "true_divide")
        for tensor in live:
            self._settle(tensor, known_only=shares)
        kinds = [trace.kind for trace in traces]
        result = func(*args, **kwargs)
        output = args[0] if call.name == "setitem" else result
        if not isinstance(output, Tensor) or not output.is_floating_point():
            for tensor in _tensors(output):
                self._mark(tensor, _SEEN)
            return result
        if call.sort == "pointwise" and call.name not in _SELECTIONS:
            if "units" in kinds:
                self._unsee(f"{call.name!r} of several tensors in", func, frame)
            kind = "active"
        elif call.name in _PRODUCTS and kinds.count("units") > 1:
            kind = "active"
        else:
            affine = any(map(self._is_parameter, _tensors((args, kwargs))))
            kind = "units" if "units" in kinds or affine else "active"
        self._mark(output, _Trace(kind, units if output.ndim == max(tensor.ndim for tensor in live) else None))
        return result

    def _constant(self, tensor: Tensor, call: _Call) -> Tensor | None:
        """A tensor of no units as one number, if it is one: of one entry, or of many that are the same."""
        if tensor.numel() == 1:
            return tensor.detach().reshape(())
        if call.sort == "pointwise" and tensor.numel() and not self._is_parameter(tensor):
            first = tensor.detach().flatten()[0]
            if bool((tensor == first).all()):
                return first
        return None

    def _moved(
        self,
        call: _Call,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tensors: list[Tensor],
        live: list[Tensor],
    ) -> Any:
        """A function that is not elementwise: it ends formulas, and mostly keeps units apart."""
        reducing = call.sort == "reducing" or call.name in ("max", "min")
        for tensor in live:
            self._settle(tensor, known_only=reducing or call.sort == "forgetting")
        first = live[0]
        traces = [trace for tensor in live if (trace := self._trace(tensor)) is not None]
        units = traces[0].units
        by_parameter = [self._is_parameter(tensor) for tensor in tensors]
        result = func(*args, **kwargs)
        kind = "units" if any(trace.kind == "units" for trace in traces) else "active"
        if call.sort == "forgetting":
            kind = "seen"
        elif call.sort == "matrices":
            kind = "units" if any(by_parameter) else "seen"
            units = None
            if isinstance(result, Tensor) and len(tensors) > 1 and result.ndim > 1 and call.name != "einsum":
                units = one(-1 if by_parameter[-1] else -2, result.ndim)
        elif reducing:
            dims, keepdim = _dimensions(call.name, args, kwargs)
            units = without(units, first.ndim, dims, keepdim) if dims else None
            kind = kind if units is not None else "seen"
        for output in _tensors(result):
            if not output.is_floating_point():
                self._mark(output, _SEEN)
                continue
            place = units
            if call.sort == "permuting":
                place = permuted(units, first, func, args[1:], kwargs)
            elif call.sort == "reshaping":
                place = reshaped(units, first, output)
            elif call.sort == "indexing":
                place = indexed(units, first, args[1])
            elif call.sort == "stacking":
                dim = _argument("dim", 1, args, kwargs, 0) % output.ndim
                place = stacked(units, dim)
            elif call.sort not in ("reducing", "matrices") and not reducing:
                place = kept(units, first, output)
                same = place is None or place.count(first.shape) == place.count(output.shape)
                if place is not None and not same and (call.sort != "slicing" or place.before * place.after > 1):
                    place = None
            self._mark(output, _Trace(kind, place))
        return result

    # Formulas and places

    def _settle(self, tensor: Tensor, known_only: bool = False) -> None:
        """Visit a formula whose result is taken by something that is not elementwise."""
        trace = self._trace(tensor)
        if trace is None or trace.kind != "formula" or trace.settled or not tensor.is_floating_point():
            return
        source = trace.source
        assert isinstance(source, Tensor)
        try:
            name = name_of(trace.function, source.device)
        except (RuntimeError, TypeError, ValueError):
            name, source = None, source[:0]
            self.unseen[f"{trace.name!r} in {trace.place!r}"] = None
        if name is None and known_only:
            return
        trace.settled = True
        if name == "linear" or not source.numel() or not source.is_floating_point():
            self._mark(tensor, _Trace("units", trace.units))
            return
        self._mark(tensor, _Trace("active", trace.units))
        self._layers.difference_update(trace.layers)
        arranged, axis = (trace.units or self._guessed(source)).arranged(source.detach())
        layer = self._unique(trace.place)
        self._visit(Nonlinearity(layer, name or trace.name, arranged, axis, ((), {}), trace.function, trace.layers))

    def _guessed(self, z: Tensor) -> Units:
        """The dimension of units where it is not known."""
        axis, units = self._unit_axes.get(z.ndim, (0, -1))
        if not (z.ndim > 1 and z.shape[axis] == units):
            axis = 1 if z.ndim > 3 else max(z.ndim - 1, 0)
        return Units((axis,))

    def _unsee(self, what: str, func: Callable[..., Any], frame: FrameType) -> None:
        self.unseen[f"{what} {self._place(func, frame)!r}"] = None

    def _place(self, func: Callable[..., Any], frame: FrameType | None) -> str:
        """Name the place of a call after the innermost of the model's modules that is running.

        The running module is read off the call stack, where it is the ``self`` of its ``forward``: unlike hooks this
        needs nothing to be attached to the model, and it also sees a ``forward`` that is called directly.
        """
        called: str = func.__name__.strip("_")
        while frame is not None:
            module = frame.f_locals.get("self")
            if isinstance(module, nn.Module) and id(module) in self._names:
                name = self._names[id(module)]
                if not name or next(module.children(), None) is not None:
                    name = f"{name}.{called}".lstrip(".")
                return name
            frame = frame.f_back
        return called

    def _unique(self, name: str) -> str:
        """Number a place that is met again."""
        layer = name
        while layer in self._layers:
            self._times[name] = count = self._times.get(name, 1) + 1
            layer = f"{name}_{count}"
        self._layers.add(layer)
        return layer


class _Composed:
    """One function after another."""

    def __init__(self, first: Callable[[Tensor], Any], second: Callable[[Tensor], Any]) -> None:
        self.first, self.second = first, second

    def __call__(self, values: Tensor) -> Any:
        return self.second(self.first(values))


def _replay(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], values: Tensor) -> Any:
    """Call a function again, on other values of the preactivations: operands that are functions are applied to them."""
    return func(
        *(a(values) if callable(a) else a for a in args),
        **{k: v(values) if callable(v) else v for k, v in kwargs.items()},
    )


def _out_of_place(func: Callable[..., Any], call: _Call) -> Callable[..., Any]:
    function: Callable[..., Any] = getattr(torch.Tensor, call.name, func) if call.in_place else func
    return function


def _argument(name: str, position: int, args: Sequence[Any], kwargs: Mapping[str, Any], default: Any = None) -> Any:
    return args[position] if len(args) > position else kwargs.get(name, default)


def _dimensions(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[list[int], bool]:
    """The dimensions that a reduction takes out, none where it takes out all, and whether they stay with size one."""
    dims = _argument("dim", 1, args, kwargs, kwargs.get("axis", 0 if name == "unbind" else None))
    keepdim = False if name in ("select", "unbind") else bool(_argument("keepdim", 2, args, kwargs, False))
    if isinstance(dims, int):
        return [dims], keepdim
    return ([*dims] if isinstance(dims, Sequence) else []), keepdim


def _tensors(values: object) -> Iterable[Tensor]:
    """All tensors among arguments or results, also in lists and mappings."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, tuple | list):
        for value in values:
            yield from _tensors(value)
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from _tensors(value)
