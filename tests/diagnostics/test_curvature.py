"""Curvature against dense Hessians: both ends of the spectrum, the promise of the stopping rule, the gradient line."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from plasticity_cl.diagnostics.curvature import lanczos_extremes, loss_along_gradient, max_hessian_eigenvalue
from plasticity_cl.errors import UserError


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 3, 3, padding=1)
        self.first, self.second = (nn.Conv2d(3, 3, 3, padding=1, bias=False) for _ in range(2))
        self.norm = nn.BatchNorm2d(3)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(3, 4)

    def forward(self, x):
        x = self.relu(self.stem(x.reshape(-1, 1, 4, 4)))
        x = self.relu(self.norm(self.second(self.relu(self.first(x)))) + x)
        return self.head(x.mean((2, 3)))


class Shared(nn.Module):
    """One layer called three times, and a head tied to the stem."""

    def __init__(self):
        super().__init__()
        self.stem, self.body = nn.Linear(16, 8), nn.Linear(8, 8)

    def forward(self, x):
        h = torch.tanh(self.stem(x))
        for _ in range(3):
            h = torch.tanh(self.body(h))
        return (h @ self.stem.weight)[:, :4]


class Attention(nn.Module):
    """A pre-norm transformer block whose attention is torch's fused kernel, which has no second derivative."""

    def __init__(self):
        super().__init__()
        self.embed, self.position = nn.Linear(4, 6), nn.Parameter(0.1 * torch.randn(4, 6))
        self.norms = nn.ModuleList(nn.LayerNorm(6) for _ in range(2))
        self.qkv, self.out = nn.Linear(6, 18), nn.Linear(6, 6)
        self.mlp = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 6))
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = self.embed(x.reshape(-1, 4, 4)) + self.position
        q, k, v = (part.unflatten(2, (2, 3)).transpose(1, 2) for part in self.qkv(self.norms[0](x)).chunk(3, 2))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return self.head((x + self.mlp(self.norms[1](x))).mean(1))


class MultiHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 4)

    def forward(self, x):
        x = x.reshape(-1, 4, 4)
        return self.head(self.attention(x, x, x)[0].mean(1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru, self.head = nn.GRU(4, 5, batch_first=True), nn.Linear(5, 4)

    def forward(self, x):
        return self.head(self.gru(x.reshape(-1, 4, 4))[0][:, -1])


class Embedded(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(5, 6), nn.Linear(6, 4)

    def forward(self, x):
        return self.head(torch.tanh(self.table((x.abs() * 2).long().clamp(max=4)).sum(1)))


def mlp(activation):
    return nn.Sequential(nn.Linear(16, 10), activation, nn.Linear(10, 10), activation, nn.Linear(10, 4))


def image(*layers):
    return nn.Sequential(nn.Unflatten(1, (1, 4, 4)), *layers)


ARCHITECTURES = {
    "relu": lambda: mlp(nn.ReLU()),
    "tanh": lambda: mlp(nn.Tanh()),
    "gelu": lambda: mlp(nn.GELU()),
    "silu in place": lambda: mlp(nn.SiLU(inplace=True)),
    "leaky relu": lambda: mlp(nn.LeakyReLU(0.1)),
    "layer norm": lambda: nn.Sequential(nn.Linear(16, 10), nn.LayerNorm(10), nn.ReLU(), nn.Linear(10, 4)),
    "rms norm": lambda: nn.Sequential(nn.Linear(16, 10), nn.RMSNorm(10), nn.ReLU(), nn.Linear(10, 4)),
    "cnn": lambda: image(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 2), nn.Flatten(), nn.Linear(4, 4)
    ),
    "grouped convolution": lambda: image(
        nn.Conv2d(1, 4, 3, stride=2, padding=2, dilation=2),
        nn.GroupNorm(2, 4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 8, 2, groups=2),
        nn.Flatten(),
        nn.Linear(8, 4),
    ),
    "convolution in one dimension": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 8)), nn.Conv1d(2, 4, 3, padding=1, padding_mode="circular"), nn.Tanh(), nn.Flatten(),
        nn.Linear(32, 4),
    ),
    "residual": Residual,
    "shared module": Shared,
    "attention block": Attention,
    "multi-head attention": MultiHead,
    "recurrent": Recurrent,
    "embedding": Embedded,
}  # fmt: skip


