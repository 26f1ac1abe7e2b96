"""Values of options: from text to what a constructor takes, and back to one canonical text."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from plasticity_cl.errors import UserError, unknown_name


@dataclass(frozen=True)
class Limit:
    """Which values an option may have.

    Attributes:
        words: What a value must be, to end the sentence "it must be ...".
        holds: Whether a value is one.
    """

    words: str
    holds: Callable[[Any], bool]


Count = Annotated[int, Limit("a whole number of 1 or more", lambda value: value >= 1)]
Whole = Annotated[int, Limit("a whole number of 0 or more", lambda value: value >= 0)]
Strength = Annotated[float, Limit("a number of 0 or more", lambda value: value >= 0)]
Positive = Annotated[float, Limit("a number above 0", lambda value: value > 0)]
Share = Annotated[float, Limit("above 0 and at most 1", lambda value: 0 < value <= 1)]
Range = Annotated[
    tuple[float, float],
    Limit("a range LOW..HIGH with LOW below HIGH", lambda ends: len(ends) == 2 and ends[0] < ends[1]),
]
File = Annotated[str, Limit("a file that is there", lambda path: Path(path).expanduser().is_file())]
Folder = Annotated[str, Limit("a folder that is there", lambda path: Path(path).expanduser().is_dir())]

KINDS: dict[str, Any] = {
    **{"int": int, "float": float, "str": str, "bool": bool, "Path": str},
    **{"Count": Count, "Whole": Whole, "Strength": Strength, "Positive": Positive, "Share": Share},
    **{"Range": Range, "File": File, "Folder": Folder},
}
"""Types that options may have, by the names that they have in a constructor."""

_NOTHING = type(None)


class _MisfitError(ValueError):
    """Says what the value must be."""


def read(of: Any, text: str) -> Any:
    """Read a value.

    Args:
        of: Its type; ``Any`` takes a number for a number, true, false and none for what they are, and words for words.
        text: As it was written.

    Raises:
        ValueError: If it is none, saying what it must be.
    """
    if of is Any:
        return _guess(text)
    misfits = []
    for alternative in sorted(_alternatives(of), key=_last_is_text):
        try:
            return _read_one(alternative, text)
        except _MisfitError as error:
            misfits.append(error)
    # The alternative that came nearest says it best: words first, and none last.
    raise (
        max(misfits, key=lambda error: (len(error.args) > 1, str(error) != "none"))
        if misfits
        else _MisfitError("nothing")
    )


def accept(of: Any, value: Any) -> Any:
    """Take a value that is no text, from Python or TOML, for an option of type ``of``.

    Raises:
        ValueError: If it is none, saying what it must be.
    """
    if isinstance(value, str):
        return read(of, value)
    if of is Any:
        return tuple(value) if isinstance(value, list) else value
    return read(of, write(value))


def write(value: Any, of: Any = Any) -> str:
    """The canonical text of a value of a type, which reads back as the same."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return number(float(value)) if abs(value) < 2**53 else str(value)
    if isinstance(value, float):
        return number(value)
    if isinstance(value, tuple | list):
        return (".." if Range in _alternatives(of) else "/").join(map(write, value))
    return str(value)


def number(value: float) -> str:
    """The text that reads best among those that read back as the same number: 200, 0.001, 1e-5, 1e9, never a plus sign.

    Numbers from 1e-4 to below 1e5 have no exponent, smaller ones have one, and larger ones where that is shorter.
    """
    if not math.isfinite(value):
        return repr(value)
    sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    assert isinstance(exponent, int)
    minus, first, *rest = "-" if sign else "", *map(str, digits)
    magnitude = exponent + len(rest)
    scientific = f"{minus}{first}{'.' if rest else ''}{''.join(rest)}e{magnitude}"
    plain = f"{Decimal(repr(value)):f}".removesuffix(".0")
    if value == 0 or -4 <= magnitude < 5:
        return plain
    return scientific if magnitude < 0 or len(scientific) < len(plain) else plain


