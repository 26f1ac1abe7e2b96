"""Small streams, networks and trainings, on which parts are checked."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from avalanche.evaluation.metric_results import MetricValue
from avalanche.logging import BaseLogger
from avalanche.training.plugins import EvaluationPlugin
from torch import Tensor, nn

from plasticity_cl.models import make_model
from plasticity_cl.scenarios.catalogue import make_scenario
from plasticity_cl.scenarios.sources import load_source
from plasticity_cl.scenarios.stream import InMemoryScenario
from plasticity_cl.seeding import derive_seed, preserve_rng
from plasticity_cl.strategies import Finetune
from plasticity_cl.testing.promises import seed_generators

TASKS = ("classification", "regression")
N_EXPERIENCES = 3
_STREAMS = {
    "classification": f"label-reset:n_experiences={N_EXPERIENCES},n_samples=40",
    "regression": f"target-shift:n_experiences={N_EXPERIENCES},n_samples=40,mean=3",
}
_NETWORKS = {"mlp": "mlp:width=16,depth=2", "cnn": "cnn:width=4,depth=1"}


@cache
def digits() -> Any:
    """The bundled digits."""
    return load_source("digits")


@cache
def stream(task: str) -> InMemoryScenario:
    """Three experiences of 40 digits with random labels, or with random numbers whose mean moves."""
    with preserve_rng():  # scikit-learn draws a number when it is imported
        return make_scenario(_STREAMS[task], digits(), seed=0)


def network(task: str, kind: str = "") -> nn.Module:
    """A small network, the same at each call: ``mlp`` or ``cnn``, or one with dropout and batch normalisation."""
    shape, n_outputs = stream(task).input_shape, stream(task).n_outputs
    if kind:
        return make_model(_NETWORKS[kind], shape, n_outputs, seed=0)
    with preserve_rng():
        torch.manual_seed(0)
        first, last = nn.Linear(shape[0] * shape[1] * shape[2], 16), nn.Linear(16, n_outputs)
        return nn.Sequential(nn.Flatten(), first, nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), last)


class Emitted(BaseLogger):  # type: ignore[misc]
    """Keeps what metrics emit: the name, the experience trained on last, the place on the axis, and the value."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[MetricValue] = []

    def log_metrics(self, metric_values: list[MetricValue]) -> None:
        """Keep values."""
        self.values += metric_values

    def state_dict(self) -> dict[str, Any]:
        """Nothing: what was emitted before is of no account afterwards."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what :meth:`state_dict` gave."""

    def plain(self) -> list[tuple[str, Any, Any]]:
        """Values that can be compared: by name, and place on the axis; images and tensors as they were shown."""
        shown = [(value, getattr(value.value, "image", value.value)) for value in self.values]
        kept = [(v, s.detach().clone() if isinstance(s, Tensor) else s) for v, s in shown]
        return [(v.name, v.x_plot, s if isinstance(s, Tensor | int | float) else repr(s.tobytes())) for v, s in kept]


def build(
    plugins: Iterable[Any],
    task: str,
    *,
    model: nn.Module | None = None,
    template: Callable[..., Any] = Finetune,
    metrics: Sequence[Any] = (),
    loggers: Sequence[Any] = (),
) -> Any:
    """A strategy around a small network; its dropout and batch order are torch's global generator's."""
    model = network(task) if model is None else model
    return template(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=0.01),
        criterion=nn.CrossEntropyLoss() if task == "classification" else nn.MSELoss(),
        train_mb_size=16,
        train_epochs=2,
        eval_mb_size=64,
        plugins=list(plugins),
        evaluator=EvaluationPlugin(*metrics, loggers=list(loggers), collect_all=False),
    )


def go_on(strategy: Any, task: str, experiences: Iterable[int]) -> None:
    """Train on experiences as a run does: each seeded by itself, and evaluated before and after."""
    of = stream(task)
    for k in experiences:
        strategy.eval(of.train_stream[k : k + 1])
        torch.manual_seed(derive_seed(0, "experience", k))
        strategy.train(of.train_stream[k], eval_streams=[])
        for evaluated in (of.train_stream, of.test_stream):
            strategy.eval(evaluated[k : k + 1])


def learn(make: Callable[[], Iterable[Any]], task: str, *, n: int = 2, before: int = 0, **options: Any) -> Any:
    """Train on the first experiences.

    Args:
        make: Makes the plugins.
        task: The task.
        n: How many experiences.
        before: What the global generators are seeded with at the beginning.
        **options: As for :func:`build`.

    Returns:
        The strategy.
    """
    seed_generators(before)
    strategy = build(make(), task, **options)
    go_on(strategy, task, range(n))
    return strategy


def weights(strategy: Any) -> dict[str, Tensor]:
    """Parameters and buffers by name."""
    return dict(strategy.model.state_dict())


@contextmanager
def undisturbed() -> Iterator[None]:
    """Give the global generators their state back, work on one thread, and say no warnings.

    They are recorded, since Avalanche overrides filters for what it says of its own deprecated functions.
    """
    threads = torch.get_num_threads()
    with preserve_rng(), warnings.catch_warnings(record=True):
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
