"""Every public diagnostic gives the same under inference mode, no_grad and autocast, wherever its network was made.

And it gives the values of the weights in half precision, and nothing finite of what is not finite.
"""

import copy
import dataclasses
import inspect
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from test_undisturbed import (
    BODIES,
    LOOKS,
    OF_TENSORS,
    OUTPUTS,
    RUNS_NO_NETWORK,
    SAMPLES,
    SHAPE,
    Fuse,
    Network,
    Situation,
    process_state,
)
from torch import Tensor, nn

from plasticity_cl import diagnostics
from plasticity_cl.errors import UserError

MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "gradients": torch.enable_grad,
    "no gradients": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


def situation(body: str, made: str, dtype: torch.dtype = torch.float32) -> Situation:
    """A network with one step of training behind it; for ``made="inference"`` all of it is of inference tensors."""
    torch.manual_seed(0)
    fuse = Fuse()
    model, fresh = (Network(BODIES[body](), fuse).to(dtype) for _ in range(2))
    inputs, labels = torch.randn(SAMPLES, *SHAPE).to(dtype), torch.randint(OUTPUTS, (SAMPLES,))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-8 if dtype is torch.float32 else 1e-3)
    model.train()
    nn.functional.cross_entropy(model(inputs).float(), labels).backward()
    optimizer.step()
    with torch.inference_mode() if made == "inference" else nullcontext():
        gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
        twin = copy.deepcopy(model)
        memo: dict[int, Any] = {id(a): b for a, b in zip(model.parameters(), twin.parameters(), strict=True)}
        optimizer = copy.deepcopy(optimizer, memo)
        for parameter, gradient in zip(twin.parameters(), gradients, strict=True):
            parameter.grad = gradient
        made_inside = Situation(twin, copy.deepcopy(fresh), optimizer, inputs.clone(), labels.clone(), fuse)
    assert inputs.is_inference() is False
    assert made_inside.inputs.is_inference() == (made == "inference")
    assert next(twin.parameters()).is_inference() == (made == "inference")
    return made_inside


def numbers(result: object) -> list[float]:
    """All that a result holds, in order."""
    if isinstance(result, Tensor):
        assert not result.requires_grad
        assert not result.is_inference()
        return result.double().flatten().tolist()
    if isinstance(result, int | float):
        return [float(result)]
    if isinstance(result, dict):
        return [number for value in result.values() for number in numbers(value)]
    if isinstance(result, tuple | list):
        return [number for value in result for number in numbers(value)]
    if dataclasses.is_dataclass(result):
        return [number for each in dataclasses.fields(result) for number in numbers(getattr(result, each.name))]
    assert isinstance(result, str), result
    return []


