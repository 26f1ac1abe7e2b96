"""The invariant of the fresh reference: the same start weights end as the same weights, in any Avalanche script."""

import copy
import threading
import warnings
import weakref

import pytest
import torch
from avalanche.benchmarks import (
    benchmark_from_datasets,
    nc_benchmark,
    split_online_stream,
    with_classes_timeline,
    with_task_labels,
)
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.benchmarks.utils.classification_dataset import _make_taskaware_classification_dataset
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.models import IncrementalClassifier, MTSimpleMLP
from avalanche.training import AGEM, EWC, Cumulative, JointTraining, LwF, Naive, Replay, SynapticIntelligence
from avalanche.training import plugins as avalanche_plugins
from avalanche.training.plugins import EarlyStoppingPlugin, EvaluationPlugin, LRSchedulerPlugin, SupervisedPlugin
from avalanche.training.supervised.strategy_wrappers_online import OnlineNaive
from avalanche.training.templates import SupervisedTemplate as AvalancheTemplate
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from torch import nn, optim
from torch.optim import lr_scheduler
from torch.utils.data import TensorDataset

from plasticity_cl.errors import UserError
from plasticity_cl.metrics import plasticity_metrics
from plasticity_cl.strategies import L2Plugin, LayerNormPlugin, WeightDecayPlugin
from plasticity_cl.training import SupervisedTemplate


def labelled(n, seed, shift=0.0):
    random = torch.Generator().manual_seed(seed)
    y = torch.randint(4, (n,), generator=random)
    x = torch.randn(n, 6, generator=random) + 2 * nn.functional.one_hot(y, 6).float() + shift
    data = TensorDataset(x, y)
    data.targets = y.tolist()
    return data


def benchmark(as_dataset):
    return with_classes_timeline(
        benchmark_from_datasets(
            train=[as_dataset(labelled(51, k, k)) for k in range(3)],
            test=[as_dataset(labelled(21, 100 + k, k)) for k in range(3)],
        )
    )


BENCHMARK = benchmark(as_classification_dataset)


WITH_TASK_LABELS = with_task_labels(benchmark(lambda data: _make_taskaware_classification_dataset(data, task_labels=0)))


def plain():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 10))


def with_dropout_and_batch_norm():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 10))


