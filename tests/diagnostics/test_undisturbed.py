"""Whatever diagnostic looks at a network, nothing of it or of the process changes, also where it fails."""

import inspect
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.modules import module as module_globals
from torch.overrides import _get_current_function_mode_stack

from plasticity_cl import diagnostics
from plasticity_cl.errors import UserError
from plasticity_cl.models import make_model

SHAPE, OUTPUTS, SAMPLES = (1, 8, 8), 4, 5

OF_TENSORS = {
    *("FeatureRank", "HessianExtremes", "LossAlongGradient", "NTKStatistics", "TargetStatistics", "Trainability"),
    *("UnitStatistics", "activation_sparsity", "cosine_gram", "dead_units", "dormant_units", "effective_rank"),
    *("feature_norm", "feature_rank", "lanczos_extremes", "linearised_units", "ntk_statistics", "participation_ratio"),
    *("preactivation_shift", "rare_units", "saturated_units", "sign_entropy", "srank", "stable_rank"),
    *("target_statistics", "top_singular_share"),
}
"""The public names that are no function of a network: results, and functions of tensors or numbers."""


class BlownError(Exception):
    """What a fuse raises: no diagnostic knows it."""


@dataclass
class Fuse:
    """Raises at the n-th of the calls named; the copies that the probe trains share it."""

    at: str = ""
    n: int = 1
    blown: bool = False

    def pass_(self, where: str) -> None:
        if where == self.at:
            self.n -= 1
            if self.n == 0:
                self.blown = True
                raise BlownError

    def __deepcopy__(self, memo: object) -> "Fuse":
        return self


class Network(nn.Module):
    """A body with a dropout and a head behind it, that draws from every generator and may fail on the way."""

    def __init__(self, body: nn.Module, fuse: Fuse) -> None:
        super().__init__()
        self.body, self.fuse, self.dropout, self.head = body, fuse, nn.Dropout(0.3), nn.Linear(OUTPUTS, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        random.random(), np.random.rand(), torch.rand(1)
        self.fuse.pass_("forward")
        if self.fuse.at == "backward" and y.requires_grad:
            y.register_hook(lambda gradient: self.fuse.pass_("backward"))
        return self.head(self.dropout(y))


class Residual(nn.Module):
    """A residual block with one in-place ReLU, applied twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(1, 4, 3, stride=2), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.relu, self.out = nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Linear(4, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu(self.stem(x))
        return self.out(self.relu(h + self.norm(self.conv(h))).mean((2, 3)))


class WithoutRule(nn.Module):
    """A parameter in a place for which the tangent kernel has no rule."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.matrix = nn.Linear(64, 6), nn.Parameter(torch.randn(6, OUTPUTS))

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x.flatten(1)).tanh() @ self.matrix


def convolutional() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout2d(0.2), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Dropout(0.5), nn.Linear(36, OUTPUTS)),
    )


BODIES: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: make_model("mlp", SHAPE, OUTPUTS, width=6, depth=2, seed=0),
    "cnn": convolutional,
    "residual": Residual,
    "vit": lambda: make_model("vit", SHAPE, OUTPUTS, width=16, depth=1, activation="gelu", seed=0),
    "without rule": WithoutRule,
}


@dataclass
class Situation:
    """A network in the middle of its training, and what a diagnostic of it may want."""

    model: Network
    fresh: Network
    optimizer: torch.optim.Optimizer
    inputs: Tensor
    labels: Tensor
    fuse: Fuse
    before: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.before = {name: value.detach() + 1 for name, value in self.model.named_parameters()}

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        torch.rand(1)
        self.fuse.pass_("loss")
        return cross_entropy(outputs, labels)


SMALL_FIT: dict[str, Any] = {"learning_rates": (1e-3, 1e-2), "steps": 2, "n_targets": 2, "batch_size": 3}

