"""Interventions on the loss of plasticity, one file each, all Avalanche plugins; ready strategies; the catalogue.

Importing this package is cheap: the catalogue knows names and values only, and whatever needs torch and Avalanche is
imported when it is first asked for.
"""

from typing import TYPE_CHECKING

from plasticity_cl.lazy import lazy_names
from plasticity_cl.strategies.catalogue import (
    COMPONENTS,
    FINETUNE,
    Component,
    Strategy,
    fresh_name,
    make_plugins,
    normalise,
    parse,
    read_strategy,
)

if TYPE_CHECKING:
    from plasticity_cl.strategies.ewc import EWCPlugin
    from plasticity_cl.strategies.intervention import Intervention
    from plasticity_cl.strategies.l2 import L2Plugin
    from plasticity_cl.strategies.layer_norm import LayerNormPlugin
    from plasticity_cl.strategies.lwf import LwFPlugin
    from plasticity_cl.strategies.network_plugin import NetworkPlugin
    from plasticity_cl.strategies.optimizer_reset import OptimizerResetPlugin
    from plasticity_cl.strategies.ready import (
        L2,
        Finetune,
        LayerNorm,
        LayerNormL2,
        LayerNormL2ScaleInvariant,
        ScaleInvariant,
    )
    from plasticity_cl.strategies.replay import ReplayPlugin
    from plasticity_cl.strategies.scale_invariant import ScaleInvariantLossPlugin
    from plasticity_cl.strategies.weight_decay import WeightDecayPlugin

__all__ = [
    "COMPONENTS",
    "FINETUNE",
    "L2",
    "Component",
    "EWCPlugin",
    "Finetune",
    "Intervention",
    "L2Plugin",
    "LayerNorm",
    "LayerNormL2",
    "LayerNormL2ScaleInvariant",
    "LayerNormPlugin",
    "LwFPlugin",
    "NetworkPlugin",
    "OptimizerResetPlugin",
    "ReplayPlugin",
    "ScaleInvariant",
    "ScaleInvariantLossPlugin",
    "Strategy",
    "WeightDecayPlugin",
    "fresh_name",
    "make_plugins",
    "normalise",
    "parse",
    "read_strategy",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "EWCPlugin": "ewc",
        "Intervention": "intervention",
        "L2Plugin": "l2",
        "LayerNormPlugin": "layer_norm",
        "LwFPlugin": "lwf",
        "NetworkPlugin": "network_plugin",
        "OptimizerResetPlugin": "optimizer_reset",
        "ReplayPlugin": "replay",
        "ScaleInvariantLossPlugin": "scale_invariant",
        "WeightDecayPlugin": "weight_decay",
        **dict.fromkeys(
            ("Finetune", "LayerNorm", "L2", "LayerNormL2", "ScaleInvariant", "LayerNormL2ScaleInvariant"), "ready"
        ),
    },
)