class Growing(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.first, self.head = nn.Linear(6, 16), IncrementalClassifier(16, 1)

    def forward(self, x):
        return self.head(torch.relu(self.first(x)))


class Lookahead(optim.Optimizer):
    """A stranger's optimizer: a constructor of its own, another optimizer inside, slow weights, a counter."""

    def __init__(self, base, *, k, alpha):
        self.base, self.k, self.alpha, self.count = base, k, alpha, 0
        super().__init__(
            [{"params": list(group["params"])} for group in base.param_groups], {"lr": base.defaults["lr"]}
        )
        self.slow = {p: p.detach().clone() for group in base.param_groups for p in group["params"]}

    def step(self, closure=None):
        self.base.param_groups[0]["params"] = self.param_groups[0]["params"]
        self.base.step()
        self.count += 1
        if self.count % self.k == 0:
            for p, slow in self.slow.items():
                slow.lerp_(p.detach(), self.alpha)
                p.data.copy_(slow)

    def zero_grad(self, set_to_none=True):
        super().zero_grad(set_to_none)


class NoisySign(optim.Optimizer):
    """A stranger's optimizer that takes the network itself, and draws from a generator of its own."""

    def __init__(self, network, learning_rate, seed):
        self.random = torch.Generator().manual_seed(seed)
        self.names = [name for name, _ in network.named_parameters()]
        super().__init__(network.parameters(), {"lr": learning_rate})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    noise = torch.randn(p.shape, generator=self.random)
                    p.data.add_(p.grad.sign() + 0.1 * noise, alpha=-group["lr"])


def two_groups(kind, **options):
    def make(network):
        parameters = list(network.parameters())
        return kind([{"params": parameters[:2], "lr": 0.02}, {"params": parameters[2:], "lr": 0.1}], lr=0.05, **options)

    return make


OPTIMIZERS = {
    "sgd": lambda m: optim.SGD(m.parameters(), lr=0.2),
    "nesterov": lambda m: optim.SGD(m.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "sgd, groups": two_groups(optim.SGD, momentum=0.5),
    "adam": lambda m: optim.Adam(m.parameters(), lr=0.02, betas=(0.8, 0.95), eps=1e-6),
    "amsgrad": lambda m: optim.Adam(m.parameters(), lr=0.02, amsgrad=True, foreach=False),
    "adam, tensor lr": lambda m: optim.Adam(m.parameters(), lr=torch.tensor(0.02), foreach=False),
    "adamw": lambda m: optim.AdamW(m.parameters(), lr=0.02, weight_decay=0.1),
    "adamw, groups": two_groups(optim.AdamW),
    "nadam": lambda m: optim.NAdam(m.parameters(), lr=0.02, decoupled_weight_decay=True),
    "radam": lambda m: optim.RAdam(m.parameters(), lr=0.05),
    "adamax": lambda m: optim.Adamax(m.parameters(), lr=0.02),
    "adadelta": lambda m: optim.Adadelta(m.parameters(), lr=1.0),
    "rmsprop": lambda m: optim.RMSprop(m.parameters(), lr=0.01, momentum=0.5, centered=True),
    "asgd": lambda m: optim.ASGD(m.parameters(), lr=0.1),
    "rprop": lambda m: optim.Rprop(m.parameters(), lr=0.01),
    "adafactor": lambda m: optim.Adafactor(m.parameters(), lr=0.05),
    "lookahead": lambda m: Lookahead(optim.SGD(m.parameters(), lr=0.2), k=3, alpha=0.5),
    "noisy sign": lambda m: NoisySign(m, 0.01, seed=5),
}
SCHEDULERS = {
    "step": lambda o: lr_scheduler.StepLR(o, 1, 0.3),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 4),
    "exponential": lambda o: lr_scheduler.ExponentialLR(o, 0.7),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 1 / (1 + epoch)),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.2, total_steps=40, cycle_momentum=False),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.2, step_size_up=3, cycle_momentum=False),
    "warm restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.1, 2), lr_scheduler.ExponentialLR(o, 0.9)], milestones=[2]
    ),
    "chained": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.5, 2), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
}


class ClipGradients(SupervisedPlugin):
    def before_update(self, strategy, **_):
        nn.utils.clip_grad_norm_(strategy.model.parameters(), 0.5)


class ClipHeld(SupervisedPlugin):
    """Holds on to the parameters instead of asking the strategy for its network."""

    def __init__(self, network):
        super().__init__()
        self.parameters, self.data = list(network.parameters()), [p.data for p in network.parameters()]

    def before_update(self, strategy, **_):
        nn.utils.clip_grad_value_(self.parameters, 0.1)

    def after_training_epoch(self, strategy, **_):
        for data in self.data:
            data.clamp_(-1.0, 1.0)


class WatchNetwork(SupervisedPlugin):
    """Looks at a weak reference, and keeps a moving average of the weights to put back."""

    def __init__(self, network):
        super().__init__()
        self.network = weakref.ref(network)
        self.average = {name: p.detach().clone() for name, p in network.named_parameters()}

    def after_update(self, strategy, **_):
        for name, p in self.network().named_parameters():
            if name in self.average and self.average[name].shape == p.shape:
                self.average[name].lerp_(p.detach(), 0.1)

    def after_training_exp(self, strategy, **_):
        for name, p in strategy.model.named_parameters():
            if name in self.average and self.average[name].shape == p.shape:
                p.data.copy_(self.average[name])


class DrawNoise(SupervisedPlugin):
    """Draws from the global generator and from one of its own."""

    def __init__(self, seed):
        super().__init__()
        self.random = torch.Generator().manual_seed(seed)

    def before_forward(self, strategy, **_):
        noise = torch.randn(strategy.mb_x.shape) + torch.randn(strategy.mb_x.shape, generator=self.random)
        strategy.mbatch[0] = strategy.mb_x + 0.1 * noise


