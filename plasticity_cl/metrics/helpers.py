"""Helpers for an ``EvaluationPlugin``, in the style of Avalanche's ``accuracy_metrics(...)``."""

from __future__ import annotations

from avalanche.evaluation import PluginMetric

from plasticity_cl.metrics.mechanisms import MechanismMetric
from plasticity_cl.metrics.plasticity import LearningCurveMetric, Reference, SeparationMetric


def plasticity_metrics(
    *, reference: Reference | None = None, threshold: float = 0.9, probe_size: int = 256
) -> list[PluginMetric]:
    """Metrics that tell plasticity loss from forgetting, for any Avalanche strategy.

    Pass them to an ``EvaluationPlugin``, train one experience after the other, evaluate each right after training on
    it and all at the end. No metric changes the training that it watches, not even a random number of it.

    Args:
        reference: The scores of fresh networks, S_k: a mapping from stream name to one score an experience; or a
            function without arguments that returns a fresh network, or a fresh strategy, which is then trained on each
            experience beside the run. With it the separation is reported, without it the learning score against the
            first experience's.
        threshold: The training score that counts as learned, for the steps to it.
        probe_size: Samples in the fixed batch on which units, features and norms are looked at.

    Returns:
        A :class:`SeparationMetric`, whose ``result()`` is the separation of each stream, a
        :class:`LearningCurveMetric` and a :class:`MechanismMetric`.

    Raises:
        UserError: If the threshold is above 1 or the probe batch too small.
    """
    return [SeparationMetric(reference), LearningCurveMetric(threshold), MechanismMetric(probe_size)]
