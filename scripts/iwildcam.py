"""Camera traps, a natural shift: does a network that meets camera after camera forget, or can it no longer learn?

    python scripts/iwildcam.py --sample              a small synthetic data set, minutes on two cores
    python scripts/iwildcam.py --data-root DIR       WILDS iWildCam v2.0, a ResNet, hours on a GPU

The strategies of the paper (Lyle et al. 2024, arXiv:2402.18762) are compared with fresh networks on a stream of
cameras. The final networks are then scored as WILDS does it: accuracy, macro recall and macro F1 on the whole test
split in distribution (the same cameras) and out of it (other cameras). The numbers of steps here are ours; the paper's
figures are not expected to the digit.
"""

import argparse
import dataclasses
import sys
from pathlib import Path
from statistics import fmean

from plasticity_cl.cli import carry_out, tell
from plasticity_cl.errors import UserError
from plasticity_cl.experiments.compare import compare
from plasticity_cl.experiments.spec import CompareSpec, Machine, RunSpec, check
from plasticity_cl.report import read_runs, summary_table, write_report
from plasticity_cl.report.read import Run
from plasticity_cl.scenarios.files import data_folder
from plasticity_cl.scenarios.iwildcam.layout import LAYOUT, check_present

SAMPLE = CompareSpec(
    scenario="iwildcam:by=location,size=32",
    source="camera-traps",
    strategies=("finetune", "layernorm", "l2=1e-3", "layernorm+l2=1e-3"),
    seeds=(0, 1, 2),
    epochs=20,
    batch_size=16,
    model="cnn:width=16",
    optimizer="adam:lr=2e-3",
    diagnostics="light",
)

FULL = CompareSpec(
    scenario="iwildcam:by=location,n_experiences=20,size=96",
    source="wilds",
    strategies=("finetune", "layernorm", "l2=1e-5", "layernorm+l2=1e-5"),
    seeds=(0, 1, 2),
    epochs=10,
    batch_size=64,
    model="imagenet-resnet18",
    diagnostics="light",
)

MISSING = """\
The data set of this experiment is WILDS iWildCam v2.0: 203,029 pictures of 182 kinds of animal, about 12 GB, under the
Community Data License Agreement - Permissive - Version 1.0. Fetch the archive of that name and version as WILDS
publishes it, and unpack it so that DIR of --data-root DIR (or of $PLASTICITY_CL_DATA) is ROOT here:

{layout}
No network is used. Without the data, --sample shows the same experiment on a small synthetic set.
"""


def main() -> int:
    """Compare the strategies, write the report, and score the final networks on the test splits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", action="store_true", help="write a small synthetic data set and use it")
    parser.add_argument("--data-root", type=Path, help="folder that holds iwildcam_v2.0, or gets the synthetic set")
    parser.add_argument("--by", choices=("location", "time", "cluster"), help="what an experience is")
    parser.add_argument("--model", help="network, for instance imagenet-resnet50:weights=FILE")
    parser.add_argument("--device", default="cpu", help="where to train: cpu, cuda, ...")
    parser.add_argument("--jobs", type=int, help="processes at a time; one for each CPU if not given")
    parser.add_argument("--out", type=Path, help="results folder; runs/iwildcam or runs/iwildcam_sample")
    options = parser.parse_args()

    spec = dataclasses.replace(SAMPLE if options.sample else FULL, device=options.device)
    if options.by:
        spec = dataclasses.replace(spec, scenario=spec.scenario.replace("by=location", f"by={options.by}"))
    if options.model:
        spec = dataclasses.replace(spec, model=options.model)
    out = options.out or Path("runs") / ("iwildcam_sample" if options.sample else "iwildcam")
    machine = Machine(data_root=None if options.data_root is None else str(options.data_root), jobs=options.jobs)
    runs = [check(run) for run in spec.runs()]
    if spec.source == "wilds":
        explain_if_missing(data_folder(machine.data_root))
    make_cache(runs[0], machine)
    states = compare(runs, out, machine)
    code = tell("iwildcam", states)
    found, page = read_runs(out), write_report(out)
    print(summary_table(found))
    print(f"\n{wilds_table(found)}")
    print(f"\nreport: {page}")
    return code


def explain_if_missing(root: Path) -> None:
    """Say what to put where, before anything heavy is imported."""
    try:
        check_present(root)
    except UserError:
        print(MISSING.format(layout=LAYOUT), file=sys.stderr)
        raise


def make_cache(spec: RunSpec, machine: Machine) -> None:
    """Decode every image once, before several processes ask for them."""
    from plasticity_cl.experiments.build import open_recipe

    print(f"{len(open_recipe(spec, machine).scenario.train_stream[0].dataset)} images in the first experience")


def wilds_table(runs: list[Run]) -> str:
    """What the final networks score on whole test splits, as WILDS does it: means over finished seeds, as text."""
    lines = ["the final networks on whole test splits, as WILDS scores them, means over seeds"]
    lines.append(f"{'strategy':<24}{'same cameras':>26}{'other cameras':>28}")
    lines.append(" " * 24 + f"{'acc':>10}{'recall':>8}{'F1':>8}" + f"{'acc':>12}{'recall':>8}{'F1':>8}")
    for strategy in dict.fromkeys(run.strategy for run in runs):
        finished = [run for run in runs if run.strategy == strategy and run.finished]
        cells = []
        for stream in ("test", "ood"):
            for score in ("accuracy", "macro_recall", "macro_f1"):
                series = [run.series(f"stream_{score}", stream) for run in finished]
                cells.append(f"{fmean(of_run[max(of_run)] for of_run in series):8.3f}" if series else f"{'-':>8}")
        lines.append(f"{strategy:<24}  {''.join(cells[:3])}    {''.join(cells[3:])}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(carry_out("iwildcam", main))
