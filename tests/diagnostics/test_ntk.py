"""The empirical neural tangent kernel against Jacobians by plain autograd, and its scalars on known kernels."""

import copy
import math
import random
import warnings
import weakref
from collections.abc import Callable
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from plasticity_cl.diagnostics import ntk, ntk_layers, ntk_record
from plasticity_cl.diagnostics.ntk import cosine_gram, empirical_ntk, ntk_statistics
from plasticity_cl.errors import UserError

KINDS = ("trace", "full", "sum", "loss")
MANY_KERNELS = st.integers(0, 10_000)


class Residual(nn.Module):
    """A residual block with in-place ReLUs, an in-place sum and a strided shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.conv1 = nn.Conv2d(4, 8, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(8)
        self.shortcut = nn.Conv2d(4, 8, 1, stride=2)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        y += self.shortcut(x)
        return self.head(self.relu(y).mean((2, 3)))


class ViT(nn.Module):
    """A transformer block with class token and position code as parameters, samples first or second."""

    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.embed = nn.Linear(6, 8)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.position = nn.Parameter(torch.randn(1, 5, 8))
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=batch_first, dropout=0.1)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.scale = nn.Parameter(torch.randn(8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), self.embed(x)], 1) + self.position
        x = x if self.batch_first else x.transpose(0, 1)
        y = self.norm1(x)
        x = x + self.attention(y, y, y)[0]
        x = x + self.scale * self.mlp(self.norm2(x))
        return self.head(x[:, 0] if self.batch_first else x[0])


class CrossAttention(nn.Module):
    """Attention with keys and values of other widths, and with a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.MultiheadAttention(8, 2, kdim=6, vdim=5, batch_first=True, bias=False)
        self.masked = nn.MultiheadAttention(8, 4, add_zero_attn=True)
        self.keys, self.values, self.head = nn.Linear(8, 6), nn.Linear(8, 5), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.wide(x, self.keys(x), self.values(x), need_weights=False)[0].transpose(0, 1)
        mask = torch.ones(len(y), len(y), dtype=torch.bool).triu(1)
        return self.head(self.masked(y, x.transpose(0, 1), y, attn_mask=mask)[0].mean(0))


class Shared(nn.Module):
    """A linear layer and a norm that are called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice, self.norm, self.head = (
            nn.Linear(6, 7),
            nn.Linear(7, 7),
            nn.LayerNorm(7),
            nn.Linear(7, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu_(self.first(x))
        x = F.relu(self.norm(self.twice(x)), inplace=True)
        return self.head(torch.tanh(self.norm(self.twice(x))))


class TiedEmbedding(nn.Module):
    """Embedding and output layer with the same weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 6, padding_idx=2)
        self.hidden = nn.Linear(6, 6)
        self.head = nn.Linear(6, 5, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.hidden(self.embedding(tokens))).mean(1))


class TiedConvolution(nn.Module):
    """Two convolutions with the same weight and different strides."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 3, 3, padding=1)
        self.two = nn.Conv2d(3, 3, 3, stride=2, bias=False)
        self.two.weight = self.one.weight
        self.head = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.two(torch.relu_(self.one(x)))).mean((2, 3)))


class Folded(nn.Module):
    """Samples and tokens folded into one dimension, either of them first."""

    def __init__(self, samples_first: bool) -> None:
        super().__init__()
        self.samples_first = samples_first
        self.linear, self.conv, self.head = nn.Linear(6, 7), nn.Conv1d(1, 2, 3), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        first, second = (0, 1) if self.samples_first else (1, 0)
        y = x.transpose(0, first).flatten(0, 1)
        y = self.head(torch.relu_(self.conv(torch.relu_(self.linear(y))[:, None])).flatten(1))
        return y.unflatten(0, (x.shape[first], x.shape[second])).mean(second)


class Parts(nn.Module):
    """In-place change of a part, a detached part, a head that reaches one output only, a layer that is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.other, self.unused = nn.Linear(8, 1), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        y[:, :4].relu_()
        a, b = self.second(y).chunk(2, 1)
        y = torch.cat([a * torch.sigmoid(b), a.detach()], 1)
        return torch.cat([self.head(y), self.other(torch.tanh(self.second(y)))], 1)


class Overwritten(nn.Module):
    """The input of a layer is changed in place afterwards, which is allowed where its weight is frozen."""

    def __init__(self, frozen: bool) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 7), nn.Linear(7, 7), nn.Linear(7, 3)
        self.second.weight.requires_grad_(not frozen)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = torch.tanh(self.second(x))
        return self.head(y + x.mul_(2))


