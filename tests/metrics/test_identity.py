"""Which score is whose: every order of training and evaluating, counted independently by hand."""

import copy
import warnings

import numpy as np
import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, split_online_stream
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.logging import BaseLogger
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import TensorDataset

from plasticity_cl.metrics import SeparationMetric, plasticity_metrics, separate

K = 4


def labelled(n, seed, shift):
    random = torch.Generator().manual_seed(seed)
    y = torch.randint(4, (n,), generator=random)
    x = torch.randn(n, 6, generator=random) + 2 * nn.functional.one_hot((y + shift) % 4, 6).float()
    data = TensorDataset(x, y)
    data.targets = y.tolist()
    return as_classification_dataset(data)


def benchmark(seed=0, k=K):
    return benchmark_from_datasets(
        train=[labelled(40, seed + i, i) for i in range(k)], test=[labelled(30, seed + 100 + i, i) for i in range(k)]
    )


BENCHMARK = benchmark()


def network():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))


class Recorder(BaseLogger):
    def __init__(self):
        super().__init__()
        self.values = []

    def log_single_metric(self, name, value, x_plot):
        self.values.append((name, x_plot, value))


def strategy(metrics, loggers=(), epochs=2, **options):
    model = network()
    return Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.3),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=8,
        train_epochs=epochs,
        evaluator=EvaluationPlugin(metrics, loggers=list(loggers), collect_all=False),
        **options,
    )


@torch.no_grad()
def accuracy(model, experience):
    """The score, by a loop of its own."""
    model = copy.deepcopy(model).eval()
    rows = [experience.dataset[i] for i in range(len(experience.dataset))]
    outputs = model(torch.stack([row[0] for row in rows]))
    return float((outputs.argmax(1) == torch.tensor([int(row[1]) for row in rows])).float().mean())


@st.composite
def protocols(draw):
    """Trainings and evaluations in any order: reversed, repeated, interleaved, partial."""
    train = st.tuples(st.just("train"), st.integers(0, K - 1))
    some = st.lists(st.integers(0, K - 1), min_size=1, max_size=K, unique=True)
    evaluate = st.tuples(st.just("evaluate"), st.sampled_from(["train", "test"]), some)
    return draw(st.lists(st.one_of(train, evaluate), min_size=1, max_size=14))


@pytest.mark.slow
@settings(max_examples=120)
@given(protocols())
@pytest.mark.filterwarnings("ignore:SeparationMetric")
def test_any_order_of_training_and_evaluating_is_counted_as_by_hand(protocol):
    rng = np.random.default_rng(len(protocol))
    fresh = {stream: rng.random(K).tolist() for stream in ("train", "test")}
    baseline = {stream: rng.random(K).tolist() for stream in ("train", "test")}
    logger, metric = Recorder(), SeparationMetric(fresh, baseline=baseline)
    cl = strategy([metric], [logger], epochs=1)
    last, order = None, []
    learned, final = ({"train": {}, "test": {}} for _ in range(2))
    before, forgotten = [], []
    for action in protocol:
        if action[0] == "train":
            last = action[1]
            order = [k for k in order if k != last] + [last]
            for scores in (*learned.values(), *final.values()):
                scores.pop(last, None)  # what it was before this training says nothing of it
            cl.train(BENCHMARK.train_stream[last], eval_streams=[])
            continue
        _, stream, numbers = action
        experiences = BENCHMARK.streams[stream]
        cl.eval([experiences[k] for k in numbers])
        for k in numbers:
            score = accuracy(cl.model, experiences[k])
            if k not in order:
                before.append((k, stream, score))
                continue
            final[stream][k] = score
            if k == last:
                learned[stream].setdefault(k, score)
        earlier = order[:-1]
        if earlier and all(k in numbers and k in learned[stream] for k in earlier):
            losses = [learned[stream][k] - final[stream][k] for k in earlier]
            forgotten.append((last, stream, sum(losses) / len(losses)))
    result = metric.result()
    assert set(result) == {stream for stream in final if final[stream]}
    for stream, separation in result.items():
        size = max(final[stream]) + 1
        columns = [[scores[stream].get(k, np.nan) for k in range(size)] for scores in (learned, final)] + [
            fresh[stream][:size],
            baseline[stream][:size],
        ]
        by_hand = separate(*columns)
        for name, values in vars(by_hand).items():
            np.testing.assert_allclose(getattr(separation, name), values, atol=1e-6, err_msg=name)
        parts = separation.handicap + separation.plasticity_loss + separation.forgetting
        known = ~np.isnan(parts)
        assert np.array_equal(parts[known], separation.total[known])
        assert np.array_equal((separation.baseline - separation.final)[known], separation.total[known])
    emitted = [(x, name.split("/")[2], value) for name, x, value in logger.values if "score_before_training" in name]
    assert [(k, s) for k, s, _ in emitted] == [(k, s) for k, s, _ in before]
    assert np.allclose([v for *_, v in emitted], [v for *_, v in before])
    emitted = [(x, name.split("/")[2], value) for name, x, value in logger.values if "forgetting_so_far" in name]
    assert [(k, s) for k, s, _ in emitted] == [(k, s) for k, s, _ in forgotten]
    assert np.allclose([v for *_, v in emitted], [v for *_, v in forgotten], atol=1e-6)


