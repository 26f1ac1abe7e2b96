"""The diagnostics as plugin metrics: when they look, what they report, and that they change nothing."""

import copy
import math
import warnings

import pytest
import torch
from avalanche.evaluation.metric_results import MetricValue
from avalanche.logging import BaseLogger, TensorboardLogger
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from plasticity_cl.diagnostics import (
    empirical_ntk,
    feature_rank,
    fit_random_targets,
    max_hessian_eigenvalue,
    ntk_statistics,
    parameter_norm,
    penultimate_features,
    unit_statistics,
)
from plasticity_cl.errors import UserError
from plasticity_cl.metrics import (
    CurvatureMetric,
    KernelMetric,
    NormMetric,
    PictureMetric,
    TrainabilityMetric,
    UnitMetric,
    landscape_metrics,
    mechanism_metrics,
)
from plasticity_cl.scenarios import LabelReset, TargetShift, load_source
from plasticity_cl.seeding import generator
from plasticity_cl.strategies import LayerNormPlugin, ScaleInvariantLossPlugin
from plasticity_cl.training import SupervisedTemplate

DIGITS = load_source("digits")
FIT = {"learning_rates": (1e-3, 1e-2), "n_targets": 2}


class Recorder(BaseLogger):
    """Keeps every value by name and experience."""

    def __init__(self):
        super().__init__()
        self.values = {}

    def log_metrics(self, metric_values):
        for value in metric_values:
            assert isinstance(value, MetricValue)
            assert (value.name, value.x_plot) not in self.values
            self.values[value.name, value.x_plot] = value.value


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


def strategy(metrics, template=SupervisedTemplate, model=None, loggers=(), plugins=(), **options):
    model = network() if model is None else model
    return template(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-3),
        train_mb_size=32,
        train_epochs=2,
        eval_mb_size=256,
        plugins=list(plugins),
        evaluator=EvaluationPlugin(*metrics, loggers=list(loggers), collect_all=False),
        **options,
    )


def train(cl, stream):
    for k, experience in enumerate(stream):
        torch.manual_seed(k)
        cl.train(experience, eval_streams=[])
    return cl


def state(cl):
    moments = [v for of in cl.optimizer.state_dict()["state"].values() for v in of.values() if torch.is_tensor(v)]
    return [*(p.detach().clone() for p in cl.model.parameters()), *moments, torch.get_rng_state()]


@pytest.mark.parametrize("template", [Naive, SupervisedTemplate])
@pytest.mark.parametrize("plugins", [list, lambda: [ReplayPlugin(64)], lambda: [LayerNormPlugin()]])
@pytest.mark.parametrize("at", ["start", "end"])
def test_training_is_the_same_to_the_last_bit_with_every_diagnostic_on(template, plugins, at):
    stream = LabelReset(DIGITS, 3, n_samples=96).train_stream
    bare = state(train(strategy([], template, network(dropout=0.3), plugins=plugins()), stream))
    metrics = [*mechanism_metrics(at=at), *landscape_metrics(every=2, at=at)]
    watched = train(strategy(metrics, template, network(dropout=0.3), plugins=plugins()), stream)
    assert all(torch.equal(a, b) for a, b in zip(bare, state(watched), strict=True))
    assert not watched.optimizer._optimizer_step_pre_hooks
    assert not watched.optimizer._optimizer_step_post_hooks
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in watched.model.modules())


