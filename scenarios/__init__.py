"""Streams that change: each a function that returns an Avalanche benchmark with lazy, in-memory streams."""

from typing import TYPE_CHECKING

from plasticity_cl.lazy import lazy_names

if TYPE_CHECKING:
    from plasticity_cl.scenarios.class_incremental import ClassIncremental
    from plasticity_cl.scenarios.input_permutation import InputPermutation
    from plasticity_cl.scenarios.iwildcam import IWildCam
    from plasticity_cl.scenarios.label_permutation import LabelPermutation
    from plasticity_cl.scenarios.label_reset import LabelReset
    from plasticity_cl.scenarios.noisy_start import NoisyStart
    from plasticity_cl.scenarios.sources import Source, load_source
    from plasticity_cl.scenarios.target_shift import TargetShift

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


__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "ClassIncremental": "class_incremental",
        "IWildCam": "iwildcam",
        "InputPermutation": "input_permutation",
        "LabelPermutation": "label_permutation",
        "LabelReset": "label_reset",
        "NoisyStart": "noisy_start",
        "Source": "sources",
        "TargetShift": "target_shift",
        "load_source": "sources",
    },
)
