"""The plugin metrics, against Avalanche's own metric, hand-written loops, and runs without them."""

import copy

import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics, forgetting_metrics
from avalanche.logging import BaseLogger, TensorboardLogger
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin, EWCPlugin, ReplayPlugin
from avalanche.training.templates import SupervisedTemplate as AvalancheTemplate
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from plasticity_cl.errors import UserError
from plasticity_cl.metrics import LearningCurveMetric, SeparationMetric, mechanism_metrics, plasticity_metrics
from plasticity_cl.scenarios import ClassIncremental, LabelReset, TargetShift, load_source
from plasticity_cl.strategies import L2Plugin, LayerNormPlugin, ScaleInvariantLossPlugin
from plasticity_cl.training import SupervisedTemplate

DIGITS = load_source("digits")


def network(outputs=10, dropout=0.0):
    torch.manual_seed(7)
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 32),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(32, 32),
        nn.ReLU(),
        nn.Linear(32, outputs),
    )


def strategy(template=SupervisedTemplate, model=None, metrics=(), plugins=(), loggers=(), epochs=3, **options):
    model = network() if model is None else model
    return template(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-3),
        train_mb_size=32,
        train_epochs=epochs,
        eval_mb_size=256,
        plugins=list(plugins),
        evaluator=EvaluationPlugin(*metrics, loggers=list(loggers), collect_all=False),
        **options,
    )


def train(cl, scenario):
    """The linear protocol: each experience right after training on it, everything at the end."""
    for k, experience in enumerate(scenario.train_stream):
        torch.manual_seed(k)
        cl.train(experience, eval_streams=[])
        for stream in scenario.streams.values():
            cl.eval(stream[k : k + 1])
    for stream in scenario.streams.values():
        cl.eval(stream)
    return cl


def weights(cl):
    return torch.cat([p.detach().flatten() for p in cl.model.parameters()])


class Recorder(BaseLogger):
    """Keeps every scalar."""

    def __init__(self):
        super().__init__()
        self.values = {}

    def log_single_metric(self, name, value, x_plot):
        self.values[name, x_plot] = value


def test_forgetting_is_avalanches_on_the_test_stream():
    scenario = ClassIncremental(DIGITS)
    ours, theirs = SeparationMetric(), forgetting_metrics(experience=True)[0]
    cl = strategy(Naive, metrics=[ours, theirs], epochs=12)
    for k, experience in enumerate(scenario.train_stream):
        cl.train(experience, eval_streams=[])
        cl.eval(scenario.test_stream[k : k + 1])
    cl.eval(scenario.test_stream)
    expected = theirs.result()
    forgetting = ours.result()["test"].forgetting
    assert set(expected) == {0, 1, 2, 3}
    assert max(expected.values()) > 0.5
    for k, value in expected.items():
        assert forgetting[k] == pytest.approx(value, abs=2**-31)
    assert forgetting[4] == 0


@pytest.mark.parametrize("template", [Naive, AvalancheTemplate, SupervisedTemplate])
@pytest.mark.parametrize(
    "plugins", [list, lambda: [EWCPlugin(10.0, mode="online", decay_factor=1.0)], lambda: [ReplayPlugin(64)]]
)
def test_metrics_leave_the_weights_as_they_would_be_without_them(template, plugins):
    scenario = ClassIncremental(DIGITS, n_samples=300)
    bare = train(strategy(template, network(dropout=0.3), plugins=plugins()), scenario)
    for reference in (None, {"train": [0.5] * 5, "test": [0.5] * 5}, lambda: network(dropout=0.3)):
        watched = strategy(template, network(dropout=0.3), plasticity_metrics(reference=reference), plugins())
        train(watched, scenario)
        assert torch.equal(weights(bare), weights(watched))


