"""Single options of parts, which were fields of a spec before version 0.3.0: what to write instead. Light to import."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plasticity_cl.errors import UserError
from plasticity_cl.experiments.spec import Settings
from plasticity_cl.models.catalogue import MODELS
from plasticity_cl.parts import Catalogue, grammar
from plasticity_cl.scenarios.catalogue import SCENARIOS
from plasticity_cl.training.catalogue import OPTIMIZERS

_PARTS: Mapping[str, Catalogue] = {"scenario": SCENARIOS, "model": MODELS, "optimizer": OPTIMIZERS}

MOVED: Mapping[str, tuple[str, str]] = {
    **{name: ("scenario", name) for name in ("n_experiences", "n_samples", "fraction", "schedule", "targets", "noisy")},
    **{name: ("scenario", name) for name in ("by", "size", "min_size")},
    "target_mean": ("scenario", "mean"),
    "target_std": ("scenario", "std"),
    **{name: ("model", name) for name in ("width", "depth", "activation", "normalization", "weights")},
    "lr": ("optimizer", "lr"),
}
"""For each former field, the part whose option it is now, and that option's name."""


def new_spelling(given: Mapping[str, Any], parts: Mapping[str, Any]) -> dict[str, str]:
    """What to write instead of former fields.

    Args:
        given: Fields by name, former ones and others.
        parts: The parts that were given beside them, by name.

    Returns:
        For each part that is concerned, its whole text; nothing where no field is a former one.
    """
    texts: dict[str, str] = {}
    for part, catalogue in _PARTS.items():
        options = {MOVED[name][1]: value for name, value in given.items() if MOVED.get(name, ("",))[0] == part}
        if not options:
            continue
        before = parts.get(part, getattr(Settings, part))
        try:
            texts[part] = catalogue.read(before, options).text
        except UserError:  # its value is as wrong as its spelling: show how it is written
            name = grammar.name_of(before if isinstance(before, str) else before.get("name", ""))
            texts[part] = f"{name}:{','.join(f'{o}={value}' for o, value in options.items())}"
    return texts
