"""The template against Avalanche's and against loops written by hand, to the last bit."""

import copy
import gc
import math
import warnings

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, with_classes_timeline, with_task_labels
from avalanche.benchmarks.utils import _make_taskaware_classification_dataset
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.evaluation.metrics.accuracy import Accuracy
from avalanche.evaluation.metrics.loss import LossMetric
from avalanche.logging import BaseLogger
from avalanche.models import MultiTaskModule
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin, EWCPlugin, ReplayPlugin, SupervisedPlugin
from avalanche.training.templates import SupervisedTemplate as AvalancheTemplate
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from plasticity_cl import metrics
from plasticity_cl.errors import UserError
from plasticity_cl.images import to_float
from plasticity_cl.metrics import ExperienceScore, KernelMetric, LearningCurveMetric, SeparationMetric
from plasticity_cl.scenarios.stream import InMemoryScenario
from plasticity_cl.seeding import generator
from plasticity_cl.training import (
    InMemoryExperience,
    Samples,
    SamplesLoader,
    SupervisedTemplate,
    accelerate,
    in_memory,
    samples_of,
)
from plasticity_cl.training.augmentation import CropFlip, crop, flip, random_crop, random_flip
from plasticity_cl.training.deferred import DeferredAccuracy, DeferredLoss
from plasticity_cl.training.learner import Batch

SIZE, CLASSES = 70, 4


def scenario(n_experiences=2, shape=(3, 4, 4), size=SIZE):
    def samples(split, k):
        inputs = torch.randn(size, *shape, generator=generator(split, k))
        return Samples(inputs, torch.randint(CLASSES, (size,), generator=generator(split, k, "labels")))

    return InMemoryScenario(
        "tiny",
        n_experiences,
        lambda k: samples("train", k),
        lambda k: samples("test", k),
        input_shape=shape,
        n_outputs=CLASSES,
    )


def network(dropout=0.3, dtype=torch.float32):
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(48, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 4)]
    return nn.Sequential(*layers).to(dtype)


def all_metrics(**options):
    kinds = {"minibatch": True, "epoch": True, "epoch_running": True, "experience": True, "stream": True, **options}
    return [
        accuracy_metrics(trained_experience=True, **kinds),
        loss_metrics(**kinds),
        SeparationMetric({"train": [1.0] * 2, "test": [1.0] * 2}),
        LearningCurveMetric(),
    ]


def make(template=SupervisedTemplate, metrics=(), plugins=(), loggers=(), model=None, **options):
    model = network() if model is None else model
    return template(
        model=model,
        optimizer=options.pop("optimizer", None) or torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        criterion=options.pop("criterion", None) or nn.CrossEntropyLoss(),
        train_mb_size=16,
        train_epochs=3,
        eval_mb_size=16,
        plugins=list(plugins),
        evaluator=EvaluationPlugin(*metrics, loggers=list(loggers)),
        **options,
    )


def run(strategy, stream=None):
    stream = scenario() if stream is None else stream
    torch.manual_seed(5)
    for k, experience in enumerate(stream.train_stream):
        strategy.train(experience, eval_streams=[])
        strategy.eval(stream.test_stream[: k + 1])
    return strategy


def same(one, other):
    a, b = one.model.state_dict(), other.model.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def equal_values(one, other):
    one, other = (strategy.evaluator.get_all_metrics() for strategy in (one, other))
    assert one.keys() == other.keys()
    assert one
    return all(str(one[name]) == str(other[name]) for name in one)


# --------------------------------------------------------------------------------------------------- the same results


@pytest.mark.parametrize("plugins", [list, lambda: [EWCPlugin(1.0)], lambda: [ReplayPlugin(20)]])
def test_weights_random_state_and_every_metric_value_are_those_of_naive(plugins):
    states = []
    strategies = [make(kind, all_metrics(), plugins()) for kind in (Naive, SupervisedTemplate)]
    for strategy in strategies:
        run(strategy)
        states.append(torch.get_rng_state())
    assert same(*strategies)
    assert torch.equal(*states)
    assert equal_values(*strategies)