@pytest.mark.parametrize(
    ("make_scenario", "plugins", "outputs"),
    [
        (lambda: LabelReset(DIGITS, 3, n_samples=256), list, 10),
        (lambda: LabelReset(DIGITS, 3, n_samples=256), lambda: [LayerNormPlugin(), L2Plugin(1e-3)], 10),
        (lambda: LabelReset(DIGITS, 3, n_samples=256), lambda: [EWCPlugin(10.0, "online", 1.0)], 10),
        (lambda: TargetShift(DIGITS, 3), lambda: [ScaleInvariantLossPlugin()], 1),
    ],
)
def test_fresh_networks_of_a_factory_are_trained_as_a_run_on_the_experience_alone(make_scenario, plugins, outputs):
    scenario = make_scenario()
    criterion = {"criterion": nn.MSELoss()} if outputs == 1 else {}
    metric = SeparationMetric(reference=lambda: network(outputs))
    cl = strategy(model=network(outputs), metrics=[metric], plugins=plugins(), **criterion)
    train(cl, scenario)
    result = metric.result()
    for stream in ("train", "test"):
        assert result[stream].plasticity_loss[0] == 0, "the first experience's network is fresh itself"
    for k in (1, 2):
        alone = SeparationMetric()
        fresh = strategy(model=network(outputs), metrics=[alone], plugins=plugins(), **criterion)
        torch.manual_seed(k)
        fresh.train(scenario.train_stream[k], eval_streams=[])
        for stream in scenario.streams.values():
            fresh.eval(stream[k : k + 1])
        for stream in ("train", "test"):
            assert result[stream].fresh[k] == alone.result()[stream].learned[k]


def test_a_factory_may_give_whole_strategies_and_nothing_else():
    scenario = LabelReset(DIGITS, 2, n_samples=128)
    by_network, by_strategy = SeparationMetric(network), SeparationMetric(lambda: strategy())
    for metric in (by_network, by_strategy):
        train(strategy(metrics=[metric]), scenario)
    assert list(by_network.result()["train"].fresh) == list(by_strategy.result()["train"].fresh)
    with pytest.raises(UserError, match="must return a torch.nn.Module or an Avalanche strategy; it returned a int"):
        train(strategy(metrics=[SeparationMetric(lambda: 1)]), scenario)


def test_periodic_evaluation_gives_the_same_separation():
    scenario = ClassIncremental(DIGITS)
    results = []
    for periodic in (False, True):
        metric = SeparationMetric({"test": [1.0] * 5})
        cl = strategy(metrics=[metric], eval_every=1 if periodic else -1, epochs=12)
        for k, experience in enumerate(scenario.train_stream):
            torch.manual_seed(k)
            cl.train(experience, eval_streams=[scenario.test_stream] if periodic else [])
            if not periodic:
                cl.eval(scenario.test_stream[k : k + 1])
        cl.eval(scenario.test_stream)
        results.append(metric.result()["test"])
    # Periodic evaluation draws random numbers in mid-training, so the two runs differ; each is whole and consistent.
    for result in results:
        assert not any(v != v for v in result.total)
        assert result.forgetting[-1] == 0
        assert max(result.forgetting) > 0.3


def test_without_a_reference_the_first_experience_is_the_measure():
    logger = Recorder()
    metric = SeparationMetric()
    train(strategy(metrics=[metric], loggers=[logger]), LabelReset(DIGITS, 3, n_samples=128))
    learned = metric.result()["train"].learned
    for k in range(3):
        assert logger.values["plasticity/relative_to_first/train", k] == learned[k] - learned[0]
    assert not any("plasticity_loss" in name for name, _ in logger.values)


def test_values_reach_loggers_while_the_run_goes_on_and_are_those_of_the_separation():
    fresh = {"train": [0.9, 0.8, 0.7], "test": [0.5, 0.4, 0.3]}
    logger, metric = Recorder(), SeparationMetric(fresh)
    cl = strategy(metrics=[metric], loggers=[logger])
    scenario = LabelReset(DIGITS, 3, n_samples=128)
    for k, experience in enumerate(scenario.train_stream):
        cl.train(experience, eval_streams=[])
        cl.eval(scenario.train_stream[max(k - 1, 0) : k + 1])
        assert ("plasticity/plasticity_loss/train", k) in logger.values
        assert (("forgetting/forgetting_of_previous/train", k) in logger.values) == (k > 0)
        assert (("forgetting/forgetting_so_far/train", k) in logger.values) == (k == 1), "only 1 covers all before it"
        assert ("forgetting/forgetting/train", 0) not in logger.values
    cl.eval(scenario.train_stream)
    result = metric.result()["train"]
    for k in range(3):
        assert logger.values["plasticity/plasticity_loss/train", k] == pytest.approx(
            result.plasticity_loss[k], abs=1e-9
        )
        assert logger.values["forgetting/forgetting/train", k] == pytest.approx(result.forgetting[k], abs=1e-9)
    mean = (result.forgetting[0] + result.forgetting[1]) / 2
    assert logger.values["forgetting/forgetting_so_far/train", 2] == pytest.approx(mean, abs=1e-9)