class PullsToInitialisation(SupervisedPlugin):
    """L2 towards the initial weights, copied when it is made."""

    def __init__(self, network):
        super().__init__()
        self.initial = {name: p.detach().clone() for name, p in network.named_parameters()}

    def before_backward(self, strategy, **_):
        for name, p in strategy.model.named_parameters():
            if name in self.initial and self.initial[name].shape == p.shape:
                strategy.loss += 0.1 * (p - self.initial[name]).square().sum()


def local_scheduler(network, optimizer):
    """A class defined in a function, whose methods hold on to the scheduler and the network around them."""
    scheduler = lr_scheduler.ExponentialLR(optimizer, 0.5)
    seen = []

    class Local(SupervisedPlugin):
        def __init__(self):
            super().__init__()
            self.calls = 0

        def after_training_epoch(self, strategy, **_):
            self.calls += 1
            seen.append(self.calls)
            scheduler.step()
            with torch.no_grad():
                next(network.parameters()).mul_(0.9)

    return Local()


def monkeypatched(network, optimizer):
    plugin = ClipGradients()
    plugin.before_update = lambda strategy, **_: nn.utils.clip_grad_norm_(network.parameters(), 0.3)
    return plugin


PLUGINS = {
    "clip": lambda m, o: ClipGradients(),
    "clip held": lambda m, o: ClipHeld(m),
    "average": lambda m, o: WatchNetwork(m),
    "initialisation": lambda m, o: PullsToInitialisation(m),
    "noise": lambda m, o: DrawNoise(1),
    "local class": local_scheduler,
    "patched method": monkeypatched,
    "early stopping": lambda m, o: EarlyStoppingPlugin(1, "test_stream"),
    "early stopping by loss": lambda m, o: EarlyStoppingPlugin(1, "test_stream", "Loss_Stream", mode="min"),
    "plateau, training": lambda m, o: LRSchedulerPlugin(
        lr_scheduler.ReduceLROnPlateau(o, patience=0, factor=0.3), metric="train_loss"
    ),
    "plateau, validation": lambda m, o: LRSchedulerPlugin(
        lr_scheduler.ReduceLROnPlateau(o, patience=0, factor=0.3), metric="val_loss"
    ),
    "ewc": lambda m, o: avalanche_plugins.EWCPlugin(1.0),
    "ewc, online": lambda m, o: avalanche_plugins.EWCPlugin(1.0, mode="online", decay_factor=0.5),
    "lwf": lambda m, o: avalanche_plugins.LwFPlugin(),
    "replay": lambda m, o: avalanche_plugins.ReplayPlugin(20),
    "gem": lambda m, o: avalanche_plugins.GEMPlugin(10, 0.1),
    "agem": lambda m, o: avalanche_plugins.AGEMPlugin(10, 10),
    "si": lambda m, o: avalanche_plugins.SynapticIntelligencePlugin(0.1),
    "gdumb": lambda m, o: avalanche_plugins.GDumbPlugin(20),
    "rwalk": lambda m, o: avalanche_plugins.RWalkPlugin(),
    "lfl": lambda m, o: avalanche_plugins.LFLPlugin(0.1),
    "feature distillation": lambda m, o: avalanche_plugins.FeatureDistillationPlugin(),
    "gss": lambda m, o: avalanche_plugins.GSS_greedyPlugin(10, input_size=[6]),
    "mir": lambda m, o: avalanche_plugins.MIRPlugin(8, 10, 4),
    "rar": lambda m, o: avalanche_plugins.RARPlugin(10, batch_size_mem=8),
    "mas": lambda m, o: avalanche_plugins.MASPlugin(),
    "from scratch": lambda m, o: avalanche_plugins.FromScratchTrainingPlugin(),
    "layer norm": lambda m, o: LayerNormPlugin(),
    "l2": lambda m, o: L2Plugin(1e-2),
    "weight decay": lambda m, o: WeightDecayPlugin(0.1),
}