def test_weights_are_those_of_a_bare_loop():
    stream, model = scenario(), network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    torch.manual_seed(5)
    for experience in stream.train_stream:
        inputs, targets = experience.samples.inputs, experience.samples.targets
        for _ in range(3):
            torch.empty((), dtype=torch.int64).random_()
            seed = int(torch.empty((), dtype=torch.int64).random_())
            order = torch.randperm(SIZE, generator=torch.Generator().manual_seed(seed))
            for rows in order.split(16):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(inputs[rows]), targets[rows]).backward()
                optimizer.step()
    ours = make(metrics=all_metrics())
    torch.manual_seed(5)
    for experience in stream.train_stream:
        ours.train(experience, eval_streams=[])
    assert all(map(torch.equal, model.state_dict().values(), ours.model.state_dict().values()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_plugin_sees_the_same_loss_at_every_event(dtype):
    class Watcher(SupervisedPlugin):
        def __init__(self, events):
            super().__init__()
            self.seen = []
            for event in events:
                setattr(self, event, lambda strategy, event=event, **_: self.look(strategy, event))

        def look(self, strategy, event):
            loss = strategy.loss
            self.seen.append((event, loss.shape, loss.dtype, loss.tolist(), strategy.mb_x.sum().item()))

    def samples(k):
        inputs = torch.randn(SIZE, 3, 4, 4, generator=generator(k), dtype=dtype)
        return Samples(inputs, torch.randint(CLASSES, (SIZE,), generator=generator(k, "labels")))

    stream = InMemoryScenario("tiny", 2, samples, samples, input_shape=(3, 4, 4), n_outputs=CLASSES)
    after = ("after_backward", "before_update", "after_update", "after_training_iteration")
    for events in ((*after, "before_backward", "after_forward"), after, ("after_eval_forward", "after_eval_iteration")):
        seen = []
        for kind in (Naive, SupervisedTemplate):
            watcher = Watcher(events)
            run(make(kind, plugins=[watcher], model=network(dtype=dtype)), stream)
            seen.append(watcher.seen)
        assert len(seen[0]) > 10
        assert seen[0] == seen[1]


def test_changing_the_logged_loss_does_not_reach_the_task_loss():
    class Doubles(SupervisedPlugin):
        def after_update(self, strategy, **_):
            strategy.loss *= 2

    values = []
    for plugins in ([], [Doubles()]):
        strategy = run(make(metrics=[LearningCurveMetric()], plugins=plugins))
        values.append(strategy.evaluator.get_all_metrics()["loss/task_loss/train"])
    assert values[0] == values[1]


def test_stopping_and_in_place_layers_act_as_in_avalanche():
    class Stops(SupervisedPlugin):
        def after_training_iteration(self, strategy, **_):
            if strategy.clock.train_exp_iterations == 6:
                strategy.stop_training()

    strategies = []
    for kind in (Naive, SupervisedTemplate):
        model = nn.Sequential(nn.ReLU(inplace=True), network())
        stream = scenario()
        strategies.append(run(make(kind, plugins=[Stops()], model=model), stream))
        assert strategies[-1].clock.train_iterations < 2 * 15
    assert same(*strategies)
    held = scenario().test_stream[0]
    before = held.samples.inputs.clone()
    strategies[1].eval(held)
    assert torch.equal(held.samples.inputs, before), "a layer that works in place must not reach the data set"


@pytest.mark.parametrize("part", ["_before_forward", "_unpack_minibatch", "_make_empty_loss", "backward", "criterion"])
def test_a_subclass_with_its_own_way_gets_it(part):
    calls = []

    def own(self, *args, **kwargs):
        calls.append(part)
        return getattr(SupervisedTemplate, part)(self, *args, **kwargs)

    kind = type("Own", (SupervisedTemplate,), {part: own})
    assert same(run(make(kind)), run(make()))
    assert len(calls) >= 2 * 3 * 5


@pytest.mark.parametrize("place", ["class", "instance"])
def test_an_optimizer_with_its_own_way_to_clear_gradients_gets_it(place):
    # This one keeps half of the last gradients, as no other way to clear them would.
    def halve(optimizer, set_to_none=True):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.mul_(0.5)

    def made(template):
        kind = type("Halving", (torch.optim.SGD,), {"zero_grad": halve} if place == "class" else {})
        model = network()
        optimizer = kind(model.parameters(), lr=0.1)
        if place == "instance":
            optimizer.zero_grad = halve.__get__(optimizer)
        return run(make(template, model=model, optimizer=optimizer))

    model = network()
    plain = run(make(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1)))
    assert same(made(SupervisedTemplate), made(Naive))
    assert not same(made(SupervisedTemplate), plain)


# --------------------------------------------------------------------------------------------------- deferred metrics


def test_a_metric_read_in_the_middle_of_an_epoch_is_up_to_date():
    class Reader(SupervisedPlugin):
        def __init__(self, metrics):
            super().__init__()
            self.metrics, self.read = metrics, []

        def after_forward(self, strategy, **_):
            self.read += [metric.result() for metric in self.metrics]

        after_eval_forward = after_forward

    read = []
    for kind in (Naive, SupervisedTemplate):
        metrics = accuracy_metrics(epoch=True, experience=True, stream=True)
        metrics += loss_metrics(epoch=True, experience=True, stream=True)
        reader = Reader(metrics)
        run(make(kind, metrics, [reader]))
        read.append(reader.read)
    assert len(set(read[0])) > 20
    assert read[0] == read[1]


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=8),
    st.sampled_from(["normal", "ties", "nan", "one column", "labels", "one-hot"]),
    st.integers(0, 2**16),
)
def test_deferred_accuracy_is_avalanches_to_the_last_bit(sizes, kind, seed):
    rng = torch.Generator().manual_seed(seed)
    theirs, ours = Accuracy(), DeferredAccuracy(Accuracy())
    for size in sizes:
        output = torch.randn(size, 1 if kind == "one column" else 7, generator=rng)
        target = torch.randint(7, (size,), generator=rng)
        if kind == "ties":
            output = output.round()
        elif kind == "nan":
            output[output > 1] = math.nan
        elif kind == "labels":
            output = torch.randint(7, (size,), generator=rng)
        elif kind == "one-hot":
            target = nn.functional.one_hot(target, 7)
        for metric in (theirs, ours):
            metric.update(output, target)
    assert ours.result() == theirs.result()
    assert ours.result() == theirs.result(), "reading changes nothing"
    for metric in (theirs, ours):
        metric.update(output, target)
        metric.reset()
    assert ours.result() == theirs.result() == 0.0