# A diagnostic with several ways to be called has one entry for each; the first word is its public name.
LOOKS: dict[str, Callable[[Situation], object]] = {
    "unit_statistics": lambda s: diagnostics.unit_statistics(s.model, s.inputs),
    "penultimate_features": lambda s: diagnostics.penultimate_features(s.model, s.inputs),
    "output_bias_share": lambda s: diagnostics.output_bias_share(s.model, s.inputs),
    "output_top_direction_share": lambda s: diagnostics.output_top_direction_share(s.model, s.inputs),
    "empirical_ntk trace": lambda s: diagnostics.empirical_ntk(s.model, s.inputs),
    "empirical_ntk full": lambda s: diagnostics.empirical_ntk(s.model, s.inputs, "full"),
    "empirical_ntk sum": lambda s: diagnostics.empirical_ntk(s.model, s.inputs, "sum"),
    "empirical_ntk loss": lambda s: diagnostics.empirical_ntk(s.model, s.inputs, "loss", s.labels, s.loss),
    "max_hessian_eigenvalue": lambda s: diagnostics.max_hessian_eigenvalue(
        s.model, s.loss, s.inputs, s.labels, max_iterations=6
    ),
    "loss_along_gradient": lambda s: diagnostics.loss_along_gradient(
        s.model, s.loss, s.inputs, s.labels, steps=[0.0, 0.1, 1.0]
    ),
    "trainability classification": lambda s: diagnostics.trainability(s.model, s.inputs, s.fresh, **SMALL_FIT),
    "trainability carried": lambda s: diagnostics.trainability(
        s.model, s.inputs, s.fresh, optimizer=s.optimizer, **SMALL_FIT
    ),
    "fit_random_targets regression": lambda s: diagnostics.fit_random_targets(
        s.model, s.inputs, task="regression", **SMALL_FIT
    ),
    "fit_random_targets carried": lambda s: diagnostics.fit_random_targets(
        s.model, s.inputs, optimizer=s.optimizer, **SMALL_FIT
    ),
    "parameter_norm": lambda s: diagnostics.parameter_norm(s.model),
    "gradient_norm": lambda s: diagnostics.gradient_norm(s.model),
    "parameter_snapshot": lambda s: diagnostics.parameter_snapshot(s.model),
    "update_ratio": lambda s: diagnostics.update_ratio(s.before, s.model),
    "effective_learning_rate": lambda s: diagnostics.effective_learning_rate(s.model, s.optimizer),
}
RUNS_NO_NETWORK = {
    *("parameter_norm", "gradient_norm", "parameter_snapshot", "update_ratio", "effective_learning_rate")
}


def test_every_public_diagnostic_of_a_network_is_looked_at_here():
    looked_at = {name.split()[0] for name in LOOKS}
    assert looked_at == set(diagnostics.__all__) - OF_TENSORS
    for name in OF_TENSORS:
        public = getattr(diagnostics, name)
        if not inspect.isclass(public):
            taken = [str(parameter.annotation) for parameter in inspect.signature(public).parameters.values()]
            assert not any("Module" in annotation for annotation in taken), f"{name} takes a network"


CHOICES = st.fixed_dictionaries(
    {
        "body": st.sampled_from(list(BODIES)),
        "failure": st.sampled_from(["", "nan", "forward", "backward", "loss"]),
        "n": st.integers(1, 4),
        "optimizer": st.sampled_from([torch.optim.Adam, torch.optim.SGD]),
        "inputs_require_grad": st.booleans(),
        "gradients_on": st.booleans(),
        "seed": st.integers(0, 2**16),
    }
)


def situation_of(choices: dict[str, Any]) -> Situation:
    """A network with mixed modes, some gradients, some frozen parameters, hooks, a used optimizer; perhaps broken."""
    chance = random.Random(choices["seed"])
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(chance.randrange(2**16))
    fuse = Fuse(choices["failure"], choices["n"])
    model, fresh = (Network(BODIES[choices["body"]](), fuse) for _ in range(2))
    inputs, labels = torch.randn(SAMPLES, *SHAPE), torch.randint(OUTPUTS, (SAMPLES,))
    optimizer = choices["optimizer"](model.parameters(), lr=1e-2, weight_decay=1e-3)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    for network in (model, fresh):
        for child in network.modules():
            child.training = chance.random() < 0.5
        for parameter in network.body.parameters():
            parameter.requires_grad_(chance.random() < 0.8)
            parameter.grad = torch.randn_like(parameter) if chance.random() < 0.5 else None
    model.head.register_forward_pre_hook(lambda module, args: None)
    model.head.register_forward_hook(lambda module, args, output: None)
    model.head.register_full_backward_hook(lambda module, gradients, outputs: None)
    model.head.register_full_backward_pre_hook(lambda module, outputs: None)
    model.head.weight.register_hook(lambda gradient: None)
    if fuse.at == "nan":
        next(model.parameters()).data.flatten()[0] = torch.nan
    inputs.requires_grad_(choices["inputs_require_grad"])
    return Situation(model, fresh, optimizer, inputs, labels, fuse)


def bits(value: Tensor | None) -> object:
    """What a tensor holds, with NaN equal to itself."""
    return None if value is None else (value.dtype, tuple(value.shape), value.detach().numpy().tobytes())


def tensor_state(value: Tensor) -> tuple[object, ...]:
    """All of a leaf that could be changed, identities included."""
    hooks = [list((getattr(value, name, None) or {}).values()) for name in ("_backward_hooks",)]
    after = list((getattr(value, "_post_accumulate_grad_hooks", None) or {}).values())
    return (
        id(value),
        value.data_ptr(),
        bits(value),
        value.requires_grad,
        id(value.grad),
        bits(value.grad),
        hooks,
        after,
    )


