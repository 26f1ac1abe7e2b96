"""Surgery: a normalisation before every nonlinearity of any network that torch.fx can trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.graph_module import reduce_graph_module

from plasticity_cl.errors import UserError, unknown_name
from plasticity_cl.models.channels import find_layouts, settle_layout
from plasticity_cl.models.layers import NORMALIZATIONS, make_normalization, normalization_kinds
from plasticity_cl.models.nodes import (
    ARITHMETIC,
    input_of,
    module_of,
    nonlinearity,
    operation,
    owner,
    place,
    works_in_place,
)
from plasticity_cl.models.nonlinearities import SIGMOIDS
from plasticity_cl.models.tracing import copy_in_mode, first_line, trace
from plasticity_cl.seeding import preserve_rng

_VIEWS = frozenset(
    {"view", "view_as", "reshape", "flatten", "unflatten", "transpose", "permute", "squeeze", "unsqueeze", "getitem"}
    | {"expand", "expand_as", "contiguous", "to", "float", "detach", "chunk", "split", "unbind", "dropout"}
)
_VIEW_MODULES = (nn.Identity, nn.Flatten, nn.Unflatten, nn.modules.dropout._DropoutNd)
_FUNCTIONAL_NORMS = {"layer_norm": "layer", "batch_norm": "batch", "rms_norm": "rms", "group_norm": "group"}


def insert_normalization(model: nn.Module, kind: str = "layer", example_input: Tensor | None = None) -> nn.Module:
    """Put a normalisation directly before every nonlinearity of a network, with an identity affine.

    The network is traced with torch.fx, so residual connections, functional and in-place activations and modules that
    are called several times are all seen; each call gets a normalisation of its own. A nonlinearity whose input already
    comes directly from a normalisation of the same kind is left alone, so that a second application inserts nothing.

    What counts as a nonlinearity is the table ``NONLINEARITIES``, on anything computed from the network's input. A
    sigmoid counts unless it is a gate (it is multiplied with something) or the output of the network. Formulas written
    out by hand are not recognised.

    The number of channels, and whether they are in dimension 1 (maps) or last (features), is read from the layer that
    produced the nonlinearity's input, through operations that keep it. Where that fails, ``example_input`` settles it:
    then a tensor of 2 or 3 dimensions counts as features in the last one, of 4 or 5 dimensions as maps. Which layer
    each kind is on features and on maps is said in :func:`plasticity_cl.models.make_normalization`.

    The result shares the original's parameters; everything else, buffers and mode flags included, is a copy, and the
    original is left as it was. (Moving the result to another device moves the shared parameters, but not the buffers
    of the original.) All names of modules, parameters and buffers stay; the inserted ones are called
    ``<kind>_norm_before.<call>`` and are on the device and in the dtype of the network's parameters. Attributes other
    than these, and methods other than ``forward``, do not come along. Optional inputs whose default is ``None`` or a
    bool are fixed at that default.

    Args:
        model: A network that torch.fx can trace.
        kind: One of ``NORMALIZATIONS``.
        example_input: One batch of one sample or more. With it the trace is also checked, in eval mode, to compute what
            the network does. Random number generators, modes and buffers stay as they are.

    Returns:
        The network with normalisation, a ``torch.fx.GraphModule``.

    Raises:
        UserError: It cannot be done, and which module and operation is in the way: control flow that depends on data,
            behaviour that depends on ``self.training`` outside of modules such as ``nn.Dropout``, a module with
            nonlinearities inside (``nn.LSTM``), an unknown number of channels, no nonlinearity at all, and others.
    """
    if kind not in NORMALIZATIONS:
        raise unknown_name("normalization", kind, NORMALIZATIONS)
    with preserve_rng():
        graph, root = trace(model)
        shapes = {} if example_input is None else _observe_shapes(model, graph, root, example_input)
    sites = _find_sites(graph, root)
    if not sites:
        raise UserError(f"no nonlinearity found in {type(model).__name__}, so there is nothing to normalise before")

    layouts = find_layouts(graph, root)
    positions = {node: position for position, node in enumerate(graph.nodes)}
    like = next((p for p in model.parameters() if p.is_floating_point()), None)
    for node in sites:
        source = input_of(node)
        assert source is not None, "a site has an input"
        if _is_normalized(kind, source, node, root, positions):
            continue
        layout = settle_layout(node, root, layouts[source], shapes.get(source))
        try:
            norm = make_normalization(kind, layout.channels, layout.spatial_dims)
        except UserError as error:
            raise UserError(f"{place(node, root)}: {error}") from None
        if like is not None:
            norm.to(device=like.device, dtype=like.dtype)
        if works_in_place(node, root):
            _let_later_users_read_the_result(node, source, root, positions)
        _insert_before(node, source, norm, _free_name(f"{kind}_norm_before", node, root), graph, root)
    graph.lint()
    return NormalizedModule(root, graph)


class NormalizedModule(fx.GraphModule):
    """A traced network that keeps the tree of modules, parameters and buffers of the network it came from.

    ``fx.GraphModule`` alone drops what the graph does not mention and reorders the rest. Here every name of the
    original stays, in the original's order, so that its state dict loads and parameters can be paired one by one.
    The submodules that were traced through are only places for their parameters: calling one of them by itself runs it
    without normalisation.

    Args:
        root: The tree of modules, inserted ones included.
        graph: What to compute.
        class_name: As in ``fx.GraphModule``.
    """

    def __init__(self, root: nn.Module, graph: fx.Graph, class_name: str = "NormalizedModule") -> None:
        super().__init__(root, graph, class_name)
        # Tensors made while tracing follow the network between devices but are no part of its state.
        made_while_tracing = self._buffers.keys() - root._buffers.keys()
        self._non_persistent_buffers_set |= root._non_persistent_buffers_set | made_while_tracing
        self._modules = dict(root._modules)
        self._parameters = dict(root._parameters)
        self._buffers = {**root._buffers, **self._buffers}

    def _deepcopy_init(self) -> Callable[..., None]:
        return NormalizedModule.__init__

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, super().__reduce__()[1]


def _restore(body: dict[str, Any], imports: str) -> NormalizedModule:
    """Undo ``NormalizedModule.__reduce__``: fx traces the generated code again, here with the whole tree put back."""
    with torch.enable_grad():
        graph = reduce_graph_module(body, imports).graph
    assert isinstance(graph, fx.Graph)
    root = nn.Module()
    root.__dict__.update(body)
    return NormalizedModule(root, graph)


class _ShapeObserver(fx.Interpreter):
    """Runs a graph and notes the shape of each node's output, where that is a tensor."""

    def __init__(self, module: nn.Module, graph: fx.Graph) -> None:
        super().__init__(module, graph=graph)
        self.shapes: dict[fx.Node, torch.Size] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.shapes[n] = result.shape
        return result


