"""A run that is stopped between two experiences, made anew and loaded, against one that was not: to the last bit."""

import io
import random

import numpy as np
import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, split_online_stream, with_task_labels
from avalanche.benchmarks.utils import _make_taskaware_classification_dataset
from avalanche.evaluation.metrics import accuracy_metrics, forgetting_metrics
from avalanche.logging import BaseLogger, TextLogger
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from avalanche.training.plugins import EWCPlugin as AvalancheEWCPlugin
from avalanche.training.plugins import ReplayPlugin as AvalancheReplayPlugin
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from plasticity_cl.errors import UserError
from plasticity_cl.metrics import (
    CurvatureMetric,
    ExperienceScore,
    FeatureMetric,
    KernelMetric,
    LearningCurveMetric,
    NormMetric,
    PictureMetric,
    SeparationMetric,
    TargetMetric,
    TrainabilityMetric,
    UnitMetric,
)
from plasticity_cl.metrics.wilds import WildsMetric
from plasticity_cl.scenarios.stream import InMemoryScenario
from plasticity_cl.seeding import generator
from plasticity_cl.strategies import (
    Finetune,
    L2Plugin,
    LayerNormPlugin,
    LwFPlugin,
    OptimizerResetPlugin,
    ScaleInvariantLossPlugin,
    WeightDecayPlugin,
)
from plasticity_cl.strategies.ewc import EWCPlugin
from plasticity_cl.strategies.replay import ReplayPlugin
from plasticity_cl.training import CropFlip, Samples, SamplesLoader
from plasticity_cl.training.snapshot import HasState, restore, snapshot_of

SIZE, CLASSES, EXPERIENCES = 40, 10, 4


def scenario(task="classification", augmentation=None) -> InMemoryScenario:
    def samples(split, k):
        inputs = torch.randn(SIZE, 1, 4, 4, generator=generator(split, k))
        targets = torch.randint(CLASSES, (SIZE,), generator=generator(split, k, "targets"))
        if task == "regression":
            targets = 10.0 + inputs.flatten(1)[:, :1] * (k + 1)
        return Samples(inputs, targets, augmentation=augmentation if split == "train" else None)

    return InMemoryScenario(
        "tiny",
        EXPERIENCES,
        lambda k: samples("train", k),
        lambda k: samples("test", k),
        input_shape=(1, 4, 4),
        n_outputs=CLASSES,
        task=task,
    )


def network(n_outputs=CLASSES) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(16, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.2), nn.Linear(12, n_outputs)]
    return nn.Sequential(*layers)


class Recorder(BaseLogger):
    """Keeps what metrics emit."""

    def __init__(self):
        super().__init__()
        self.values = []

    def log_metrics(self, metric_values):
        for value in metric_values:
            shown = value.value
            shown = getattr(shown, "image", shown)
            shown = shown.detach().clone() if isinstance(shown, Tensor) else shown
            self.values.append((value.name, value.x_plot, shown))

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def build(kind, plugins, metrics, stream, optimizer=torch.optim.Adam, loggers=()):
    regression = stream.task == "regression"
    model = network(1 if regression else CLASSES)
    recorder = Recorder()
    strategy = kind(
        model=model,
        optimizer=optimizer(model.parameters(), lr=0.01),
        criterion=nn.MSELoss() if regression else nn.CrossEntropyLoss(),
        train_mb_size=8,
        train_epochs=2,
        eval_mb_size=8,
        plugins=plugins(),
        evaluator=EvaluationPlugin(*metrics(), loggers=[recorder, *loggers]),
    )
    return strategy, recorder


def go_on(strategy, stream, experiences):
    for k in experiences:
        for evaluated in (stream.train_stream, stream.test_stream):
            strategy.eval(evaluated[k : k + 1])
        strategy.train(stream.train_stream[k], eval_streams=[])
        for evaluated in (stream.train_stream, stream.test_stream):
            strategy.eval(evaluated[: k + 1])


