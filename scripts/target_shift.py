"""The seed's third experiment: a large regression target mean, and what it does to the features.

    python scripts/target_shift.py                  digits, minutes

Regression on noise targets with mean 0, then 100, then 0 again, by networks with and without layer norm, with squared
error and with the scale-invariant loss. After each experience it prints how well it was learned, beside a fresh network
and a fresh network without interventions on the zero-mean twin, the same targets with mean 0; how many directions the
features have; and what carries the mean output: the output bias, the features' top singular direction, or the rest. A
squared error drives nearly all of the mean through one direction (Lyle et al. 2024, arXiv:2402.18762, section 4.3):
that costs even a fresh network, and the next zero-mean task is then learned worse.
"""

import argparse
import csv
import math
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from avalanche.training.plugins import EvaluationPlugin
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tqdm import tqdm

from plasticity_cl.cli import carry_out
from plasticity_cl.diagnostics import (
    feature_rank,
    output_bias_share,
    output_top_direction_share,
    penultimate_features,
)
from plasticity_cl.errors import UserError
from plasticity_cl.experiments.build import open_run
from plasticity_cl.experiments.directory import disk_errors
from plasticity_cl.experiments.fresh import fresh_reference
from plasticity_cl.experiments.spec import RunSpec, check
from plasticity_cl.metrics import ExperienceScore
from plasticity_cl.training.learner import criterion_of

STRATEGIES = ("finetune", "layernorm", "scale-invariant=-10..110", "layernorm+scale-invariant=-10..110")
MEANS = (0.0, 100.0, 0.0)
COLUMNS = (
    *("fresh on the zero-mean twin", "fresh", "learned"),
    *("top singular share", "effective rank", "mean by bias", "mean by top direction"),
)
WHEN = ("mean 0, before the shift", "mean 100, after the shift", "mean 0 again")
COLOURS = ("#009E73", "#D55E00", "#0072B2")


def main() -> None:
    """Train, print the table, write the singular values and their figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="runs of each strategy")
    parser.add_argument("--epochs", type=int, default=75, help="passes over each experience")
    parser.add_argument("--out", type=Path, default=Path("runs/target_shift"), help="results folder")
    options = parser.parse_args()
    if options.seeds < 1:
        raise UserError(f"--seeds is {options.seeds}: it must be at least 1")

    warnings.filterwarnings("ignore", message="No loggers specified")
    torch.set_num_threads(1)
    values: dict[str, list[list[list[float]]]] = {name: [] for name in STRATEGIES}
    spectra: dict[str, list[list[np.ndarray]]] = {name: [] for name in STRATEGIES}
    jobs = [(name, seed) for name in STRATEGIES for seed in range(options.seeds)]
    for name, seed in tqdm(jobs, unit="run", disable=None):
        of_run, of_spectra = one_run(name, seed, options.epochs, options.out / "fresh")
        values[name].append(of_run)
        spectra[name].append(of_spectra)

    print_table({name: np.array(runs).mean(0) for name, runs in values.items()}, options.seeds)
    with disk_errors(options.out):
        options.out.mkdir(parents=True, exist_ok=True)
        write_values(options.out / "target_shift.csv", values)
        draw({name: np.array(runs) for name, runs in spectra.items()}, options.out / "target_shift.png")
    print(f"\nvalues: {options.out / 'target_shift.csv'}, figure: {options.out / 'target_shift.png'}")


def one_run(name: str, seed: int, epochs: int, cache: Path) -> tuple[list[list[float]], list[np.ndarray]]:
    """After each experience: the values of COLUMNS, and the features' singular values."""
    stream = f"target-shift:n_experiences={len(MEANS)}"
    parts = open_run(check(RunSpec(scenario=stream, strategy=name, seed=seed, epochs=epochs)))
    baseline, fresh = (fresh_reference(recipe, cache)["train"] for recipe in (parts.baseline, parts.fresh))
    score, scenario = ExperienceScore(parts.run.score), parts.run.scenario
    strategy = parts.run.strategy(EvaluationPlugin(score, collect_all=False))
    inputs = scenario.train_stream[0].samples.batch(torch.arange(256))[0]
    values, spectra = [], []
    for k, experience in enumerate(scenario.train_stream):
        parts.run.seed_experience(k)
        strategy.train(experience, eval_streams=[])
        strategy.eval(scenario.train_stream[k : k + 1])
        rank = feature_rank(penultimate_features(strategy.model, inputs))
        by_bias = by_top = math.nan  # of encoded outputs the mean is not the targets' mean
        if not hasattr(criterion_of(strategy), "decode"):
            by_bias = output_bias_share(strategy.model, inputs)
            by_top = output_top_direction_share(strategy.model, inputs)
        scores = [baseline[k], fresh[k], score.result()]
        values.append([*scores, rank.top_singular_share, rank.effective_rank, by_bias, by_top])
        spectra.append(rank.singular_values.numpy())
    return values, spectra


