"""Constructors are what the command line shows of interventions and metrics: typed, with defaults, and described."""

import inspect
import re

import pytest

from plasticity_cl import metrics
from plasticity_cl.metrics.probe import ProbeMetric
from plasticity_cl.strategies import (
    L2Plugin,
    LayerNormPlugin,
    LwFPlugin,
    OptimizerResetPlugin,
    ScaleInvariantLossPlugin,
    WeightDecayPlugin,
)
from plasticity_cl.strategies.ewc import EWCPlugin
from plasticity_cl.strategies.replay import ReplayPlugin

PARTS = [
    *(L2Plugin, LayerNormPlugin, LwFPlugin, OptimizerResetPlugin, ScaleInvariantLossPlugin, WeightDecayPlugin),
    *(EWCPlugin, ReplayPlugin),
    *(metrics.ExperienceScore, metrics.LearningCurveMetric, metrics.SeparationMetric),
    *(metrics.CurvatureMetric, metrics.FeatureMetric, metrics.KernelMetric, metrics.NormMetric, metrics.PictureMetric),
    *(metrics.TargetMetric, metrics.TrainabilityMetric, metrics.UnitMetric),
]


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_every_argument_has_a_type_a_default_and_a_line_of_help(part):
    described = re.findall(r"^    (\w+): \S", inspect.cleandoc(part.__doc__).partition("Args:\n")[2], re.MULTILINE)
    arguments = inspect.signature(part).parameters
    if "__init__" not in vars(part):
        arguments = {}
    assert described[: len(arguments)] == list(arguments)
    for name, argument in arguments.items():
        assert argument.annotation is not inspect.Parameter.empty, name
        assert argument.default is not inspect.Parameter.empty, name
    part()


def test_every_diagnostic_that_is_offered_is_checked_above():
    offered = {getattr(metrics, name) for name in metrics.__all__}
    diagnostics = {part for part in offered if inspect.isclass(part) and issubclass(part, ProbeMetric)} - {ProbeMetric}
    assert diagnostics <= set(PARTS)
