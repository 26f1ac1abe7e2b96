"""What all checks share: how a broken promise is said, how two results are compared, how a part's text is read back."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import io
import json
import math
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plasticity_cl.errors import UserError
from plasticity_cl.experiments.spec import RunSpec, completed
from plasticity_cl.experiments.spec_file import read_toml
from plasticity_cl.metrics.guard import one_line
from plasticity_cl.parts import Chosen
from plasticity_cl.seeding import rng_state

Part = str | Callable[..., Any]
"""A part by its name or dotted path, or the class or function that makes it."""


SPELLING = "it reads back as it was written"
STATE = "a run that was stopped goes on as if it had not been"
UNTOUCHED = "global random numbers stay untouched"


class BrokenError(Exception):
    """Says how a promise is broken."""


@contextmanager
def promise(part: str, promised: str) -> Iterator[None]:
    """Whatever goes wrong within breaks a promise.

    Args:
        part: The part, as it was given.
        promised: The promise, in a few words.

    Raises:
        AssertionError: Where something does, with one line.
    """
    try:
        yield
    except BrokenError as error:
        raise AssertionError(f"{part} breaks a promise, {promised}: {error}") from None
    except Exception as error:  # a part of somebody else's raises whatever it does
        raise AssertionError(f"{part} breaks a promise, {promised}: it raises {one_line(error)}") from error


def name_of(part: Part) -> str:
    """What a part is called in a message.

    Raises:
        UserError: If it is neither named nor a class or function.
    """
    if isinstance(part, str):
        return part
    if not (inspect.isclass(part) or inspect.isroutine(part) or isinstance(part, functools.partial)):
        raise UserError(
            f"{type(part).__name__} is one that is made already, and a check makes several: give its class, a function "
            "that makes it, or its name"
        )
    return getattr(part, "__qualname__", None) or str(part)


def made_by(make: Callable[..., Any], **filled: Any) -> Any:
    """Call a class or function with those of the arguments that it has."""
    return make(**{name: value for name, value in filled.items() if takes(make, name)})


def takes(make: Callable[..., Any], argument: str) -> bool:
    """Whether a class or function has an argument of this name."""
    return argument in inspect.signature(make).parameters


def seed_generators(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def difference(one: Any, other: Any, where: str = "") -> str:
    """The first place where two results differ in a bit, and by how much; empty where they are the same.

    Args:
        one: Tensors, numbers, strings, and collections of them. NaN is the same as NaN.
        other: Likewise.
        where: What they are, for the message.
    """
    name = where or "the result"
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        if list(one) != list(other):
            return f"{name} has {_listed(other)} and had {_listed(one)}"
        found = (difference(one[key], other[key], f"{where}.{key}" if where else str(key)) for key in one)
        return next(filter(None, found), "")
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if one.shape != other.shape or one.dtype != other.dtype:
            return f"{name} is {other.dtype} {list(other.shape)} and was {one.dtype} {list(one.shape)}"
        differs = (one != other) & ~((one != one) & (other != other))
        if not differs.any():
            return ""
        apart = (one.double() - other.double()).abs()[differs].max()
        return f"{int(differs.sum())} of {differs.numel()} values of {name} differ, by up to {float(apart):.3g}"
    if isinstance(one, str) or not isinstance(one, Sequence):
        both_nan = isinstance(one, float) and isinstance(other, float) and math.isnan(one) and math.isnan(other)
        shown = f": {other!r}, not {one!r}" if isinstance(one, str | int | float) else ""
        return "" if both_nan or (type(one) is type(other) and one == other) else f"{name} differs{shown}"
    if not isinstance(other, Sequence) or len(one) != len(other):
        return f"{name} has another length"
    pairs = enumerate(zip(one, other, strict=True))
    return next(filter(None, (difference(a, b, f"{where}[{i}]") for i, (a, b) in pairs)), "")


def _listed(names: Mapping[Any, Any]) -> str:
    return ", ".join(map(str, names)) or "nothing"


def saved(state: Any) -> Any:
    """What is read of a state that was saved, with ``weights_only=True``."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    try:
        return torch.load(buffer, weights_only=True)
    except Exception as error:
        raise BrokenError(
            f"torch.load(..., weights_only=True) refuses its state ({one_line(error).partition('. ')[0]}): let it be "
            "tensors, numbers, strings, and lists and dictionaries of them"
        ) from None


def require_finite(values: Mapping[str, Any], what: str) -> None:
    """Require that tensors or numbers are finite."""
    for name, value in values.items():
        tensor = torch.as_tensor(value)
        if tensor.is_floating_point() and not tensor.isfinite().all():
            n = int((~tensor.isfinite()).sum())
            raise BrokenError(f"{n} of {tensor.numel()} values of {what} {name} are not finite")


def require_untouched(state: Any) -> None:
    """Require that the global generators are in a state that :func:`~plasticity_cl.seeding.rng_state` took."""
    for one, other, whose in zip(state, rng_state(), ("Python's", "NumPy's", "torch's", "CUDA's"), strict=True):
        if difference(_plain(one), _plain(other)):
            raise BrokenError(
                f"{whose} global generator is in another state; draw from a generator of its own, made from its seed"
            )


def _plain(state: Any) -> Any:
    if isinstance(state, tuple | list):
        return [_plain(item) for item in state]
    return state.tolist() if isinstance(state, np.ndarray) else state


def require_spelling(field: str, read: Callable[[Any], str], chosen: Sequence[Chosen]) -> None:
    """Require that a part reads back as the same: its text, its table in a TOML file, and what ``spec.json`` holds.

    Args:
        field: The field of a spec that names it.
        read: Gives the canonical text of a text or a table.
        chosen: The part; or several that are joined, for a strategy.
    """
    text = read("+".join(map(str, chosen)))
    _same(text, read(text), "its text")
    tables = [{"name": part.name, **part.options} for part in chosen]
    given = tables[0] if len(tables) == 1 else {"strategy": tables}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "spec.toml"
        path.write_text(f"{field} = {_toml(given)}\n", encoding="utf-8")
        spec = read_toml(path, RunSpec)
    _same(text, read(getattr(spec, field)), "its table in TOML")
    fields = json.loads(json.dumps(dataclasses.asdict(spec)))
    _same(text, read(getattr(RunSpec(**completed(fields)), field)), "what spec.json holds")


def _same(text: str, again: str, what: str) -> None:
    if again != text:
        raise BrokenError(f"{what} reads back as {again}, not as {text}")


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{name} = {_toml(item)}' for name, item in value.items())} }}"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps("none" if value is None else value)