@pytest.mark.parametrize("made", ["outside", "inference"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", LOOKS)
@pytest.mark.filterwarnings("ignore:empirical_ntk has no rule")
def test_a_diagnostic_of_a_network_gives_the_same_in_every_mode(name: str, mode: str, made: str):
    for body in BODIES:
        expected = numbers(LOOKS[name](situation(body, "outside")))
        looked_at = situation(body, made)
        with MODES[mode]():
            before = process_state()
            cast = torch.is_autocast_enabled("cpu")
            found = LOOKS[name](looked_at)
            assert process_state() == before
            assert torch.is_autocast_enabled("cpu") == cast
        assert numbers(found) == pytest.approx(expected, rel=1e-6, abs=1e-9, nan_ok=True)
        assert len(expected) > 0


def batch() -> Tensor:
    return torch.randn(9, 4, generator=torch.Generator().manual_seed(1))


OF_VALUES: dict[str, Callable[[Tensor], object]] = {
    "activation_sparsity": diagnostics.activation_sparsity,
    "cosine_gram": lambda x: diagnostics.cosine_gram(x @ x.mT),
    "dead_units": diagnostics.dead_units,
    "dormant_units": diagnostics.dormant_units,
    "effective_rank": diagnostics.effective_rank,
    "feature_norm": diagnostics.feature_norm,
    "feature_rank": diagnostics.feature_rank,
    "lanczos_extremes": lambda x: diagnostics.lanczos_extremes(lambda v: x.mT @ (x @ v), 4, dtype=x.dtype),
    "linearised_units": lambda x: diagnostics.linearised_units(x, x.tanh()),
    "ntk_statistics": lambda x: diagnostics.ntk_statistics(x @ x.mT),
    "participation_ratio": diagnostics.participation_ratio,
    "preactivation_shift": lambda x: diagnostics.preactivation_shift(x, x.flip(0) * 2).distance,
    "rare_units": diagnostics.rare_units,
    "saturated_units": diagnostics.saturated_units,
    "sign_entropy": diagnostics.sign_entropy,
    "srank": diagnostics.srank,
    "stable_rank": diagnostics.stable_rank,
    "target_statistics": diagnostics.target_statistics,
    "top_singular_share": diagnostics.top_singular_share,
}


def test_every_public_diagnostic_of_tensors_is_looked_at_here():
    assert set(OF_VALUES) == {name for name in OF_TENSORS if not inspect.isclass(getattr(diagnostics, name))}


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("made", MODES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", OF_VALUES)
def test_a_diagnostic_of_tensors_gives_the_same_in_every_mode(name: str, mode: str, made: str, requires_grad: bool):
    expected = OF_VALUES[name](batch())
    with MODES[made]():
        values = batch().requires_grad_(requires_grad) * 1
    exact = name in ("cosine_gram", "ntk_statistics", "lanczos_extremes") and mode == "autocast"
    with MODES[mode]():
        found = OF_VALUES[name](values)
    # There the product is the test's own, and rounded by autocast.
    assert _plain(found) == pytest.approx(_plain(expected), rel=0.3 if exact else 1e-6, abs=0.3 if exact else 1e-9)


def _plain(result: object) -> list[float]:
    if isinstance(result, Tensor):
        assert not result.requires_grad
        return result.double().flatten().tolist()
    return (
        numbers(result)
        if not dataclasses.is_dataclass(result)
        else [value for each in dataclasses.fields(result) for value in _plain(getattr(result, each.name))]
    )


DIFFERENTIATED = ("empirical_ntk", "max_hessian", "loss_along", "fit_random", "trainability classification")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", LOOKS)
@pytest.mark.filterwarnings("ignore:empirical_ntk has no rule")
def test_a_network_in_half_precision_has_the_values_of_its_weights(name: str, dtype: torch.dtype):
    for body in ("mlp", "cnn"):
        half = situation(body, "outside", dtype)
        single = situation(body, "outside", dtype)
        single.model.float(), single.fresh.float()
        single.inputs, single.before = single.inputs.float(), {k: v.float() for k, v in single.before.items()}
        if "carried" in name:
            for state in (half, single):
                state.optimizer = torch.optim.SGD(state.model.parameters(), lr=1e-3, momentum=0.9)
        types = [value.dtype for value in half.model.state_dict().values()]
        found, expected = numbers(LOOKS[name](half)), numbers(LOOKS[name](single))
        exact = name.startswith(DIFFERENTIATED)
        assert found == pytest.approx(expected, rel=1e-6 if exact else 0.1, abs=1e-9 if exact else 0.1, nan_ok=True)
        assert [value.dtype for value in half.model.state_dict().values()] == types


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_carried_optimizer_in_half_precision_comes_along(dtype: torch.dtype):
    half = situation("mlp", "outside", dtype)
    state = next(iter(half.optimizer.state.values()))["exp_avg"]
    fit = diagnostics.fit_random_targets(half.model, half.inputs, optimizer=half.optimizer, steps=3, n_targets=1)
    assert state.dtype == dtype
    assert math.isfinite(fit.loss)


def or_error(look: Callable[[], Any]) -> Any:
    """What a diagnostic gives, or None where it says in one line that it cannot."""
    try:
        return look()
    except UserError as error:
        line = str(error)
    assert "\n" not in line
    return None


def breaks(value: float, where: str) -> Situation:
    broken = situation("mlp", "outside")
    target = broken.inputs if where == "inputs" else next(broken.model.parameters()).data
    target.flatten()[0] = value
    if where == "all weights":
        for parameter in broken.model.parameters():
            parameter.data.fill_(value)
    broken.before = {name: p.detach().clone() for name, p in broken.model.named_parameters()}
    return broken


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["inputs", "one weight", "all weights"])
@pytest.mark.parametrize("name", LOOKS)
def test_what_is_not_finite_gives_an_error_or_no_finite_number(name: str, where: str, value: float):
    if where == "inputs" and name in RUNS_NO_NETWORK:
        return
    broken = breaks(value, where)
    if name == "gradient_norm":
        next(broken.model.parameters()).grad.flatten()[0] = value
    found = or_error(lambda: LOOKS[name](broken))
    if found is None:
        return
    if isinstance(found, diagnostics.Trainability):
        assert not math.isfinite(found.worn.loss)
        assert not math.isfinite(found.ratio)
    else:
        total = getattr(found, "total", getattr(found, "loss", found))
        assert not all(map(math.isfinite, numbers(total)))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", OF_VALUES)
def test_tensors_that_are_not_finite_give_an_error_or_no_finite_number(name: str, value: float):
    values = batch()
    values[2, 1] = value
    found = or_error(lambda: OF_VALUES[name](values))
    assert found is None or not math.isfinite(float(found))


SCALE_FREE = sorted(
    set(OF_VALUES) - {"saturated_units", "linearised_units", "lanczos_extremes", "cosine_gram", "ntk_statistics"}
)


@pytest.mark.parametrize("factor", [2.0**-500, 2.0**500])
@pytest.mark.parametrize("name", SCALE_FREE)
def test_values_at_the_ends_of_the_range_do_not_overflow(name: str, factor: float):
    plain, scaled = (OF_VALUES[name](batch().double() * by) for by in (1.0, factor))
    if name == "feature_norm":
        assert scaled == pytest.approx(plain * factor)
    elif name == "target_statistics":
        assert scaled.offset_to_scale == pytest.approx(plain.offset_to_scale)
        assert scaled.target_std == pytest.approx(plain.target_std * factor)
    elif name == "feature_rank":
        assert scaled.scalars() == pytest.approx(plain.scalars())
    else:
        assert _plain(scaled) == pytest.approx(_plain(plain))


@pytest.mark.parametrize("factor", [1e-30, 1e-15, 1e15, 1e30])
def test_norms_of_weights_whose_squares_leave_single_precision(factor: float):
    model = nn.Linear(3, 3)
    expected = diagnostics.parameter_norm(model).total * factor
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(factor)
    assert diagnostics.parameter_norm(model).total == pytest.approx(expected, rel=1e-5)


class Labelled(nn.Module):
    """A network that wants a task label and gives a mapping, as multi-head and Hugging Face networks do."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor, task: Tensor) -> dict[str, Tensor]:
        assert task.shape == (len(x),)
        return {"logits": self.body(x), "hidden": x}


OF_OUTPUTS = sorted(set(LOOKS) - RUNS_NO_NETWORK)


@pytest.mark.parametrize("mode", ["gradients", "inference"])
@pytest.mark.parametrize("name", OF_OUTPUTS)
@pytest.mark.filterwarnings("ignore:empirical_ntk has no rule")
def test_forward_hooks_of_the_network_are_honoured(name: str, mode: str):
    for body in ("mlp", "without rule"):
        plain, hooked = situation(body, "outside"), situation(body, "outside")
        hooks = []
        for which in ("model", "fresh"):
            network = Labelled(getattr(hooked, which))
            hooks.append(network.register_forward_pre_hook(lambda module, args: (args[0], torch.zeros(len(args[0])))))
            hooks.append(network.register_forward_hook(lambda module, args, output: output["logits"]))
            setattr(hooked, which, network)
        with MODES[mode]():
            found = numbers(LOOKS[name](hooked))
        assert found == pytest.approx(numbers(LOOKS[name](plain)), rel=1e-6, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("name", OF_OUTPUTS)
def test_what_is_no_tensor_is_named(name: str):
    looked_at = situation("mlp", "outside")
    for network in (looked_at.model, looked_at.fresh):
        network.register_forward_hook(lambda module, args, output: {"logits": output})
    if name.split()[0] in (
        "unit_statistics",
        "penultimate_features",
        "output_bias_share",
        "output_top_direction_share",
    ):
        LOOKS[name](looked_at)  # these do not look at the output
    else:
        with pytest.raises(UserError, match="dict"):
            LOOKS[name](looked_at)
