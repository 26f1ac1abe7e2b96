"""The checks themselves: parts that break one promise each are caught, by the promise's name and in one line."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from avalanche.evaluation import PluginMetric
from avalanche.training.plugins import EWCPlugin as AvalancheEWCPlugin
from avalanche.training.plugins import SupervisedPlugin
from torch import nn

from plasticity_cl.errors import UserError
from plasticity_cl.experiments.in_turn import InTurn
from plasticity_cl.experiments.plan import Outcome
from plasticity_cl.metrics import Scalar
from plasticity_cl.metrics.guard import GuardedMetric
from plasticity_cl.quantity import Quantity
from plasticity_cl.scenarios.sources.source import Source
from plasticity_cl.scenarios.stream import InMemoryScenario
from plasticity_cl.seeding import generator, rng_state
from plasticity_cl.strategies import Intervention
from plasticity_cl.testing import (
    check_executor,
    check_intervention,
    check_metric,
    check_model,
    check_optimizer,
    check_scenario,
    check_source,
    executors,
    interventions,
    metrics,
    networks,
    streams,
)
from plasticity_cl.testing.promises import difference
from plasticity_cl.training import Samples
from plasticity_cl.training.learner import criterion_of, set_criterion


def refused(check, part, promised, words, **options):
    """The check names the promise, and says how it is broken."""
    before = rng_state()
    with pytest.raises(AssertionError) as caught:
        check(part, **options)
    said = str(caught.value)
    assert f" breaks a promise, {promised}: " in said
    assert words in said
    assert "\n" not in said
    assert str(before) == str(rng_state())


# ----------------------------------------------------------------------------------------------------- interventions


@torch.no_grad()
def shrink(strategy, by):
    for parameter in strategy.model.parameters():
        if parameter.requires_grad and parameter.grad is not None:
            parameter.mul_(1 - by)


class Shrinks(Intervention):
    """Shrinks weights after each step: a plugin that keeps all promises.

    Args:
        strength: By how much.
    """

    def __init__(self, strength: float = 0.01) -> None:
        super().__init__()
        self.strength = strength

    def after_update(self, strategy, **_):
        shrink(strategy, self.strength)


class Jitters(Shrinks):
    """Shrinks by a random share, drawn from its seed: likewise.

    Args:
        strength: By how much at most.
        seed: Root of the draws.
    """

    def __init__(self, strength: float = 0.01, *, seed: int = 0) -> None:
        super().__init__(strength)
        self.random = generator(seed, "jitters")

    def after_update(self, strategy, **_):
        shrink(strategy, self.strength * float(torch.rand((), generator=self.random)))

    def state_dict(self):
        return {"random": self.random.get_state()}

    def load_state_dict(self, state):
        self.random.set_state(state["random"])


@pytest.mark.parametrize("plugin", [Shrinks, f"{__name__}.Jitters:strength=0.02", "layernorm+l2=0.01"])
def test_plugins_that_keep_their_promises_pass(plugin):
    check_intervention(plugin)


def test_what_makes_a_plugin_may_take_a_seed():
    check_intervention(lambda seed: Jitters(seed=seed), off=lambda: Shrinks(0.0))


class ShrinksAtZero(Shrinks):
    def after_update(self, strategy, **_):
        shrink(strategy, self.strength + 1e-6)


class DrawsOnce(Shrinks):
    """From torch's generator, when it is made."""

    def __init__(self):
        super().__init__(0.01 * float(torch.rand(())))


class DrawsFromNumpy(Shrinks):
    def before_training_exp(self, strategy, **_):
        self.strength = 0.01 * np.random.rand()


class DrawsFromPython(Shrinks):
    def before_training_epoch(self, strategy, **_):
        self.strength = 0.01 * random.random()


class IgnoresItsSeed(Shrinks):
    def __init__(self, seed: int) -> None:
        super().__init__()


class Forgets(Shrinks):
    """Counts steps, and says that it remembers nothing."""

    def after_update(self, strategy, **_):
        self.strength *= 0.9
        super().after_update(strategy)


class HasNoState(SupervisedPlugin):
    pass


class SavesAnObject(Shrinks):
    def state_dict(self):
        return {"self": Quantity("an object")}


class MovesFrozen(Intervention):
    @torch.no_grad()
    def after_update(self, strategy, **_):
        for parameter in strategy.model.parameters():
            parameter.mul_(0.99)


class MakesAnew(Intervention):
    """Puts new parameters in the place of the old ones, frozen or not."""

    def before_training(self, strategy, **_):
        for module in strategy.model.modules():
            if isinstance(module, nn.Linear):
                module.bias = nn.Parameter(module.bias.detach().clone())