class OwnLoss(Naive):
    def criterion(self):
        return super().criterion() + 0.1 * self.mb_output.square().mean()


class OwnLoader(Naive):
    def make_train_dataloader(self, shuffle=True, **options):
        super().make_train_dataloader(shuffle=False, **options)


class PutsOnNetwork(Naive):
    """Keeps its state on the network, as Avalanche's CWRStar does."""

    def __init__(self, **options):
        super().__init__(**options)
        self.model.steps, self.model[0].scales = 0, {"weight": torch.ones(())}

    def optimizer_step(self):
        self.model.steps += 1
        self.model[0].scales["weight"] *= 0.99
        self.model[0].weight.grad.mul_(self.model[0].scales["weight"])
        super().optimizer_step()


class OwnTrain(SupervisedTemplate):
    def __init__(self, **options):
        super().__init__(**options)
        self.scale = 0.5

    def train(self, experiences, eval_streams=None, *, warm_up=0, **options):
        self.scale = 1.0 / (1 + warm_up)
        return super().train(experiences, eval_streams, **options)

    def backward(self):
        (self.loss * self.scale).backward()


CLASSES = {
    "naive": (Naive, {}),
    "ours": (SupervisedTemplate, {}),
    "template": (AvalancheTemplate, {}),
    "own loss": (OwnLoss, {}),
    "own loader": (OwnLoader, {}),
    "own train": (OwnTrain, {}),
    "puts on network": (PutsOnNetwork, {}),
    "cumulative": (Cumulative, {}),
    "ewc": (EWC, {"ewc_lambda": 1.0}),
    "lwf": (LwF, {"alpha": 1.0, "temperature": 2.0}),
    "replay": (Replay, {"mem_size": 20}),
    "agem": (AGEM, {"patterns_per_exp": 10, "sample_size": 10}),
    "si": (SynapticIntelligence, {"si_lambda": 0.1}),
}


def build(kind, network, optimizer, plugins=(), metrics=(), epochs=3, **options):
    cls, own = CLASSES[kind]
    model = network()
    made = OPTIMIZERS[optimizer](model)
    return cls(
        model=model,
        optimizer=made,
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=16,
        train_epochs=epochs,
        plugins=[plugin(model, made) for plugin in plugins],
        evaluator=EvaluationPlugin(
            *metrics, accuracy_metrics(stream=True), loss_metrics(stream=True), loggers=[], collect_all=False
        ),
        **own,
        **options,
    )


def weights(cl):
    return {**dict(cl.model.named_parameters()), **dict(cl.model.named_buffers())}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@st.composite
def scripts(draw):
    """What an Avalanche script may consist of."""
    kind = draw(st.sampled_from(sorted(CLASSES)))
    network = draw(st.sampled_from([plain, with_dropout_and_batch_norm, Growing]))
    names = draw(st.lists(st.sampled_from(sorted(PLUGINS)), max_size=3, unique=True))
    scheduler = draw(st.sampled_from([None, *sorted(SCHEDULERS)]))
    granularity = draw(st.sampled_from(["epoch", "iteration"]))
    plugins = [PLUGINS[name] for name in names]
    if scheduler:
        make = SCHEDULERS[scheduler]
        plugins.append(lambda m, o: LRSchedulerPlugin(make(o), step_granularity=granularity))
    options = {
        "eval_every": draw(st.sampled_from([-1, 0, 1])),
        "benchmark": draw(st.sampled_from([BENCHMARK, WITH_TASK_LABELS])),
        "train": draw(st.sampled_from([{}, {"shuffle": False}, {"drop_last": True}, {"num_workers": 0}])),
    }
    if kind == "own train" and draw(st.booleans()):
        options["train"] = {**options["train"], "warm_up": 2}
    return kind, network, draw(st.sampled_from(sorted(OPTIMIZERS))), plugins, options


def train_first(kind, network, optimizer, plugins, options, metrics=()):
    cl = build(kind, network, optimizer, plugins, metrics, eval_every=options["eval_every"])
    train_stream, test_stream = options["benchmark"].train_stream, options["benchmark"].test_stream
    torch.manual_seed(5)
    cl.train(train_stream[0], eval_streams=[test_stream[:1]], **options["train"])
    after = torch.get_rng_state()
    cl.eval(test_stream[:1])
    return cl, after


