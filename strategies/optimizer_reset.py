"""A fresh optimizer for every experience, against stale moments."""

from __future__ import annotations

from typing import Any

from plasticity_cl.strategies.intervention import Intervention
from plasticity_cl.training.learner import Learner


class OptimizerResetPlugin(Intervention):
    """Forgets the optimizer's moments, momenta and step counts where an experience begins; weights stay.

    Avalanche carries the optimizer's state from one experience to the next. Adam's second moments are then those of the
    last experience, small where training had converged, and the first steps on new data are too large by as much (Lyle
    et al. 2023, "Understanding Plasticity in Neural Networks"). The first experience starts with an empty state anyway.
    """

    acts_on_first_experience = False

    def before_training_exp(self, strategy: Learner, *args: Any, **kwargs: Any) -> None:
        """Clear the state."""
        strategy.optimizer.state.clear()
