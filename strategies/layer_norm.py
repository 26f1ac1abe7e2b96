"""Normalisation before every nonlinearity, against the shift of preactivations (mechanism 1)."""

from __future__ import annotations

from torch import Tensor

from plasticity_cl.errors import unknown_name
from plasticity_cl.models.layers import NORMALIZATIONS
from plasticity_cl.models.surgery import insert_normalization
from plasticity_cl.strategies.network_plugin import NetworkPlugin
from plasticity_cl.training.learner import Learner


class LayerNormPlugin(NetworkPlugin):
    """Puts a normalisation before every nonlinearity of the network (Lyle et al. 2024, section 5).

    ``strategy.model`` becomes a new module that shares the parameters of the model that the strategy was given, see
    :func:`plasticity_cl.models.surgery.insert_normalization`. Scale and shift of the normalisation start as the
    identity and join the optimizer's first parameter group.

    Args:
        kind: ``"layer"``, ``"batch"``, ``"rms"`` or ``"group"``.

    Raises:
        UserError: For an unknown kind; at the first experience, if the network cannot be traced.
    """

    def __init__(self, kind: str = "layer") -> None:
        super().__init__()
        if kind not in NORMALIZATIONS:
            raise unknown_name("normalization", kind, NORMALIZATIONS)
        self.kind = kind

    def change(self, strategy: Learner, inputs: Tensor, target: Tensor) -> None:
        """Insert the normalisation."""
        network = insert_normalization(strategy.model, self.kind, inputs)
        known = {id(parameter) for parameter in strategy.model.parameters()}
        # Avalanche would find them, too, but cannot tell their group where the optimizer has several.
        strategy.optimizer.param_groups[0]["params"] += [p for p in network.parameters() if id(p) not in known]
        strategy.model = network
