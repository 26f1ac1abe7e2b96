"""Elastic weight consolidation, against forgetting."""

from __future__ import annotations

from typing import Any

from avalanche.training.plugins import EWCPlugin as AvalancheEWCPlugin
from avalanche.training.utils import ParamData

from plasticity_cl.parts.values import Strength, limit


class EWCPlugin(AvalancheEWCPlugin):  # type: ignore[misc]
    """Avalanche's ``EWCPlugin`` in its online form, without decay, and with a state that can be saved.

    Pulls weights towards those after the last experience, each by its importance: its mean squared gradient on the
    experiences so far, summed. One penalty stands for all of them; the original's separate ones (Kirkpatrick et al.
    2017) cost more with every experience.

    Args:
        strength: Weight of the penalty, at least 0.

    Raises:
        UserError: If ``strength`` is negative or not finite.
    """

    acts_on_first_experience = False

    def __init__(self, strength: Strength = 100.0) -> None:
        super().__init__(limit(Strength, "the strength of EWC", strength), mode="online", decay_factor=1.0)

    def state_dict(self) -> dict[str, Any]:
        """Weights and importances of the last experience, by its number and by the names of the parameters."""
        return {"saved_params": _tensors(self.saved_params), "importances": _tensors(self.importances)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave.

        Args:
            state: As it was, or as ``torch.load(..., weights_only=True)`` read it.
        """
        for name in ("saved_params", "importances"):
            held = getattr(self, name)
            held.clear()
            for number, tensors in state[name].items():
                held[number] = {
                    key: ParamData(key, init_tensor=tensor.clone(), device=tensor.device)
                    for key, tensor in tensors.items()
                }


def _tensors(of_experiences: Any) -> dict[int, dict[str, Any]]:
    return {n: {key: held.data for key, held in values.items()} for n, values in of_experiences.items() if values}
