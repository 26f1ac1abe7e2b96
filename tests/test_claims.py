"""What the project claims to show, on bundled data and seeds that no setting was chosen on, with stated margins."""

import dataclasses
import runpy
from pathlib import Path

import numpy as np
import pytest

from plasticity_cl.experiments.compare import compare
from plasticity_cl.experiments.spec import CompareSpec, Machine
from plasticity_cl.report import read_runs
from plasticity_cl.strategies.catalogue import normalise

pytestmark = pytest.mark.slow

DEMO = runpy.run_path(str(Path(__file__).parents[1] / "scripts" / "demo.py"))["COMPARISONS"]
SEEDS = (101, 102, 103)
INVARIANT = "scale-invariant=-10..110"
ZERO, SHIFTED, AFTER_A_SHIFT = [0, 2, 4], [1, 3], [2, 4]
"""Experiences of the demo's target shift."""


def results(folder, comparison):
    """For each strategy and metric an array ``[seeds, experiences]``."""
    spec = dataclasses.replace(comparison, seeds=SEEDS, diagnostics="light")
    states = compare(spec.runs(), folder, Machine(jobs=1))
    assert set(states.values()) == {"done"}
    found = {}
    for run in read_runs(folder):
        for (metric, stream, layer), curve in run.values.items():
            if not layer:
                key = (run.spec["strategy"], metric, stream)
                found.setdefault(key, {})[run.spec["seed"]] = [curve[k] for k in sorted(curve)]
    # Steps to a threshold are missing where it was not reached.
    whole = {key: seeds for key, seeds in found.items() if len({len(curve) for curve in seeds.values()}) == 1}
    return {key: np.array([seeds[seed] for seed in SEEDS]) for key, seeds in whole.items() if len(seeds) == len(SEEDS)}


@pytest.fixture(scope="module")
def label_reset(tmp_path_factory):
    return results(
        tmp_path_factory.mktemp("label-reset"),
        dataclasses.replace(DEMO["label-reset"], strategies=(*DEMO["label-reset"].strategies, "ewc=100")),
    )


@pytest.fixture(scope="module")
def target_shift(tmp_path_factory):
    return results(
        tmp_path_factory.mktemp("target-shift"),
        dataclasses.replace(DEMO["target-shift"], strategies=("finetune", "layernorm", INVARIANT)),
    )


def test_under_label_reset_finetuning_falls_to_near_chance_and_layer_norm_with_l2_keeps_95_percent(label_reset):
    last = {
        (name, metric): label_reset[name, metric, "train"][:, -5:].mean(axis=1)
        for name in ("finetune", "layernorm+l2=0.001")
        for metric in ("learned", "fresh", "baseline", "chance")
    }
    assert (last["finetune", "fresh"] > 0.4).all()
    assert (last["finetune", "learned"] - last["finetune", "chance"] < 0.1).all()
    kept = last["layernorm+l2=0.001", "learned"]
    assert kept.mean() >= 0.95 * last["layernorm+l2=0.001", "fresh"].mean()
    assert (kept > 1.5 * last["layernorm+l2=0.001", "baseline"]).all()
    assert (label_reset["layernorm", "learned", "train"][:, -5:].mean(axis=1) < kept - 0.05).all()


def test_weight_consolidation_does_not_keep_a_network_able_to_learn(label_reset):
    learned, fresh = (label_reset["ewc=100", metric, "train"][:, -5:].mean(axis=1) for metric in ("learned", "fresh"))
    assert (learned < 0.75 * fresh).all()


def test_finetuning_is_its_own_baseline(label_reset):
    for stream in ("train", "test"):
        assert (label_reset["finetune", "handicap", stream] == 0).all()
        assert (label_reset["ewc=100", "handicap", stream] == 0).all()


def test_label_reset_wears_units_features_and_kernel_and_grows_the_parameters(label_reset):
    def first_and_last(metric):
        curve = label_reset["finetune", metric, "probe"]
        return curve[:, 0], curve[:, -5:].mean(axis=1)

    for falling, share in (("sign_entropy", 0.4), ("effective_rank", 0.2), ("ntk_effective_rank", 0.2)):
        first, last = first_and_last(falling)
        assert (last < share * first).all(), falling
    for rising, margin in (("dead_units", 0.25), ("linearised_units", 0.15), ("parameter_norm_ratio", 0.7)):
        first, last = first_and_last(rising)
        assert (last > first + margin).all(), rising


