"""Scores against oracles written by hand, and which of them a criterion calls for."""

import functools
import math
import types
from collections import OrderedDict, namedtuple
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from avalanche.training.losses import ICaRLLossPlugin, MaskedCrossEntropy
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from plasticity_cl.errors import UserError
from plasticity_cl.losses import TwoHotLoss
from plasticity_cl.metrics import R2, Accuracy, BoundedR2
from plasticity_cl.metrics.scores import logits_of, predictor_for, score_for

SEEDED = torch.Generator().manual_seed(0)


def draw(*shape):
    return torch.randn(*shape, generator=SEEDED)


def in_batches(score, output, target, size=7):
    for start in range(0, len(target), size):
        score.update(output[start : start + size], target[start : start + size])
    return score.result()


def r2_by_hand(output, target):
    f, y = output.double().reshape(len(target), -1), target.double().reshape(len(target), -1)
    return float(1 - (y - f).square().sum() / (y - y.mean(0)).square().sum())


class Wrapped(nn.Module):
    def __init__(self, inner, of_output=lambda output: output, of_target=lambda target: target):
        super().__init__()
        self.inner, self.of_output, self.of_target = inner, of_output, of_target

    def forward(self, output, target):
        return self.inner(self.of_output(output), self.of_target(target))


class Smoothed(nn.CrossEntropyLoss):
    def forward(self, output, target):
        return super().forward(output, target) + 0.1 * output.logsumexp(1).mean()


class SigmoidBCE(nn.BCELoss):
    def forward(self, output, target):
        return super().forward(torch.sigmoid(output), target)


LABELS = (draw(40, 3) > 0).float()
WIDE = draw(40, 5) * 2
CLASSES = (WIDE + 3 * draw(40, 5)).argmax(1)
SOFT = torch.softmax(3 * draw(40, 5), 1)
ONE_HOT = F.one_hot(CLASSES, 5).float()
LOGITS = draw(40, 3) * 2
OF_LABELS = float(((LOGITS > 0) == (LABELS > 0.5)).float().mean())
OF_CLASSES = float((WIDE.argmax(1) == CLASSES).float().mean())
OF_SOFT = float((WIDE.argmax(1) == SOFT.argmax(1)).float().mean())
PIXELS, MASKS = draw(6, 4, 5, 3), draw(6, 4, 5, 3).flip(0).argmax(1)

