"""One head for all classes, or a head for each task: how much of the forgetting is the head's?

An Avalanche benchmark with task labels and Avalanche's multi-head networks, as they are. Runs in some seconds:

    python examples/multi_head.py
"""

import warnings
from collections import OrderedDict

import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.models import as_multitask
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from torch import nn
from torch.utils.data import TensorDataset

from plasticity_cl.metrics import plasticity_metrics
from plasticity_cl.scenarios import load_source

warnings.filterwarnings("ignore", message="No loggers specified")
digits = load_source("digits")


def dataset(inputs, labels):
    data = TensorDataset(inputs, labels)
    data.targets = labels.tolist()
    return data


def one_head():
    torch.manual_seed(0)
    return nn.Sequential(
        OrderedDict(flatten=nn.Flatten(), hidden=nn.Linear(64, 64), relu=nn.ReLU(), head=nn.Linear(64, 10))
    )


def a_head_for_each_task():
    return as_multitask(one_head(), "head")


for name, make_network in {"one head": one_head, "a head for each task": a_head_for_each_task}.items():
    benchmark = nc_benchmark(
        dataset(digits.train_inputs, digits.train_labels),
        dataset(digits.test_inputs, digits.test_labels),
        n_experiences=5,
        task_labels=make_network is a_head_for_each_task,
        seed=0,
    )
    metrics = plasticity_metrics(reference=make_network)
    model = make_network()
    strategy = Naive(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), 1e-3),
        train_mb_size=32,
        train_epochs=10,
        eval_mb_size=500,
        evaluator=EvaluationPlugin(metrics, loggers=[]),
    )
    for k, experience in enumerate(benchmark.train_stream):
        strategy.train(experience, eval_streams=[])
        strategy.eval(benchmark.test_stream[k : k + 1])  # right after learning it
    strategy.eval(benchmark.test_stream)  # at the end of the stream
    parts = metrics[0].result()["test"]
    print(
        f"{name:22} learned {parts.learned.mean():6.3f}  plasticity loss {parts.plasticity_loss.mean():6.3f}  "
        f"forgetting {parts.forgetting.mean():6.3f}  total {parts.total.mean():6.3f}"
    )
