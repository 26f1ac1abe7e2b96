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
from plasticity_cl.models.imagenet_resnet import make_imagenet_resnet
from plasticity_cl.scenarios.iwildcam.camera_traps import camera_trap_folder
from plasticity_cl.scenarios.catalogue import SCENARIOS, make_scenario
from plasticity_cl.scenarios.files import data_folder
from plasticity_cl.scenarios.iwildcam import IWildCam, WildsScenario
from plasticity_cl.scenarios.sources import load_source
from plasticity_cl.scenarios.stream import InMemoryScenario
from plasticity_cl.seeding import derive_seed
from plasticity_cl.strategies.catalogue import make_plugins
from plasticity_cl.training import SupervisedTemplate

EVALUATION_BATCH = 512


def build_scenario(spec: RunSpec, machine: Machine) -> InMemoryScenario | WildsScenario:
    """Make the stream of a run.

    Raises:
        UserError: If the data set is missing, or an option is out of its range.
    """
    options = spec.scenario_options() | {"seed": derive_seed(spec.seed, "stream")}
    if SCENARIOS[spec.scenario].sources:
        # What all runs share is made where the data are; and every experience is to be scored on the test stream, too.
        folder = data_folder(machine.data_root)
        images = camera_trap_folder(spec.source, folder)
        return IWildCam(images, cache=folder / "images", min_test_size=1, **options)
    source = load_source(spec.source, data_root=machine.data_root, download=machine.download)
    return make_scenario(spec.scenario, source, **options)


def build_strategy(
    spec: RunSpec, scenario: InMemoryScenario | WildsScenario, evaluator: EvaluationPlugin
) -> SupervisedTemplate:
    """Make the strategy of a run around a network at its initialisation.

    Raises:
        UserError: If a name is unknown, the network does not fit the images, or the device is not there.
    """
    model = _network(spec, scenario)
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


def _network(spec: RunSpec, scenario: InMemoryScenario | WildsScenario) -> nn.Module:
    seed = derive_seed(spec.seed, "model")
    if spec.model.startswith("imagenet-"):
        kind = "batch" if spec.normalization is None else spec.normalization
        return make_imagenet_resnet(spec.model, scenario.n_outputs, normalization=kind, weights=spec.weights, seed=seed)
    return make_model(
        spec.model,
        scenario.input_shape,
        scenario.n_outputs,
        activation=spec.activation,
        width=spec.width,
        depth=spec.depth,
        normalization=spec.normalization,
        seed=seed,
    )


def seed_experience(spec: RunSpec, k: int) -> None:
    """Set torch's global generator, from which batch order and dropout are drawn, for experience ``k``.

    The order depends on the seed and the experience alone, so that a fresh network sees the very same batches.
    """
    torch.manual_seed(derive_seed(spec.seed, "experience", k))


def _optimizer(spec: RunSpec, model: nn.Module) -> Optimizer:
    kinds: dict[str, type[Adam] | type[AdamW] | type[SGD]] = {"adam": Adam, "adamw": AdamW, "sgd": SGD}
    # One kernel for all parameters: of a small network's step, the loop over them is the longest part.
    return kinds[spec.optimizer](model.parameters(), lr=spec.lr, fused=True)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"unknown device {name!r}; for instance cpu, cuda or cuda:1") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device {name} is not there: torch sees {torch.cuda.device_count()} CUDA devices; use cpu")
    return device
