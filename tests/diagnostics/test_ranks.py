"""Ranks of features against hand-written formulas, their invariances, and the penultimate features of networks."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from plasticity_cl.diagnostics.ranks import (
    effective_rank,
    feature_rank,
    participation_ratio,
    penultimate_features,
    srank,
    stable_rank,
    top_singular_share,
)
from plasticity_cl.errors import UserError

MEASURES = (effective_rank, srank, stable_rank, participation_ratio, top_singular_share)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def orthogonal(size, seed=0):
    return torch.linalg.qr(normal(size, size, seed=seed))[0]


def with_spectrum(sigma, n, d, seed=0):
    middle = torch.zeros(n, d, dtype=torch.float64)
    for i, value in enumerate(sigma):
        middle[i, i] = value
    return orthogonal(n, seed) @ middle @ orthogonal(d, seed + 1)


def oracle(features, delta=0.01):
    """Every measure, spelt out with NumPy."""
    matrix = features.double().numpy()
    sigma = np.linalg.svd(matrix, compute_uv=False)
    p = sigma / sigma.sum()
    kept, k = 0.0, 0
    while kept < (1 - delta) * sigma.sum() * (1 - 1e-12):
        kept, k = kept + sigma[k], k + 1
    eigenvalues = np.linalg.eigvalsh(np.cov(matrix, rowvar=False)) if len(matrix) > 1 else np.zeros(1)
    return {
        "effective_rank": math.exp(-sum(q * math.log(q) for q in p if q > 0)),
        "srank": k,
        "stable_rank": (sigma**2).sum() / sigma[0] ** 2,
        "participation_ratio": eigenvalues.sum() ** 2 / (eigenvalues**2).sum() if eigenvalues.any() else 0.0,
        "top_singular_share": sigma[0] / sigma.sum(),
    }


seeds = st.integers(0, 2**31)
sizes = st.integers(2, 12)
kinds = st.sampled_from(["normal", "relu", "offset", "decay", "low_rank"])


def matrix_of(kind, n, d, seed):
    values = normal(n, d, seed=seed)
    match kind:
        case "relu":
            return values.relu() + 1e-3 * normal(n, d, seed=seed + 1)
        case "offset":
            return values + 100
        case "decay":
            return values * torch.logspace(0, -6, d, dtype=torch.float64)
        case "low_rank":
            return normal(n, 2, seed=seed) @ normal(2, d, seed=seed + 1)
    return values


@given(kinds, sizes, sizes, seeds, st.sampled_from([0.0, 0.01, 0.1, 0.5]))
def test_every_measure_equals_its_formula(kind, n, d, seed, delta):
    features = matrix_of(kind, n, d, seed)
    expected = oracle(features, delta)
    # With delta 0 a low-rank matrix's rounding decides; the formula is then as arbitrary as ours.
    names = [name for name in expected if name != "srank" or delta or kind != "low_rank"]
    found = feature_rank(features, delta).scalars()
    for name in names:
        assert found[name] == pytest.approx(expected[name], rel=1e-6), name
    single = {measure.__name__: measure(features) for measure in MEASURES if measure is not srank}
    assert single | {"srank": srank(features, delta)} == pytest.approx(found)


@given(kinds, sizes, sizes, seeds)
def test_bounds(kind, n, d, seed):
    features = matrix_of(kind, n, d, seed)
    found = feature_rank(features)
    smallest = min(n, d) + 1e-9
    assert 1 - 1e-9 <= found.effective_rank <= smallest
    assert 1 <= found.srank <= smallest
    assert 1 <= found.stable_rank <= found.effective_rank**2 + 1e-9
    assert found.stable_rank <= smallest
    assert 1 - 1e-9 <= found.participation_ratio <= min(n - 1, d) + 1e-9
    assert 1 / smallest <= found.top_singular_share <= 1
    assert len(found.singular_values) == min(n, d)


@given(kinds, sizes, sizes, seeds, st.floats(-30, 30))
def test_scale_rotation_and_order_do_not_matter(kind, n, d, seed, exponent):
    features = matrix_of(kind, n, d, seed)
    expected = feature_rank(features).scalars()
    for other in (
        features * 10**exponent,
        -features,
        features @ orthogonal(d, seed),
        features.flip(0),
        features.flip(1),
    ):
        assert feature_rank(other).scalars() == pytest.approx(expected, rel=1e-6)


@given(sizes, sizes, seeds)
def test_a_mean_moves_all_but_the_participation_ratio(n, d, seed):
    features, mean = normal(n, d, seed=seed), 1e3 * normal(d, seed=seed + 1)
    assert participation_ratio(features + mean) == pytest.approx(participation_ratio(features), rel=1e-6)
    assert top_singular_share(features + mean) > top_singular_share(features)
    assert top_singular_share(features + 1e6 * mean) > 0.999


def test_known_spectra():
    features = with_spectrum([4.0, 3.0, 2.0, 1.0], 20, 30)
    found = feature_rank(features)
    torch.testing.assert_close(found.singular_values[:4], torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64))
    entropy = -sum(p * math.log(p) for p in (0.4, 0.3, 0.2, 0.1))
    assert found.effective_rank == pytest.approx(math.exp(entropy))
    assert found.stable_rank == pytest.approx(30 / 16)
    assert found.top_singular_share == pytest.approx(0.4)
    assert [srank(features, delta) for delta in (0.01, 0.1, 0.11, 0.3, 0.35, 0.6, 0.7)] == [4, 3, 3, 2, 2, 1, 1]
    assert srank(torch.eye(100), 0.01) == 99
    assert srank(orthogonal(100) * 1e-3, 0.01) == 99
    for measure in MEASURES[:3]:
        assert measure(torch.eye(6)) == pytest.approx(6)
        assert measure(torch.outer(torch.arange(1.0, 5), torch.arange(1.0, 8))) == pytest.approx(1, abs=1e-5)


def test_small_singular_values_are_not_lost():
    sigma = [1.0, *[1e-9] * 200]
    features = with_spectrum(sigma, 400, 250)
    total = sum(sigma)
    expected = math.exp(-sum(s / total * math.log(s / total) for s in sigma))
    # The Gram matrix's eigenvalues would be off by 1e-16, a hundred times the squares that matter here.
    assert effective_rank(features) - 1 == pytest.approx(expected - 1, rel=1e-3)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0), (4, 3), (1, 6)])
def test_nothing_has_rank_zero(shape):
    found = feature_rank(torch.zeros(shape))
    assert set(found.scalars().values()) == {0.0}
    assert [measure(torch.zeros(shape)) for measure in MEASURES] == [0] * 5
    assert found.singular_values.tolist() == [0.0] * min(shape)


def test_one_sample_and_constant_features():
    one = feature_rank(normal(1, 6)).scalars()
    assert one == {"effective_rank": 1, "srank": 1, "stable_rank": 1, "participation_ratio": 0, "top_singular_share": 1}
    constant = feature_rank(torch.full((50, 7), 1 / 3)).scalars()
    assert constant == pytest.approx(one)
    assert constant["participation_ratio"] == 0.0


@pytest.mark.parametrize("scale", [1e-300, 1e-40, 1e30, 1e300])
def test_extreme_scales(scale):
    features = normal(10, 4)
    assert feature_rank(features * scale).scalars() == pytest.approx(feature_rank(features).scalars(), rel=1e-9)


@pytest.mark.parametrize("measure", [*MEASURES, feature_rank])
def test_bad_features_are_refused(measure):
    for bad in (math.nan, math.inf, -math.inf):
        features = normal(4, 3)
        features[1, 2] = bad
        with pytest.raises(UserError, match="NaN or infinities"):
            measure(features)
    with pytest.raises(UserError, match=r"\[2, 3, 4\]"):
        measure(torch.zeros(2, 3, 4))


@pytest.mark.parametrize("delta", [-0.1, 1.0, 99])
def test_a_delta_that_is_no_share_is_refused(delta):
    with pytest.raises(UserError, match="delta"):
        srank(torch.eye(3), delta)


class TwoHeads(nn.Module):
    """Declares its layers in another order than it runs them."""

    def __init__(self):
        super().__init__()
        self.output, self.dropout, self.hidden = nn.Linear(5, 2), nn.Dropout(), nn.Linear(4, 5)

    def forward(self, x):
        return self.output(self.dropout(torch.relu_(self.hidden(x))))


def test_penultimate_features_go_into_the_layer_executed_last():
    model, inputs = TwoHeads().train(), normal(9, 4, dtype=torch.float32)
    features = penultimate_features(model, inputs)
    torch.testing.assert_close(features, torch.relu(model.hidden(inputs)).detach())
    assert not features.requires_grad
    assert model.training
    assert model.dropout.training
    traced = torch.fx.symbolic_trace(model)
    torch.testing.assert_close(penultimate_features(traced, inputs), features)


def test_penultimate_features_of_functions_images_and_tokens():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(normal(3, 12, dtype=torch.float32))

        def forward(self, x):
            return F.linear(x.flatten(1).tanh(), self.weight).sigmoid()

    images = normal(6, 3, 2, 2, dtype=torch.float32)
    torch.testing.assert_close(penultimate_features(Functional(), images), images.flatten(1).tanh())
    tokens = normal(2, 7, 5, dtype=torch.float32)
    torch.testing.assert_close(penultimate_features(nn.Linear(5, 3), tokens), tokens.reshape(14, 5))


def test_penultimate_features_are_a_copy():
    inputs = torch.ones(2, 4)
    penultimate_features(nn.Linear(4, 1), inputs).zero_()
    assert inputs.sum() == 8


def test_a_network_without_a_linear_layer_is_refused():
    with pytest.raises(UserError, match="no linear layer"):
        penultimate_features(nn.Conv2d(3, 4, 1), torch.zeros(2, 3, 4, 4))