@given(st.lists(st.integers(1, 50), min_size=1, max_size=200), st.integers(0, 2**16))
def test_deferred_loss_is_avalanches_to_the_last_bit(sizes, seed):
    rng = torch.Generator().manual_seed(seed)
    theirs, ours = LossMetric(), DeferredLoss(LossMetric())
    for i, size in enumerate(sizes):
        loss = torch.randn([(), (1,), (3,)][i % 3], generator=rng, dtype=[torch.float32, torch.float64][i % 2])
        for metric in (theirs, ours):
            metric.update(loss, size)
    assert ours.result() == theirs.result()


def test_outputs_that_give_no_class_are_refused():
    with pytest.raises(UserError, match=r"outputs \[5\] do not give one class for each of \[5\] targets"):
        metrics.Accuracy().update(torch.zeros(5), torch.zeros(5, dtype=torch.int64))


# --------------------------------------------------------------------------- plugins, metrics and loggers come and go


class Counter(SupervisedPlugin):
    def __init__(self):
        super().__init__()
        self.calls = []

    def before_forward(self, strategy, **_):
        self.calls.append("before_forward")

    def after_training_iteration(self, strategy, **_):
        self.calls.append("after_training_iteration")

    def before_eval_forward(self, strategy, **_):
        self.calls.append("before_eval_forward")


@pytest.mark.parametrize("event", ["before_training_iteration", "after_forward", "after_update", "before_forward"])
@pytest.mark.parametrize("place", ["front", "back"])
def test_a_plugin_added_in_mid_run_is_called_from_the_moment_when_avalanche_calls_it(event, place):
    calls = []
    for kind in (Naive, SupervisedTemplate):
        counter, adder = Counter(), SupervisedPlugin()

        def add(strategy, counter=counter, **_):
            if strategy.clock.train_iterations == 7 and counter not in strategy.plugins:
                strategy.plugins.insert(0 if place == "front" and event != "before_forward" else 99, counter)

        setattr(adder, event, add)
        run(make(kind, plugins=[adder]))
        calls.append(counter.calls)
    assert len(calls[0]) > 20
    assert calls[0] == calls[1]


class Outputs(PluginMetric):
    """Emits at every step, and looks at what only logging may see."""

    def result(self):
        return None

    def reset(self):
        pass

    def after_training_iteration(self, strategy):
        k = strategy.experience.current_experience
        return MetricValue(self, f"outputs/{k}", float(strategy.mb_output.sum()), strategy.clock.train_iterations)


