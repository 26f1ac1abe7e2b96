"""The trainability probe against a hand-written loop, on networks worn by hand and by training, and its tidiness."""

import copy
import itertools
import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import nn

from plasticity_cl.diagnostics.trainability import fit_random_targets, trainability
from plasticity_cl.errors import UserError
from plasticity_cl.seeding import generator

TASKS = ["classification", "regression"]


def small(seed=0):
    """A network with everything that training mode changes."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(inplace=True), nn.Dropout(0.3), nn.Linear(12, 4))


def digits_mlp(seed, width=128, hidden=2):
    torch.manual_seed(seed)
    layers = [nn.Linear(64, width), nn.ReLU()]
    for _ in range(hidden - 1):
        layers += [nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


@pytest.fixture(scope="module")
def digits():
    images = torch.tensor(load_digits().images.reshape(-1, 64), dtype=torch.float32)
    return (images - images.mean()) / images.std()


def batch(n=20, seed=0):
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))


QUICK = {"steps": 8, "n_targets": 2, "learning_rates": (1e-3, 1e-2)}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("batch_size", [7, 128])
def test_a_network_against_itself_has_ratio_one(task, batch_size):
    model = small()
    fresh = copy.deepcopy(model)
    assert trainability(model, batch(), fresh, task=task, batch_size=batch_size, **QUICK).ratio == 1
    new = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    assert trainability(model, batch(), fresh, task=task, optimizer=new, **QUICK).ratio == 1


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("carried", [False, True])
def test_agrees_with_a_loop_written_by_hand(task, carried):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 4))
    inputs, optimizer = batch(), None
    if carried:
        optimizer = torch.optim.SGD(
            [{"params": model[0].parameters(), "weight_decay": 0.1}, {"params": model[2].parameters()}],
            lr=0.3, momentum=0.9,
        )  # fmt: skip
        for _ in range(3):
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            optimizer.step()
    rates = (0.5, 0.01, 0.05)
    found = fit_random_targets(
        model, inputs, task=task, optimizer=optimizer, learning_rates=rates, steps=6, n_targets=2, seed=5
    )
    curves = {}
    for rate in rates:
        for draw in range(2):
            noise = generator(5, "probe targets", draw)
            if task == "classification":
                loss, targets = F.cross_entropy, torch.randint(4, (20,), generator=noise)
            else:
                loss, targets = F.mse_loss, model(inputs).detach() + torch.randn(20, 4, generator=noise)
            network = copy.deepcopy(model)
            if carried:
                stepper = torch.optim.SGD(
                    [{"params": network[0].parameters()}, {"params": network[2].parameters()}], rate
                )
                # load_state_dict shares the moments it is given.
                stepper.load_state_dict(copy.deepcopy(optimizer.state_dict()))
                for group in stepper.param_groups:
                    group["lr"] = rate
            else:
                stepper = torch.optim.Adam(network.parameters(), rate)
            values = []
            for _ in range(6):
                value = loss(network(inputs), targets)
                values.append(value.item())
                stepper.zero_grad()
                value.backward()
                stepper.step()
            curves[rate, draw] = values
    best = min(rates, key=lambda rate: np.mean(curves[rate, 0]))
    assert found.learning_rate == best
    expected = torch.tensor([curves[best, draw] for draw in range(2)], dtype=torch.float64)
    torch.testing.assert_close(found.losses, expected, rtol=1e-5, atol=1e-6)
    assert found.loss == pytest.approx(float(expected.mean()), rel=1e-5)


@pytest.mark.parametrize("task", TASKS)
def test_the_more_units_are_dead_the_larger_the_ratio(task, digits):
    for seed in range(2):
        fresh, ratios = digits_mlp(seed), []
        for share in (0, 0.5, 0.8, 0.97):
            model = copy.deepcopy(fresh)
            with torch.no_grad():
                for layer in (model[0], model[2]):
                    layer.bias[: int(share * 128)] = -20
            ratios.append(trainability(model, digits[:96], fresh, task=task, n_targets=1).ratio)
        assert ratios[0] == 1
        assert all(later > 1.2 * earlier for earlier, later in itertools.pairwise(ratios))
        assert ratios[-1] > 3.5


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("seed", range(3))
def test_wear_by_relabelled_digits_shows_and_grows(task, seed, digits):
    fresh = digits_mlp(seed, width=64, hidden=3)
    model = copy.deepcopy(fresh)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    order, ratios = torch.Generator().manual_seed(seed), []
    for reset in range(12):
        labels = torch.randint(10, (256,), generator=order)
        for _ in range(6):
            for i in torch.randperm(256, generator=order).split(32):
                optimizer.zero_grad()
                F.cross_entropy(model(digits[i]), labels[i]).backward()
                optimizer.step()
        if reset in (0, 11):
            ratios.append(trainability(model, digits[1000:1096], fresh, task=task).ratio)
    assert ratios[1] > 2
    assert ratios[1] > 1.2 * ratios[0]


def test_stale_momentum_makes_the_carried_optimizer_worse():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 4))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for parameter in model.parameters():
        parameter.grad = 10 * torch.randn_like(parameter)
    optimizer.step()
    fresh = copy.deepcopy(model)
    stale = trainability(model, batch(), fresh, optimizer=optimizer, steps=30)
    assert stale.ratio > 1.2
    assert trainability(model, batch(), fresh, steps=30).ratio == 1


@given(offset=st.floats(-50, 50), seed=st.integers(0, 2**32))
@settings(max_examples=20)
def test_regression_does_not_see_an_offset_of_the_outputs_and_starts_at_the_noise(offset, seed):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 4)).double()
    shifted = copy.deepcopy(model)
    with torch.no_grad():
        shifted[2].bias.add_(offset)
    probe = trainability(shifted, batch().double(), model, task="regression", seed=seed, **QUICK)
    torch.testing.assert_close(probe.worn.losses, probe.fresh.losses, rtol=1e-6, atol=0)
    noise = torch.stack([torch.randn(20, 4, generator=generator(seed, "probe targets", draw)) for draw in range(2)])
    torch.testing.assert_close(probe.worn.losses[:, 0], noise.double().square().mean((1, 2)), rtol=1e-9, atol=0)


@given(rates=st.permutations([1e-4, 1e-3, 1e-2, 0.1]), seed=st.integers(0, 2**32))
@settings(max_examples=10)
def test_the_order_of_learning_rates_does_not_matter_and_the_best_one_alone_gives_the_same(rates, seed):
    model, quick = small(), QUICK | {"seed": seed}
    found = fit_random_targets(model, batch(), **quick | {"learning_rates": rates})
    ordered = fit_random_targets(model, batch(), **quick | {"learning_rates": sorted(rates)})
    alone = fit_random_targets(model, batch(), **quick | {"learning_rates": [found.learning_rate]})
    assert found.learning_rate == ordered.learning_rate
    assert torch.equal(found.losses, ordered.losses)
    assert torch.equal(found.losses, alone.losses)


def test_same_seed_same_bits_whatever_the_global_generators():
    first = fit_random_targets(small(), batch(), seed=1, **QUICK)
    model = small()
    torch.manual_seed(99)
    random.seed(99)
    with torch.no_grad():
        second = fit_random_targets(model, batch(), seed=1, **QUICK)
    assert torch.equal(first.losses, second.losses)
    assert not torch.equal(first.losses, fit_random_targets(model, batch(), seed=2, **QUICK).losses)


def test_every_fit_sees_the_same_full_batches_in_the_same_order():
    model, inputs, seen = small(), torch.arange(20.0)[:, None].expand(20, 6), []

    def record(module, arguments):
        if module.training:
            seen.append(arguments[0][:, 0].tolist())

    model.register_forward_pre_hook(record)
    fit_random_targets(model, inputs, batch_size=6, learning_rates=(1e-3, 1e-2), steps=7, n_targets=2)
    first, again, other = seen[:7], seen[7:14], seen[14:]
    assert first == again
    assert len(other) == 7
    assert other != first
    for fit in (first, other):
        for epoch in (fit[:3], fit[3:6]):
            assert sum(len(part) for part in epoch) == 18
            assert len({sample for part in epoch for sample in part}) == 18


def test_frozen_parameters_stay_frozen():
    model, seen = small(), []
    model[0].requires_grad_(False)
    model[4].register_forward_pre_hook(lambda module, _: seen.append(module))
    kept = model[0].weight.clone()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, weight_decay=0.1)
    for given_optimizer in (None, optimizer):
        fit_random_targets(model, batch(), optimizer=given_optimizer, **QUICK)
    assert torch.equal(model[0].weight, kept)
    copies = [module for module in seen if module.training]
    assert all(module is not model[4] for module in seen)
    assert any(not torch.equal(module.weight, model[4].weight) for module in copies)
    with pytest.raises(UserError, match="no trainable parameter"):
        fit_random_targets(model.requires_grad_(False), batch(), **QUICK)


def state_of(model, optimizer):
    tensors = {**model.state_dict(keep_vars=True)}
    tensors |= {f"gradient of {name}": value.grad for name, value in model.named_parameters()}
    tensors |= {f"{i} {key}": value for i, state in enumerate(optimizer.state.values()) for key, value in state.items()}
    return (
        {name: (value, None if value is None else value.detach().clone()) for name, value in tensors.items()},
        [(module.training, [*module._forward_hooks, *module._forward_pre_hooks]) for module in model.modules()],
        copy.deepcopy([{key: value for key, value in group.items() if key != "params"}
                       for group in optimizer.param_groups]),
        [id(value) for group in optimizer.param_groups for value in group["params"]],
        (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()),
    )  # fmt: skip


def assert_same_state(before, after):
    assert before[1:] == after[1:]
    assert before[0].keys() == after[0].keys()
    for name, (value, content) in before[0].items():
        assert value is None or torch.equal(content, after[0][name][1])
        if "gradient" in name:
            assert after[0][name][0] is value


class Breaks(nn.Module):
    """Raises at the given call in training mode, counted over all copies."""

    def __init__(self, at):
        super().__init__()
        self.calls, self.at = {"made": 0}, at

    def __deepcopy__(self, memo):
        twin = Breaks(self.at)
        twin.calls = self.calls
        return twin

    def forward(self, x):
        random.random(), np.random.rand()
        self.calls["made"] += self.training
        if self.calls["made"] > self.at:
            raise ArithmeticError
        return x


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("at", [13, 10**6])
def test_everything_is_left_as_it_was(task, at):
    model, fresh = nn.Sequential(small(), Breaks(at)), nn.Sequential(small(1), Breaks(at))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, amsgrad=True)
    F.mse_loss(model.eval()(batch()), torch.zeros(20, 4)).backward()
    optimizer.step()
    model[0][0].bias.grad = None
    model.train()
    model[0][1].eval()
    model[0][2].register_forward_hook(lambda *_: None)
    networks = ((model, optimizer), (fresh, torch.optim.SGD(fresh.parameters(), 0.1)))
    before = [state_of(*pair) for pair in networks]
    if at == 13:
        with pytest.raises(ArithmeticError):
            trainability(model, batch(), fresh, task=task, optimizer=optimizer, **QUICK)
    else:
        trainability(model, batch(), fresh, task=task, optimizer=optimizer, **QUICK)
    for was, pair in zip(before, networks, strict=True):
        assert_same_state(was, state_of(*pair))


def test_a_diverging_learning_rate_is_passed_over_and_all_diverging_is_infinite():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4))
    plain = torch.optim.SGD(model.parameters(), 0.1)
    settings = QUICK | {"task": "regression", "optimizer": plain}
    alone = fit_random_targets(model, batch(), **settings | {"learning_rates": [0.05]})
    mixed = fit_random_targets(model, batch(), **settings | {"learning_rates": [1e30, 0.05]})
    assert mixed.learning_rate == 0.05
    assert torch.equal(mixed.losses, alone.losses)
    diverged = trainability(model, batch(), model, **settings | {"learning_rates": [1e30]})
    assert diverged.worn.loss == math.inf
    assert diverged.worn.losses[:, 0].isfinite().all()
    assert math.isnan(diverged.ratio)
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken[0].weight[0, 0] = math.nan
    assert trainability(broken, batch(), model, **QUICK).ratio == math.inf


class Logarithm(nn.Module):
    """log w: a step that makes w negative diverges, and only targets below the output ask for smaller w."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.w.log().expand(len(x), 1)


