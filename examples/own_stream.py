"""An own stream, and a benchmark made with Avalanche: what is forgotten, and what helps to learn what comes next?

The stream of this file turns the images by another quarter at every experience. Write your own in its place: a function
that gives the samples of experience k. It is called when the experience is asked for, and nothing is kept, so that
hundreds of experiences cost what one costs. Runs in some seconds:

    python examples/own_stream.py
"""

import warnings

import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from torch import nn
from torch.utils.data import TensorDataset

from plasticity_cl.metrics import plasticity_metrics
from plasticity_cl.scenarios import load_source
from plasticity_cl.scenarios.stream import InMemoryScenario
from plasticity_cl.training import Samples

warnings.filterwarnings("ignore", message="No loggers specified")
digits = load_source("digits")


def QuarterTurns(n_experiences: int = 4) -> InMemoryScenario:
    """The digits, turned by k quarters at experience k."""
    return InMemoryScenario(
        "quarter-turns",
        n_experiences,
        train=lambda k: Samples(digits.train_inputs.rot90(k, (2, 3)), digits.train_labels),
        test=lambda k: Samples(digits.test_inputs.rot90(k, (2, 3)), digits.test_labels),
        input_shape=digits.input_shape,
        n_outputs=digits.n_classes,
    )


def avalanches_own(n_experiences: int = 4):
    """The digits, fainter and fainter, made as Avalanche makes benchmarks; any other will do."""

    def dataset(inputs, labels, k):
        data = TensorDataset(inputs * 0.5**k, labels)
        data.targets = labels.tolist()
        return as_classification_dataset(data)

    return benchmark_from_datasets(
        train=[dataset(digits.train_inputs, digits.train_labels, k) for k in range(n_experiences)],
        test=[dataset(digits.test_inputs, digits.test_labels, k) for k in range(n_experiences)],
    )


def make_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


for name, benchmark in {"quarter turns": QuarterTurns(), "fainter": avalanches_own()}.items():
    metrics = plasticity_metrics(reference=make_network)
    model = make_network()
    strategy = Naive(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), 1e-3),
        train_mb_size=32,
        train_epochs=3,
        eval_mb_size=500,
        evaluator=EvaluationPlugin(metrics, loggers=[]),
    )
    for k, experience in enumerate(benchmark.train_stream):
        strategy.train(experience, eval_streams=[])
        strategy.eval(benchmark.test_stream[k : k + 1])  # right after learning it
    strategy.eval(benchmark.test_stream)  # at the end of the stream
    parts = metrics[0].result()["test"]
    print(f"{name}\n{'experience':>12}{'learned':>9}{'plasticity loss':>17}{'forgetting':>12}{'total':>8}")
    for k in range(len(parts.learned)):
        print(
            f"{k:12}{parts.learned[k]:9.3f}{parts.plasticity_loss[k]:17.3f}{parts.forgetting[k]:12.3f}"
            f"{parts.total[k]:8.3f}"
        )