def with_statistics(model: nn.Module) -> nn.Module:
    """Give every batch normalisation statistics and an affine part as after training."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return model


def partly_frozen() -> nn.Module:
    model = nn.Sequential(Shared(), nn.ReLU(), nn.Linear(3, 4), nn.Linear(4, 3))
    for parameter in (model[0].first.weight, model[0].norm.bias, model[2].weight, model[3].weight, model[3].bias):
        parameter.requires_grad_(False)
    return model


def mlp(*widths: int, bias: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inner, outer in pairwise(widths):
        layers += [nn.Linear(inner, outer, bias=bias), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])


def cnn(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(3))


def encoder(batch_first: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(6, 2, 12, batch_first=batch_first)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


class SecondFirst(nn.Module):
    """A network that wants samples second, given them first."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.head = inner, nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(x.transpose(0, 1)).mean(0))


ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: mlp(6, 9, 8, 3), (7, 6)),
    "mlp without bias": (lambda: mlp(6, 9, 3, bias=False), (7, 6)),
    "one output": (lambda: nn.Sequential(mlp(6, 9, 1), nn.Flatten(0)), (4, 6)),
    "tokens": (
        lambda: nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 8), nn.Flatten(), nn.Linear(40, 3)),
        (7, 5, 6),
    ),
    "few tokens": (lambda: cnn(mlp(6, 40, 40)), (7, 2, 6)),
    "image of outputs": (lambda: nn.Conv2d(2, 2, 3), (3, 2, 4, 4)),
    "cnn": (
        lambda: cnn(
            nn.Conv2d(3, 4, 3, stride=2, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(4, 6, 3, dilation=(1, 2), padding="same"),
            nn.ReLU(),
            nn.Conv2d(6, 6, (3, 2), padding=2, padding_mode="reflect", groups=2),
            nn.GELU(),
            nn.Conv2d(6, 4, 3, stride=(2, 1), padding=(1, 0), padding_mode="circular"),
        ),
        (5, 3, 9, 8),
    ),
    "wide cnn": (lambda: cnn(nn.Conv2d(3, 40, 3), nn.ReLU(inplace=True), nn.Conv2d(40, 30, 3)), (5, 3, 6, 6)),
    "conv1d": (
        lambda: cnn(
            nn.Conv1d(3, 4, 3, stride=2, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv1d(4, 6, 3, padding="same", dilation=2, groups=2),
            nn.SiLU(),
            nn.Conv1d(6, 4, 3, padding=1, padding_mode="replicate"),
        ),
        (5, 3, 11),
    ),
    "depthwise": (
        lambda: cnn(nn.Conv2d(3, 12, 3, groups=3), nn.Conv2d(12, 12, 3, groups=12, bias=False)),
        (5, 3, 6, 6),
    ),
    "residual": (lambda: with_statistics(Residual()), (5, 3, 6, 6)),
    "layer norm": (
        lambda: nn.Sequential(
            *(nn.Linear(6, 9), nn.LayerNorm(9), nn.ReLU(inplace=True), nn.Linear(9, 8), nn.LayerNorm(8, bias=False)),
            *(nn.ReLU(), nn.LayerNorm(8, elementwise_affine=False), nn.Linear(8, 3)),
        ),
        (7, 6),
    ),
    "image layer norm": (lambda: cnn(nn.Conv2d(2, 3, 3), nn.LayerNorm([3, 4, 4]), nn.ReLU(inplace=True)), (4, 2, 6, 6)),
    "group norm": (lambda: cnn(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(inplace=True)), (5, 3, 5, 5)),
    "rms norm": (lambda: nn.Sequential(nn.Linear(6, 9), nn.RMSNorm(9), nn.ReLU(inplace=True), nn.Linear(9, 3)), (7, 6)),
    "batch norm": (
        lambda: with_statistics(
            nn.Sequential(
                *(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.ReLU(inplace=True), nn.Dropout(), nn.Unflatten(1, (3, 3))),
                *(nn.BatchNorm1d(3), nn.Flatten(), nn.Linear(9, 3)),
            )
        ),
        (7, 6),
    ),
    "embedding": (lambda: cnn(nn.Embedding(9, 5, padding_idx=-1), nn.ReLU(inplace=True)), (6, 4, -9)),
    "small embedding": (lambda: cnn(nn.Embedding(5, 5, padding_idx=1)), (6, 4, -5)),
    "vit": (ViT, (5, 4, 6)),
    "vit, samples second": (lambda: ViT(batch_first=False), (5, 4, 6)),
    "encoder": (lambda: cnn(encoder(batch_first=True)), (4, 4, 6)),
    "encoder, samples second": (lambda: SecondFirst(encoder(batch_first=False)), (4, 4, 6)),
    "cross attention": (CrossAttention, (5, 4, 8)),
    "shared": (Shared, (7, 6)),
    "tied embedding": (TiedEmbedding, (6, 4, -5)),
    "tied convolution": (TiedConvolution, (5, 3, 7, 7)),
    "folded, samples first": (lambda: Folded(samples_first=True), (4, 4, 6)),
    "folded, samples second": (lambda: Folded(samples_first=False), (4, 4, 6)),
    "parts": (Parts, (6, 6)),
    "frozen": (partly_frozen, (6, 6)),
    "overwritten": (lambda: Overwritten(frozen=True), (6, 6)),
}


@cache
def case(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """Model in float64, inputs, and Jacobian; the last, negative size of a shape is a number of tokens."""
    make, shape = ARCHITECTURES[name]
    with torch.random.fork_rng():
        torch.manual_seed(len(name))
        model = make().double()
        x = torch.randint(-shape[-1], shape[:-1]) if shape[-1] < 0 else torch.randn(shape, dtype=torch.float64)
        with torch.no_grad():
            model.eval()(x)
    return model, x, jacobian(model, x)


def jacobian(model: nn.Module, x: Tensor) -> Tensor:
    """Gradients of every output of every sample, ``[n, C, P]``, one by one."""
    model.eval()
    samples = []
    for sample in x:
        values = {k: p.detach().clone().requires_grad_() for k, p in model.named_parameters() if p.requires_grad}
        outputs = functional_call(model, values, (sample[None],)).reshape(-1)
        rows = [
            torch.autograd.grad(
                output, list(values.values()), retain_graph=True, allow_unused=True, materialize_grads=True
            )
            for output in outputs
        ]
        samples.append(torch.stack([torch.cat([part.flatten() for part in row]) for row in rows]))
    return torch.stack(samples)


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(1) if outputs.dim() > 1 else outputs[:, None], targets, reduction="none")


def arguments(kind: str, J: Tensor) -> dict[str, object]:
    return {"targets": torch.arange(len(J)) % J.shape[1], "loss": cross_entropy} if kind == "loss" else {}


def dense(kind: str, J: Tensor, model: nn.Module, x: Tensor) -> Tensor:
    """The kernel from the Jacobian."""
    if kind == "trace":
        return torch.einsum("icp,jcp->ij", J, J)
    if kind == "full":
        return J.flatten(0, 1) @ J.flatten(0, 1).mT
    if kind == "sum":
        return J.sum(1) @ J.sum(1).mT / J.shape[1]
    outputs = model(x).detach().reshape(len(x), -1)
    v = torch.softmax(outputs, 1) - F.one_hot(torch.arange(len(J)) % J.shape[1], J.shape[1])
    gradients = torch.einsum("ic,icp->ip", v, J)
    return gradients @ gradients.mT


def error(kernel: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest entry."""
    assert kernel.shape == expected.shape
    return float((kernel - expected).abs().max() / expected.abs().max().clamp(min=1e-300))


@pytest.fixture
def no_fallback():
    """Turn the warning of the fallback into an error."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="empirical_ntk")
        yield


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.usefixtures("no_fallback")
def test_kernels_equal_dense_jacobian_in_float64(name: str) -> None:
    model, x, J = case(name)
    for kind in KINDS:
        model.train()
        kernel = empirical_ntk(model, x.clone(), kind, **arguments(kind, J))
        model.eval()
        assert error(kernel, dense(kind, J, model, x)) < 1e-10, kind


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.usefixtures("no_fallback")
def test_kernels_in_float32_are_close_to_dense_in_float64(name: str) -> None:
    model, x, J = case(name)
    single = copy.deepcopy(model).float()
    for kind in KINDS:
        kernel = empirical_ntk(single, x.float() if x.is_floating_point() else x, kind, **arguments(kind, J))
        assert kernel.dtype == torch.float64
        assert error(kernel, dense(kind, J, model, x)) < 1e-5, kind


@pytest.mark.parametrize("budget", [100, 3000])
@pytest.mark.parametrize(
    "name", ["few tokens", "wide cnn", "depthwise", "tied embedding", "embedding", "vit", "shared"]
)
@pytest.mark.usefixtures("no_fallback")
def test_kernels_do_not_depend_on_the_memory_budget(monkeypatch: pytest.MonkeyPatch, name: str, budget: int) -> None:
    monkeypatch.setattr(ntk_layers, "BUDGET", budget)
    monkeypatch.setattr(ntk_layers, "_ROWS", 2)
    monkeypatch.setattr(ntk_record, "_KEPT", budget)
    model, x, J = case(name)
    for kind in ("trace", "full"):
        assert error(empirical_ntk(model, x, kind), dense(kind, J, model, x)) < 1e-10


def test_kernel_equals_torch_func() -> None:
    model, x = mlp(6, 9, 3).double(), torch.randn(8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values = {name: parameter.detach() for name, parameter in model.named_parameters()}
    parts = vmap(jacrev(lambda p, sample: functional_call(model, p, (sample,))), (None, 0))(values, x)
    J = torch.cat([part.flatten(2) for part in parts.values()], 2)
    assert error(empirical_ntk(model, x), dense("trace", J, model, x)) < 1e-12


class Matrix(nn.Module):
    """A parameter multiplied as a matrix: there is no rule for that."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.matrix, self.head = nn.Linear(6, 7), nn.Parameter(torch.randn(7, 4)), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.first(x) @ self.matrix))


class TwoUses(nn.Module):
    """A weight that is a layer's and is also used on its own; another of the same layer's is not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(6, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.first(x))) * self.head.weight.norm()


class Reversed(nn.Module):
    """A layer that sees the samples in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 7), nn.Linear(7, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)).flip(0))).flip(0))


class Positions(nn.Module):
    """A layer of the positions, which all samples share."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.first, self.head = nn.Embedding(4, 6), nn.Linear(6, 6), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.first(x) + self.table(torch.arange(4))).flatten(1))


class Recurrent(nn.Module):
    """An LSTM, which vmap cannot run."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(6, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


FALLBACKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[str, ...]]] = {
    "matrix": (Matrix, (5, 6), ("matrix (Matrix)",)),
    "two uses": (TwoUses, (5, 6), ("head.weight (Linear)", "head.bias (Linear)")),
    "reversed": (Reversed, (5, 6), ("second.weight (Linear)", "second.bias (Linear)")),
    "positions": (Positions, (5, 4, 6), ("table.weight (Embedding)",)),
    "recurrent": (
        Recurrent,
        (4, 3, 6),
        tuple(f"lstm.{n}_l0 (LSTM)" for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")),
    ),
    "conv3d": (
        lambda: cnn(nn.Conv3d(2, 3, 2), nn.ReLU(inplace=True)),
        (4, 2, 3, 3, 3),
        ("0.weight (Conv3d)", "0.bias (Conv3d)"),
    ),
    "prelu": (
        lambda: nn.Sequential(nn.Linear(6, 4), nn.PReLU(), nn.Linear(4, 3)),
        (5, 6),
        ("1.weight (PReLU)",),
    ),
}


@pytest.mark.parametrize("budget", [ntk.BUDGET, 100])
@pytest.mark.parametrize("name", FALLBACKS)
def test_what_has_no_rule_is_named_and_exact(monkeypatch: pytest.MonkeyPatch, name: str, budget: int) -> None:
    monkeypatch.setattr(ntk, "BUDGET", budget)
    make, shape, names = FALLBACKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = make().double(), torch.randn(shape, dtype=torch.float64)
    model(x)
    J = jacobian(model, x)
    for kind in KINDS:
        with pytest.warns(UserWarning, match="empirical_ntk has no rule") as caught:
            kernel = empirical_ntk(model, x, kind, **arguments(kind, J))
        (message,) = [str(w.message) for w in caught if "empirical_ntk" in str(w.message)]
        assert message == (
            f"empirical_ntk has no rule for the use of {', '.join(names)}: "
            "their share is computed by torch.func, slowly"
        )
        assert error(kernel, dense(kind, J, model, x)) < 1e-10, kind


@pytest.mark.filterwarnings("ignore:empirical_ntk")
def test_network_that_cannot_be_trained_for_an_in_place_change_raises_too() -> None:
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        empirical_ntk(Overwritten(frozen=False), torch.randn(3, 6))


@given(
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.one_of(st.sampled_from(["valid", "same"]), st.tuples(st.integers(0, 2), st.integers(0, 2))),
    groups=st.integers(1, 3),
    mode=st.sampled_from(["zeros", "circular", "replicate"]),
    one_dimensional=st.booleans(),
)
def test_any_convolution(kernel, stride, dilation, padding, groups, mode, one_dimensional) -> None:
    if padding == "same":
        stride = (1, 1)
    options = {"stride": stride, "dilation": dilation, "padding": padding}
    layer: nn.Module
    if one_dimensional:
        options = {key: value if isinstance(value, str) else value[0] for key, value in options.items()}
        layer = nn.Conv1d(2 * groups, 2 * groups, kernel[0], groups=groups, padding_mode=mode, **options)
    else:
        layer = nn.Conv2d(2 * groups, 2 * groups, kernel, groups=groups, padding_mode=mode, **options)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 2 * groups, *(7, 6)[: 2 - one_dimensional], dtype=torch.float64, generator=generator)
    model = nn.Sequential(layer, nn.Tanh(), nn.Flatten()).double()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Using padding='same'")
        J = jacobian(model, x)
        assert error(empirical_ntk(model, x), dense("trace", J, model, x)) < 1e-10


@given(seed=MANY_KERNELS, n=st.integers(1, 8), width=st.integers(1, 8), kind=st.sampled_from(["trace", "sum", "loss"]))
def test_kernel_is_symmetric_semi_definite_and_follows_the_order_of_samples(seed, n, width, kind) -> None:
    generator = torch.Generator().manual_seed(seed)
    model, x = mlp(4, width, 3).double(), torch.randn(n, 4, dtype=torch.float64, generator=generator)
    for parameter in model.parameters():
        nn.init.normal_(parameter, generator=generator)
    targets = torch.randint(3, (n,), generator=generator)
    order = torch.randperm(n, generator=generator)

    def kernel(samples: Tensor) -> Tensor:
        return empirical_ntk(
            model, x[samples], kind, **({"targets": targets[samples], "loss": cross_entropy} if kind == "loss" else {})
        )

    K, permuted = kernel(torch.arange(n)), kernel(order)
    assert torch.equal(K, K.mT)
    assert float(torch.linalg.eigvalsh(K).min()) >= -1e-12 * float(K.diagonal().max())
    torch.testing.assert_close(permuted, K[order][:, order], rtol=1e-10, atol=1e-12 * float(K.abs().max()))


@given(seed=MANY_KERNELS, n=st.integers(1, 12), rank=st.integers(1, 12))
def test_scalars_keep_their_bounds_whatever_the_order_and_the_scale(seed, n, rank) -> None:
    generator = torch.Generator().manual_seed(seed)
    J = torch.randn(n, rank, dtype=torch.float64, generator=generator)
    K, order = J @ J.mT, torch.randperm(n, generator=generator)
    found = ntk_statistics(K)
    for measure in ("effective_rank", "srank", "participation_ratio", "trace_over_top"):
        assert 1 - 1e-9 <= getattr(found, measure) <= min(n, rank) + 1e-6
    assert found.trace_over_top <= found.participation_ratio + 1e-9 <= found.effective_rank + 2e-9 or rank == 1
    assert 1 <= found.condition_number <= 1e6 + 1e-3
    assert (found.condition_number > 9e5) == (rank < n) or rank == n
    assert found.diagonal_plus_rank_one <= 1
    assert -1 - 1e-9 <= found.mean_cosine <= 1 + 1e-9
    for other in (ntk_statistics(K[order][:, order]), ntk_statistics(1e-8 * K)):
        assert vars(other) == pytest.approx(vars(found), rel=1e-5, abs=1e-7)


def test_scalars_of_known_kernels() -> None:
    identity = ntk_statistics(3 * torch.eye(5))
    assert vars(identity) == pytest.approx(
        {
            **{"effective_rank": 5, "srank": 5, "participation_ratio": 5, "trace_over_top": 5, "condition_number": 1},
            **{"diagonal_plus_rank_one": 1, "mean_cosine": 0},
        }
    )
    spectrum = ntk_statistics(torch.diag(torch.tensor([60.0, 1.0, 30.0, 9.0])))
    assert spectrum.srank == 3
    assert spectrum.participation_ratio == pytest.approx(100**2 / (60**2 + 30**2 + 9**2 + 1))
    assert spectrum.trace_over_top == pytest.approx(100 / 60)
    assert spectrum.condition_number == pytest.approx(60)
    assert spectrum.effective_rank == pytest.approx(0.6**-0.6 * 0.3**-0.3 * 0.09**-0.09 * 0.01**-0.01)
    ones = ntk_statistics(torch.ones(4, 4))
    assert (ones.srank, ones.condition_number, ones.mean_cosine) == (1, 1e6, pytest.approx(1))
    assert ones.effective_rank == pytest.approx(1, abs=1e-6)


def test_closeness_to_diagonal_plus_rank_one() -> None:
    generator = torch.Generator().manual_seed(0)
    u = torch.rand(20, dtype=torch.float64, generator=generator) * 2 - 1
    scale = torch.rand(20, dtype=torch.float64, generator=generator) + 0.5
    planted = (torch.outer(u, u) + (1 - u**2).diag()) * torch.outer(scale, scale)
    found = ntk_statistics(planted)
    assert found.diagonal_plus_rank_one == pytest.approx(1, abs=1e-6)
    assert found.mean_cosine == pytest.approx(float((u.sum() ** 2 - (u**2).sum()) / (20 * 19)))
    # Two groups of samples that know nothing of each other: u can follow one of the two.
    groups = torch.block_diag(torch.ones(10, 10), torch.ones(10, 10))
    assert ntk_statistics(groups).diagonal_plus_rank_one == pytest.approx(0.5, abs=0.05)


def test_fit_of_rank_one_is_a_minimum() -> None:
    generator = torch.Generator().manual_seed(0)
    J = torch.randn(6, 3, dtype=torch.float64, generator=generator) + 1
    C = cosine_gram(J @ J.mT)
    off = 1 - torch.eye(6, dtype=torch.float64)

    def residual(u: Tensor) -> Tensor:
        return ((C - torch.outer(u, u)) * off).square().sum() / (C * off).square().sum()

    best = 1.0
    for _ in range(5):
        u = torch.randn(6, dtype=torch.float64, generator=generator).requires_grad_()
        search = torch.optim.LBFGS([u], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

        def closure(u=u, search=search) -> Tensor:
            search.zero_grad()
            value = residual(u)
            value.backward()
            return value

        search.step(closure)
        best = min(best, float(residual(u.detach())))
    assert 1 - ntk_statistics(J @ J.mT).diagonal_plus_rank_one == pytest.approx(best, abs=1e-6)


def test_cosines_have_unit_diagonal_and_zeros_for_samples_without_gradient() -> None:
    J = torch.tensor([[3.0, 4.0], [0.0, 0.0], [4.0, -3.0], [6.0, 8.0]])
    expected = torch.tensor([[1.0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 1, 0], [1, 0, 0, 1]], dtype=torch.float64)
    torch.testing.assert_close(cosine_gram(J @ J.mT), expected, atol=1e-7, rtol=0)
    assert ntk_statistics(J @ J.mT).mean_cosine == pytest.approx(2 / 12)


def test_one_sample_and_no_gradient_at_all() -> None:
    model = mlp(4, 6, 3, bias=False)
    x = torch.rand(5, 4)
    one = empirical_ntk(model, x[:1])
    J = jacobian(model, x[:1])
    assert float(one) == pytest.approx(float(J.square().sum()), rel=1e-5)
    assert ntk_statistics(one).effective_rank == pytest.approx(1)
    nn.init.constant_(model[0].weight, -1)
    dead = empirical_ntk(model, x)
    assert torch.equal(dead, torch.zeros(5, 5, dtype=torch.float64))
    assert vars(ntk_statistics(dead)) == {
        **{"effective_rank": 0, "srank": 0, "participation_ratio": 0, "trace_over_top": 0, "condition_number": 1e6},
        **{"diagonal_plus_rank_one": 1, "mean_cosine": 0},
    }


def test_same_inputs_give_a_kernel_of_rank_one_per_distinct_input() -> None:
    model = mlp(4, 6, 3).double()
    same = empirical_ntk(model, torch.ones(6, 4, dtype=torch.float64), "sum")
    torch.testing.assert_close(same, same[0, 0].expand(6, 6))
    found = ntk_statistics(same)
    assert found.trace_over_top == pytest.approx(1)
    assert found.mean_cosine == pytest.approx(1)
    x = torch.tensor([[1.0, 2, 3, 4], [4, 3, 2, 1]], dtype=torch.float64)
    assert int(torch.linalg.matrix_rank(empirical_ntk(model, x[[0, 1, 0, 1, 1]], "sum"), hermitian=True)) == 2


def test_output_that_does_not_depend_on_parameters_has_a_zero_kernel() -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x).detach()

    assert torch.equal(empirical_ntk(Cut(), torch.ones(3, 4)), torch.zeros(3, 3, dtype=torch.float64))


def test_losses_with_and_without_reduction_agree() -> None:
    model, x = mlp(6, 9, 3).double(), torch.randn(5, 6, dtype=torch.float64)
    classes, values = torch.tensor([0, 1, 2, 2, 0]), torch.randn(5, 3, dtype=torch.float64)
    each = empirical_ntk(model, x, "loss", classes, nn.CrossEntropyLoss(reduction="none"))
    for loss in (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(reduction="sum")):
        torch.testing.assert_close(empirical_ntk(model, x, "loss", classes, loss), each)
    squares = empirical_ntk(model, x, "loss", values, lambda a, b: (a - b).square().mean(1))
    torch.testing.assert_close(empirical_ntk(model, x, "loss", values, nn.MSELoss()), squares)


WEIGHT = torch.tensor([0.2, 3.0, 0.0, 1.5], dtype=torch.float64)
LABELS = torch.tensor([0, 1, 3, 1, 2, 0])
SOFT = torch.tensor([[0.1, 0.2, 0.3, 0.4], [1, 0, 0, 0], [0, 0.5, 0.5, 0]], dtype=torch.float64).repeat(2, 1)


def cross_entropies(outputs: Tensor, labels: Tensor, weight: Tensor, ignored: int, smoothing: float) -> list[Tensor]:
    """Each sample's weighted cross-entropy, from its definition."""
    losses = []
    for logits, label in zip(outputs, labels.tolist(), strict=True):
        minus_log = logits.exp().sum().log() - logits
        smooth = (weight * minus_log).sum() / len(weight)
        exact = (1 - smoothing) * weight[label] * minus_log[label] + smoothing * smooth
        losses.append(exact if label != ignored else 0 * exact)
    return losses


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("ignored", [-100, 1])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("weighted", [False, True])
def test_losses_of_samples_are_those_whose_mean_or_sum_the_criterion_is(
    reduction, ignored, smoothing, weighted
) -> None:
    model, x = mlp(5, 7, 4).double(), torch.randn(6, 5, dtype=torch.float64)
    options = {"weight": WEIGHT if weighted else None, "ignore_index": ignored, "label_smoothing": smoothing}
    weight = WEIGHT if weighted else torch.ones_like(WEIGHT)
    losses = cross_entropies(model(x), LABELS, weight, ignored, smoothing)
    if reduction == "mean":
        divisor = sum(float(weight[label]) for label in LABELS.tolist() if label != ignored)
        losses = [len(losses) / divisor * value for value in losses]
    rows = [
        torch.cat([part.flatten() for part in torch.autograd.grad(value, list(model.parameters()), retain_graph=True)])
        for value in losses
    ]
    J = torch.stack(rows)
    criterion = nn.CrossEntropyLoss(reduction=reduction, **options)
    found = empirical_ntk(model, x, "loss", LABELS, criterion)
    torch.testing.assert_close(found, J @ J.mT, rtol=1e-9, atol=1e-12)
    if reduction != "none":
        gradient = torch.autograd.grad(criterion(model(x), LABELS), list(model.parameters()))
        size = sum(float(part.square().sum()) for part in gradient)
        assert float(found.mean() if reduction == "mean" else found.sum()) == pytest.approx(size)


PER_SAMPLE = {
    "binary, weighted": (
        nn.BCEWithLogitsLoss(pos_weight=WEIGHT, reduction="sum"),
        lambda o, t: nn.functional.binary_cross_entropy_with_logits(o, t, pos_weight=WEIGHT, reduction="none").sum(1),
        SOFT,
    ),
    "soft labels": (nn.CrossEntropyLoss(), lambda o, t: -(t * o.log_softmax(1)).sum(1), SOFT),
    "absolute": (nn.L1Loss(), lambda o, t: (o - t).abs().mean(1), SOFT + 3),
    "Huber, summed": (
        nn.SmoothL1Loss(reduction="sum"),
        lambda o, t: nn.SmoothL1Loss(reduction="none")(o, t).sum(1),
        SOFT,
    ),
    "one column a sample": (
        lambda o, t: (o - t).square().sum(1, keepdim=True),
        lambda o, t: (o - t).square().sum(1),
        SOFT,
    ),
    "batchmean": (nn.KLDivLoss(reduction="batchmean"), lambda o, t: nn.KLDivLoss(reduction="none")(o, t).sum(1), SOFT),
}


def test_probabilities_stay_probabilities() -> None:
    model, x = nn.Sequential(mlp(5, 7, 4), nn.Sigmoid()).double(), torch.randn(6, 5, dtype=torch.float64)
    expected = empirical_ntk(model, x, "loss", SOFT, lambda o, t: nn.BCELoss(reduction="none")(o, t).mean(1))
    torch.testing.assert_close(empirical_ntk(model, x, "loss", SOFT, nn.BCELoss()), expected)


@pytest.mark.parametrize("name", PER_SAMPLE)
def test_other_criteria_have_their_losses_of_samples(name: str) -> None:
    model, x = mlp(5, 7, 4).double(), torch.randn(6, 5, dtype=torch.float64)
    criterion, each, targets = PER_SAMPLE[name]
    expected = empirical_ntk(model, x, "loss", targets, each)
    torch.testing.assert_close(empirical_ntk(model, x, "loss", targets, criterion), expected, rtol=1e-9, atol=1e-12)


COUPLED = {
    "log of the mean": lambda o, t: F.cross_entropy(o, t).log(),
    "root of the mean": lambda o, t: (o - 1).square().mean().sqrt(),
    "contrast": lambda o, t: F.cross_entropy(o @ o.mT, torch.arange(len(o))),
    "standardised": lambda o, t: F.cross_entropy((o - o.mean(0)) / o.std(0), t),
    "by the root of the number": lambda o, t: F.cross_entropy(o, t, reduction="sum") / len(o) ** 0.5,
    "values that are coupled": lambda o, t: F.cross_entropy(o - o.mean(0), t, reduction="none"),
}


@pytest.mark.parametrize("small_outputs", [False, True])
@pytest.mark.parametrize("name", COUPLED)
def test_a_loss_without_a_form_by_samples_is_refused(name: str, small_outputs: bool) -> None:
    model, x = mlp(5, 7, 4).double(), torch.randn(6, 5, dtype=torch.float64)
    if small_outputs:
        nn.init.constant_(model[-1].weight, 1e-3)
    with pytest.raises(UserError, match="neither a mean nor a sum"):
        empirical_ntk(model, x, "loss", LABELS, COUPLED[name])


def test_a_loss_of_this_batch_alone_and_one_that_ignores_all_are_refused() -> None:
    model, x = mlp(5, 7, 4).double(), torch.randn(6, 5, dtype=torch.float64)
    weights = torch.rand(6, dtype=torch.float64)
    with pytest.raises(UserError, match="one value a sample"):
        empirical_ntk(model, x, "loss", LABELS, lambda o, t: (weights * F.cross_entropy(o, t, reduction="none")).sum())
    with pytest.raises(UserError, match="not finite"):
        empirical_ntk(model, x, "loss", torch.full((6,), 2), nn.CrossEntropyLoss(ignore_index=2))


def test_masked_outputs_that_are_minus_infinity_have_no_part_in_a_kernel() -> None:
    class Masked(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.body, self.value = mlp(5, 7, 4).double(), value

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x).masked_fill(torch.tensor([False, True, False, True]), self.value)

    x = torch.randn(6, 5, dtype=torch.float64)
    finite = Masked(-1000.0)
    infinite = Masked(-torch.inf)
    infinite.load_state_dict(finite.state_dict())
    for kind, more in (("trace", ()), ("loss", (LABELS % 2 * 2, cross_entropy))):
        torch.testing.assert_close(empirical_ntk(infinite, x, kind, *more), empirical_ntk(finite, x, kind, *more))


@pytest.mark.parametrize("n", [1, 100, 200, 300, 400])
@pytest.mark.parametrize("factor", [1.0, 0.1, 1 / 3, 1e-310, 1e308])
def test_ties_of_equal_eigenvalues_are_reached(n, factor) -> None:
    found = ntk_statistics(factor * torch.eye(n, dtype=torch.float64))
    assert found.srank == max(1, math.ceil(n * 99 / 100))
    assert found.effective_rank == pytest.approx(n)


@pytest.mark.parametrize("n", [100, 200])
def test_ties_are_reached_also_by_the_kernel_of_a_network_in_single_precision(n) -> None:
    orthogonal = torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(n)))[0]
    kernel = empirical_ntk(nn.Linear(n, 1, bias=False), 0.3 * orthogonal)
    assert ntk_statistics(kernel).srank == n * 99 // 100


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_kernel_is_the_same_where_gradients_are_off(context) -> None:
    model, x = Residual(), torch.randn(3, 3, 6, 6)
    expected = empirical_ntk(model, x)
    with context():
        found = empirical_ntk(model, x * 1)
    assert torch.equal(found, expected)
    assert not found.requires_grad