DEFINED = {
    "bce": (nn.BCEWithLogitsLoss(), LOGITS, LABELS, OF_LABELS),
    "bce, one column": (
        nn.BCEWithLogitsLoss(),
        LOGITS[:, :1],
        LABELS[:, :1],
        float(((LOGITS > 0) == (LABELS > 0.5))[:, 0].float().mean()),
    ),
    "bce, flat targets": (
        nn.BCEWithLogitsLoss(),
        LOGITS[:, :1],
        LABELS[:, 0],
        float(((LOGITS > 0) == (LABELS > 0.5))[:, 0].float().mean()),
    ),
    "bce with pos_weight": (nn.BCEWithLogitsLoss(pos_weight=torch.tensor([9.0, 1.0, 0.1])), LOGITS, LABELS, OF_LABELS),
    "bce of probabilities": (nn.BCELoss(), torch.sigmoid(LOGITS), LABELS, OF_LABELS),
    "bce as a function": (F.binary_cross_entropy_with_logits, LOGITS, LABELS, OF_LABELS),
    "bce of probabilities as a function": (F.binary_cross_entropy, torch.sigmoid(LOGITS), LABELS, OF_LABELS),
    "bce, partial": (
        functools.partial(F.binary_cross_entropy_with_logits, reduction="sum"),
        LOGITS,
        LABELS,
        OF_LABELS,
    ),
    "bce wrapped": (Wrapped(nn.BCEWithLogitsLoss()), LOGITS, LABELS, OF_LABELS),
    "bce wrapped twice": (Wrapped(Wrapped(nn.BCEWithLogitsLoss())), LOGITS, LABELS, OF_LABELS),
    "bce in an object": (types.SimpleNamespace(loss=nn.BCEWithLogitsLoss()), LOGITS, LABELS, OF_LABELS),
    "bce's method": (nn.BCEWithLogitsLoss().forward, LOGITS, LABELS, OF_LABELS),
    "bce of integers": (
        Wrapped(nn.BCEWithLogitsLoss(), of_target=lambda target: target.float()),
        LOGITS[:, :1],
        LABELS[:, :1].long(),
        float(((LOGITS > 0) == (LABELS > 0.5))[:, 0].float().mean()),
    ),
    "multi-label soft margin": (nn.MultiLabelSoftMarginLoss(), LOGITS, LABELS, OF_LABELS),
    "soft margin": (nn.SoftMarginLoss(), LOGITS, 2 * LABELS - 1, OF_LABELS),
    "cross-entropy": (nn.CrossEntropyLoss(), WIDE, CLASSES, OF_CLASSES),
    "cross-entropy with label smoothing": (nn.CrossEntropyLoss(label_smoothing=0.2), WIDE, CLASSES, OF_CLASSES),
    "cross-entropy as a function": (F.cross_entropy, WIDE, CLASSES, OF_CLASSES),
    "a subclass of cross-entropy": (Smoothed(), WIDE, CLASSES, OF_CLASSES),
    "a subclass of cross-entropy, soft": (Smoothed(), WIDE, SOFT, OF_SOFT),
    "soft labels": (nn.CrossEntropyLoss(), WIDE, SOFT, OF_SOFT),
    "one-hot": (nn.CrossEntropyLoss(), WIDE, ONE_HOT, OF_CLASSES),
    "one-hot, squared": (nn.MSELoss(), WIDE, ONE_HOT, OF_CLASSES),
    "one-hot, by somebody": (lambda output, target: (output - target).square().mean(), WIDE, ONE_HOT, OF_CLASSES),
    "nll": (nn.NLLLoss(), WIDE.log_softmax(1), CLASSES, OF_CLASSES),
    "kl": (nn.KLDivLoss(reduction="batchmean"), WIDE.log_softmax(1), SOFT, OF_SOFT),
    "multi margin": (nn.MultiMarginLoss(), WIDE, CLASSES, OF_CLASSES),
    "integers squared": (
        Wrapped(nn.MSELoss(), of_target=lambda target: F.one_hot(target, 5).float()),
        WIDE,
        CLASSES,
        OF_CLASSES,
    ),
    "icarl": (ICaRLLossPlugin(), WIDE, CLASSES, OF_CLASSES),
    "masked": (MaskedCrossEntropy(), WIDE, CLASSES, OF_CLASSES),
    "by somebody": (lambda output, target: output.sum(), WIDE, CLASSES, OF_CLASSES),
    "pixels": (nn.CrossEntropyLoss(), PIXELS, MASKS, float((PIXELS.argmax(1) == MASKS).float().mean())),
}


@pytest.mark.parametrize("name", DEFINED)
def test_accuracy_where_a_criterion_is_about_classes(name):
    criterion, output, target, expected = DEFINED[name]
    score = score_for(output[:7], target[:7], criterion)
    assert isinstance(score, Accuracy)
    assert 0.1 < expected < 0.9, "neither chance nor certainty would show a fault"
    assert in_batches(score, output, target) == pytest.approx(expected, abs=1e-7)


NUMBERS = {
    "mse": nn.MSELoss(),
    "l1": nn.L1Loss(),
    "smooth l1": nn.SmoothL1Loss(),
    "huber": nn.HuberLoss(),
    "gaussian": Wrapped(nn.GaussianNLLLoss()),
    "as a function": F.mse_loss,
    "wrapped": Wrapped(nn.MSELoss()),
    "somebody's": lambda output, target: (output - target).abs().mean(),
}


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("shapes", [((40, 2), (40, 2)), ((40, 1), (40,)), ((40,), (40, 1))])
def test_bounded_r2_where_a_criterion_is_about_numbers(name, shapes):
    output, target = draw(*shapes[0]), draw(*shapes[1]).roll(1) + 3
    score = score_for(output[:7], target[:7], NUMBERS[name])
    assert type(score) is BoundedR2
    assert in_batches(score, output, target) == pytest.approx(1 / (2 - r2_by_hand(output, target)), rel=1e-12)


