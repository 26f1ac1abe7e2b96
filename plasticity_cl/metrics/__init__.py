"""Plasticity metrics for Avalanche, beside forgetting: helpers, plugin metrics, and the pure separation."""

from plasticity_cl.metrics.helpers import plasticity_metrics
from plasticity_cl.metrics.plasticity import ExperienceScore, LearningCurveMetric, SeparationMetric
from plasticity_cl.metrics.scalar import Scalar
from plasticity_cl.metrics.scores import R2, Accuracy
from plasticity_cl.metrics.separation import Separation, separate

__all__ = [
    "R2",
    "Accuracy",
    "ExperienceScore",
    "LearningCurveMetric",
    "Scalar",
    "Separation",
    "SeparationMetric",
    "plasticity_metrics",
    "separate",
]
