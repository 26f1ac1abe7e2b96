"""A spec in a TOML file: the fields by name, parts as text or as tables. Light to import."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from plasticity_cl.errors import UserError, unknown_name
from plasticity_cl.experiments.moved import new_spelling
from plasticity_cl.experiments.spec import CompareSpec, RunSpec
from plasticity_cl.metrics.catalogue import write_diagnostics
from plasticity_cl.models.catalogue import MODELS
from plasticity_cl.scenarios.catalogue import SCENARIOS, SOURCES
from plasticity_cl.strategies.catalogue import normalise
from plasticity_cl.training.catalogue import OPTIMIZERS

S = TypeVar("S", RunSpec, CompareSpec)

_PARTS: Mapping[str, Callable[[Any], str]] = {
    "scenario": lambda given: SCENARIOS.read(given).text,
    "source": lambda given: SOURCES.read(given).text,
    "model": lambda given: MODELS.read(given).text,
    "optimizer": lambda given: OPTIMIZERS.read(given).text,
    "strategy": normalise,
    "baseline": normalise,
    "diagnostics": write_diagnostics,
}


def read_toml(path: Path, kind: type[S]) -> S:
    """Read a spec from a TOML file with the fields of ``kind``.

    A part may be a table of its ``name`` and its options instead of a text, also in the list of strategies.

    Raises:
        UserError: If the file is missing or no TOML, or a key is unknown, or a value is of the wrong type.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path} is not a TOML file: {error}") from None
    hints = get_type_hints(kind)
    moved = new_spelling({key: value for key, value in values.items() if key not in hints}, values)
    if moved:
        raise UserError(f"{path}: write {', '.join(f'{part} = {text!r}' for part, text in moved.items())}")
    for key, value in values.items():
        if key not in hints:
            raise UserError(f"{path}: {unknown_name('key', key, hints)}")
        try:
            values[key] = _typed(path, key, value, hints[key])
        except UserError as error:
            raise error if str(error).startswith(str(path)) else UserError(f"{path}: {error}") from None
    return kind(**values)


def _typed(path: Path, key: str, value: Any, hint: Any) -> Any:
    if key in _PARTS and (isinstance(value, dict) or (key == "diagnostics" and isinstance(value, list))):
        return _PARTS[key](value)
    if key == "strategies" and isinstance(value, list) and all(isinstance(entry, str | dict) for entry in value):
        return tuple(entry if isinstance(entry, str) else normalise(entry) for entry in value)
    options = get_args(hint) or (hint,)
    if hint in (tuple[str, ...], tuple[int, ...]):
        item = options[0]
        if isinstance(value, list) and all(type(entry) is item for entry in value):
            return tuple(value)
        raise UserError(f"{path}: {key} must be a list of {'strings' if item is str else 'integers'}, not {value!r}")
    if float in options and type(value) is int:
        return float(value)
    if type(value) in options:
        return value
    names = {str: "a string", int: "an integer", float: "a number"}
    also = " or a table" if key in _PARTS else ""
    raise UserError(
        f"{path}: {key} must be {' or '.join(names[o] for o in options if o in names)}{also}, not {value!r}"
    )
