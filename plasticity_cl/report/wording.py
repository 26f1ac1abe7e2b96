"""Numbers and names in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from plasticity_cl.quantity import Quantity, Worse
from plasticity_cl.report.statistics import Estimate

SPLITS = {"train": "training data", "test": "test data", "ood": "data out of distribution"}


def number(value: float, digits: int = 2) -> str:
    """Write a number in few characters, for two digits at most five.

    Args:
        value: The number. From 1e99 on it is called infinite.
        digits: Decimals of numbers below ten; larger numbers get fewer, and from a thousand on k, M, or 1e9.

    Returns:
        The number, or ``-`` for NaN.
    """
    if math.isnan(value):
        return "-"
    if abs(value) >= 1e99:
        return "inf" if value > 0 else "-inf"
    for scale, unit, most in ((1.0, "", digits), (1e3, "k", 1), (1e6, "M", 1)):
        for decimals in range(most, -1, -1):
            text = f"{value / scale:.{decimals}f}"
            if abs(float(text)) < (10 ** (1 + most - decimals) if decimals else 1000):
                return (text.lstrip("-") if float(text) == 0 else text) + unit
    mantissa, exponent = f"{value:.0e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def interval(estimate: Estimate, digits: int = 2) -> str:
    """Write an estimate's interval, ``[0.51, 0.55]``; nothing where there are too few seeds for one."""
    if math.isnan(estimate.low):
        return ""
    return f"[{number(estimate.low, digits)}, {number(estimate.high, digits)}]"


def listed(names: Sequence[str], most: int = 6) -> str:
    """Join names: ``a, b and c``; of many the first ones, ``a, b, c, d, e and 20 others``."""
    if len(names) > most:
        names = [*names[: most - 1], f"{len(names) - most + 1} others"]
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)


_WORSE: Mapping[Worse, str] = {
    "up": "↑ worse",
    "down": "↓ worse",
    "away from 0": "away from 0: worse",
    "near 1": "near 1: worse",
    "set by the stream": "set by the stream",
    "neither": "not good or bad in itself",
}


def worse(quantity: Quantity | None) -> str:
    """Say which way a quantity is bad; nothing of one that nobody described."""
    return "" if quantity is None else _WORSE[quantity.worse]


def in_words(metric: str, quantity: Quantity | None) -> str:
    """Name a quantity by what is said of it, or else by its name."""
    return metric.replace("_", " ") if quantity is None else quantity.words


def diagnostic_in_words(metric: str, quantity: Quantity | None, layers: Sequence[str]) -> str:
    """Name a diagnostic and the layers that it is taken over."""
    words = in_words(metric, quantity)
    if len(layers) > 1:
        return f"{words} (mean over layers)"
    return f"{words} ({layers[0]})" if layers[0] else words


def about(quantity: Quantity | None) -> str:
    """Say in one line what else is known of a quantity, such as ``share, from 0 to 1; ↑ worse``."""
    if quantity is None:
        return ""
    low, high = (None if bound is None else f"{bound:g}" for bound in (quantity.low, quantity.high))
    bounds = (
        f"from {low} to {high}" if low and high else f"at least {low}" if low else f"at most {high}" if high else ""
    )
    return "; ".join(part for part in (", ".join(filter(None, (quantity.unit, bounds))), worse(quantity)) if part)


def plain(text: str) -> str:
    """Replace whatever is not a printable ASCII character, so that a character is a column and a line stays a line."""
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in text)


def abbreviate(names: Iterable[str], width: int, clean: Callable[[str], str] = plain) -> dict[str, str]:
    """Shorten strategy names to a width, and keep them apart.

    The longest words are cut first and values stay whole: ``layernorm+l2=0.001`` becomes ``layern.+l2=0.001``. Names
    that are still too long lose their end; names that became alike are numbered.

    Args:
        names: The names.
        width: The largest number of characters, at least 6.
        clean: Replaces what cannot be shown.

    Returns:
        The short form of each name, in characters that can be shown.
    """
    short: dict[str, str] = {}
    for name in names:
        candidate = _shorten(clean(name), width)
        tag = 2
        while candidate in short.values():
            candidate = f"{_shorten(clean(name), width)[: width - len(f'~{tag}')]}~{tag}"
            tag += 1
        short[name] = candidate
    return short


def _shorten(name: str, width: int) -> str:
    parts = [part.partition("=") for part in name.split("+")]
    lengths = [len(word) for word, _, _ in parts]

    def written() -> str:
        words = [w if n == len(w) else f"{w[:n]}." for (w, _, _), n in zip(parts, lengths, strict=True)]
        return "+".join(word + sign + value for word, (_, sign, value) in zip(words, parts, strict=True))

    while len(written()) > width and max(lengths) > 3:
        lengths[lengths.index(max(lengths))] -= 1
    return written() if len(written()) <= width else f"{written()[: width - 2]}.."