@pytest.mark.slow
@settings(max_examples=240)
@given(scripts())
@pytest.mark.filterwarnings("ignore")
def test_the_same_start_gives_the_same_network_and_the_run_is_not_disturbed(script):
    try:
        bare, bare_rng = train_first(*script)
    except Exception:  # Avalanche itself does not do this
        reject()
    metrics = plasticity_metrics(reference=script[1])
    cl, rng = train_first(*script, metrics)
    assert same(weights(bare), weights(cl))
    assert torch.equal(bare_rng, rng)
    fresh = metrics[0]._fresh_networks._fresh
    assert same(weights(cl), weights(fresh))
    assert cl.clock.train_iterations == fresh.clock.train_iterations
    result = metrics[0].result()["test"]
    assert result.fresh[0] == result.learned[0] == result.final[0]
    assert result.plasticity_loss[0] == result.forgetting[0] == 0


def run_all(metrics, network=plain, optimizer="sgd", plugins=(), before=lambda cl, k: None, kind="naive", **options):
    cl = build(kind, network, optimizer, plugins, metrics, **options)
    for k, experience in enumerate(BENCHMARK.train_stream):
        before(cl, k)
        torch.manual_seed(k)
        cl.train(experience, eval_streams=[])
        cl.eval(BENCHMARK.test_stream[k : k + 1])
    cl.eval(BENCHMARK.test_stream)
    return cl


def alone(k, network=plain, optimizer="sgd", plugins=(), before=lambda cl, k: None, kind="naive", **options):
    """S_k by hand: a new strategy of the same kind, trained on experience k alone."""
    metrics = plasticity_metrics()
    cl = build(kind, network, optimizer, plugins, metrics, **options)
    before(cl, k)
    torch.manual_seed(k)
    cl.train(BENCHMARK.train_stream[k], eval_streams=[])
    cl.eval(BENCHMARK.test_stream[k : k + 1])
    return metrics[0].result()["test"].learned[k]


def set_rate(cl, k):
    for group in cl.optimizer.param_groups:
        group["lr"] = 0.3 / (1 + k)


def set_epochs(cl, k):
    cl.train_epochs, cl.train_mb_size = 1 + k, 8 * (k + 1)


def set_optimizer(cl, k):
    cl.optimizer = optim.Adam(cl.model.parameters(), lr=0.01 * (k + 1))


@pytest.mark.parametrize("before", [lambda cl, k: None, set_rate, set_epochs, set_optimizer])
@pytest.mark.parametrize("network", [plain, Growing])
def test_later_fresh_networks_are_those_of_a_run_on_the_experience_alone(before, network):
    metrics = plasticity_metrics(reference=network)
    run_all(metrics, network, before=before)
    fresh = metrics[0].result()["test"].fresh
    assert [alone(k, network, before=before) for k in range(3)] == list(fresh)
    assert len(set(fresh)) > 1


def test_what_was_copied_from_the_network_is_copied_from_the_fresh_one():
    seeds = iter(range(10, 20))

    def unlike():
        torch.manual_seed(next(seeds))
        return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 10))

    pulls = [lambda m, o: PullsToInitialisation(m), lambda m, o: WatchNetwork(m)]
    metrics = plasticity_metrics(reference=unlike)
    run_all(metrics, unlike, plugins=pulls)  # the run takes the seed 10, and the copy of its strategy 11
    seeds = iter(range(12, 20))
    assert [alone(k, unlike, plugins=pulls) for k in range(3)] == list(metrics[0].result()["test"].fresh)


def test_a_network_whose_experiences_are_trained_in_one_call_has_its_fresh_ones_too():
    metrics = plasticity_metrics(reference=plain)
    cl = build("naive", plain, "sgd", metrics=metrics, eval_every=0)
    cl.train(BENCHMARK.train_stream, eval_streams=[BENCHMARK.test_stream])
    cl.eval(BENCHMARK.test_stream)
    result = metrics[0].result()["test"]
    assert not any(value != value for value in result.total)
    assert result.plasticity_loss[0] == 0


