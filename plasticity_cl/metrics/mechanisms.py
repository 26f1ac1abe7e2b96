"""The mechanisms of plasticity loss, watched while a run goes on."""

from __future__ import annotations

from typing import Any

import torch
from avalanche.evaluation import PluginMetric
from torch import Tensor

from plasticity_cl.diagnostics.norms import parameter_norm
from plasticity_cl.diagnostics.ranks import feature_rank, penultimate_features
from plasticity_cl.diagnostics.targets import target_statistics
from plasticity_cl.diagnostics.units import UnitStatistics, unit_statistics
from plasticity_cl.errors import UserError
from plasticity_cl.metrics.scalar import Scalar
from plasticity_cl.seeding import preserve_rng
from plasticity_cl.training import samples_of


class MechanismMetric(PluginMetric):  # type: ignore[misc]
    """Light diagnostics of each mechanism at the end of every experience, on a fixed probe batch.

    The probe batch is the first samples of the first experience, as they are evaluated. Preactivation shift, sign
    entropy and parameter norm are also related to the network's own initialisation on that batch. A network that holds
    NaN or infinities gets no values.

    Emitted, with the experience on the horizontal axis:
        ``units/...``: every quantity of :func:`~plasticity_cl.diagnostics.unit_statistics`, over all layers.
        ``features/...``: every quantity of :func:`~plasticity_cl.diagnostics.feature_rank`, of the last layer's input.
        ``norms/parameter_norm``, ``norms/parameter_norm_ratio``: total, and over that at initialisation.
        ``targets/target_mean``, ``targets/target_std``: of the experience's targets, in regression.

    Args:
        probe_size: Samples in the probe batch.

    Raises:
        UserError: If ``probe_size`` is below 2.
    """

    def __init__(self, probe_size: int = 256) -> None:
        super().__init__()
        if probe_size < 2:
            raise UserError(f"probe_size is {probe_size}: moments need at least 2 samples")
        self._probe_size = probe_size
        self.reset()

    def reset(self) -> None:
        """Forget the probe batch and the initialisation."""
        self._probe: Tensor | None = None
        self._initial_units: UnitStatistics | None = None
        self._initial_norm = float("nan")
        self._last: dict[str, float] = {}

    def result(self) -> dict[str, float]:
        """The last values, by name."""
        return self._last

    def before_training_exp(self, strategy: Any) -> None:
        """Look at the network before its first step."""
        if self._probe is None:
            self._probe = _first_inputs(strategy.experience.dataset.eval(), self._probe_size).to(strategy.device)
            self._initial_units = unit_statistics(strategy.model, self._probe)
            self._initial_norm = parameter_norm(strategy.model).total

    def after_training_exp(self, strategy: Any) -> list[Scalar]:
        """Emit what the network looks like now."""
        assert self._probe is not None
        try:
            units = unit_statistics(strategy.model, self._probe, self._initial_units)
            ranks = feature_rank(penultimate_features(strategy.model, self._probe))
        except UserError:
            return []
        norm = parameter_norm(strategy.model).total
        values = {("units", name): value for name, value in units.scalars().items() if "/" not in name}
        values |= {("features", name): value for name, value in ranks.scalars().items()}
        values["norms", "parameter_norm"] = norm
        values["norms", "parameter_norm_ratio"] = norm / self._initial_norm if self._initial_norm else float("nan")
        targets = _targets(strategy.experience.dataset)
        if targets is not None and targets.is_floating_point():
            statistics = target_statistics(targets)
            values["targets", "target_mean"] = statistics.target_mean
            values["targets", "target_std"] = statistics.target_std
        self._last = {name: value for (_, name), value in values.items()}
        k = strategy.experience.current_experience
        return [Scalar(self, group, name, value, k, stream="probe") for (group, name), value in values.items()]


def _first_inputs(dataset: Any, size: int) -> Tensor:
    """The first inputs of a data set, ``[min(size, n), ...]``; no generator moves, whatever transforms draw."""
    count = min(size, len(dataset))
    samples = samples_of(dataset)
    if samples is not None:
        return samples.batch(torch.arange(count))[0]
    with preserve_rng():
        return torch.stack([torch.as_tensor(dataset[i][0]) for i in range(count)])


def _targets(dataset: Any) -> Tensor | None:
    samples = samples_of(dataset)
    return None if samples is None else samples.targets