def test_values_are_those_of_the_functions():
    stream = LabelReset(DIGITS, 2, n_samples=96).train_stream
    logger = Recorder()
    initial = network()
    cl = train(strategy([*mechanism_metrics(), *landscape_metrics(every=1)], model=network(), loggers=[logger]), stream)
    inputs, _ = stream[0].samples.batch(torch.arange(96))
    _, new_targets = stream[1].samples.batch(torch.arange(96))
    units = unit_statistics(cl.model, inputs, unit_statistics(initial, inputs))
    for name, value in units.scalars().items():
        assert logger.values[f"units/{name}" + ("" if "/" in name else "/probe"), 1] == value
    for name, value in feature_rank(penultimate_features(cl.model, inputs)).scalars().items():
        assert logger.values[f"features/{name}/probe", 1] == value
    norm = parameter_norm(cl.model)
    assert logger.values["norms/parameter_norm/probe", 1] == norm.total
    assert logger.values["norms/parameter_norm/4", 1] == norm.layers["4"]
    assert logger.values["norms/parameter_norm_ratio/probe", 1] == norm.total / parameter_norm(initial).total
    # 96 samples are all there are for the diagnostics on more; the others draw theirs.
    rows = torch.randperm(96, generator=generator(0, "probe samples"))[:64].sort().values
    assert not torch.equal(rows, torch.arange(64))
    kernel = ntk_statistics(empirical_ntk(cl.model, inputs[rows]))
    assert logger.values["kernel/ntk_effective_rank/probe", 1] == kernel.effective_rank
    gradients = ntk_statistics(
        empirical_ntk(cl.model, inputs[rows], "loss", new_targets[rows], nn.CrossEntropyLoss(reduction="none"))
    )
    assert logger.values["kernel/gradient_mean_cosine/probe", 1] == pytest.approx(gradients.mean_cosine, abs=1e-6)
    extremes = max_hessian_eigenvalue(cl.model, nn.CrossEntropyLoss(), inputs, new_targets, tol=1e-2)
    assert logger.values["curvature/hessian_largest/probe", 1] == extremes.largest
    worn, fresh = (fit_random_targets(model, inputs[rows], **FIT).loss for model in (cl.model, initial))
    assert logger.values["trainability/probe_loss_ratio/probe", 1] == worn / fresh
    assert not any(name.startswith("targets/") for name, _ in logger.values)


def test_the_update_ratio_is_of_the_last_step_and_the_gradient_what_it_left():
    stream = LabelReset(DIGITS, 1, n_samples=96).train_stream
    logger, before = Recorder(), {}
    cl = strategy([NormMetric()], loggers=[logger])
    cl.optimizer.register_step_pre_hook(
        lambda *_: before.update({n: p.detach().clone() for n, p in cl.model.named_parameters()})
    )
    train(cl, stream)
    now = dict(cl.model.named_parameters())
    moved = math.sqrt(sum(float((now[n].detach() - before[n]).double().square().sum()) for n in now))
    size = math.sqrt(sum(float(before[n].double().square().sum()) for n in now))
    assert logger.values["norms/update_ratio/probe", 0] == pytest.approx(moved / size, rel=1e-6)
    gradient = math.sqrt(sum(float(p.grad.double().square().sum()) for p in now.values()))
    assert logger.values["norms/gradient_norm/probe", 0] == pytest.approx(gradient, rel=1e-6)


@pytest.mark.parametrize(
    ("every", "length", "expected"),
    [(1, 4, [0, 1, 2, 3]), (2, 5, [0, 1, 3, 4]), (20, 3, [0, 2]), (3, 7, [0, 2, 5, 6])],
)
def test_the_first_every_nth_and_the_last_experience_are_looked_at(every, length, expected):
    stream = LabelReset(DIGITS, length, n_samples=32).train_stream
    logger = Recorder()
    train(strategy([UnitMetric(every=every)], loggers=[logger]), stream)
    assert sorted({k for _, k in logger.values}) == expected


def test_a_look_at_the_start_sees_the_network_before_its_first_step():
    stream = LabelReset(DIGITS, 2, n_samples=96).train_stream
    logger = Recorder()
    after_first = train(strategy(mechanism_metrics(at="start"), loggers=[logger]), [stream[0]])
    norm = parameter_norm(after_first.model).total
    train(after_first, [stream[1]])
    assert logger.values["norms/parameter_norm/probe_start", 0] == parameter_norm(network()).total
    assert logger.values["units/preactivation_shift/probe_start", 0] == 0
    assert logger.values["norms/parameter_norm/probe_start", 1] == norm
    assert not any(name.startswith("norms/gradient_norm") for name, _ in logger.values)


