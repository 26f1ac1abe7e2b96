"""Diagnostics beside networks, streams and strategies of every kind: values or one warning, and no trace left."""

import copy
import io
import warnings
from collections import OrderedDict

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, nc_benchmark, split_online_stream
from avalanche.benchmarks.utils import AvalancheDataset, as_classification_dataset
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import InteractiveLogger, TensorboardLogger, TextLogger
from avalanche.models import IncrementalClassifier, MTSimpleMLP, NCMClassifier, TrainEvalModel, as_multitask
from avalanche.training import ICaRL, JointTraining, Naive, OnlineNaive
from avalanche.training.losses import ICaRLLossPlugin
from avalanche.training.plugins import EarlyStoppingPlugin, EvaluationPlugin, LRSchedulerPlugin, SupervisedPlugin
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import TensorDataset

from plasticity_cl.diagnostics import empirical_ntk, fit_random_targets, max_hessian_eigenvalue, ntk_statistics
from plasticity_cl.metrics import (
    CurvatureMetric,
    FeatureMetric,
    KernelMetric,
    NormMetric,
    PictureMetric,
    TrainabilityMetric,
    UnitMetric,
    landscape_metrics,
    mechanism_metrics,
)
from plasticity_cl.metrics.last_step import LastStep
from plasticity_cl.metrics.look import looking, random_samples
from plasticity_cl.training import SupervisedTemplate

WIDTH, CLASSES = 6, 6


def labelled(n, seed, classes=range(CLASSES), ordered=False):
    random = torch.Generator().manual_seed(seed)
    y = torch.tensor(list(classes))[torch.randint(len(classes), (n,), generator=random)]
    y = y.sort().values if ordered else y
    x = torch.randn(n, WIDTH, generator=random) + 2 * nn.functional.one_hot(y, WIDTH).float()
    data = TensorDataset(x, y)
    data.targets = y.tolist()
    return data


def class_stream(task_labels=False):
    data = labelled(120, 1), labelled(30, 2)
    return nc_benchmark(*data, n_experiences=3, task_labels=task_labels, seed=0).train_stream


def domain_stream(sizes=(48, 48, 48), ordered=False):
    data = [as_classification_dataset(labelled(n, k, ordered=ordered)) for k, n in enumerate(sizes)]
    return benchmark_from_datasets(train=data, test=data).train_stream


def mlp(width=WIDTH):
    return nn.Sequential(nn.Linear(width, 16), nn.ReLU(), nn.Linear(16, CLASSES))


class Giving(nn.Module):
    """The plain network, giving its logits in some wrapping."""

    def __init__(self, give):
        super().__init__()
        self.body, self.give = mlp(), give

    def forward(self, x):
        return self.give(self.body(x))


class ModelOutput(OrderedDict):
    """What networks of Hugging Face give: a mapping whose entries are attributes as well."""

    def __getattr__(self, name):
        if name in self:
            return self[name]
        raise AttributeError(name)


class GrowingHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(WIDTH, 16), IncrementalClassifier(16, 1)

    def forward(self, x):
        return self.head(torch.relu(self.first(x)))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells, self.head = nn.LSTM(1, 8, batch_first=True), nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.head(self.cells(x[:, :, None])[0][:, -1])


class Caching(nn.Module):
    """Keeps what it computed last, in a graph, and a count and a list of its calls."""

    def __init__(self):
        super().__init__()
        self.body, self.calls, self.norms, self.features = mlp(), 0, [], None

    def forward(self, x):
        self.calls += 1
        self.features = self.body[:2](x)
        self.norms.append(float(self.features.detach().norm()))
        return self.body[2](self.features)


class Widening(SupervisedPlugin):
    """Puts a wider hidden layer in place between experiences."""

    def before_training_exp(self, strategy, **_):
        if strategy.clock.train_exp_counter == 1:
            model = strategy.model
            model[0], model[2] = nn.Linear(WIDTH, 24), nn.Linear(24, CLASSES)
            strategy.optimizer.param_groups[0]["params"] = list(model.parameters())


