"""What plugins that change the network share: to do it once, before the optimizer is made."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils.data import default_collate

from plasticity_cl.errors import UserError
from plasticity_cl.seeding import preserve_rng
from plasticity_cl.strategies.intervention import Intervention
from plasticity_cl.training.learner import Learner
from plasticity_cl.training.per_strategy import PerStrategy

if TYPE_CHECKING:
    from avalanche.benchmarks import DatasetExperience
    from avalanche.training.templates import SupervisedTemplate


@dataclass
class _Preparation:
    """Whether the network of a strategy has been changed."""

    done: bool = False


class NetworkPlugin(Intervention, ABC):
    """Changes ``strategy.model`` at the first experience that the strategy trains or evaluates on.

    That is before Avalanche makes the optimizer, which takes all parameters of ``strategy.model`` at the beginning of
    the first ``train()``, after ``before_train_dataset_adaptation``. A plugin object may serve several strategies.

    What was changed is the network, and a snapshot holds its weights; to load one, the network is changed first, by
    :meth:`prepare`, as :func:`~plasticity_cl.training.snapshot.restore` does.
    """

    def __init__(self) -> None:
        super().__init__()
        self._prepared: PerStrategy[_Preparation] = PerStrategy(_Preparation)

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
        preparation = self._prepared.of(strategy)
        if preparation.done:
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
        preparation.done = True

    def is_prepared(self, strategy: Learner) -> bool:
        """Whether the network of ``strategy`` has been changed; the copy of a strategy knows it, too."""
        return self._prepared.of(strategy).done

    def before_train_dataset_adaptation(self, strategy: Learner, *args: Any, **kwargs: Any) -> None:
        """Change the network when training comes first."""
        self.prepare(strategy, strategy.experience)

    def before_eval_dataset_adaptation(self, strategy: Learner, *args: Any, **kwargs: Any) -> None:
        """Change the network when evaluation comes first."""
        self.prepare(strategy, strategy.experience)
