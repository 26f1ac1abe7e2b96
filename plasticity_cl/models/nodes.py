"""What the nodes of a traced network are and where they stand in it: nonlinearities, names, places for messages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import fx, nn

from plasticity_cl.models.nonlinearities import FUNCTIONS, NONLINEARITIES

OPAQUE: tuple[type[nn.Module], ...] = (
    nn.RNNBase,
    nn.RNNCellBase,
    nn.Transformer,
    nn.TransformerEncoder,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoder,
    nn.TransformerDecoderLayer,
    torch.jit.ScriptModule,
)
"""Modules with nonlinearities inside that torch.fx does not look into."""

ARITHMETIC = frozenset({"add", "sub", "mul", "multiply", "div", "truediv", "neg"})


def operation(node: fx.Node) -> str:
    """Name the function or method that a node calls, without the ``_`` of one that works in place; "" for others."""
    name = _called(node)
    return name if name.startswith("__") else name.removesuffix("_")


def module_of(node: fx.Node, root: nn.Module) -> nn.Module | None:
    """Return the module that a node calls, if any."""
    return root.get_submodule(str(node.target)) if node.op == "call_module" else None


def input_of(node: fx.Node) -> fx.Node | None:
    """Return what a node acts on: its first argument, if that is the result of another node."""
    source = node.args[0] if node.args else node.kwargs.get("input")
    return source if isinstance(source, fx.Node) else None


def nonlinearity(node: fx.Node, root: nn.Module) -> type[nn.Module] | None:
    """Return the entry of ``NONLINEARITIES`` that a node calls, if any."""
    if node.op == "call_module":
        module = module_of(node, root)
        return next((kind for kind in NONLINEARITIES if isinstance(module, kind)), None)
    return FUNCTIONS.get(operation(node))


def works_in_place(node: fx.Node, root: nn.Module) -> bool:
    """Say whether a node overwrites its input."""
    if node.op == "call_module":
        return getattr(module_of(node, root), "inplace", False) is True
    name = _called(node)
    return (name.endswith("_") and not name.endswith("__")) or node.kwargs.get("inplace") is True


def _called(node: fx.Node) -> str:
    if node.op not in ("call_function", "call_method"):
        return ""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def module_stack(node: fx.Node) -> list[tuple[str, Any]]:
    """Return path and class of the modules in whose forward a node was made, outermost first, without the network."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return stack[:-1] if node.op == "call_module" else stack


def owner(node: fx.Node) -> str:
    """Return the path of the module in whose forward a node was made, "" for the network itself."""
    stack = module_stack(node)
    return stack[-1][0] if stack else ""


def module_name(stack: Iterable[tuple[str, Any]], root: nn.Module) -> str:
    """Name the innermost module of a stack for a message."""
    *_, (path, kind) = [("", type(root)), *stack]
    return f"module {path!r} ({kind.__name__})" if path else f"the network ({kind.__name__})"


def place(node: fx.Node, root: nn.Module) -> str:
    """Say for a message where in the network a node is and what it calls."""
    module = module_of(node, root)
    if module is not None:
        return f"module {node.target!r} ({type(module).__name__})"
    return f"{module_name(module_stack(node), root)}, operation {operation(node) or node.op!r}"
