"""The learning curve against hand-written loops, and the loss against what the criterion gives for a whole epoch."""

import copy
import functools
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from avalanche.benchmarks import benchmark_from_datasets, split_online_stream
from avalanche.benchmarks.utils import AvalancheDataset, as_classification_dataset
from avalanche.evaluation.metric_results import MetricValue
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import BaseLogger
from avalanche.training import Naive, OnlineNaive
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from torch import nn
from torch.utils.data import TensorDataset

from plasticity_cl.errors import UserError
from plasticity_cl.metrics import (
    Accuracy,
    BoundedR2,
    ExperienceScore,
    LearningCurveMetric,
    SeparationMetric,
    plasticity_metrics,
)
from plasticity_cl.training import SupervisedTemplate

AREA, STEPS, LOSS = (
    f"{name}/train"
    for name in ("plasticity/area_under_learning_curve", "plasticity/steps_to_threshold", "loss/task_loss")
)
CURVE = "learning_curve/score/train"
BOTH = pytest.mark.parametrize("template", [Naive, SupervisedTemplate])


class Recorder(BaseLogger):
    """Keeps every value in the order of its coming."""

    def __init__(self):
        super().__init__()
        self.values = []

    def log_metrics(self, metric_values):
        for value in metric_values:
            assert isinstance(value, MetricValue)
            self.values.append((value.name, value.x_plot, value.value))

    def of(self, name):
        return {x: value for of, x, value in self.values if of == name}


def data(n, seed, classes=4):
    random = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (n,), generator=random)
    x = torch.randn(n, 6, generator=random) + 2 * F.one_hot(y, 6).float()
    return x, y


def stream_of(*pairs):
    sets = []
    for x, y in pairs:
        inner = TensorDataset(x, y)
        if y.is_floating_point() or y.dim() > 1:
            sets.append(AvalancheDataset([inner]))
        else:
            inner.targets = y.tolist()
            sets.append(as_classification_dataset(inner))
    return benchmark_from_datasets(train=sets, test=sets)


def network(outputs=4):
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, outputs))


def strategy(metrics, model=None, template=SupervisedTemplate, epochs=3, lr=0.1, logger=None, **options):
    model = network() if model is None else model
    evaluator = EvaluationPlugin(*metrics, loggers=[logger] if logger else [], collect_all=False)
    options = {"criterion": nn.CrossEntropyLoss(), **options}
    if template is not OnlineNaive:
        options["train_epochs"] = epochs
    return template(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=lr),
        train_mb_size=16,
        eval_mb_size=16,
        evaluator=evaluator,
        **options,
    )


def train(cl, stream):
    for experience in stream:
        torch.manual_seed(5)
        cl.train(experience, eval_streams=[])
    return cl


@BOTH
def test_each_epoch_gives_its_score_on_an_axis_of_all_epochs(template):
    stream = stream_of(data(70, 0), data(50, 1)).train_stream
    ours, theirs = Recorder(), accuracy_metrics(epoch=True)[0]
    curves, metric = [], LearningCurveMetric()
    cl = strategy([metric, theirs], template=template, logger=ours)
    for experience in stream:
        train(cl, [experience])
        curves += metric.result()
    accuracies = [value for name, _, value in ours.values if name.startswith("Top1_Acc_Epoch")]
    assert list(ours.of(CURVE)) == [1, 2, 3, 4, 5, 6]
    assert list(ours.of(CURVE).values()) == curves == pytest.approx(accuracies)
    assert ours.of(AREA) == {0: pytest.approx(sum(curves[:3]) / 3), 1: pytest.approx(sum(curves[3:]) / 3)}


def test_a_threshold_that_is_not_reached_gives_no_steps():
    logger = Recorder()
    train(strategy([LearningCurveMetric(1.0)], lr=1e-6, logger=logger), stream_of(data(70, 0)).train_stream)
    assert logger.of(AREA)
    assert not logger.of(STEPS)
    assert not any(math.isnan(value) for _, _, value in logger.values)


WEIGHTS = torch.tensor([0.1, 1.0, 5.0, 0.5])
IGNORING = torch.tensor([0, 1, -100, 3, 2, 2, 2])
MEANS = {
    "cross-entropy": nn.CrossEntropyLoss(),
    "weights of classes": nn.CrossEntropyLoss(weight=WEIGHTS),
    "weights and smoothing": nn.CrossEntropyLoss(weight=WEIGHTS, label_smoothing=0.2),
    "weights, as a function": functools.partial(F.cross_entropy, weight=WEIGHTS),
    "an ignored class": nn.CrossEntropyLoss(weight=WEIGHTS, ignore_index=2),
}


