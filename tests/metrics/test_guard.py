"""No hook of a metric raises into the training that it watches, and strategies are kept apart."""

import copy
import gc
import pickle
import warnings

import pytest
import torch
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

from plasticity_cl.errors import UserError
from plasticity_cl.metrics.guard import GuardedMetric, PerStrategy, RefusedError
from plasticity_cl.scenarios import LabelReset, load_source
from plasticity_cl.training import SupervisedTemplate

DIGITS = load_source("digits")
HOOKS = [
    *("before_training", "before_training_exp", "before_training_epoch", "before_training_iteration"),
    *("before_forward", "after_forward", "before_backward", "after_backward", "before_update", "after_update"),
    *("after_training_iteration", "after_training_epoch", "after_training_exp", "after_training"),
    *("before_eval", "before_eval_exp", "after_eval_iteration", "after_eval_exp", "after_eval"),
]


class Plain(GuardedMetric):
    def result(self):
        return None

    def reset(self):
        pass


def failing(event, make_error):
    def hook(self, strategy):
        self.calls += 1
        raise make_error()

    return type("Failing", (Plain,), {event: hook, "calls": 0})()


def strategy(metrics, template=SupervisedTemplate):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    evaluator = EvaluationPlugin(*metrics, loggers=[], collect_all=False)
    return template(model=model, optimizer=optimizer, train_mb_size=32, eval_mb_size=64, evaluator=evaluator)


def run(cl):
    scenario = LabelReset(DIGITS, 1, n_samples=96)
    cl.train(scenario.train_stream[0], eval_streams=[])
    cl.eval(scenario.train_stream)
    return torch.cat([p.detach().flatten() for p in cl.model.parameters()])


@pytest.mark.parametrize("template", [Naive, SupervisedTemplate])
@pytest.mark.parametrize("event", HOOKS)
def test_a_hook_that_raises_ends_no_training_and_warns_once(event, template):
    metric = failing(event, lambda: KeyError("lost\nand found"))
    cl = strategy([metric], template)
    with pytest.warns(UserWarning, match=rf"^Failing: no value \({event}\): KeyError: 'lost.*found'$") as caught:
        weights = run(cl)
    assert len(caught) == 1
    assert metric.calls >= 1
    assert torch.equal(weights, run(strategy([], template)))


def test_the_reason_is_one_line_and_each_place_that_raises_is_named():
    said = []

    class Twice(Plain):
        def before_training_exp(self, strategy):
            raise RuntimeError("one")

        def after_training_exp(self, strategy):
            raise UserError("two\n  lines")

    cl = strategy([Twice()])
    for _ in range(2):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run(cl)
        said.append([str(warning.message) for warning in caught])
    first, second = said
    assert first == [
        "Twice: no value (before_training_exp): RuntimeError: one",
        "Twice: no value (after_training_exp): two lines",
    ]
    assert second == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, lambda: RefusedError("a bare list")])
def test_interrupts_and_refused_arguments_go_through(error):
    with pytest.raises((KeyboardInterrupt, SystemExit, UserError)):
        run(strategy([failing("before_training_exp", error)]))


def test_a_failure_drops_what_is_no_longer_true():
    class Stale(Plain):
        def __init__(self):
            super().__init__()
            self.reset()

        def after_training_exp(self, strategy):
            self.value = 1.0 / (1 - strategy.experience.current_experience)

        def reset(self):
            self.value = None

    class Partly(Stale):
        def after_training_exp(self, strategy):
            super().after_training_exp(strategy)
            self.value += 1

        def on_failure(self, strategy, event):
            self.value = event

    stream = LabelReset(DIGITS, 2, n_samples=64).train_stream
    metrics = [Stale(), Partly()]
    cl = strategy(metrics)
    cl.train(stream[0], eval_streams=[])
    assert [metric.value for metric in metrics] == [1.0, 2.0]
    with pytest.warns(UserWarning, match="ZeroDivisionError") as caught:
        cl.train(stream[1], eval_streams=[])
    assert [metric.value for metric in metrics] == [None, "after_training_exp"]
    assert len(caught) == 2, "a hook and the one of its base class fail as one"


class Owner:
    def __init__(self, known):
        self.known = known


def test_what_is_known_of_strategies_is_kept_apart_and_keeps_none_alive():
    known = PerStrategy(list)
    one, two = Owner(known), Owner(known)
    known.of(one).append(1)
    known.of(two).append(2)
    assert known.latest == [2]
    assert known.of(one) == known.latest == [1]
    del two
    gc.collect()
    known.of(Owner(known))
    assert len(known._states) == 2


def test_what_is_loaded_goes_to_the_strategy_that_was_met_or_to_the_first_that_is():
    known = PerStrategy(list)
    known.adopt([7])
    assert known.latest == known.alone() == [7]
    twin = copy.deepcopy(known)
    one, two = Owner(None), Owner(None)
    assert (known.of(one), known.of(two)) == ([7], [])
    for ask in (known.alone, lambda: known.adopt([])):
        with pytest.raises(UserError, match="serves several strategies"):
            ask()
    assert (twin.of(two), twin.of(one)) == ([7], [])
    met = PerStrategy(list)
    met.of(one).append(1)
    met.adopt([8])
    assert (met.of(one), met.of(two)) == ([8], [])


@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda owner: pickle.loads(pickle.dumps(owner))])
def test_a_copied_strategy_takes_what_is_known_of_it_along(twin_of):
    known = PerStrategy(list)
    one, other = Owner(known), Owner(known)
    known.of(other).append(0)
    known.of(one).append(1)
    twin = twin_of(one)
    assert twin.known.latest == [1]
    twin.known.of(twin).append(2)
    assert twin.known.of(twin) == [1, 2]
    assert known.of(one) == [1], "the copy's own"
    assert twin.known is not known


def test_a_copied_metric_alone_still_knows_its_strategies():
    known = PerStrategy(list)
    one = Owner(None)
    known.of(one).append(1)
    twin = copy.deepcopy(known)
    twin.of(one).append(2)
    assert (known.of(one), twin.of(one)) == ([1], [1, 2])


def test_no_warning_where_nothing_fails():
    cl = strategy([failing("before_nothing", RuntimeError)])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        run(cl)