def _observe_shapes(
    model: nn.Module, graph: fx.Graph, root: nn.Module, example_input: Tensor
) -> dict[fx.Node, torch.Size]:
    """Run one batch in eval mode on copies, and see that the trace computes what the network does.

    Returns:
        The shape of each node's output, where that is a tensor.
    """
    original = copy_in_mode(model, training=False)
    observer = _ShapeObserver(copy_in_mode(root, training=False), graph)
    state = torch.get_rng_state()
    try:
        with torch.no_grad():
            expected = original(example_input.clone())
            torch.set_rng_state(state)
            got = observer.run(example_input.clone())
    except Exception as error:
        raise UserError(
            f"{type(model).__name__} does not run on example_input of shape {tuple(example_input.shape)}: "
            f"{first_line(error)}"
        ) from error
    try:
        torch.testing.assert_close(got, expected, equal_nan=True)
    except AssertionError as error:
        raise UserError(
            f"{type(model).__name__} computes something else than its trace: {first_line(error)}"
        ) from error
    return observer.shapes


def _find_sites(graph: fx.Graph, root: nn.Module) -> list[fx.Node]:
    """List the nonlinearities that act on something computed from the network's input, in order of execution."""
    computed_from_input: set[fx.Node] = set()
    sites = []
    for node in graph.nodes:
        if node.op == "placeholder" or computed_from_input.intersection(node.all_input_nodes):
            computed_from_input.add(node)
        kind = nonlinearity(node, root)
        if kind is None or input_of(node) not in computed_from_input:
            continue
        if not (issubclass(kind, SIGMOIDS) and _is_gate_or_output(node, root)):
            sites.append(node)
    return sites