@pytest.mark.parametrize("encoded", [False, True])
def test_regression_reports_its_targets_and_is_probed_by_its_own_kind(encoded):
    stream = TargetShift(DIGITS, 2, n_samples=64, schedule=[0.0, 50.0]).train_stream
    logger = Recorder()
    metrics = [*mechanism_metrics(), *landscape_metrics(every=1)]
    plugins = [ScaleInvariantLossPlugin(low=-10, high=60)] if encoded else []
    cl = strategy(metrics, model=network(1), loggers=[logger], plugins=plugins, criterion=nn.MSELoss())
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        train(cl, stream)
    targets = stream[1].samples.targets
    assert logger.values["targets/target_mean/probe", 1] == pytest.approx(float(targets.mean()))
    assert logger.values["targets/offset_to_scale/probe", 1] == pytest.approx(50, rel=1e-4)
    assert 0 <= logger.values["targets/output_top_direction_share/probe", 1] <= 1
    inputs = stream[0].samples.batch(torch.arange(64))[0]
    task = "classification" if encoded else "regression"
    expected = fit_random_targets(cl.model, inputs, task=task, **FIT).loss
    assert logger.values["trainability/probe_loss/probe", 1] == expected


def test_a_broken_network_gets_one_warning_and_no_values_and_training_goes_on():
    stream = LabelReset(DIGITS, 3, n_samples=64).train_stream
    logger = Recorder()
    metrics = [UnitMetric(), KernelMetric(), CurvatureMetric(every=1)]
    cl = strategy(metrics, loggers=[logger])
    train(cl, stream[:1])
    assert all(metric.result() for metric in metrics)
    seen = set(logger.values)
    with torch.no_grad():
        cl.model[1].weight.fill_(math.nan)
    with pytest.warns(UserWarning, match="no value") as caught:
        train(cl, stream[1:])
    messages = [str(w.message) for w in caught if "no value" in str(w.message)]
    assert sorted(message.partition(":")[0] for message in messages) == [
        "CurvatureMetric",
        "KernelMetric",
        "UnitMetric",
    ]
    assert [metric.result() for metric in metrics] == [{}, {}, {}], "nothing from before"
    assert set(logger.values) == seen
    assert cl.clock.train_exp_counter == 3


def test_pictures_and_histograms_reach_tensorboard(tmp_path):
    stream = LabelReset(DIGITS, 2, n_samples=64).train_stream
    tensorboard, recorder = TensorboardLogger(tmp_path), Recorder()
    train(strategy([PictureMetric(every=1)], loggers=[tensorboard, recorder]), stream)
    tensorboard.writer.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    tags = events.Tags()
    assert tags["images"] == ["pictures/network"]
    assert {f"weights/{i}" for i in (1, 4, 6)} <= set(tags["histograms"])
    assert {"preactivation_mean/2", "preactivation_std/5"} <= set(tags["histograms"])
    last = events.Histograms("weights/4")[-1].histogram_value
    assert last.num == 32 * 33
    picture = recorder.values["pictures/network", 1].best_supported_value(Image.Image)
    assert isinstance(picture, Image.Image)
    assert picture.size == (900, 300)
    assert len(picture.getcolors(maxcolors=1 << 20)) > 20


def test_a_reset_metric_is_as_new():
    stream = LabelReset(DIGITS, 2, n_samples=64).train_stream
    for metric in (*mechanism_metrics(), CurvatureMetric(every=1), TrainabilityMetric(every=1)):
        train(strategy([metric]), stream)
        first = copy.deepcopy(metric.result())
        metric.reset()
        assert metric.result() == {}
        train(strategy([metric]), stream)
        assert metric.result() == first


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probe_size": 1}, "a diagnostic on 1 samples: it needs at least 2"),
        ({"every": 0}, "every is 0: it must be at least 1"),
        ({"at": "ende"}, "unknown moment 'ende'.*did you mean end"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(UserError, match=message):
        mechanism_metrics(**options)
