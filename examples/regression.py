"""Regression whose target mean jumps from 0 to 100 and back: is a scale-invariant loss any better than squared error?

Old targets do not hold later, so forgetting is no damage here and only two parts are printed. Scores are bounded R2,
1 / (2 - R2): 1 is perfect, 0.5 predicts the mean. Runs in some seconds:

    python examples/regression.py
"""

import warnings

import torch
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

from plasticity_cl.metrics import mechanism_metrics, plasticity_metrics
from plasticity_cl.scenarios import TargetShift, load_source
from plasticity_cl.strategies import Finetune, LayerNormPlugin, ScaleInvariantLossPlugin

warnings.filterwarnings("ignore", message="No loggers specified")
MEANS = (0.0, 100.0, 0.0)
digits = load_source("digits")


def make_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 1))


def run(means, plugins, baseline=None):
    """Train on targets with these means, and return the separation and the last values of the mechanisms."""
    benchmark = TargetShift(digits, len(means), schedule=means, n_samples=256)
    metrics = plasticity_metrics(reference=make_network, baseline=baseline)
    evaluator = EvaluationPlugin(metrics, mechanism_metrics(), loggers=[])
    model = make_network()
    strategy = Finetune(  # Avalanche's Naive, but faster on streams in memory
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), 1e-3),
        criterion=nn.MSELoss(),
        train_mb_size=32,
        train_epochs=50,
        plugins=plugins,
        evaluator=evaluator,
    )
    for k, experience in enumerate(benchmark.train_stream):
        strategy.train(experience, eval_streams=[])
        strategy.eval(benchmark.train_stream[k : k + 1])
    strategy.eval(benchmark.train_stream)
    return metrics[0].result()["train"], evaluator.get_last_metrics()


twin, _ = run((0.0,) * len(MEANS), [])  # the same targets, but all with mean 0: what a plain fresh network can reach
losses = {
    "squared error": lambda: [],
    "scale-invariant, with layer norm": lambda: [
        LayerNormPlugin(),
        ScaleInvariantLossPlugin(low=-10, high=110, n_bins=255, scale="linear"),
    ],
}
for name, plugins in losses.items():
    parts, last = run(MEANS, plugins(), {"train": twin.fresh})
    print(f"{name}\n{'target mean':>12}{'reference':>11}{'learned':>9}{'handicap':>10}{'plasticity loss':>17}")
    for k, mean in enumerate(MEANS):
        print(
            f"{mean:12.0f}{parts.baseline[k]:11.3f}{parts.learned[k]:9.3f}{parts.handicap[k]:10.3f}"
            f"{parts.plasticity_loss[k]:17.3f}"
        )
    print(f"directions that the features have at the end: {last['features/effective_rank/probe']:.1f}")
