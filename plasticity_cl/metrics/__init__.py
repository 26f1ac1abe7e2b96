"""Plasticity metrics for Avalanche, beside forgetting: helpers, plugin metrics, and the pure separation."""

from typing import TYPE_CHECKING

from plasticity_cl.lazy import lazy_names

if TYPE_CHECKING:
    from plasticity_cl.metrics.experience_score import ExperienceScore
    from plasticity_cl.metrics.helpers import landscape_metrics, mechanism_metrics, plasticity_metrics
    from plasticity_cl.metrics.learning_curve import LearningCurveMetric
    from plasticity_cl.metrics.mechanisms import (
        CurvatureMetric,
        FeatureMetric,
        KernelMetric,
        NormMetric,
        PictureMetric,
        TargetMetric,
        TrainabilityMetric,
        UnitMetric,
    )
    from plasticity_cl.metrics.plasticity import SeparationMetric
    from plasticity_cl.metrics.probe import ProbeMetric, ProbeRun
    from plasticity_cl.metrics.scalar import Scalar
    from plasticity_cl.metrics.scores import R2, Accuracy, BoundedR2, Score
    from plasticity_cl.metrics.separation import Separation, separate
    from plasticity_cl.quantity import Quantity

__all__ = [
    "R2",
    "Accuracy",
    "BoundedR2",
    "CurvatureMetric",
    "ExperienceScore",
    "FeatureMetric",
    "KernelMetric",
    "LearningCurveMetric",
    "NormMetric",
    "PictureMetric",
    "ProbeMetric",
    "ProbeRun",
    "Quantity",
    "Scalar",
    "Score",
    "Separation",
    "SeparationMetric",
    "TargetMetric",
    "TrainabilityMetric",
    "UnitMetric",
    "landscape_metrics",
    "mechanism_metrics",
    "plasticity_metrics",
    "separate",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "ExperienceScore": "experience_score",
        **dict.fromkeys(("landscape_metrics", "mechanism_metrics", "plasticity_metrics"), "helpers"),
        "LearningCurveMetric": "learning_curve",
        **dict.fromkeys(
            (
                "CurvatureMetric",
                "FeatureMetric",
                "KernelMetric",
                "NormMetric",
                "PictureMetric",
                "TargetMetric",
                "TrainabilityMetric",
                "UnitMetric",
            ),
            "mechanisms",
        ),
        "SeparationMetric": "plasticity",
        **dict.fromkeys(("ProbeMetric", "ProbeRun"), "probe"),
        "Quantity": "guard",  # described beside the metrics that carry it
        "Scalar": "scalar",
        **dict.fromkeys(("R2", "Accuracy", "BoundedR2", "Score"), "scores"),
        **dict.fromkeys(("Separation", "separate"), "separation"),
    },
)
