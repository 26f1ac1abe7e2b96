"""Nonlinearities in whatever way they are written, units wherever they are moved, and what is none of both."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from plasticity_cl.diagnostics import linearised_units, rare_units, saturated_units, unit_statistics
from plasticity_cl.diagnostics.formulas import name_of
from plasticity_cl.errors import UserError

CPU = torch.device("cpu")
ZERO = torch.tensor(0.0)


class Net(nn.Module):
    """One hidden layer of four units with any function in it, twice, the second time at the output."""

    def __init__(self, phi, at_output=False):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 4)
        self.phi, self.at_output = phi, at_output

    def forward(self, x):
        y = self.last(self.phi(self.first(x)))
        return self.phi(y) if self.at_output else y


class Straight(torch.autograd.Function):
    """A ReLU that hands on every gradient, as binarised networks have it."""

    @staticmethod
    def forward(ctx, z):
        return z.clamp(min=0)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def negatives_set(z):
    z = z.clone()
    z[z < 0] = 0
    return z


def negatives_set_in_place(z):
    z[z < 0] = 0
    return z


def sigmoid_times_in_place(z):
    return z.mul_(torch.sigmoid(z))


RELU = {
    "clamp": lambda z: z.clamp(min=0),
    "clamp, positional": lambda z: z.clamp(0),
    "torch.clamp": lambda z: torch.clamp(z, min=0.0),
    "clamp_": lambda z: z.clamp_(min=0),
    "torch.clamp_": lambda z: torch.clamp_(z, min=0),
    "clip": lambda z: torch.clip(z, min=0),
    "clip_": lambda z: z.clip_(min=0),
    "clamp_min": lambda z: z.clamp_min(0),
    "clamp_min_": lambda z: z.clamp_min_(0),
    "clamp_min of a tensor": lambda z: torch.clamp_min(z, ZERO),
    "maximum": lambda z: torch.maximum(z, ZERO),
    "maximum, turned": lambda z: torch.maximum(torch.zeros(1), z),
    "max of zeros_like": lambda z: torch.max(z, torch.zeros_like(z)),
    "max of zeros": lambda z: torch.max(torch.zeros(4), z),
    "Tensor.max": lambda z: z.max(ZERO),
    "fmax": lambda z: torch.fmax(z, z.new_zeros(())),
    "F.threshold": lambda z: F.threshold(z, 0.0, 0.0),
    "F.threshold in place": lambda z: F.threshold(z, 0.0, 0.0, True),
    "nn.Threshold": nn.Threshold(0, 0),
    "where": lambda z: torch.where(z > 0, z, 0.0),
    "where of zeros_like": lambda z: torch.where(z > 0, z, torch.zeros_like(z)),
    "where, turned": lambda z: torch.where(z <= 0, ZERO, z),
    "Tensor.where": lambda z: z.where(z > 0, 0.0),
    "mask": lambda z: z * (z > 0),
    "mask in float": lambda z: (z > 0).float() * z,
    "mask of its type": lambda z: z * z.gt(0).type_as(z),
    "mask in place": lambda z: z.mul_(z > 0),
    "masked_fill": lambda z: z.masked_fill(z < 0, 0),
    "masked_fill_": lambda z: z.masked_fill_(z < 0, 0),
    "set": negatives_set,
    "set in place": negatives_set_in_place,
    "half of the sum": lambda z: (z + z.abs()) / 2,
    "function of autograd": Straight.apply,
    "behind a scale": lambda z: torch.maximum(2 * z, ZERO) / 2,
    "with a dropout": lambda z: F.dropout(z, 0.5, training=False).clamp(min=0),
}
NAMED = {
    "leaky_relu": (
        nn.LeakyReLU(0.125),
        {
            "maximum": lambda z: torch.maximum(z, 0.125 * z),
            "where": lambda z: torch.where(z > 0, z, 0.125 * z),
            "two halves": lambda z: F.relu(z) - 0.125 * F.relu(-z),
            "two clamps": lambda z: z.clamp(min=0) + 0.125 * z.clamp(max=0),
        },
    ),
    "relu6": (nn.ReLU6(), {"clamp": lambda z: z.clamp(0, 6), "minimum": lambda z: z.clamp(min=0).clamp(max=6)}),
    "hardtanh": (nn.Hardtanh(), {"clamp": lambda z: z.clamp(-1, 1), "clamp_": lambda z: z.clamp_(-1, 1)}),
    "silu": (
        nn.SiLU(),
        {
            "sigmoid": lambda z: z * torch.sigmoid(z),
            "turned": lambda z: z.sigmoid() * z,
            "in place": sigmoid_times_in_place,
            "expit": lambda z: z * torch.special.expit(z),
            "exp": lambda z: z / (1 + torch.exp(-z)),
        },
    ),
    "sigmoid": (nn.Sigmoid(), {"expit": torch.special.expit, "exp": lambda z: 1 / (1 + torch.exp(-z))}),
    "gelu": (
        nn.GELU(),
        {"erf": lambda z: 0.5 * z * (1 + torch.erf(z / math.sqrt(2))), "ndtr": lambda z: z * torch.special.ndtr(z)},
    ),
    "gelu with tanh": (
        nn.GELU("tanh"),
        {
            "tanh": lambda z: (
                0.5 * z * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (z + 0.044715 * torch.pow(z, 3.0))))
            ),
            "function": lambda z: F.gelu(z, approximate="tanh"),
        },
    ),
    "mish": (nn.Mish(), {"softplus": lambda z: z * torch.tanh(F.softplus(z))}),
    "softplus": (
        nn.Softplus(),
        {"log": lambda z: torch.log(1 + z.exp()), "log1p": lambda z: torch.log1p(torch.exp(z))},
    ),
    "softsign": (nn.Softsign(), {"fraction": lambda z: z / (1 + z.abs())}),
    "tanh": (nn.Tanh(), {"exp": lambda z: (z.exp() - (-z).exp()) / (z.exp() + (-z).exp())}),
    "tanhshrink": (nn.Tanhshrink(), {"difference": lambda z: z - torch.tanh(z), "function": F.tanhshrink}),
    "logsigmoid": (nn.LogSigmoid(), {"function": F.logsigmoid, "negative": lambda z: -torch.log1p(torch.exp(-z))}),
    "hardswish": (
        nn.Hardswish(),
        {"relu6": lambda z: z * F.relu6(z + 3) / 6, "clamp": lambda z: z * (z + 3).clamp(0, 6) / 6},
    ),
    "elu": (
        nn.ELU(),
        {
            "where": lambda z: torch.where(z > 0, z, torch.exp(z) - 1),
            "expm1": lambda z: z.clamp(min=0) + torch.expm1(z).clamp(max=0),
        },
    ),
    "celu": (nn.CELU(2.0), {"function": lambda z: F.celu(z, 2.0), "in place": lambda z: F.celu(z, 2.0, True)}),
    "selu": (nn.SELU(), {"function": torch.selu, "in place": torch.selu_}),
}
RATES = torch.tensor([2.0, 0.5, 1.0, -3.0])


def batch(n=60):
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(4)) * 3


def known(values):
    """The statistics of layers without their names and moments."""
    return [
        {key: value for key, value in vars(layer).items() if not isinstance(value, torch.Tensor | str)}
        for layer in values.layers.values()
    ]


@pytest.mark.parametrize("at_output", [False, True])
@pytest.mark.parametrize("name", RELU)
@pytest.mark.filterwarnings("error::UserWarning")
def test_a_relu_in_any_spelling_is_a_relu(name, at_output):
    reference = Net(nn.ReLU(), at_output)
    with torch.no_grad():
        reference.first.bias.copy_(torch.tensor([-50.0, 50.0, 0.0, 0.3]))
    spelt = Net(RELU[name], at_output)
    spelt.load_state_dict(reference.state_dict())
    expected, found = unit_statistics(reference, batch()), unit_statistics(spelt, batch())
    assert [layer.nonlinearity for layer in found.layers.values()] == ["relu"] * (1 + at_output)
    for one, other in zip(known(found), known(expected), strict=True):
        assert one == pytest.approx(other, nan_ok=True)
    first, again = (next(iter(each.layers.values())) for each in (expected, found))
    for moment in ("mean", "std", "positive", "magnitude"):
        torch.testing.assert_close(getattr(again, moment), getattr(first, moment))
    assert first.dead_units == first.linearised_units == 0.25
    assert torch.equal(spelt(batch()), reference(batch()))


@pytest.mark.parametrize("at_output", [False, True])
@pytest.mark.parametrize(("name", "spelling"), [(name, each) for name, (_, more) in NAMED.items() for each in more])
@pytest.mark.filterwarnings("error::UserWarning")
def test_a_formula_counts_as_the_nonlinearity_that_it_is(name, spelling, at_output):
    module, spellings = NAMED[name]
    reference, spelt = Net(module, at_output), Net(spellings[spelling], at_output)
    expected, found = unit_statistics(reference, batch()), unit_statistics(spelt, batch())
    assert len(found.layers) == 1 + at_output
    names = [layer.nonlinearity for layer in found.layers.values()]
    if name != "tanh":
        assert names == [layer.nonlinearity for layer in expected.layers.values()]
    for one, other in zip(known(found), known(expected), strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-5, nan_ok=True)


OTHERS = {
    "sine": torch.sin,
    "sine, fast": lambda z: torch.sin(30 * z),
    "sine in place": lambda z: z.sin_(),
    "cosine": torch.cos,
    "absolute": torch.abs,
    "square": lambda z: z**2,
    "square by a product": lambda z: z * z,
    "Gaussian": lambda z: torch.exp(-(z**2)),
    "arctan": torch.atan,
    "error function": torch.erf,
    "threshold": lambda z: F.threshold(z, 0.5, 0.0),
    "clamp": lambda z: z.clamp(-2, 3),
    "bounded from below": lambda z: z.clamp(min=-1),
    "bounded from above": lambda z: torch.minimum(z, torch.tensor(1.0)),
    "step": lambda z: (z > 0).float(),
    "sign": torch.sign,
    "shrunk": F.softshrink,
    "snake": lambda z: z + torch.sin(z) ** 2,
    "log cosh": lambda z: torch.log(torch.cosh(z)),
    "quick": lambda z: z * torch.sigmoid(1.702 * z),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.filterwarnings("error::UserWarning")
def test_any_elementwise_function_of_preactivations_is_counted(name):
    model = Net(OTHERS[name])
    (layer,) = unit_statistics(model, batch()).layers.values()
    z = model.first(batch()).detach()
    if name == "sine, fast":
        z, h = z, OTHERS[name](z)
    else:
        h = OTHERS[name](z.clone())
    leaf = z.clone().requires_grad_()
    out = OTHERS[name](leaf.clone())
    derivative = torch.autograd.grad(out.sum(), leaf)[0] if out.requires_grad else torch.zeros_like(z)
    assert (layer.units, layer.samples) == (4, 60)
    assert math.isnan(layer.dead_units)
    assert layer.rare_units == rare_units(h)
    assert layer.activation_sparsity == pytest.approx(float((h == 0).double().mean()))
    torch.testing.assert_close(layer.magnitude, h.double().abs().mean(0), rtol=1e-5, atol=1e-6)
    if name == "sine, fast":
        return  # a scaled preactivation: its derivative is that of the sine of z alone
    assert layer.linearised_units == linearised_units(z, h)
    assert layer.saturated_units == saturated_units(derivative)
    torch.testing.assert_close(layer.mean, z.double().mean(0), rtol=1e-5, atol=1e-6)


def test_gates_count_by_what_is_gated():
    class Gated(nn.Module):
        def __init__(self, gate):
            super().__init__()
            torch.manual_seed(0)
            self.first, self.last, self.gate = nn.Linear(3, 8), nn.Linear(4, 2), gate

        def forward(self, x):
            return self.last(self.gate(self.first(x)))

    def by_hand(z):
        a, b = z.chunk(2, dim=-1)
        return a * torch.sigmoid(b)

    def geglu(z):
        a, b = z.chunk(2, dim=-1)
        return a * F.gelu(b)

    z = Gated(by_hand).first(batch()).detach()[:, 4:].double()
    for gate, name in ((by_hand, "sigmoid"), (F.glu, "glu"), (nn.GLU(), "glu"), (geglu, "gelu")):
        (layer,) = unit_statistics(Gated(gate), batch()).layers.values()
        assert (layer.units, layer.nonlinearity) == (4, name)
        torch.testing.assert_close(layer.mean, z.mean(0), rtol=1e-5, atol=1e-6)


def test_per_unit_and_learnt_slopes():
    net = Net(nn.PReLU(4))
    (layer,) = unit_statistics(net, batch()).layers.values()
    assert (layer.nonlinearity, layer.units) == ("prelu", 4)
    swish = Net(None)
    swish.beta = nn.Parameter(torch.tensor([1.0]))
    swish.phi = lambda z: z * torch.sigmoid(swish.beta * z)
    (layer,) = unit_statistics(swish, batch()).layers.values()
    assert layer.nonlinearity == "silu"
    with torch.no_grad():
        swish.beta.fill_(3.0)
    (layer,) = unit_statistics(swish, batch()).layers.values()
    h = swish.phi(swish.first(batch())).detach()
    torch.testing.assert_close(layer.magnitude, h.double().abs().mean(0), rtol=1e-5, atol=1e-6)


# What is no nonlinearity of units


class Body(nn.Module):
    """Three linear layers and some parameters for a function to use."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c, self.function = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6), function
        self.scale, self.width = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(6))

    def forward(self, x):
        return self.function(self, x)