class AddsToTheReport(Intervention):
    def after_backward(self, strategy, **_):
        if hasattr(strategy, "task_loss"):
            strategy.task_loss = strategy.task_loss + sum(
                p.detach().square().sum() for p in strategy.model.parameters()
            )


class AddsAfterwards(Intervention):
    def after_backward(self, strategy, **_):
        strategy.loss = strategy.loss + 1.0


class Penalised(nn.Module):
    def __init__(self, inner, model):
        super().__init__()
        self.inner, self.models = inner, [model]

    def forward(self, output, target):
        return self.inner(output, target) + 1e-3 * sum(p.square().sum() for p in self.models[0].parameters())


class HidesItInTheCriterion(Intervention):
    def before_training_exp(self, strategy, **_):
        if not isinstance(criterion_of(strategy), Penalised):
            set_criterion(strategy, Penalised(criterion_of(strategy), strategy.model))


class Explodes(Intervention):
    @torch.no_grad()
    def after_update(self, strategy, **_):
        strategy.model.get_parameter(next(iter(dict(strategy.model.named_parameters())))).mul_(1e30)


class Stumbles(Intervention):
    def before_training_exp(self, strategy, **_):
        raise KeyError("what")


class RefusesAll(Intervention):
    def before_training_exp(self, strategy, **_):
        raise UserError("not on a day like this")


class KnowsOneTemplate(Shrinks):
    def after_update(self, strategy, **_):
        if hasattr(strategy, "task_loss"):
            super().after_update(strategy)


class ActsOnce(Intervention):
    """Its copies are itself, and it acts once in all."""

    def __init__(self):
        super().__init__()
        self.done = False

    def __deepcopy__(self, memo):
        return self

    def before_training_exp(self, strategy, **_):
        if not self.done:
            with torch.no_grad():
                for parameter in strategy.model.parameters():
                    if parameter.requires_grad:
                        parameter.mul_(0.5)
        self.done = True

    def state_dict(self):
        return {"done": self.done}

    def load_state_dict(self, state):
        self.done = state["done"]


@pytest.mark.parametrize(
    ("plugin", "promised", "words"),
    [
        (f"{__name__}.ShrinksAtZero", interventions.OFF, "values of "),
        (DrawsOnce, interventions.SEED, "with other states of the global generators "),
        (DrawsFromNumpy, interventions.SEED, "with other states of the global generators "),
        (DrawsFromPython, interventions.SEED, "draw from a generator of its own, made from seed"),
        (IgnoresItsSeed, interventions.SEED, "it takes a seed, and seeds 0 and 1 give the same weights"),
        (Forgets, interventions.STATE, "after going on, "),
        (HasNoState, interventions.STATE, "HasNoState has no state_dict() and load_state_dict(state): give it both"),
        (lambda: AvalancheEWCPlugin(1.0), interventions.STATE, "EWCPlugin has no state_dict()"),
        (SavesAnObject, interventions.STATE, "torch.load(..., weights_only=True) refuses its state"),
        (MovesFrozen, interventions.FROZEN, "values of 1.weight differ, by up to "),
        (MakesAnew, interventions.FROZEN, "1.bias is another parameter afterwards, or no longer frozen"),
        (AddsToTheReport, interventions.LOSS, "strategy.task_loss is "),
        (AddsAfterwards, interventions.LOSS, "after it; add a penalty to strategy.loss in before_backward"),
        (HidesItInTheCriterion, interventions.LOSS, "and the criterion of the outputs is "),
        (Explodes, interventions.FINITE, "are not finite"),
        (Stumbles, interventions.FINITE, "it raises KeyError: 'what'"),
        (RefusesAll, interventions.FINITE, "it refuses both tasks (not on a day like this; not on a day like this)"),
        (KnowsOneTemplate, interventions.COMPANY, "between Avalanche's Naive and our template"),
        (ActsOnce, interventions.COPY, "after the first experience the original scores "),
    ],
)
def test_an_intervention_that_breaks_a_promise_is_caught(plugin, promised, words):
    refused(check_intervention, plugin, promised, words)


def test_what_is_off_may_be_said():
    refused(check_intervention, Shrinks, interventions.OFF, "differ, by up to", off=lambda: Shrinks(1e-5))


def test_checks_make_their_parts_themselves():
    for check, made in ((check_intervention, Shrinks()), (check_model, nn.Linear(2, 2)), (check_metric, Quiet())):
        with pytest.raises(UserError, match=f"{type(made).__name__} is one that is made already") as caught:
            check(made)
        assert "\n" not in str(caught.value)