def saved(snapshot):
    buffer = io.BytesIO()
    torch.save(snapshot, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def same(one, other) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one.nan_to_num(7e77), other.nan_to_num(7e77))
    if isinstance(one, float):
        return one == other or (one != one and other != other)
    if isinstance(one, dict):
        return isinstance(other, dict) and list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def seed():
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)


def check(kind, plugins, metrics=list, stream=scenario, stop=2, **options):
    """Compare a whole run with one that is stopped before experience ``stop``."""
    seed()
    whole, expected = build(kind, plugins, metrics, stream(), **options)
    go_on(whole, stream(), range(EXPERIENCES))
    end = saved(snapshot_of(whole))

    seed()
    first, emitted = build(kind, plugins, metrics, stream(), **options)
    go_on(first, stream(), range(stop))
    snapshot = snapshot_of(first)
    stored = saved(snapshot)
    go_on(first, stream(), [stop])
    assert same(saved(snapshot), stored), "a snapshot is no part of what goes on"
    before = [value for value in emitted.values if value[1] < stop or "learning_curve" in value[0]]
    del first

    second, found = build(kind, plugins, metrics, stream(), **options)
    torch.manual_seed(99)
    restore(second, stored, stream().train_stream[0])
    assert same(saved(snapshot_of(second)), stored), "what was loaded is what was saved"
    go_on(second, stream(), range(stop, EXPERIENCES))
    values = expected.values[-len(found.values) :] if found.values else []
    assert [value[:2] for value in values] == [value[:2] for value in found.values]
    for one, other in zip(values, found.values, strict=True):
        assert same(one, other), one[0]
    assert same(end, saved(snapshot_of(second)))
    return second, before


PLUGINS = {
    "none": list,
    "l2": lambda: [L2Plugin(0.1)],
    "weight decay": lambda: [WeightDecayPlugin(0.1)],
    "optimizer reset": lambda: [OptimizerResetPlugin()],
    "layer norm": lambda: [LayerNormPlugin()],
    "batch norm": lambda: [LayerNormPlugin("batch")],
    "ewc": lambda: [EWCPlugin(10.0)],
    "replay": lambda: [ReplayPlugin(13)],
    "replay of less than a sample each": lambda: [ReplayPlugin(2)],
    "lwf": lambda: [LwFPlugin(1.0)],
    "all at once": lambda: [
        *(LayerNormPlugin(), L2Plugin(0.1), WeightDecayPlugin(0.1), EWCPlugin(10.0), ReplayPlugin(13), LwFPlugin(1.0)),
        OptimizerResetPlugin(),
    ],
}


@pytest.mark.parametrize("kind", [Finetune, Naive])
@pytest.mark.parametrize("name", PLUGINS)
def test_every_intervention_goes_on_where_it_was(kind, name):
    check(kind, PLUGINS[name])


@pytest.mark.parametrize("stop", [0, 1, 3])
@pytest.mark.parametrize("name", ["all at once", "optimizer reset"])
def test_wherever_the_run_was_stopped(stop, name):
    check(Finetune, PLUGINS[name], stop=stop, metrics=lambda: [LearningCurveMetric(), UnitMetric(8)])


def test_a_regression_whose_last_layer_was_exchanged():
    strategy, _ = check(
        Finetune,
        lambda: [LayerNormPlugin(), ScaleInvariantLossPlugin("hl-gauss", 0.0, 40.0, 21, "linear", seed=4)],
        metrics=lambda: [TargetMetric(16), ExperienceScore(), LearningCurveMetric(), TrainabilityMetric(8, every=1)],
        stream=lambda: scenario("regression"),
    )
    assert strategy.model[-1].out_features == 21 if isinstance(strategy.model, nn.Sequential) else True


@pytest.mark.parametrize("kind", [Finetune, Naive])
def test_nothing_of_ours_is_kept_in_the_strategy(kind):
    kept = []
    for plugins in (list, PLUGINS["all at once"]):
        strategy, _ = build(kind, plugins, METRICS["separation"] if plugins is not list else list, scenario())
        go_on(strategy, scenario(), [0, 1])
        kept.append(set(vars(strategy)))
    assert kept[0] == kept[1]


