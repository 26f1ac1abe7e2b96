"""Norms, update ratios, effective learning rates, target statistics and the bias's share, each computed directly."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from plasticity_cl.diagnostics.norms import (
    LayerValues,
    effective_learning_rate,
    feature_norm,
    gradient_norm,
    parameter_norm,
    parameter_snapshot,
    update_ratio,
)
from plasticity_cl.diagnostics.targets import output_bias_share, output_top_direction_share, target_statistics
from plasticity_cl.errors import UserError


class Tokens(nn.Module):
    """Parameters of its own, a shared layer, a frozen one."""

    def __init__(self):
        super().__init__()
        self.class_token = nn.Parameter(torch.ones(1, 4))
        self.first = nn.Linear(4, 4)
        self.again = self.first
        self.block = nn.Sequential(nn.Conv1d(1, 3, 2), nn.Linear(3, 2, bias=False))
        self.block[1].weight.requires_grad_(False)

    def forward(self, x):
        h = self.again(self.first(x + self.class_token))
        return self.block[1](self.block[0](h.unsqueeze(1)).mean(-1))


def flat(tensors):
    return torch.cat([tensor.detach().double().flatten() for tensor in tensors])


def test_parameter_norm_per_layer_and_in_total():
    model = Tokens()
    norms = parameter_norm(model)
    assert list(norms.layers) == ["class_token", "first", "block.0", "block.1"]
    assert norms.total == pytest.approx(flat(model.parameters()).norm().item(), rel=1e-6)
    assert norms.layers["class_token"] == 2.0
    assert norms.layers["first"] == pytest.approx(flat(model.first.parameters()).norm().item(), rel=1e-6)
    assert norms.scalars("parameter_norm")["parameter_norm/block.1"] == norms.layers["block.1"]
    assert norms.scalars("parameter_norm")["parameter_norm"] == norms.total


def test_norms_of_many_parameters_keep_their_digits():
    layer = nn.Linear(3000, 500)
    with torch.no_grad():
        layer.weight.uniform_(generator=torch.Generator().manual_seed(0))
    assert parameter_norm(layer).total == pytest.approx(flat(layer.parameters()).norm().item(), rel=1e-6)
    assert parameter_norm(layer.bfloat16()).total == pytest.approx(flat(layer.parameters()).norm().item(), rel=1e-6)


def test_norms_pass_on_what_is_not_finite_and_are_zero_for_nothing():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight[0, 0] = math.nan
    norms = parameter_norm(model)
    assert math.isnan(norms.total)
    assert math.isnan(norms.layers["0"])
    assert math.isfinite(norms.layers["1"])
    assert parameter_norm(nn.ReLU()) == LayerValues(0.0, {})


def test_gradient_norm():
    model = Tokens()
    with pytest.raises(UserError, match="backward"):
        gradient_norm(model)
    model(torch.ones(3, 4)).square().sum().backward()
    norms = gradient_norm(model)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert norms.total == pytest.approx(flat(gradients.values()).norm().item(), rel=1e-6)
    assert norms.layers["block.1"] == 0.0  # frozen
    assert norms.layers["first"] == pytest.approx(
        flat([gradients["first.weight"], gradients["first.bias"]]).norm().item(), rel=1e-6
    )
    assert all(gradients[name] is p.grad for name, p in model.named_parameters() if name in gradients)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**31))
def test_feature_norm_is_the_mean_over_samples(n, d, seed):
    features = torch.randn(n, d, 2, generator=torch.Generator().manual_seed(seed))
    expected = sum(math.sqrt(sum(float(value) ** 2 for value in row.flatten())) for row in features) / n
    assert feature_norm(features) == pytest.approx(expected)
    assert feature_norm(features[:0]) == 0.0
    assert feature_norm(features * 3) == pytest.approx(3 * expected, rel=1e-5)


def test_update_ratio_of_a_real_step():
    model = Tokens().double()  # the difference of two weights loses digits where a step is small
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    before = parameter_snapshot(model)
    model(torch.ones(3, 4, dtype=torch.float64)).square().sum().backward()
    gradient = gradient_norm(model)
    start = parameter_norm(model)
    optimizer.step()
    ratios = update_ratio(before, model)
    assert ratios.total == pytest.approx(0.1 * gradient.total / start.total, rel=1e-5)
    for layer in ratios.layers:
        assert ratios.layers[layer] == pytest.approx(0.1 * gradient.layers[layer] / start.layers[layer], rel=1e-5)
    assert ratios.layers["block.1"] == 0.0
    assert ratios.layers["first"] > 0


def test_update_ratio_at_the_edges():
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.zero_()
    before = parameter_snapshot(model)
    assert update_ratio(before, model).total == 0.0
    with torch.no_grad():
        model.weight.fill_(1.0)
    assert update_ratio(before, model).total == math.inf
    assert before["weight"].sum() == 0.0
    with pytest.raises(UserError, match="'bias'"):
        update_ratio(before, nn.Linear(2, 2, bias=False))
    with pytest.raises(UserError, match="'weight'"):
        update_ratio(before, nn.Linear(2, 3))
    grown = nn.Linear(2, 2)
    grown.extra = nn.Parameter(torch.ones(1))
    with pytest.raises(UserError, match="'extra'"):
        update_ratio(before, grown)


@pytest.mark.parametrize(
    ("optimizer", "power"),
    [
        (torch.optim.SGD, 2),
        (torch.optim.ASGD, 2),
        (torch.optim.Adam, 1),
        (torch.optim.AdamW, 1),
        (torch.optim.RMSprop, 1),
    ],
)
def test_effective_learning_rate(optimizer, power):
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    rates = effective_learning_rate(model, optimizer(model.parameters(), lr=0.3))
    norms = {name: flat([p]).norm().item() for name, p in model.named_parameters() if p.ndim > 1}
    assert rates.layers == pytest.approx({name: 0.3 / norm**power for name, norm in norms.items()})
    assert rates.total == pytest.approx(0.3 / math.hypot(*norms.values()) ** power)
    groups = [{"params": model[0].parameters(), "lr": 0.5}, {"params": model[2].parameters()}]
    grouped = effective_learning_rate(model, optimizer(groups, lr=0.1))
    squares = {name: norm**2 / sum(n**2 for n in norms.values()) for name, norm in norms.items()}
    mean_rate = 0.5 * squares["0.weight"] + 0.1 * squares["2.weight"]
    assert grouped.layers["0.weight"] == pytest.approx(0.5 / norms["0.weight"] ** power)
    assert grouped.total == pytest.approx(mean_rate / math.hypot(*norms.values()) ** power)


@pytest.mark.parametrize(("optimizer", "power"), [(torch.optim.SGD, 2), (torch.optim.Adam, 1)])
def test_effective_learning_rate_is_what_sets_the_speed_of_a_scale_invariant_layer(optimizer, power):
    """Scaling the weights by c and the rate by c^power leaves the normalised outputs after a step as they were."""
    outputs = []
    for scale in (1.0, 8.0):
        generator = torch.Generator().manual_seed(0)
        layer, norm = nn.Linear(6, 6, bias=False).double(), nn.LayerNorm(6, eps=0.0).double()
        weight, inputs, targets = (torch.randn(n, 6, generator=generator).double() for n in (6, 20, 20))
        with torch.no_grad():
            layer.weight.copy_(weight * scale)
        step = optimizer(layer.parameters(), lr=0.01 * scale**power, **({"eps": 1e-300} if power == 1 else {}))
        rate = effective_learning_rate(layer, step).total
        (norm(layer(inputs)) - targets).square().mean().backward()
        step.step()
        outputs.append((norm(layer(inputs)), rate))
    torch.testing.assert_close(outputs[0][0], outputs[1][0])
    assert outputs[0][1] == pytest.approx(outputs[1][1])


def test_effective_learning_rate_of_zero_weights_and_wrong_optimizers():
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.zero_()
    rates = effective_learning_rate(layer, torch.optim.SGD(layer.parameters(), lr=0.1))
    assert rates.total == rates.layers["weight"] == math.inf
    with pytest.raises(UserError, match="LBFGS"):
        effective_learning_rate(layer, torch.optim.LBFGS(layer.parameters()))
    with pytest.raises(UserError, match="no weight matrix"):
        effective_learning_rate(layer, torch.optim.SGD([layer.bias], lr=0.1))


numbers = st.floats(-1e6, 1e6, allow_nan=False, width=32)


@given(st.lists(numbers, min_size=1, max_size=30))
def test_target_statistics_of_one_output(values):
    found = target_statistics(torch.tensor(values))
    assert found.target_mean == pytest.approx(np.mean(values), rel=1e-9, abs=1e-9)
    assert found.target_std == pytest.approx(np.std(values), rel=1e-6, abs=1e-9)
    if found.target_std > 1e-6:
        assert found.offset_to_scale == pytest.approx(abs(np.mean(values)) / np.std(values), rel=1e-6, abs=1e-6)
    assert target_statistics(torch.tensor(values)[:, None]) == found


@given(st.integers(2, 20), st.integers(1, 4), st.integers(0, 2**31), st.floats(-1e3, 1e3))
def test_target_statistics_of_several_outputs(n, k, seed, offset):
    values = torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + offset
    found = target_statistics(values)
    array = values.numpy()
    assert found.target_mean == pytest.approx(array.mean(), abs=1e-9)
    assert found.target_std == pytest.approx(math.sqrt(array.var(axis=0).mean()), rel=1e-9)
    assert found.offset_to_scale == pytest.approx(
        math.sqrt((array.mean(0) ** 2).mean() / array.var(0).mean()), rel=1e-9
    )
    scaled = target_statistics(values * 7)
    assert scaled.offset_to_scale == pytest.approx(found.offset_to_scale, rel=1e-9)


def test_target_statistics_at_the_edges():
    assert target_statistics(torch.full((50,), 0.1)).scalars() == pytest.approx(
        {"target_mean": 0.1, "target_std": 0.0, "offset_to_scale": math.inf}
    )
    assert target_statistics(torch.zeros(5)).offset_to_scale == 0.0
    assert target_statistics(torch.tensor([100])).offset_to_scale == math.inf
    for empty in (torch.zeros(0), torch.zeros(0, 2), torch.tensor(1.0)):
        with pytest.raises(UserError, match="targets must be"):
            target_statistics(empty)
    with pytest.raises(UserError, match="NaN"):
        target_statistics(torch.tensor([1.0, math.nan]))


def head(bias, weight=2.0):
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1))
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.fill_(0.0)
        model[2].weight.fill_(weight)
        model[2].bias.fill_(bias)
    return model


def test_output_bias_share_of_known_heads():
    inputs = torch.tensor([[-1.0], [1.0], [3.0], [5.0]])  # mean feature 9 / 4, by the weight 9 / 2
    assert output_bias_share(head(4.5), inputs) == pytest.approx(0.5)
    assert output_bias_share(head(13.5), inputs) == pytest.approx(0.75)
    assert output_bias_share(head(-4.5), inputs) == pytest.approx(0.5)  # cancels: both carry as much
    assert output_bias_share(head(7.0, weight=0.0), inputs) == 1.0
    assert output_bias_share(head(0.0), inputs) == 0.0
    assert output_bias_share(head(0.0, weight=0.0), inputs) == 0.0
    assert output_bias_share(nn.Linear(1, 3, bias=False), inputs) == 0.0


@given(st.integers(0, 2**31))
def test_output_bias_share_splits_the_mean_output(seed):
    generator = torch.Generator().manual_seed(seed)
    model, inputs = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)), torch.randn(11, 5, generator=generator)
    share = output_bias_share(model, inputs)
    mean_output = model(inputs).detach().mean(0)
    by_bias = model[2].bias.detach().norm()
    by_features = (mean_output - model[2].bias.detach()).norm()
    assert share == pytest.approx(float(by_bias / (by_bias + by_features)), rel=1e-4)
    assert 0 <= share <= 1


def test_output_bias_share_refuses_what_it_cannot_split():
    with pytest.raises(UserError, match="no linear layer"):
        output_bias_share(nn.Conv2d(3, 1, 1), torch.zeros(2, 3, 4, 4))
    with pytest.raises(UserError, match="diverged"):
        output_bias_share(head(math.nan), torch.ones(2, 1))


def test_bias_share_and_features_leave_the_network_as_it_was():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 1))
    model(torch.randn(5, 3)).sum().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    buffers = [buffer.clone() for buffer in model.buffers()]
    generator = torch.get_rng_state()
    output_bias_share(model, torch.randn(5, 3, generator=torch.Generator().manual_seed(0)))
    assert all(module.training for module in model.modules())
    assert all(torch.equal(p.grad, gradient) for p, gradient in zip(model.parameters(), gradients, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), buffers, strict=True))
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.slow
@given(st.integers(0, 2**31), st.floats(-50, 50))
def test_top_direction_share_is_the_part_of_the_mean_output_along_the_first_singular_vector(seed, offset):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    with torch.no_grad():
        model[2].bias += offset
    inputs = torch.randn(11, 5, dtype=torch.float64)
    share = output_top_direction_share(model, inputs)
    features = model[:2](inputs).detach()
    # The top direction by power iteration on F'F: another way to it than a singular value decomposition.
    v = features.mean(0)
    for _ in range(5000):
        v = features.T @ (features @ v)
        v = v / v.norm()
    mean, bias, weight = features.mean(0), model[2].bias.detach(), model[2].weight.detach()
    top = weight @ v * (v @ mean)
    norms = [float(part.norm()) for part in (top, weight @ mean - top, bias)]
    assert share == pytest.approx(norms[0] / sum(norms), rel=1e-3, abs=1e-6)
    assert 0 <= share <= 1


def test_top_direction_share_of_known_heads():
    inputs = torch.tensor([[-1.0], [1.0], [3.0], [5.0]])  # one feature: nothing is beside the top direction
    assert output_top_direction_share(head(4.5), inputs) == pytest.approx(0.5)
    assert output_top_direction_share(head(0.0), inputs) == 1.0
    assert output_top_direction_share(head(7.0, weight=0.0), inputs) == 0.0
    assert output_top_direction_share(head(0.0, weight=0.0), inputs) == 0.0
    with pytest.raises(UserError, match="diverged"):
        output_top_direction_share(head(math.nan), torch.ones(2, 1))