def test_an_unknown_part_is_said_as_it_always_is():
    with pytest.raises(AssertionError, match="unknown strategy 'l3'; did you mean l2?"):
        check_intervention("l3")


# ---------------------------------------------------------------------------------------- networks and optimizers


def plain(input_shape, n_outputs):
    n = int(np.prod(input_shape))
    return nn.Sequential(nn.Flatten(), nn.Linear(n, 8), nn.ReLU(), nn.Linear(8, n_outputs))


class UnusedLayer(nn.Sequential):
    def __init__(self, n_outputs: int) -> None:
        super().__init__(nn.Flatten(), nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, n_outputs))
        self[1](torch.zeros(1, 3 * 32 * 32))
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        for layer in list(self)[:4]:
            x = layer(x)
        return x


def ignores_its_seed(input_shape, n_outputs):
    torch.manual_seed(0)
    return plain(input_shape, n_outputs)


def draws_from_numpy(input_shape, n_outputs):
    made = plain(input_shape, n_outputs)
    nn.init.constant_(made[1].bias, np.random.rand())
    return made


@pytest.mark.parametrize(
    ("model", "promised", "words"),
    [
        (ignores_its_seed, networks.SEED, "seeds 0 and 1 give the same weights"),
        (draws_from_numpy, networks.SEED, "8 of 8 values of 1.bias differ, by up to"),
        (lambda input_shape: plain(input_shape, 3), networks.OUTPUT, "[8, 3, 32, 32] becomes [8, 3], not [8, 4]"),
        (
            lambda input_shape, n_outputs: nn.Sequential(plain(input_shape, n_outputs), nn.LogSoftmax(1)),
            networks.LAST,
            "its output does not come directly out of an nn.Linear",
        ),
        (UnusedLayer, networks.MOVES, "unused.weight does not: it has no gradient"),
        (lambda: 3, networks.SEED, "it made a int, which is no torch.nn.Module"),
    ],
)
def test_a_network_that_breaks_a_promise_is_caught(model, promised, words):
    check_model(plain)
    refused(check_model, model, promised, words)


