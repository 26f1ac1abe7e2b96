"""Where the channels of each tensor in a traced network are, and how many: read from the layers that produce it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from plasticity_cl.errors import UserError
from plasticity_cl.models.layers import NORM_CLASSES
from plasticity_cl.models.nodes import ARITHMETIC, input_of, module_of, operation, place
from plasticity_cl.models.nonlinearities import FUNCTIONS, NONLINEARITIES

_KEEPS_CHANNELS = (
    (FUNCTIONS.keys() - {"glu"})
    | {"layer_norm", "batch_norm", "group_norm", "rms_norm", "instance_norm", "normalize", "softmax", "log_softmax"}
    | {"dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout", "dropout1d", "dropout2d", "dropout3d"}
    | {"contiguous", "clone", "detach", "to", "type", "type_as", "float", "double", "half", "bfloat16"}
    | {"abs", "clamp", "pow", "square", "sqrt", "rsqrt", "exp", "masked_fill"}
)
_KEEPS_MAP_CHANNELS = frozenset(
    {f"{kind}_pool{d}d" for kind in ("max", "avg", "adaptive_max", "adaptive_avg", "lp") for d in (1, 2, 3)}
    | {"interpolate", "upsample"}
)
_SHAPE_KEEPING_MODULES = (
    *(module for module in NONLINEARITIES if module is not nn.GLU),
    *NORM_CLASSES,
    nn.modules.instancenorm._InstanceNorm,
    nn.modules.dropout._DropoutNd,
    nn.LocalResponseNorm,
    nn.Identity,
    nn.Softmax,
    nn.LogSoftmax,
)
_POOLING_MODULES = (
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._LPPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.Upsample,
)


@dataclass(frozen=True)
class Layout:
    """Where channels are: with ``spatial_dims`` 0 the tensor is [..., channels], with 1 to 3 [N, channels, *space]."""

    channels: int
    spatial_dims: int


def find_layouts(graph: fx.Graph, root: nn.Module) -> dict[fx.Node, Layout | None]:
    """Read the layout of every node's output from the graph; ``None`` where it does not show.

    Args:
        graph: A traced network.
        root: The tree of modules that the graph refers to.
    """
    layouts: dict[fx.Node, Layout | None] = {}
    for node in graph.nodes:
        layouts[node] = _layout_of(node, root, layouts)
    return layouts


def settle_layout(node: fx.Node, root: nn.Module, layout: Layout | None, shape: torch.Size | None) -> Layout:
    """Decide between what the graph says of a nonlinearity's input and what was seen.

    Args:
        node: The nonlinearity, for messages.
        root: The tree of modules that the graph refers to.
        layout: What the graph says, if anything.
        shape: What was seen, if anything. Without a layout, 2 or 3 dimensions are features, 4 or 5 are maps.

    Raises:
        UserError: Neither is known, or the two contradict each other.
    """
    if shape is None:
        if layout is None:
            raise UserError(f"{place(node, root)}: the number of channels of its input is unknown; pass example_input")
        return layout
    if layout is None:
        if len(shape) in (2, 3):
            return Layout(shape[-1], 0)
        if len(shape) in (4, 5):
            return Layout(shape[1], len(shape) - 2)
        raise UserError(f"{place(node, root)}: no channel dimension in its input of shape {tuple(shape)}")
    if layout.spatial_dims == 0:
        fits = len(shape) >= 2 and shape[-1] == layout.channels
    else:
        fits = len(shape) == 2 + layout.spatial_dims and shape[1] == layout.channels
    if not fits:
        wanted = "[..., channels]" if layout.spatial_dims == 0 else f"[N, channels] and {layout.spatial_dims} of space"
        raise UserError(
            f"{place(node, root)}: its input has shape {tuple(shape)}, but {wanted} with {layout.channels} channels "
            "was expected; is example_input a batch?"
        )
    return layout


def _layout_of(node: fx.Node, root: nn.Module, layouts: dict[fx.Node, Layout | None]) -> Layout | None:
    source = input_of(node)
    before = None if source is None else layouts[source]
    module = module_of(node, root)
    if module is not None:
        return _layout_of_module(module, before)
    name = operation(node)
    if name in ARITHMETIC:
        return _broadcast([layouts[operand] for operand in node.all_input_nodes])
    if name in _KEEPS_CHANNELS:
        return before
    if name in _KEEPS_MAP_CHANNELS:
        return before if before is not None and before.spatial_dims > 0 else None
    if name == "getitem" and source is not None and isinstance(module_of(source, root), nn.MultiheadAttention):
        return before if node.args[1] == 0 else None
    return _layout_of_product(node, root)


def _layout_of_product(node: fx.Node, root: nn.Module) -> Layout | None:
    """Read the layout of a product with a parameter that the network holds: F.linear, F.conv2d, x @ weight."""
    weight = node.kwargs.get("weight", node.args[1] if len(node.args) > 1 else None)
    if not isinstance(weight, fx.Node) or weight.op != "get_attr":
        return None
    owner, _, attribute = str(weight.target).rpartition(".")
    value = getattr(root.get_submodule(owner), attribute)
    if not isinstance(value, Tensor):
        return None
    name = operation(node)
    if name == "linear" and value.ndim == 2:
        return Layout(value.size(0), 0)
    if name == "matmul" and value.ndim == 2:
        return Layout(value.size(1), 0)
    return Layout(value.size(0), value.ndim - 2) if name in ("conv1d", "conv2d", "conv3d") else None


def _layout_of_module(module: nn.Module, before: Layout | None) -> Layout | None:
    if isinstance(module, nn.Linear | nn.Bilinear):
        return Layout(module.out_features, 0)
    if isinstance(module, nn.modules.conv._ConvNd):
        return Layout(module.out_channels, len(module.kernel_size))
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return Layout(module.embedding_dim, 0)
    if isinstance(module, nn.MultiheadAttention):
        return Layout(module.embed_dim, 0)
    if isinstance(module, _POOLING_MODULES):
        return before if before is not None and before.spatial_dims > 0 else None
    return before or _layout_of_norm(module) if isinstance(module, _SHAPE_KEEPING_MODULES) else None


def _layout_of_norm(module: nn.Module) -> Layout | None:
    """Read the layout that a normalisation implies; BatchNorm1d and GroupNorm take more than one."""
    if type(module) in (nn.LayerNorm, nn.RMSNorm):
        shape = module.normalized_shape
        return Layout(shape[0], 0) if isinstance(shape, tuple) and len(shape) == 1 else None
    if isinstance(module, nn.InstanceNorm1d):
        return Layout(module.num_features, 1)
    if isinstance(module, nn.BatchNorm2d | nn.InstanceNorm2d):
        return Layout(module.num_features, 2)
    if isinstance(module, nn.BatchNorm3d | nn.InstanceNorm3d):
        return Layout(module.num_features, 3)
    return None


def _broadcast(operands: list[Layout | None]) -> Layout | None:
    """Find the layout of operands broadcast against each other; one of unknown layout can only widen 1 channel."""
    known = {layout for layout in operands if layout is not None}
    if len({layout.spatial_dims for layout in known}) != 1:
        return None
    wide = {layout for layout in known if layout.channels > 1}
    if wide:
        return wide.pop() if len(wide) == 1 else None
    return known.pop() if None not in operands else None