def frozen():
    model = mlp()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return nn.Sequential(model, nn.Linear(CLASSES, CLASSES))


def seeded(make):
    torch.manual_seed(3)
    return make()


def strategy(model, metrics, template=Naive, plugins=(), loggers=(), lr=0.1, epochs=2, **options):
    evaluator = EvaluationPlugin(*metrics, loggers=list(loggers), collect_all=False)
    options = {"train_epochs": epochs, **options} if template is not OnlineNaive else options
    return template(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=lr),
        train_mb_size=16,
        plugins=list(plugins),
        evaluator=evaluator,
        **options,
    )


def train(cl, stream):
    torch.manual_seed(5)
    for experience in stream:
        cl.train(experience, eval_streams=[])
    return cl


def weights(cl):
    return torch.cat([p.detach().flatten() for p in cl.model.parameters()])


def of_logits(output, target):
    return nn.functional.cross_entropy(output["logits"] if isinstance(output, dict) else output[0], target)


KINDS = {
    "plain": (mlp, domain_stream, {}),
    "task labels": (lambda: MTSimpleMLP(input_size=WIDTH, hidden_size=16), lambda: class_stream(True), {}),
    "as multitask": (lambda: as_multitask(mlp(), "2"), lambda: class_stream(True), {}),
    "a growing head": (GrowingHead, class_stream, {}),
    "a growing hidden layer": (mlp, domain_stream, {"plugins": [Widening()]}),
    "a tuple": (lambda: Giving(lambda o: (o, o.sum())), domain_stream, {"criterion": of_logits}),
    "a mapping": (lambda: Giving(lambda o: {"hidden": o.sum(), "logits": o}), domain_stream, {"criterion": of_logits}),
    "a model output": (
        lambda: Giving(lambda o: ModelOutput(loss=None, logits=o)),
        domain_stream,
        {"criterion": lambda output, target: nn.functional.cross_entropy(output.logits, target)},
    ),
    "an LSTM": (Recurrent, domain_stream, {}),
    "a cache": (Caching, domain_stream, {}),
    "DataParallel": (lambda: nn.DataParallel(mlp()), domain_stream, {}),
    "compiled": (lambda: torch.compile(mlp(), backend="eager"), domain_stream, {}),
    "partly frozen": (frozen, domain_stream, {}),
    "class means": (
        lambda: TrainEvalModel(mlp(), nn.Linear(CLASSES, CLASSES), NCMClassifier()),
        domain_stream,
        {"criterion": ICaRLLossPlugin()},
    ),
}
HAVE_NOT = {"an LSTM": {"units", "kernel"}}


@pytest.mark.parametrize("kind", KINDS)
def test_every_network_gets_values_and_trains_as_without_them(kind):
    make, make_stream, options = KINDS[kind]
    stream = make_stream()
    bare = train(strategy(seeded(make), [], **copy.deepcopy(options)), stream)
    random_state = torch.get_rng_state()
    metrics = [*mechanism_metrics(), *landscape_metrics(every=3)]
    watched = train(strategy(seeded(make), metrics, **copy.deepcopy(options)), stream)
    assert torch.equal(weights(bare), weights(watched))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in watched.model.modules())
    assert [m.training for m in watched.model.modules()] == [m.training for m in bare.model.modules()]
    assert not watched.optimizer._optimizer_step_pre_hooks
    for ours, theirs in zip(watched.model.modules(), bare.model.modules(), strict=True):
        assert set(vars(ours)) == set(vars(theirs))
        for name in ("calls", "norms", "class_means_dict"):
            assert getattr(ours, name, None) == getattr(theirs, name, None)
    empty = {metric.group for metric in metrics if not metric.result()} - {"targets", "pictures"}
    assert empty == HAVE_NOT.get(kind, set()) & empty


