"""The table of a run: what is written is what is read, whatever it is and wherever it was cut off."""

from __future__ import annotations

import csv
import io
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plasticity_cl import table

# Names of layers and metrics as code spells them; what breaks lines is in none.
NAMES = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=8)
ROWS = st.lists(st.tuples(NAMES, NAMES, NAMES, st.integers(0, 9), st.floats()), max_size=12)


@given(ROWS)
def test_what_is_read_is_what_was_written_and_the_last_row_counts(rows: list[tuple[str, str, str, int, float]]) -> None:
    content = (table.header() + "".join(table.row(*row) for row in rows)).encode()
    read = table.read(content)
    last = {row[:4]: row[4] for row in rows}
    flat = {(*key, k): value for key, series in read.items() for k, value in series.items()}
    assert flat.keys() == last.keys()
    assert all(flat[key].hex() == value.hex() for key, value in last.items()), "to the last bit"
    assert list(read) == sorted(read)
    assert all(list(series) == sorted(series) for series in read.values())


@given(ROWS)
def test_it_is_a_table_for_others_too(rows: list[tuple[str, str, str, int, float]]) -> None:
    content = table.header() + "".join(table.row(*row) for row in rows)
    read = list(csv.DictReader(io.StringIO(content, newline="")))
    assert [(row["metric"], row["layer"], int(row["experience"])) for row in read] == [(r[0], r[2], r[3]) for r in rows]


def test_a_row_is_as_it_always_was() -> None:
    assert table.header() == "metric,stream,layer,experience,value\n"
    assert table.row("learned", "train", "", 3, 0.1) == "learned,train,,3,0.1\n"
    assert table.row("dead_units", "probe", 'a,"b', 0, math.inf) == 'dead_units,probe,"a,""b",0,inf\n'


def test_wherever_it_was_cut_off_the_whole_lines_are_read() -> None:
    lines = [table.header(), *(table.row("learned", "train", "", k, 1 / (k + 3)) for k in range(4))]
    content = "".join(lines).encode()
    ends = [len("".join(lines[: i + 1])) for i in range(len(lines))]
    for cut in range(len(content) + 1):
        whole = table.whole_lines(content[:cut])
        n = sum(end <= cut for end in ends)
        assert whole == "".join(lines[:n]).encode()
        if n:
            series = table.read(whole).get(("learned", "train", ""), {})
            assert series == {k: 1 / (k + 3) for k in range(n - 1)}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "its header is '', not 'metric,stream,layer,experience,value'"),
        ("metric,value\n", "its header is 'metric,value'"),
        (table.header() + "learned,train\n", "line 2 has 2 fields, not 5"),
        (table.header() + "a,b,,0,1\na,b,,1,high\n", "line 3: could not convert string to float: 'high'"),
        (table.header() + "a,b,,-1,1\n", "line 2: experience -1 is out of range"),
        (table.header() + 'a,"b', "unexpected end of data"),
    ],
)
def test_what_is_no_table_is_told_with_its_line(content: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        table.read(content.encode())
