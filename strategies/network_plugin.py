"""What plugins that change the network share: to do it once, before the optimizer is made."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor
from torch.utils.data import default_collate

from plasticity_cl.errors import UserError
from plasticity_cl.seeding import preserve_rng
from plasticity_cl.training.learner import Learner

if TYPE_CHECKING:
    from avalanche.benchmarks import DatasetExperience
    from avalanche.training.templates import SupervisedTemplate


class NetworkPlugin(SupervisedPlugin, ABC):  # type: ignore[misc]
    """Changes ``strategy.model`` at the first experience that the strategy trains or evaluates on.

    That is before Avalanche makes the optimizer, which takes all parameters of ``strategy.model`` at the beginning of
    the first ``train()``, after ``before_train_dataset_adaptation``. A plugin object may serve several strategies.
    """

    @abstractmethod
    def change(self, strategy: Learner, inputs: Tensor, target: Tensor) -> None:
        """Change ``strategy.model``, and the optimizer's parameters where they are not all those of the model.

        The new network has the old one's device and mode. Gradients may be off, as they are in an evaluation.

        Args:
            strategy: The strategy, its model on its device.
            inputs: A batch of one sample of the experience, on the strategy's device, ``[1, ...]``.
            target: Its target, ``[1]`` or ``[1, d]``.
        """

    def prepare(self, strategy: SupervisedTemplate, experience: DatasetExperience) -> None:
        """Change the network of a strategy, unless that is done already. No random number is drawn.

        Strategies call it by themselves. Call it to have the final network before the first ``train()`` or ``eval()``,
        for instance to load a snapshot into it.

        Args:
            strategy: A strategy that has not trained yet.
            experience: Shows what inputs and targets are like.

        Raises:
            UserError: If the strategy has trained already, or the network cannot be changed in this way.
        """
        # Kept with the strategy, so that a copy of the strategy knows it too.
        prepared_by: list[Any] = vars(strategy).setdefault("_prepared_by", [])
        if any(plugin is self for plugin in prepared_by):
            return
        name = type(self).__name__
        if strategy.optimized_param_id is not None:
            raise UserError(
                f"{name} was added to a strategy that has trained already, whose optimizer is made for the network as "
                f"it is; hand {name} to a new strategy, before its first train()"
            )
        dataset = experience.dataset.train() if strategy.is_training else experience.dataset.eval()
        with preserve_rng():
            inputs, target = default_collate([dataset[0]])[:2]
            strategy.model.to(strategy.device)
            self.change(strategy, inputs.to(strategy.device), target)
        prepared_by.append(self)

    def before_train_dataset_adaptation(self, strategy: Learner, *args: Any, **kwargs: Any) -> None:
        """Change the network when training comes first."""
        self.prepare(strategy, strategy.experience)

    def before_eval_dataset_adaptation(self, strategy: Learner, *args: Any, **kwargs: Any) -> None:
        """Change the network when evaluation comes first."""
        self.prepare(strategy, strategy.experience)
