"""Tracing with torch.fx that refuses, by name, what torch.fx would lose or freeze without a word."""

from __future__ import annotations

import copy
import inspect
import linecache
import operator
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

from plasticity_cl.errors import UserError
from plasticity_cl.models.layers import NORM_CLASSES
from plasticity_cl.models.nodes import OPAQUE, module_name, module_stack, nonlinearity, operation, owner, place


def trace(model: nn.Module) -> tuple[fx.Graph, nn.Module]:
    """Trace a network into a graph that is right in training and in eval mode.

    A module whose computation depends on the mode and that holds no nonlinearity (stochastic depth, a hand-made
    dropout) is called as it is. Anything else that depends on the mode is refused. The caller preserves the random
    states.

    Args:
        model: Left as it is.

    Returns:
        The graph, and a copy of the network (see :func:`copy_sharing_parameters`) that holds all it refers to.

    Raises:
        UserError: The network cannot be traced, or its trace would do something else.
    """
    _refuse_what_belongs_to_the_network_itself(model)
    kept: frozenset[str] = frozenset()
    while True:
        in_training, in_eval = (copy_in_mode(model, training) for training in (True, False))
        graph, other = _trace_once(in_training, kept), _trace_once(in_eval, kept)
        if [node.format_node() for node in graph.nodes] == [node.format_node() for node in other.nodes]:
            break
        kept |= _mode_dependent_modules(graph, other, in_training)

    # Tracing may have left its proxies in attributes of the traced copies, so the result is made from a clean one.
    root = copy_sharing_parameters(model)
    for node in graph.find_nodes(op="get_attr"):
        if "." not in node.target and not hasattr(root, node.target):
            constant, again = getattr(in_training, node.target), getattr(in_eval, node.target)
            if isinstance(constant, Tensor) and not constant.is_meta and not torch.equal(constant, again):
                users = ", ".join(map(str, node.users))
                raise UserError(
                    f"{type(model).__name__} draws a random tensor of fixed shape in its forward (for {users}), which "
                    "torch.fx would freeze; draw it with torch.rand_like or torch.randn_like"
                )
            setattr(root, node.target, constant)
    return graph, root


def copy_sharing_parameters(model: nn.Module) -> nn.Module:
    """Copy a network, buffers and mode flags and all, except for its parameters, which stay the same objects.

    Raises:
        UserError: Something in it cannot be copied.
    """
    memo: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
    for module in model.modules():
        # What a hook computes from parameters before each forward (weight_norm) cannot be copied, and need not be.
        memo |= {id(v): v for v in vars(module).values() if isinstance(v, Tensor) and not v.is_leaf}
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise UserError(f"{type(model).__name__} cannot be copied: {first_line(error)}") from error


def copy_in_mode(model: nn.Module, training: bool) -> nn.Module:
    """Copy a network as :func:`copy_sharing_parameters` does, all of it in training or in eval mode."""
    copied = copy_sharing_parameters(model)
    for module in copied.modules():
        module.training = training
    return copied


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its class where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _refuse_what_belongs_to_the_network_itself(model: nn.Module) -> None:
    """Raise for what is not in ``forward``, and so would be missing from what is made of the trace."""
    name = type(model).__name__
    if type(model).train is not nn.Module.train or type(model).eval is not nn.Module.eval:
        raise UserError(f"{name} has a train() or eval() of its own, which the traced network would not have")
    if _has_hooks(model):
        raise UserError(f"{name} has forward hooks, which the traced network would not have; remove them first")
    for parameter_name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise UserError(f"parameter {parameter_name!r} of {name} has no shape yet; run one batch through it first")


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


class _Tracer(fx.Tracer):
    """Traces as fx does, refuses what fx would lose, and remembers in which module tracing failed.

    Args:
        kept: Paths of modules to call as they are.
    """

    # What is computed from buffers belongs to the network; fx would compute it once and freeze the result.
    proxy_buffer_attributes = True

    def __init__(self, kept: frozenset[str] = frozenset()) -> None:
        super().__init__()
        self.kept = kept
        self.failed_in = ""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Call torch's modules as they are (also subclasses that keep torch's forward), and normalisations."""
        forward_is_torchs = (getattr(type(m).forward, "__module__", None) or "").startswith("torch.nn.modules.")
        is_leaf = forward_is_torchs and not isinstance(m, nn.Sequential)
        return is_leaf or isinstance(m, NORM_CLASSES) or module_qualified_name in self.kept

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Refuse modules that cannot be looked into, and note where an error comes from."""
        path = self.path_of_module(m)
        name = f"module {path!r} ({type(m).__name__})"
        if isinstance(m, OPAQUE):
            raise UserError(f"{name} has nonlinearities inside, where no normalisation can be inserted")
        if _has_hooks(m) and not self.is_leaf_module(m, path):
            raise UserError(f"{name} has forward hooks, which the traced network would not have; remove them first")
        try:
            return super().call_module(m, forward, args, kwargs)
        except UserError:
            raise
        except Exception:
            self.failed_in = self.failed_in or name
            raise

    def create_node(
        self,
        kind: str,
        target: str | Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        name: str | None = None,
        type_expr: Any = None,
    ) -> fx.Node:
        """Refuse nodes made without gradients: the graph has no place to say so."""
        if not torch.is_grad_enabled():
            called = target if isinstance(target, str) else target.__name__
            raise UserError(
                f"{module_name(self.module_stack.values(), self.root)}: {called!r} runs without gradients "
                "(torch.no_grad or a torch.autograd.Function), which torch.fx would lose"
            )
        return super().create_node(kind, target, args, kwargs, name, type_expr)


