"""What all diagnostics share while a run goes on: when they look, at which samples, and what they do about errors."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

import torch
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from torch import Tensor

from plasticity_cl.errors import UserError, unknown_name
from plasticity_cl.metrics.scalar import Scalar
from plasticity_cl.seeding import preserve_rng
from plasticity_cl.training import samples_of

At = Literal["start", "end"]


class ProbeMetric(PluginMetric):  # type: ignore[misc]
    """A diagnostic that looks at the network at chosen moments.

    It looks at the first experience, at every ``every``-th after it (number every - 1, 2 every - 1, ...), and at the
    last one where the stream says how long it is; never in between, so that training costs what it costs without it.
    A network that cannot be looked at, one with NaN weights for instance, gets no values and one warning.

    Args:
        size: Samples to look at: the first ones of a data set, as they are evaluated.
        every: Look at every so many experiences.
        at: Before the first step on an experience (``"start"``), or after the last one.

    Raises:
        UserError: If ``size`` or ``every`` is out of range, or ``at`` unknown.
    """

    group: str
    """First part of the names of what it emits."""

    looks_at_first = True
    """Whether the first experience is always due."""

    def __init__(self, size: int, every: int, at: At) -> None:
        super().__init__()
        if size < 2:
            raise UserError(f"a diagnostic on {size} samples: it needs at least 2")
        if every < 1:
            raise UserError(f"every is {every}: it must be at least 1")
        if at not in get_args(At):
            raise unknown_name("moment", at, get_args(At))
        self._size, self._every, self._at = size, every, at
        self._warned = False
        self.reset()

    def reset(self) -> None:
        """Forget the probe batch, and all that was measured."""
        self.probe = torch.empty(0)
        self._last: dict[str, float] = {}

    def result(self) -> dict[str, float]:
        """The last values by name, layers as ``name/layer``; empty before the first."""
        return self._last

    def before_training_exp(self, strategy: Any) -> list[MetricValue]:
        """Keep the first samples of the first experience as the probe batch; look, if this is the moment."""
        if not self.probe.numel():
            self.probe = first_samples(strategy, self._size)[0]
            self._guarded(self.remember, strategy)
        due = self._is_due(strategy)
        if due:
            self.prepare(strategy)
        return self._look(strategy) if due and self._at == "start" else []

    def after_training_exp(self, strategy: Any) -> list[MetricValue]:
        """Look, if this is the moment."""
        return self._look(strategy) if self._at == "end" and self._is_due(strategy) else []

    def remember(self, strategy: Any) -> None:
        """Take from the network, before its first step, what later values are related to."""

    def prepare(self, strategy: Any) -> None:
        """Get ready for an experience at which the diagnostic is due."""

    @abstractmethod
    def measure(self, strategy: Any) -> Mapping[str, float]:
        """Values by name, those of a layer as ``name/layer``."""

    def pictures(self, strategy: Any) -> Iterable[tuple[str, Any]]:
        """Values that are no numbers: images, and tensors for histograms, by their full name."""
        return ()

    def _look(self, strategy: Any) -> list[MetricValue]:
        values: list[MetricValue] = []
        self._guarded(lambda seen: values.extend(self._emit(seen)), strategy)
        return values

    def _emit(self, strategy: Any) -> list[MetricValue]:
        k = strategy.experience.current_experience
        self._last = dict(self.measure(strategy))
        stream = "probe" if self._at == "end" else "probe_start"
        scalars = [
            Scalar(self, self.group, name.partition("/")[0], value, k, stream=stream, layer=name.partition("/")[2])
            for name, value in self._last.items()
        ]
        return [*scalars, *(MetricValue(self, name, value, k) for name, value in self.pictures(strategy))]

    def _guarded(self, look: Any, strategy: Any) -> None:
        # An exception in a metric would end the training that it watches.
        try:
            look(strategy)
        except UserError as error:
            if not self._warned:
                self._warned = True
                warnings.warn(f"{self.group}: no values for this network: {error}", stacklevel=2)

    def _is_due(self, strategy: Any) -> bool:
        k = strategy.experience.current_experience
        stream: Any = getattr(strategy.experience, "origin_stream", None)
        last = hasattr(stream, "__len__") and k + 1 == len(stream)
        return (k == 0 and self.looks_at_first) or (k + 1) % self._every == 0 or last


def first_samples(strategy: Any, size: int) -> tuple[Tensor, Tensor]:
    """The first samples of the strategy's current experience, on its device, as they are evaluated.

    No generator moves, whatever transforms draw.

    Returns:
        Inputs ``[min(size, n), ...]`` and targets ``[min(size, n)]`` or ``[min(size, n), d]``.
    """
    dataset = strategy.experience.dataset.eval()
    count = min(size, len(dataset))
    samples = samples_of(dataset)
    if samples is not None:
        inputs, targets = samples.batch(torch.arange(count))
    else:
        with preserve_rng():
            rows = [dataset[i] for i in range(count)]
        inputs, targets = (torch.stack([torch.as_tensor(row[part]) for row in rows]) for part in (0, 1))
    return inputs.to(strategy.device), targets.to(strategy.device)