def test_replayed_images_are_augmented_as_they_would_have_been():
    check(Finetune, lambda: [ReplayPlugin(13)], stream=lambda: scenario(augmentation=CropFlip(1)))


METRICS = {
    "separation": lambda: [SeparationMetric({s: [0.5] * EXPERIENCES for s in ("train", "test")})],
    "separation with a baseline": lambda: [
        SeparationMetric(
            {s: [0.5] * EXPERIENCES for s in ("train", "test")},
            baseline={s: [0.6] * EXPERIENCES for s in ("train", "test")},
        )
    ],
    "separation without a reference": lambda: [SeparationMetric()],
    "separation with fresh networks": lambda: [SeparationMetric(network)],
    "learning curve": lambda: [LearningCurveMetric(0.2)],
    "score": lambda: [ExperienceScore()],
    "units": lambda: [UnitMetric(16)],
    "features": lambda: [FeatureMetric(16)],
    "norms": lambda: [NormMetric()],
    "targets": lambda: [TargetMetric(16)],
    "kernel": lambda: [KernelMetric(8)],
    "curvature": lambda: [CurvatureMetric(16, every=2)],
    "trainability": lambda: [TrainabilityMetric(8, every=2)],
    "pictures": lambda: [PictureMetric(8, every=2)],
    "at the start": lambda: [UnitMetric(16, at="start"), NormMetric(at="start"), TrainabilityMetric(8, 2, at="start")],
    "wilds": lambda: [WildsMetric({"test": torch.arange(CLASSES)}, CLASSES)],
    "avalanche's": lambda: [accuracy_metrics(epoch=True, experience=True, stream=True)],
}


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_emits_what_it_would_have_emitted(name):
    check(Finetune, list, METRICS[name])


def test_metrics_in_company_of_plugins_and_other_templates():
    metrics = [METRICS[name] for name in ("separation", "learning curve", "units", "norms", "trainability", "wilds")]
    check(Naive, PLUGINS["all at once"], lambda: [metric for make in metrics for metric in make()])


def test_fresh_networks_go_on_with_the_settings_that_the_script_had_changed():
    """They follow what a script changes between two trainings, and not what a training itself has changed."""

    class Decay(SupervisedPlugin):
        def after_training_exp(self, strategy, **_):
            for group in strategy.optimizer.param_groups:
                group["lr"] *= 0.5

        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            pass

    def run(stopped):
        seed()
        plugins, metrics = lambda: [Decay(), LayerNormPlugin()], METRICS["separation with fresh networks"]
        stream = scenario()
        strategy, recorder = build(Finetune, plugins, metrics, stream)
        for k in range(EXPERIENCES):
            if k == 2 and stopped:
                stored, stream = saved(snapshot_of(strategy)), scenario()
                strategy, recorder = build(Finetune, plugins, metrics, stream)
                restore(strategy, stored, stream.train_stream[0])
                strategy.train_epochs = 3
            if k in (1, 2):
                strategy.train_epochs = 3
                strategy.optimizer.param_groups[0]["lr"] = 0.02 * k
            go_on(strategy, stream, [k])
        return recorder.values

    whole, stopped = run(False), run(True)
    assert same(whole[-len(stopped) :], stopped)
    assert any("plasticity/fresh" in name for name, *_ in stopped)


# ----------------------------------------------------------------------------------------- what is ours is Avalanche's


