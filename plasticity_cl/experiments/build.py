"""From a spec to the objects of a run: the stream, the strategy, the seeds."""

from __future__ import annotations

from typing import Any

import torch
from avalanche.training.plugins import EvaluationPlugin
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from plasticity_cl.errors import UserError
from plasticity_cl.experiments.spec import Machine, RunSpec
from plasticity_cl.models import make_model
from plasticity_cl.scenarios.catalogue import make_scenario
from plasticity_cl.scenarios.sources import load_source
from plasticity_cl.scenarios.stream import InMemoryScenario
from plasticity_cl.seeding import derive_seed
from plasticity_cl.strategies.catalogue import make_plugins
from plasticity_cl.training import SupervisedTemplate

EVALUATION_BATCH = 512


def build_scenario(spec: RunSpec, machine: Machine) -> InMemoryScenario:
    """Make the stream of a run.

    Raises:
        UserError: If the data set is missing, or an option is out of its range.
    """
    source = load_source(spec.source, data_root=machine.data_root, download=machine.download)
    return make_scenario(spec.scenario, source, seed=derive_seed(spec.seed, "stream"), **spec.scenario_options())


def build_strategy(spec: RunSpec, scenario: InMemoryScenario, evaluator: EvaluationPlugin) -> SupervisedTemplate:
    """Make the strategy of a run around a network at its initialisation.

    Raises:
        UserError: If a name is unknown, the network does not fit the images, or the device is not there.
    """
    model = make_model(
        spec.model,
        scenario.input_shape,
        scenario.n_outputs,
        activation=spec.activation,
        width=spec.width,
        depth=spec.depth,
        normalization=spec.normalization,
        seed=derive_seed(spec.seed, "model"),
    )
    criterion: Any = nn.CrossEntropyLoss() if scenario.task == "classification" else nn.MSELoss()
    device = _device(spec.device)
    model.to(device)
    return SupervisedTemplate(
        model=model,
        optimizer=_optimizer(spec, model),
        criterion=criterion,
        train_mb_size=spec.batch_size,
        train_epochs=spec.epochs,
        eval_mb_size=EVALUATION_BATCH,
        device=device,
        plugins=make_plugins(spec.strategy, seed=derive_seed(spec.seed, "plugins")),
        evaluator=evaluator,
    )


def seed_experience(spec: RunSpec, k: int) -> None:
    """Set torch's global generator, from which batch order and dropout are drawn, for experience ``k``.

    The order depends on the seed and the experience alone, so that a fresh network sees the very same batches.
    """
    torch.manual_seed(derive_seed(spec.seed, "experience", k))


def _optimizer(spec: RunSpec, model: nn.Module) -> Optimizer:
    kinds: dict[str, type[Adam] | type[AdamW] | type[SGD]] = {"adam": Adam, "adamw": AdamW, "sgd": SGD}
    return kinds[spec.optimizer](model.parameters(), lr=spec.lr)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"unknown device {name!r}; for instance cpu, cuda or cuda:1") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device {name} is not there: torch sees {torch.cuda.device_count()} CUDA devices; use cpu")
    return device
