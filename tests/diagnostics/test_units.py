"""Unit and preactivation diagnostics against brute force over stored activations."""

import copy
import math
import random
import weakref

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from plasticity_cl.diagnostics import units
from plasticity_cl.diagnostics.units import (
    UnitStatistics,
    activation_sparsity,
    dead_units,
    dormant_units,
    linearised_units,
    preactivation_shift,
    rare_units,
    saturated_units,
    sign_entropy,
    unit_statistics,
)
from plasticity_cl.errors import UserError

HINGES = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.RReLU)
SHARES = (
    *("dead_units", "linearised_units", "dormant_units", "rare_units", "saturated_units"),
    *("activation_sparsity", "sign_entropy"),
)


class ResidualBlock(nn.Module):
    """Two convolutions around a sum, one in-place ReLU called twice."""

    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=2, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        h = self.relu(self.norm1(self.conv1(x)))
        return self.relu(self.norm2(self.conv2(h)) + x)


class TokenBlock(nn.Module):
    """A transformer block as vision transformers have it, on tokens [n, t, d]."""

    def __init__(self, width, activation):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 12), activation, nn.Dropout(0.5), nn.Linear(12, width))

    def forward(self, x):
        normed = self.norm1(x)
        x = x + self.attention(normed, normed, normed, need_weights=False)[0]
        return (x + self.mlp(self.norm2(x))).mean(1)