@pytest.mark.parametrize("kind", [Finetune, Naive])
@pytest.mark.parametrize(
    ("ours", "avalanches"),
    [
        (lambda: EWCPlugin(10.0), lambda: AvalancheEWCPlugin(10.0, mode="online", decay_factor=1.0)),
        (lambda: ReplayPlugin(13), lambda: AvalancheReplayPlugin(mem_size=13)),
        (lambda: ReplayPlugin(2), lambda: AvalancheReplayPlugin(mem_size=2)),
        (lambda: ReplayPlugin(500), lambda: AvalancheReplayPlugin(mem_size=500)),
    ],
)
def test_ewc_and_replay_are_avalanches_to_the_last_bit(kind, ours, avalanches):
    ends = []
    for plugin in (ours, avalanches):
        seed()
        strategy, _ = build(kind, lambda plugin=plugin: [plugin()], list, scenario())
        go_on(strategy, scenario(), range(EXPERIENCES))
        ends.append([*strategy.model.state_dict().values(), torch.get_rng_state()])
    assert same(*ends)


def with_tasks():
    """A benchmark of Avalanche's, with task labels."""
    sets = []
    for k in range(EXPERIENCES):
        x, y = torch.randn(24, 16, generator=generator("x", k)), torch.arange(24) % 3 + 3 * (k % 3)
        sets.append(_make_taskaware_classification_dataset(TensorDataset(x, y), task_labels=k, targets=y.tolist()))
    return with_task_labels(benchmark_from_datasets(train=sets))


def train_with(plugin, benchmark, experiences=range(EXPERIENCES), snapshot=None):
    seed()
    model = network()
    options = {"optimizer": torch.optim.SGD(model.parameters(), lr=0.1), "evaluator": EvaluationPlugin()}
    strategy = Naive(model=model, train_mb_size=8, plugins=[plugin], **options)
    if snapshot is not None:
        restore(strategy, snapshot, benchmark.train_stream[0])
    for k in experiences:
        strategy.train(benchmark.train_stream[k], eval_streams=[])
    return strategy


def test_replay_of_data_with_task_labels_is_avalanches():
    ours, avalanches = (train_with(p, with_tasks()) for p in (ReplayPlugin(7), AvalancheReplayPlugin(mem_size=7)))
    assert same(list(ours.model.state_dict().values()), list(avalanches.model.state_dict().values()))


@pytest.mark.parametrize("plugin", [lambda: ReplayPlugin(7), LwFPlugin, EWCPlugin])
def test_a_run_on_a_benchmark_of_avalanches_goes_on(plugin):
    whole = snapshot_of(train_with(plugin(), with_tasks()))
    stored = saved(snapshot_of(train_with(plugin(), with_tasks(), range(2))))
    assert same(whole, snapshot_of(train_with(plugin(), with_tasks(), [2, 3], stored)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EWCPlugin(-1.0), "the strength of EWC is -1.0: it must be a number of 0 or more"),
        (lambda: ReplayPlugin(0), "mem_size is 0: it must be a whole number of 1 or more"),
        (lambda: LwFPlugin(float("nan")), "the weight of distillation is nan: it must be a number of 0 or more"),
    ],
)
def test_values_out_of_range_are_refused(make, message):
    with pytest.raises(UserError) as caught:
        make()
    assert str(caught.value) == message


def mini_experiences(stream):
    return split_online_stream(stream.train_stream, experience_size=12, shuffle=False)


