"""A stream that is seen once, a few samples at a time: does layer norm help to learn it, and to keep it?

Avalanche's ``split_online_stream`` cuts every experience into mini experiences. The separation puts them together
again: its rows are the whole experiences, and the fresh network of each sees the same mini experiences. Runs in some
seconds:

    python examples/online.py
"""

import warnings

import torch
from avalanche.benchmarks import split_online_stream
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

from plasticity_cl.metrics import plasticity_metrics
from plasticity_cl.scenarios import ClassIncremental, load_source
from plasticity_cl.strategies import LayerNormPlugin

warnings.filterwarnings("ignore", message="No loggers specified")


def make_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


benchmark = ClassIncremental(load_source("digits"))
for name, plugins in {"finetune": [], "layernorm": [LayerNormPlugin()]}.items():
    metrics = plasticity_metrics(reference=make_network)
    model = make_network()
    strategy = Naive(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), 3e-3),
        train_mb_size=10,
        train_epochs=1,
        eval_mb_size=500,
        plugins=plugins,
        evaluator=EvaluationPlugin(metrics, loggers=[]),
    )
    for k, experience in enumerate(benchmark.train_stream):
        for mini in split_online_stream([experience], experience_size=10, drop_last=True, seed=k):
            strategy.train(mini, eval_streams=[])
        strategy.eval(benchmark.test_stream[k : k + 1])  # right after the last mini experience of it
    strategy.eval(benchmark.test_stream)  # at the end of the stream
    parts = metrics[0].result()["test"]
    print(f"{name}\n{'experience':>12}{'learned':>9}{'fresh':>8}{'plasticity loss':>17}{'forgetting':>12}{'total':>8}")
    for k in range(len(parts.learned)):
        print(
            f"{k:12}{parts.learned[k]:9.3f}{parts.fresh[k]:8.3f}{parts.plasticity_loss[k]:17.3f}"
            f"{parts.forgetting[k]:12.3f}{parts.total[k]:8.3f}"
        )