def test_an_own_generator_of_the_loader_is_left_to_the_run():
    random = torch.Generator().manual_seed(9)
    bare = build("naive", plain, "sgd")
    bare.train(BENCHMARK.train_stream[0], eval_streams=[], generator=random)
    after = random.get_state()
    metrics, random = plasticity_metrics(reference=plain), torch.Generator().manual_seed(9)
    cl = build("naive", plain, "sgd", metrics=metrics)
    cl.train(BENCHMARK.train_stream[0], eval_streams=[], generator=random)
    assert torch.equal(after, random.get_state())
    assert same(weights(bare), weights(cl))
    assert same(weights(metrics[0]._fresh_networks._fresh), weights(cl))


def test_what_a_plugin_writes_outside_of_itself_is_written_once():
    seen = []

    class Count(SupervisedPlugin):
        def after_training_epoch(self, strategy, **_):
            seen.append(strategy.clock.train_exp_epochs)

    run_all(plasticity_metrics(reference=plain), plugins=[lambda m, o: Count()])
    assert len(seen) == 9


scheduler_of_the_script = None


class StepsGlobal(SupervisedPlugin):
    def after_training_epoch(self, strategy, **_):
        step_the_global()


def step_the_global():
    scheduler_of_the_script.step()


class HoldsLock(SupervisedPlugin):
    def __init__(self, network):
        super().__init__()
        self.lock, self.network = threading.Lock(), network


def with_global_scheduler(network, optimizer):
    global scheduler_of_the_script
    scheduler_of_the_script = lr_scheduler.ExponentialLR(optimizer, 0.5)
    plugin = StepsGlobal()
    plugin.scheduler = scheduler_of_the_script
    return plugin


def wider():
    return nn.Sequential(nn.Linear(6, 17), nn.ReLU(), nn.Linear(17, 10))


def frozen():
    network = plain()
    network[0].weight.requires_grad_(False)
    return network


@pytest.mark.parametrize(
    ("reference", "plugins", "message"),
    [
        (plain, [with_global_scheduler], "StepsGlobal reads the global variable scheduler_of_the_script"),
        (plain, [lambda m, o: HoldsLock(m)], "HoldsLock of Naive cannot be copied"),
        (wider, [], r"parameter 0.weight is float32 \[17, 6\], not float32 \[16, 6\]"),
        (frozen, [], r"parameter 0.weight is float32 \[16, 6\], frozen, not float32 \[16, 6\]"),
        (lambda: nn.Sequential(nn.Linear(6, 10)), [], "module 0|module 1 is missing"),
        (lambda: 1 / 0, [], "ZeroDivisionError"),
    ],
)
def test_what_cannot_be_reproduced_is_said_once_by_name_and_the_run_goes_on(reference, plugins, message):
    bare = run_all([], plugins=plugins)
    metrics = plasticity_metrics(reference=reference)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cl = run_all(metrics, plugins=plugins)
    said = [str(warning.message) for warning in caught if "SeparationMetric" in str(warning.message)]
    assert len(said) == 1
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(said[0])
    assert same(weights(bare), weights(cl))
    assert all(value != value for value in metrics[0].result()["test"].plasticity_loss[1:])


def test_a_factory_of_whole_strategies_needs_no_copy():
    metrics = plasticity_metrics(reference=lambda: build("naive", plain, "sgd", [lambda m, o: HoldsLock(m)]))
    run_all(metrics, plugins=[lambda m, o: HoldsLock(m)])
    assert [alone(k) for k in range(3)] == list(metrics[0].result()["test"].fresh)


