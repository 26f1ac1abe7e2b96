"""Learning without Forgetting on streams without task labels."""

from __future__ import annotations

import copy
from typing import Any

from avalanche.training.plugins import LwFPlugin as AvalancheLwFPlugin

from plasticity_cl.errors import UserError
from plasticity_cl.parts.values import Positive, Strength, limit
from plasticity_cl.training.learner import Learner


class LwFPlugin(AvalancheLwFPlugin):  # type: ignore[misc]
    """Avalanche's ``LwFPlugin``, which asks every data set for task labels, made to do without them.

    Besides, the teacher stands in eval mode. Avalanche leaves it in training mode, where its dropout goes on and its
    batch normalisation learns from the new data; without these two both are the same.

    Args:
        alpha: Weight of the distillation, at least 0.
        temperature: Of the softmax in the distillation.

    Raises:
        UserError: If ``alpha`` is negative or not finite. After the first experience, if it was one of regression.
    """

    acts_on_first_experience = False

    def __init__(self, alpha: Strength = 1.0, temperature: Positive = 2.0) -> None:
        limit(Strength, "the weight of distillation", alpha)
        limit(Positive, "the temperature of distillation", temperature)
        super().__init__(alpha, temperature)
        self._learned: list[dict[int, list[int]]] = []
        self._teacher: dict[str, Any] | None = None

    def before_train_dataset_adaptation(self, strategy: Learner, *args: Any, **kwargs: Any) -> None:
        """Make the teacher of a state that was loaded."""
        if self._teacher is not None:
            self.lwf.prev_model = copy.deepcopy(strategy.model).eval()
            self.lwf.prev_model.load_state_dict(self._teacher)
            self._teacher = None

    def after_training_exp(self, strategy: Learner, **kwargs: Any) -> None:
        """Keep a copy of the network as the teacher, and the classes that it knows."""
        dataset, lwf = strategy.experience.dataset, self.lwf
        if hasattr(dataset, "targets_task_labels"):
            super().after_training_exp(strategy, **kwargs)
            learned = {
                int(task): [int(label) for label in dataset.task_set[task].targets.uniques]
                for task in dataset.targets_task_labels.uniques
            }
        elif not hasattr(dataset, "targets"):
            raise UserError("lwf distils what a network says about classes, and these targets are no classes")
        else:
            lwf.expcount += 1
            lwf.prev_model = copy.deepcopy(strategy.model)
            learned = {0: [int(label) for label in dataset.targets.uniques]}
            self._add_classes(learned)
        self._learned.append(learned)
        lwf.prev_model.eval()

    def state_dict(self) -> dict[str, Any]:
        """The teacher's weights, and the classes of each experience, in the order in which they came to be known."""
        teacher = self.lwf.prev_model
        weights = self._teacher if teacher is None else teacher.state_dict()
        return {"teacher": weights, "learned": self._learned}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave.

        Args:
            state: As it was, or as ``torch.load(..., weights_only=True)`` read it.
        """
        lwf = self.lwf
        self._teacher, lwf.prev_model = state["teacher"], None
        self._learned, lwf.expcount = [], len(state["learned"])
        lwf.prev_classes_by_task.clear()
        for learned in state["learned"]:
            self._add_classes(learned)
            self._learned.append(learned)

    def _add_classes(self, learned: dict[int, list[int]]) -> None:
        # One by one and in their order: the loss sums over a set in an order that depends on how it came to be.
        for task, labels in learned.items():
            self.lwf.prev_classes_by_task[task] |= {int(label) for label in labels}
