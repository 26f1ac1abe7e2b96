"""The seed's first experiment: random label resets, with and without layer norm and L2.

    python scripts/label_reset.py                                 scaled down, on bundled digits, minutes
    python scripts/label_reset.py --full --data-root DIR          a CNN on CIFAR-10, hours; --download fetches it

At every experience all labels are drawn anew, so nothing learned before is of use and nothing can be said to be
forgotten that should be kept: what a worn network lacks against a fresh one is plasticity (Lyle et al. 2024,
arXiv:2402.18762, section 5), and what an intervention costs or gives a fresh network is its handicap. The numbers of
steps here are ours; the paper's figures are not expected to the digit.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

from plasticity_cl.cli import carry_out, tell
from plasticity_cl.experiments.compare import compare
from plasticity_cl.experiments.spec import CompareSpec, Machine
from plasticity_cl.report import read_runs, summary_table, write_report

STRATEGIES = ("finetune", "layernorm", "l2=1e-3", "layernorm+l2=1e-3")
SEEDS = (0, 1, 2, 3, 4)

SMALL = CompareSpec(
    scenario="label-reset:n_experiences=40,n_samples=512",
    source="digits",
    strategies=STRATEGIES,
    seeds=SEEDS,
    epochs=20,
    batch_size=32,
    model="mlp",
)

FULL = CompareSpec(
    scenario="label-reset:n_experiences=40",
    source="cifar10",
    strategies=("finetune", "layernorm", "l2=1e-5", "layernorm+l2=1e-5"),
    seeds=SEEDS,
    epochs=20,
    batch_size=128,
    model="cnn:width=64",
)


def main() -> int:
    """Compare the strategies and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="a CNN on CIFAR-10 instead of digits")
    parser.add_argument("--data-root", help="folder of the data sets")
    parser.add_argument("--download", action="store_true", help="fetch CIFAR-10 if it is missing")
    parser.add_argument("--device", default="cpu", help="where to train: cpu, cuda, ...")
    parser.add_argument("--jobs", type=int, help="processes at a time; one for each CPU if not given")
    parser.add_argument("--out", type=Path, help="results folder; runs/label_reset or runs/label_reset_full")
    options = parser.parse_args()

    spec = FULL if options.full else SMALL
    out = options.out or Path("runs") / ("label_reset_full" if options.full else "label_reset")
    machine = Machine(data_root=options.data_root, download=options.download, jobs=options.jobs)
    states = compare(dataclasses.replace(spec, device=options.device).runs(), out, machine)
    code = tell("label_reset", states)
    page = write_report(out)
    print(summary_table(read_runs(out)))
    print(f"\nreport: {page}")
    return code


if __name__ == "__main__":
    sys.exit(carry_out("label_reset", main))