def test_metrics_and_loggers_added_in_mid_run_and_switched_off_act_as_in_avalanche():
    class Lines(BaseLogger):
        def __init__(self):
            super().__init__()
            self.lines = []

        def log_single_metric(self, name, value, x_plot):
            self.lines.append((name, value, x_plot))

        def after_eval_iteration(self, strategy, metric_values, **_):
            self.lines.append(strategy.experience.current_experience)

    class Meddler(SupervisedPlugin):
        def __init__(self, lines):
            super().__init__()
            self.lines = lines

        def before_training_iteration(self, strategy, **_):
            step, evaluator = strategy.clock.train_iterations, strategy.evaluator
            if step == 3:
                evaluator.metrics.append(Outputs())
            if step == 5:
                evaluator.loggers.append(self.lines)
            evaluator.active = not 8 <= step < 11
            if step == 12:
                evaluator.publish_metric_value(MetricValue(self, "published", 1.0, step))

    lines, strategies = [], []
    for kind in (Naive, SupervisedTemplate):
        logger, first = Lines(), Lines()
        strategies.append(run(make(kind, all_metrics(), [Meddler(logger)], [first])))
        lines.append((first.lines, logger.lines))
    assert equal_values(*strategies)
    assert lines[0] == lines[1]
    assert len(lines[0][1]) > 50


def test_the_copy_of_a_strategy_has_metrics_of_its_own():
    strategy = run(make(metrics=[accuracy_metrics(epoch=True), LearningCurveMetric()]))
    twin = copy.deepcopy(strategy)
    before = copy.deepcopy(strategy.evaluator.get_all_metrics())
    run(twin)
    assert str(strategy.evaluator.get_all_metrics()) == str(before)
    assert len(twin.evaluator.get_all_metrics()["Top1_Acc_Epoch/train_phase/train_stream"][0]) == 12


# --------------------------------------------------------------------------------------------------------- the loader