def test_a_rate_that_is_best_on_the_first_target_but_diverges_on_another_is_passed_over():
    def noise(seed, draw):
        return float(torch.randn(1, 1, generator=generator(seed, "probe targets", draw)))

    seed = next(seed for seed in range(1000) if 0.5 < noise(seed, 0) < 1 and noise(seed, 1) < -1.5)
    model = Logarithm()
    settings = {"task": "regression", "optimizer": torch.optim.SGD(model.parameters(), 1.0), "steps": 20, "seed": seed}
    rates = {"learning_rates": (0.5, 0.01)}
    assert fit_random_targets(model, torch.zeros(1, 1), n_targets=1, **rates, **settings).learning_rate == 0.5
    both = fit_random_targets(model, torch.zeros(1, 1), n_targets=2, **rates, **settings)
    assert both.learning_rate == 0.01
    assert both.losses.isfinite().all()


def test_errors_say_what_is_wrong():
    model = small()

    def fit(network=model, inputs=None, **changes):
        return fit_random_targets(network, batch() if inputs is None else inputs, **QUICK | changes)

    with pytest.raises(UserError, match="unknown task 'regresion'; did you mean regression"):
        fit(task="regresion")
    with pytest.raises(UserError, match=r"outputs of shape \[n, classes\], got \[20, 1\]; use task='regression'"):
        fit(nn.Linear(6, 1))
    assert fit(nn.Linear(6, 1), task="regression").loss > 0
    for name in ("steps", "n_targets", "batch_size"):
        with pytest.raises(UserError, match=f"{name} must be at least 1, got 0"):
            fit(**{name: 0})
    with pytest.raises(UserError, match="inputs must be at least 1"):
        fit(inputs=batch(0))
    for rates in ((), (0.0,), (math.nan,), (-1e-3, 1e-3)):
        with pytest.raises(UserError, match="learning_rates must be one or more positive numbers"):
            fit(learning_rates=rates)
    with pytest.raises(UserError, match="holds no parameter of the network"):
        fit(optimizer=torch.optim.SGD(small().parameters(), 0.1))
    with pytest.raises(
        UserError, match="not of the same architecture; parameters that differ: 1.bias, 1.weight, 3.bias"
    ):
        trainability(model, batch(), nn.Sequential(model[0], *model[2:]), **QUICK)
    model[0].cached = model[0](batch())
    with pytest.raises(UserError, match="cannot be copied"):
        fit()