def build(name, seed=0, n=24):
    """The network in float64, with weights scaled up so that curvature is not that of initialisation, and a batch."""
    torch.manual_seed(seed)
    model = ARCHITECTURES[name]().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.add_(0.3)
    return model, torch.randn(n, 16, dtype=torch.float64), torch.randint(4, (n,))


def dense_spectrum(model, loss, inputs, targets):
    """Every eigenvalue, ascending, of the Hessian in the trainable parameters, in eval mode and float64."""
    model = copy.deepcopy(model).double().eval()
    parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
    sizes = [value.numel() for value in parameters.values()]

    def value_at(flat):
        parts = flat.split(sizes)
        moved = {name: part.view_as(old) for (name, old), part in zip(parameters.items(), parts, strict=True)}
        with sdpa_kernel(SDPBackend.MATH):
            return loss(functional_call(model, moved, (inputs.double(),)), targets)

    flat = torch.cat([value.detach().reshape(-1) for value in parameters.values()])
    return torch.linalg.eigvalsh(torch.autograd.functional.hessian(value_at, flat))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_both_ends_agree_with_the_dense_hessian(name):
    model, inputs, targets = build(name)
    spectrum = dense_spectrum(model, F.cross_entropy, inputs, targets)
    for tol in (1e-2, 1e-3, 1e-8):
        for seed in range(3):
            found = max_hessian_eigenvalue(model, F.cross_entropy, inputs, targets, tol, 1000, seed)
            assert found.converged
            assert found.largest == pytest.approx(float(spectrum[-1]), rel=tol)
            assert float(spectrum[0]) * (1 + 1e-9) <= found.smallest <= found.largest
    in_single = max_hessian_eigenvalue(model.float(), F.cross_entropy, inputs.float(), targets)
    assert in_single.converged
    assert in_single.largest == pytest.approx(float(spectrum[-1]), rel=1e-3)


@pytest.mark.parametrize("loss", [F.mse_loss, F.huber_loss, lambda o, t: (1 - F.cosine_similarity(o, t)).mean()])
def test_any_loss(loss):
    model, inputs, _ = build("tanh")
    targets = 3 * torch.randn(24, 4, dtype=torch.float64)
    spectrum = dense_spectrum(model, loss, inputs, targets)
    found = max_hessian_eigenvalue(model, loss, inputs, targets)
    assert found.largest == pytest.approx(float(spectrum[-1]), rel=1e-3)


@pytest.mark.parametrize("name", ["tanh", "gelu", "residual", "attention block"])
def test_a_most_negative_eigenvalue_larger_in_size_does_not_take_the_place_of_the_largest(name):
    model, inputs, targets = build(name)

    def gain(outputs, wanted):
        return -F.cross_entropy(outputs, wanted)

    spectrum = dense_spectrum(model, gain, inputs, targets)
    assert float(spectrum[0]) < -1.3 * float(spectrum[-1]) < 0, "the case is not the one it should be"
    for seed in range(3):
        found = max_hessian_eigenvalue(model, gain, inputs, targets, seed=seed)
        assert found.largest == pytest.approx(float(spectrum[-1]), rel=1e-3)
        assert found.smallest == pytest.approx(float(spectrum[0]), rel=1e-3)


def test_frozen_and_unused_parameters():
    model, inputs, targets = build("shared module")
    model.body.requires_grad_(False)
    model.unused = nn.Linear(3, 3).double()
    spectrum = dense_spectrum(model, F.cross_entropy, inputs, targets)
    assert len(spectrum) == 16 * 8 + 8 + 12
    found = max_hessian_eigenvalue(model, F.cross_entropy, inputs, targets)
    assert found.largest == pytest.approx(float(spectrum[-1]), rel=1e-3)
    assert all(value.grad is None for value in model.parameters())


def test_a_loss_without_curvature_has_a_zero_hessian():
    model, inputs, targets = nn.Linear(16, 4), torch.randn(24, 16), torch.zeros(24)
    found = max_hessian_eigenvalue(model, lambda outputs, _: outputs.mean(), inputs, targets)
    assert (found.largest, found.smallest, found.residual, found.converged) == (0, 0, 0, True)


