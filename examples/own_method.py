"""An own method beside finetuning and layer norm with L2: does it forget, or does it ossify?

The method of this file pulls the weights towards where the last experience left them: lightly, and it forgets;
strongly, and it ossifies. Put your own in its place: any Avalanche plugin will do. Runs in some seconds:

    python examples/own_method.py
"""

import warnings

import torch
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from torch import nn

from plasticity_cl.metrics import mechanism_metrics, plasticity_metrics
from plasticity_cl.scenarios import ClassIncremental, load_source
from plasticity_cl.strategies import L2Plugin, LayerNormPlugin

warnings.filterwarnings("ignore", message="No loggers specified")


class Anchor(SupervisedPlugin):
    """Adds the gradient of strength * |w - anchor|^2, the anchor being the weights after the last experience."""

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.strength, self.anchor = strength, []

    def after_backward(self, strategy, **_):
        if self.anchor:  # there is none yet in the first experience, so fresh networks learn as under finetuning
            for parameter, anchor in zip(strategy.model.parameters(), self.anchor, strict=True):
                parameter.grad.add_(parameter.detach() - anchor, alpha=2 * self.strength)

    def after_training_exp(self, strategy, **_):
        self.anchor = [parameter.detach().clone() for parameter in strategy.model.parameters()]


def make_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


METHODS = {
    "finetune": lambda: [],
    "layernorm+l2": lambda: [LayerNormPlugin(), L2Plugin(1e-3)],
    "anchor=0.1": lambda: [Anchor(0.1)],
    "anchor=10": lambda: [Anchor(10.0)],
}
benchmark = ClassIncremental(load_source("digits"))  # five experiences, each with two digits of its own
baseline = None
print(f"{'method':14}{'learned':>9}{'handicap':>10}{'plasticity loss':>17}{'forgetting':>12}{'total':>8}{'norm':>8}")
for name, plugins in METHODS.items():
    metrics = plasticity_metrics(reference=make_network, baseline=baseline)
    evaluator = EvaluationPlugin(metrics, mechanism_metrics(), loggers=[])
    model = make_network()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    strategy = Naive(
        model=model,
        optimizer=optimizer,
        train_mb_size=32,
        train_epochs=5,
        eval_mb_size=500,
        plugins=plugins(),
        evaluator=evaluator,
    )
    for k, experience in enumerate(benchmark.train_stream):
        strategy.train(experience, eval_streams=[])
        strategy.eval(benchmark.test_stream[k : k + 1])  # right after learning it
    strategy.eval(benchmark.test_stream)  # at the end of the stream
    parts = metrics[0].result()["test"]
    if baseline is None:
        baseline = {"test": parts.fresh}  # finetune's fresh networks are what all are measured against
    growth = evaluator.get_last_metrics()["norms/parameter_norm_ratio/probe"]
    print(
        f"{name:14}{parts.learned.mean():9.3f}{parts.handicap.mean():10.3f}{parts.plasticity_loss.mean():17.3f}"
        f"{parts.forgetting.mean():12.3f}{parts.total.mean():8.3f}{growth:8.2f}"
    )
print("Test accuracy, means over experiences. High forgetting: it forgets; high plasticity loss: it ossifies.")
print("norm: the parameters' norm at the end over that of the initialisation.")
