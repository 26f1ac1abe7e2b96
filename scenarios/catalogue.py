"""Every scenario and source by name. Light to import: the streams themselves are loaded when one is made."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from plasticity_cl.errors import UserError, unknown_name

if TYPE_CHECKING:
    from plasticity_cl.scenarios.sources import Source
    from plasticity_cl.scenarios.stream import InMemoryScenario


@dataclass(frozen=True)
class Entry:
    """What can be said of a scenario without loading it.

    Attributes:
        function: The function that makes it.
        help: What changes from experience to experience.
        n_experiences: Its length if none is asked for.
        options: Its options beyond the ones that all scenarios have.
        exchangeable: Whether all experiences are equally hard for a fresh network.
    """

    function: str
    help: str
    n_experiences: int
    options: tuple[str, ...] = ()
    exchangeable: bool = False

    @property
    def module(self) -> str:
        """The module of the function: its name in lower case."""
        return "plasticity_cl.scenarios." + re.sub(r"(?<!^)(?=[A-Z])", "_", self.function).lower()


SCENARIOS: Mapping[str, Entry] = {
    "label-reset": Entry(
        "LabelReset", "labels of a fraction of the samples are drawn anew", 40, ("fraction",), exchangeable=True
    ),
    "label-permutation": Entry("LabelPermutation", "classes get each other's names", 20, exchangeable=True),
    "input-permutation": Entry("InputPermutation", "pixels stand in another order", 20, exchangeable=True),
    "target-shift": Entry(
        "TargetShift", "the mean of regression targets moves", 8, ("schedule", "target_mean", "target_std", "targets")
    ),
    "class-incremental": Entry("ClassIncremental", "classes of its own in every experience", 5),
    "noisy-start": Entry("NoisyStart", "noise labels first, clean data after; nothing to forget", 20, ("noisy",)),
}


def check_scenario(name: str, options: Mapping[str, Any]) -> Entry:
    """Find a scenario, and check that it takes the options.

    Raises:
        UserError: If the name is unknown, or an option is none of the scenario's.
    """
    if name not in SCENARIOS:
        raise unknown_name("scenario", name, SCENARIOS)
    entry = SCENARIOS[name]
    for option in options:
        if option not in (*entry.options, "n_experiences", "n_samples", "seed"):
            takes = f"it takes {', '.join(entry.options)}" if entry.options else "it has none of its own"
            raise UserError(f"scenario {name} has no option {option}; {takes}")
    return entry


def make_scenario(name: str, source: Source, **options: Any) -> InMemoryScenario:
    """Make a scenario by name; options that are not given are the scenario's own defaults.

    Raises:
        UserError: If the name is unknown, or an option is none of the scenario's or out of its range.
    """
    entry = check_scenario(name, options)
    function = getattr(importlib.import_module(entry.module), entry.function)
    scenario: InMemoryScenario = function(source, **options)
    return scenario