def test_what_a_network_gives_its_logits_in_changes_no_value():
    results = []
    for kind in ("plain", "a tuple", "a mapping", "a model output"):
        make, make_stream, options = KINDS[kind]
        metrics = [KernelMetric(), CurvatureMetric(every=1), TrainabilityMetric(every=1), UnitMetric(), FeatureMetric()]
        train(strategy(seeded(make), metrics, **options), make_stream())
        results.append([{k.removeprefix("body."): v for k, v in metric.result().items()} for metric in metrics])
    for values in zip(*results, strict=True):
        for other in values[1:]:
            assert [v for v in other.values()] == pytest.approx([v for v in values[0].values()], rel=1e-6)


class AsTask(nn.Module):
    def __init__(self, network, label):
        super().__init__()
        self.network, self.label = network, label

    def forward(self, x):
        return self.network(x, torch.full((len(x),), self.label))


def test_a_network_with_task_labels_is_seen_with_those_of_the_samples():
    stream = class_stream(True)
    kernel, curvature = KernelMetric(size=20), CurvatureMetric(size=20, every=1)
    trainability = TrainabilityMetric(size=20, every=1)
    cl = train(strategy(seeded(KINDS["task labels"][0]), [kernel, curvature, trainability]), stream[:2])
    cl.experience = stream[1].logging()
    batch = random_samples(cl, 20)
    assert set(batch.task_labels.tolist()) == {1}
    network = AsTask(cl.model, 1)
    expected = ntk_statistics(empirical_ntk(network, batch.inputs))
    assert kernel.result()["ntk_effective_rank"] == expected.effective_rank
    extremes = max_hessian_eigenvalue(network, nn.CrossEntropyLoss(), batch.inputs, batch.targets, tol=1e-2)
    assert curvature.result()["hessian_largest"] == extremes.largest
    # The probe batch is of the first task, whose head is another one.
    cl.experience = stream[0].logging()
    first = random_samples(cl, 20)
    classes = trainability._runs.latest.initial.classes
    fit = fit_random_targets(
        AsTask(cl.model, 0), first.inputs, learning_rates=(1e-3, 1e-2), n_targets=2, classes=classes
    )
    assert trainability.result()["probe_loss"] == fit.loss


def test_a_head_that_grows_stays_comparable_with_its_initialisation():
    metric, ratios = TrainabilityMetric(every=1), []
    cl = strategy(seeded(GrowingHead), [metric], lr=1e-4, epochs=1)
    for experience in class_stream():
        cl.train(experience, eval_streams=[])
        ratios.append(metric.result()["probe_loss_ratio"])
    assert cl.model.head.classifier.out_features > 1
    assert ratios == pytest.approx([1, 1, 1], abs=0.05)


def test_a_network_that_grew_is_related_to_what_it_still_has_of_its_initialisation():
    norms, units = NormMetric(), UnitMetric()
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(WIDTH, 16), nn.ReLU(), nn.Linear(16, CLASSES), nn.Linear(CLASSES, CLASSES))
    before = model[3].weight.norm() ** 2 + model[3].bias.norm() ** 2
    cl = strategy(model, [norms, units], plugins=[Widening()])
    with pytest.warns(UserWarning, match="no shift for layers of another size"):
        train(cl, domain_stream())
    after = cl.model[3].weight.norm() ** 2 + cl.model[3].bias.norm() ** 2
    assert norms.result()["parameter_norm_ratio"] == pytest.approx(float((after / before).sqrt()), rel=1e-5)
    assert "dead_units" in units.result()
    assert "preactivation_shift" not in units.result()


