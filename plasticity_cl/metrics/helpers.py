"""Helpers for an ``EvaluationPlugin``, in the style of Avalanche's ``accuracy_metrics(...)``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from avalanche.evaluation import PluginMetric

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
from plasticity_cl.metrics.plasticity import Reference, SeparationMetric
from plasticity_cl.metrics.probe import At
from plasticity_cl.metrics.scores import Choice


def plasticity_metrics(
    *,
    reference: Reference | None = None,
    baseline: Mapping[str, Sequence[float]] | None = None,
    threshold: float = 0.9,
    score: Choice = None,
) -> list[PluginMetric]:
    """Metrics that tell plasticity loss from forgetting, for any Avalanche strategy.

    Pass them to an ``EvaluationPlugin``, train one experience after the other, evaluate each right after training on
    it and all at the end. No metric changes the training that it watches, not even a random number of it.

    Args:
        reference: The scores of fresh networks, S_k: a mapping from stream name to one score an experience; or a
            function without arguments that returns a fresh network, or a fresh strategy, which is then trained on each
            experience beside the run. With it the separation is reported, without it the learning score against the
            first experience's.
        baseline: S_ref, the scores that strategies to be compared have in common as their reference, as a mapping like
            ``reference``; see :func:`separate`.
        threshold: The training score that counts as learned, for the steps to it.
        score: What is scored: ``"accuracy"``, ``"bounded-r2"``, ``"r2"`` or a function without arguments that returns a
            score, for instance ``lambda: Accuracy(threshold=0.0)``; ``None`` goes by the targets and the criterion, see
            :func:`~plasticity_cl.metrics.scores.score_for`.

    Returns:
        A :class:`SeparationMetric`, whose ``result()`` is the separation of each stream, and a
        :class:`LearningCurveMetric`.

    Raises:
        UserError: If the threshold is above 1, the score is none, or the reference or the baseline are no scores.
    """
    return [SeparationMetric(reference, baseline=baseline, score=score), LearningCurveMetric(threshold, score=score)]


def mechanism_metrics(*, every: int = 1, at: At = "end", probe_size: int = 256) -> list[PluginMetric]:
    """Metrics that say which mechanism of plasticity loss is at work, cheap enough to leave on.

    Units and preactivations, features, norms, regression targets and tangent kernel. Each looks at the first
    experience, every ``every``-th and the last one, never in between; see :class:`ProbeMetric`.

    Args:
        every: Look at every so many experiences.
        at: ``"end"`` of the training on an experience, or its ``"start"``.
        probe_size: Samples in the fixed batch on which units and features are looked at.

    Returns:
        A :class:`UnitMetric`, :class:`FeatureMetric`, :class:`NormMetric`, :class:`TargetMetric` and
        :class:`KernelMetric`.

    Raises:
        UserError: If an argument is out of its range.
    """
    return [
        UnitMetric(probe_size, every, at),
        FeatureMetric(probe_size, every, at),
        NormMetric(every, at),
        TargetMetric(every=every, at=at),
        KernelMetric(every=every, at=at),
    ]


def landscape_metrics(*, every: int = 40, at: At = "end") -> list[PluginMetric]:
    """Metrics that cost as much as many steps of training: curvature, trainability, pictures and histograms.

    Each looks at every ``every``-th experience and the last one, curvature and pictures also at the first; see
    :class:`ProbeMetric`.

    Args:
        every: Look at every so many experiences.
        at: ``"end"`` of the training on an experience, or its ``"start"``.

    Returns:
        A :class:`CurvatureMetric`, :class:`TrainabilityMetric` and :class:`PictureMetric`.

    Raises:
        UserError: If an argument is out of its range.
    """
    return [
        CurvatureMetric(every=every, at=at),
        TrainabilityMetric(every=every, at=at),
        PictureMetric(every=every, at=at),
    ]
