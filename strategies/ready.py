"""Ready strategies: finetuning, and finetuning with the interventions on each mechanism of plasticity loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from avalanche.training.plugins.evaluation import default_evaluator
from torch import Tensor, nn
from torch.optim import Optimizer

from plasticity_cl.strategies.l2 import L2Plugin
from plasticity_cl.strategies.layer_norm import LayerNormPlugin
from plasticity_cl.strategies.scale_invariant import ScaleInvariantLossPlugin
from plasticity_cl.training import SupervisedTemplate


class Finetune(SupervisedTemplate):
    """Trains on one experience after the other, with nothing against forgetting or plasticity loss.

    Avalanche's ``Naive`` on the template that is fast on streams in memory.

    Args:
        model: The network.
        optimizer: Made from the model's parameters.
        criterion: Loss function of output and target.
        train_mb_size: Samples in a batch of training.
        train_epochs: Passes over each experience.
        eval_mb_size: Samples in a batch of evaluation; as in training when ``None``.
        device: Where to train.
        plugins: Any plugins of Avalanche's or of ours.
        evaluator: Metrics and loggers.
        eval_every: Epochs between evaluations during training; 0 for one at the end, -1 for none.
        **base_kwargs: Further arguments of Avalanche's ``SupervisedTemplate``.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: Optimizer,
        criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
        train_mb_size: int = 1,
        train_epochs: int = 1,
        eval_mb_size: int | None = None,
        device: str | torch.device = "cpu",
        plugins: Sequence[SupervisedPlugin] | None = None,
        evaluator: EvaluationPlugin | Callable[[], EvaluationPlugin] | None = default_evaluator,
        eval_every: int = -1,
        **base_kwargs: Any,
    ) -> None:
        super().__init__(
            model=model,
            optimizer=optimizer,
            criterion=nn.CrossEntropyLoss() if criterion is None else criterion,
            train_mb_size=train_mb_size,
            train_epochs=train_epochs,
            eval_mb_size=eval_mb_size,
            device=device,
            plugins=plugins,
            evaluator=evaluator,
            eval_every=eval_every,
            **base_kwargs,
        )


class LayerNorm(Finetune):
    """Finetuning with a normalisation before every nonlinearity.

    Args:
        kind: As for :class:`~plasticity_cl.strategies.LayerNormPlugin`.
        plugins: Come after our own.
        **base_kwargs: The arguments of :class:`Finetune`.
    """

    def __init__(
        self, *, kind: str = "layer", plugins: Sequence[SupervisedPlugin] | None = None, **base_kwargs: Any
    ) -> None:
        super().__init__(plugins=[LayerNormPlugin(kind), *(plugins or ())], **base_kwargs)


class L2(Finetune):
    """Finetuning with an L2 penalty.

    Args:
        strength: As for :class:`~plasticity_cl.strategies.L2Plugin`.
        plugins: Come after our own.
        **base_kwargs: The arguments of :class:`Finetune`.
    """

    def __init__(
        self, *, strength: float = 1e-3, plugins: Sequence[SupervisedPlugin] | None = None, **base_kwargs: Any
    ) -> None:
        super().__init__(plugins=[L2Plugin(strength), *(plugins or ())], **base_kwargs)


class LayerNormL2(Finetune):
    """Finetuning with a normalisation before every nonlinearity and an L2 penalty.

    Args:
        kind: As for :class:`~plasticity_cl.strategies.LayerNormPlugin`.
        strength: As for :class:`~plasticity_cl.strategies.L2Plugin`.
        plugins: Come after our own.
        **base_kwargs: The arguments of :class:`Finetune`.
    """

    def __init__(
        self,
        *,
        kind: str = "layer",
        strength: float = 1e-3,
        plugins: Sequence[SupervisedPlugin] | None = None,
        **base_kwargs: Any,
    ) -> None:
        super().__init__(plugins=[LayerNormPlugin(kind), L2Plugin(strength), *(plugins or ())], **base_kwargs)


class ScaleInvariant(Finetune):
    """Finetuning of a regression by a scale-invariant loss, which replaces ``criterion``.

    Args:
        loss: As for :class:`~plasticity_cl.strategies.ScaleInvariantLossPlugin`; so are the next five.
        low: Lower end of the range.
        high: Upper end of the range.
        n_bins: Outputs of the network.
        scale: How bins are spaced.
        seed: Root of the new last layer's initialisation.
        plugins: Come after our own.
        **base_kwargs: The arguments of :class:`Finetune`.
    """

    def __init__(
        self,
        *,
        loss: str = "two-hot",
        low: float = -1e3,
        high: float = 1e3,
        n_bins: int = 1001,
        scale: str = "symlog",
        seed: int = 0,
        plugins: Sequence[SupervisedPlugin] | None = None,
        **base_kwargs: Any,
    ) -> None:
        regression = ScaleInvariantLossPlugin(loss, low, high, n_bins, scale, seed=seed)
        super().__init__(plugins=[regression, *(plugins or ())], **base_kwargs)


class LayerNormL2ScaleInvariant(ScaleInvariant):
    """All three: a normalisation before every nonlinearity, an L2 penalty, and a scale-invariant loss.

    Args:
        kind: As for :class:`~plasticity_cl.strategies.LayerNormPlugin`.
        strength: As for :class:`~plasticity_cl.strategies.L2Plugin`.
        plugins: Come after our own.
        **base_kwargs: The arguments of :class:`ScaleInvariant`.
    """

    def __init__(
        self,
        *,
        kind: str = "layer",
        strength: float = 1e-3,
        plugins: Sequence[SupervisedPlugin] | None = None,
        **base_kwargs: Any,
    ) -> None:
        super().__init__(plugins=[LayerNormPlugin(kind), L2Plugin(strength), *(plugins or ())], **base_kwargs)