class MaskedHead(nn.Module):
    """A head that masks outputs as Avalanche's growing heads do, or by adding minus infinity, or in place."""

    def __init__(self, used, outputs=6, how="fill", value=-1000.0, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.body, self.head = nn.Linear(6, 16), nn.Linear(16, outputs)
        self.how, self.value = how, value
        self.register_buffer("masked", torch.tensor([k not in used for k in range(outputs)]))

    def forward(self, x):
        y = self.head(self.body(x).relu())
        if self.how == "fill":
            return y.masked_fill(self.masked, self.value)
        if self.how == "add":
            return y + torch.where(self.masked, -math.inf, 0.0)
        y[:, self.masked] = self.value
        return y


MASKS = [
    ("fill", -1000.0),
    ("fill", -math.inf),
    ("fill", 0.0),
    ("set", -1000.0),
    ("set", -math.inf),
    ("add", -math.inf),
]


@pytest.mark.parametrize(("how", "value"), MASKS)
@pytest.mark.parametrize("task", TASKS)
def test_masked_outputs_are_left_out(task, how, value):
    model = MaskedHead((1, 2, 5), how=how, value=value)
    small_head = MaskedHead(range(3), outputs=3)
    small_head.body.load_state_dict(model.body.state_dict())
    with torch.no_grad():
        small_head.head.weight.copy_(model.head.weight[[1, 2, 5]])
        small_head.head.bias.copy_(model.head.bias[[1, 2, 5]])
    expected = fit_random_targets(small_head, batch(), task=task, **QUICK)
    found = fit_random_targets(model, batch(), task=task, **QUICK)
    assert found.classes == (1, 2, 5)
    torch.testing.assert_close(found.losses, expected.losses, rtol=1e-4, atol=1e-5)
    assert fit_random_targets(model, batch(), task=task, classes=(5, 2, 1), **QUICK).loss == found.loss


def test_outputs_of_a_network_that_died_are_in_use():
    model = MaskedHead(range(4), outputs=6)
    with torch.no_grad():
        model.body.bias.fill_(-100)
    assert fit_random_targets(model, batch(), **QUICK).classes == (0, 1, 2, 3)
    without_bias = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3, bias=False))
    nn.init.constant_(without_bias[0].bias, -100)
    assert fit_random_targets(without_bias, batch(), **QUICK).classes == (0, 1, 2)
    alone = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    assert fit_random_targets(alone, batch(1), steps=2, n_targets=1).classes == (0, 1, 2)
    with pytest.raises(UserError, match="one sample at a time"):
        fit_random_targets(small(), batch(1), steps=2)