def state(model: nn.Module) -> dict[str, object]:
    """Everything that a look at the network might change, in a form that compares."""
    return {
        "values": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "gradients": [(id(p.grad), None if p.grad is None else p.grad.clone()) for p in model.parameters()],
        "identities": [id(p) for p in model.parameters()],
        "trainable": [p.requires_grad for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "hooks": [
            [list(hooks) for key, hooks in sorted(vars(m).items()) if key.endswith("_hooks")] for m in model.modules()
        ],
        "tensor hooks": [len(p._backward_hooks or ()) for p in model.parameters()],
        "attributes": [sorted(vars(m)) for m in model.modules()],
        "random": (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()),
    }


def assert_same(before: object, after: object) -> None:
    assert type(before) is type(after)
    if isinstance(before, Tensor):
        assert torch.equal(before, after)
    elif isinstance(before, dict):
        assert_same(list(before.items()), list(after.items()))
    elif isinstance(before, list | tuple):
        assert len(before) == len(after)
        for one, other in zip(before, after, strict=True):
            assert_same(one, other)
    else:
        assert before == after


class Failing(nn.Module):
    """Raises in the forward pass, or in the backward pass, or gives what is not finite."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.inner, self.dropout = how, with_statistics(Residual()), nn.Dropout()
        self.matrix = nn.Parameter(torch.randn(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.dropout(self.inner(x)) @ self.matrix
        torch.rand(3)
        if self.how == "forward":
            raise RuntimeError("forward")
        if self.how == "backward":
            y.register_hook(self.fail)
        return y / 0 if self.how == "infinite" else y

    def fail(self, gradient: Tensor) -> None:
        raise RuntimeError("backward")


@pytest.mark.parametrize("kind", ["trace", "loss"])
@pytest.mark.parametrize("how", ["", "forward", "backward", "infinite", "loss"])
@pytest.mark.filterwarnings("ignore:empirical_ntk")
def test_network_is_left_as_it_was(how: str, kind: str) -> None:
    model, x = Failing(how), torch.randn(4, 3, 6, 6)
    model.inner.stem.eval()
    model.inner.head.weight.requires_grad_(False)
    model.matrix.grad = torch.ones(3, 3)
    fired: list[str] = []
    model.matrix.register_hook(lambda gradient: fired.append("matrix"))
    model.inner.conv1.weight.register_hook(lambda gradient: fired.append("weight"))
    model.inner.conv2.register_full_backward_hook(lambda module, gradients, outputs: None)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        if how == "loss":
            raise RuntimeError("loss")
        return cross_entropy(outputs, targets)

    before = state(model)
    more = {"targets": torch.zeros(4, dtype=torch.long), "loss": loss} if kind == "loss" else {}
    if how == "" or (how == "loss" and kind == "trace"):
        empirical_ntk(model, x, kind, **more)
    else:
        with pytest.raises((RuntimeError, UserError)):
            empirical_ntk(model, x, kind, **more)
    assert_same(before, state(model))
    assert fired == []


def test_embedding_with_max_norm_is_not_rescaled() -> None:
    model = nn.Sequential(nn.Embedding(6, 4, max_norm=0.1), nn.Flatten(), nn.Linear(8, 2))
    before = model[0].weight.detach().clone()
    empirical_ntk(model, torch.tensor([[0, 1], [2, 3], [0, 5]]))
    assert torch.equal(model[0].weight, before)


def test_graph_and_activations_are_let_go() -> None:
    model = mlp(6, 50, 3)
    seen: list[weakref.ref[Tensor]] = []
    model[1].register_forward_hook(lambda module, inputs, output: seen.append(weakref.ref(output)))
    empirical_ntk(model, torch.randn(4, 6))
    assert [reference() for reference in seen] == [None]


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant, self.first = reentrant, nn.Linear(6, 6)
        self.inner = nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, self.first(x), use_reentrant=self.reentrant)


def with_nan() -> nn.Module:
    model = mlp(6, 9, 3)
    model[0].weight.data[0, 0] = torch.nan
    return model


def frozen() -> nn.Module:
    return mlp(6, 9, 3).requires_grad_(False)


BATCH, TARGETS = torch.ones(4, 6), torch.zeros(4, dtype=torch.long)
MISTAKES: dict[str, tuple[Callable[[], object], str]] = {
    "misspelt kind": (lambda: empirical_ntk(mlp(6, 3), BATCH, "trase"), "did you mean trace"),
    "loss without targets": (lambda: empirical_ntk(mlp(6, 3), BATCH, "loss", loss=cross_entropy), "needs targets"),
    "loss without loss": (lambda: empirical_ntk(mlp(6, 3), BATCH, "loss", TARGETS), "needs targets and a loss"),
    "targets for trace": (lambda: empirical_ntk(mlp(6, 3), BATCH, targets=TARGETS), "belong to"),
    "too few targets": (lambda: empirical_ntk(mlp(6, 3), BATCH, "loss", TARGETS[:3], cross_entropy), "4 inputs"),
    "empty batch": (lambda: empirical_ntk(mlp(6, 3), BATCH[:0]), "at least one sample"),
    "frozen network": (lambda: empirical_ntk(frozen(), BATCH), "no trainable parameter"),
    "nan weights": (lambda: empirical_ntk(with_nan(), BATCH), "not finite for 4 of 4 samples"),
    "nan inputs": (lambda: empirical_ntk(mlp(6, 3), BATCH.index_fill(0, torch.tensor(1), torch.nan)), "1 of 4"),
    "infinite gradient": (
        lambda: empirical_ntk(nn.Sequential(nn.Linear(6, 3, bias=False), Root()), 0 * BATCH),
        "gradients are not finite",
    ),
    "tuple output": (lambda: empirical_ntk(nn.LSTM(6, 3), BATCH), "one tensor as output, not a tuple"),
    "output without samples": (lambda: empirical_ntk(nn.Sequential(mlp(6, 3), nn.Flatten(0)), BATCH), r"shape \[12\]"),
    "loss of wrong shape": (
        lambda: empirical_ntk(mlp(6, 3), BATCH, "loss", BATCH[:, :3], nn.MSELoss(reduction="none")),
        r"shape \[4, 3\] for 4 samples",
    ),
    "loss without gradient": (
        lambda: empirical_ntk(mlp(6, 3), BATCH, "loss", TARGETS, lambda a, b: cross_entropy(a.detach(), b)),
        "cannot be differentiated",
    ),
    "batch statistics": (
        lambda: empirical_ntk(nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3, track_running_stats=False)), BATCH),
        "mixes the samples",
    ),
    "samples that mix": (
        lambda: empirical_ntk(nn.Sequential(nn.Linear(6, 6), Centred(), nn.Linear(6, 3)), torch.eye(6)),
        "samples influence each other",
    ),
    "reentrant checkpoint": (lambda: empirical_ntk(Checkpointed(True), BATCH), "activation checkpointing"),
    "checkpoint": (lambda: empirical_ntk(Checkpointed(False), BATCH), "activation checkpointing"),
    "gram that is not square": (lambda: ntk_statistics(torch.ones(3, 2)), r"shape \[3, 2\]"),
    "gram with nan": (lambda: ntk_statistics(torch.full((2, 2), torch.nan)), "not finite"),
    "gram that is not symmetric": (lambda: cosine_gram(torch.tensor([[1.0, 0.5], [0.0, 1.0]])), "not symmetric"),
}


class Centred(nn.Module):
    """Subtracts the mean over the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class Root(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sqrt()


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_answered_with_one_clear_line(mistake: str) -> None:
    call, message = MISTAKES[mistake]
    with pytest.raises(UserError, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)