def print_table(means: dict[str, np.ndarray], seeds: int) -> None:
    """Means over seeds, one row a strategy and experience."""
    print(f"digits, regression on noise: means over {seeds} seeds, after each experience; scores are bounded R2:")
    print("of a fresh network on the zero-mean twin, of a fresh network, and of the network that goes on")
    print(f"{'':34} {'target':>6} {'zero-mean':>9} {'':>13} {'top sing.':>9} {'eff.':>5} {'mean by':>7} {'mean by':>8}")
    print(
        f"{'strategy':34} {'mean':>6} {'twin':>9} {'fresh':>5} {'learned':>7} "
        f"{'share':>9} {'rank':>5} {'bias':>7} {'top dir.':>8}"
    )
    for name, rows in means.items():
        for mean, (twin, fresh, learned, share, rank, by_bias, by_top) in zip(MEANS, rows, strict=True):
            carried = "      -        -" if math.isnan(by_top) else f"{by_bias:7.2f} {by_top:8.2f}"
            scores = f"{twin:9.2f} {fresh:5.2f} {learned:7.2f}"
            print(f"{name[:34]:34} {mean:6.0f} {scores} {share:9.2f} {rank:5.1f} {carried}")


def write_values(path: Path, values: dict[str, list[list[list[float]]]]) -> None:
    """One row a strategy, seed and experience."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["strategy", "seed", "target mean", *COLUMNS])
        for name, runs in values.items():
            for seed, rows in enumerate(runs):
                writer.writerows([name, seed, mean, *row] for mean, row in zip(MEANS, rows, strict=True))


def draw(spectra: dict[str, np.ndarray], path: Path) -> None:
    """The features' singular values over their sum, [seeds, experiences, index], one panel a strategy."""
    figure = Figure(figsize=(9, 5.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 2, sharex=True, sharey=True)
    for panel, (name, sigma) in zip(panels.flat, spectra.items(), strict=True):
        shares = sigma / sigma.sum(-1, keepdims=True)
        index = np.arange(1, shares.shape[-1] + 1)
        for k, (when, colour) in enumerate(zip(WHEN, COLOURS, strict=True)):
            panel.loglog(index, shares[:, k].mean(0), color=colour, label=when)
            panel.fill_between(index, shares[:, k].min(0), shares[:, k].max(0), color=colour, alpha=0.2, linewidth=0)
        panel.set_title(name, loc="left", fontsize=10)
        panel.set_ylim(1e-5, 1.3)
        panel.grid(color="#ececec")
    for panel in panels[-1]:
        panel.set_xlabel("index of the singular value")
    for panel in panels[:, 0]:
        panel.set_ylabel("share of the sum")
    panels[0, 1].legend(frameon=False, fontsize=9)
    figure.suptitle("Singular values of the features around a target shift (bands: all seeds)", x=0.01, ha="left")
    figure.savefig(path)


if __name__ == "__main__":
    sys.exit(carry_out("target_shift", main))