def test_a_head_with_more_outputs_in_use_is_compared_on_those_of_its_initialisation():
    fresh, grown = MaskedHead((0, 1)), MaskedHead(range(6))
    first = fit_random_targets(fresh, batch())
    assert fit_random_targets(grown, batch()).loss > 1.5 * first.loss
    again = fit_random_targets(grown, batch(), classes=first.classes)
    assert again.loss == pytest.approx(first.loss, rel=1e-6)
    both = trainability(grown, batch(), fresh)
    assert (both.worn.classes, both.fresh.classes) == ((0, 1), (0, 1))
    assert both.ratio == pytest.approx(1, rel=1e-6)


def test_avalanche_s_growing_head_keeps_a_ratio_near_one_while_the_network_hardly_moves():
    from avalanche.benchmarks import nc_benchmark
    from avalanche.models import IncrementalClassifier

    class Growing(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(3)
            self.first, self.head = nn.Linear(6, 32), IncrementalClassifier(32, 1)

        def forward(self, x):
            return self.head(torch.relu(self.first(x)))

    data = torch.utils.data.TensorDataset(torch.randn(60, 6), torch.arange(60) % 6)
    data.targets = (torch.arange(60) % 6).tolist()
    model, first, sizes = Growing(), None, []
    for experience in nc_benchmark(data, data, n_experiences=3, task_labels=False, seed=0).train_stream:
        model.train()
        model.head.adaptation(experience)
        first = first or fit_random_targets(model, batch())
        now = fit_random_targets(model, batch(), classes=first.classes)
        sizes.append(len(fit_random_targets(model, batch()).classes))
        assert now.loss / first.loss == pytest.approx(1, abs=0.02)
    assert sizes == [2, 4, 6]


def test_classes_that_make_no_sense_are_refused():
    model = MaskedHead((1,))
    with pytest.raises(UserError, match="two outputs in use, and of 6 only 1"):
        fit_random_targets(model, batch(), **QUICK)
    for wrong in ((0, 6), (0, 0), (-1, 2)):
        with pytest.raises(UserError, match="different outputs"):
            fit_random_targets(model, batch(), classes=wrong, **QUICK)
    with pytest.raises(UserError, match="one tensor as output, not a dict"):
        fit_random_targets(Named(), batch(), **QUICK)


class Named(nn.Module):
    """What Hugging Face's networks are like: a mapping as output."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(6, 4)

    def forward(self, x):
        return {"logits": self.body(x.relu()), "hidden": x}


def test_forward_hooks_of_the_network_decide_what_is_fitted():
    torch.manual_seed(0)
    model = Named()
    plain = nn.Sequential(nn.ReLU(), copy.deepcopy(model.body))
    model.register_forward_hook(lambda module, args, output: output["logits"])
    for task in TASKS:
        expected = fit_random_targets(plain, batch(), task=task, **QUICK)
        assert fit_random_targets(model, batch(), task=task, **QUICK).loss == expected.loss
