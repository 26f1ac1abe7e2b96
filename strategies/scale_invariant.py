"""Regression by cross-entropy, against large target means (mechanism 3)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from plasticity_cl.diagnostics.last_layer import output_layer
from plasticity_cl.errors import UserError
from plasticity_cl.losses import make_loss
from plasticity_cl.parts.values import Count, Range
from plasticity_cl.seeding import generator
from plasticity_cl.strategies.network_plugin import NetworkPlugin
from plasticity_cl.training.learner import Learner, set_criterion


class ScaleInvariantLossPlugin(NetworkPlugin):
    """Learns a regression as a classification over bins of the target, whose gradients do not grow with the target.

    The last layer, ``Linear(d, 1)``, is replaced by a new ``Linear(d, n_bins)``, and the strategy's criterion by a loss
    of :mod:`plasticity_cl.losses`: ``criterion_of(strategy).decode(output)`` turns outputs ``[B, n_bins]`` into targets
    ``[B]``. The layer is exchanged within the model, so evaluate ``strategy.model`` through the strategy from then on.

    The default range suits targets of unknown size. Where the range is known, ``scale="linear"`` with bins about half
    a standard deviation of the targets wide learns faster. Targets outside the range are clipped to it.

    Args:
        loss: ``"two-hot"`` or ``"hl-gauss"``.
        low: Lower end of the range, in the targets' own units.
        high: Upper end of the range, in the targets' own units.
        n_bins: Outputs of the network.
        scale: How bins are spaced: ``"linear"`` or ``"symlog"``.
        seed: Root of the new layer's random initialisation, which is PyTorch's for ``Linear``.

    Raises:
        UserError: For arguments that the loss does not take; at the first experience, if its targets are not floats
            ``[B]`` or ``[B, 1]``, or if the network's output is not that of a ``Linear`` with one output.
    """

    def __init__(
        self,
        loss: str = "two-hot",
        low: float = -1e3,
        high: float = 1e3,
        n_bins: int = 1001,
        scale: str = "symlog",
        *,
        seed: int = 0,
    ) -> None:
        super().__init__()
        make_loss(loss, low, high, n_bins, scale)  # so that a wrong argument is said here
        self.loss, self.low, self.high, self.n_bins, self.scale, self.seed = loss, low, high, n_bins, scale, seed

    def change(self, strategy: Learner, inputs: Tensor, target: Tensor) -> None:
        """Exchange last layer and criterion."""
        if not target.is_floating_point():
            raise UserError(
                "the scale-invariant loss is for regression, and the targets here are whole numbers: leave it out for "
                "classes, give floating-point targets for a regression"
            )
        if target.shape not in ((1,), (1, 1)):
            raise UserError(f"the scale-invariant loss takes one target a sample, got {list(target.shape[1:])}")
        old = output_layer(strategy.model, inputs)
        if old is None or old.out_features != 1:
            raise UserError(
                "the scale-invariant loss replaces a last layer Linear(..., 1), and the output of "
                f"{type(strategy.model).__name__} does not come directly out of one: give a network that ends in such "
                "a layer"
            )
        new = _make_linear(old, self.n_bins, self.seed)
        strategy.model = _replace(strategy.model, old, new)
        replacement = dict(zip(old.parameters(), new.parameters(), strict=True))
        for group in strategy.optimizer.param_groups:
            group["params"] = [replacement.get(parameter, parameter) for parameter in group["params"]]
        criterion = make_loss(self.loss, self.low, self.high, self.n_bins, self.scale)
        set_criterion(strategy, criterion.to(strategy.device))


def scale_invariant(
    loss: str,
    between: Range | None = None,
    *,
    n_bins: Count | None = None,
    scale: Literal["linear", "symlog"] | None = None,
    seed: int = 0,
) -> ScaleInvariantLossPlugin:
    """Regression by cross-entropy over a range, with bins that suit it.

    Args:
        loss: ``"two-hot"`` or ``"hl-gauss"``.
        between: The range of the targets, LOW..HIGH; -1000..1000 where it is not known.
        n_bins: Outputs of the network: 255 over a range, two bins or more a standard deviation where the range is a
            hundred of them; 1001 where it is not known.
        scale: How bins are spaced; linear over a range, symlog where it is not known.
        seed: Root of the new layer's random initialisation.
    """
    low, high = (-1e3, 1e3) if between is None else between
    bins = n_bins or (1001 if between is None else 255)
    return ScaleInvariantLossPlugin(
        loss, low, high, bins, scale or ("symlog" if between is None else "linear"), seed=seed
    )


def _make_linear(like: nn.Linear, n_outputs: int, seed: int) -> nn.Linear:
    """Make a ``Linear`` initialised as PyTorch does, drawn from ``seed`` alone, the same on every device."""
    bound = 1 / math.sqrt(like.in_features)
    random = generator(seed, "scale-invariant output")
    layer = nn.Linear(like.in_features, n_outputs, bias=like.bias is not None, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(-bound, bound, generator=random)
    return layer.to(device=like.weight.device, dtype=like.weight.dtype)


def _replace(network: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """Put ``new`` in every place of ``old``; gives back the network, or ``new`` where that was all of it."""
    if network is old:
        return new
    places = [path for path, module in network.named_modules(remove_duplicate=False) if module is old]
    for path in places:
        parent, _, name = path.rpartition(".")
        setattr(network.get_submodule(parent), name, new)
    return network
