"""Record the layer calls of one forward pass, and turn backward passes without weight gradients into a kernel.

Every call of a torch function is seen by a :class:`torch.overrides.TorchFunctionMode`, so it does not matter whether
a layer is a module, is called functionally, is called twice or sits inside PyTorch's attention. A recorded call runs on
detached parameters: a parameter that is still in the autograd graph after the forward pass is used in a way without a
rule, and is left to the caller. Each parameter is thus covered exactly once, or known not to be.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import CheckpointError

from plasticity_cl.diagnostics.ntk_layers import (
    ConvCall,
    ElementwiseCall,
    Group,
    LayerCall,
    Ledger,
    LinearCall,
    LookupCall,
    Slot,
    Window,
)
from plasticity_cl.errors import UserError
from plasticity_cl.seeding import generator

_ATTENTION = inspect.signature(F.multi_head_attention_forward)
# Room for what is the same in every backward pass: Gram matrices of inputs, patches of images.
_KEPT = 128 * 2**20
NOT_FINITE = "the network's gradients are not finite, so its tangent kernel is undefined: look at its weights"
_CHECKPOINTED = "activation checkpointing hides layers from the tangent kernel; switch it off for this call"


class _NoRuleError(Exception):
    """This call cannot be recorded; it runs as it is, and its parameters stay in the graph."""


class Recorder(TorchFunctionMode):
    """Records calls inside its ``with`` block; afterwards :meth:`kernel` computes the share of what was recorded.

    Args:
        trainable: The trainable parameters by name.
        samples: Number n of samples in the batch.
    """

    def __init__(self, trainable: Mapping[str, Tensor], samples: int) -> None:
        super().__init__()
        self.samples = samples
        self._names = {id(parameter): name for name, parameter in trainable.items()}
        self._slots: dict[tuple[int, int], Slot] = {}
        self._calls: list[LayerCall] = []
        self._edges: list[Any] = []
        self._leaves: list[Tensor] = []
        self._groups: dict[LayerCall, Group] = {}
        self._total: Tensor | None = None
        self._joint = False
        self._probing = False
        self._direction = 0
        self._rules: dict[Any, Callable[..., Any]] = {
            F.linear: self._linear,
            F.conv1d: self._conv,
            F.conv2d: self._conv,
            F.embedding: self._embedding,
            F.layer_norm: self._layer_norm,
            F.rms_norm: self._rms_norm,
            F.group_norm: self._group_norm,
            F.batch_norm: self._batch_norm,
            F.multi_head_attention_forward: self._attention,
            torch.add: self._add,
            torch.Tensor.add: self._add,
            torch.mul: self._multiply,
            torch.Tensor.mul: self._multiply,
            torch.Tensor.expand: self._expand,
        }

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Record the call if there is a rule for it and the network differentiates through it."""
        kwargs = kwargs or {}
        rule = self._rules.get(func)
        if rule is not None and torch.is_grad_enabled():
            try:
                return rule(*args, **kwargs)
            except _NoRuleError:
                pass
        return func(*args, **kwargs)

    def kernel(self, outputs: Tensor, directions: Tensor, joint: bool) -> tuple[Tensor, list[str]]:
        """Compute the recorded parameters' share of the kernel.

        Args:
            outputs: The network's outputs, ``[n, ...]`` with C entries a sample.
            directions: ``[m, n, C]``: row i of direction c is what the gradient of sample i is taken of.
            joint: Whether products between different directions are wanted.

        Returns:
            The share in float64, ``[m, n, m, n]`` if joint, else the sum over directions ``[1, n, 1, n]``, of which the
            lower triangle is filled; and the names of the trainable parameters that are not in it.
        """
        m, n = directions.shape[0], self.samples
        rows = m if joint else 1
        self._total = torch.zeros(rows, n, rows, n, dtype=torch.float64, device=outputs.device)
        self._joint = joint
        if not outputs.requires_grad:
            return self._total, []
        outputs = outputs.view_as(outputs)
        in_graph, only_ours = self._leaves_in_graph(outputs)
        # Behind every recorded output lies one of our leaves, unless other leaves are about.
        edges = [torch.autograd.graph.get_gradient_edge(leaf) for leaf in self._leaves] if only_ours else self._edges

        def backward(direction: Tensor, last: bool = False) -> None:
            v = direction.reshape(outputs.shape)
            try:
                torch.autograd.grad(outputs, edges, v, retain_graph=not last, allow_unused=True)
            except CheckpointError as error:
                raise UserError(_CHECKPOINTED) from error

        if self._calls:
            self._find_samples(backward, directions)
        uncovered = self._form_groups(in_graph, 1 if joint else m, rows)
        if not self._groups:
            return self._total, uncovered
        for index, direction in enumerate(directions):
            self._direction = index if joint else 0
            backward(direction, last=index == m - 1)
            if not joint or index == m - 1:
                # What is left: several calls of which some are not reached from this output, or joint products.
                for group in dict.fromkeys(self._groups.values()):
                    if group.arrived:
                        group.add_to(self._total)
        return self._total, uncovered

    def activations(self) -> int:
        """Count the entries of one sample's recorded outputs."""
        return sum(math.prod(call.shape) for call in self._calls) // self.samples

    def clear(self) -> None:
        """Let go of the graph and the activations, which hooks tie to this object in a cycle."""
        for held in (self._calls, self._edges, self._leaves):
            held.clear()
        self._groups.clear()
        self._total = None

    def _receive(self, call: LayerCall, gradient: Tensor) -> None:
        """Take the gradient that reaches the output of a call; a layer's share is added as soon as it is complete."""
        if self._total is None:
            return
        if self._probing:
            call.norms.append(torch.linalg.vector_norm(gradient.reshape(math.prod(call.lead), -1), dim=1))
            return
        group = self._groups.get(call)
        if group is None:
            return
        call.received[self._direction] = gradient
        group.arrived += 1
        if not self._joint and group.arrived == len(group.calls):
            group.add_to(self._total)

    def _leaves_in_graph(self, outputs: Tensor) -> tuple[set[int], bool]:
        """Find trainable parameters that the graph still reaches, and whether all else it reaches is ours."""
        ours = {id(leaf) for leaf in self._leaves}
        found: set[int] = set()
        only_ours = True
        seen = {outputs.grad_fn}
        waiting: list[Any] = [outputs.grad_fn]
        while waiting:
            node = waiting.pop()
            if node.name() == "CheckpointFunctionBackward":
                raise UserError(_CHECKPOINTED)
            variable = getattr(node, "variable", None)
            if variable is not None and id(variable) not in ours:
                only_ours = False
                if id(variable) in self._names:
                    found.add(id(variable))
            for following, _ in node.next_functions:
                if following is not None and following not in seen:
                    seen.add(following)
                    waiting.append(following)
        return found, only_ours

    def _find_samples(self, backward: Callable[[Tensor], None], directions: Tensor) -> None:
        """Find which positions of each recorded call belong to which sample, and check that none belongs to two.

        A layer may hold the samples in any dimension, or folded into one; and a network may mix its samples. So one
        backward pass takes the gradient of a random direction, and a second one scales each sample's share by a power
        of two of its own: the gradient at a position must be scaled by the power of its sample, exactly.
        """
        n, device = self.samples, directions.device
        rng = generator("samples of the tangent kernel", n)
        direction = torch.randn(directions.shape[1:], generator=rng).to(directions)
        scales = 2.0 ** (torch.randperm(n, generator=rng) % 8).to(device, directions.dtype)
        self._probing = True
        backward(direction)
        backward(direction * scales[:, None])
        self._probing = False
        for call in self._calls:
            for inner in call.layouts(n):
                if len(call.norms) == 2:
                    before, after = (norms.reshape(-1, n, inner) for norms in call.norms)
                    if not after.isfinite().all():
                        raise UserError(NOT_FINITE)
                    if (after - before * scales[:, None]).abs().max() > 1e-5 * after.max():
                        continue
                call.samples, call.inner = n, inner
                break
            call.norms.clear()

    def _form_groups(self, in_graph: set[int], passes: int, rows: int) -> list[str]:
        """Join the calls that share parameters, and leave out those with a parameter that they do not cover alone.

        Returns:
            Names of the parameters left out.
        """
        members: dict[Slot, list[LayerCall]] = {}
        for call in self._calls:
            call.received = [None] * rows
            joined: list[LayerCall] = []
            for other in [members[slot] for slot in call.slots if slot in members]:
                joined += [known for known in other if known not in joined]
            joined.append(call)
            for known in joined:
                members.update(dict.fromkeys(known.slots, joined))
        groups = list({id(calls): calls for calls in members.values()}.values())
        uncovered = set(in_graph)
        waiting = True
        while waiting:
            waiting = False
            for calls in groups:
                parameters = {id(slot.parameter) for call in calls for slot in call.slots}
                sound = all(call.samples and not call.input_changed for call in calls)
                if (not sound or parameters & uncovered) and not parameters <= uncovered:
                    uncovered |= parameters
                    waiting = True
        ledger = Ledger(_KEPT)
        for calls in groups:
            if not any(id(slot.parameter) in uncovered for call in calls for slot in call.slots):
                group = Group(calls, passes, ledger)
                self._groups.update(dict.fromkeys(calls, group))
        return [name for key, name in self._names.items() if key in uncovered]

    def _slot(self, tensor: Tensor | None, start: int = 0, rows: int | None = None) -> Slot | None:
        """Give the slot of a trainable parameter, or ``None`` for what is not trained."""
        if tensor is None or not tensor.requires_grad:
            return None
        if id(tensor) not in self._names:
            raise _NoRuleError  # computed from parameters, such as a normalised weight
        if rows is None:
            rows = tensor.shape[0] if tensor.dim() else 1
        return self._slots.setdefault((id(tensor), start), Slot(tensor, start, rows))

    def _slots_of(self, weight: Tensor | None, bias: Tensor | None) -> tuple[Slot | None, Slot | None]:
        """Give the slots of a layer that has at least one trainable parameter."""
        slots = self._slot(weight), self._slot(bias)
        if slots == (None, None):
            raise _NoRuleError
        return slots

    def _record(self, call: LayerCall, output: Tensor) -> Tensor:
        """Have the call receive the gradient of its output, and give the output to the network.

        The hook sees the gradient of the value before any in-place change, but a leaf of the graph may not be changed
        in place at all; so of the outputs that have nothing trainable before them the network gets a copy.
        """
        if next(call.layouts(self.samples), None) is None:
            raise _NoRuleError
        self._calls.append(call)
        leaf = not output.requires_grad
        if leaf:
            output.requires_grad_()
            self._leaves.append(output)
        output.register_hook(partial(self._receive, call))  # type: ignore[no-untyped-call]
        self._edges.append(torch.autograd.graph.get_gradient_edge(output))
        return output.clone() if leaf else output

    def _project(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, slots: tuple[Slot | None, Slot | None]
    ) -> Tensor:
        output = F.linear(x, weight.detach(), _detached(bias))
        if slots == (None, None):
            return output
        return self._record(LinearCall(x, output, x.dim() - 1, *slots), output)

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return self._project(input, weight, bias, self._slots_of(weight, bias))

    def _conv(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | Sequence[int] = 1,
        padding: int | str | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
    ) -> Tensor:
        slots = self._slots_of(weight, bias)
        if input.dim() != weight.dim():
            raise _NoRuleError  # without a batch dimension
        convolve: Callable[..., Tensor] = F.conv1d if weight.dim() == 3 else F.conv2d
        output = convolve(input, weight.detach(), _detached(bias), stride, padding, dilation, groups)
        window = Window.of(weight.shape[2:], stride, padding, dilation)
        return self._record(ConvCall(input, output, *slots, window, groups), output)

    def _embedding(
        self,
        input: Tensor,
        weight: Tensor,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        *options: Any,
        **more: Any,
    ) -> Tensor:
        slot = self._slot(weight)
        # With max_norm the look-up would rescale the parameter itself.
        table = weight.detach() if max_norm is None else weight.detach().clone()
        output = F.embedding(input, table, padding_idx, max_norm, *options, **more)
        if slot is None:
            return output
        if padding_idx is not None and padding_idx < 0:
            padding_idx += weight.shape[0]
        return self._record(LookupCall(input, output, slot, padding_idx), output)

    def _layer_norm(
        self,
        input: Tensor,
        normalized_shape: Sequence[int],
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Tensor:
        slots = self._slots_of(weight, bias)
        output = F.layer_norm(input, normalized_shape, _detached(weight), _detached(bias), eps)
        lead = input.dim() - len(normalized_shape)
        factor = partial(F.layer_norm, input, normalized_shape, None, None, eps)
        return self._record(ElementwiseCall(input, output, lead, *slots, normalized_shape, factor), output)

    def _rms_norm(
        self, input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
    ) -> Tensor:
        slots = self._slots_of(weight, None)
        output = F.rms_norm(input, normalized_shape, _detached(weight), eps)
        lead = input.dim() - len(normalized_shape)
        factor = partial(F.rms_norm, input, normalized_shape, None, eps)
        return self._record(ElementwiseCall(input, output, lead, *slots, normalized_shape, factor), output)

    def _group_norm(
        self,
        input: Tensor,
        num_groups: int,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Tensor:
        slots = self._slots_of(weight, bias)
        output = F.group_norm(input, num_groups, _detached(weight), _detached(bias), eps)
        factor = partial(F.group_norm, input, num_groups, None, None, eps)
        return self._record(ElementwiseCall(input, output, 1, *slots, _per_channel(input), factor), output)

    def _batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if training:
            raise UserError(
                "a batch normalisation without running statistics mixes the samples even in eval mode, so that a "
                "kernel between samples is not defined; make it with track_running_stats=True"
            )
        slots = self._slots_of(weight, bias)
        arguments = (input, running_mean, running_var)
        output = F.batch_norm(*arguments, _detached(weight), _detached(bias), False, momentum, eps)
        factor = partial(F.batch_norm, *arguments, None, None, False, momentum, eps)
        return self._record(ElementwiseCall(input, output, 1, *slots, _per_channel(input), factor), output)

    def _add(self, input: Any, other: Any, **options: Any) -> Tensor:
        parameter, x, lead, shape = self._broadcast(input, other, options)
        output = x + parameter.detach()
        call = ElementwiseCall(parameter.detach(), output, lead, None, self._slot(parameter), shape, parameter.detach)
        return self._record(call, output)

    def _multiply(self, input: Any, other: Any, **options: Any) -> Tensor:
        parameter, x, lead, shape = self._broadcast(input, other, options)
        output = x * parameter.detach()
        call = ElementwiseCall(x, output, lead, self._slot(parameter), None, shape, x.detach)
        return self._record(call, output)

    def _broadcast(
        self, first: Any, second: Any, options: dict[str, Any]
    ) -> tuple[Tensor, Tensor, int, tuple[int, ...]]:
        """Tell parameter from input: gives both, the number of positions' dimensions and the shape for the others."""
        for parameter, x in ((first, second), (second, first)):
            if not options and id(parameter) in self._names and isinstance(x, Tensor) and id(x) not in self._names:
                shape = (1,) * (x.dim() - parameter.dim()) + tuple(parameter.shape)
                if len(shape) == x.dim() and all(own in (1, size) for own, size in zip(shape, x.shape, strict=True)):
                    lead = next((dim for dim, size in enumerate(shape) if size != 1), len(shape))
                    return parameter, x, lead, shape[lead:]
        raise _NoRuleError

    def _expand(self, input: Tensor, *sizes: Any, **options: Any) -> Tensor:
        if options or id(input) not in self._names:
            raise _NoRuleError
        output = input.detach().expand(*sizes).clone()
        shape = (1,) * (output.dim() - input.dim()) + tuple(input.shape)
        lead = next((dim for dim, size in enumerate(shape) if size != 1), len(shape))
        call = ElementwiseCall(input.detach(), output, lead, None, self._slot(input), shape[lead:], input.detach)
        return self._record(call, output)

    def _attention(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """Record the projections; PyTorch's own code, given identity matrices for them, does all the rest."""
        bound = _ATTENTION.bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        size: int = given["embed_dim_to_check"]
        packed, packed_bias = given["in_proj_weight"], given["in_proj_bias"]
        slots: list[tuple[Slot | None, Slot | None]] = []
        weights: list[tuple[Tensor, Tensor | None]] = []
        for index, letter in enumerate("qkv"):
            start = index * size
            bias = None if packed_bias is None else packed_bias.detach()[start : start + size]
            bias_slot = self._slot(packed_bias, start, size)
            if given["use_separate_proj_weight"]:
                weight = given[f"{letter}_proj_weight"]
                slots.append((self._slot(weight), bias_slot))
                weights.append((weight, bias))
            else:
                slots.append((self._slot(packed, start, size), bias_slot))
                weights.append((packed[start : start + size], bias))
        last = self._slot(given["out_proj_weight"]), self._slot(given["out_proj_bias"])
        if given["static_k"] is not None or given["static_v"] is not None or given["query"].dim() != 3:
            raise _NoRuleError
        for index, name in enumerate(("query", "key", "value")):
            given[name] = self._project(given[name], *weights[index], slots[index])
        identity = torch.eye(size, dtype=given["query"].dtype, device=given["query"].device)
        inner = given | {"use_separate_proj_weight": True, "in_proj_weight": None, "in_proj_bias": None}
        inner |= dict.fromkeys(("q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj_weight"), identity)
        attended, shares = F.multi_head_attention_forward(**(inner | {"out_proj_bias": None}))
        return self._project(attended, given["out_proj_weight"], given["out_proj_bias"], last), shares


def _detached(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach()


def _per_channel(x: Tensor) -> tuple[int, ...]:
    """Shape of a parameter per channel beside the dimensions of one sample."""
    return (x.shape[1],) + (1,) * (x.dim() - 2)
