"""The separation and the scores it is made of, against exact identities and dense formulas."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from plasticity_cl.errors import UserError
from plasticity_cl.metrics import R2, Accuracy, separate

any_score = st.floats(-1e12, 1.0)
accuracy = st.floats(0.0, 1.0)


def triples(elements):
    return st.integers(1, 6).flatmap(
        lambda size: st.tuples(*[arrays(np.float64, size, elements=elements) for _ in range(3)])
    )


@given(triples(any_score))
def test_total_is_plasticity_loss_plus_forgetting_to_the_last_bit(scores):
    result = separate(*scores)
    assert np.array_equal(result.total, result.plasticity_loss + result.forgetting)
    assert np.array_equal(result.total, result.fresh - result.final)
    assert np.array_equal(result.plasticity_loss, result.fresh - result.learned)
    assert np.array_equal(result.forgetting, result.learned - result.final)


@given(triples(accuracy))
def test_rounding_moves_an_accuracy_by_less_than_any_data_set_could(scores):
    result = separate(*scores)
    for given_, returned in zip(scores, (result.learned, result.final, result.fresh), strict=True):
        assert np.abs(given_ - returned).max() <= 2.0**-33


@given(triples(accuracy), st.integers(-(2**31), 2**31).map(lambda i: i * 2.0**-32))
def test_adding_a_constant_to_all_scores_changes_nothing(scores, shift):
    plain, shifted = separate(*scores), separate(*(score + shift for score in scores))
    for name in ("plasticity_loss", "forgetting", "total"):
        assert np.abs(getattr(plain, name) - getattr(shifted, name)).max() <= 2.0**-31


@given(triples(accuracy))
def test_accuracies_give_values_within_bounds(scores):
    result = separate(*scores)
    for values in (result.plasticity_loss, result.forgetting, result.total):
        assert values.min() >= -1
        assert values.max() <= 1


@given(triples(accuracy), st.randoms(use_true_random=False))
def test_order_of_experiences_does_not_matter(scores, random):
    order = list(range(len(scores[0])))
    random.shuffle(order)
    plain, moved = separate(*scores), separate(*(score[order] for score in scores))
    assert np.array_equal(plain.plasticity_loss[order], moved.plasticity_loss)
    assert np.array_equal(plain.forgetting[order], moved.forgetting)


def test_a_missing_score_is_missing_only_where_it_is_needed():
    result = separate([0.9, 0.5], [float("nan"), 0.5], [1.0, float("nan")])
    assert result.plasticity_loss[0] == pytest.approx(0.1)
    assert np.isnan(result.forgetting[0])
    assert result.forgetting[1] == 0
    assert np.isnan(result.plasticity_loss[1])


@pytest.mark.parametrize("scores", [([1.0], [1.0, 0.5], [1.0]), ([[1.0]], [[1.0]], [[1.0]]), (1.0, 1.0, 1.0)])
def test_wrong_shapes_are_named(scores):
    with pytest.raises(UserError, match="learned, final and fresh have shapes"):
        separate(*scores)


@given(
    st.integers(1, 40),
    st.integers(1, 3),
    st.sampled_from([0.0, 100.0, -1e6]),
    st.lists(st.integers(1, 7), min_size=1, max_size=8),
    st.integers(0, 2**20),
)
def test_r2_of_batches_is_r2_of_the_data_set(n, outputs, mean, cuts, seed):
    random = torch.Generator().manual_seed(seed)
    n = n + 1
    target = mean + torch.randn(n, outputs, generator=random, dtype=torch.float64)
    output = target + 0.3 * torch.randn(n, outputs, generator=random, dtype=torch.float64)
    score, start = R2(), 0
    for i in range(n):
        size = cuts[i % len(cuts)]
        if start < n:
            score.update(output[start : start + size], target[start : start + size])
        start += size
    expected = 1 - (output - target).square().sum() / (target - target.mean(0)).square().sum()
    assert score.result() == pytest.approx(float(expected), rel=1e-6, abs=1e-6)


def test_r2_is_not_the_mean_of_the_batches_r2():
    target, output = torch.tensor([[0.0], [1.0], [10.0], [11.0]]), torch.tensor([[0.5], [0.5], [10.5], [10.5]])
    score = R2()
    score.update(output[:2], target[:2])
    score.update(output[2:], target[2:])
    assert score.result() == pytest.approx(1 - 1 / 101)


def test_r2_of_constant_targets_is_undefined_and_of_a_wrong_shape_refused():
    score = R2()
    score.update(torch.ones(3, 1), torch.ones(3, 1))
    assert np.isnan(score.result())
    with pytest.raises(UserError, match=r"\(3, 5\) for targets of shape \(3, 1\)"):
        R2().update(torch.ones(3, 5), torch.ones(3, 1))


@given(st.integers(1, 50), st.integers(2, 5), st.integers(1, 9), st.integers(0, 2**20))
def test_accuracy_is_the_share_of_correct_samples(n, classes, batch, seed):
    random = torch.Generator().manual_seed(seed)
    output = torch.randn(n, classes, generator=random)
    target = torch.randint(classes, (n,), generator=random)
    score = Accuracy()
    for o, t in zip(output.split(batch), target.split(batch), strict=True):
        score.update(o, t)
    assert score.result() == sum(int(o.argmax()) == int(t) for o, t in zip(output, target, strict=True)) / n