def _is_gate_or_output(sigmoid: fx.Node, root: nn.Module) -> bool:
    """Say whether a sigmoid is multiplied with something or is the network's output.

    Raises:
        UserError: It is multiplied with its own input: that is SiLU, and the normalisation belongs before both.
    """
    gated = [user for user in sigmoid.users if operation(user) in ("mul", "multiply")]
    ancestors: set[fx.Node] = set()
    pending = [input_of(sigmoid)]
    while pending:
        node = pending.pop()
        if node is not None and node not in ancestors:
            ancestors.add(node)
            pending += node.all_input_nodes if operation(node) in ARITHMETIC else []
    if any(ancestors.intersection(user.all_input_nodes) for user in gated):
        raise UserError(f"{place(sigmoid, root)}: x * sigmoid(x) is SiLU written by hand; call F.silu instead")
    return bool(gated) or any(user.op == "output" for user in sigmoid.users)


def _is_normalized(kind: str, source: fx.Node, node: fx.Node, root: nn.Module, positions: dict[fx.Node, int]) -> bool:
    """Say whether what a nonlinearity gets is, unchanged, the output of a normalisation of that kind."""
    for user in source.users:
        if positions.get(user, -1) < positions[node] and works_in_place(user, root):
            return False
    module = module_of(source, root)
    if isinstance(module, nn.Identity):
        before = input_of(source)
        return before is not None and _is_normalized(kind, before, node, root, positions)
    if module is not None:
        return kind in normalization_kinds(module)
    return _FUNCTIONAL_NORMS.get(operation(source)) == kind


def _let_later_users_read_the_result(
    node: fx.Node, source: fx.Node, root: nn.Module, positions: dict[fx.Node, int]
) -> None:
    """Give an in-place nonlinearity's result to those who read its input after it, as they did in the original.

    After the surgery it overwrites the output of the normalisation instead of its former input.

    Raises:
        UserError: They read it through another view.
    """

    def later_users(of: fx.Node) -> list[fx.Node]:
        return [user for user in of.users if positions.get(user, -1) > positions[node]]

    for user in later_users(source):
        user.replace_input_with(source, node)
    aliases: set[fx.Node] = set()
    pending = [source]
    while pending:
        alias = pending.pop()
        aliases.add(alias)
        before = input_of(alias)
        near = [user for user in alias.users if _is_view(user, root)]
        near += [before] if before is not None and _is_view(alias, root) else []
        pending += [view for view in near if view not in aliases and positions.get(view, -1) < positions[node]]
    for alias in aliases:
        for user in later_users(alias):
            raise UserError(
                f"{place(node, root)}: overwrites a tensor that {str(user)!r} reads later through another view; make "
                "the nonlinearity work out of place"
            )


def _is_view(node: fx.Node, root: nn.Module) -> bool:
    return operation(node) in _VIEWS or isinstance(module_of(node, root), _VIEW_MODULES)


def _free_name(container: str, node: fx.Node, root: nn.Module) -> str:
    """Name the normalisation before a call after the module called, or after module and operation; number repeats."""
    call = str(node.target) if node.op == "call_module" else ".".join(filter(None, (owner(node), operation(node))))
    taken = {name for name, _ in root.named_modules()}
    name = base = f"{container}.{call.replace('.', '_')}"
    repeats = 0
    while name in taken:
        repeats += 1
        name = f"{base}_{repeats}"
    return name


def _insert_before(
    node: fx.Node, source: fx.Node, norm: nn.Module, name: str, graph: fx.Graph, root: nn.Module
) -> None:
    norm.training = root.training
    container, _, child = name.partition(".")
    if not hasattr(root, container):
        root.add_module(container, nn.Module())
        root.get_submodule(container).training = root.training
    root.get_submodule(container).add_module(child, norm)
    with graph.inserting_before(node):
        normalized = graph.create_node("call_module", name, (source,))
    if node.args:
        node.update_arg(0, normalized)
    else:
        node.update_kwarg("input", normalized)