@given(
    st.integers(1, 40),
    st.integers(1, 17),
    st.booleans(),
    st.booleans(),
    st.sampled_from([(16,), (3,), (2, 3, 5)]),
    st.sampled_from([torch.float32, torch.uint8]),
    st.sampled_from([1, 3000, 2**20]),
)
def test_batches_are_those_of_a_data_loader(size, batch, shuffle, drop_last, shape, dtype, chunk):
    if dtype == torch.uint8:
        shape = (2, 3, 5)
    inputs = (torch.randn(2 * size, *shape, generator=generator(size)) * 50).to(dtype)
    samples = Samples(
        inputs,
        torch.arange(size),
        indices=torch.randperm(2 * size, generator=generator(1))[:size],
        mean=torch.tensor([0.4, 0.5]),
        std=torch.tensor([0.2, 0.3]),
    )
    expected, found, states = [], [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(in_memory, "_CHUNK_BYTES", {"cpu": chunk})
        for loader, batches in (
            (DataLoader(samples, batch, shuffle=shuffle, drop_last=drop_last), expected),
            (SamplesLoader(samples, batch, shuffle=shuffle, drop_last=drop_last), found),
        ):
            torch.manual_seed(3)
            batches += list(loader)
            states.append(torch.get_rng_state())
            assert len(loader) == len(batches)
    assert torch.equal(*states)
    for (x, y), (x2, y2) in zip(expected, found, strict=True):
        assert torch.equal(x, x2)
        assert torch.equal(y, y2)
        assert x2.is_contiguous()
        assert x2.data_ptr() % 64 == 0, "as aligned as a tensor of its own, or kernels may round otherwise"


def test_a_batch_may_be_changed_in_place_without_reaching_another():
    samples = Samples(torch.ones(64, 16), torch.arange(64))
    weight = nn.Parameter(torch.full((16,), 3.0))
    for x, _ in SamplesLoader(samples, 16, shuffle=False):
        assert torch.equal(x, torch.ones(16, 16))
        x.mul_(weight)
        x.sum().backward()
    assert torch.equal(samples.inputs, torch.ones(64, 16))
    assert torch.equal(weight.grad, torch.full((16,), 64.0))


# --------------------------------------------------------------------------------------------------- on a device once


def test_inputs_shared_by_a_stream_are_moved_once_and_go_with_it():
    images = torch.zeros(20, 3, 4, 4, dtype=torch.uint8)
    device = torch.device("meta")
    # Every experience brings a view of its own.
    first, second = (Samples(images[:10], torch.arange(10)).to(device) for _ in range(2))
    assert first.inputs is second.inputs
    assert first.inputs.device == first.targets.device == device
    assert first.to(device) is first
    assert first.inputs.shape == (10, 3, 4, 4)
    assert Samples(images[5:], torch.arange(15)).to(device).inputs.shape == (15, 3, 4, 4)
    again = Samples(images[:10], torch.arange(10)).to(device)
    images[0] += 1
    assert Samples(images[:10], torch.arange(10)).to(device).inputs is not again.inputs, "they are others now"
    entries = len(in_memory._copies)
    del images
    gc.collect()
    assert len(in_memory._copies) == entries - 1


def test_what_arrives_on_a_device_is_what_was_there():
    inputs, order = torch.randn(20, 6, generator=generator(0)), torch.arange(9, -1, -1)
    samples = Samples(inputs[3:13], torch.arange(10), indices=order, permutation=torch.arange(5, -1, -1))
    moved = samples.to(torch.device("cpu", 0))
    for one, other in zip(samples.batch(torch.arange(10)), moved.batch(torch.arange(10)), strict=True):
        assert torch.equal(one, other)


# -------------------------------------------------------------------------------------------------------- augmentation


def by_hand(image, top, left, flipped, padding, fill):
    channels, height, width = image.shape
    result = torch.empty_like(image)
    for c in range(channels):
        for i in range(height):
            for j in range(width):
                row, column = i + top - padding, (width - 1 - j if flipped else j) + left - padding
                inside = 0 <= row < height and 0 <= column < width
                result[c, i, j] = image[c, row, column] if inside else (fill[c] if isinstance(fill, list) else fill)
    return result


@given(
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(0, 3),
    st.sampled_from([torch.uint8, torch.float32, torch.float64]),
    st.integers(0, 99),
)
def test_a_batch_is_augmented_as_a_loop_over_its_images_would(n, channels, height, width, padding, dtype, seed):
    rng = generator(seed)
    images = torch.randint(1, 255, (n, channels, height, width), generator=rng).to(dtype)
    augmentation = CropFlip(padding, 0.5, fill=7)
    drawn = augmentation.draw(n, rng)
    assert drawn[:, :2].min() >= 0
    assert drawn[:, :2].max() <= 2 * padding
    found = augmentation.apply(images, drawn)
    assert found.dtype == dtype
    for image, result, (top, left, flipped) in zip(images, found, drawn.tolist(), strict=True):
        assert torch.equal(result, by_hand(image, top, left, flipped, padding, 7))
    colours = [float(c) for c in range(channels)]
    found = augmentation.apply(images, drawn, torch.tensor(colours).view(-1, 1, 1))
    assert torch.equal(found[0], by_hand(images[0], *drawn[0].tolist(), padding, colours))


def test_random_crop_and_flip_draw_evenly_and_from_their_generator_alone():
    images = torch.arange(9.0).view(1, 1, 3, 3).expand(4000, 1, 3, 3)
    state = torch.get_rng_state()
    cropped = random_crop(images, 1, fill=-1.0, generator=generator(0))
    flipped = random_flip(images, 0.25, generator=generator(1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(cropped, random_crop(images, 1, fill=-1.0, generator=generator(0)))
    places = torch.tensor([(a, b) for a in range(3) for b in range(3)])
    counts = [
        int((cropped == crop(images[:1], top[None], left[None], 1, -1.0)).all((1, 2, 3)).sum()) for top, left in places
    ]
    assert sum(counts) == 4000
    assert all(abs(count / 4000 - 1 / 9) < 0.025 for count in counts)
    changed = (flipped != images).any((1, 2, 3))
    assert abs(changed.float().mean() - 0.25) < 0.03
    assert torch.equal(flipped, flip(images, changed))
    torch.manual_seed(0)
    one = random_crop(images, 1)
    torch.manual_seed(0)
    assert torch.equal(one, random_crop(images, 1))


def images_of(size=40, augmentation=None, dtype=torch.uint8):
    images = torch.randint(256, (size, 3, 8, 8), generator=generator("images"), dtype=torch.uint8)
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.4])
    targets = torch.randint(CLASSES, (size,), generator=generator("targets"))
    return Samples(images, targets, mean=mean, std=std, augmentation=augmentation)


def test_training_sees_augmented_images_and_evaluation_does_not():
    augmentation = CropFlip(2, 0.5)
    experience = InMemoryExperience(images_of(augmentation=augmentation))
    plain = images_of().batch(torch.arange(40))[0]

    training = samples_of(experience.dataset.train())
    assert training is experience.samples
    torch.manual_seed(0)
    x = torch.cat([batch[0] for batch in SamplesLoader(training, 16, shuffle=False)])
    torch.manual_seed(0)
    torch.empty((), dtype=torch.int64).random_()
    seed = int(torch.empty((), dtype=torch.int64).random_())
    drawn = augmentation.draw(40, torch.Generator().manual_seed(seed))
    expected = to_float(augmentation.apply(training.inputs, drawn), training.mean, training.std)
    assert torch.equal(x, expected)
    assert not torch.equal(x, plain)

    evaluation = samples_of(experience.dataset.eval())
    assert evaluation.augmentation is None
    assert torch.equal(evaluation.batch(torch.arange(40))[0], plain)
    assert torch.equal(torch.stack([experience.dataset.eval()[i][0] for i in range(40)]), plain)

    # What Avalanche's own loader gives, one image at a time.
    torch.manual_seed(1)
    one_by_one = torch.stack([experience.dataset.train()[i][0] for i in range(40)])
    torch.manual_seed(1)
    drawn = torch.cat([augmentation.draw(1) for _ in range(40)])
    assert torch.equal(one_by_one, to_float(augmentation.apply(training.inputs, drawn), training.mean, training.std))


def test_augmentation_does_not_depend_on_how_batches_are_gathered(monkeypatch):
    epochs = []
    for chunk in (1, 2**20):
        monkeypatch.setattr(in_memory, "_CHUNK_BYTES", {"cpu": chunk})
        torch.manual_seed(0)
        loader = SamplesLoader(images_of(augmentation=CropFlip()), 16, shuffle=True)
        epochs.append([torch.cat([x for x, _ in loader]) for _ in range(2)])
    assert torch.equal(epochs[0][0], epochs[1][0])
    assert torch.equal(epochs[0][1], epochs[1][1])
    assert not torch.equal(epochs[0][0], epochs[0][1])


@pytest.mark.parametrize("kind", [Naive, SupervisedTemplate])
def test_a_strategy_trains_on_augmented_images_and_scores_plain_ones(kind):
    class Sums(SupervisedPlugin):
        def __init__(self):
            super().__init__()
            self.train, self.eval = [], []

        def before_forward(self, strategy, **_):
            self.train.append(strategy.mb_x.sum().item())

        def before_eval_forward(self, strategy, **_):
            self.eval.append(strategy.mb_x.sum().item())

    def samples(k):
        return images_of().augmented(CropFlip(3, 0.5))

    stream = InMemoryScenario("images", 1, samples, samples, input_shape=(3, 8, 8), n_outputs=CLASSES)
    sums = Sums()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES))
    strategy = run(make(kind, plugins=[sums], model=model), stream)
    assert sums.eval == [x.sum().item() for x, _ in DataLoader(images_of(), 16)]
    assert len(set(sums.train)) == 9, "other images in every epoch"
    assert isinstance(strategy, kind)