@BOTH
@pytest.mark.parametrize("name", MEANS)
@pytest.mark.parametrize("ignored", [False, True])
def test_the_loss_is_what_the_criterion_gives_for_the_whole_epoch(template, name, ignored):
    criterion, (x, y) = MEANS[name], data(70, 0)
    passed_over = getattr(criterion, "ignore_index", -100)
    if ignored:
        y = y.clone()
        y[:9], y[20:23] = passed_over, passed_over
    logger = Recorder()
    cl = strategy([LearningCurveMetric()], template=template, lr=0.0, logger=logger, criterion=criterion)
    stream = benchmark_from_datasets(train=[AvalancheDataset([TensorDataset(x, y)])], test=[]).train_stream
    train(cl, stream)
    assert logger.of(LOSS)[0] == pytest.approx(float(criterion(network()(x), y)), rel=1e-5)
    kept = y != passed_over
    assert logger.of(CURVE)[1] == pytest.approx(float((network()(x).argmax(1) == y)[kept].float().mean()))


def test_the_loss_of_every_pixel():
    class Pixels(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(1, 4, 3, padding=1)

        def forward(self, x):
            return self.layer(x)

    torch.manual_seed(0)
    model, x, y = Pixels(), torch.randn(40, 1, 5, 4), torch.randint(4, (40, 5, 4))
    y[:7] = -100
    criterion, logger = nn.CrossEntropyLoss(weight=WEIGHTS), Recorder()
    expected = float(criterion(model(x), y)), float((model(x).argmax(1) == y)[y != -100].float().mean())
    train(
        strategy([LearningCurveMetric()], model, lr=0.0, logger=logger, criterion=criterion),
        stream_of((x, y)).train_stream,
    )
    assert logger.of(LOSS)[0] == pytest.approx(expected[0], rel=1e-5)
    assert logger.of(CURVE)[1] == pytest.approx(expected[1])


@BOTH
@pytest.mark.parametrize(
    ("criterion", "of_whole"),
    [
        (nn.CrossEntropyLoss(reduction="sum"), lambda loss: loss / 70),
        (nn.MSELoss(), lambda loss: loss),
        (nn.BCEWithLogitsLoss(pos_weight=torch.tensor([2.0])), lambda loss: loss),
    ],
)
def test_the_loss_of_other_criteria(template, criterion, of_whole):
    x, y = data(70, 0)
    target = y if isinstance(criterion, nn.CrossEntropyLoss) else (y[:, None] > 1).float()
    logger, outputs = Recorder(), 4 if isinstance(criterion, nn.CrossEntropyLoss) else 1
    cl = strategy(
        [LearningCurveMetric()], network(outputs), template, lr=0.0, logger=logger, criterion=criterion, epochs=1
    )
    train(cl, stream_of((x, target)).train_stream)
    assert logger.of(LOSS)[0] == pytest.approx(float(of_whole(criterion(network(outputs)(x), target))), rel=1e-5)


class Counting(nn.Module):
    """Draws random numbers and counts its calls."""

    def __init__(self):
        super().__init__()
        self.calls = 0
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, output, target):
        self.calls += 1
        self.mean += 0.1 * output.detach().mean()
        return F.cross_entropy(output, target) * (1 + 0.1 * torch.rand(())) + self.mean


class Penalty(SupervisedPlugin):
    def before_backward(self, strategy, **_):
        strategy.loss += 100 * sum(p.square().sum() for p in strategy.model.parameters())


@BOTH
@pytest.mark.parametrize("as_object", [False, True])
def test_a_criterion_with_a_state_is_called_as_often_as_without_the_metric(template, as_object):
    stream = stream_of(data(70, 0)).train_stream
    results = []
    for metrics in ([], [LearningCurveMetric()]):
        inner = Counting()
        criterion = (lambda output, target, inner=inner: inner(output, target)) if as_object else inner
        heard = []
        logger = Recorder()
        cl = strategy(metrics, template=template, criterion=criterion, logger=logger, lr=1e-3, plugins=[Penalty()])
        kept = type(cl).criterion

        def criterion_of(self, kept=kept, heard=heard):
            loss = kept(self)
            heard.append(float(loss.detach()))
            return loss

        cl.__class__ = type("Heard", (type(cl),), {"criterion": criterion_of})
        train(cl, stream)
        assert "criterion" not in vars(cl)
        results.append((inner.calls, float(inner.mean), *map(float, cl.model[0].weight.detach().flatten())))
    assert results[0] == results[1]
    sizes = [16] * 4 + [6]
    expected = sum(loss * size for loss, size in zip(heard[-5:], sizes, strict=True)) / 70
    assert logger.of(LOSS)[0] == pytest.approx(expected, rel=1e-5), "no penalty in it"