def words(of: Any) -> str:
    """What a value of a type is, for a list of options."""
    if of is Any:
        return "value"
    said = []
    for alternative in _alternatives(of):
        base, limit = _limited(alternative)
        if typing.get_origin(base) is Literal:
            said.append(", ".join(map(write, typing.get_args(base))))
        elif base is _NOTHING:
            said.append("none")
        elif limit is not None:
            said.append(limit.words.removeprefix("a "))
        elif _is_many(base):
            inner = [words(item) for item in typing.get_args(base) if item is not ...]
            said.append(f"{inner[0]}/..." if ... in typing.get_args(base) else "/".join(inner))
        else:
            said.append({int: "whole number", float: "number", bool: "true or false"}.get(base, "text"))
    return " or ".join(dict.fromkeys(said))


def limit(of: Any, name: str, value: Any) -> Any:
    """Check an argument of a constructor against its type; gives the value back.

    Raises:
        UserError: If it is outside the limits of the type.
    """
    base, bound = _limited(of)
    finite = not isinstance(value, float) or math.isfinite(value)
    whole = base is not int or (isinstance(value, int) and not isinstance(value, bool))
    if not (finite and whole and (bound is None or bound.holds(value))):
        raise UserError(f"{name} is {value}: it must be {bound.words if bound is not None else 'a finite number'}")
    return value


def _alternatives(of: Any) -> list[Any]:
    if typing.get_origin(of) in (Union, types.UnionType):
        return [inner for option in typing.get_args(of) for inner in _alternatives(option)]
    return [of]


def _last_is_text(of: Any) -> int:
    base, _ = _limited(of)
    order = (_NOTHING, bool, int, float)
    return order.index(base) if base in order else len(order) + (base is str)


def _limited(of: Any) -> tuple[Any, Limit | None]:
    if typing.get_origin(of) is Annotated:
        base, *notes = typing.get_args(of)
        return base, next((note for note in notes if isinstance(note, Limit)), None)
    return of, None


def _is_many(of: Any) -> bool:
    return typing.get_origin(of) in (tuple, list, Sequence)


def _read_one(of: Any, text: str) -> Any:
    base, bound = _limited(of)
    try:
        value = _read_base(base, text)
    except _MisfitError as error:
        raise error if bound is None or len(error.args) > 1 else _MisfitError(bound.words) from None
    if bound is not None and not bound.holds(value):
        raise _MisfitError(bound.words)
    return value


def _read_base(base: Any, text: str) -> Any:
    if typing.get_origin(base) is Literal:
        known = {write(word): word for word in typing.get_args(base)}
        if text not in known:
            raise _MisfitError(str(unknown_name("word", text, known)).partition("; ")[2], known)
        return known[text]
    if base is _NOTHING:
        if text.lower() != "none":
            raise _MisfitError("none")
        return None
    if base is bool:
        return _read_word(text, {"true": True, "yes": True, "false": False, "no": False}, "true or false")
    if base in (int, float):
        return _read_number(base, text)
    if _is_many(base):
        return _read_many(base, text)
    if not text:
        raise _MisfitError("a word")
    return text


def _read_word(text: str, known: dict[str, Any], what: str) -> Any:
    if text.lower() not in known:
        raise _MisfitError(what)
    return known[text.lower()]


def _read_number(base: type, text: str) -> float | int:
    what = "a whole number" if base is int else "a finite number"
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or (base is int and value != int(value)):
        raise _MisfitError(what)
    if base is int:
        # Not through a float, which has no room for the digits of a large one.
        return int(text) if text.strip().lstrip("+-").isdigit() else int(value)
    return value + 0.0  # minus zero becomes zero


def _read_many(base: Any, text: str) -> tuple[Any, ...]:
    of = [item for item in typing.get_args(base) if item is not ...]
    pieces = text.split("/") if "/" in text or ".." not in text else text.split("..")
    pieces = [] if text == "" else pieces
    fixed = typing.get_origin(base) is tuple and ... not in typing.get_args(base)
    if fixed and len(pieces) != len(of):
        raise _MisfitError(f"{len(of)} values, for instance {'/'.join(map(str, range(1, len(of) + 1)))}")
    return tuple(
        read(item, piece.strip()) for item, piece in zip(of if fixed else of * len(pieces), pieces, strict=True)
    )


def _guess(text: str) -> Any:
    for kind in (_NOTHING, int, float):
        try:
            return _read_base(kind, text)
        except _MisfitError:
            continue
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    return (
        tuple(_guess(piece) for piece in text.split("/"))
        if "/" in text.strip("/") and _numbers(text.split("/"))
        else text
    )


def _numbers(pieces: Iterable[str]) -> bool:
    return all(isinstance(_guess(piece), int | float) for piece in pieces)