def test_integers_as_numbers_and_decoded_outputs():
    counts = torch.tensor([0, 1, 4, 2, 1])
    as_numbers = Wrapped(nn.MSELoss(), of_target=lambda target: target.float())
    assert type(score_for(draw(5, 1), counts, as_numbers)) is BoundedR2
    criterion = TwoHotLoss(-5, 5, 11)
    assert type(score_for(predictor_for(criterion)(draw(5, 11)), draw(5), criterion)) is BoundedR2
    logs = draw(5, 1)
    for poisson in (nn.PoissonNLLLoss(), F.poisson_nll_loss, functools.partial(F.poisson_nll_loss, full=True)):
        assert torch.equal(predictor_for(poisson)(logs), logs.exp())
    for plain in (
        nn.PoissonNLLLoss(log_input=False),
        functools.partial(F.poisson_nll_loss, log_input=False),
        nn.MSELoss(),
    ):
        assert torch.equal(predictor_for(plain)(logs), logs)


UNDEFINED = {
    "labels by somebody": (lambda output, target: output.sum(), LOGITS, LABELS),
    "one label by somebody": (lambda output, target: output.sum(), LOGITS[:, 0], LABELS[:, 0]),
    "+-1 by somebody": (lambda output, target: output.sum(), LOGITS, 2 * LABELS - 1),
    "distributions by somebody": (lambda output, target: output.sum(), WIDE, SOFT),
    "integers and one output by somebody": (lambda output, target: output.sum(), LOGITS[:, :1], LABELS[:, 0].long()),
    "probabilities made of logits": (Wrapped(nn.BCELoss(), torch.sigmoid), LOGITS, LABELS),
    "a subclass that makes probabilities of logits": (SigmoidBCE(), LOGITS, LABELS),
    "hinge": (nn.HingeEmbeddingLoss(), LOGITS, 2 * LABELS - 1),
    "multi-label margin": (nn.MultiLabelMarginLoss(), LOGITS, torch.tensor([[2, -1, 0]] * 40)),
    "two kinds at once": (
        nn.ModuleDict({"a": nn.BCEWithLogitsLoss(), "b": nn.MSELoss()}),
        LOGITS,
        LABELS,
    ),
}


@pytest.mark.parametrize("name", UNDEFINED)
def test_what_is_not_known_is_refused_in_one_line_that_says_how_to_name_it(name):
    criterion, output, target = UNDEFINED[name]
    with pytest.raises(UserError, match=r"^no score is defined for the criterion .*; name one: score=.*$"):
        score_for(output, target, criterion)
    assert type(score_for(output, target, criterion, "bounded-r2")) is BoundedR2
    assert type(score_for(output, target, criterion, "r2")) is R2
    assert score_for(output, target, criterion, lambda: Accuracy(threshold=0.0))._threshold == 0


def test_accuracy_that_is_asked_for():
    assert in_batches(score_for(WIDE, SOFT, lambda o, t: 0, "accuracy"), WIDE, SOFT) == pytest.approx(OF_SOFT)
    with pytest.raises(UserError, match="no score is defined"):
        score_for(LOGITS, LABELS, lambda o, t: 0, "accuracy")
    with pytest.raises(UserError, match="no score is defined"):
        score_for(draw(5, 1), draw(5, 1), nn.MSELoss(), "accuracy")


def test_one_output_for_classes_is_no_accuracy_of_one():
    score = score_for(draw(5, 1), torch.zeros(5, dtype=torch.long), nn.CrossEntropyLoss())
    with pytest.raises(UserError, match="do not give one class"):
        score.update(draw(5, 1), torch.zeros(5, dtype=torch.long))


def test_equally_probable_classes_are_both_right():
    target = torch.tensor([[0.5, 0.5, 0.0]] * 3)
    output = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    assert in_batches(score_for(output, target, nn.CrossEntropyLoss()), output, target) == pytest.approx(2 / 3)


@pytest.mark.parametrize("ignored", [-100, 0, 2])
@pytest.mark.parametrize(("output", "target"), [(WIDE, CLASSES), (PIXELS, MASKS)])
def test_samples_that_the_criterion_ignores_are_not_counted(ignored, output, target):
    target = target.clone()
    target[::3] = ignored
    kept = target != ignored
    score = score_for(output, target, nn.CrossEntropyLoss(ignore_index=ignored))
    assert in_batches(score, output, target, 2) == pytest.approx(
        float((output.argmax(1) == target)[kept].float().mean())
    )
    empty = Accuracy(ignore=ignored)
    empty.update(output, torch.full_like(target, ignored))
    assert math.isnan(empty.result())