def test_augmentation_of_what_is_no_image_is_refused():
    with pytest.raises(UserError, match=r"needs images \[N, C, H, W\]"):
        Samples(torch.zeros(4, 8), torch.arange(4), augmentation=CropFlip())
    with pytest.raises(UserError, match="with a permutation"):
        Samples(torch.zeros(2, 1, 2, 2), torch.arange(2), permutation=torch.arange(4), augmentation=CropFlip())
    with pytest.raises(UserError, match="padding is -1"):
        CropFlip(-1)
    with pytest.raises(UserError, match=r"probability is 1\.5"):
        CropFlip(probability=1.5)


# -------------------------------------------------------------------------------------------------- other loaders


class Replay:
    """Draws batches with replacement from a buffer that it adds to between two of them, as an agent's replay does."""

    batches_on_device = True

    def __init__(self, experience, batch_size, n_updates, seed):
        self.experience, self.batch_size, self.n_updates = experience, batch_size, n_updates
        self.generator = torch.Generator().manual_seed(seed)
        self.seen = 2

    def __len__(self):
        return self.n_updates

    def __iter__(self):
        samples = self.experience.samples
        for _ in range(self.n_updates):
            self.seen = min(self.seen + 3, len(samples))
            rows = torch.randint(self.seen, (self.batch_size,), generator=self.generator)
            yield [*samples.batch(rows), torch.arange(self.batch_size)]


class FromReplay(SupervisedTemplate):
    def make_train_dataloader(self, **_):
        self.dataloader = Replay(self.experience, 7, 5, seed=self.clock.train_exp_counter)

    def probe_samples(self, n):
        inputs, targets = self.experience.samples.batch(torch.arange(n))
        return Batch(inputs, targets, torch.zeros(n, dtype=torch.int64))


