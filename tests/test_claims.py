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
        strategies=("finetune", "layernorm", "l2=1e-3", "layernorm+l2=1e-3"),
        diagnostics="light",
    )


def test_under_label_reset_finetuning_loses_two_thirds_and_layer_norm_with_l2_keeps_95_percent(label_reset):
    last = {
        (name, metric): label_reset[name, metric, "train"][:, -5:].mean(axis=1)
        for name in ("finetune", "layernorm+l2=0.001")
        for metric in ("learned", "fresh")
    }
    assert (last["finetune", "learned"] < last["finetune", "fresh"] / 3).all()
    kept_share = last["layernorm+l2=0.001", "learned"].mean() / last["layernorm+l2=0.001", "fresh"].mean()
    assert kept_share >= 0.95
    worn, kept = (estimate(last[name, "learned"]) for name in ("finetune", "layernorm+l2=0.001"))
    assert worn.high < kept.low


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
    plasticity = results(
        tmp_path / "plasticity",
        scenario="noisy-start",
        n_experiences=15,
        n_samples=512,
        lr=5e-3,
        strategies=("finetune",),
    )
    memory = results(tmp_path / "memory", scenario="class-incremental", epochs=10, strategies=("finetune",))
    # The noisy experiences have nothing to be learned for the test images; the clean one is the last.
    assert plasticity["finetune", "plasticity_loss", "test"][:, -1].min() > 0.5
    assert np.abs(plasticity["finetune", "forgetting", "test"].mean(axis=1)).max() < 0.03
    assert np.abs(memory["finetune", "plasticity_loss", "test"].mean(axis=1)).max() < 0.07
    assert memory["finetune", "forgetting", "test"].mean(axis=1).min() > 0.7


def test_weight_consolidation_lowers_forgetting_and_raises_plasticity_loss(tmp_path):
    finetune, ewc = "finetune", "ewc=1e9"
    found = results(tmp_path, scenario="class-incremental", epochs=5, strategies=(finetune, "ewc=1e9"))
    mean = {
        (name, metric): found[name, metric, "test"].mean(axis=1)
        for name in (finetune, ewc)
        for metric in ("forgetting", "plasticity_loss")
    }
    assert (mean[ewc, "forgetting"] < mean[finetune, "forgetting"] - 0.3).all()
    assert (mean[ewc, "plasticity_loss"] > mean[finetune, "plasticity_loss"] + 0.2).all()


def test_large_target_means_cost_mse_its_features_and_not_the_scale_invariant_loss(tmp_path):
    invariant = "scale-invariant=-10..110"
    found = results(tmp_path, scenario="target-shift", epochs=100, strategies=("finetune", "layernorm", invariant))
    zero_mean_after_a_shift = [2, 4, 6]
    mse = found["finetune", "learned", "train"][:, zero_mean_after_a_shift]
    fresh = found["finetune", "fresh", "train"][:, zero_mean_after_a_shift]
    assert fresh.min() > 0.9
    assert (mse.mean(axis=1) < 0.6).all()
    assert found[invariant, "learned", "train"].min() >= 0.95
    shares = {name: found[name, "top_singular_share", "probe"] for name in ("finetune", "layernorm", invariant)}
    for name in ("finetune", "layernorm"):
        # Layer norm does not soften it here, as it does somewhat in the paper; see docs/diagnostics.md.
        assert (shares[name][:, 0] < 0.35).all()
        assert (shares[name][:, 1] > 0.9).all()
    assert (shares[invariant] < 0.55).all()