class Descends(torch.optim.Optimizer):
    """Gradient descent with momentum, by hand."""

    def __init__(self, params, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    velocity = self.state[parameter].setdefault("velocity", torch.zeros_like(parameter))
                    self.move(parameter, velocity.mul_(0.9).add_(parameter.grad), group["lr"])

    def move(self, parameter, velocity, lr):
        parameter.sub_(lr * velocity)


class Stands(Descends):
    def move(self, parameter, velocity, lr):
        pass


class Wanders(Descends):
    def move(self, parameter, velocity, lr):
        parameter.sub_(lr * velocity * torch.rand(()))


class CountsForItself(Descends):
    steps = 0

    def move(self, parameter, velocity, lr):
        self.steps += 1
        parameter.sub_(lr / self.steps * velocity)


class PushesAll(Descends):
    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(0.01)


@pytest.mark.parametrize(
    ("optimizer", "promised", "words"),
    [
        (Stands, networks.MOVES, "is what it was after 3 steps"),
        (Wanders, networks.UNTOUCHED, "torch's global generator is in another state"),
        (CountsForItself, networks.STATE, "after going on, "),
        (f"{__name__}.PushesAll:lr=0.2", networks.SPARES, "differ, by up to 0.03"),
    ],
)
def test_an_optimizer_that_breaks_a_promise_is_caught(optimizer, promised, words):
    check_optimizer(Descends)
    refused(check_optimizer, optimizer, promised, words)


# ------------------------------------------------------------------------------------------------------------ metrics


class Norm(GuardedMetric):
    """The norm of the weights, and how often it was taken: a metric that keeps all promises."""

    quantities = {"norm": Quantity("norm of the weights", low=0.0), "taken": Quantity("how often")}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.taken, self.last = 0, None

    def after_training_exp(self, strategy):
        k = strategy.experience.current_experience
        strategy.model(strategy.mb_x)
        self.taken += 1
        self.last = self.measure(strategy)
        return [Scalar(self, "own", "norm", self.last, k), Scalar(self, "own", "taken", self.taken, k)]

    @torch.no_grad()
    def measure(self, strategy):
        return float(sum(p.square().sum() for p in strategy.model.parameters()) ** 0.5)

    def reset(self):
        self.last = None

    def result(self):
        return self.last

    def state_dict(self):
        return {"taken": self.taken}

    def load_state_dict(self, state):
        self.taken = state["taken"]


class Quiet(Norm):
    """Looks at weights alone, in evaluation mode."""

    def after_training_exp(self, strategy):
        strategy.model.eval()
        try:
            return super().after_training_exp(strategy)
        finally:
            strategy.model.train()


class Draws(Quiet):
    def measure(self, strategy):
        torch.rand(())
        return super().measure(strategy)


class LeavesEvaluationMode(Norm):
    def before_training_epoch(self, strategy):
        strategy.model.eval()


class SaysAnother(Quiet):
    quantities = {"norm": Quantity("norm of the weights")}  # noqa: RUF012


class LeavesItsBounds(Quiet):
    quantities = {"norm": Quantity("norm", high=0.1), "taken": Quantity("how often")}  # noqa: RUF012


class ForgetsHowOften(Quiet):
    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


class KeepsTheOldValue(Quiet):
    def reset(self):
        pass


class Says(Quiet):
    def after_training_exp(self, strategy):
        return None


class EndsTheTraining(PluginMetric):
    def after_training_exp(self, strategy):
        strategy.model.eval()
        strategy.model(strategy.mb_x)

    def reset(self):
        pass

    def result(self):
        pass

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


class NoStateAtAll(PluginMetric):
    def reset(self):
        pass

    def result(self):
        pass


@pytest.mark.parametrize(
    ("metric", "promised", "words"),
    [
        (Draws, metrics.WATCHES, "torch's global generator is in another state"),
        (Norm, metrics.WATCHES, "torch's global generator is in another state"),  # by dropout
        (LeavesEvaluationMode, metrics.WATCHES, ""),
        (SaysAnother, metrics.DESCRIBED, "it emits taken, and its quantities are norm"),
        (LeavesItsBounds, metrics.DESCRIBED, "and its bounds are None and 0.1"),
        (ForgetsHowOften, metrics.STATE, "own/taken differs: 1.0, not 3.0; let state_dict() hold it all"),
        (NoStateAtAll, metrics.STATE, "NoStateAtAll cannot go on from a snapshot: give it state_dict()"),
        (KeepsTheOldValue, metrics.FAILURE, "which is of an experience before"),
        (EndsTheTraining, metrics.FAILURE, "it raises RuntimeError: this network does not want to be looked at"),
        (Says, metrics.EMITS, "nothing was emitted in 3 experiences of either"),
        (lambda: 3, metrics.WATCHES, "it made a int, which is no Avalanche metric"),
    ],
)
def test_a_metric_that_breaks_a_promise_is_caught(metric, promised, words):
    refused(check_metric, metric, promised, words)


def test_a_metric_that_keeps_its_promises_passes():
    check_metric(Quiet)
    check_metric(f"{__name__}.Quiet")


# ------------------------------------------------------------------------------------------------ scenarios, sources


def stream(
    source,
    labels=lambda k, seed, n: torch.randint(10, (n,), generator=generator(seed, "labels", k)),
    *,
    n_experiences=4,
    seed=0,
    **stated,
):
    """Labels that are drawn for every experience, on the images of a source."""

    def samples(k):
        return Samples(source.train_inputs[:20], labels(k, seed, 20))

    given = {"input_shape": source.input_shape, "n_outputs": 10, **stated}
    return InMemoryScenario("own", n_experiences, samples, samples, **given)


def keeps(source, n_experiences=4, seed=0):
    return stream(source, n_experiences=n_experiences, seed=seed)


def in_order(source, n_experiences=4, seed=0):
    draws = generator(seed, "in order")
    return stream(source, lambda k, s, n: torch.randint(10, (n,), generator=draws), n_experiences=n_experiences)


def of_numpy(source):
    shift = np.random.randint(10)
    state = np.random.get_state()
    np.random.set_state(state)
    return stream(source, lambda k, s, n: (torch.arange(n) + shift) % 10)


def peeks(source):
    """Depends on a global generator, and leaves it as it was."""
    shift = int(torch.get_rng_state().sum())
    return stream(source, lambda k, s, n: (torch.arange(n) + shift) % 10)


def uneven(source):
    made = stream(source)
    made.test_stream = made.test_stream[:2]
    return made


@pytest.mark.parametrize(
    ("scenario", "promised", "words"),
    [
        (in_order, streams.ORDER, "asked for in another order, "),
        (of_numpy, streams.UNTOUCHED, "NumPy's global generator is in another state"),
        (lambda source: stream(source, lambda k, s, n: torch.randint(10, (n,))), streams.UNTOUCHED, "torch's global"),
        (peeks, streams.SEED, "with other states of the global generators, "),
        (uneven, streams.LENGTH, "4 experiences to train and 2 to test"),
        (
            lambda source, n_experiences=4: stream(source),
            streams.LENGTH,
            "with n_experiences = 2 the train stream has 4",
        ),
        (lambda source: stream(source, n_outputs=3), streams.TARGETS, "go from 0 to 9, and n_outputs is 3"),
        (lambda source: stream(source, task="regression"), streams.TARGETS, "torch.int64 [20], and n_outputs is 10"),
        (lambda source: stream(source, input_shape=(64,)), streams.TARGETS, "[1, 8, 8], and its input_shape is [64]"),
        (lambda source: stream(source, task="words"), streams.STATED, "task is 'words'"),
        (lambda source: stream(source, exchangeable="yes"), streams.STATED, "exchangeable is 'yes': True or False"),
    ],
)
def test_a_scenario_that_breaks_a_promise_is_caught(scenario, promised, words):
    refused(check_scenario, scenario, promised, words)


def test_scenarios_that_keep_their_promises_pass(tmp_path):
    check_scenario(keeps)
    check_scenario(keeps, source="synthetic")
    check_scenario("target-shift:schedule=random-walk,mean=10,targets=sine")
    check_scenario("iwildcam:by=time", source="camera-traps", data_root=tmp_path)


def images(draw):
    inputs, labels = draw(12), torch.arange(12) % 3
    return Source("own", inputs[:8], labels[:8], inputs[8:], labels[8:], 3, (), ())


@pytest.mark.parametrize(
    ("source", "promised", "words"),
    [
        (lambda: images(lambda n: torch.rand(n, 1, 4, 4)), streams.UNTOUCHED, "torch's global generator is in another"),
        (
            lambda: images(lambda n: torch.rand(n, 1, 4, 4, generator=generator(int(torch.get_rng_state().sum())))),
            streams.SEED,
            "inputs of train experience 0 differ, by up to",
        ),
        (lambda: (torch.rand(3, 4), torch.arange(3)), streams.FITS, "no scenario is made of a tuple; give a "),
    ],
)
def test_a_source_that_breaks_a_promise_is_caught(source, promised, words):
    check_source(lambda: images(lambda n: torch.rand(n, 1, 4, 4, generator=generator(0))))
    refused(check_source, source, promised, words)


# ---------------------------------------------------------------------------------------------------------- executors


class Idle(InTurn):
    """Says that all is done, and does nothing."""

    def do_all(self, waiting, progress):
        for job in {job for first, others in waiting.items() for job in (first, *others)}:
            yield job, Outcome("done")


class Lazy(InTurn):
    def do_all(self, waiting, progress):
        yield from list(super().do_all(waiting, progress))[:-1]


class Twice(InTurn):
    def do_all(self, waiting, progress):
        for done in super().do_all(waiting, progress):
            yield done
            yield done


class Sloppy(InTurn):
    """Leaves a mark in what runs write."""

    def do_all(self, waiting, progress):
        for job, outcome in super().do_all(waiting, progress):
            if job.directory is not None and outcome:
                with (job.directory / "metrics.csv").open("a") as file:
                    file.write("\n")
            yield job, outcome


@pytest.mark.parametrize(
    ("executor", "promised", "words"),
    [
        (Idle, executors.ALL, "of scale-invariant ends as done, and should fail"),
        (Lazy, executors.ALL, "does not end"),
        (Twice, executors.ALL, "ends twice"),
        (Sloppy, executors.SAME, "metrics.csv of finetune has other bytes"),
    ],
)
def test_an_executor_that_breaks_a_promise_is_caught(executor, promised, words):
    refused(check_executor, executor, promised, words)


# -------------------------------------------------------------------------------------------------------- differences


def test_what_differs_is_named_with_its_size():
    one = {"a": [torch.tensor([1.0, float("nan")])], "b": 1, "c": None}
    assert not difference(one, {"a": [torch.tensor([1.0, float("nan")])], "b": 1, "c": None})
    assert difference(one, {**one, "a": [torch.tensor([1.5, float("nan")])]}) == (
        "1 of 2 values of a[0] differ, by up to 0.5"
    )
    assert difference(one, {**one, "a": [torch.tensor([1.0, 2.0])]}).startswith("1 of 2 values of a[0] differ")
    assert difference(one, {**one, "b": 2}) == "b differs: 2, not 1"
    assert difference(one, {**one, "b": 1.0}) == "b differs: 1.0, not 1"
    assert difference(one, {**one, "c": 0}) == "c differs"
    assert difference(one, {**one, "a": []}) == "a has another length"
    assert difference(one, {"a": one["a"]}) == "the result has a and had a, b, c"
    assert difference(torch.zeros(2), torch.zeros(3)) == "the result is torch.float32 [3] and was torch.float32 [2]"