class OneBatch(SupervisedPlugin):
    """Brings a loader of its own."""

    def before_training_exp(self, strategy, **_):
        strategy.dataloader = Replay(strategy.experience, 7, 5, seed=strategy.clock.train_exp_counter)


def no_slow_steps(monkeypatch):
    def refuse(self, **_):
        raise AssertionError("the steps were left to Avalanche")

    monkeypatch.setattr(AvalancheTemplate, "training_epoch", refuse)


@pytest.mark.parametrize("kind", [FromReplay, lambda **options: make(plugins=[OneBatch()], **options)])
def test_any_loader_of_device_batches_drives_the_template_as_a_bare_loop(monkeypatch, kind):
    no_slow_steps(monkeypatch)
    stream = scenario()
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    torch.manual_seed(7)
    for k, experience in enumerate(stream.train_stream):
        loader = Replay(experience, 7, 5, seed=k)
        for _ in range(3):
            for inputs, targets, _rows in loader:
                optimizer.zero_grad()
                nn.CrossEntropyLoss()(model(inputs), targets).backward()
                optimizer.step()
    model_of_strategy = network()
    options = {"model": model_of_strategy, "optimizer": torch.optim.Adam(model_of_strategy.parameters(), lr=1e-2)}
    strategy = make(FromReplay, **options) if kind is FromReplay else kind(**options)
    torch.manual_seed(7)
    for experience in stream.train_stream:
        strategy.train(experience, eval_streams=[])
    assert strategy.clock.train_iterations == 2 * 3 * 5
    assert all(map(torch.equal, model.state_dict().values(), strategy.model.state_dict().values()))
    assert all(map(torch.equal, list(model.parameters()), list(strategy.model.parameters())))


