"""What the interventions here share: a state that can be saved."""

from __future__ import annotations

from typing import Any

from avalanche.training.plugins import SupervisedPlugin


class Intervention(SupervisedPlugin):  # type: ignore[misc]
    """A plugin that acts on the training, and says what it has to remember from one experience to the next.

    Most remember nothing. One that does overrides both methods, so that a run that was stopped between two experiences
    goes on to the same weights; see :func:`~plasticity_cl.training.snapshot.restore`.
    """

    def state_dict(self) -> dict[str, Any]:
        """What has to be remembered: tensors, numbers, strings, and lists and dictionaries of them; nothing here."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave.

        Args:
            state: As it was, or as ``torch.load(..., weights_only=True)`` read it.
        """
