"""Streams that change: each a function that returns an Avalanche benchmark with lazy, in-memory streams."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plasticity_cl.scenarios.class_incremental import ClassIncremental
    from plasticity_cl.scenarios.input_permutation import InputPermutation
    from plasticity_cl.scenarios.iwildcam import IWildCam
    from plasticity_cl.scenarios.label_permutation import LabelPermutation
    from plasticity_cl.scenarios.label_reset import LabelReset
    from plasticity_cl.scenarios.noisy_start import NoisyStart
    from plasticity_cl.scenarios.sources import Source, load_source
    from plasticity_cl.scenarios.target_shift import TargetShift

# Avalanche takes ten seconds to import, so the names above are looked up when they are first used.
_MODULES = {
    "ClassIncremental": "class_incremental",
    "IWildCam": "iwildcam",
    "InputPermutation": "input_permutation",
    "LabelPermutation": "label_permutation",
    "LabelReset": "label_reset",
    "Source": "sources",
    "TargetShift": "target_shift",
    "NoisyStart": "noisy_start",
    "load_source": "sources",
}

__all__ = [
    "ClassIncremental",
    "IWildCam",
    "InputPermutation",
    "LabelPermutation",
    "LabelReset",
    "NoisyStart",
    "Source",
    "TargetShift",
    "load_source",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