def test_dead_network_has_only_the_curvature_of_its_output_bias():
    model, inputs, targets = build("relu")
    with torch.no_grad():
        model[2].bias.fill_(-1e3)
    probabilities = model(inputs).softmax(1)[0].detach()
    by_hand = torch.linalg.eigvalsh(torch.diag(probabilities) - torch.outer(probabilities, probabilities))
    found = max_hessian_eigenvalue(model, F.cross_entropy, inputs, targets)
    assert found.largest == pytest.approx(float(by_hand[-1]), rel=1e-3)
    assert found.products <= 6


def test_digits_network_needs_the_promised_number_of_products():
    """Little more than ten for a network that has begun to learn, and within the tolerance in float32."""
    digits = load_digits()
    inputs = torch.tensor(digits.images[:256].reshape(256, 64) / 16, dtype=torch.float32)
    targets = torch.tensor(digits.target[:256])
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(30):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    exact = max_hessian_eigenvalue(model.double(), F.cross_entropy, inputs.double(), targets, 1e-6).largest
    model.float()
    for tol, most in ((1e-2, 14), (1e-3, 16)):
        for seed in range(5):
            found = max_hessian_eigenvalue(model, F.cross_entropy, inputs, targets, tol, seed=seed)
            assert found.products <= most
            assert found.largest == pytest.approx(exact, rel=tol)


def state_of(model):
    return (
        {name: value.clone() for name, value in model.state_dict().items()},
        {name: (value.grad, None if value.grad is None else value.grad.clone()) for name, value in
         model.named_parameters()},
        [module.training for module in model.modules()],
        [len(module._forward_hooks) + len(module._backward_hooks) for module in model.modules()],
        torch.get_rng_state(),
    )  # fmt: skip


def assert_same_state(before, after):
    for name, value in before[0].items():
        torch.testing.assert_close(value, after[0][name], rtol=0, atol=0)
    for name, (gradient, values) in before[1].items():
        assert after[1][name][0] is gradient
        assert gradient is None or torch.equal(values, after[1][name][1])
    assert before[2:4] == after[2:4]
    assert torch.equal(before[4], after[4])


@pytest.mark.parametrize("look", [max_hessian_eigenvalue, loss_along_gradient])
@pytest.mark.parametrize("broken", [False, True])
def test_the_network_is_left_untouched(look, broken):
    model, inputs, targets = build("residual")
    model.add_module("dropout", nn.Dropout(0.5))
    F.cross_entropy(model(inputs), targets).backward()
    model.head.weight.grad = None
    model.train()
    model.first.eval()
    before = state_of(model)

    def loss(outputs, wanted):
        torch.rand(3)
        if broken:
            raise ArithmeticError
        return F.cross_entropy(model.dropout(outputs), wanted)

    if broken:
        with pytest.raises(ArithmeticError):
            look(model, loss, inputs, targets)
    else:
        look(model, loss, inputs, targets)
    assert_same_state(before, state_of(model))


def test_same_seed_same_bits_whatever_the_global_generator():
    model, inputs, targets = build("gelu")
    torch.manual_seed(1)
    first = max_hessian_eigenvalue(model, F.cross_entropy, inputs, targets, seed=3)
    torch.manual_seed(2)
    with torch.no_grad():
        second = max_hessian_eigenvalue(model, F.cross_entropy, inputs, targets, seed=3)
    assert first == second
    other = max_hessian_eigenvalue(model, F.cross_entropy, inputs, targets, seed=4)
    assert other.largest != first.largest
    assert other.largest == pytest.approx(first.largest, rel=2e-3)


