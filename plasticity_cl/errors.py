"""Errors that are the user's to mend: one clear line that says what was wrong and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in what was asked for. Commands print its one line and exit with code 2, without a traceback."""


def in_one_line(error: BaseException) -> str:
    """What an error says, in one line; nothing where it says nothing."""
    return " ".join(str(error).split())


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """Say that ``name`` is not a known ``kind``, with the close matches, or with all names where none is close.

    Args:
        kind: What the name should have been, for instance ``"scenario"``.
        name: What was given.
        known: Every name that would have been right.

    Returns:
        The error, to be raised by the caller.
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(names)}"
    return UserError(f"unknown {kind} {name!r}; {hint}")