def _trace_once(model: nn.Module, kept: frozenset[str]) -> fx.Graph:
    tracer = _Tracer(kept)
    parameters = inspect.signature(type(model).forward).parameters
    # A proxy in place of an optional input is never None, so "if mask is not None" would go the wrong way.
    fixed = {name: p.default for name, p in parameters.items() if p.default is None or isinstance(p.default, bool)}
    buffers = _buffers_by_path(model)
    try:
        with torch.enable_grad():
            graph = tracer.trace(model, concrete_args=fixed or None)
    except UserError:
        raise
    except Exception as error:
        where = tracer.failed_in or f"the network ({type(model).__name__})"
        raise UserError(f"torch.fx cannot trace {where}{_source_line(error)}: {first_line(error)}") from error
    for path, buffer in _buffers_by_path(model).items():
        if buffer is not buffers.get(path):
            raise UserError(
                f"{type(model).__name__} assigns to its buffer {path!r} in its forward, which torch.fx would lose; "
                "change the buffer in place, for instance with copy_"
            )
    for node in graph.find_nodes(op="placeholder"):
        # fx appends a number to the names of the inputs that it fixes, which would break calls by keyword.
        original, _, number = str(node.target).rpartition("_")
        if original in fixed and number.isdigit() and node.target not in parameters:
            node.target = original
    for node in list(graph.nodes):
        # As written by fx this check cannot be pickled: once restored, it makes every later trace in the process fail.
        if operation(node) == "_assert_is_none":
            value, message = node.args
            with graph.inserting_before(node):
                graph.call_function(torch._assert, (graph.call_function(operator.eq, (value, None)), message))
            graph.erase_node(node)
    return graph


def _buffers_by_path(model: nn.Module) -> dict[str, Any]:
    return {f"{path}.{k}".removeprefix("."): v for path, m in model.named_modules() for k, v in m._buffers.items()}


def _source_line(error: Exception) -> str:
    """Quote the line of the network's own code at which tracing failed."""
    torch_folder = str(Path(torch.__file__).parent)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith(torch_folder) and frame.filename != __file__ and frame.lineno is not None:
            line = linecache.getline(frame.filename, frame.lineno).strip()
            return f" at {line!r} ({Path(frame.filename).name}:{frame.lineno})" if line else ""
    return ""


def _mode_dependent_modules(graph: fx.Graph, other: fx.Graph, root: nn.Module) -> set[str]:
    """Find the modules that compute one thing in training and another in eval mode, and hold no nonlinearity.

    Returns:
        Their paths, one or more.

    Raises:
        UserError: The mode decides about something that is not inside such a module.
    """

    def by_owner(nodes: Iterable[fx.Node]) -> dict[str, list[tuple[str, fx.Node]]]:
        owned: dict[str, list[tuple[str, fx.Node]]] = {}
        for node in nodes:
            constants = fx.node.map_arg((node.args, node.kwargs), lambda _: None)
            owned.setdefault(owner(node), []).append((f"{node.op} {node.target} {constants}", node))
        return owned

    found = set()
    in_training, in_eval = by_owner(graph.nodes), by_owner(other.nodes)
    for path in in_training | in_eval:
        ours, theirs = in_training.get(path, []), in_eval.get(path, [])
        if [text for text, _ in ours] == [text for text, _ in theirs]:
            continue
        inside = [n for n in (*graph.nodes, *other.nodes) if path in [outer for outer, _ in module_stack(n)]]
        if path and not any(nonlinearity(node, root) for node in inside):
            found.add(path)
            continue
        longer, shorter = sorted((ours, theirs), key=len, reverse=True)
        node = next(n for i, (text, n) in enumerate(longer) if i >= len(shorter) or text != shorter[i][0])
        raise UserError(
            f"{place(node, root)}: depends on self.training, which a trace would freeze; "
            "use a module such as nn.Dropout instead"
        )
    if not found:
        raise UserError(
            f"{type(root).__name__}: which results it uses depends on self.training; a trace would freeze it"
        )
    return found
