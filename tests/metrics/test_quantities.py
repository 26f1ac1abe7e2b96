"""Every number that a metric of ours emits is described, nothing else is, and what is said of it is true."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from avalanche.evaluation.metric_results import MetricValue
from avalanche.logging import BaseLogger
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

from plasticity_cl.metrics import Scalar, Separation, SeparationMetric, landscape_metrics, mechanism_metrics
from plasticity_cl.metrics.guard import GuardedMetric
from plasticity_cl.metrics.helpers import plasticity_metrics
from plasticity_cl.metrics.wilds import WildsMetric
from plasticity_cl.quantity import Quantity, quantities_of
from plasticity_cl.scenarios import LabelReset, TargetShift, load_source
from plasticity_cl.training import SupervisedTemplate

AT_THE_END_OF_A_RUN = {"final", "total"}
"""What SeparationMetric.result() has and does not emit: a run writes it down at its end."""


class Recorder(BaseLogger):
    """Keeps the scalars, by metric class and name."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[type, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))

    def log_metrics(self, metric_values: list[MetricValue]) -> None:
        for value in metric_values:
            if isinstance(value, Scalar):
                self.values[type(value.origin)][value.metric].append(value.value)


def ours(kind: type = GuardedMetric) -> Iterator[type]:
    """Every class of metrics in the package."""
    for child in kind.__subclasses__():
        if child.__module__.startswith("plasticity_cl."):
            yield child
            yield from ours(child)


@pytest.fixture(scope="module")
def emitted() -> dict[type, dict[str, list[float]]]:
    """What all metrics emit in two small runs: classification with references, regression without."""
    source, recorder = load_source("digits"), Recorder()
    given = {stream: [1.0, 1.0] for stream in ("train", "test")}
    for scenario, kind, loss, options in (
        (LabelReset(source, 2, n_samples=64), nn.ReLU, nn.CrossEntropyLoss(), {"reference": given, "baseline": given}),
        (TargetShift(source, 2, n_samples=64), nn.Tanh, nn.MSELoss(), {}),
    ):
        torch.manual_seed(1)
        outputs = 10 if kind is nn.ReLU else 1
        model = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 16), kind(), nn.Linear(16, 16), kind(), nn.Linear(16, outputs)
        )
        metrics = [*plasticity_metrics(threshold=0.05, **options), *mechanism_metrics(), *landscape_metrics(every=1)]
        if outputs == 10:
            metrics.append(WildsMetric({"test": torch.arange(10)}, 10))
        strategy = SupervisedTemplate(
            model=model,
            optimizer=torch.optim.Adam(model.parameters(), lr=1e-2),
            criterion=loss,
            train_mb_size=32,
            train_epochs=2,
            eval_mb_size=256,
            evaluator=EvaluationPlugin(*metrics, loggers=[recorder], collect_all=False),
        )
        for experience in scenario.train_stream:
            strategy.eval([experience])
            strategy.train(experience, eval_streams=[])
            strategy.eval([experience])
        for stream in (scenario.train_stream, scenario.test_stream):
            strategy.eval(stream)
    return recorder.values


def test_a_number_is_described_if_and_only_if_it_is_emitted(emitted: dict[type, dict[str, list[float]]]) -> None:
    assert {kind for kind in ours() if kind.quantities} == set(emitted)
    for kind, values in emitted.items():
        described = set(kind.quantities)
        if kind is SeparationMetric:
            described -= AT_THE_END_OF_A_RUN
        assert set(values) == described, kind.__name__


def test_what_a_run_adds_at_its_end_is_described() -> None:
    fields = {field.name for field in dataclasses.fields(Separation)}
    assert fields > AT_THE_END_OF_A_RUN
    assert fields <= set(SeparationMetric.quantities)


def test_no_name_has_two_meanings() -> None:
    names = [name for kind in ours() for name in vars(kind).get("quantities", {})]
    assert len(names) == len(set(names))
    words = [quantity.words for kind in ours() for quantity in vars(kind).get("quantities", {}).values()]
    assert len(words) == len(set(words))


def test_values_keep_within_their_bounds(emitted: dict[type, dict[str, list[float]]]) -> None:
    bounded = 0
    for kind, values in emitted.items():
        for name, found in values.items():
            quantity: Quantity = kind.quantities[name]
            low = -math.inf if quantity.low is None else quantity.low
            high = math.inf if quantity.high is None else quantity.high
            assert all(low <= value <= high for value in found), (name, found)
            bounded += quantity.low is not None or quantity.high is not None
            if quantity.unit == "share":
                assert (quantity.low, quantity.high) == (0, 1), name
    assert bounded > 30


def test_a_metric_without_quantities_is_a_metric() -> None:
    class Own(GuardedMetric):
        def result(self) -> Any:
            return None

        def reset(self) -> None:
            pass

    assert Own().quantities == {}
    assert quantities_of([Own()]) == {}