def test_class_means_are_not_made_by_looking():
    network = TrainEvalModel(mlp(), nn.Linear(CLASSES, CLASSES), NCMClassifier())
    cl = strategy(network, [])
    cl.experience = domain_stream()[0].logging()
    batch = random_samples(cl, 8)
    ncm = NCMClassifier()
    cl.model = nn.Sequential(nn.Linear(WIDTH, 4), ncm)
    ncm.max_class = 2
    with looking(cl, batch) as look:
        look.model(batch.inputs)
        assert ncm.class_means_dict
    assert ncm.class_means_dict == {}
    with pytest.raises(ZeroDivisionError), looking(cl, batch):
        ncm.class_means_dict[0] = 1 / len(ncm.class_means_dict)
    assert ncm.class_means_dict == {}
    assert not cl.model._forward_hooks


def test_a_module_in_two_places_stays_what_it_is():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(WIDTH, WIDTH)
            self.second = self.first

        def forward(self, x):
            return self.second(torch.relu(self.first(x)))

    cl = strategy(Twice(), landscape_metrics(every=1))
    weight = cl.model.first.weight
    train(cl, domain_stream()[:1])
    assert cl.model.first.weight is weight
    assert isinstance(weight, nn.Parameter)


def test_icarl_is_watched_with_the_head_that_it_trains():
    torch.manual_seed(0)
    features, classifier = nn.Sequential(nn.Linear(WIDTH, 16), nn.ReLU()), nn.Linear(16, CLASSES)
    metrics = [*mechanism_metrics(), *landscape_metrics(every=1)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cl = ICaRL(
            feature_extractor=features,
            classifier=classifier,
            optimizer=torch.optim.SGD([*features.parameters(), *classifier.parameters()], lr=0.1),
            memory_size=12,
            buffer_transform=lambda x: x,
            fixed_memory=True,
            train_mb_size=16,
            train_epochs=1,
            evaluator=EvaluationPlugin(*metrics, loggers=[], collect_all=False),
        )
        for experience in class_stream():
            cl.train(experience, eval_streams=[])
    assert all(metric.result() for metric in metrics if metric.group not in ("targets", "pictures"))


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyError("x"), IndexError(), StopIteration()])
def test_a_network_that_fails_in_evaluation_leaves_no_trace_and_no_old_value(error):
    class Failing(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.broken = nn.Sequential(*mlp(), nn.Dropout(0.5)), False

        def forward(self, x):
            if self.broken and not self.training:
                torch.rand(3)
                raise error
            return self.body(x)

    metrics = [*mechanism_metrics(), *landscape_metrics(every=1)]
    stream = domain_stream()
    bare, watched = (strategy(seeded(Failing), of) for of in ([], metrics))
    for cl in (bare, watched):
        torch.manual_seed(1)
        cl.train(stream[0], eval_streams=[])
    assert all(metric.result() for metric in metrics if metric.group not in ("targets", "pictures"))
    watched.model.broken = True
    torch.manual_seed(2)
    bare.train(stream[1], eval_streams=[])
    torch.manual_seed(2)
    with pytest.warns(UserWarning, match="no value") as caught:
        watched.train(stream[1], eval_streams=[])
    assert torch.equal(weights(bare), weights(watched))
    assert all(module.training for module in watched.model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in watched.model.modules())
    assert [m.group for m in metrics if m.result()] == ["norms"], "norms need no pass through the network"
    said = [str(w.message).partition(":")[0] for w in caught if "no value" in str(w.message)]
    assert sorted(set(said)) == sorted(said), "one warning each"


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = mlp()

    def forward(self, x):
        return self.body(x["x"])


class OfBlocks(Naive):
    def _unpack_minibatch(self):
        pass


def test_inputs_that_are_no_tensor_are_named():
    class Data(torch.utils.data.Dataset):
        targets = [0, 1] * 20

        def __len__(self):
            return 40

        def __getitem__(self, i):
            return {"x": torch.full((WIDTH,), float(i))}, self.targets[i]

    data = [as_classification_dataset(Data())]
    metrics = [*mechanism_metrics(), *landscape_metrics(every=1)]
    cl = strategy(seeded(Blocks), metrics, OfBlocks)
    with pytest.warns(UserWarning, match="the inputs of a sample are a dict: a diagnostic takes one tensor") as caught:
        cl.train(benchmark_from_datasets(train=data, test=data).train_stream, eval_streams=[])
    said = [str(w.message).partition(":")[0] for w in caught if "no value" in str(w.message)]
    assert sorted(said) == sorted(type(metric).__name__ for metric in metrics if metric.needs_samples)
    assert metrics[2].result()["parameter_norm"] > 0


def test_samples_are_drawn_from_the_whole_of_ordered_data_and_stay_the_same():
    stream = domain_stream((600, 600, 40), ordered=True)
    cl = strategy(mlp(), [])
    torch.manual_seed(0)
    state = torch.get_rng_state()
    batches = []
    for experience in (stream[0], stream[0], stream[1], stream[2]):
        cl.experience = experience.logging()
        batches.append(random_samples(cl, 64))
    assert torch.equal(torch.get_rng_state(), state)
    counts = batches[0].targets.bincount(minlength=CLASSES)
    assert counts.min() >= 3, "the first 64 would be of one class"
    assert torch.equal(batches[0].inputs, batches[1].inputs)
    assert len(batches[0].inputs.unique(dim=0)) == 64, "without replacement"
    whole = torch.stack([row[0] for row in stream[0].dataset])
    rows = [int((whole == x).all(1).nonzero()) for x in batches[0].inputs]
    assert rows == sorted(rows)
    assert not torch.equal(batches[0].inputs, batches[2].inputs)
    assert len(batches[3].inputs) == 40


@pytest.mark.parametrize("size", [16, 20])
@pytest.mark.parametrize("at", ["start", "end"])
def test_mini_experiences_are_looked_at_as_the_experience_that_they_are_part_of(size, at):
    looks = []

    class Noting(FeatureMetric):
        def measure(self, strategy, run):
            looks.append((run.passage.number, strategy.clock.train_exp_counter))
            return super().measure(strategy, run)

    parts = -(-48 // size)
    metric = Noting(every=2, at=at)
    norms = NormMetric(every=2, at=at)
    cl = strategy(seeded(mlp), [metric, norms], OnlineNaive)
    stream = domain_stream()
    train(cl, split_online_stream(stream, experience_size=size))
    first = {"start": 0, "end": parts - 1}[at]
    assert looks == [(k, k * parts + first) for k in range(3)], "number 0, every second one, and the last"
    assert len(metric._runs.latest.probe.inputs) == 48, "of the whole experience"
    assert ("update_ratio" in norms.result()) == (at == "end")


def test_two_strategies_with_one_evaluator_are_watched_as_if_alone():
    def metrics():
        return [*mechanism_metrics(), TrainabilityMetric(every=1)]

    stream = domain_stream()
    alone = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        own = metrics()
        cl = strategy(mlp(), own)
        for experience in stream:
            torch.manual_seed(9)
            cl.train(experience, eval_streams=[])
        alone.append([metric.result() for metric in own])
    shared, both = metrics(), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        both.append(strategy(mlp(), shared))
    for experience in stream:
        for cl in both:
            torch.manual_seed(9)
            cl.train(experience, eval_streams=[])
            if experience.current_experience == 2:
                assert [metric.result() for metric in shared] == alone[both.index(cl)]
    assert alone[0] != alone[1]


def test_joint_training_and_a_whole_stream_at_once():
    metrics = mechanism_metrics()
    strategy(seeded(mlp), metrics, JointTraining, criterion=nn.CrossEntropyLoss()).train(
        domain_stream(), eval_streams=[]
    )
    assert metrics[1].result()
    one_by_one, at_once = mechanism_metrics(), mechanism_metrics()
    stream = domain_stream()
    train(strategy(seeded(mlp), one_by_one), stream)
    cl = strategy(seeded(mlp), at_once)
    torch.manual_seed(5)
    cl.train(stream, eval_streams=[])
    assert [m.result() for m in one_by_one] == [m.result() for m in at_once]


def stopping_in(hook, at_step):
    def stop(self, strategy, **_):
        self.seen += 1
        if self.seen == at_step:
            strategy.stop_training()

    return type("Stopping", (SupervisedPlugin,), {hook: stop, "seen": 0})()


class Truth:
    """||dW|| / ||W|| of every step, by copies."""

    def __init__(self, cl):
        self.ratios, self.model = [], cl.model
        cl.optimizer.register_step_pre_hook(self.before)
        cl.optimizer.register_step_post_hook(self.after)

    def vector(self):
        return torch.cat([p.detach().double().flatten() for p in self.model.parameters()])

    def before(self, *_):
        self.old = self.vector()

    def after(self, *_):
        self.ratios.append(float((self.vector() - self.old).norm() / self.old.norm()))


@pytest.mark.parametrize("template", [Naive, SupervisedTemplate])
@pytest.mark.parametrize(
    "hook",
    [
        *("before_training_iteration", "before_forward", "after_forward", "before_backward", "after_backward"),
        *("before_update", "after_update", "after_training_iteration"),
    ],
)
def test_the_update_ratio_is_of_the_last_step_wherever_the_training_is_stopped(hook, template):
    metric = NormMetric()
    cl = strategy(seeded(mlp), [metric], template, plugins=[stopping_in(hook, 5)], epochs=4)
    truth = Truth(cl)
    train(cl, domain_stream()[:1])
    assert len(truth.ratios) == 5, "3 steps an epoch, stopped in the second one of four"
    assert metric.result()["update_ratio"] == pytest.approx(truth.ratios[-1], rel=1e-5)


@pytest.mark.parametrize("hook", ["before_training_epoch", "after_training_epoch"])
@pytest.mark.parametrize("template", [Naive, SupervisedTemplate])
def test_the_update_ratio_of_a_training_that_is_stopped_between_epochs(hook, template):
    metric = NormMetric()
    cl = strategy(seeded(mlp), [metric], template, plugins=[stopping_in(hook, 2)], epochs=4)
    truth = Truth(cl)
    train(cl, domain_stream()[:1])
    assert len(truth.ratios) == (3 if hook == "before_training_epoch" else 6)
    assert metric.result()["update_ratio"] == pytest.approx(truth.ratios[-1], rel=1e-5)


class Unsized(Naive):
    def make_train_dataloader(self, **options):
        super().make_train_dataloader(**options)
        self.dataloader = iter(list(self.dataloader)[:2])


class OwnLoop(Naive):
    def training_epoch(self, **options):
        for batch in list(self.dataloader)[:2]:
            self.mbatch = batch
            self._unpack_minibatch()
            for _ in range(2):
                self.optimizer.zero_grad()
                self.mb_output = self.forward()
                self.loss = self.criterion()
                self.loss.backward()
                self.optimizer_step()


class EverySecond(Naive):
    """Takes a step every second batch; there are three."""

    def optimizer_step(self):
        if self.clock.train_exp_iterations % 2 == 0:
            return
        super().optimizer_step()


@pytest.mark.parametrize("template", [Unsized, OwnLoop, EverySecond])
def test_the_update_ratio_in_loops_of_other_shapes(template):
    metric = NormMetric()
    cl = strategy(seeded(mlp), [metric], template, epochs=1)
    truth = Truth(cl)
    train(cl, domain_stream()[:1])
    assert metric.result()["update_ratio"] == pytest.approx(truth.ratios[-1], rel=1e-5)


def test_early_stopping_puts_other_weights_back_and_the_ratio_is_still_of_the_step():
    metric = NormMetric()
    scores = [metric, *accuracy_metrics(stream=True)]
    stopping = EarlyStoppingPlugin(1, "train_stream", metric_name="Top1_Acc_Stream", margin=1.0)
    cl = strategy(seeded(mlp), scores, plugins=[stopping], epochs=9, eval_every=1)
    truth = Truth(cl)
    stream = domain_stream()[:1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cl.train(stream[0], eval_streams=[stream])
    assert 3 <= len(truth.ratios) < 27
    assert metric.result()["update_ratio"] == pytest.approx(truth.ratios[-1], rel=1e-5)


def test_only_the_last_step_of_an_epoch_is_copied():
    copies = []

    class Counting(nn.Linear):
        def named_parameters(self, *args, **kwargs):
            copies.append(1)
            return super().named_parameters(*args, **kwargs)

    scheduler = LRSchedulerPlugin(torch.optim.lr_scheduler.ConstantLR(torch.optim.SGD([torch.zeros(1)], 0.1)))
    cl = strategy(Counting(WIDTH, CLASSES), [], plugins=[scheduler], epochs=3)

    class Watching(SupervisedPlugin):
        def before_training_exp(self, strategy, **_):
            self.last = LastStep(strategy)
            copies.clear()

    watching = Watching()
    cl.plugins.insert(0, watching)
    cl.train(domain_stream((160,))[0], eval_streams=[])
    assert len(copies) == 2 * 3, "before and after the last of ten steps, in each of three epochs"
    assert watching.last.ratio() > 0


@pytest.mark.parametrize("logger", [TextLogger, InteractiveLogger])
def test_loggers_of_text_print_no_tensors_and_no_objects(logger, capsys):
    out = io.StringIO()
    made = TextLogger(out) if logger is TextLogger else InteractiveLogger()
    made.file = out
    cl = strategy(seeded(mlp), [PictureMetric(every=1), NormMetric()], loggers=[made])
    stream = domain_stream()[:1]
    cl.train(stream[0], eval_streams=[])
    cl.eval(stream)
    text = out.getvalue()
    assert "norms/parameter_norm" in text
    assert "pictures/network" not in text
    assert "tensor(" not in text
    assert "object at" not in text
    assert "<" not in text.replace("-- >>", "").replace("<< --", "")


def test_tensorboard_survives_weights_that_are_not_finite_and_layers_without_values(tmp_path):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = mlp()
            self.unused = nn.Parameter(torch.empty(0))
            self.lost = nn.ParameterList([torch.full((3,), float("nan")), torch.tensor([1.0, float("inf")])])
            self.small = nn.Linear(2, 2, dtype=torch.bfloat16)

        def forward(self, x):
            return self.body(x)

    logger = TensorboardLogger(tmp_path)
    train(strategy(seeded(Odd), [PictureMetric(every=1)], loggers=[logger]), domain_stream()[:1])
    logger.writer.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    tags = set(events.Tags()["histograms"])
    assert {"weights/body.0", "weights/small", "weights/lost"} <= tags
    assert events.Histograms("weights/lost")[0].histogram_value.num == 1, "the one finite value"


def test_a_first_experience_without_samples_leaves_the_probe_to_the_next():
    empty = AvalancheDataset([TensorDataset(torch.empty(0, WIDTH), torch.empty(0, dtype=torch.long))])
    full = AvalancheDataset([labelled(40, 0)])
    stream = benchmark_from_datasets(train=[empty, full], test=[full]).train_stream

    class NothingToDo(Naive):
        def make_train_dataloader(self, **options):
            if len(self.adapted_dataset):
                super().make_train_dataloader(**options)
            else:
                self.dataloader = []

    metrics = [FeatureMetric(), NormMetric(), KernelMetric()]
    cl = strategy(seeded(mlp), metrics, NothingToDo)
    with pytest.warns(UserWarning, match="FeatureMetric: no value .*: the experience has no samples"):
        cl.train(stream[0], eval_streams=[])
    assert metrics[0].result() == metrics[2].result() == {}
    assert "update_ratio" not in metrics[1].result()
    cl.train(stream[1], eval_streams=[])
    assert all(metric.result() for metric in metrics)
