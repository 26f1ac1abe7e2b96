"""Which dimensions of a tensor count units, followed through what moves data about in a forward pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Units:
    """Units lie along some dimensions, which may have been flattened together with others.

    Attributes:
        dims: The dimensions, the one that counts slowest first: heads and features of a head after a split.
        before: Entries of these dimensions together that count something else, more slowly than units.
        after: The same, faster than units: flattened maps ``[n, channels * positions]`` have ``after=positions``.
    """

    dims: tuple[int, ...]
    before: int = 1
    after: int = 1

    def count(self, shape: Sequence[int]) -> int:
        """Number of units in a tensor of this shape."""
        return math.prod(shape[dim] for dim in self.dims) // (self.before * self.after)

    def at(self, dims: Sequence[int]) -> Units:
        """The same along other dimensions."""
        return Units(tuple(dims), self.before, self.after)

    def arranged(self, values: Tensor) -> tuple[Tensor, int]:
        """The values with one dimension for units, and that dimension; a view where there is one already."""
        if len(self.dims) == 1 and self.before == self.after == 1:
            return values, self.dims[0]
        count = self.count(values.shape)
        front = values.movedim(self.dims, tuple(range(len(self.dims))))
        return front.reshape(self.before, count, -1), 1


def one(axis: int, ndim: int) -> Units | None:
    """Units along one dimension, given as for PyTorch; None for a tensor that has no such dimension."""
    return Units((axis % ndim,)) if -ndim <= axis < ndim else None


def kept(units: Units | None, before: Tensor, after: Tensor) -> Units | None:
    """Units where an operation keeps what the dimensions mean, as pooling and padding do."""
    return units if units is not None and after.ndim == before.ndim else None


def reshaped(units: Units | None, before: Tensor, after: Tensor) -> Units | None:
    """Units where the order of the entries stays the same."""
    if units is None or after.numel() != before.numel() or not after.numel():
        return None
    first, last = units.dims[0], units.dims[-1]
    if units.dims != tuple(range(first, last + 1)):
        return None
    count = units.count(before.shape)
    outer = math.prod(before.shape[:first]) * units.before
    prefix = [1]
    for size in after.shape:
        prefix.append(prefix[-1] * size)
    if count == 1 and 1 in after.shape:
        fitting = [dim for dim, size in enumerate(after.shape) if size == 1 and prefix[dim] == outer]
        return Units((fitting[0],)) if fitting else None
    start = max((dim for dim in range(after.ndim) if outer % prefix[dim] == 0 and prefix[dim] <= outer), default=0)
    stop = next((dim for dim in range(start + 1, after.ndim + 1) if prefix[dim] % (outer * count) == 0), None)
    if stop is None:
        return None
    return Units(tuple(range(start, stop)), outer // prefix[start], prefix[stop] // (outer * count))


def permuted(
    units: Units | None, before: Tensor, function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]
) -> Units | None:
    """Units after a function that permutes dimensions, told by the sizes of a tensor whose dimensions all differ."""
    if units is None:
        return None
    marked = torch.empty([2 + dim for dim in range(before.ndim)], device="meta")
    order = [size - 2 for size in function(marked, *args, **kwargs).shape]
    return units.at([order.index(dim) for dim in units.dims])


def indexed(units: Units | None, before: Tensor, index: Any) -> Units | None:
    """Units after ``tensor[index]``; None where the index takes a unit out, or is too involved to follow."""
    if units is None:
        return None
    parts = list(index) if isinstance(index, tuple) else [index]
    taken = sum(
        part.ndim if isinstance(part, Tensor) and part.dtype is torch.bool else 1
        for part in parts
        if part is not None and part is not Ellipsis
    )
    if not any(part is Ellipsis for part in parts):
        parts.append(Ellipsis)
    old, new = 0, 0
    places: dict[int, int] = {}
    for part in parts:
        if part is None:
            new += 1
        elif isinstance(part, Tensor | list):
            if old or not isinstance(part, Tensor):
                return None
            old, new = (part.ndim, 1) if part.dtype is torch.bool else (1, part.ndim)
        elif isinstance(part, int):
            old += 1
        else:
            for _ in range(before.ndim - taken if part is Ellipsis else 1):
                places[old] = new
                old, new = old + 1, new + 1
    return units.at([places[dim] for dim in units.dims]) if set(units.dims) <= set(places) else None


def without(units: Units | None, ndim: int, dims: Sequence[int], keepdim: bool) -> Units | None:
    """Units after dimensions were reduced; None if they were among them."""
    gone = {dim % ndim for dim in dims}
    if units is None or gone & set(units.dims):
        return None
    return units if keepdim else units.at([dim - sum(out < dim for out in gone) for dim in units.dims])


def stacked(units: Units | None, dim: int) -> Units | None:
    """Units after a dimension was put in."""
    return units and units.at([each + (dim <= each) for each in units.dims])