def returns_the_trained_network():
    model = plain()
    metrics = plasticity_metrics(reference=lambda: model)
    return build("naive", lambda: model, "sgd", metrics=metrics)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ([0.9, 0.8, 0.7], "reference must be a mapping.* it is a list"),
        ({"test": 0.9}, "the scores of 'test' are 0.9"),
        ({"test": ["high"]}, "the scores of 'test'"),
        (plain(), "reference must be a mapping"),
    ],
)
def test_a_wrong_reference_is_refused_when_it_is_given(reference, message):
    if isinstance(reference, nn.Module):
        reference = list(reference.parameters())
    with pytest.raises(UserError, match=message):
        plasticity_metrics(reference=reference)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reference": {"tset": [1.0] * 3}}, "reference: unknown stream 'tset'; did you mean test"),
        ({"reference": {"test": [1.0] * 2}}, "stream test has 3 experiences, and 2 scores are given"),
        ({"baseline": {"test": []}}, "baseline: stream test has 3 experiences, and 0 scores are given"),
        ({"reference": lambda: 1}, "it returned a int"),
        ({"reference": lambda: "network"}, "it returned a str"),
    ],
)
def test_a_reference_that_does_not_fit_is_refused_before_the_first_step(options, message):
    cl = build("naive", plain, "sgd", metrics=plasticity_metrics(**options))
    before = copy.deepcopy(weights(cl))
    with pytest.raises(UserError, match=message):
        cl.train(BENCHMARK.train_stream, eval_streams=[])
    assert same(before, weights(cl))


def test_a_reference_that_returns_the_trained_network_is_refused():
    with pytest.raises(UserError, match="a network that is in use already"):
        returns_the_trained_network().train(BENCHMARK.train_stream[0], eval_streams=[])


def test_a_reference_that_goes_on_returning_one_network_is_said():
    networks = [plain(), plain()]
    metrics = plasticity_metrics(reference=lambda: networks.pop(0) if len(networks) > 1 else networks[0])
    with pytest.warns(UserWarning, match="a network that is in use already"):
        cl = run_all(metrics)
    assert same(weights(run_all([])), weights(cl))


def test_joint_training_has_a_table_but_no_fresh_networks():
    metrics = plasticity_metrics(reference=plain)
    model = plain()
    cl = JointTraining(
        model=model,
        optimizer=optim.SGD(model.parameters(), lr=0.2),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=16,
        evaluator=EvaluationPlugin(metrics, loggers=[]),
    )
    with pytest.warns(UserWarning, match="JointTraining trains on all experiences at once"):
        cl.train(BENCHMARK.train_stream, eval_streams=[])
    cl.eval(BENCHMARK.test_stream)
    result = metrics[0].result()["test"]
    assert list(result.learned) == list(result.final)
    assert len(result.learned) == 3
    assert not any(value != value for value in result.forgetting)


def test_several_heads_and_online_strategies_have_fresh_networks():
    def heads():
        torch.manual_seed(3)
        return MTSimpleMLP(input_size=6, hidden_size=16)

    metrics = plasticity_metrics(reference=heads)
    cl = build("naive", heads, "adam", metrics=metrics)
    tasks = nc_benchmark(labelled(80, 1), labelled(40, 2), n_experiences=2, task_labels=True, seed=0)
    for k, experience in enumerate(tasks.train_stream):
        cl.train(experience, eval_streams=[])
        cl.eval(tasks.test_stream[k : k + 1])
    result = metrics[0].result()["test"]
    assert result.plasticity_loss[0] == 0
    assert not any(value != value for value in result.fresh)

    metrics, model = plasticity_metrics(reference=plain), plain()
    online = OnlineNaive(
        model=model,
        optimizer=optim.SGD(model.parameters(), lr=0.1),
        criterion=nn.CrossEntropyLoss(),
        train_passes=2,
        train_mb_size=4,
        evaluator=EvaluationPlugin(metrics, loggers=[]),
    )
    for mini in split_online_stream(BENCHMARK.train_stream[:1], 10, seed=1):
        online.train(mini, eval_streams=[])
    online.eval(BENCHMARK.test_stream[:1])
    assert metrics[0].result()["test"].plasticity_loss[0] == 0
    assert same(weights(online), weights(metrics[0]._fresh_networks._fresh))