class ImagesToTokens(nn.Module):
    """A convolution whose map [n, c, h, w] becomes tokens [n, h * w, c] before the nonlinearity."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 6, 2, stride=2)
        self.hidden = nn.Linear(6, 9)
        self.act = nn.GELU()

    def forward(self, x):
        return self.act(self.hidden(self.patch(x).flatten(2).transpose(1, 2))).mean(1)


def mlp(activation, second=None):
    return nn.Sequential(nn.Linear(6, 10), activation, nn.Linear(10, 11), second or activation, nn.Linear(11, 3))


def cnn(activation):
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3, padding=1), copy.deepcopy(activation), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3)),
        *(copy.deepcopy(activation), nn.Flatten(), nn.Linear(20, 8), copy.deepcopy(activation), nn.Linear(8, 2)),
    )


IMAGES, ROWS, TOKENS = (7, 3, 8, 8), (40, 6), (5, 7, 6)
CASES = {
    "mlp_relu": (lambda: mlp(nn.ReLU(), nn.ReLU()), ROWS),
    "mlp_shared_inplace": (lambda: mlp(nn.ReLU(inplace=True)), ROWS),
    "mlp_leaky": (lambda: mlp(nn.LeakyReLU(0.2), nn.LeakyReLU(0.1, inplace=True)), ROWS),
    "mlp_prelu": (lambda: mlp(nn.PReLU(10), nn.PReLU()), ROWS),
    "mlp_rrelu_relu6": (lambda: mlp(nn.RReLU(), nn.ReLU6(inplace=True)), ROWS),
    "mlp_gelu_tanh": (lambda: mlp(nn.GELU(), nn.Tanh()), ROWS),
    "mlp_silu_sigmoid": (lambda: mlp(nn.SiLU(inplace=True), nn.Sigmoid()), ROWS),
    "mlp_elu_hardtanh": (lambda: mlp(nn.ELU(inplace=True), nn.Hardtanh()), ROWS),
    "mlp_softplus_mish": (lambda: mlp(nn.Softplus(2.0), nn.Mish()), ROWS),
    "cnn_relu": (lambda: cnn(nn.ReLU(inplace=True)), IMAGES),
    "cnn_leaky": (lambda: cnn(nn.LeakyReLU()), IMAGES),
    "cnn_gelu": (lambda: cnn(nn.GELU("tanh")), IMAGES),
    "cnn_channels_last": (lambda: cnn(nn.ReLU()).to(memory_format=torch.channels_last), IMAGES),
    "conv1d": (
        lambda: nn.Sequential(nn.Conv1d(7, 7, 3, padding=1), nn.ReLU(), nn.BatchNorm1d(7), nn.Tanh(), nn.Flatten()),
        TOKENS,
    ),
    "conv3d_norms": (
        lambda: nn.Sequential(
            nn.Unflatten(1, (1, 3)),
            nn.Conv3d(1, 4, 2),
            nn.GroupNorm(2, 4),
            nn.ReLU(),
            nn.Flatten(),
            nn.RMSNorm(392),
            nn.ReLU(),
        ),
        IMAGES,
    ),
    "residual": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), ResidualBlock(4), ResidualBlock(4)), IMAGES),
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=3), (2, 3, 32, 32)),
    "vit_block_gelu": (lambda: TokenBlock(6, nn.GELU()), TOKENS),
    "vit_block_relu": (lambda: TokenBlock(6, nn.ReLU(inplace=True)), TOKENS),
    "tokens_from_images": (ImagesToTokens, IMAGES),
}


def wear(model):
    """Give the hidden units every fate: dead, linear on the data, rarely active, constant."""
    for module in model.modules():
        if (
            isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.BatchNorm2d)
            and module.bias is not None
        ):
            with torch.no_grad():
                module.bias[0] = -50.0
                module.bias[1 % len(module.bias)] = 60.0
                if len(module.bias) > 3:
                    module.bias[2] -= module.weight[2].norm()
                    module.weight[3] = 0.0
    return model


def build(name, seed=0):
    make, shape = CASES[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, inputs = wear(make()), torch.randn(shape)
        model.train()
        with torch.no_grad():
            model(inputs)  # batch normalisation learns the data's moments
    return model, inputs


def record(model, inputs):
    """Store a copy of what goes in and out of every nonlinearity that is a module, in order of execution."""
    stored = []
    kinds = tuple(
        {type(m) for m in model.modules() if type(m).__module__ == "torch.nn.modules.activation"}
        - {nn.MultiheadAttention}
    )
    kinds = (*kinds, nn.Softplus)
    handles = []
    for module in model.modules():
        if isinstance(module, kinds):
            handles.append(module.register_forward_pre_hook(lambda m, args: stored.append([m, args[0].clone()])))
            handles.append(module.register_forward_hook(lambda m, args, out: stored[-1].append(out.clone())))
    mode = model.training
    model.eval()
    with torch.no_grad():
        model(inputs)
    model.train(mode)
    for handle in handles:
        handle.remove()
    return stored


def as_rows(values, tokens):
    """Samples by units: channels are second in maps, features last in tokens."""
    if values.ndim > 2 and not tokens:
        values = values.transpose(1, -1)
    return values.reshape(-1, values.shape[-1]).double()


def brute_force(module, z, h, tau=0.025, threshold=0.01, eps=0.01):
    """Every share of a layer, unit by unit, from stored float64 values [n, units]."""
    z.requires_grad_()
    fresh = copy.deepcopy(module).double().eval()
    if hasattr(fresh, "inplace"):
        fresh.inplace = False
    counts = dict.fromkeys(SHARES, 0.0)
    magnitudes = [h[:, unit].abs().mean().item() for unit in range(h.shape[1])]
    for unit in range(z.shape[1]):
        column, active = z[:, unit].detach().numpy(), h[:, unit].numpy()
        p = float((column > 0).mean())
        counts["dead_units"] += column.max() <= 0
        if isinstance(module, HINGES):
            counts["linearised_units"] += column.min() > 0
        elif column.std() <= 1e-6 * abs(column.mean()):
            counts["linearised_units"] += 1
        elif active.std() > 1e-6 * abs(active.mean()):
            counts["linearised_units"] += 1 - np.corrcoef(column, active)[0, 1] ** 2 < 1e-3
        counts["dormant_units"] += magnitudes[unit] <= tau * sum(magnitudes) / len(magnitudes)
        counts["rare_units"] += (active != 0).mean() < threshold
        counts["activation_sparsity"] += (active == 0).mean()
        counts["sign_entropy"] -= sum(q * math.log2(q) for q in (p, 1 - p) if q > 0)
    if not isinstance(module, HINGES):
        (derivative,) = torch.autograd.grad(fresh(z).sum(), z)
        counts["saturated_units"] = float((derivative.abs().mean(0) < eps).sum())
    else:
        counts["saturated_units"] = math.nan
    if not isinstance(module, (*HINGES, nn.ReLU6)):
        counts["dead_units"] = math.nan
    return {name: count / z.shape[1] for name, count in counts.items()}


@pytest.mark.parametrize("block", [None, 50])
@pytest.mark.parametrize("name", CASES)
def test_every_share_and_moment_equals_brute_force(name, block, monkeypatch):
    if block:
        monkeypatch.setattr(units, "_BLOCK", block)
        monkeypatch.setattr(units, "_MAP", 4)
    model, inputs = build(name)
    stored = record(model, inputs)
    found = unit_statistics(model, inputs)
    assert len(found.layers) == len(stored) > 0
    for (module, raw_z, raw_h), layer in zip(stored, found.layers.values(), strict=True):
        tokens = isinstance(model, TokenBlock | ImagesToTokens)
        z, h = as_rows(raw_z, tokens), as_rows(raw_h, tokens)
        assert (layer.samples, layer.units) == tuple(z.shape)
        for share, expected in brute_force(module, z, h).items():
            assert getattr(layer, share) == pytest.approx(expected, abs=1e-12, nan_ok=True), share
        z = z.detach()
        assert layer.positive == pytest.approx((z > 0).double().mean(0))
        torch.testing.assert_close(layer.mean, z.mean(0), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(layer.std, z.std(0, correction=0), rtol=2e-5, atol=1e-6)
        torch.testing.assert_close(layer.magnitude, h.abs().mean(0), rtol=1e-5, atol=1e-6)


def test_the_cases_show_every_fate():
    totals = [unit_statistics(*build(name)).total for name in CASES]
    for share in SHARES:
        values = [getattr(total, share) for total in totals if not math.isnan(getattr(total, share))]
        assert min(values) < max(values) <= 1, share


@pytest.mark.parametrize("name", ["mlp_relu", "cnn_leaky", "resnet18", "vit_block_gelu", "mlp_rrelu_relu6"])
def test_total_weighs_every_unit_alike_and_every_entry_in_sparsity(name):
    found = unit_statistics(*build(name))
    layers = list(found.layers.values())
    assert found.total.units == sum(layer.units for layer in layers)
    for share in SHARES:
        defined = [layer for layer in layers if not math.isnan(getattr(layer, share))]
        weights = [layer.units * (layer.samples if share == "activation_sparsity" else 1) for layer in defined]
        values = [getattr(layer, share) for layer in defined]
        expected = np.average(values, weights=weights) if defined else math.nan
        assert getattr(found.total, share) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("name", ["mlp_gelu_tanh", "cnn_relu", "residual"])
def test_float64_and_bfloat16_networks(name):
    model, inputs = build(name)
    double = unit_statistics(copy.deepcopy(model).double(), inputs.double())
    single = unit_statistics(model, inputs)
    assert double.scalars() == pytest.approx(single.scalars(), abs=1e-12)
    for layer in single.layers:
        torch.testing.assert_close(double.layers[layer].std, single.layers[layer].std, rtol=1e-4, atol=1e-5)
    half, half_inputs = copy.deepcopy(model).bfloat16(), inputs.bfloat16()
    found = unit_statistics(half, half_inputs)
    for (_, raw_z, _), layer in zip(record(half, half_inputs), found.layers.values(), strict=True):
        torch.testing.assert_close(layer.mean, as_rows(raw_z, False).mean(0), rtol=1e-5, atol=1e-6)


class Spelt(nn.Module):
    """A network whose nonlinearity is whatever function is given."""

    def __init__(self, function):
        super().__init__()
        self.hidden, self.output, self.function = nn.Linear(6, 8), nn.Linear(8, 8), function

    def forward(self, x):
        return self.function(self.output(self.function(self.hidden(x))))


SPELLINGS = {
    "relu": [nn.ReLU(), nn.ReLU(True), F.relu, torch.relu, torch.Tensor.relu, torch.relu_, F.relu_, torch.Tensor.relu_],
    "relu_keywords": [lambda z: F.relu(input=z), lambda z: F.relu(z, True), lambda z: F.relu(z, inplace=True)],
    "gelu": [nn.GELU(), F.gelu, torch._C._nn.gelu],
    "tanh": [nn.Tanh(), torch.tanh, F.tanh, torch.Tensor.tanh, torch.tanh_, torch.Tensor.tanh_],
    "silu": [nn.SiLU(), F.silu, nn.SiLU(True), lambda z: F.silu(z, inplace=True)],
    "sigmoid": [nn.Sigmoid(), torch.sigmoid, F.sigmoid, torch.special.expit, torch.Tensor.sigmoid_],
    "leaky_relu": [nn.LeakyReLU(), F.leaky_relu, F.leaky_relu_, lambda z: F.leaky_relu(z, 0.01, True)],
    "elu": [nn.ELU(), F.elu, F.elu_, lambda z: F.elu(z, 1.0, True)],
    "relu6": [nn.ReLU6(), F.relu6, lambda z: F.hardtanh(z, 0.0, 6.0), lambda z: F.hardtanh(z, min_val=0, max_val=6)],
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_nonlinearity_is_found_in_every_spelling(name):
    first = None
    inputs = torch.randn(30, 6, generator=torch.Generator().manual_seed(1)) * 3
    for function in SPELLINGS[name]:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = Spelt(function)
        found = unit_statistics(model, inputs)
        assert [layer.nonlinearity for layer in found.layers.values()] == [name.removesuffix("_keywords")] * 2
        values = list(found.scalars().values())
        first = first or values
        assert values == pytest.approx(first, rel=1e-6)


def test_layers_are_named_after_their_place():
    block = nn.Sequential(nn.Conv2d(3, 4, 3), ResidualBlock(4))
    assert list(unit_statistics(block, torch.randn(2, 3, 8, 8)).layers) == ["1.relu", "1.relu_2"]
    assert list(unit_statistics(Spelt(F.relu), torch.randn(2, 6)).layers) == ["relu", "relu_2"]
    assert list(unit_statistics(Spelt(nn.Tanh()), torch.randn(2, 6)).layers) == ["function", "function_2"]
    nested = nn.Sequential(Spelt(torch.relu_), nn.Linear(8, 6), Spelt(F.gelu))
    assert list(unit_statistics(nested, torch.randn(2, 6)).layers) == ["0.relu", "0.relu_2", "2.gelu", "2.gelu_2"]

    class Direct(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu_2, self.relu = nn.ReLU(), nn.ReLU()

        def forward(self, x):
            return self.relu_2.forward(self.relu(self.relu(x)))

    assert list(unit_statistics(Direct(), torch.randn(2, 6)).layers) == ["relu", "relu_2", "relu_2_2"]


@pytest.mark.parametrize("name", ["mlp_relu", "cnn_gelu", "residual", "mlp_shared_inplace"])
def test_a_traced_network_gives_the_same(name):
    model, inputs = build(name)
    traced = torch.fx.symbolic_trace(copy.deepcopy(model))
    assert unit_statistics(traced, inputs).scalars() == unit_statistics(model, inputs).scalars()
    functional = torch.fx.symbolic_trace(Spelt(F.relu))
    rows = torch.randn(20, 6)
    expected = unit_statistics(nn.Sequential(functional.hidden, nn.ReLU(), functional.output, nn.ReLU()), rows)
    found = unit_statistics(functional, rows)
    assert list(found.layers) == ["relu", "relu_2"]
    assert vars(found.total) == pytest.approx(vars(expected.total), nan_ok=True)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_the_fused_path_of_transformer_layers_is_seen_through(activation):
    layer = nn.TransformerEncoderLayer(6, 2, 12, batch_first=True, activation=activation).eval()
    inputs = torch.randn(5, 7, 6)
    stored = []
    handle = layer.linear1.register_forward_hook(lambda m, args, out: stored.append(out.clone()))
    with torch.no_grad():
        layer(inputs)
    handle.remove()
    for model in (layer, nn.TransformerEncoder(layer, 1).eval()):
        (found,) = unit_statistics(model, inputs).layers.values()
        assert (found.units, found.samples) == (12, 35)
        if model is layer:
            torch.testing.assert_close(found.mean, stored[0].reshape(-1, 12).double().mean(0), rtol=1e-5, atol=1e-6)


def test_nonlinearities_of_parameters_are_not_units():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.hidden = nn.Parameter(torch.zeros(5)), nn.Linear(6, 5)

        def forward(self, x):
            return torch.relu(self.hidden(x)) * torch.sigmoid(self.scale)

    assert [layer.nonlinearity for layer in unit_statistics(Gated(), torch.randn(4, 6)).layers.values()] == ["relu"]


@pytest.mark.parametrize("block", [None, 4096])
@pytest.mark.parametrize("shape", [(512, 5), (6, 5, 16, 16), (200, 5, 3, 3), (30, 20, 5)])
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.GELU()])
def test_moments_hold_far_from_zero(activation, shape, block, monkeypatch):
    if block:
        monkeypatch.setattr(units, "_BLOCK", block)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(shape, generator=generator, dtype=torch.float64)
    z = (
        z * 0.7 + 1e4 * 0.7 * torch.tensor([1.0, -1.0, 0.1, 0.0, 0.01]).reshape(5, 1, 1)[..., : z.ndim - 2]
        if z.ndim == 4
        else z * 0.7 + 1e4 * 0.7 * torch.tensor([1.0, -1.0, 0.1, 0.0, 0.01])
    ).float()
    (found,) = unit_statistics(nn.Sequential(activation), z).layers.values()
    rows = as_rows(z, tokens=z.ndim == 3)
    torch.testing.assert_close(found.mean, rows.mean(0), rtol=2e-7, atol=1e-6)
    torch.testing.assert_close(found.std, rows.std(0, correction=0), rtol=2e-5, atol=0)
    assert found.units == 5


def single_functions(module, z, h):
    """The same shares from the functions on matrices."""
    copied = z.clone().requires_grad_()
    (derivative,) = torch.autograd.grad(copy.deepcopy(module).double().eval()(copied.clone()).sum(), copied)
    return {
        "dead_units": dead_units(z),
        "linearised_units": linearised_units(z) if isinstance(module, HINGES) else linearised_units(z, h),
        "dormant_units": dormant_units(h),
        "rare_units": rare_units(h),
        "saturated_units": saturated_units(derivative),
        "activation_sparsity": activation_sparsity(h),
        "sign_entropy": sign_entropy(z),
    }


@pytest.mark.parametrize("name", ["mlp_relu", "mlp_leaky", "mlp_gelu_tanh", "mlp_softplus_mish", "cnn_leaky"])
def test_the_functions_on_matrices_agree_with_the_network(name):
    model, inputs = build(name)
    for (module, raw_z, raw_h), layer in zip(
        record(model, inputs), unit_statistics(model, inputs).layers.values(), strict=True
    ):
        for share, value in single_functions(module, as_rows(raw_z, False), as_rows(raw_h, False)).items():
            expected = getattr(layer, share)
            assert value == pytest.approx(value if math.isnan(expected) else expected, abs=1e-12), share


def test_thresholds_are_the_ones_given():
    z = torch.tensor([[0.0, 1.0, 3.0, 9.0], [1.0, 1.0, 3.0, 9.0], [0.0, 1.0, 3.0, 9.0], [0.0, 1.0, 3.0, 9.0]])
    model = nn.Sequential(nn.ReLU())
    assert unit_statistics(model, z, tau=0.31).total.dormant_units == 0.5 == dormant_units(z, 0.31)
    assert unit_statistics(model, z, tau=0.01).total.dormant_units == 0.0 == dormant_units(z, 0.01)
    assert unit_statistics(model, z, threshold=0.25).total.rare_units == 0.0 == rare_units(z, 0.25)
    assert unit_statistics(model, z, threshold=0.26).total.rare_units == 0.25 == rare_units(z, 0.26)
    derivative = 1 - torch.tanh(z).square()
    for eps, share in ((1e-3, 0.25), (0.05, 0.5), (0.9, 1.0)):
        assert unit_statistics(nn.Tanh(), z, eps=eps).total.saturated_units == share == saturated_units(derivative, eps)


seeds = st.integers(0, 2**31)


@given(seeds, st.sampled_from(["mlp_relu", "mlp_gelu_tanh", "cnn_leaky", "residual", "vit_block_gelu"]))
def test_the_order_of_samples_does_not_matter(seed, name):
    model, inputs = build(name, seed)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))
    reference = unit_statistics(*build(name, seed + 1))
    found, shuffled = (unit_statistics(model, batch, reference) for batch in (inputs, inputs[order]))
    for share in SHARES:
        assert getattr(shuffled.total, share) == pytest.approx(getattr(found.total, share), abs=1e-12, nan_ok=True)
    assert shuffled.scalars() == pytest.approx(found.scalars(), rel=1e-3, abs=1e-4)
    for share in SHARES:
        assert math.isnan(getattr(found.total, share)) or 0 <= getattr(found.total, share) <= 1 + 1e-12


@given(seeds)
def test_the_order_of_units_does_not_matter(seed):
    model, inputs = build("mlp_relu", seed)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(seed))
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight.copy_(model[0].weight[order])
        other[0].bias.copy_(model[0].bias[order])
        other[2].weight.copy_(model[2].weight[:, order])
    found, permuted = unit_statistics(model, inputs), unit_statistics(other, inputs)
    assert permuted.total.__dict__ == pytest.approx(found.total.__dict__, abs=1e-12, nan_ok=True)
    torch.testing.assert_close(permuted.layers["1"].mean, found.layers["1"].mean[order])


@given(seeds, st.lists(st.integers(-8, 8), min_size=10, max_size=10))
def test_rescaling_a_unit_leaves_its_fate_alone(seed, exponents):
    model, inputs = build("mlp_relu", seed)
    scales = torch.tensor(exponents).float().exp2()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight.mul_(scales[:, None])
        other[0].bias.mul_(scales)
        other[2].weight.div_(scales)
    found, rescaled = unit_statistics(model, inputs), unit_statistics(other, inputs)
    for share in ("dead_units", "linearised_units", "rare_units", "activation_sparsity", "sign_entropy"):
        assert getattr(rescaled.layers["1"], share) == getattr(found.layers["1"], share)
    torch.testing.assert_close(rescaled.layers["1"].std, found.layers["1"].std * scales)


@given(seeds, st.floats(-20, 20), st.floats(0.01, 100))
def test_shift_of_a_known_affine_change(seed, offset, factor):
    model, inputs = build("mlp_leaky", seed)
    with torch.no_grad():
        model[0].weight[3] = model[0].weight[4]  # no constant unit
    before = unit_statistics(model, inputs)
    mean, std = before.layers["1"].mean, before.layers["1"].std
    with torch.no_grad():
        model[0].weight.mul_(factor)
        model[0].bias.mul_(factor).add_(offset)
    after = unit_statistics(model, inputs, before).layers["1"]
    location = ((factor - 1) * mean + offset) / std
    distance = (location.square() + (factor - 1) ** 2).sqrt()
    assert after.mean_shift == pytest.approx(location.abs().mean().item(), rel=1e-3, abs=1e-3)
    assert after.mean_shift_p95 == pytest.approx(np.quantile(location.abs(), 0.95), rel=1e-3, abs=1e-3)
    assert after.log_scale_shift == pytest.approx(math.log(factor), abs=1e-3)
    assert after.log_scale_shift_p95 == pytest.approx(math.log(factor), abs=1e-3)
    assert after.preactivation_shift == pytest.approx(distance.mean().item(), rel=1e-3, abs=1e-3)
    assert after.preactivation_shift_p95 == pytest.approx(np.quantile(distance, 0.95), rel=1e-3, abs=1e-3)


def test_shift_on_matrices_agrees_with_the_network():
    model, inputs = build("cnn_relu")
    before, old = unit_statistics(model, inputs), record(model, inputs)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    after, new = unit_statistics(model, inputs, before), record(model, inputs)
    everything = []
    for (_, z0, _), (_, z, _), layer in zip(old, new, after.layers.values(), strict=True):
        shift = preactivation_shift(as_rows(z, False), as_rows(z0, False))
        assert layer.preactivation_shift == pytest.approx(np.nanmean(shift.distance), rel=1e-3)
        assert layer.mean_shift_p95 == pytest.approx(np.nanquantile(shift.location.abs(), 0.95), rel=1e-3)
        assert layer.log_scale_shift == pytest.approx(np.nanmean(shift.log_scale), abs=1e-4)
        everything.append(shift.distance)
    assert after.total.preactivation_shift == pytest.approx(np.nanmean(torch.cat(everything)), rel=1e-3)
    assert after.total.preactivation_shift_p95 == pytest.approx(np.nanquantile(torch.cat(everything), 0.95), rel=1e-3)
    assert after.total.sign_entropy_ratio == pytest.approx(after.total.sign_entropy / before.total.sign_entropy)


def test_nothing_shifts_against_itself_and_moments_survive_a_file(tmp_path):
    model, inputs = build("residual")
    before = unit_statistics(model, inputs)
    torch.save(before.moments, tmp_path / "moments.pt")
    moments = torch.load(tmp_path / "moments.pt", weights_only=True)
    for reference in (before, moments):
        total = unit_statistics(model, inputs, reference).total
        assert total.sign_entropy_ratio == 1.0
        assert total.preactivation_shift == total.mean_shift_p95 == total.log_scale_shift == 0.0
    with pytest.raises(UserError, match="same network"):
        unit_statistics(*build("mlp_relu"), reference=before)


def test_constant_units_have_no_spread_and_a_defined_shift():
    model, inputs = build("mlp_relu")
    before = unit_statistics(model, inputs)
    assert before.layers["1"].std[3] == 0.0  # its weights are zero, its bias is not
    assert (before.layers["1"].std[4:] > 0).all()
    with torch.no_grad():
        model[0].weight[4] = 0.0
    after = unit_statistics(model, inputs, before).layers["1"]
    assert after.std[4] == 0.0
    # Of ten units one was constant before and is left out; one became constant: 23 halvings of sigma.
    assert after.log_scale_shift == pytest.approx(-23 * math.log(2) / 9, rel=1e-6)


@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e-3, 1e4 / 3, -7.7])
@pytest.mark.parametrize("shape", [(1000, 3), (30, 3, 16, 16), (4, 3, 200, 200)])
def test_equal_values_are_recognised_as_constant(value, shape):
    for activation in (nn.ReLU(), nn.GELU()):
        (layer,) = unit_statistics(nn.Sequential(activation), torch.full(shape, value)).layers.values()
        assert layer.std.tolist() == [0.0] * 3
        assert layer.linearised_units == (1.0 if isinstance(activation, nn.GELU) or value > 0 else 0.0)


def test_one_sample():
    found = unit_statistics(mlp(nn.ReLU()), torch.randn(1, 6))
    for layer in found.layers.values():
        assert layer.std.tolist() == [0.0] * layer.units
        assert layer.dead_units + layer.linearised_units == 1.0
        assert layer.sign_entropy == 0.0
    assert unit_statistics(mlp(nn.GELU()), torch.randn(1, 6)).total.linearised_units == 1.0
    shifted = unit_statistics(mlp(nn.ReLU()), torch.ones(1, 6), unit_statistics(mlp(nn.ReLU()), torch.ones(1, 6)))
    assert not any("shift" in name or "ratio" in name for name in shifted.scalars())


def test_a_layer_that_is_all_zero():
    model = mlp(nn.ReLU())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    total = unit_statistics(model, torch.randn(20, 6)).total
    assert (total.dead_units, total.dormant_units, total.rare_units, total.activation_sparsity) == (1, 1, 1, 1)
    assert (total.linearised_units, total.sign_entropy) == (0, 0)


def test_a_network_without_nonlinearities_has_empty_statistics():
    found = unit_statistics(nn.Sequential(nn.Linear(6, 3), nn.LayerNorm(3)), torch.randn(4, 6))
    assert found.layers == found.scalars() == found.moments == {}
    assert found.total.units == 0
    assert all(math.isnan(getattr(found.total, share)) for share in SHARES)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("name", ["mlp_relu", "mlp_gelu_tanh", "cnn_relu"])
def test_what_is_not_finite_is_an_error_that_names_the_layer(name, bad):
    model, inputs = build(name)
    with torch.no_grad():
        model[0].weight[0] = bad
    with pytest.raises(UserError, match="layer '1'"):
        unit_statistics(model, inputs)


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_input_that_cannot_be_looked_at():
    with pytest.raises(UserError, match="empty"):
        unit_statistics(mlp(nn.ReLU()), torch.zeros(0, 6))
    scripted = torch.jit.trace(mlp(nn.ReLU()).eval(), torch.zeros(2, 6))
    with pytest.raises(UserError, match="TorchScript"):
        unit_statistics(nn.Sequential(scripted), torch.zeros(2, 6))
    for function in (dead_units, linearised_units, dormant_units, rare_units, activation_sparsity, sign_entropy):
        for wrong in (torch.zeros(3), torch.zeros(0, 3), torch.zeros(3, 0), torch.full((2, 2), math.nan)):
            with pytest.raises(UserError):
                function(wrong)
    with pytest.raises(UserError, match="shape"):
        linearised_units(torch.ones(3, 2), torch.ones(3, 1))
    with pytest.raises(UserError, match="units"):
        preactivation_shift(torch.ones(3, 2), torch.ones(3, 1))


class Breaks(nn.Module):
    """Draws from every generator, then fails if asked to."""

    def __init__(self, fails):
        super().__init__()
        self.fails = fails

    def forward(self, x):
        random.random(), np.random.rand(), torch.rand(3)
        if self.fails:
            raise RuntimeError("broken half-way")
        return x


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("activation", [nn.ReLU(inplace=True), nn.SiLU(inplace=True)])
def test_the_network_is_left_as_it_was(fails, activation):
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), activation, nn.Dropout(), Breaks(fails), nn.Linear(8, 2))
    seen = []
    model[2].register_forward_hook(lambda module, args, output: seen.append(module.training))
    model(torch.randn(9, 6)).sum().backward() if not fails else None
    model[3].eval()
    model[0].weight.requires_grad_(False)
    inputs = torch.randn(9, 6)

    def state():
        hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()]
        values = [value.clone() for value in [*model.state_dict().values(), inputs]]
        gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
        flags = (
            [(m.training, [*m.__dict__]) for m in model.modules()],
            [p.requires_grad for p in model.parameters()],
        )
        generators = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
        return hooks, values, gradients, flags, generators, torch.is_grad_enabled()

    before = state()
    identities = [p.grad for p in model.parameters()]
    try:
        unit_statistics(model, inputs)
    except RuntimeError:
        assert fails
    after = state()
    assert seen[-1] is False
    assert str(before) == str(after)
    assert all(torch.equal(a, b) for a, b in zip(before[1], after[1], strict=True))
    assert torch.equal(before[4][2], after[4][2])
    assert all(a is b.grad for a, b in zip(identities, model.parameters(), strict=True))


def test_a_compiled_network_gives_the_same():
    model, inputs = build("mlp_relu")
    compiled = torch.compile(copy.deepcopy(model), backend="eager")
    with torch.no_grad():
        compiled(inputs)
    assert unit_statistics(compiled, inputs).scalars() == unit_statistics(model, inputs).scalars()


def test_scalars_are_flat_finite_floats_that_name_the_layer():
    model, inputs = build("cnn_gelu")
    found = unit_statistics(model, inputs, unit_statistics(model, inputs))
    scalars = found.scalars()
    assert all(type(value) is float and math.isfinite(value) for value in scalars.values())
    assert scalars["sign_entropy"] == found.total.sign_entropy
    assert scalars["saturated_units/1"] == found.layers["1"].saturated_units
    assert "dead_units" not in scalars  # not defined for GELU
    assert isinstance(found, UnitStatistics)


def test_memory_does_not_grow_with_the_depth():
    """The batch passes one layer after the other; nothing but sums of units is kept of it."""
    depth, largest, alive = 12, 0, []
    layers = [layer for _ in range(depth) for layer in (nn.Linear(64, 64), nn.ReLU())]
    model = nn.Sequential(*layers)

    def watch(module, args):
        nonlocal largest
        alive.append(weakref.ref(args[0]))
        largest = max(largest, sum(reference() is not None for reference in alive))

    for module in model:
        module.register_forward_pre_hook(watch)
    unit_statistics(model, torch.randn(256, 64))
    assert largest <= 3