def test_a_strategy_that_takes_its_loss_elsewhere_has_a_curve_and_no_loss():
    class Elsewhere(Naive):
        def training_epoch(self, **options):
            for batch in self.dataloader:
                self.mbatch = batch
                self._unpack_minibatch()
                self.optimizer.zero_grad()
                self.mb_output = self.forward()
                self.loss = F.cross_entropy(self.mb_output, self.mb_y)
                self.backward()
                self.optimizer_step()
                self._after_training_iteration(**options)

    logger = Recorder()
    with pytest.warns(UserWarning, match="LearningCurveMetric: no value .*: Elsewhere does not take its loss from"):
        train(strategy([LearningCurveMetric()], template=Elsewhere, logger=logger), stream_of(data(70, 0)).train_stream)
    assert logger.of(AREA)
    assert not logger.of(LOSS)


@pytest.mark.parametrize("size", [10, 16])
def test_the_curve_of_an_online_stream_is_that_of_the_whole_experience(size):
    logger, metric, seen = Recorder(), LearningCurveMetric(0.0), []

    class Noting(SupervisedPlugin):
        def after_training_iteration(self, strategy, **_):
            hits = strategy.mb_output.argmax(1) == strategy.mb_y
            seen.append((float(hits.float().mean()), float(strategy.loss.detach()), len(hits)))

    cl = strategy([metric], template=OnlineNaive, logger=logger, plugins=[Noting()])
    stream = stream_of(data(40, 0), data(40, 1)).train_stream
    train(cl, split_online_stream(stream, experience_size=size))
    parts = -(-40 // size)
    assert list(logger.of(CURVE)) == list(range(1, 2 * parts + 1))
    for k in range(2):
        own = seen[k * parts : (k + 1) * parts]
        assert logger.of(AREA)[k] == pytest.approx(sum(score for score, _, _ in own) / parts)
        assert logger.of(LOSS)[k] == pytest.approx(sum(loss * n for _, loss, n in own) / 40, rel=1e-5)
        assert logger.of(STEPS)[k] == 1
    assert set(logger.of(AREA)) == {0, 1}


def test_two_strategies_and_a_second_pass_have_curves_of_their_own():
    stream = stream_of(data(40, 0), data(40, 1)).train_stream
    alone = []
    for seed in (0, 1):
        metric = LearningCurveMetric()
        torch.manual_seed(seed)
        model = nn.Linear(6, 4)
        alone.append([train(strategy([metric], model), [experience]) and metric.result() for experience in stream])
    shared, both = LearningCurveMetric(), []
    for seed in (0, 1):
        torch.manual_seed(seed)
        both.append(strategy([shared], nn.Linear(6, 4)))
    for k, experience in enumerate(stream):
        for cl, expected in zip(both, alone, strict=True):
            train(cl, [experience])
            assert shared.result() == expected[k]
    logger, metric = Recorder(), LearningCurveMetric()
    cl = strategy([metric], logger=logger)
    train(cl, [stream[0], stream[0]])
    assert list(logger.of(CURVE)) == [1, 2, 3, 4, 5, 6]
    assert len(metric.result()) == 3


def test_a_copied_strategy_goes_on_with_its_own_curve():
    stream = stream_of(data(40, 0), data(40, 1)).train_stream
    metric = LearningCurveMetric()
    cl = train(strategy([metric]), stream[:1])
    first = metric.result()
    twin = copy.deepcopy(cl)
    train(twin, stream[1:])
    assert metric.result() == first
    assert len(twin.evaluator.metrics[0].result()) == 3


@BOTH
def test_regression_has_a_bounded_score_and_constant_targets_none(template):
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    stream = stream_of((x, x[:, :1] + 100), (x, torch.full((40, 1), 3.3))).train_stream
    logger, separation = Recorder(), SeparationMetric()
    cl = strategy(
        [LearningCurveMetric(), separation], network(1), template, logger=logger, criterion=nn.MSELoss(), lr=1e-4
    )
    for k, experience in enumerate(stream):
        train(cl, [experience])
        cl.eval(stream[k : k + 1])
    assert 0 < logger.of(AREA)[0] < 0.5
    assert set(logger.of(AREA)) == {0}
    assert set(logger.of(CURVE)) == {1, 2, 3}
    assert set(logger.of(LOSS)) == {0, 1}
    score = BoundedR2()
    score.update(cl.model(x).detach(), x[:, :1] + 100)
    cl.eval(stream[:1])
    assert separation.result()["train"].final[0] == pytest.approx(score.result(), rel=1e-5)
    assert math.isnan(separation.result()["train"].learned[1])


@BOTH
def test_classes_without_a_defined_score_are_named_once_by_each_metric_and_the_loss_stays(template):
    x, y = data(70, 0)
    stream = stream_of((x, y.bool()[:, None].float()), (x, y.bool()[:, None].float())).train_stream
    logger, separation = Recorder(), SeparationMetric()
    score = ExperienceScore()
    curve = LearningCurveMetric()

    def somebodys(output, target):
        return F.softplus(-(2 * target - 1) * output).mean()

    cl = strategy([curve, separation, score], network(1), template, logger=logger, criterion=somebodys)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        for k, experience in enumerate(stream):
            train(cl, [experience])
            cl.eval(stream[k : k + 1])
    said = [str(w.message) for w in caught if "no score is defined for the criterion somebodys" in str(w.message)]
    assert 2 <= len(said) <= 3
    assert all("score='bounded-r2'" in message for message in said)
    assert set(logger.of(LOSS)) == {0, 1}
    assert not logger.of(AREA)
    assert curve.result() == []
    assert math.isnan(score.result())
    named = Recorder()
    metrics = plasticity_metrics(score=lambda: Accuracy(threshold=0.0))
    cl = strategy(metrics, network(1), template, logger=named, criterion=somebodys)
    train(cl, stream[:1])
    cl.eval(stream[:1])
    expected = float(((cl.model(x) > 0) == (y.bool()[:, None])).float().mean())
    assert metrics[0].result()["train"].learned[0] == pytest.approx(expected)
    assert 0.5 < named.of(AREA)[0] <= 1


def test_a_score_that_fails_later_leaves_no_old_one():
    class Failing(Accuracy):
        def update(self, output, target):
            if failing:
                raise RuntimeError("no more")
            super().update(output, target)

    failing = False
    stream = stream_of(data(40, 0), data(40, 1)).train_stream
    curve, score, logger = LearningCurveMetric(score=Failing), ExperienceScore(Failing), Recorder()
    cl = strategy([curve, score], logger=logger)
    train(cl, stream[:1])
    cl.eval(stream[:1])
    assert len(curve.result()) == 3
    assert score.result() > 0
    failing = True
    with pytest.warns(UserWarning, match="LearningCurveMetric: no value .*RuntimeError: no more"):
        train(cl, stream[1:])
    with pytest.warns(UserWarning, match="ExperienceScore: no value .*RuntimeError: no more"):
        cl.eval(stream[1:])
    assert curve.result() == []
    assert math.isnan(score.result())
    assert set(logger.of(AREA)) == {0}
    failing = False
    train(cl, stream[1:])
    cl.eval(stream[1:])
    assert len(curve.result()) == 3
    assert score.result() > 0


@BOTH
def test_a_loss_that_is_not_a_number_is_told_as_it_is(template):
    def lost(output, target):
        return F.cross_entropy(output, target) * float("nan")

    logger = Recorder()
    train(
        strategy([LearningCurveMetric()], template=template, logger=logger, criterion=lost),
        stream_of(data(40, 0)).train_stream,
    )
    assert math.isnan(logger.of(LOSS)[0])


def test_a_loader_that_gives_nothing_gives_no_value():
    class Nothing(Naive):
        def make_train_dataloader(self, **options):
            super().make_train_dataloader(**options)
            if self.clock.train_exp_counter == 1:
                self.dataloader = []

    metric, logger = LearningCurveMetric(), Recorder()
    cl = strategy([metric], template=Nothing, logger=logger)
    stream = stream_of(data(40, 0), data(40, 1)).train_stream
    train(cl, stream[:1])
    assert len(metric.result()) == 3
    before = len(logger.values)
    train(cl, stream[1:])
    assert metric.result() == []
    assert len(logger.values) == before


@pytest.mark.parametrize("make", [plasticity_metrics, LearningCurveMetric, ExperienceScore, SeparationMetric])
@pytest.mark.parametrize(
    ("score", "message"), [("acuracy", "did you mean accuracy"), (3, "score must be one of"), ("r3", "did you mean r2")]
)
def test_unknown_scores_are_refused_at_once(make, score, message):
    with pytest.raises(UserError, match=message):
        make(score=score)


def test_thresholds():
    with pytest.raises(UserError, match="threshold is nan"):
        LearningCurveMetric(math.nan)
    LearningCurveMetric(5.0, score=Accuracy)
