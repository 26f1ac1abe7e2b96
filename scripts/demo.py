"""`make demo`: three streams on bundled digits that show what each way of getting worse looks like.

Label reset costs plasticity, class-incremental costs memory, target shift shows what a large target mean does: it costs
even a fresh network, against the same targets with mean 0, and a worn one learns zero-mean targets worse after it.
"""

import argparse
import sys
from pathlib import Path

from plasticity_cl.cli import carry_out, tell
from plasticity_cl.experiments.compare import run_all
from plasticity_cl.experiments.directory import check_out, run_directory
from plasticity_cl.experiments.spec import CompareSpec, Machine, check
from plasticity_cl.report import read_runs, summary_table, write_report

SEEDS = (0, 1, 2, 3, 4)

COMPARISONS = {
    "label-reset": CompareSpec(
        scenario="label-reset:n_samples=384",
        strategies=("finetune", "layernorm", "l2", "layernorm+l2"),
        seeds=SEEDS,
        epochs=24,
        batch_size=64,
    ),
    "class-incremental": CompareSpec(
        scenario="class-incremental", strategies=("finetune", "ewc=1e9"), seeds=SEEDS, epochs=5
    ),
    "target-shift": CompareSpec(
        scenario="target-shift:n_experiences=5,n_samples=128",
        strategies=("finetune", "scale-invariant=-10..110"),
        seeds=SEEDS,
        epochs=100,
    ),
}


def main() -> int:
    """Do all runs in one pool and report them together."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="results folder")
    parser.add_argument("--jobs", type=int, help="processes at a time; one for each CPU if not given")
    options = parser.parse_args()

    runs = {}
    for name, comparison in COMPARISONS.items():
        specs = [check(spec) for spec in comparison.runs()]
        check_out(options.out / name, specs[0])
        runs |= {run_directory(options.out / name, spec): spec for spec in specs}
    states = run_all(runs, options.out / "fresh", Machine(jobs=options.jobs))
    code = tell("demo", states)
    page = write_report(options.out)
    print(summary_table(read_runs(options.out)))
    print(f"\nreport: {page}")
    return code


if __name__ == "__main__":
    sys.exit(carry_out("demo", main))