@pytest.mark.parametrize("boundaries", [False, True])
@pytest.mark.parametrize("size", [7, 10, 40])
def test_an_online_stream_has_one_row_an_experience(boundaries, size):
    metrics = plasticity_metrics(reference=network)
    cl = strategy(metrics, epochs=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="SeparationMetric")
        for k in range(K):
            stream = split_online_stream(
                BENCHMARK.train_stream[k : k + 1], size, access_task_boundaries=boundaries, seed=k
            )
            torch.manual_seed(k)
            for mini in stream:
                cl.train(mini, eval_streams=[])
            cl.eval(BENCHMARK.test_stream[k : k + 1])
        cl.eval(BENCHMARK.test_stream)
    result = metrics[0].result()["test"]
    assert len(result.learned) == K
    assert not any(np.isnan(result.total))
    assert result.plasticity_loss[0] == 0, "both start from the same weights, and see the same mini experiences"
    for k in range(1, K):
        alone = strategy([SeparationMetric()], epochs=1)
        torch.manual_seed(k)
        for mini in split_online_stream(BENCHMARK.train_stream[k : k + 1], size, seed=k):
            alone.train(mini, eval_streams=[])
        assert result.fresh[k] == pytest.approx(accuracy(alone.model, BENCHMARK.test_stream[k]), abs=1e-6)


def test_a_second_pass_shows_the_last_time_and_says_so():
    metric = SeparationMetric({"test": [1.0] * K})
    cl = strategy([metric])
    for k in range(K):
        cl.train(BENCHMARK.train_stream[k], eval_streams=[])
        cl.eval(BENCHMARK.test_stream[k : k + 1])
    learned = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for k in range(K):
            cl.train(BENCHMARK.train_stream[k], eval_streams=[])
            learned.append(accuracy(cl.model, BENCHMARK.test_stream[k]))
            cl.eval(BENCHMARK.test_stream[k : k + 1])
    said = [str(w.message) for w in caught if "trained on again" in str(w.message)]
    assert said == ["SeparationMetric: experience 0 is trained on again: the table shows its last time"]
    np.testing.assert_allclose(metric.result()["test"].learned, learned, atol=1e-6)
    cl.eval(BENCHMARK.test_stream)
    final = [accuracy(cl.model, experience) for experience in BENCHMARK.test_stream]
    np.testing.assert_allclose(metric.result()["test"].final, final, atol=1e-6)


