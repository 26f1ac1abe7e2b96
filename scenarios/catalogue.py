"""Every scenario and source by name. Light to import: the streams themselves are loaded when one is made."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from plasticity_cl.errors import UserError, unknown_name
from plasticity_cl.scenarios.files import SOURCES

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
        regression: Whether its targets are numbers, and not classes.
        twin: The options of the stream on which the fresh networks of the baseline are trained, where that is another
            one: the same stream without what the scenario makes hard.
        sources: The data sets that it is made of, where they are not those that all other scenarios share: these are
            folders of images, and not in memory.
    """

    function: str
    help: str
    n_experiences: int
    options: tuple[str, ...] = ()
    exchangeable: bool = False
    regression: bool = False
    twin: Mapping[str, Any] = field(default_factory=dict)
    sources: tuple[str, ...] = ()


SCENARIOS: Mapping[str, Entry] = {
    "label-reset": Entry(
        "LabelReset", "labels of a fraction of the samples are drawn anew", 40, ("fraction",), exchangeable=True
    ),
    "label-permutation": Entry("LabelPermutation", "classes get each other's names", 20, exchangeable=True),
    "input-permutation": Entry("InputPermutation", "pixels stand in another order", 20, exchangeable=True),
    "target-shift": Entry(
        "TargetShift",
        "the mean of regression targets moves",
        8,
        ("schedule", "target_mean", "target_std", "targets"),
        regression=True,
        twin={"schedule": "constant", "target_mean": 0.0},
    ),
    "class-incremental": Entry("ClassIncremental", "classes of its own in every experience", 5),
    "noisy-start": Entry("NoisyStart", "noise labels first, clean data after; nothing to forget", 20, ("noisy",)),
    "iwildcam": Entry(
        "IWildCam",
        "camera traps: from one camera, or season, to the next; source wilds, or camera-traps, which is generated",
        243,
        ("by", "size", "min_size"),
        sources=("wilds", "camera-traps"),
    ),
}

ALL_SOURCES = (*SOURCES, *(source for entry in SCENARIOS.values() for source in entry.sources))

CHOICES: Mapping[str, tuple[str, ...]] = {
    "schedule": ("constant", "alternating", "growing", "random-walk"),
    "targets": ("noise", "sine", "label"),
    "by": ("location", "time", "cluster"),
}
"""Options that are one of a few words."""


def check_scenario(name: str, options: Mapping[str, Any]) -> Entry:
    """Find a scenario, and check that it takes the options, and that numbers are numbers and words are known.

    Raises:
        UserError: If the name is unknown, or an option is none of the scenario's or can have no such value.
    """
    if name not in SCENARIOS:
        raise unknown_name("scenario", name, SCENARIOS)
    entry = SCENARIOS[name]
    common = ("n_experiences", "seed") if entry.sources else ("n_experiences", "n_samples", "seed")
    for option, value in options.items():
        if option not in (*entry.options, *common):
            takes = f"it takes {', '.join(entry.options)}" if entry.options else "it has none of its own"
            raise UserError(f"scenario {name} has no option {option}; {takes}")
        if isinstance(value, str) and value not in CHOICES.get(option, (value,)):
            raise unknown_name(option, value, CHOICES[option])
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{option} is {value}: it must be a finite number")
    return entry


def check_source(scenario: str, source: str) -> None:
    """Check that a scenario is made of a source.

    Raises:
        UserError: If the name is unknown, or one of another scenario's sources.
    """
    own = SCENARIOS[scenario].sources
    if source in (own or SOURCES):
        return
    if source not in ALL_SOURCES:
        raise unknown_name("source", source, own or SOURCES)
    raise UserError(f"scenario {scenario} is not made of {source}: its sources are {' and '.join(own or SOURCES)}")


def make_scenario(name: str, source: Source, **options: Any) -> InMemoryScenario:
    """Make a scenario by name; options that are not given are the scenario's own defaults.

    Raises:
        UserError: If the name is unknown or not made of such a source, or an option is none of the scenario's or out
            of its range.
    """
    entry = check_scenario(name, options)
    if entry.sources:
        check_source(name, source.name)
    function = getattr(importlib.import_module("plasticity_cl.scenarios"), entry.function)
    scenario: InMemoryScenario = function(source, **options)
    return scenario
