"""What one call of a layer adds to the empirical neural tangent kernel, without a gradient per sample and parameter."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Bytes of any one temporary: enough for matrix products at full speed, little beside the activations of a forward pass.
BUDGET = 32 * 2**20
# The kernel is symmetric: its lower triangle is made in blocks of so many rows, which saves up to half of the products.
_ROWS = 64


@dataclass(eq=False)
class Slot:
    """Rows ``start`` to ``start + rows`` of a parameter; attention packs three projections into one parameter.

    A parameter without dimensions counts as one row.
    """

    parameter: Tensor
    start: int
    rows: int

    @property
    def width(self) -> int:
        """Entries in one row."""
        return math.prod(self.parameter.shape[1:])


class Ledger:
    """Bytes that may still be kept from one backward pass to the next, for the whole network."""

    def __init__(self, room: int) -> None:
        self.room = room

    def take(self, size: int) -> bool:
        """Whether there is room for so many bytes; if so they are booked."""
        if size > self.room:
            return False
        self.room -= size
        return True


class LayerCall(ABC):
    """One call of a layer during the forward pass, with its trainable weight and bias (``None`` where there is none).

    Output and input have the shape ``[*lead, *event]``: positions, each of which belongs to one sample, then features.
    Which position belongs to which sample is found out by the recorder, which then sets :attr:`inner`.
    """

    def __init__(self, x: Tensor, output: Tensor, lead: int, weight: Slot | None, bias: Slot | None) -> None:
        self.x = x
        self.shape = output.shape
        self.lead = output.shape[:lead]
        self.weight = weight
        self.bias = bias
        self.samples = 0
        self.inner = 0
        self.norms: list[Tensor] = []
        self.received: list[Tensor | None] = []
        self._version = x._version

    @property
    def slots(self) -> list[Slot]:
        """The trainable slots this call uses."""
        return [slot for slot in (self.weight, self.bias) if slot is not None]

    @property
    def input_changed(self) -> bool:
        """Whether the input was changed in place after the call, so that the weight's gradient is lost."""
        return self.weight is not None and self.x._version != self._version

    @property
    def has_ghost_form(self) -> bool:
        """Whether :meth:`inputs` and :meth:`similarity` describe the weight's gradient."""
        return False

    def layouts(self, n: int) -> Iterator[int]:
        """Every way in which the leading dimensions can hold ``n`` samples, as the stride between samples.

        A dimension of size n is the samples; one of size k n has k positions of a sample side by side, or n apart.
        """
        for dim, size in enumerate(self.lead):
            after = math.prod(self.lead[dim + 1 :])
            if size % n == 0:
                yield size // n * after
                if size != n:
                    yield after

    def arrange(self, tensor: Tensor) -> Tensor:
        """Bring ``[*lead, *event]`` to ``[n, positions, *event]``."""
        event = tensor.shape[len(self.lead) :]
        split = tensor.reshape(-1, self.samples, self.inner, *event)
        return split.movedim(1, 0).reshape(self.samples, -1, *event)

    @abstractmethod
    def weight_gradient(self, g: Tensor, rows: slice) -> Tensor:
        """Per-sample gradient of some rows of the weight slot: ``[n, rows, width]``, given the output's gradient."""

    @abstractmethod
    def bias_gradient(self, g: Tensor, rows: slice) -> Tensor:
        """Per-sample gradient of some rows of the bias slot: ``[n, rows, width]``, given the output's gradient."""

    def outputs(self, g: Tensor) -> Tensor:
        """The output's gradient as ``[n, T, D]``, for the ghost form."""
        raise NotImplementedError

    def inputs(self) -> Tensor:
        """The inputs as ``[n, T, K]``, or whatever :meth:`similarity` compares, for the ghost form."""
        raise NotImplementedError

    def similarity(self, a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
        """Scalar products of two sets of inputs, ``[a, b]``, for the ghost form."""
        raise NotImplementedError


class MatrixCall(LayerCall):
    """A layer whose weight gradient is a sum over positions of output gradient times input: linear, convolution."""

    groups = 1
    kept: Tensor | None = None

    @property
    def has_ghost_form(self) -> bool:
        """Only without groups: a group has few inputs, for which the direct form is cheaper."""
        return self.groups == 1

    @abstractmethod
    def patches(self, start: int, stop: int) -> Tensor:
        """Inputs of the samples from ``start`` to ``stop``: ``[samples, groups, K, T]``."""

    @abstractmethod
    def patch_bytes(self) -> int:
        """Bytes that the patches of one sample take beside the input."""

    @abstractmethod
    def grouped(self, g: Tensor) -> Tensor:
        """The output's gradient as ``[n, groups, D, T]``."""

    def keep_patches(self, ledger: Ledger) -> None:
        """Keep what every call of :meth:`weight_gradient` needs, if that is a copy of the input and there is room."""
        if self.weight is not None and self.patch_bytes() and ledger.take(self.samples * self.patch_bytes()):
            self.kept = self.patches(0, self.samples)

    def weight_gradient(self, g: Tensor, rows: slice) -> Tensor:
        """See the base class."""
        G = self.grouped(g)
        n, _, per_group, _ = G.shape
        block = n if self.kept is not None else max(1, BUDGET // 2 // max(1, self.patch_bytes()))
        blocks = []
        for start in range(0, n, block):
            samples = slice(start, min(start + block, n))
            A = self.patches(samples.start, samples.stop) if self.kept is None else self.kept
            parts = [
                (G[samples, groups, inside] @ A[:, groups].mT).flatten(1, 2)
                for groups, inside in _rectangles(rows, per_group)
            ]
            blocks.append(_concatenated(parts, dim=1))
        return _concatenated(blocks, dim=0)

    def bias_gradient(self, g: Tensor, rows: slice) -> Tensor:
        """See the base class."""
        return self.grouped(g).sum(-1).flatten(1)[:, rows].unsqueeze(-1)

    def outputs(self, g: Tensor) -> Tensor:
        """See the base class."""
        return self.grouped(g)[:, 0].mT

    def inputs(self) -> Tensor:
        """See the base class."""
        return self.patches(0, self.samples)[:, 0].mT

    def similarity(self, a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
        """See the base class; a trainable bias is the weight of one more input that is always one."""
        product = a @ b.mT
        return product if self.bias is None else product.add_(1)


def _concatenated(tensors: list[Tensor], dim: int) -> Tensor:
    """Join tensors, without a copy where there is only one."""
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim)


def _rectangles(rows: slice, per_group: int) -> Iterator[tuple[slice, slice]]:
    """Cut rows of a grouped weight into rectangles of groups and rows inside each group."""
    row = rows.start
    while row < rows.stop:
        group, first = divmod(row, per_group)
        whole = (rows.stop - row) // per_group
        if first == 0 and whole:
            yield slice(group, group + whole), slice(0, per_group)
            row += whole * per_group
        else:
            end = min((group + 1) * per_group, rows.stop)
            yield slice(group, group + 1), slice(first, first + end - row)
            row = end


class LinearCall(MatrixCall):
    """``F.linear`` on an input with any number of leading dimensions."""

    def patches(self, start: int, stop: int) -> Tensor:
        """See the base class."""
        return self.arrange(self.x)[start:stop, None].mT

    def patch_bytes(self) -> int:
        """See the base class."""
        return 0

    def grouped(self, g: Tensor) -> Tensor:
        """See the base class."""
        return self.arrange(g)[:, None].mT


@dataclass(frozen=True)
class Window:
    """How a convolution reads its input; a one-dimensional one is two-dimensional with a height of one."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    # Zeros to add, as F.pad wants them: left, right, top, bottom.
    padding: tuple[int, int, int, int]

    @classmethod
    def of(
        cls,
        kernel: Sequence[int],
        stride: int | Sequence[int],
        padding: int | str | Sequence[int],
        dilation: int | Sequence[int],
    ) -> Window:
        """Read the arguments of ``F.conv1d`` and ``F.conv2d`` in all the forms they take."""
        spatial = len(kernel)

        def pair(value: int | Sequence[int], fill: int) -> tuple[int, int]:
            values = [value] * spatial if isinstance(value, int) else list(value) * (spatial // len(value))
            return (fill, values[0]) if spatial == 1 else (values[0], values[1])

        height_width, steps = pair(kernel, 1), pair(dilation, 1)
        if padding == "same":
            # An odd total puts the extra zero last.
            height, width = (step * (size - 1) for size, step in zip(height_width, steps, strict=True))
            around = (width // 2, width - width // 2, height // 2, height - height // 2)
        else:
            vertical, horizontal = (0, 0) if isinstance(padding, str) else pair(padding, 0)
            around = (horizontal, horizontal, vertical, vertical)
        return cls(height_width, pair(stride, 1), steps, around)


class ConvCall(MatrixCall):
    """``F.conv1d`` or ``F.conv2d``; padding other than zeros has already been added to the input by the module."""

    def __init__(
        self, x: Tensor, output: Tensor, weight: Slot | None, bias: Slot | None, window: Window, groups: int
    ) -> None:
        super().__init__(x, output, 1, weight, bias)
        self.window = window
        self.groups = groups

    def patches(self, start: int, stop: int) -> Tensor:
        """See the base class."""
        images = self.arrange(self.x)[start:stop]
        samples, folded, channels = images.shape[:3]
        images = images.reshape(samples * folded, channels, -1 if images.dim() == 5 else 1, images.shape[-1])
        if any(self.window.padding):
            images = F.pad(images, self.window.padding)
        # Windows as a view, copied once: several times as fast as F.unfold.
        for axis in range(2):
            extent = (self.window.kernel[axis] - 1) * self.window.dilation[axis] + 1
            images = images.unfold(2 + axis, extent, self.window.stride[axis])
        images = images[..., :: self.window.dilation[0], :: self.window.dilation[1]]
        columns = images.permute(0, 1, 4, 5, 2, 3)  # [samples folded, channels, *kernel, *positions]
        columns = columns.reshape(samples, folded, self.groups, -1, columns.shape[-2] * columns.shape[-1])
        return columns.permute(0, 2, 3, 1, 4).flatten(3)

    def patch_bytes(self) -> int:
        """See the base class."""
        folded = self.lead[0] // self.samples
        positions = math.prod(self.shape[2:]) * folded
        return self.x.shape[1] * math.prod(self.window.kernel) * positions * self.x.element_size()

    def grouped(self, g: Tensor) -> Tensor:
        """See the base class."""
        split = self.arrange(g).flatten(3)  # [n, folded, channels, T]
        split = split.reshape(*split.shape[:2], self.groups, -1, split.shape[-1])
        return split.permute(0, 2, 3, 1, 4).flatten(3)


class LookupCall(LayerCall):
    """``F.embedding``: a linear layer whose inputs are one-hot, compared by token and never written out."""

    def __init__(self, x: Tensor, output: Tensor, weight: Slot, padding: int | None) -> None:
        super().__init__(x, output, x.dim(), weight, None)
        self.padding = padding

    @property
    def has_ghost_form(self) -> bool:
        """Always."""
        return True

    def inputs(self) -> Tensor:
        """Tokens as ``[n, T]``; the padding token has no gradient, so it becomes -1, which is like nothing."""
        tokens = self.arrange(self.x)
        return tokens if self.padding is None else tokens.where(tokens != self.padding, -1)

    def outputs(self, g: Tensor) -> Tensor:
        """See the base class."""
        return self.arrange(g)

    def similarity(self, a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
        """See the base class: one where two tokens are the same."""
        return ((a[:, None] == b) & (a >= 0)[:, None]).to(dtype)

    def weight_gradient(self, g: Tensor, rows: slice) -> Tensor:
        """See the base class."""
        tokens, G = self.inputs(), self.outputs(g)
        height = rows.stop - rows.start
        inside = (tokens >= rows.start) & (tokens < rows.stop)
        places = torch.arange(self.samples, device=tokens.device)[:, None] * height + tokens - rows.start
        result = G.new_zeros(self.samples * height, G.shape[-1])
        return result.index_add_(0, places[inside], G[inside]).reshape(self.samples, height, -1)

    def bias_gradient(self, g: Tensor, rows: slice) -> Tensor:
        """An embedding has no bias."""
        raise NotImplementedError


class ElementwiseCall(LayerCall):
    """``weight * factor + bias``, broadcast: the affine part of a normalisation, or a parameter that is added.

    Args:
        x: The input.
        output: The output, ``[*lead, *event]``.
        lead: How many dimensions of the output are positions.
        weight: Slot of the scale.
        bias: Slot of the shift.
        shape: The parameters' shape, with ones where they are broadcast along a dimension of the event.
        factor: Computes what the scale multiplies; recomputed from the input, since dividing the output by the scale
            fails where the scale is zero.
    """

    def __init__(
        self,
        x: Tensor,
        output: Tensor,
        lead: int,
        weight: Slot | None,
        bias: Slot | None,
        shape: Sequence[int],
        factor: Callable[[], Tensor],
    ) -> None:
        super().__init__(x, output, lead, weight, bias)
        self.factor = factor
        self._summed = [2 + dim for dim, size in enumerate(shape) if size == 1 and output.shape[lead + dim] != 1]

    def _reduce(self, g: Tensor, slot: Slot, rows: slice) -> Tensor:
        summed = self.arrange(g).sum([1, *self._summed])
        return summed.reshape(self.samples, slot.rows, slot.width)[:, rows]

    def weight_gradient(self, g: Tensor, rows: slice) -> Tensor:
        """See the base class."""
        assert self.weight is not None
        return self._reduce(g * self.factor(), self.weight, rows)

    def bias_gradient(self, g: Tensor, rows: slice) -> Tensor:
        """See the base class."""
        assert self.bias is not None
        return self._reduce(g, self.bias, rows)


class Group:
    """The calls that share parameters: a layer called twice and tied weights have terms between their calls.

    Args:
        calls: Every call of the group.
        passes: How many times :meth:`add_to` will be called.
        ledger: Room for what is worth keeping between these.
    """

    def __init__(self, calls: list[LayerCall], passes: int, ledger: Ledger) -> None:
        self.calls = calls
        self.slots = list(dict.fromkeys(slot for call in calls for slot in call.slots))
        self.passes = passes
        self._prepared = passes == 1
        self.arrived = 0
        self._ledger = ledger
        self._input_gram: Tensor | None = None

    @torch.no_grad()
    def add_to(self, kernel: Tensor) -> None:
        """Add the group's share to the kernel from the output gradients its calls have received, and forget these.

        Args:
            kernel: ``[m, n, m, n]``, float64, changed in place: m directions of the output, n samples. As a square
                matrix it is symmetric; only its lower triangle is sure to be filled.
        """
        m, n = kernel.shape[:2]
        gradients = [
            [
                torch.zeros(call.shape, dtype=self.slots[0].parameter.dtype, device=kernel.device) if g is None else g
                for g in call.received
            ]
            for call in self.calls
        ]
        for call in self.calls:
            call.received = [None] * m
        self.arrived = 0
        if self._ghost_is_cheaper(m, n):
            self._add_ghost(kernel, gradients)
        else:
            self._add_direct(kernel, gradients)

    def _ghost_is_cheaper(self, m: int, n: int) -> bool:
        first = self.calls[0]
        if first.weight is None or not all(
            call.has_ghost_form and type(call) is type(first) and (call.weight, call.bias) == (first.weight, first.bias)
            for call in self.calls
        ):
            return False
        T = sum(math.prod(call.shape) // n // first.weight.rows for call in self.calls)
        D, K = first.weight.rows, first.weight.width
        if isinstance(first, LookupCall):
            # Its inputs are one-hot of length ``rows``; comparing tokens costs nothing beside the products.
            T = sum(math.prod(call.lead) // n for call in self.calls)
            ghost, direct = float(T * T), float(D)
        else:
            ghost, direct = T * T * (D + K / (self.passes * m * m)), D * K * (1 + T / (m * n))
        element = first.weight.parameter.element_size()
        return ghost < direct and n * T * K * element <= 4 * BUDGET

    def _add_ghost(self, kernel: Tensor, gradients: list[list[Tensor]]) -> None:
        """Add sum_ts (A_it . A_js) (G_it . G_js): the Gram matrices of inputs and of output gradients, multiplied."""
        m, n = kernel.shape[:2]
        G = [
            _concatenated([call.outputs(g[c]) for call, g in zip(self.calls, gradients, strict=True)], dim=1)
            for c in range(m)
        ]
        T = G[0].shape[1]
        flat = [g.reshape(n * T, -1) for g in G]
        dtype = flat[0].dtype
        block = max(1, min(_ROWS, BUDGET // (T * n * T * dtype.itemsize)))
        similarity = self._input_gram
        A = None
        if similarity is None:
            A = _concatenated([call.inputs() for call in self.calls], dim=1).flatten(0, 1)
            if self.passes > 1 and self._ledger.take(dtype.itemsize * len(A) ** 2):
                similarity = self._input_gram = self.calls[0].similarity(A, A, dtype)
        for start in range(0, n, block):
            samples = slice(start, min(start + block, n))
            rows, below = slice(start * T, samples.stop * T), slice(0, samples.stop * T)
            if similarity is None:
                assert A is not None
                strip = self.calls[0].similarity(A[rows], A, dtype)
            else:
                strip = similarity[rows]
            for c in range(m):
                for d in range(c + 1):
                    columns = below if c == d else slice(None)
                    product = (flat[c][rows] @ flat[d][columns].mT).mul_(strip[:, columns])
                    if T > 1:
                        product = product.reshape(samples.stop - start, T, -1, T).sum((1, 3))
                    kernel[c, samples, d, : product.shape[1]] += product

    def _add_direct(self, kernel: Tensor, gradients: list[list[Tensor]]) -> None:
        """Add X X^T, where X has the per-sample gradients of as many rows of a parameter as the budget allows."""
        m, n = kernel.shape[:2]
        if not self._prepared:
            self._prepared = True
            for call in self.calls:
                if isinstance(call, MatrixCall):
                    call.keep_patches(self._ledger)
        for slot in self.slots:
            step = max(1, BUDGET // (m * n * slot.width * slot.parameter.element_size()))
            for start in range(0, slot.rows, step):
                rows = slice(start, min(start + step, slot.rows))
                total: Tensor | None = None
                for call, directions in zip(self.calls, gradients, strict=True):
                    for own, gradient in ((call.weight, call.weight_gradient), (call.bias, call.bias_gradient)):
                        if own is not slot:
                            continue
                        part = [gradient(g, rows) for g in directions]
                        X = _concatenated(part, dim=0)
                        total = X if total is None else total + X
                assert total is not None
                flat = total.reshape(m * n, -1)
                square = kernel.view(m * n, m * n)
                for first in range(0, m * n, _ROWS):
                    block = slice(first, first + _ROWS)
                    square[block, : block.stop] += flat[block] @ flat[: block.stop].mT
