"""What the project claims to show, on bundled data, three seeds each, with stated margins."""

import numpy as np
import pytest

from plasticity_cl.experiments.compare import compare
from plasticity_cl.experiments.spec import CompareSpec, Machine
from plasticity_cl.report import read_runs
from plasticity_cl.report.statistics import estimate

SEEDS = (0, 1, 2)


def results(folder, **fields):
    """For each strategy and metric an array ``[seeds, experiences]``."""
    spec = CompareSpec(seeds=SEEDS, **fields)
    states = compare(spec.runs(), folder, Machine(jobs=1))
    assert set(states.values()) == {"done"}
    found = {}
    for run in read_runs(folder):
        for (metric, stream, layer), curve in run.values.items():
            if not layer:
                key = (run.spec["strategy"], metric, stream)
                found.setdefault(key, {})[run.spec["seed"]] = [curve[k] for k in sorted(curve)]
    return {key: np.array([seeds[seed] for seed in SEEDS]) for key, seeds in found.items()}


@pytest.fixture(scope="module")
def label_reset(tmp_path_factory):
    return results(
        tmp_path_factory.mktemp("label-reset"),
        scenario="label-reset",
        n_experiences=40,
        n_samples=512,
        strategies=("finetune", "layernorm+l2=1e-3"),
    )


@pytest.fixture(scope="module")
def class_incremental(tmp_path_factory):
    return results(
        tmp_path_factory.mktemp("class-incremental"),
        scenario="class-incremental",
        epochs=10,
        strategies=("finetune", "ewc=100"),
    )


@pytest.fixture(scope="module")
def noisy_start(tmp_path_factory):
    return results(
        tmp_path_factory.mktemp("noisy-start"),
        scenario="noisy-start",
        n_experiences=15,
        n_samples=512,
        epochs=20,
        lr=5e-3,
        strategies=("finetune",),
    )


def test_under_label_reset_finetuning_loses_two_thirds_and_layer_norm_with_l2_keeps_95_percent(label_reset):
    last = {
        (name, metric): label_reset[name, metric, "train"][:, -5:].mean(axis=1)
        for name in ("finetune", "layernorm+l2=0.001")
        for metric in ("learned", "fresh")
    }
    assert (last["finetune", "learned"] < last["finetune", "fresh"] / 3).all()
    assert (last["layernorm+l2=0.001", "learned"] >= 0.95 * last["layernorm+l2=0.001", "fresh"]).all()
    worn, kept = (estimate(last[name, "learned"]) for name in ("finetune", "layernorm+l2=0.001"))
    assert worn.high < kept.low


def test_a_stream_that_costs_only_plasticity_and_one_that_costs_only_memory_are_told_apart(
    noisy_start, class_incremental
):
    plasticity, memory = noisy_start, class_incremental
    assert plasticity["finetune", "plasticity_loss", "test"][:, -1].min() > 0.2
    assert np.abs(plasticity["finetune", "forgetting", "test"].mean(axis=1)).max() < 0.05
    assert np.abs(memory["finetune", "plasticity_loss", "test"].mean(axis=1)).max() < 0.05
    assert memory["finetune", "forgetting", "test"].mean(axis=1).min() > 0.5


def test_weight_consolidation_trades_forgetting_for_plasticity(class_incremental):
    finetune, ewc = "finetune", "ewc=100"
    for seed in range(len(SEEDS)):
        forgetting = {name: class_incremental[name, "forgetting", "test"][seed].mean() for name in (finetune, ewc)}
        lost = {name: class_incremental[name, "plasticity_loss", "test"][seed].mean() for name in (finetune, ewc)}
        assert forgetting[ewc] < forgetting[finetune] - 0.05
        assert lost[ewc] > lost[finetune] + 0.05


def test_large_target_means_cost_mse_and_not_the_scale_invariant_loss(tmp_path):
    found = results(
        tmp_path, scenario="target-shift", n_samples=256, epochs=75, strategies=("finetune", "scale-invariant")
    )
    mse, invariant = (
        next(
            values
            for (name, metric, stream), values in found.items()
            if (metric, stream) == ("learned", "train") and name.startswith(prefix)
        )
        for prefix in ("finetune", "scale-invariant")
    )
    zero_mean_after_shift = [2, 4, 6]
    assert mse[:, zero_mean_after_shift].mean() < 0.6
    assert invariant.min() >= 0.95
