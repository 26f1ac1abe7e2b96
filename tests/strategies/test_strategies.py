"""Interventions: each against a loop written by hand, in any company, and with every mistake answered."""

import copy

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import AvalancheDataset, _make_taskaware_classification_dataset
from avalanche.models import IncrementalClassifier
from avalanche.training import EWC, Naive
from avalanche.training.plugins import EWCPlugin, ReplayPlugin, SupervisedPlugin
from avalanche.training.plugins import LwFPlugin as AvalancheLwFPlugin
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from plasticity_cl import strategies
from plasticity_cl.errors import UserError
from plasticity_cl.losses import HLGaussLoss, TwoHotLoss
from plasticity_cl.models.surgery import insert_normalization
from plasticity_cl.scenarios.stream import InMemoryScenario
from plasticity_cl.seeding import generator
from plasticity_cl.strategies import (
    L2,
    Finetune,
    L2Plugin,
    LayerNorm,
    LayerNormL2,
    LayerNormL2ScaleInvariant,
    LayerNormPlugin,
    LwFPlugin,
    OptimizerResetPlugin,
    ScaleInvariant,
    ScaleInvariantLossPlugin,
    WeightDecayPlugin,
)
from plasticity_cl.training import Samples

SIZE, FEATURES, CLASSES = 24, 6, 3


def draw(split: str, k: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator(split, k))


def classification() -> InMemoryScenario:
    def samples(split: str, k: int) -> Samples:
        labels = torch.randint(CLASSES, (SIZE,), generator=generator(split, k, "labels"))
        return Samples(draw(split, k, SIZE, FEATURES), labels)

    return InMemoryScenario(
        "tiny", 3, lambda k: samples("train", k), lambda k: samples("test", k), input_shape=(FEATURES,), n_outputs=3
    )


def regression(mean: float = 100.0) -> InMemoryScenario:
    def samples(split: str, k: int) -> Samples:
        inputs = draw(split, k, SIZE, FEATURES)
        return Samples(inputs, mean + inputs[:, :1])

    return InMemoryScenario(
        "tiny", 3, lambda k: samples("train", k), lambda k: samples("test", k), input_shape=(FEATURES,), n_outputs=1
    )


def make_network(n_outputs: int = CLASSES) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, n_outputs))


def make(kind=Finetune, /, network=None, optimizer=None, plugins=(), **arguments):
    network = make_network() if network is None else network
    return kind(
        model=network,
        optimizer=torch.optim.Adam(network.parameters(), 1e-2) if optimizer is None else optimizer,
        criterion=arguments.pop("criterion", nn.CrossEntropyLoss()),
        train_mb_size=8,
        train_epochs=2,
        plugins=list(plugins),
        evaluator=None,
        **arguments,
    )