def test_a_network_of_several_heads_gets_the_task_labels_of_such_a_loader(monkeypatch):
    class TwoHeads(MultiTaskModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.heads = nn.ModuleList(nn.Linear(3, 2) for _ in range(2))

        def forward_single_task(self, x, task_label):
            return self.heads[task_label](x)

        forward_all_tasks = None

    class Labelled:
        batches_on_device = True

        def __len__(self):
            return 3

        def __iter__(self):
            for k in range(3):
                yield [torch.ones(4, 3) * k, torch.arange(4) % 2, torch.ones(4, dtype=torch.int64)]

    class FromLabelled(SupervisedTemplate):
        def make_train_dataloader(self, **_):
            self.dataloader = Labelled()

    no_slow_steps(monkeypatch)
    data = _make_taskaware_classification_dataset(TensorDataset(torch.ones(4, 3), torch.arange(4) % 2), task_labels=1)
    experience = with_classes_timeline(with_task_labels(benchmark_from_datasets(train=[data]))).train_stream[0]
    experience.classes_in_this_experience = [0, 1]
    strategy = make(FromLabelled, model=TwoHeads())
    before = [parameter.clone() for parameter in strategy.model.parameters()]
    strategy.train(experience, eval_streams=[])
    moved = [not torch.equal(*pair) for pair in zip(before, strategy.model.parameters(), strict=True)]
    assert moved == [False, False, True, True]


def test_an_evaluation_is_driven_by_any_such_loader():
    class Evaluated(FromReplay):
        def make_eval_dataloader(self, **_):
            self.dataloader = Replay(self.experience, 9, 4, seed=12)

    stream = scenario()
    strategy = make(Evaluated, metrics=[ExperienceScore()])
    strategy.eval(stream.test_stream[:1])
    strategy.model.eval()
    batches = list(Replay(stream.test_stream[0], 9, 4, seed=12))
    right = sum(int((strategy.model(inputs).argmax(1) == targets).sum()) for inputs, targets, _ in batches)
    assert strategy.evaluator.metrics[0].result() == right / 36


def test_a_loader_that_does_not_say_so_is_left_to_avalanche(monkeypatch):
    no_slow_steps(monkeypatch)
    monkeypatch.setattr(Replay, "batches_on_device", False)
    with pytest.raises(AssertionError, match="left to Avalanche"):
        make(FromReplay).train(scenario().train_stream[0], eval_streams=[])


def test_diagnostics_look_at_the_samples_that_the_learner_names():
    class Targets(KernelMetric):
        def measure(self, strategy, run):
            seen.append(self.samples(strategy).targets)
            return super().measure(strategy, run)

    seen, stream = [], scenario()
    strategy = make(FromReplay, metrics=[Targets(size=6)])
    strategy.train(stream.train_stream[0], eval_streams=[])
    assert torch.equal(seen[0], stream.train_stream[0].samples.targets[:6])
    assert strategy.evaluator.get_last_metrics()["kernel/ntk_effective_rank/probe"] > 0
    plain = make(metrics=[Targets(size=6)])
    plain.train(stream.train_stream[0], eval_streams=[])
    assert not torch.equal(seen[1], seen[0])


# ---------------------------------------------------------------------------------------------------------- accelerate


def counting(graph, inputs):
    """A compiler that leaves the network as it is, and counts what goes through it."""

    def compiled(*args):
        counting.calls += 1
        return graph(*args)

    return compiled


counting.calls = 0


def rounding(graph, inputs):
    """A compiler whose results are a little off."""
    return lambda *args: tuple(value * (1 + 1e-6) for value in graph(*args))


def failing(graph, inputs):
    raise RuntimeError("no such instruction")


def accelerated(monkeypatch, *backends, optimizer=torch.optim.SGD, **options):
    monkeypatch.setitem(accelerate._BACKENDS, "cpu", backends)
    torch._dynamo.reset()
    model = network(dropout=options.pop("dropout", 0.0))
    strategy = make(model=model, optimizer=optimizer(model.parameters(), lr=0.1), accelerate=True, **options)
    model = network(dropout=model[4].p)
    plain = run(make(model=model, optimizer=optimizer(model.parameters(), lr=0.1)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(strategy)
    assert same(strategy, plain)
    return strategy, [str(w.message) for w in caught if "accelerate" in str(w.message)]


def test_a_compiled_network_and_a_fused_optimizer_are_used_where_they_give_the_same_bits(monkeypatch):
    counting.calls = 0
    strategy, messages = accelerated(monkeypatch, rounding, counting)
    assert not messages
    # Two experiences of three epochs with four full batches each; the rest, smaller, and evaluations go without.
    assert counting.calls >= 2 * 3 * 4
    assert counting.calls <= 2 * 3 * 4 + 2
    assert strategy.optimizer.param_groups[0]["fused"] is True


@pytest.mark.parametrize(
    ("backend", "message"), [(rounding, "compiled, it differs by up to"), (failing, "it could not be compiled")]
)
def test_a_compiler_that_changes_results_or_fails_is_named_once_and_not_used(monkeypatch, backend, message):
    strategy, messages = accelerated(monkeypatch, backend)
    assert len(messages) == 1
    assert message in messages[0]
    assert "results stay the same" in messages[0]
    assert strategy._accelerator._compiled is None


def test_batches_of_any_loader_are_compiled_where_that_gives_the_same_bits(monkeypatch):
    monkeypatch.setitem(accelerate._BACKENDS, "cpu", (counting,))
    torch._dynamo.reset()
    counting.calls, ends = 0, []
    for fast in (False, True):
        model = network(dropout=0.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        strategy = make(FromReplay, model=model, optimizer=optimizer, accelerate=fast)
        torch.manual_seed(5)
        for experience in scenario().train_stream:
            strategy.train(experience, eval_streams=[])
        ends.append([*strategy.model.state_dict().values(), torch.get_rng_state()])
    assert all(map(torch.equal, *ends))
    assert counting.calls >= 2 * 3 * 5
    assert strategy.optimizer.param_groups[0]["fused"] is True


def test_a_fused_step_that_rounds_otherwise_is_not_used(monkeypatch):
    strategy, messages = accelerated(monkeypatch, counting, optimizer=torch.optim.Adam)
    assert not strategy.optimizer.param_groups[0]["fused"]
    assert messages == [
        "accelerate: the optimizer is not fused: its fused step rounds otherwise; results stay the same"
    ]


def test_a_compiled_network_is_left_aside_while_hooks_look_on(monkeypatch):
    class Hooked(SupervisedPlugin):
        def __init__(self):
            super().__init__()
            self.seen = 0

        def before_training_epoch(self, strategy, **_):
            self.handle = strategy.model[1].register_forward_hook(self.look)

        def look(self, *_):
            self.seen += 1

        def after_training_epoch(self, strategy, **_):
            self.handle.remove()

    hooked = Hooked()
    counting.calls = 0
    accelerated(monkeypatch, counting, plugins=[hooked])
    assert hooked.seen == 2 * 3 * 5
    assert counting.calls <= 2
