"""How a part is written: ``name``, ``name=value`` for its first option, or ``name:option=value,option=value``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from plasticity_cl.errors import UserError

_ESCAPED = {"%": "%25", ",": "%2C", "+": "%2B", "@": "%40"}
"""Signs of the grammar, as they are written within a value."""


@dataclass(frozen=True)
class Written:
    """A part as it was written.

    Attributes:
        name: Its name in a catalogue, or a dotted path.
        options: The text of each option; the first option of the part has an empty name.
    """

    name: str
    options: Mapping[str, str]


def name_of(text: str) -> str:
    """The name of a part alone, without its options, of whatever is written."""
    return re.split("[:=]", text, maxsplit=1)[0].strip()


def read(kind: str, text: str) -> Written:
    """Take a part apart.

    Args:
        kind: What it is a part of, for the message.
        text: As it was written.

    Raises:
        UserError: If it is not written as a part is.
    """
    text = text.strip()
    name, mark, rest = re.match(r"([^:=]*)([:=]?)(.*)", text, flags=re.DOTALL).groups()  # type: ignore[union-attr]
    name = name.strip()
    if not name:
        raise UserError(f"{kind} {text!r} has no name; write name, name=value or name:option=value,option=value")
    if "." not in name:
        name = name.lower()
    if mark == "=":
        return Written(name, {"": unescape(rest.strip())})
    options: dict[str, str] = {}
    for piece in rest.split(",") if mark else ():
        option, equals, value = piece.partition("=")
        option = option.strip().replace("-", "_")
        if not equals or not option:
            raise UserError(f"{kind} {text!r}: {piece.strip()!r} is no option; write option=value, joined by commas")
        if option in options:
            raise UserError(f"{kind} {text!r} gives {option} twice")
        options[option] = unescape(value.strip())
    return Written(name, options)


def write(name: str, options: Mapping[str, str], first: str | None) -> str:
    """Put a part together.

    Args:
        name: Its name.
        options: The text of each option that was given.
        first: The name of the option that stands alone behind ``=`` where no other was given, if there is one.
    """
    if not options:
        return name
    if set(options) == {first}:
        return f"{name}={escape(next(iter(options.values())))}"
    return f"{name}:{','.join(f'{option}={escape(value)}' for option, value in options.items())}"


def split(text: str, sign: str = "+") -> list[str]:
    """Cut a combination at its plus signs; that of an exponent, as in 1e+3, joins nothing."""
    if sign == "+":
        return [piece.strip() for piece in re.split(r"(?<!\de)(?<!\.e)\+", text, flags=re.IGNORECASE)]
    return [piece.strip() for piece in text.split(sign)]


def escape(value: str) -> str:
    """Write a value so that none of its signs is taken for the grammar's."""
    return "".join(_ESCAPED.get(sign, sign) for sign in value)


def unescape(value: str) -> str:
    """Undo :func:`escape`."""
    for sign, written in (*list(_ESCAPED.items())[1:], ("%", "%25")):
        value = value.replace(written, sign)
    return value