@pytest.mark.parametrize("stop", [1, 3, 4, 6])
def test_a_run_that_is_stopped_between_mini_experiences_goes_on(stop):
    def metrics():
        return [LearningCurveMetric(0.2), UnitMetric(8), NormMetric(), SeparationMetric()]

    runs = []
    for stopped in (False, True):
        seed()
        stream = scenario()
        strategy, recorder = build(Finetune, lambda: [LayerNormPlugin(), EWCPlugin(10.0)], metrics, stream)
        for k, part in enumerate(mini_experiences(stream)):
            if k == stop:
                recorder.values.clear()
                if stopped:
                    stored, stream = saved(snapshot_of(strategy)), scenario()
                    plugins = lambda: [LayerNormPlugin(), EWCPlugin(10.0)]  # noqa: E731
                    strategy, recorder = build(Finetune, plugins, metrics, stream)
                    restore(strategy, stored, stream.train_stream[0])
            strategy.train(part, eval_streams=[])
            if k % 4 == 3:  # four parts make an experience
                strategy.eval(stream.test_stream[: k // 4 + 1])
        runs.append([recorder.values, snapshot_of(strategy)])
    assert any(name.startswith("units/") for name, *_ in runs[0][0])
    assert same(*runs)


# ------------------------------------------------------------------------------------------------------------ refusals


def test_a_memory_of_mini_experiences_is_not_found_again():
    strategy, _ = build(Finetune, lambda: [ReplayPlugin(6)], list, scenario())
    parts = list(mini_experiences(scenario()))
    strategy.train(parts[0], eval_streams=[])
    other, _ = build(Finetune, lambda: [ReplayPlugin(6)], list, scenario())
    restore(other, saved(snapshot_of(strategy)), scenario().train_stream[0])
    with pytest.raises(UserError, match="in whole experiences"):
        other.train(parts[1], eval_streams=[])


def test_a_memory_of_replay_needs_its_stream():
    for experience, row in ((EXPERIENCES, 0), (0, SIZE)):
        plugin = ReplayPlugin(4)
        plugin.load_state_dict({"parts": [{"experience": experience, "rows": torch.arange(row, row + 4)}]})
        strategy, _ = build(Finetune, lambda plugin=plugin: [plugin], list, scenario())
        with pytest.raises(UserError, match="has no such samples: go on with the one that it was filled from"):
            strategy.train(scenario().train_stream[0], eval_streams=[])


class Remembers(SupervisedPlugin):
    """A plugin without a state."""


def test_what_has_no_state_is_named_where_it_matters():
    strategy, _ = build(Finetune, lambda: [Remembers()], list, scenario())
    stored = saved(snapshot_of(strategy))
    other, _ = build(Finetune, lambda: [Remembers()], list, scenario())
    with pytest.raises(UserError, match=r"Remembers cannot go on from a snapshot: give it state_dict\(\)"):
        restore(other, stored, scenario().train_stream[0])
    strategy, _ = build(Finetune, list, lambda: [forgetting_metrics(experience=True)], scenario())
    other, _ = build(Finetune, list, lambda: [forgetting_metrics(experience=True)], scenario())
    with pytest.raises(UserError, match="Forgetting cannot go on from a snapshot"):
        restore(other, snapshot_of(strategy), scenario().train_stream[0])


def test_a_snapshot_fits_a_new_strategy_with_the_same_parts_alone():
    strategy, _ = build(Finetune, lambda: [LayerNormPlugin()], list, scenario())
    go_on(strategy, scenario(), [0])
    stored, experience = saved(snapshot_of(strategy)), scenario().train_stream[0]
    with pytest.raises(UserError, match="has trained already: make it anew"):
        restore(strategy, stored, experience)
    other, _ = build(Finetune, lambda: [L2Plugin()], list, scenario())
    with pytest.raises(
        UserError, match=r"the plugins of the strategy are plasticity_cl\.strategies\.l2\.L2Plugin, and"
    ):
        restore(other, stored, experience)
    other, _ = build(Finetune, lambda: [LayerNormPlugin("batch")], list, scenario())
    with pytest.raises(UserError, match="the snapshot is of another") as caught:
        restore(other, stored, experience)
    assert "\n" not in str(caught.value)


def test_a_metric_of_several_strategies_has_no_state_of_its_own():
    metric = UnitMetric(8)
    strategies = [build(Finetune, list, lambda: [metric], scenario())[0] for _ in range(2)]
    for strategy in strategies:
        strategy.train(scenario().train_stream[0], eval_streams=[])
    with pytest.raises(UserError, match="serves several strategies has no state of its own"):
        snapshot_of(strategies[0])


def test_loaders_and_text_loggers_hold_nothing():
    assert isinstance(SamplesLoader(scenario().train_stream[0].samples, 4, shuffle=True), HasState)
    check(Finetune, list, METRICS["score"], loggers=[TextLogger(io.StringIO())])
