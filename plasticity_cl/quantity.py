"""What a number that a metric emits is, for those who read it. Light to import."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

from plasticity_cl.errors import UserError, unknown_name

Worse = Literal["up", "down", "away from 0", "near 1", "set by the stream", "neither"]


@dataclasses.dataclass(frozen=True)
class Quantity:
    """What is known of a quantity beside its name and its values.

    A metric carries one for each name that it emits, ``quantities = {"drift": Quantity("drift of features", ...)}``,
    and a run writes them into its directory, where the report finds them. Nothing needs one: a number that nobody
    describes is shown under its name.

    Attributes:
        words: What it is, in a few words: its caption in figures and tables.
        mechanism: The heading that it is shown under, with all that have the same; a mechanism of plasticity loss for
            instance. Without one it stands with the others.
        worse: Which way it goes as a network wears out: ``"up"``, ``"down"``, ``"away from 0"``, ``"near 1"``;
            ``"neither"`` where it is not good or bad in itself, ``"set by the stream"`` where no network changes it.
        low: What it is never below, if there is such a thing.
        high: What it is never above, likewise.
        unit: What it is measured in: ``"share"``, ``"bits"``, ``"updates"``; nothing for a pure number.

    Raises:
        UserError: If a field is no such thing, or the bounds are the wrong way round.
    """

    words: str
    mechanism: str = ""
    worse: Worse = "neither"
    low: float | None = None
    high: float | None = None
    unit: str = ""

    def __post_init__(self) -> None:
        for field in ("words", "mechanism", "unit"):
            value = getattr(self, field)
            if not isinstance(value, str) or len(value.splitlines()) > 1:
                raise UserError(f"{field} of a quantity must be a text of one line, not {value!r}")
        if not self.words:
            raise UserError("a quantity must say in words what it is")
        if self.worse not in get_args(Worse):
            raise unknown_name("way to be worse", str(self.worse), get_args(Worse))
        for field in ("low", "high"):
            bound = getattr(self, field)
            if bound is not None and (isinstance(bound, bool) or not isinstance(bound, int | float)):
                raise UserError(f"{field} of a quantity must be a number or None, not {bound!r}")
            if bound is not None and not math.isfinite(bound):
                raise UserError(f"{field} of a quantity is {bound}: say None where there is no bound")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise UserError(f"a quantity is between low = {self.low} and high = {self.high}: low must be below high")


def quantities_of(metrics: Iterable[Any]) -> dict[str, Quantity]:
    """What metrics say of the numbers that they emit, in their order; of one name what is said first.

    Args:
        metrics: With an attribute ``quantities``, from a name to a :class:`Quantity`, or without one.

    Raises:
        UserError: If ``quantities`` of a metric is anything else.
    """
    found: dict[str, Quantity] = {}
    for metric in metrics:
        of_metric = getattr(metric, "quantities", {})
        kind = type(metric).__name__
        if not isinstance(of_metric, Mapping):
            raise UserError(f"{kind}.quantities must map names to quantities, and is a {type(of_metric).__name__}")
        for name, quantity in of_metric.items():
            if not isinstance(name, str) or not isinstance(quantity, Quantity):
                raise UserError(f"{kind}.quantities must map names to quantities, not {name!r} to {quantity!r}")
            found.setdefault(name, quantity)
    return found


def to_json(quantities: Mapping[str, Quantity]) -> str:
    """Write quantities as ``metrics.json`` holds them: from a name to the fields."""
    fields = {name: dataclasses.asdict(quantity) for name, quantity in quantities.items()}
    return json.dumps(fields, indent=2, ensure_ascii=False) + "\n"


def from_json(content: bytes | str) -> dict[str, Quantity]:
    """Read what :func:`to_json` wrote; fields that are not known here, as a later version may have, are passed over.

    Raises:
        ValueError: If it is anything else; a :class:`UserError` is one.
    """
    read = json.loads(content)
    if not isinstance(read, dict) or not all(isinstance(fields, dict) for fields in read.values()):
        raise ValueError("it is not an object of objects")
    known = {field.name for field in dataclasses.fields(Quantity)}
    quantities = {}
    for name, fields in read.items():
        if "words" not in fields:
            raise ValueError(f"{name} is not said in words")
        quantities[name] = Quantity(**{field: value for field, value in fields.items() if field in known})
    return quantities