def module_state(model: nn.Module) -> dict[str, object]:
    """Parameters, buffers, modes, hooks and attributes of a network, by name."""
    state: dict[str, object] = {f"parameter {name}": tensor_state(value) for name, value in model.named_parameters()}
    state |= {f"buffer {name}": tensor_state(value) for name, value in model.named_buffers()}
    for name, child in model.named_modules():
        state[f"mode of {name}"] = child.training
        state[f"attributes of {name}"] = sorted(vars(child))
        for attribute, hooks in vars(child).items():
            if "hooks" in attribute and isinstance(hooks, dict):
                state[f"{attribute} of {name}"] = list(hooks.items())
    return state


def optimizer_state(optimizer: torch.optim.Optimizer) -> list[object]:
    """Settings, members and moments of an optimizer."""

    def readable(value: object) -> object:
        return (id(value), bits(value)) if isinstance(value, Tensor) else value

    groups = [
        {name: [id(p) for p in value] if name == "params" else value for name, value in group.items()}
        for group in optimizer.param_groups
    ]
    moments = {
        id(parameter): {name: readable(value) for name, value in state.items()}
        for parameter, state in optimizer.state.items()
    }
    return [groups, moments, list(optimizer._optimizer_step_pre_hooks), list(optimizer._optimizer_step_post_hooks)]


def process_state() -> dict[str, object]:
    """What is global: random number generators, modes and switches of torch, hooks of all modules."""
    name, keys, *rest = np.random.get_state()
    return {
        "python generator": random.getstate(),
        "numpy generator": (name, keys.tobytes(), *rest),
        "torch generator": bits(torch.get_rng_state()),
        "gradient mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "anomaly mode": torch.is_anomaly_enabled(),
        "function modes": list(_get_current_function_mode_stack()),
        "default type": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "attention kernels": (
            torch.backends.cuda.flash_sdp_enabled(),
            torch.backends.cuda.mem_efficient_sdp_enabled(),
            torch.backends.cuda.math_sdp_enabled(),
        ),
    } | {name: list(hooks.items()) for name, hooks in vars(module_globals).items() if name.endswith("_hooks")}


def everything(situation: Situation) -> dict[str, object]:
    parts = {
        "model": module_state(situation.model),
        "fresh model": module_state(situation.fresh),
        "process": process_state(),
        "given": {
            "optimizer": optimizer_state(situation.optimizer),
            "inputs": tensor_state(situation.inputs),
            "labels": tensor_state(situation.labels),
            "before": {name: bits(value) for name, value in situation.before.items()},
        },
    }
    return {f"{part}: {name}": value for part, state in parts.items() for name, value in state.items()}


@pytest.mark.parametrize("name", LOOKS)
@pytest.mark.filterwarnings("ignore:empirical_ntk has no rule", "ignore:Full backward hook is firing")
@settings(max_examples=40)
@given(choices=CHOICES)
def test_a_diagnostic_leaves_no_trace(name: str, choices: dict[str, Any]):
    situation, raised = situation_of(choices), False
    with torch.set_grad_enabled(choices["gradients_on"]):
        before = everything(situation)
        try:
            LOOKS[name](situation)
        except BlownError:
            raised = True
        except UserError:
            assert choices["failure"] == "nan", "a sound network was refused"
        after = everything(situation)
    assert [entry for entry in before.keys() | after.keys() if before.get(entry) != after.get(entry)] == []
    assert raised == situation.fuse.blown, "a failure is passed on, never swallowed"
    if choices["failure"] == "forward" and choices["n"] == 1:
        assert raised == (name not in RUNS_NO_NETWORK)


def test_the_property_sees_each_kind_of_change():
    """A look that does change one thing is found out, so the property is not empty."""
    changes: dict[str, Callable[[Situation], object]] = {
        "parameter body.first.weight": lambda s: s.model.body.first.weight.data.flatten()[0].add_(1e-6),
        "parameter body.matrix": lambda s: setattr(s.model.body.matrix, "grad", torch.zeros(6, OUTPUTS)),
        "mode of dropout": lambda s: s.model.dropout.train(not s.model.dropout.training),
        "_forward_hooks of body": lambda s: s.model.body.register_forward_hook(lambda *_: None),
        "_backward_hooks of body": lambda s: s.model.body.register_full_backward_hook(lambda *_: None),
        "parameter head.bias": lambda s: s.model.head.bias.requires_grad_(False),
        "optimizer": lambda s: s.optimizer.param_groups[0].update(lr=3.0),
        "inputs": lambda s: s.inputs.add_(1),
        "torch generator": lambda s: torch.rand(1),
        "numpy generator": lambda s: np.random.rand(),
        "python generator": lambda s: random.random(),
    }
    for what, change in changes.items():
        fuse = Fuse()
        model = Network(WithoutRule(), fuse)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        labels = torch.randint(OUTPUTS, (SAMPLES,))
        situation = Situation(
            model, Network(WithoutRule(), fuse), optimizer, torch.randn(SAMPLES, *SHAPE), labels, fuse
        )
        before = everything(situation)
        change(situation)
        after = everything(situation)
        changed = [entry for entry in before.keys() | after.keys() if before.get(entry) != after.get(entry)]
        assert any(entry.endswith(what) for entry in changed), (what, changed)