def train(strategy, scenario, experiences=(0, 1)) -> list[Tensor]:
    torch.manual_seed(1)
    for k in experiences:
        strategy.train([scenario.train_stream[k]], eval_streams=[])
    return [parameter.detach().clone() for parameter in strategy.model.parameters()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


def optimised(strategy) -> set[int]:
    return {id(parameter) for group in strategy.optimizer.param_groups for parameter in group["params"]}


# ------------------------------------------------------------------------------------------------ LayerNormPlugin


@pytest.mark.parametrize(("kind", "norm"), [(Finetune, "layer"), (Naive, "layer"), (EWC, "layer"), (Finetune, "batch")])
def test_layer_norm_ends_in_the_weights_of_a_network_that_was_normalised_by_hand(kind, norm):
    arguments = {"ewc_lambda": 10.0} if kind is EWC else {}
    original = make_network()
    plugin_strategy = make(kind, original, plugins=[LayerNormPlugin(norm)], **arguments)
    by_hand = insert_normalization(make_network(), norm)
    assert same(train(plugin_strategy, classification()), train(make(kind, by_hand, **arguments), classification()))
    assert same(list(plugin_strategy.model.buffers()), list(by_hand.buffers()))

    fresh = dict(by_hand.named_parameters()).keys() - dict(original.named_parameters()).keys()
    assert len(fresh) == 4, "scale and shift before each of two nonlinearities"
    assert optimised(plugin_strategy) == {id(p) for p in plugin_strategy.model.parameters()}
    for name, parameter in plugin_strategy.model.named_parameters():
        if name in fresh:
            assert not torch.equal(parameter, torch.full_like(parameter, float(name.endswith("weight")))), name
    assert all(
        parameter is original.get_parameter(name)
        for name, parameter in plugin_strategy.model.named_parameters()
        if name not in fresh
    )


@pytest.mark.parametrize("kind", [Finetune, Naive])
def test_layer_norm_is_there_for_an_evaluation_that_comes_first_and_training_goes_on_as_without_it(kind):
    scenario = classification()
    strategy = make(kind, plugins=[LayerNormPlugin(), spy := Outputs()])
    strategy.eval(scenario.test_stream[:1])
    normalised = insert_normalization(make_network())
    assert torch.equal(spy.outputs[0], normalised(draw("test", 0, SIZE, FEATURES)[:8]))
    assert same(train(strategy, scenario), train(make(kind, plugins=[LayerNormPlugin()]), scenario))


def test_layer_norm_is_there_for_the_evaluation_inside_the_first_training():
    scenario = classification()
    strategy = make(plugins=[LayerNormPlugin(), spy := Outputs()], eval_every=1)
    torch.manual_seed(1)
    strategy.train([scenario.train_stream[0]], eval_streams=[[scenario.test_stream[0]]])
    assert torch.equal(spy.outputs[0], insert_normalization(make_network())(draw("test", 0, SIZE, FEATURES)[:8]))
    assert all(module.training for module in strategy.model.modules())


def test_preparing_a_strategy_draws_no_random_number_even_where_the_data_set_does():
    class Noisy(Dataset):
        def __len__(self):
            return SIZE

        def __getitem__(self, index):
            return torch.rand(FEATURES), 0

    strategy = make(plugins=[LayerNormPlugin()])
    before = torch.get_rng_state()
    benchmark = benchmark_from_datasets(train=[AvalancheDataset([Noisy()])])
    strategy.plugins[0].prepare(strategy, benchmark.train_stream[0])
    assert torch.equal(torch.get_rng_state(), before)
    assert sum(isinstance(module, nn.LayerNorm) for module in strategy.model.modules()) == 2


def test_layer_norm_joins_the_first_of_several_parameter_groups():
    network = make_network()
    groups = [{"params": network[:4].parameters(), "lr": 0.0}, {"params": network[4].parameters()}]
    strategy = make(network=network, optimizer=torch.optim.SGD(groups, lr=0.1), plugins=[LayerNormPlugin()])
    train(strategy, classification())
    counts = [len(group["params"]) for group in strategy.optimizer.param_groups]
    assert counts == [4 + 4, 2]
    scales = [module.weight for module in strategy.model.modules() if isinstance(module, nn.LayerNorm)]
    assert all(torch.equal(scale, torch.ones(12)) for scale in scales), "their group has a learning rate of 0"
    assert not torch.equal(strategy.model.get_parameter("4.weight"), make_network()[4].weight)


def test_one_plugin_serves_several_strategies_and_a_copied_strategy_goes_on():
    scenario, plugin = classification(), LayerNormPlugin()
    first, second = make(plugins=[plugin]), make(plugins=[plugin])
    weights = train(first, scenario)
    assert same(weights, train(second, scenario))
    copied = copy.deepcopy(first)
    assert same(train(first, scenario, [2]), train(copied, scenario, [2]))
    assert not same(weights, train(first, scenario, [2]))


@pytest.mark.parametrize("plugin", [LayerNormPlugin(), ScaleInvariantLossPlugin()])
def test_changing_the_network_after_training_is_refused(plugin):
    strategy = make()
    train(strategy, classification(), [0])
    strategy.plugins.append(plugin)
    with pytest.raises(UserError, match=r"has trained already.* new strategy"):
        train(strategy, classification(), [1])


def test_an_unknown_kind_of_normalisation_is_answered_with_the_close_one():
    with pytest.raises(UserError, match="did you mean batch"):
        LayerNormPlugin("bach")


def test_a_growing_classifier_still_grows_under_layer_norm():
    def samples(k: int) -> Samples:
        return Samples(draw("train", k, SIZE, FEATURES), torch.arange(SIZE) % 2 + 2 * k)

    scenario = InMemoryScenario("grow", 3, samples, samples, input_shape=(FEATURES,), n_outputs=6)

    class Growing(nn.Module):
        def __init__(self):
            super().__init__()
            self.features, self.head = make_network(12), IncrementalClassifier(12, initial_out_features=1)

        def forward(self, x):
            return self.head(torch.relu(self.features(x)))

    strategy = make(network=Growing(), plugins=[LayerNormPlugin(), L2Plugin(1e-3)])
    for k in range(3):
        train(strategy, scenario, [k])
        head = strategy.model.get_submodule("head.classifier")
        assert head.weight.shape == (2 * k + 2, 12)
        assert {id(parameter) for parameter in head.parameters()} <= optimised(strategy)
    assert strategy.model(draw("test", 0, 2, FEATURES)).shape == (2, 6)


class Outputs(SupervisedPlugin):
    """Keeps the outputs of evaluations."""

    def __init__(self):
        super().__init__()
        self.outputs = []

    def after_eval_forward(self, strategy, **kwargs):
        self.outputs.append(strategy.mb_output)


# ------------------------------------------------------------------------------------- L2Plugin, WeightDecayPlugin


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_l2_steps_as_a_loop_with_the_penalty_in_the_loss(kind):
    strength, inputs = 0.05, draw("train", 0, SIZE, FEATURES)
    labels = classification().train_stream[0].samples.targets
    network = make_network()
    optimizer = kind(network.parameters(), lr=1e-2)
    torch.manual_seed(1)
    for _ in range(2):
        torch.empty((), dtype=torch.int64).random_()
        seed = int(torch.empty((), dtype=torch.int64).random_())
        for rows in torch.randperm(SIZE, generator=torch.Generator().manual_seed(seed)).split(8):
            optimizer.zero_grad()
            penalty = strength * sum(parameter.square().sum() for parameter in network.parameters())
            (nn.functional.cross_entropy(network(inputs[rows]), labels[rows]) + penalty).backward()
            optimizer.step()
    other = make_network()
    strategy = make(network=other, optimizer=kind(other.parameters(), lr=1e-2), plugins=[L2Plugin(strength)])
    for weights, expected in zip(train(strategy, classification(), [0]), network.parameters(), strict=True):
        torch.testing.assert_close(weights, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", [Finetune, Naive])
def test_l2_is_half_of_pytorchs_weight_decay_in_adam(kind):
    network = make_network()
    adam = torch.optim.Adam(network.parameters(), lr=1e-2, weight_decay=0.1)
    with_plugin = train(make(kind, plugins=[L2Plugin(0.05)]), classification())
    assert same(with_plugin, train(make(kind, network, adam), classification()))
    assert not same(with_plugin, train(make(kind), classification()))


class Losses(SupervisedPlugin):
    """Keeps the loss of each step and what the criterion says of the same outputs."""

    def __init__(self):
        super().__init__()
        self.pairs = []

    def after_update(self, strategy, **kwargs):
        expected = strategy._criterion(strategy.mb_output, strategy.mb_y)
        self.pairs.append((strategy.loss.item(), expected.item()))


@pytest.mark.parametrize("kind", [Finetune, Naive])
@pytest.mark.parametrize("plugin", [L2Plugin(100.0), WeightDecayPlugin(10.0)])
def test_the_reported_loss_never_contains_a_penalty(kind, plugin):
    strategy = make(kind, plugins=[plugin, spy := Losses()])
    train(strategy, classification())
    assert len(spy.pairs) == 2 * 2 * 3
    assert not any(parameter.grad.requires_grad for parameter in strategy.model.parameters())
    assert all(loss == expected for loss, expected in spy.pairs)


@pytest.mark.parametrize("plugin", [L2Plugin(0.1), WeightDecayPlugin(0.1)])
def test_parameters_without_gradient_are_left_alone(plugin):
    class WithSpare(nn.Module):
        def __init__(self):
            super().__init__()
            self.network, self.spare = make_network(), nn.Linear(3, 3)
            self.network[0].weight.requires_grad_(False)

        def forward(self, x):
            return self.network(x)

    network = WithSpare()
    before = copy.deepcopy(network.state_dict())
    train(make(network=network, plugins=[plugin]), classification())
    unchanged = {name for name, value in network.state_dict().items() if torch.equal(value, before[name])}
    assert unchanged == {"spare.weight", "spare.bias", "network.0.weight"}


@pytest.mark.parametrize("kind", [Finetune, Naive])
def test_weight_decay_makes_adam_adamw_bit_for_bit_with_each_groups_own_learning_rate(kind):
    def run(optimizer_kind, plugins, **arguments):
        network = make_network()
        groups = [{"params": network[:2].parameters(), "lr": 0.05}, {"params": network[2:].parameters(), "lr": 0.01}]
        return train(make(kind, network, optimizer_kind(groups, **arguments), plugins), classification())

    decayed = run(torch.optim.Adam, [WeightDecayPlugin(0.5)])
    assert same(decayed, run(torch.optim.AdamW, [], weight_decay=0.5))
    assert not same(decayed, run(torch.optim.Adam, []))


@pytest.mark.parametrize("plugin", [L2Plugin, WeightDecayPlugin])
@pytest.mark.parametrize("strength", [-1e-9, float("nan"), float("inf")])
def test_a_strength_that_is_negative_or_no_number_is_refused(plugin, strength):
    with pytest.raises(UserError, match="must be a number of 0 or more"):
        plugin(strength)


# ---------------------------------------------------------------------------------------- ScaleInvariantLossPlugin


def r2(strategy, experience) -> float:
    inputs, targets = experience.samples.batch(torch.arange(SIZE))
    with torch.no_grad():
        predicted = strategy._criterion.decode(strategy.model(inputs))
    return 1 - float((predicted - targets[:, 0]).square().sum() / (targets - targets.mean()).square().sum())


@pytest.mark.parametrize(("loss", "kind"), [("two-hot", TwoHotLoss), ("hl-gauss", HLGaussLoss)])
def test_scale_invariant_regression_learns_targets_far_from_zero(loss, kind):
    network, scenario = make_network(1), regression(mean=100.0)
    plugin = ScaleInvariantLossPlugin(loss, 95, 105, n_bins=21, scale="linear")
    strategy = make(network=network, plugins=[plugin], criterion=nn.MSELoss())
    strategy.train_epochs = 150
    train(strategy, scenario, [0])
    assert isinstance(strategy._criterion, kind)
    assert strategy.model[-1].out_features == strategy._criterion.n_bins == 21
    assert optimised(strategy) == {id(parameter) for parameter in strategy.model.parameters()}
    assert r2(strategy, scenario.train_stream[0]) > 0.95

    plain = make(network=make_network(1), criterion=nn.MSELoss())
    plain.train_epochs = 150
    train(plain, scenario, [0])
    plain._criterion.decode = lambda output: output[:, 0]
    assert r2(plain, scenario.train_stream[0]) < 0.5


def test_the_new_last_layer_comes_from_its_seed_alone_and_is_initialised_as_pytorch_does():
    def last_layer(seed: int, global_seed: int) -> nn.Linear:
        strategy = make(network=make_network(1), plugins=[ScaleInvariantLossPlugin(seed=seed)])
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        strategy.plugins[0].prepare(strategy, regression().train_stream[0])
        assert torch.equal(torch.get_rng_state(), before)
        return strategy.model[-1]

    layer = last_layer(0, 0)
    assert torch.equal(layer.weight, last_layer(0, 1).weight)
    assert torch.equal(layer.bias, last_layer(0, 1).bias)
    assert not torch.equal(layer.weight, last_layer(1, 0).weight)
    bound = 12**-0.5
    assert layer.weight.abs().max() <= bound
    assert layer.bias.abs().max() <= bound
    assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.03)


@pytest.mark.parametrize("kind", [Finetune, Naive])
def test_layer_norm_and_scale_invariant_loss_work_in_either_order_and_after_an_evaluation(kind):
    def run(plugins, evaluate: bool = False) -> list[Tensor]:
        strategy = make(kind, make_network(1), plugins=plugins, criterion=nn.MSELoss())
        if evaluate:
            strategy.eval(regression().test_stream[:1])
        weights = train(strategy, regression())
        assert isinstance(strategy._criterion, TwoHotLoss)
        assert optimised(strategy) == {id(parameter) for parameter in strategy.model.parameters()}
        return weights

    plugins = [LayerNormPlugin(), ScaleInvariantLossPlugin(low=0, high=200, n_bins=51)]
    weights = run(plugins)
    assert len(weights) == 6 + 4
    assert same(weights, run(plugins[::-1]))
    assert same(weights, run(plugins, evaluate=True))


def test_scale_invariant_loss_keeps_parameter_groups_and_takes_a_network_that_is_one_layer():
    network = make_network(1)
    groups = [{"params": network[:4].parameters()}, {"params": network[4].parameters(), "lr": 0.0}]
    plugin = ScaleInvariantLossPlugin(n_bins=51)
    strategy = make(network=network, optimizer=torch.optim.SGD(groups, lr=0.1), plugins=[plugin])
    train(strategy, regression())
    head, group = strategy.model[4], strategy.optimizer.param_groups[1]
    assert list(map(id, head.parameters())) == list(map(id, group["params"]))

    alone = make(network=nn.Linear(FEATURES, 1, bias=False), plugins=[plugin])
    weights = train(alone, regression())
    assert [list(parameter.shape) for parameter in weights] == [[51, FEATURES]]
    assert alone.model.bias is None


def test_scale_invariant_loss_goes_with_avalanches_ewc_and_replay():
    plugins = [ScaleInvariantLossPlugin(n_bins=51), ewc := EWCPlugin(1.0, "online", 1.0), ReplayPlugin(8), Losses()]
    train(make(network=make_network(1), plugins=plugins), regression())
    assert set(ewc.saved_params[1]) == {"0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias"}
    assert ewc.importances[1]["4.weight"].data.shape == (51, 12)
    pairs = plugins[-1].pairs
    assert all(loss == expected for loss, expected in pairs[:6])
    assert any(loss > expected for loss, expected in pairs[6:]), "Avalanche's penalties are in the loss"


@pytest.mark.parametrize(
    ("network", "scenario", "message"),
    [
        (make_network(1), classification(), "targets here are whole numbers"),
        (make_network(2), regression(), r"replaces a last layer Linear\(..., 1\).* Sequential"),
        (nn.Sequential(make_network(1), nn.Tanh()), regression(), "does not come directly out of one"),
    ],
)
def test_scale_invariant_loss_refuses_what_it_cannot_learn(network, scenario, message):
    strategy = make(network=network, plugins=[ScaleInvariantLossPlugin()])
    with pytest.raises(UserError, match=message):
        train(strategy, scenario)


def test_scale_invariant_loss_refuses_several_targets_a_sample_and_wrong_arguments():
    def samples(k: int) -> Samples:
        return Samples(draw("train", k, SIZE, FEATURES), draw("targets", k, SIZE, 2))

    scenario = InMemoryScenario("two", 1, samples, samples, input_shape=(FEATURES,), n_outputs=2)
    with pytest.raises(UserError, match=r"one target a sample, got \[2\]"):
        train(make(network=make_network(2), plugins=[ScaleInvariantLossPlugin()]), scenario, [0])
    with pytest.raises(UserError, match="did you mean two-hot"):
        ScaleInvariantLossPlugin("tow-hot")
    with pytest.raises(UserError, match="low < high"):
        ScaleInvariantLossPlugin(low=1, high=0)


# ------------------------------------------------------------------------------- OptimizerResetPlugin, LwFPlugin


@pytest.mark.parametrize("kind", [Finetune, Naive])
@pytest.mark.parametrize(
    "make_optimizer", [lambda p: torch.optim.Adam(p, 1e-2), lambda p: torch.optim.SGD(p, 1e-2, momentum=0.9)]
)
def test_optimizer_reset_goes_on_with_the_weights_and_a_new_optimizer(kind, make_optimizer):
    scenario, network = classification(), make_network()
    with_plugin = make(kind, network, make_optimizer(network.parameters()), [OptimizerResetPlugin()])
    network, by_hand = make_network(), None
    torch.manual_seed(1)
    for k in range(3):
        by_hand = make(kind, network, make_optimizer(network.parameters()))
        by_hand.train([scenario.train_stream[k]], eval_streams=[])
    weights = train(with_plugin, scenario, range(3))
    assert same(weights, list(network.parameters()))

    network = make_network()
    assert not same(weights, train(make(kind, network, make_optimizer(network.parameters())), scenario, range(3)))


def test_lwf_is_avalanches_where_data_sets_have_task_labels_and_the_same_where_they_have_none():
    scenario = classification()
    tensors = [experience.samples.batch(torch.arange(SIZE)) for experience in scenario.train_stream]
    labelled = benchmark_from_datasets(
        train=[
            _make_taskaware_classification_dataset(TensorDataset(x, y), task_labels=0, targets=y.tolist())
            for x, y in tensors
        ]
    )
    avalanches = train(make(Naive, plugins=[AvalancheLwFPlugin(2.0)]), labelled, range(3))
    assert same(train(make(Naive, plugins=[LwFPlugin(2.0)]), labelled, range(3)), avalanches)
    strategy = make(Finetune, plugins=[plugin := LwFPlugin(2.0)])
    assert same(train(strategy, scenario, range(3)), avalanches)
    assert not same(train(make(), scenario, range(3)), avalanches)
    assert strategy.model.training
    assert not plugin.lwf.prev_model.training


def test_lwf_refuses_a_regression():
    with pytest.raises(UserError, match="no classes"):
        train(make(network=make_network(1), plugins=[LwFPlugin()], criterion=nn.MSELoss()), regression())


# ------------------------------------------------------------------------------------------------------- together


def test_plugins_go_with_avalanches_ewc_strategy_as_with_our_own_template():
    ours = make(plugins=[LayerNormPlugin(), L2Plugin(1e-3), EWCPlugin(50.0)])
    theirs = make(EWC, plugins=[LayerNormPlugin(), L2Plugin(1e-3)], ewc_lambda=50.0)
    without_penalty = make(plugins=[LayerNormPlugin(), L2Plugin(1e-3)])
    weights = train(ours, classification(), range(3))
    assert same(weights, train(theirs, classification(), range(3)))
    assert not same(weights, train(without_penalty, classification(), range(3)))


@pytest.mark.parametrize(
    ("kind", "arguments", "plugins"),
    [
        (Finetune, {}, []),
        (LayerNorm, {"kind": "rms"}, [LayerNormPlugin("rms")]),
        (L2, {"strength": 0.02}, [L2Plugin(0.02)]),
        (LayerNormL2, {}, [L2Plugin(1e-3), LayerNormPlugin()]),
    ],
)
def test_ready_strategies_are_naive_with_the_plugins_of_their_name(kind, arguments, plugins):
    scenario = classification()
    strategy = make(kind, plugins=[ReplayPlugin(4)], **arguments)
    expected = train(make(Naive, plugins=[*plugins, ReplayPlugin(4)]), scenario)
    assert same(train(strategy, scenario), expected)
    assert isinstance(strategy.plugins[len(plugins)], ReplayPlugin), "what the user brings comes after our own"
    assert strategy.eval_mb_size == strategy.train_mb_size


@pytest.mark.parametrize(
    ("kind", "plugins"),
    [(ScaleInvariant, []), (LayerNormL2ScaleInvariant, [LayerNormPlugin("batch"), L2Plugin(0.01)])],
)
def test_ready_strategies_for_regression_are_naive_with_the_plugins_of_their_name(kind, plugins):
    common = {"loss": "hl-gauss", "low": 90, "high": 110, "n_bins": 41, "scale": "linear", "seed": 5}
    own = {"kind": "batch", "strength": 0.01} if plugins else {}
    expected = make(Naive, make_network(1), plugins=[*plugins, ScaleInvariantLossPlugin(**common)])
    assert same(train(make(kind, make_network(1), **common, **own), regression()), train(expected, regression()))


def test_a_misspelt_argument_of_a_ready_strategy_is_refused():
    with pytest.raises(TypeError, match="strenght"):
        make(LayerNormL2, strenght=1e-3)


def test_the_package_lists_all_its_names_and_refuses_others():
    assert set(strategies.__all__) <= set(dir(strategies))
    assert all(getattr(strategies, name) is not None for name in strategies.__all__)
    with pytest.raises(AttributeError, match="LayerNormPlugn"):
        strategies.LayerNormPlugn  # noqa: B018