def test_one_evaluator_for_two_strategies_keeps_their_tables_apart():
    metric = SeparationMetric()
    evaluator = EvaluationPlugin(metric, loggers=[], collect_all=False)
    strategies = []
    for seed in range(2):
        torch.manual_seed(seed)
        model = nn.Linear(6, 4)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        strategies.append(Naive(model=model, optimizer=optimizer, train_mb_size=8, evaluator=evaluator))
    for k in range(K):  # interleaved
        for cl in strategies:
            cl.train(BENCHMARK.train_stream[k], eval_streams=[])
            cl.eval(BENCHMARK.test_stream[k : k + 1])
            assert metric.result()["test"].learned[k] == pytest.approx(
                accuracy(cl.model, BENCHMARK.test_stream[k]), abs=1e-6
            )
    for cl in strategies:
        cl.eval(BENCHMARK.test_stream)
        final = [accuracy(cl.model, experience) for experience in BENCHMARK.test_stream]
        np.testing.assert_allclose(metric.result()["test"].final, final, atol=1e-6)


@pytest.mark.parametrize("in_one_call", [False, True])
def test_evaluating_only_at_the_end_is_said_once(in_one_call):
    metric = SeparationMetric({"test": [1.0] * K})
    cl = strategy([metric])
    for part in [BENCHMARK.train_stream] if in_one_call else BENCHMARK.train_stream:
        cl.train(part, eval_streams=[])
    with pytest.warns(UserWarning, match="was not evaluated right after training on it") as caught:
        cl.eval(BENCHMARK.test_stream)
    assert len([w for w in caught if "SeparationMetric" in str(w.message)]) == 1
    result = metric.result()["test"]
    assert np.isnan(result.learned[: K - 1]).all()
    assert not np.isnan(result.final).any()
    assert result.forgetting[K - 1] == 0


def test_another_benchmark_begins_a_new_table():
    metric = SeparationMetric({"test": [1.0] * K})
    cl = strategy([metric])
    cl.train(BENCHMARK.train_stream[0], eval_streams=[])
    cl.eval(BENCHMARK.test_stream[:1])
    cl.train(BENCHMARK.train_stream[1], eval_streams=[])
    cl.eval(BENCHMARK.test_stream[:2])
    other = benchmark(seed=50, k=2)
    with pytest.warns(UserWarning, match="another benchmark"):
        cl.train(other.train_stream[0], eval_streams=[])
    cl.eval(other.test_stream[:1])
    result = metric.result()["test"]
    assert len(result.learned) == 1
    assert result.learned[0] == pytest.approx(accuracy(cl.model, other.test_stream[0]), abs=1e-6)
    assert np.isnan(result.fresh).all()


def test_streams_of_other_lengths_are_said_to_be_matched_by_number():
    whole = benchmark_from_datasets(train=[labelled(40, i, i) for i in range(K)], test=[labelled(30, 100, 0)])
    cl = strategy([SeparationMetric()])
    cl.train(whole.train_stream[0], eval_streams=[])
    with pytest.warns(UserWarning, match="stream test has 1 experiences and the stream that is trained on 4"):
        cl.eval(whole.test_stream)


def test_a_score_that_cannot_be_taken_leaves_no_stale_one():
    class Picky(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.broken = nn.Linear(6, 4), False

        def forward(self, x):
            return self.layer(x)[:, 0] if self.broken else self.layer(x)

    model, metric = Picky(), SeparationMetric()
    cl = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        criterion=lambda output, target: output.sum(),
        train_mb_size=8,
        evaluator=EvaluationPlugin(metric, loggers=[]),
    )
    cl.train(BENCHMARK.train_stream[0], eval_streams=[])
    cl.eval(BENCHMARK.test_stream[:1])
    assert metric.result()["test"].forgetting[0] == 0
    model.broken = True
    with pytest.warns(UserWarning, match="no value"):
        cl.eval(BENCHMARK.test_stream[:1])
    result = metric.result()["test"]
    assert np.isnan(result.final[0])
    assert np.isnan(result.forgetting[0])