def test_tensorboard_gets_scalars_in_groups(tmp_path):
    logger = TensorboardLogger(tmp_path)
    reference = {"train": [1.0] * 2, "test": [1.0] * 2}
    cl = strategy(metrics=[plasticity_metrics(reference=reference), mechanism_metrics()], loggers=[logger])
    train(cl, LabelReset(DIGITS, 2, n_samples=128))
    logger.writer.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    tags = events.Tags()
    assert not tags["histograms"]
    assert {tag.split("/")[0] for tag in tags["scalars"]} >= {"plasticity", "forgetting", "units", "features", "norms"}
    steps = [event.step for event in events.Scalars("plasticity/plasticity_loss/train")]
    assert steps == [0, 1]


def test_the_learning_curve_is_that_of_a_hand_written_loop():
    scenario = LabelReset(DIGITS, 1, n_samples=256)
    logger, metric = Recorder(), LearningCurveMetric(threshold=0.15)
    cl = strategy(metrics=[metric], loggers=[logger], epochs=9)
    torch.manual_seed(0)
    cl.train(scenario.train_stream[0], eval_streams=[])

    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    torch.manual_seed(0)
    loader = torch.utils.data.DataLoader(scenario.train_stream[0].dataset, batch_size=32, shuffle=True)
    curve, losses = [], []
    for _ in range(9):
        correct = loss_sum = 0.0
        for x, y in loader:
            output = model(x)
            loss = nn.functional.cross_entropy(output, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            correct += float((output.argmax(1) == y).sum())
            loss_sum += float(loss.detach()) * len(y)
        curve.append(correct / 256)
        losses.append(loss_sum / 256)
    assert metric.result() == curve
    assert logger.values["plasticity/area_under_learning_curve/train", 0] == pytest.approx(sum(curve) / 9)
    first = next(i for i, score in enumerate(curve) if score >= 0.15)
    assert 0 < first < 8, "the threshold lies within the curve"
    assert logger.values["plasticity/steps_to_threshold/train", 0] == 8 * (first + 1)
    assert logger.values["loss/task_loss/train", 0] == pytest.approx(losses[-1], rel=1e-5)


@pytest.mark.parametrize("template", [Naive, SupervisedTemplate])
def test_the_reported_loss_holds_no_penalty(template):
    scenario = ClassIncremental(DIGITS, n_samples=300)
    values = []
    for strength in (0.0, 1e4):
        logger = Recorder()
        ewc = EWCPlugin(strength, mode="online", decay_factor=1.0)
        cl = strategy(template, metrics=[LearningCurveMetric()], plugins=[ewc], loggers=[logger], epochs=1)
        for p in cl.model.parameters():
            p.requires_grad_(True)
        cl.optimizer = torch.optim.SGD(cl.model.parameters(), lr=1e-12)
        for experience in scenario.train_stream[:2]:
            torch.manual_seed(0)
            cl.train(experience, eval_streams=[])
            with torch.no_grad():
                for saved in ewc.saved_params.values():
                    for data in saved.values():
                        data.data += 1.0
        values.append(logger.values["loss/task_loss/train", 1])
    assert values[1] == pytest.approx(values[0], rel=1e-4)


def test_a_threshold_that_nothing_reaches_is_refused():
    with pytest.raises(UserError, match="threshold is 2"):
        plasticity_metrics(threshold=2.0)


def test_a_reset_metric_is_as_new():
    scenario = LabelReset(DIGITS, 2, n_samples=128)
    metric = SeparationMetric({"train": [0.5, 0.5]})
    train(strategy(metrics=[metric]), scenario)
    first = copy.deepcopy(metric.result()["train"])
    metric.reset()
    assert metric.result() == {}
    train(strategy(metrics=[metric]), scenario)
    assert list(metric.result()["train"].total) == list(first.total)


def test_scores_are_avalanches_accuracy():
    scenario = LabelReset(DIGITS, 2, n_samples=128)
    metric, theirs = SeparationMetric(), accuracy_metrics(experience=True)[0]
    cl = strategy(metrics=[metric, theirs])
    cl.train(scenario.train_stream[0], eval_streams=[])
    cl.eval(scenario.test_stream[:1])
    assert metric.result()["test"].learned[0] == pytest.approx(theirs.result(), abs=2**-31)
