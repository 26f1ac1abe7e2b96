"""Two-hot and HL-Gauss losses: encodings are distributions, decoding inverts them, gradients ignore the target mean."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from plasticity_cl.errors import UserError
from plasticity_cl.losses import LOSSES, SCALES, HistogramLoss, HLGaussLoss, TwoHotLoss, make_loss, symexp, symlog
from plasticity_cl.seeding import generator

finite = st.floats(-1e3, 1e3, allow_nan=False)
ranges = st.tuples(st.floats(-1e3, 1e3), st.floats(0.1, 2e3)).map(lambda pair: (pair[0], pair[0] + pair[1]))
names = st.sampled_from(sorted(LOSSES))
scales = st.sampled_from(SCALES)


def column(*values: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(values, dtype=dtype)


# Transformations


@pytest.mark.slow
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20))
def test_symexp_inverts_symlog(values: list[float]) -> None:
    x = column(*values)
    torch.testing.assert_close(symexp(symlog(x)), x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(symlog(x), torch.sign(x) * torch.log1p(x.abs()), rtol=0, atol=0)


def test_transformations_have_their_derivative_at_zero_too() -> None:
    x = column(-3.0, -1e-9, 0.0, 1e-9, 5.0).requires_grad_()
    (slope,) = torch.autograd.grad(symlog(x).sum(), x)
    torch.testing.assert_close(slope, 1 / (1 + x.abs()), rtol=1e-12, atol=0)
    (slope,) = torch.autograd.grad(symexp(x).sum(), x)
    torch.testing.assert_close(slope, torch.exp(x.abs()), rtol=1e-12, atol=0)


# Encodings


def two_hot_by_hand(loss: TwoHotLoss, value: float) -> list[float]:
    """Look the two neighbours up, one value at a time."""
    value = min(max(value, loss.low), loss.high)
    t = math.copysign(math.log1p(abs(value)), value) if loss.scale == "symlog" else value
    centres = loss.centres.tolist()
    for k in range(loss.n_bins - 1):
        if t <= centres[k + 1] or k == loss.n_bins - 2:
            weight = (t - centres[k]) / (centres[k + 1] - centres[k])
            return [0.0] * k + [1 - weight, weight] + [0.0] * (loss.n_bins - k - 2)
    raise AssertionError


@given(ranges, st.integers(2, 40), scales, st.lists(finite, min_size=1, max_size=10))
def test_two_hot_equals_the_lookup_by_hand(
    limits: tuple[float, float], n_bins: int, scale: str, values: list[float]
) -> None:
    loss = TwoHotLoss(*limits, n_bins=n_bins, scale=scale).double()
    by_hand = column(*(p for value in values for p in two_hot_by_hand(loss, value))).reshape(len(values), n_bins)
    torch.testing.assert_close(loss.encode(column(*values)), by_hand, rtol=0, atol=1e-9)


def transformed_ends(loss: HistogramLoss) -> tuple[float, float]:
    """Transformed ends of the range, in double precision."""
    ends = column(loss.low, loss.high)
    return tuple((symlog(ends) if loss.scale == "symlog" else ends).tolist())


@given(ranges, st.integers(8, 40), scales, st.floats(0.3, 1.0), st.lists(finite, min_size=1, max_size=10))
def test_hl_gauss_integrates_the_normal_density_over_each_bin(
    limits: tuple[float, float], n_bins: int, scale: str, ratio: float, values: list[float]
) -> None:
    loss = HLGaussLoss(*limits, n_bins=n_bins, sigma_ratio=ratio, scale=scale).double()
    first, last = transformed_ends(loss)
    width = (last - first) / (n_bins - 6 * ratio)
    edges = first - 3 * ratio * width + width * torch.arange(n_bins + 1, dtype=torch.float64)
    targets = column(*values).clamp(*limits)
    mean = symlog(targets) if scale == "symlog" else targets
    below = torch.distributions.Normal(mean[:, None], ratio * width).cdf(edges)
    mass = below.diff(dim=1)
    torch.testing.assert_close(loss.encode(column(*values)), mass / mass.sum(dim=1, keepdim=True), rtol=0, atol=1e-9)


@given(names, ranges, st.integers(6, 300), scales, st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=20))
def test_encodings_are_distributions_also_outside_the_range(
    name: str, limits: tuple[float, float], n_bins: int, scale: str, values: list[float]
) -> None:
    loss = make_loss(name, *limits, n_bins=n_bins, scale=scale)
    targets = torch.tensor(values)
    p = loss.encode(targets)
    assert p.shape == (len(values), n_bins)
    assert p.dtype == torch.float32
    assert bool((p >= 0).all())
    torch.testing.assert_close(p.sum(dim=1), torch.ones(len(values)), rtol=0, atol=2e-6)
    assert torch.equal(p, loss.encode(targets[:, None]))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("scale", SCALES)
def test_targets_outside_the_range_count_as_its_ends(name: str, scale: str) -> None:
    loss = make_loss(name, -50.0, 200.0, scale=scale)
    outside = loss.encode(torch.tensor([-51.0, -1e9, 201.0, 3e38]))
    torch.testing.assert_close(outside, loss.encode(torch.tensor([-50.0, -50.0, 200.0, 200.0])), rtol=0, atol=1e-5)


def test_ends_and_centres_of_the_two_hot_range_are_one_hot() -> None:
    loss = TwoHotLoss(-10, 10, n_bins=21)
    assert torch.equal(loss.centres, torch.arange(-10.0, 11.0))
    assert torch.equal(loss.encode(loss.centres), torch.eye(21))


# Decoding


@given(ranges, st.integers(2, 300), scales, st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_two_hot_round_trip_is_exact_within_the_range(
    limits: tuple[float, float], n_bins: int, scale: str, shares: list[float]
) -> None:
    low, high = limits
    y = (low + (high - low) * column(*shares)).clamp(low, high)
    loss = TwoHotLoss(low, high, n_bins=n_bins, scale=scale)
    # Buffers and encoding in single precision: 1e-6 of the largest target is a few units in the last place.
    single = loss.decode(loss.encode(y.float()).log())
    scale_of_targets = max(abs(low), abs(high), 1.0)
    torch.testing.assert_close(single, y.float(), rtol=0, atol=1e-5 * scale_of_targets)
    double = TwoHotLoss(low, high, n_bins=n_bins, scale=scale).double()
    torch.testing.assert_close(double.decode(double.encode(y).log()), y, rtol=0, atol=1e-11 * scale_of_targets)


@given(ranges, st.integers(20, 300), scales, st.floats(0.5, 2.0), st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_hl_gauss_decodes_within_its_stated_share_of_a_bin(
    limits: tuple[float, float], n_bins: int, scale: str, ratio: float, shares: list[float]
) -> None:
    low, high = limits
    y = (low + (high - low) * column(*shares, 0.0, 1.0)).clamp(low, high)
    loss = HLGaussLoss(low, high, n_bins=n_bins, sigma_ratio=ratio, scale=scale)
    first, last = transformed_ends(loss)
    width = (last - first) / (n_bins - 6 * ratio)
    decoded = loss.expectation(loss.encode(y))
    error = (symlog(decoded) - symlog(y) if scale == "symlog" else decoded - y).abs() / width
    rounding = 1e-6 * max(abs(first), abs(last)) / width
    assert error.max().item() <= math.exp(-2 * math.pi**2 * ratio**2) / math.pi + 0.005 * ratio + rounding


@pytest.mark.parametrize("name", LOSSES)
def test_decode_is_the_mean_of_the_softmax(name: str) -> None:
    logits = torch.randn(5, 51, generator=generator("decode"))
    linear = make_loss(name, -3.0, 9.0, n_bins=51)
    by_hand = [sum(p * c for p, c in zip(row.softmax(0), linear.centres, strict=True)).item() for row in logits]
    torch.testing.assert_close(linear.decode(logits), torch.tensor(by_hand), rtol=1e-5, atol=1e-5)
    compressed = make_loss(name, -3.0, 9.0, n_bins=51, scale="symlog")
    torch.testing.assert_close(
        compressed.decode(logits), symexp(logits.softmax(1) @ compressed.centres), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("scale", SCALES)
def test_single_precision_holds_at_a_thousand(scale: str) -> None:
    y = torch.tensor([-1000.0, -999.9, -998.7, -1.0, 0.0, 1e-3, 1.0, 997.3, 999.99, 1000.0])
    two_hot = TwoHotLoss(-1000, 1000, scale=scale)
    torch.testing.assert_close(two_hot.decode(two_hot.encode(y).log()), y, rtol=1e-5, atol=2e-4)
    gauss = HLGaussLoss(-1000, 1000, scale=scale)
    decoded = gauss.decode(gauss.encode(y).log())
    width = (2000 if scale == "linear" else 2 * math.log(1001)) / (101 - 4.5)
    error = decoded - y if scale == "linear" else symlog(decoded) - symlog(y)
    assert error.abs().max().item() < 0.004 * width


# The loss and its gradient


@given(names, scales, st.integers(0, 1000))
def test_loss_is_the_mean_cross_entropy(name: str, scale: str, seed: int) -> None:
    draws = generator("loss", seed)
    logits, target = torch.randn(7, 31, generator=draws), 20 * torch.randn(7, generator=draws)
    loss = make_loss(name, -30.0, 40.0, n_bins=31, scale=scale)
    by_hand = -(loss.encode(target) * F.log_softmax(logits, dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(loss(logits, target), by_hand)
    torch.testing.assert_close(loss(logits, target[:, None]), by_hand)
    # Gibbs: no logits beat the encoding's own.
    assert loss(loss.encode(target).clamp_min(1e-30).log(), target) <= loss(logits, target)


def gradient_norms(criterion: nn.Module, output: Tensor, target: Tensor) -> Tensor:
    output = output.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(len(target) * criterion(output, target), output)
    return gradient.flatten(1).norm(dim=1)


@given(names, scales, st.floats(-1e6, 1e6), st.integers(0, 1000))
def test_gradient_in_the_logits_is_bounded_whatever_the_target(name: str, scale: str, mean: float, seed: int) -> None:
    draws = generator("gradient", seed)
    logits, target = 3 * torch.randn(8, 101, generator=draws), mean + torch.randn(8, generator=draws)
    norms = gradient_norms(make_loss(name, -1e3, 1e3, scale=scale), logits, target)
    assert norms.max().item() <= math.sqrt(2) + 1e-6


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("scale", SCALES)
def test_gradient_does_not_grow_with_the_target_mean_where_the_squared_error_s_does(name: str, scale: str) -> None:
    noise = torch.randn(64, generator=generator("means"))
    loss = make_loss(name, -1e3, 1e3, scale=scale)
    fresh, fresh_scalar = torch.zeros(64, 101), torch.zeros(64, 1)
    norms = [gradient_norms(loss, fresh, mean + noise).mean().item() for mean in (0.0, 10.0, 100.0, 900.0)]
    mse = nn.MSELoss()
    squared = [gradient_norms(mse, fresh_scalar, mean + noise[:, None]).mean().item() for mean in (0.0, 10.0, 900.0)]
    assert max(norms) / min(norms) < 1.5
    assert squared[1] > 5 * squared[0]
    assert squared[2] > 500 * squared[0]


@pytest.mark.parametrize("name", LOSSES)
def test_extreme_logits_give_finite_loss_and_gradient(name: str) -> None:
    logits = torch.tensor([[1e4] + [-1e4] * 100, [0.0] * 101, [-3e38] + [0.0] * 100], requires_grad=True)
    value = make_loss(name, -10.0, 10.0)(logits, torch.tensor([9.0, 1e30, -1.0]))
    value.backward()
    assert math.isfinite(value.item())
    assert bool(torch.isfinite(logits.grad).all())


def test_half_precision_outputs_are_scored_in_single_precision() -> None:
    loss = TwoHotLoss(-150, 150)
    logits, target = torch.randn(4, 101, generator=generator("half")).half(), torch.tensor([0.3, 99.7, -150.0, 4.0])
    assert torch.equal(loss(logits, target), loss(logits.float(), target))
    assert torch.equal(loss.decode(logits), loss.decode(logits.float()))


LOW = [torch.bfloat16, torch.float16]
MOVES = {
    "to": lambda loss, dtype: loss.to(dtype),
    "inside a network": lambda loss, dtype: nn.Sequential(nn.Linear(2, 2), loss).to(dtype)[1],
    "there and back": lambda loss, dtype: loss.to(dtype).float(),
}


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", LOSSES)
def test_bins_stay_apart_in_half_precision(name: str, scale: str, move: str, dtype: torch.dtype) -> None:
    reference = make_loss(name, -700.0, 900.0, n_bins=1001, scale=scale)
    moved = MOVES[move](make_loss(name, -700.0, 900.0, n_bins=1001, scale=scale), dtype)
    target = torch.linspace(-700, 900, 50)
    logits = torch.randn(50, 1001, generator=generator("low")).to(dtype)
    assert torch.equal(moved.centres, reference.centres)
    assert torch.equal(moved.encode(target), reference.encode(target))
    assert torch.equal(moved.encode(target.to(dtype)), reference.encode(target.to(dtype).float()))
    assert torch.equal(moved(logits, target), reference(logits.float(), target))
    assert torch.equal(moved.decode(logits), reference.decode(logits.float()))
    assert torch.equal(moved.expectation(reference.encode(target)), reference.expectation(reference.encode(target)))


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("name", LOSSES)
def test_autocast_does_not_touch_the_bins(name: str, dtype: torch.dtype) -> None:
    loss, target = make_loss(name, -700.0, 900.0, n_bins=1001), torch.linspace(-700, 900, 50)
    logits = torch.randn(50, 1001, generator=generator("cast")).to(dtype)
    expected = loss(logits, target), loss.decode(logits), loss.decode(loss.encode(target).log())
    with torch.autocast("cpu", dtype):
        found = loss(logits, target), loss.decode(logits), loss.decode(loss.encode(target).log())
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=1e-6, atol=0)


def test_bins_made_under_a_low_default_type_are_in_single_precision() -> None:
    try:
        torch.set_default_dtype(torch.bfloat16)
        loss = TwoHotLoss(0, 1000, n_bins=1001)
    finally:
        torch.set_default_dtype(torch.float32)
    assert loss.centres.tolist() == list(range(1001))


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_a_network_reaches_the_same_fit_at_either_target_mean(name: str) -> None:
    r_squared = []
    for mean in (0.0, 100.0):
        draws = generator("fit", name)
        inputs, target = torch.randn(256, 16, generator=draws), mean + torch.randn(256, generator=draws)
        loss = make_loss(name, -150.0, 150.0)
        net = nn.Sequential(nn.Linear(16, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, loss.n_bins))
        with torch.no_grad():
            for parameter in net.parameters():
                bound = 1 / math.sqrt(parameter.shape[-1])
                parameter.copy_(bound * (2 * torch.rand(parameter.shape, generator=draws) - 1))
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
        for _ in range(600):
            optimizer.zero_grad()
            loss(net(inputs), target).backward()
            optimizer.step()
        residual = loss.decode(net(inputs)) - target
        r_squared.append(1 - residual.square().sum().item() / (target - target.mean()).square().sum().item())
    assert min(r_squared) > 0.95


# State


def test_grids_move_with_the_module_and_stay_out_of_its_state() -> None:
    loss = HLGaussLoss(-1, 1).to(torch.float64)
    assert loss.centres.dtype == torch.float64
    assert loss.state_dict() == {}
    assert list(loss.parameters()) == []
    assert repr(loss) == "HLGaussLoss(low=-1, high=1, n_bins=101, scale='linear', sigma_ratio=0.75)"


# Errors


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    ("output", "target"),
    [((4, 101), (3,)), ((4, 1), (4,)), ((4,), (4,)), ((4, 101), (4, 2)), ((4, 101), ()), ((4, 3, 101), (4,))],
)
def test_shapes_that_do_not_fit_are_named(name: str, output: tuple[int, ...], target: tuple[int, ...]) -> None:
    with pytest.raises(UserError) as caught:
        make_loss(name, -1.0, 1.0)(torch.zeros(output), torch.zeros(target))
    assert str(list(output)) in str(caught.value)
    assert str(list(target)) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_targets_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(UserError, match="NaN or infinite"):
        TwoHotLoss(-1, 1)(torch.zeros(3, 101), torch.tensor([0.0, bad, 1.0]))


def test_encode_and_decode_refuse_other_shapes() -> None:
    loss = TwoHotLoss(-1, 1)
    with pytest.raises(UserError, match=r"target must be \[B\] or \[B, 1\], got \[2, 3\]"):
        loss.encode(torch.zeros(2, 3))
    with pytest.raises(UserError, match=r"output must be \[B, 101\], got \[2, 100\]"):
        loss.decode(torch.zeros(2, 100))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"low": 1.0, "high": 1.0}, "low < high"),
        ({"low": 2.0, "high": 1.0}, "low=2.0, high=1.0"),
        ({"low": -math.inf, "high": 1.0}, "finite"),
        ({"low": math.nan, "high": 1.0}, "finite"),
        ({"low": -1.0, "high": 1.0, "n_bins": 1}, "n_bins must be more than"),
        ({"low": -1.0, "high": 1.0, "scale": "simlog"}, "unknown scale 'simlog'; did you mean symlog"),
    ],
)
@pytest.mark.parametrize("name", LOSSES)
def test_settings_that_make_no_sense_are_refused(name: str, arguments: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_loss(name, **arguments)


def test_hl_gauss_needs_a_width_and_the_bins_for_it() -> None:
    for ratio in (0.0, -1.0, math.nan):
        with pytest.raises(UserError, match="sigma_ratio must be positive"):
            HLGaussLoss(-1, 1, sigma_ratio=ratio)
    with pytest.raises(UserError, match="n_bins must be more than 12"):
        HLGaussLoss(-1, 1, n_bins=12, sigma_ratio=2.0)
    with pytest.raises(UserError, match="n_bins must be more than 1"):
        HLGaussLoss(-1, 1, n_bins=1, sigma_ratio=0.1)


def test_a_misspelt_loss_gets_close_names() -> None:
    with pytest.raises(UserError, match="unknown loss 'twohot'; did you mean two-hot"):
        make_loss("twohot", -1, 1)
