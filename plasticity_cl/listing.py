"""What `plasticity-cl list` prints: all parts by name, or the options of some. Light to import."""

from __future__ import annotations

import re
import textwrap

from plasticity_cl.errors import unknown_name
from plasticity_cl.experiments.catalogue import EXECUTORS
from plasticity_cl.metrics.catalogue import METRICS
from plasticity_cl.models.catalogue import MODELS
from plasticity_cl.parts import Catalogue, grammar, values
from plasticity_cl.parts.signature import REQUIRED, Argument
from plasticity_cl.scenarios.catalogue import SCENARIOS, SOURCES
from plasticity_cl.strategies.catalogue import COMPONENTS
from plasticity_cl.training.catalogue import OPTIMIZERS

_CATALOGUES: dict[str, Catalogue] = {
    "scenarios": SCENARIOS,
    "sources": SOURCES,
    "networks (--model)": MODELS,
    "optimizers": OPTIMIZERS,
    "strategies: finetune, or any of these joined by +, as in layernorm+l2=1e-3": COMPONENTS,
    "diagnostics: none, light, all, or any of these joined by +": METRICS,
    "executors": EXECUTORS,
}


def list_all() -> str:
    """Every part by name, with a line of help, in 80 columns."""
    parts = []
    for title, catalogue in _CATALOGUES.items():
        items = [_item(name, catalogue.help(name)) for name in (*catalogue, *catalogue.others)]
        parts.append("\n".join([title, *items]))
    return "\n\n".join([*parts, "`plasticity-cl list NAME` says the options of one."])


def list_options(name: str) -> str:
    """The options of a part: name, what it can be, default, and what it does.

    Args:
        name: In a catalogue, or a dotted path, with options or without.

    Raises:
        UserError: If there is no such part.
    """
    name = grammar.name_of(name)
    name = name if "." in name else name.lower()
    found = [catalogue for catalogue in _CATALOGUES.values() if name in catalogue or name in catalogue.others]
    if not found and "." not in name:
        raise unknown_name("part", name, [known for catalogue in _CATALOGUES.values() for known in catalogue])
    # Of a part of somebody else's it is not known what it is for: what a run fills in is told from its name.
    catalogue = found[0] if found else Catalogue("part", "parts", {}, tuple({*_filled_in()}))
    options = catalogue.options(name)
    head = _item(name, catalogue.help(name))[2:]
    if not options:
        return f"{head}\n  no options"
    return "\n".join([head, *map(_option, options.values())])


def _filled_in() -> list[str]:
    return [name for catalogue in _CATALOGUES.values() for name in catalogue.given]


def _option(option: Argument) -> str:
    default = "required" if option.default is REQUIRED else f"default {_shown(option)}"
    text = f"{values.words(option.type)}; {default}. {_plain(option.help)}".rstrip(". ") + "."
    return _item(option.name, text)


def _shown(option: Argument) -> str:
    plain = isinstance(option.default, int | float | str | tuple | None)
    return values.write(option.default, option.type) if plain else repr(option.default)


def _plain(text: str) -> str:
    """A docstring's words without its marks: :class:`~a.b.C` is C."""
    text = re.sub(r":\w+:`~(?:[\w.]*\.)?(\w+)`", r"\1", text)
    return re.sub(r":\w+:`([^`]*)`", r"\1", text).replace("``", "")


def _item(name: str, text: str) -> str:
    return textwrap.fill(text, 79, initial_indent=f"  {name:<18} ", subsequent_indent=" " * 21)
