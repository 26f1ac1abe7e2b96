"""What a metric says of its numbers, on its way into a run directory and back."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plasticity_cl.errors import UserError
from plasticity_cl.quantity import Quantity, Worse, from_json, quantities_of, to_json

WORDS = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=12)
BOUNDS = st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.integers(-9, 9)


@st.composite
def any_quantity(draw: Any) -> Quantity:
    low, high = draw(BOUNDS), draw(BOUNDS)
    if low is not None and high is not None and low >= high:
        high = None
    return Quantity(draw(WORDS), draw(WORDS), draw(st.sampled_from(get_args(Worse))), low, high, draw(WORDS))


@given(st.dictionaries(st.text(max_size=8), any_quantity(), max_size=5))
def test_what_is_read_is_what_was_written_in_the_same_order(quantities: dict[str, Quantity]) -> None:
    content = to_json(quantities)
    assert list(from_json(content).items()) == list(quantities.items())
    assert from_json(content.encode()) == quantities


def test_the_file_says_each_field_by_name() -> None:
    quantity = Quantity("drift of features", "Features", "up", low=0, unit="radians")
    assert json.loads(to_json({"drift": quantity})) == {
        "drift": {
            "words": "drift of features",
            "mechanism": "Features",
            "worse": "up",
            "low": 0,
            "high": None,
            "unit": "radians",
        }
    }


def test_a_later_version_may_say_more_and_an_own_file_less() -> None:
    assert from_json('{"drift": {"words": "drift", "colour": "red"}}') == {"drift": Quantity("drift")}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[]", "it is not an object of objects"),
        ('{"drift": "drift"}', "it is not an object of objects"),
        ('{"drift": {}}', "drift is not said in words"),
        ('{"drift": {"words": 3}}', "words of a quantity must be a text of one line, not 3"),
        ('{"drift": {"words": "drift", "worse": "upp"}}', "unknown way to be worse 'upp'; did you mean up"),
        ('{"drift": {"words": "drift", "low": "0"}}', "low of a quantity must be a number or None, not '0'"),
        ('{"drift": ', "Expecting value"),
    ],
)
def test_a_broken_file_is_told(content: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        from_json(content)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"words": ""}, "a quantity must say in words what it is"),
        ({"words": "two\nlines"}, "must be a text of one line"),
        ({"mechanism": None}, "mechanism of a quantity must be a text"),
        ({"unit": 3}, "unit of a quantity must be a text"),
        ({"worse": "sideways"}, "unknown way to be worse 'sideways'"),
        ({"low": float("-inf")}, "say None where there is no bound"),
        ({"high": float("nan")}, "say None where there is no bound"),
        ({"high": True}, "high of a quantity must be a number or None, not True"),
        ({"low": 1, "high": 1}, "between low = 1 and high = 1: low must be below high"),
    ],
)
def test_what_is_no_quantity_is_refused_in_one_line(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        Quantity(**{"words": "drift", **fields})
    assert "\n" not in str(caught.value)


class Own:
    quantities: Mapping[str, Quantity] = {"drift": Quantity("drift", "Features"), "shared": Quantity("said second")}


class First:
    quantities: Mapping[str, Quantity] = {"shared": Quantity("said first")}


def test_metrics_are_asked_in_turn_and_need_say_nothing() -> None:
    found = quantities_of([object(), First(), Own()])
    assert list(found) == ["shared", "drift"]
    assert found["shared"].words == "said first"


@pytest.mark.parametrize("quantities", [["drift"], {"drift": "a drift"}, {3: Quantity("drift")}, None])
def test_a_metric_that_says_something_else_is_named(quantities: Any) -> None:
    own = type("MyMetric", (), {"quantities": quantities})()
    with pytest.raises(UserError, match=r"MyMetric\.quantities must map names to quantities"):
        quantities_of([own])


def test_it_is_light_and_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Quantity("drift").words = "other"  # type: ignore[misc]
    code = "import sys, plasticity_cl.quantity, plasticity_cl.table; print({'torch', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