class Opaque(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.exp()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return gradient


def test_errors_say_what_is_wrong():
    model, inputs, targets = build("relu")

    def look(loss=F.cross_entropy, **settings):
        return max_hessian_eigenvalue(model, loss, inputs, targets, **settings)

    def fused(outputs, _):
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(*3 * [outputs[None, None]]).square().mean()

    with pytest.raises(UserError, match="cannot be differentiated twice: .* once_differentiable"):
        look(lambda outputs, wanted: F.cross_entropy(Opaque.apply(outputs), wanted))
    with pytest.raises(UserError, match="cannot be differentiated twice: derivative .* not implemented; replace"):
        look(fused)
    with pytest.raises(UserError, match=r"must be a scalar, got shape \[24\]; take its mean"):
        look(lambda outputs, wanted: F.cross_entropy(outputs, wanted, reduction="none"))
    with pytest.raises(UserError, match="depends on no trainable parameter"):
        look(lambda outputs, wanted: F.cross_entropy(outputs.detach(), wanted))
    with pytest.raises(UserError, match="tol must be between 0 and 1, got 0"):
        look(tol=0)
    with pytest.raises(UserError, match="max_iterations must be at least 1, got 0"):
        look(max_iterations=0)
    with pytest.raises(UserError, match=r"got shape \[0\]"):
        loss_along_gradient(model, F.cross_entropy, inputs, targets, steps=[])
    with torch.no_grad():
        model[0].weight[0, 0] = math.nan
    with pytest.raises(UserError, match="the loss is nan"):
        look()
    with pytest.raises(UserError, match="the loss is nan"):
        loss_along_gradient(model, F.cross_entropy, inputs, targets)
    model.requires_grad_(False)
    with pytest.raises(UserError, match="no trainable parameter"):
        look()
    with pytest.raises(UserError, match="not finite"):
        lanczos_extremes(lambda v: v * math.inf, 3)
    with pytest.raises(UserError, match="at least one row"):
        lanczos_extremes(lambda v: v, 0)


def symmetric(values, seed):
    """A symmetric matrix with these eigenvalues and random eigenvectors."""
    noise = torch.randn(len(values), len(values), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    basis = torch.linalg.qr(noise)[0]
    return (basis * torch.tensor(values, dtype=torch.float64)) @ basis.T


# Norms are sums of squares, and those of values below 1e-154 are no normal numbers: such values are 0 here.
numbers = st.floats(-100, 100).map(lambda value: value if abs(value) > 1e-140 else 0.0)
eigenvalues = st.lists(st.one_of(numbers, st.sampled_from([0.0, 1.0, 1.001, -1.0, -50.0])), min_size=1, max_size=30)


@given(values=eigenvalues, seed=st.integers(0, 2**32), tol=st.sampled_from([1e-1, 1e-2, 1e-3, 1e-6]))
def test_lanczos_on_symmetric_matrices(values, seed, tol):
    matrix = symmetric(values, seed)
    exact = torch.linalg.eigvalsh(matrix)
    size = float(exact.abs().max())
    found = lanczos_extremes(matrix.mv, len(values), tol, 1000, seed)
    slack = 1e-13 * size
    assert found.converged
    assert found.products <= len(values)
    assert float(exact[0]) - slack <= found.smallest <= found.largest <= float(exact[-1]) + slack
    assert float((exact - found.largest).abs().min()) <= found.residual + slack
    assert found.largest >= float(exact[-1]) - tol * abs(found.largest) - 1e-12 * size


@given(values=eigenvalues, seed=st.integers(0, 2**32), scale=st.sampled_from([1e-12, 0.5, 8.0, 2.0**40]))
def test_lanczos_scales_with_the_matrix_and_turns_over_with_its_sign(values, seed, scale):
    matrix = symmetric(values, seed)
    settings = {"n": len(values), "tol": 1e-9, "max_iterations": 1000, "seed": seed}
    plain = lanczos_extremes(matrix.mv, **settings)
    scaled = lanczos_extremes((scale * matrix).mv, **settings)
    turned = lanczos_extremes((-matrix).mv, **settings)
    size = max(abs(plain.largest), abs(plain.smallest))
    assert scaled.largest == pytest.approx(scale * plain.largest, rel=1e-8, abs=1e-11 * scale * size)
    exact = torch.linalg.eigvalsh(matrix)
    assert turned.largest == pytest.approx(-float(exact[0]), rel=1e-8, abs=1e-11 * size)


def test_lanczos_finds_a_largest_eigenvalue_far_smaller_in_size_than_the_most_negative_one():
    values = torch.linspace(-2, 0.5, 400, dtype=torch.float64)
    values[:2] = torch.tensor([-1000.0, 1.0])
    for seed in range(10):
        found = lanczos_extremes(lambda v: v * values, 400, seed=seed)
        assert found.largest == pytest.approx(1, rel=1e-3)
        assert found.smallest == pytest.approx(-1000, rel=1e-6)


def test_repeated_and_few_distinct_eigenvalues_end_early():
    for values, distinct in (([0.0] * 50, 1), ([2.0] * 50, 1), ([3.0] * 5 + [0.0] * 45, 2), ([5.0, -7.0, 1.0] * 9, 3)):
        found = lanczos_extremes(symmetric(values, 0).mv, len(values), 1e-9)
        assert found.converged
        assert found.products <= distinct + 1
        assert found.largest == pytest.approx(max(values), abs=1e-12)
        assert found.smallest == pytest.approx(min(values), abs=1e-12)


def test_converged_means_within_the_tolerance_also_for_spectra_made_to_deceive():
    """Two nearly equal largest eigenvalues: the residual alone settles on the lower one in 8% of the starts."""
    generator = torch.Generator().manual_seed(0)
    n, tol, trials = 1000, 1e-3, 300
    wrong = products = 0
    for trial in range(trials):
        bulk = 0.6 * torch.rand(n, generator=generator, dtype=torch.float64) - 0.3
        bulk[:6] = 0.3 + 0.5 * torch.rand(6, generator=generator, dtype=torch.float64)
        bulk[6] = 1.0
        bulk[7] = 1 - tol * (2 + 8 * float(torch.rand((), generator=generator)))
        found = lanczos_extremes(lambda v, bulk=bulk: v * bulk, n, tol, seed=trial)
        assert found.converged
        wrong += 1 - found.largest > tol * found.largest
        products += found.products
    assert wrong <= 0.03 * trials
    assert products <= 20 * trials


def test_an_end_without_convergence_says_so():
    values = torch.linspace(-1, 1, 2000, dtype=torch.float64)
    found = lanczos_extremes(lambda v: v * values, 2000, 1e-6, max_iterations=10)
    assert not found.converged
    assert found.products == 10
    assert found.largest < 1 - 1e-6


@pytest.mark.parametrize("name", ["relu", "tanh", "residual", "shared module", "attention block"])
def test_loss_along_gradient_agrees_with_moved_copies(name):
    model, inputs, targets = build(name)
    model.train()
    line = loss_along_gradient(model, F.cross_entropy, inputs, targets)
    assert line.steps.shape == line.losses.shape == (41,)
    assert int((line.steps == 0).sum()) == 1
    model.eval()
    value = F.cross_entropy(model(inputs), targets)
    gradients = torch.autograd.grad(value, tuple(model.parameters()))
    for step, seen in zip(line.steps.tolist(), line.losses.tolist(), strict=True):
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for parameter, gradient in zip(moved.parameters(), gradients, strict=True):
                parameter.sub_(step * gradient)
            assert seen == pytest.approx(float(F.cross_entropy(moved(inputs), targets)), rel=1e-12)
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    assert line.gradient_norm == pytest.approx(float(flat.norm()), rel=1e-12)
    close = loss_along_gradient(model, F.cross_entropy, inputs, targets, steps=[-1e-4, 0, 1e-4]).losses
    slope, bend = (close[2] - close[0]) / 2e-4, (close[0] - 2 * close[1] + close[2]) / 1e-8
    assert float(slope) == pytest.approx(-(line.gradient_norm**2), rel=1e-4)
    assert float(bend) == pytest.approx(line.gradient_norm**2 * line.curvature, rel=1e-2, abs=1e-6)


def test_loss_along_gradient_of_a_quadratic_is_its_model_and_least_at_one_over_the_curvature():
    torch.manual_seed(0)
    model, inputs, targets = nn.Linear(5, 2).double(), torch.randn(9, 5).double(), torch.randn(9, 2).double()
    line = loss_along_gradient(model, F.mse_loss, inputs, targets)
    start, slope = float(line.losses[10]), line.gradient_norm**2
    quadratic = start - line.steps * slope + line.steps**2 * slope * line.curvature / 2
    torch.testing.assert_close(line.losses, quadratic, rtol=1e-10, atol=1e-12)
    assert float(line.steps[line.losses.argmin()]) == pytest.approx(1 / line.curvature, rel=1e-12)


def test_loss_along_a_zero_gradient_is_flat():
    model = nn.Linear(3, 1)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    line = loss_along_gradient(model, F.mse_loss, torch.randn(6, 3), torch.zeros(6, 1))
    assert (line.gradient_norm, line.curvature) == (0, 0)
    assert line.losses.tolist() == [0.0] * 41
