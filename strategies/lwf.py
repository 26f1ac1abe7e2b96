"""Learning without Forgetting on streams without task labels."""

from __future__ import annotations

import copy
from typing import Any

from avalanche.training.plugins import LwFPlugin as AvalancheLwFPlugin

from plasticity_cl.errors import UserError
from plasticity_cl.training.learner import Learner


class LwFPlugin(AvalancheLwFPlugin):  # type: ignore[misc]
    """Avalanche's ``LwFPlugin``, which asks every data set for task labels, made to do without them.

    Besides, the teacher stands in eval mode. Avalanche leaves it in training mode, where its dropout goes on and its
    batch normalisation learns from the new data; without these two both are the same.

    Args:
        alpha: Weight of the distillation.
        temperature: Of the softmax in the distillation.

    Raises:
        UserError: After the first experience, if it was one of regression.
    """

    def __init__(self, alpha: float = 1.0, temperature: float = 2.0) -> None:
        super().__init__(alpha, temperature)

    def after_training_exp(self, strategy: Learner, **kwargs: Any) -> None:
        """Keep a copy of the network as the teacher, and the classes that it knows."""
        dataset, lwf = strategy.experience.dataset, self.lwf
        if hasattr(dataset, "targets_task_labels"):
            super().after_training_exp(strategy, **kwargs)
        elif not hasattr(dataset, "targets"):
            raise UserError("lwf distils what a network says about classes, and these targets are no classes")
        else:
            lwf.expcount += 1
            lwf.prev_model = copy.deepcopy(strategy.model)
            lwf.prev_classes_by_task[0] |= {int(label) for label in dataset.targets.uniques}
        lwf.prev_model.eval()