def test_layer_norm_holds_the_preactivation_shift_and_l2_the_norm(label_reset):
    def last(name, metric):
        return label_reset[name, metric, "probe"][:, -5:].mean(axis=1)

    assert (last("finetune", "preactivation_shift") > 10).all()
    assert (last("layernorm", "preactivation_shift") < 3).all()
    assert (last("finetune", "parameter_norm_ratio") > 2).all()
    assert (last("l2=0.001", "parameter_norm_ratio") < 1.3).all()


def test_a_stream_that_costs_only_plasticity_and_one_that_costs_only_memory_are_told_apart(tmp_path):
    noisy = CompareSpec(
        scenario="noisy-start:n_experiences=15,n_samples=512",
        optimizer="adam:lr=5e-3",
        strategies=("finetune",),
        n_fresh=1,
    )
    classes = CompareSpec(scenario="class-incremental", epochs=10, strategies=("finetune",))
    plasticity, memory = results(tmp_path / "plasticity", noisy), results(tmp_path / "memory", classes)
    # The noisy experiences have nothing to be learned for the test images; the clean one is the last.
    assert plasticity["finetune", "plasticity_loss", "test"][:, -1].min() > 0.5
    assert np.abs(plasticity["finetune", "forgetting", "test"].mean(axis=1)).max() < 0.03
    assert np.abs(memory["finetune", "plasticity_loss", "test"].mean(axis=1)).max() < 0.07
    assert memory["finetune", "forgetting", "test"].mean(axis=1).min() > 0.7


def test_weight_consolidation_lowers_forgetting_and_raises_plasticity_loss(tmp_path):
    finetune, ewc = "finetune", normalise("ewc=1e9")
    found = results(tmp_path, DEMO["class-incremental"])
    mean = {
        (name, metric): found[name, metric, "test"].mean(axis=1)
        for name in (finetune, ewc)
        for metric in ("forgetting", "plasticity_loss")
    }
    # One seed in three forgets 0.25 less, not 0.3: what is claimed is less in each, and 0.3 less in the mean.
    less = mean[finetune, "forgetting"] - mean[ewc, "forgetting"]
    assert (less > 0).all()
    assert less.mean() > 0.3
    assert (mean[ewc, "plasticity_loss"] > mean[finetune, "plasticity_loss"] + 0.2).all()


def test_a_fresh_network_learns_the_zero_mean_twin_and_a_large_mean_costs_even_it(target_shift):
    for stream in ("train", "test"):
        assert (target_shift["finetune", "handicap", stream][:, ZERO] == 0).all()
    assert (target_shift["finetune", "baseline", "train"] > 0.97).all()
    assert (target_shift["finetune", "handicap", "train"][:, SHIFTED] > 0.3).all()
    assert (target_shift["layernorm", "handicap", "train"][:, SHIFTED] > 0.3).all()


def test_after_a_large_mean_squared_error_learns_a_zero_mean_task_worse(target_shift):
    for name in ("finetune", "layernorm"):
        # Layer norm does not soften it here, as it does somewhat in the paper; see docs/diagnostics.md.
        assert (target_shift[name, "plasticity_loss", "train"][:, AFTER_A_SHIFT].mean(axis=1) > 0.2).all()


def test_the_scale_invariant_loss_suffers_from_no_mean(target_shift):
    lost = [target_shift[INVARIANT, part, "train"] for part in ("handicap", "plasticity_loss")]
    assert np.abs(sum(lost)).max() < 0.15
    assert target_shift[INVARIANT, "learned", "train"].min() > 0.85


def test_a_large_mean_sits_in_one_direction_of_the_features_unless_the_loss_is_scale_invariant(target_shift):
    shares = {name: target_shift[name, "top_singular_share", "probe"] for name in ("finetune", "layernorm", INVARIANT)}
    for name in ("finetune", "layernorm"):
        assert (shares[name][:, 0] < 0.5).all()
        assert (shares[name][:, 1] > 0.8).all()
    assert (shares[INVARIANT] < 0.6).all()