def attention(s, x):
    q, k, v = s.a(x), s.b(x), s.c(x)
    scores = (q @ k.transpose(-1, -2) / 6**0.5).clamp(-50, 50)
    scores = torch.where(torch.ones_like(scores).tril() > 0, scores, -1e9)
    return s.a(scores.softmax(-1).clamp(min=1e-9) @ v)


def layer_norm(s, x):
    z = s.a(x)
    z = z - z.mean(-1, keepdim=True)
    return s.b(z / (z.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * s.width)


def layer_norm_by_variance(s, x):
    z = s.a(x)
    return s.b((z - z.mean(-1, keepdim=True)) / z.var(-1, keepdim=True).clamp(min=1e-5).sqrt())


def softmax(s, x):
    e = torch.exp(s.a(x))
    return s.b(e / e.sum(-1, keepdim=True))


def rotary(s, x):
    q, angle = s.a(x), torch.arange(3.0)
    return s.b(torch.cat([q[..., :3] * torch.cos(angle) - q[..., 3:] * torch.sin(angle), q[..., 3:]], -1))


def entropy(s, x):
    p = s.a(x).softmax(-1)
    return -(p * p.clamp(min=1e-9).log()).sum(-1)


NOT_UNITS = {
    "bound of a norm": lambda s, x: s.b(s.a(x) / s.a(x).norm(dim=-1, keepdim=True).clamp(min=1e-6)),
    "bound of a sum": lambda s, x: s.a(x) / s.a(x).pow(2).sum(-1, keepdim=True).clamp(min=1e-6).sqrt(),
    "bound of a maximum": lambda s, x: s.b(s.a(x) / s.a(x).abs().amax(-1, keepdim=True).clamp(min=1e-6)),
    "F.normalize": lambda s, x: s.b(F.normalize(s.a(x), dim=-1)),
    "layer normalisation": layer_norm,
    "layer normalisation by variance": layer_norm_by_variance,
    "root mean square": lambda s, x: s.b(s.a(x) * torch.rsqrt(s.a(x).pow(2).mean(-1, keepdim=True) + 1e-6)),
    "bound of a softmax": lambda s, x: s.b(s.a(x).softmax(-1).clamp(1e-7, 1)),
    "softmax": softmax,
    "attention": attention,
    "inputs": lambda s, x: s.b(s.a(x.clamp(0, 1))),
    "scale of a head": lambda s, x: s.a(x) * s.scale.exp().clamp(max=100),
    "activation of a parameter": lambda s, x: s.a(x) * F.softplus(s.width).sqrt().clamp(min=1e-3),
    "logarithm of a variance": lambda s, x: s.a(x).clamp(-10, 2).exp(),
    "loss": lambda s, x: F.mse_loss(s.a(x), x).clamp(min=1e-6),
    "loss by hand": lambda s, x: ((s.a(x) - x) ** 2).mean().clamp(max=5),
    "distances": lambda s, x: -(s.a(x)[:, None] - s.b(x)[None]).pow(2).sum(-1),
    "cosines": lambda s, x: (F.normalize(s.a(x), dim=-1) * F.normalize(s.b(x), dim=-1)).sum(-1),
    "entropy": entropy,
    "residual": lambda s, x: s.b(s.a(x) + x),
    "mask": lambda s, x: s.b(s.a(x) * (torch.arange(6.0) > 2)),
    "angles": rotary,
    "positions": lambda s, x: s.b(s.a(x) + torch.sin(torch.arange(6.0))),
    "product": lambda s, x: s.c(s.a(x) * s.b(x)),
    "affine": lambda s, x: s.b(3 * s.a(x) - 1),
    "made of its shape": lambda s, x: s.b(s.a(x) + s.a(x).new_zeros(6).masked_fill(torch.arange(6) > 3, -1.0)),
    "a selection": lambda s, x: s.b(torch.where(torch.arange(6) > 2, s.a(x), s.c(x))),
}


@pytest.mark.parametrize("shape", [(5, 6), (5, 7, 6)])
@pytest.mark.parametrize("name", NOT_UNITS)
@pytest.mark.filterwarnings("error::UserWarning")
def test_what_is_bounded_for_other_ends_is_no_unit(name, shape):
    model = Body(NOT_UNITS[name])
    assert unit_statistics(model, torch.randn(shape, generator=torch.Generator().manual_seed(0))).layers == {}
    model.function = lambda s, x: F.relu(s.a(x)) + 0 * NOT_UNITS[name](s, x).sum()
    found = unit_statistics(model, torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    assert [layer.units for layer in found.layers.values()] == [6]


class Opaque(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z):
        return torch.from_numpy(np.maximum(z.numpy(), 0))


UNSEEN = {
    "NumPy": (Net(Opaque.apply), batch(), "'numpy'"),
    "maximum of two": (Net(lambda z: torch.maximum(z, z.flip(1))), batch(), "'maximum'"),
    "bounds by unit": (Net(lambda z: torch.clamp(z, min=RATES)), batch(), "'clamp'"),
    "LSTM": (nn.LSTM(3, 5, batch_first=True), torch.randn(4, 7, 3), "recurrent kernel 'lstm'"),
    "GRU cell": (nn.GRUCell(3, 5), batch(), "recurrent kernel 'gru_cell'"),
    "RNN": (nn.RNN(3, 5), torch.randn(4, 7, 3), "recurrent kernel 'rnn_tanh'"),
}


@pytest.mark.parametrize("name", UNSEEN)
def test_what_cannot_be_looked_into_is_said_once(name):
    model, inputs, message = UNSEEN[name]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        unit_statistics(model, inputs)
    assert len(said) == 1
    assert message in str(said[0].message)
    assert "\n" not in str(said[0].message)


# Where units lie


def tokens(z):
    return z.reshape(-1, z.shape[-1])


def maps(z):
    return z.transpose(1, -1).reshape(-1, z.shape[1])


class Moved(nn.Module):
    """A layer, something that moves its output about, then a nonlinearity."""

    def __init__(self, layer, move, act=torch.tanh):
        super().__init__()
        self.layer, self.move, self.act = layer, move, act

    def forward(self, x):
        return self.act(self.move(self.layer(x)))


CONV1, CONV2, CONV3 = (lambda: nn.Conv1d(3, 4, 3)), (lambda: nn.Conv2d(3, 4, 3)), (lambda: nn.Conv3d(3, 4, 2))
GROUPED = lambda: nn.Conv2d(3, 6, 3, groups=3)  # noqa: E731
SEQUENCE, IMAGE, VOLUME, TOKENS = (5, 3, 12), (5, 3, 6, 6), (5, 3, 4, 4, 4), (5, 4, 6)
LINEAR = lambda: nn.Linear(6, 4)  # noqa: E731
MOVES = {
    "1d": (CONV1, SEQUENCE, lambda z: z, maps),
    "CReLU, 1d": (CONV1, SEQUENCE, lambda z: torch.cat([z, -z], 1), lambda z: maps(torch.cat([z, -z], 1))),
    "CReLU, 2d": (CONV2, IMAGE, lambda z: torch.cat((z, -z), dim=1), lambda z: maps(torch.cat([z, -z], 1))),
    "CReLU, -3": (CONV2, IMAGE, lambda z: torch.cat((z, -z), dim=-3), lambda z: maps(torch.cat([z, -z], 1))),
    "joined in time": (CONV1, SEQUENCE, lambda z: torch.cat([z, z], 2), lambda z: maps(torch.cat([z, z], 2))),
    "3d": (CONV3, VOLUME, lambda z: z, maps),
    "permuted": (CONV2, IMAGE, lambda z: z.permute(0, 2, 3, 1), maps),
    "permuted, 1d": (CONV1, SEQUENCE, lambda z: z.permute(0, 2, 1), maps),
    "transposed": (CONV1, SEQUENCE, lambda z: z.transpose(1, 2), maps),
    "mT": (CONV1, SEQUENCE, lambda z: z.mT, maps),
    "swapped": (CONV1, SEQUENCE, lambda z: torch.swapaxes(z, -1, -2), maps),
    "moved": (CONV2, IMAGE, lambda z: z.movedim(1, -1), maps),
    "moved, 3d": (CONV3, VOLUME, lambda z: torch.movedim(z, 1, 4), maps),
    "batch second": (CONV1, SEQUENCE, lambda z: z.permute(2, 0, 1), maps),
    "there and back": (CONV2, IMAGE, lambda z: z.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2), maps),
    "flattened positions": (CONV2, IMAGE, lambda z: z.flatten(2), maps),
    "tokens": (CONV2, IMAGE, lambda z: z.flatten(2).transpose(1, 2), maps),
    "flattened": (CONV2, IMAGE, lambda z: z.flatten(1), maps),
    "viewed": (CONV2, IMAGE, lambda z: z.view(5, 4, 16), maps),
    "split in groups": (CONV2, IMAGE, lambda z: z.unflatten(1, (2, 2)), maps),
    "channels shuffled": (
        *(CONV2, IMAGE, lambda z: z.view(5, 2, 2, 4, 4).transpose(1, 2).flatten(1, 2)),
        lambda z: maps(z)[:, [0, 2, 1, 3]],
    ),
    "half of the channels": (CONV2, IMAGE, lambda z: z.chunk(2, 1)[1], lambda z: maps(z)[:, 2:]),
    "split": (CONV2, IMAGE, lambda z: torch.split(z, [1, 3], dim=1)[1], lambda z: maps(z)[:, 1:]),
    "sliced channels": (CONV2, IMAGE, lambda z: z[:, 1:3], lambda z: maps(z)[:, 1:3]),
    "sliced positions": (CONV2, IMAGE, lambda z: z[..., 1:], lambda z: maps(z[..., 1:])),
    "one position": (CONV2, IMAGE, lambda z: z[:, :, 1, 2], lambda z: z[:, :, 1, 2]),
    "one row": (CONV2, IMAGE, lambda z: z.select(2, 1), lambda z: maps(z[:, :, 1])),
    "new dimension": (CONV1, SEQUENCE, lambda z: z[:, None], maps),
    "unsqueezed": (CONV1, SEQUENCE, lambda z: z.unsqueeze(-1), maps),
    "squeezed": (CONV1, (5, 3, 3), lambda z: z.squeeze(-1), lambda z: z[..., 0]),
    "stacked": (CONV1, SEQUENCE, lambda z: torch.stack([z, z + 1]), lambda z: maps(torch.cat([z, z + 1]))),
    "stacked last": (CONV1, SEQUENCE, lambda z: torch.stack([z, z], -1), lambda z: maps(torch.cat([z, z]))),
    "pooled": (CONV2, IMAGE, lambda z: F.max_pool2d(z, 2), lambda z: maps(F.max_pool2d(z, 2))),
    "pooled, then permuted": (
        *(CONV2, IMAGE, lambda z: F.avg_pool2d(z, 2).permute(0, 2, 3, 1)),
        lambda z: maps(F.avg_pool2d(z, 2)),
    ),
    "global mean": (CONV2, IMAGE, lambda z: z.mean((2, 3)), lambda z: z.mean((2, 3))),
    "mean over time": (CONV1, SEQUENCE, lambda z: z.mean(dim=-1), lambda z: z.mean(-1)),
    "maximum over time": (CONV1, SEQUENCE, lambda z: z.max(2).values, lambda z: z.max(2).values),
    "interpolated": (
        *(CONV2, IMAGE, lambda z: F.interpolate(z, scale_factor=2)),
        lambda z: maps(F.interpolate(z, scale_factor=2)),
    ),
    "padded": (CONV2, IMAGE, lambda z: F.pad(z, (1, 1)), lambda z: maps(F.pad(z, (1, 1)))),
    "residual": (CONV2, (5, 3, 6, 6), lambda z: z + z.flip(0) * 0.5, lambda z: maps(z + z.flip(0) * 0.5)),
    "grouped": (GROUPED, IMAGE, lambda z: z.permute(0, 2, 3, 1), maps),
    "tokens of a linear layer": (LINEAR, TOKENS, lambda z: z, tokens),
    "linear on images": (LINEAR, IMAGE, lambda z: z, tokens),
    "linear, channels first": (LINEAR, IMAGE, lambda z: z.permute(0, 3, 1, 2), tokens),
    "heads": (LINEAR, TOKENS, lambda z: z.view(5, 4, 2, 2).transpose(1, 2), tokens),
    "heads, and back": (
        LINEAR,
        TOKENS,
        lambda z: z.view(5, 4, 2, 2).transpose(1, 2).transpose(1, 2).flatten(2),
        tokens,
    ),
    "one token": (LINEAR, TOKENS, lambda z: z[:, 0], lambda z: z[:, 0]),
    "tokens chosen": (LINEAR, TOKENS, lambda z: z[torch.tensor([0, 3])], lambda z: tokens(z[[0, 3]])),
    "masked tokens": (
        *(LINEAR, TOKENS, lambda z: z[torch.arange(20).reshape(5, 4) % 3 > 0]),
        lambda z: z[torch.arange(20).reshape(5, 4) % 3 > 0],
    ),
    "time first": (LINEAR, TOKENS, lambda z: z.transpose(0, 1), tokens),
    "folded batch": (LINEAR, TOKENS, lambda z: z.reshape(20, 4), tokens),
}


@pytest.mark.parametrize("spelling", ["tanh", "sin"])
@pytest.mark.parametrize("name", MOVES)
@pytest.mark.filterwarnings("error::UserWarning")
def test_units_are_followed_through_what_moves_them(name, spelling):
    make, shape, move, arrange = MOVES[name]
    torch.manual_seed(0)
    model, x = Moved(make(), move, getattr(torch, spelling)), torch.randn(shape)
    with torch.no_grad():
        z = model.layer(x)
        expected = arrange(z).double()
    (layer,) = unit_statistics(model, x).layers.values()
    assert (layer.samples, layer.units) == tuple(expected.shape)
    torch.testing.assert_close(layer.mean, expected.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(layer.std, expected.std(0, correction=0), rtol=2e-5, atol=1e-6)


@given(st.permutations(range(4)), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4))
def test_units_are_followed_through_any_permutation_and_flattening(order, n, h, w, channels):
    torch.manual_seed(0)
    layer, x = nn.Conv2d(2, channels, 1), torch.randn(n, 2, h, w)
    at = order.index(1)
    for move in (lambda z: z.permute(*order), lambda z: z.permute(*order).flatten(0, at), lambda z: z.flatten(2)):
        (found,) = unit_statistics(Moved(layer, move), x).layers.values()
        expected = maps(layer(x).detach()).double()
        assert (found.samples, found.units) == tuple(expected.shape)
        torch.testing.assert_close(found.mean, expected.mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_a_transformer_of_torch_has_the_units_of_its_feed_forward_layers():
    layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)
    found = unit_statistics(nn.TransformerEncoder(layer, 2), torch.randn(5, 7, 6))
    assert [(each.nonlinearity, each.units, each.samples) for each in found.layers.values()] == [("relu", 8, 35)] * 2


# Formulas by their values


def test_functions_without_a_name_have_none_and_linear_ones_are_told():
    assert name_of(lambda z: 3 * z, CPU) == "linear"
    for function in (
        torch.square,
        torch.abs,
        torch.exp,
        torch.sign,
        lambda z: z.clamp(-3, 2),
        lambda z: z.clamp(min=1),
    ):
        assert name_of(function, CPU) is None
    assert name_of(lambda z: torch.log(z), CPU) is None


# A network that grows


def test_layers_that_grew_have_no_shift_and_are_named():
    torch.manual_seed(0)
    small = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    large = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 2))
    large[0].load_state_dict(small[0].state_dict())
    before = unit_statistics(small, batch())
    with pytest.warns(UserWarning, match="no shift for layers of another size.*: 3"):
        found = unit_statistics(large, batch(), before)
    assert found.layers["1"].preactivation_shift == 0.0
    assert found.layers["1"].sign_entropy_ratio == 1.0
    assert math.isnan(found.layers["3"].preactivation_shift)
    assert math.isnan(found.layers["3"].sign_entropy_ratio)
    assert found.total.preactivation_shift == found.total.preactivation_shift_p95 == 0.0
    assert found.total.sign_entropy_ratio == 1.0
    assert found.layers["3"].units == 9
    deeper = nn.Sequential(*small[:4], nn.Linear(5, 5), nn.ReLU())
    with pytest.warns(UserWarning, match=": 5"):
        assert unit_statistics(deeper, batch(), before).total.mean_shift == 0.0
    only = nn.Sequential(nn.Linear(3, 7), nn.ReLU())
    with pytest.warns(UserWarning, match=": 1"):
        assert "mean_shift" not in unit_statistics(only, batch(), before).scalars()
    with pytest.raises(UserError, match="NaN"):
        unit_statistics(small, batch(), {name: moments * math.inf for name, moments in before.moments.items()})


def test_a_layer_that_is_gone_is_no_matter():
    small = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.ReLU())
    before = unit_statistics(small, batch())
    assert unit_statistics(small[:2], batch(), before).total.mean_shift == 0.0
