"""iWildCam: camera traps in the wild, published or synthetic; what is in its folder concerns no other stream."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plasticity_cl.lazy import lazy_names

if TYPE_CHECKING:
    from plasticity_cl.scenarios.iwildcam.scenario import IWildCam, WildsScenario

__all__ = ["IWildCam", "WildsScenario"]

__getattr__, __dir__ = lazy_names(__name__, dict.fromkeys(__all__, "scenario"))
