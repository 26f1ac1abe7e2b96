"""The table of a run, ``metrics.csv``: how its rows are written, and how they are read again. Light to import.

Rows are only ever appended. Where one has the metric, stream, layer and experience of an earlier one, it replaces it.
"""

from __future__ import annotations

import csv
import io
from typing import Any

HEADER = ("metric", "stream", "layer", "experience", "value")
Values = dict[tuple[str, str, str], dict[int, float]]
"""For each (metric, stream, layer), the value at each experience; both in order."""


def header() -> str:
    """The first line."""
    return _line(HEADER)


def row(metric: str, stream: str, layer: str, experience: int, value: float) -> str:
    """The line of one value, from which exactly this value is read again."""
    return _line((metric, stream, layer, experience, repr(float(value))))


def read(content: bytes) -> Values:
    """Read a table; of rows that are of the same the last one counts.

    Raises:
        ValueError: If it is no such table; it says in which line, and why.
    """
    values: Values = {}
    try:
        rows = csv.reader(content.decode().splitlines(), strict=True)
        first = next(rows, [])
        if tuple(first) != HEADER:
            raise ValueError(f"its header is {','.join(first)!r}, not {','.join(HEADER)!r}")
        for fields in rows:
            if len(fields) != len(HEADER):
                raise ValueError(f"line {rows.line_num} has {len(fields)} fields, not {len(HEADER)}")
            metric, stream, layer, experience, value = fields
            try:
                if not 0 <= int(experience) < 2**31:
                    raise ValueError(f"experience {experience} is out of range")
                values.setdefault((metric, stream, layer), {})[int(experience)] = float(value)
            except ValueError as error:
                raise ValueError(f"line {rows.line_num}: {error}") from error
    except csv.Error as error:
        raise ValueError(str(error)) from error
    return {key: dict(sorted(series.items())) for key, series in sorted(values.items())}


def whole_lines(content: bytes) -> bytes:
    """All of a table but half a line at its end, which a run that was killed may have left.

    Even where that half can be read it is not to be trusted: 0.1 may be the beginning of 0.1875.
    """
    return content[: content.rfind(b"\n") + 1]


def _line(fields: tuple[Any, ...]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(fields)
    return buffer.getvalue()