def test_a_long_data_set_in_small_batches():
    output, target = draw(1000, 3), draw(1000, 4)[:, :3].argmax(1)
    expected = float((output.argmax(1) == target).double().mean())
    score = Accuracy()
    for start in range(0, 1000, 3):
        score.update(output[start : start + 3], target[start : start + 3])
        if start % 300 == 0:
            score.result()
    assert score.result() == expected


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(
        [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8]
    ),
    st.integers(1, 9),
    st.integers(1, 3),
    st.sampled_from([0.1, 3.3, 1e-30, 7.0, 100.0, 1e9]),
)
def test_constant_targets_have_no_r2_whatever_their_type(dtype, size, width, value):
    value = min(value, 100.0) if not dtype.is_floating_point or dtype == torch.float16 else value
    target = torch.full((50, width), value).to(dtype)
    for kind in (R2, BoundedR2):
        assert math.isnan(in_batches(kind(), target.double() + 1, target, size))


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 12), st.sampled_from([0.0, 1e3, 1e8, -1e12]), st.sampled_from([1.0, 1e-3, 1e3]), st.integers(0, 99)
)
def test_r2_is_that_of_exact_arithmetic_under_any_offset(size, offset, scale, seed):
    noise = torch.randn(40, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    target = noise[:20] * scale + offset
    output = target + noise[20:] * scale / 2

    columns = [[[Fraction(float(v)) for v in t[:, c]] for c in range(2)] for t in (output, target)]
    residual = spread = Fraction(0)
    for f, y in zip(*columns, strict=True):
        mean = sum(y) / len(y)
        residual += sum((a - b) ** 2 for a, b in zip(f, y, strict=True))
        spread += sum((b - mean) ** 2 for b in y)
    exact = float(1 - residual / spread)
    assert in_batches(R2(), output, target, size) == pytest.approx(exact, rel=1e-9, abs=1e-9)
    assert in_batches(BoundedR2(), output, target, size) == pytest.approx(float(spread / (spread + residual)), rel=1e-9)


def test_bounded_r2_at_its_landmarks():
    target = draw(50, 1)
    assert in_batches(BoundedR2(), target, target) == 1
    assert in_batches(BoundedR2(), target.mean().expand(50, 1), target) == pytest.approx(0.5)
    far = in_batches(BoundedR2(), target + 1e6, target)
    assert 0 < far < 1e-10
    for kind, worst in ((R2, -math.inf), (BoundedR2, 0.0)):
        assert in_batches(kind(), torch.full((50, 1), math.inf), target) == worst
        assert math.isnan(in_batches(kind(), torch.full((50, 1), math.nan), target))
        assert math.isnan(kind().result())
        kind_of_nothing = kind()
        kind_of_nothing.update(torch.empty(0, 1), torch.empty(0, 1))
        assert math.isnan(kind_of_nothing.result())


def test_r2_of_other_numbers_of_values_is_refused():
    with pytest.raises(UserError, match="decode method"):
        R2().update(draw(5, 3), draw(5, 1))


Named = namedtuple("Named", ["hidden", "logits"])


@pytest.mark.parametrize(
    "output",
    [
        LOGITS,
        (LOGITS, WIDE),
        [LOGITS, None],
        (None, LOGITS),
        {"logits": LOGITS, "hidden": WIDE},
        {"loss": None, "anything": LOGITS},
        OrderedDict(out=LOGITS, aux=WIDE),
        Named(WIDE, LOGITS),
        types.SimpleNamespace(hidden=WIDE, logits=LOGITS),
    ],
)
def test_predictions_are_found_in_what_a_network_gives(output):
    assert logits_of(output) is LOGITS


@pytest.mark.parametrize(
    ("output", "message"),
    [({"a": LOGITS, "b": WIDE}, r"\['a', 'b'\]: name its predictions 'logits'"), (None, "NoneType"), ((), "a tuple")],
)
def test_what_holds_no_predictions_is_refused(output, message):
    with pytest.raises(UserError, match=message):
        logits_of(output)
