"""Every scenario and source by name. Light to import: streams and data are loaded when one is made.

A new one is a file beside the others and a line here. A scenario is a function of a source and its options; a source
is a function that returns what a scenario takes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from plasticity_cl.errors import UserError
from plasticity_cl.parts import Catalogue, Entry
from plasticity_cl.parts.signature import load
from plasticity_cl.scenarios.files import FILES

if TYPE_CHECKING:
    from plasticity_cl.scenarios.stream import InMemoryScenario

_HERE = "plasticity_cl.scenarios"
_PUBLISHED = f"{_HERE}.sources.published:published"
_CHECK = f"{_HERE}.files:check_files"

SCENARIOS = Catalogue(
    "scenario",
    "scenarios",
    {
        "label-reset": Entry(f"{_HERE}.label_reset:LabelReset", "labels of a fraction of the samples are drawn anew"),
        "label-permutation": Entry(f"{_HERE}.label_permutation:LabelPermutation", "classes get each other's names"),
        "input-permutation": Entry(f"{_HERE}.input_permutation:InputPermutation", "pixels stand in another order"),
        "target-shift": Entry(f"{_HERE}.target_shift:TargetShift", "the mean of regression targets moves"),
        "class-incremental": Entry(
            f"{_HERE}.class_incremental:ClassIncremental", "classes of its own in every experience"
        ),
        "noisy-start": Entry(
            f"{_HERE}.noisy_start:NoisyStart", "noise labels first, clean data after; nothing to forget"
        ),
        # Every experience is to be scored on the test stream, too.
        "iwildcam": Entry(
            f"{_HERE}.iwildcam.scenario:IWildCam",
            "camera traps: from one camera, or season, to the next; source wilds, or camera-traps, which is generated",
            {"min_test_size": 1},
        ),
    },
    given=("source", "seed"),
)

SOURCES = Catalogue(
    "source",
    "sources",
    {
        "digits": Entry(f"{_HERE}.sources.digits:digits", "scikit-learn's 1797 handwritten digits, bundled"),
        "synthetic": Entry(f"{_HERE}.sources.synthetic:synthetic", "Gaussian clusters as images, generated"),
        **{name: Entry(_PUBLISHED, "published, from the data folder", {"name": name}, check=_CHECK) for name in FILES},
        "image-folder": Entry(f"{_HERE}.sources.image_folder:image_folder", "your own images, a folder a class"),
        "npz": Entry(f"{_HERE}.sources.npz:npz", "your own arrays in an .npz file"),
        "wilds": Entry(
            f"{_HERE}.iwildcam.sources:wilds",
            "WILDS iWildCam v2.0, from the data folder; for iwildcam",
            check=f"{_HERE}.iwildcam.layout:check_wilds",
        ),
        "camera-traps": Entry(f"{_HERE}.iwildcam.sources:camera_traps", "the same in small, generated; for iwildcam"),
    },
    given=("data_root", "download"),
)


def check_source(scenario: str, source: str) -> None:
    """Check that a scenario is made of what a source gives, as far as both say so by their types.

    Raises:
        UserError: If one is unknown, or the scenario takes something else.
    """
    takes, gives = SCENARIOS.signature(scenario).takes, SOURCES.signature(source).gives
    if takes and gives and gives not in takes:
        suitable = [name for name in SOURCES if SOURCES.signature(name).gives in takes]
        raise UserError(
            f"scenario {scenario} is not made of {source}: its sources are {', '.join(suitable) or ', '.join(takes)}"
        )


def check_present(source: str, data_root: str | Path | None, download: bool) -> None:
    """Check that the files of a source are there, where its line in the catalogue says how.

    Raises:
        UserError: If they are not.
    """
    entry = SOURCES.entry(source)
    if entry.check:
        load(entry.check)(data_root=data_root, download=download, **entry.presets)


def make_scenario(name: str, source: Any, **options: Any) -> InMemoryScenario:
    """Make a scenario by name; options that are not given are the scenario's own defaults.

    Args:
        name: One of :data:`SCENARIOS`, with options or without, or the dotted path of a function.
        source: What it is made of.
        **options: Further options, and ``seed``.

    Raises:
        UserError: If the name is unknown, or an option is none of the scenario's or out of its range.
    """
    seed = {"seed": options.pop("seed")} if "seed" in options else {}
    scenario: InMemoryScenario = SCENARIOS.make(SCENARIOS.read(name, options), source=source, **seed)
    return scenario
