"""What the diagnostics cost, in forward(-backward) passes, and against torch.func, PyHessian and curvlinops.

    python scripts/benchmark_diagnostics.py                       everything, about ten minutes
    python scripts/benchmark_diagnostics.py units hessian         some of: ntk, resnet, units, others, hessian, demo

Peers to compare with are no dependencies: pip install pyhessian curvlinops-for-pytorch

CPU time of one thread. What is compared runs in turn, round after round; a ratio is the median of the rounds' ratios,
so that another load on the machine strikes both. Peak memory is that of a process of its own: how far its resident
memory rises above that of the libraries, the network and the batch.
"""

import argparse
import copy
import csv
import gc
import importlib.util
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse.linalg import LinearOperator, eigsh
from steady_memory import keep_memory
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap

from plasticity_cl import diagnostics
from plasticity_cl.errors import UserError, unknown_name
from plasticity_cl.models import make_model
from plasticity_cl.seeding import generator

IMAGE, CLASSES = (3, 32, 32), 10
NETWORKS: dict[str, dict[str, Any]] = {
    "mlp": {"name": "mlp", "width": 512, "depth": 2},
    "cnn": {"name": "cnn"},
    "gelu mlp": {"name": "mlp", "width": 512, "depth": 2, "activation": "gelu"},
    "resnet18": {"name": "resnet18", "normalization": "batch"},
}
MIB = 2**20


@dataclass
class Subject:
    """A network with a batch of images in the shape of CIFAR-10, noise, and labels."""

    model: nn.Module
    inputs: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Row:
    """One measurement: CPU time, its ratio to that of ``base``, peak memory over network and batch."""

    table: str
    case: str
    what: str
    cpu_ms: float
    base: str = ""
    ratio: float = 0.0
    peak_mib: float | None = None
    error: float | None = None
    note: str = ""


def subject(network: str, n: int) -> Subject:
    """Make a fresh network and its batch."""
    model = make_model(input_shape=IMAGE, n_outputs=CLASSES, seed=0, **NETWORKS[network])
    inputs = torch.randn(n, *IMAGE, generator=generator(0, "inputs"))
    return Subject(model, inputs, torch.randint(CLASSES, (n,), generator=generator(0, "labels")))


def forward(s: Subject) -> None:
    """One forward pass as for evaluation: the measure of what only looks at units."""
    s.model.eval()
    with torch.no_grad():
        s.model(s.inputs)


def forward_backward(s: Subject) -> None:
    """One training step without the update: the measure of what needs gradients."""
    s.model.train()
    s.model.zero_grad()
    F.cross_entropy(s.model(s.inputs), s.labels).backward()


def torch_func_ntk(s: Subject, kind: str) -> Tensor:
    """The kernel as the tutorials compute it: jacrev (for the sum, grad) under vmap, then products of Jacobians."""
    s.model.eval()
    parameters = {name: value.detach() for name, value in s.model.named_parameters()}

    def output(values: dict[str, Tensor], x: Tensor) -> Tensor:
        logits: Tensor = functional_call(s.model, values, (x[None],))[0]
        return logits if kind == "trace" else logits.sum() / CLASSES**0.5

    derivative = jacrev(output) if kind == "trace" else grad(output)
    jacobians = vmap(derivative, (None, 0))(parameters, s.inputs)
    n = len(s.inputs)
    flat = (part.reshape(n, -1) for part in jacobians.values())
    return sum((part @ part.T for part in flat), torch.zeros(n, n))


def small_probe(s: Subject) -> object:
    """A tenth of the default steps of one network's random-target fit: 50 training steps instead of 500."""
    return diagnostics.fit_random_targets(s.model, s.inputs, steps=10)


def loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """The loss of all cases."""
    return F.cross_entropy(outputs, labels)


Work = Callable[[Subject], object]
WORK: dict[str, Work] = {
    "forward": forward,
    "forward-backward": forward_backward,
    "unit_statistics": lambda s: diagnostics.unit_statistics(s.model, s.inputs),
    "eNTK trace": lambda s: diagnostics.empirical_ntk(s.model, s.inputs),
    "eNTK sum": lambda s: diagnostics.empirical_ntk(s.model, s.inputs, "sum"),
    "eNTK loss": lambda s: diagnostics.empirical_ntk(s.model, s.inputs, "loss", s.labels, loss),
    "eNTK full": lambda s: diagnostics.empirical_ntk(s.model, s.inputs, "full"),
    "torch.func trace": lambda s: torch_func_ntk(s, "trace"),
    "torch.func sum": lambda s: torch_func_ntk(s, "sum"),
    "max_hessian_eigenvalue": lambda s: diagnostics.max_hessian_eigenvalue(s.model, loss, s.inputs, s.labels),
    "loss_along_gradient": lambda s: diagnostics.loss_along_gradient(s.model, loss, s.inputs, s.labels),
    "penultimate_features": lambda s: diagnostics.penultimate_features(s.model, s.inputs),
    "output_bias_share": lambda s: diagnostics.output_bias_share(s.model, s.inputs),
    "parameter_norm": lambda s: diagnostics.parameter_norm(s.model),
    "gradient_norm": lambda s: diagnostics.gradient_norm(s.model),
    "parameter_snapshot": lambda s: diagnostics.parameter_snapshot(s.model),
    "fit_random_targets, 50 steps": small_probe,
}


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU time of this process; as in timeit, others' garbage is collected before and not during the work."""
    gc.collect()
    gc.disable()
    try:
        start = time.process_time()
        work()
        return time.process_time() - start
    finally:
        gc.enable()


def in_turn(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Time each once a round, in a random order, after one round that does not count."""
    names = list(works)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for work in works.values():
        work()
    for turn in range(rounds):
        # What ran before leaves its mark in caches and allocator, so it must not be the same each time.
        for i in torch.randperm(len(names), generator=generator(turn, "order")).tolist():
            seconds[names[i]].append(cpu_seconds(works[names[i]]))
    return seconds


def rows_of(table: str, case: str, seconds: dict[str, list[float]], base: str) -> list[Row]:
    """One row a work, with the median of the paired ratios to the base."""
    rows = []
    for what, values in seconds.items():
        ratio = statistics.median(value / by for value, by in zip(values, seconds[base], strict=True))
        rows.append(Row(table, case, what, statistics.median(values) * 1e3, base, ratio))
    return rows


def peak_mib() -> float:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / MIB


def measure(network: str, n: int, what: str) -> dict[str, float]:
    """Run one work once in this process: its peak memory, its CPU time, and the base's around it."""
    s = subject(network, n)
    # What libraries take up and take time for on first use is not the work's.
    few = Subject(s.model, s.inputs[:2], s.labels[:2])
    forward_backward(few)
    WORK[what](few)
    s.model.zero_grad()
    before = peak_mib()
    cpu = cpu_seconds(lambda: WORK[what](s))
    peak = peak_mib()
    base = statistics.median(cpu_seconds(lambda: forward_backward(s)) for _ in range(3))
    return {"peak_mib": peak - before, "total_mib": peak, "cpu_ms": cpu * 1e3, "ratio": cpu / base}


def measured_apart(table: str, network: str, n: int, what: str, limit_s: float) -> Row:
    """Measure in a process of its own, which is ended where it takes too long."""
    case = f"{network} n={n}"
    command = [sys.executable, __file__, "--measure", network, str(n), what]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s)
    except subprocess.TimeoutExpired:
        return Row(table, case, what, float("nan"), note=f"more than {limit_s:g} s")
    if done.returncode:
        return Row(table, case, what, float("nan"), note=f"ended with {done.returncode} (out of memory?)")
    found = json.loads(done.stdout)
    note = f"whole process {found['total_mib']:.0f} MiB"
    return Row(table, case, what, found["cpu_ms"], "forward-backward", found["ratio"], found["peak_mib"], note=note)


def ntk_rows() -> list[Row]:
    """Kernels of a 3072-512-512-10 MLP at n=128 against a forward-backward pass and against torch.func."""
    s = subject("mlp", 128)
    ours = ("forward-backward", "eNTK trace", "eNTK sum", "eNTK loss")
    rows = rows_of("ntk", "mlp n=128", in_turn({name: lambda w=WORK[name]: w(s) for name in ours}, 21), ours[0])
    for i, name in enumerate(ours):
        apart = measured_apart("ntk", "mlp", 128, name, 60)
        rows[i] = replace(rows[i], peak_mib=apart.peak_mib, note=apart.note)
    rows += [measured_apart("ntk", "mlp", 128, name, 120) for name in ("torch.func trace", "torch.func sum")]
    by_name = {row.what: row for row in rows}
    for kind in ("trace", "sum"):
        mine, theirs = by_name[f"eNTK {kind}"], by_name[f"torch.func {kind}"]
        if theirs.peak_mib is not None and mine.peak_mib is not None:
            # Below a MiB the operating system's pages are what is seen.
            memory = max(mine.peak_mib, 1.0) / theirs.peak_mib
            note = f"{kind}: {theirs.ratio / mine.ratio:.0f}x faster, at most {memory:.2%} of the peak memory"
            rows.append(Row("ntk", "mlp n=128", "against torch.func", float("nan"), note=note))
    return rows


def resnet_rows() -> list[Row]:
    """Trace kernel of a ResNet-18 at n=128: one run in a process of its own, since it takes a minute."""
    return [measured_apart("resnet", "resnet18", 128, name, 240) for name in ("forward-backward", "eNTK trace")]


def unit_rows() -> list[Row]:
    """Units and preactivations of all layers in one pass, against that pass without them."""
    rows = []
    for network, n, rounds in (("mlp", 128, 200), ("mlp", 512, 80), ("gelu mlp", 512, 80), ("cnn", 128, 40)):
        s = subject(network, n)
        works = {name: lambda w=WORK[name], s=s: w(s) for name in ("forward", "unit_statistics")}
        if network != "gelu mlp":
            reference = diagnostics.unit_statistics(s.model, s.inputs)
            works["... with a reference"] = lambda s=s, r=reference: diagnostics.unit_statistics(s.model, s.inputs, r)
        rows += rows_of("units", f"{network} n={n}", in_turn(works, rounds), "forward")
    return rows


def other_rows() -> list[Row]:
    """Everything else, in forward-backward passes of the same network and batch."""
    s = subject("mlp", 128)
    forward_backward(s)
    features = diagnostics.penultimate_features(s.model, s.inputs)
    kernel = diagnostics.empirical_ntk(s.model, s.inputs)
    optimizer = torch.optim.Adam(s.model.parameters())
    snapshot = diagnostics.parameter_snapshot(s.model)
    names = (
        *("forward-backward", "penultimate_features", "output_bias_share", "parameter_norm", "gradient_norm"),
        *("parameter_snapshot", "max_hessian_eigenvalue", "loss_along_gradient"),
    )
    works: dict[str, Callable[[], object]] = {name: lambda w=WORK[name]: w(s) for name in names}
    works |= {
        "update_ratio": lambda: diagnostics.update_ratio(snapshot, s.model),
        "effective_learning_rate": lambda: diagnostics.effective_learning_rate(s.model, optimizer),
        "feature_rank (128 x 512)": lambda: diagnostics.feature_rank(features),
        "feature_norm (128 x 512)": lambda: diagnostics.feature_norm(features),
        "ntk_statistics (128 x 128)": lambda: diagnostics.ntk_statistics(kernel),
        "target_statistics (128)": lambda: diagnostics.target_statistics(s.labels),
    }
    rows = rows_of("others", "mlp n=128", in_turn(works, 9), "forward-backward")
    rare = {name: lambda w=WORK[name]: w(s) for name in ("forward-backward", "fit_random_targets, 50 steps")}
    rows += rows_of("others", "mlp n=128", in_turn(rare, 1), "forward-backward")[1:]
    few = subject("mlp", 32)
    full = {name: lambda w=WORK[name]: w(few) for name in ("forward-backward", "eNTK full")}
    return rows + rows_of("others", "mlp n=32", in_turn(full, 5), "forward-backward")[1:]


def digits_subjects() -> dict[str, Subject]:
    """An MLP and a CNN on digits, at their initialisation and after a hundred steps."""
    from plasticity_cl.scenarios import load_source  # Avalanche's import is not to be paid, in memory too, by the rest

    source = load_source("digits")
    inputs, labels = source.train_inputs[:256], source.train_labels[:256]
    subjects = {}
    for name in ("mlp", "cnn"):
        model = make_model(name, source.input_shape, source.n_classes, seed=0)
        subjects[f"{name} fresh"] = Subject(copy.deepcopy(model), inputs, labels)
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        for _ in range(100):
            optimizer.zero_grad()
            loss(model(inputs), labels).backward()
            optimizer.step()
        subjects[f"{name} trained"] = Subject(model, inputs, labels)
    return subjects


def exact_largest(s: Subject) -> float:
    """Largest Hessian eigenvalue in float64 to ten digits, by other code than that under test."""
    model = copy.deepcopy(s.model).double().eval()
    parameters = list(model.parameters())
    value = loss(model(s.inputs.double()), s.labels)
    gradients = torch.autograd.grad(value, parameters, create_graph=True)
    size = sum(p.numel() for p in parameters)

    def product(vector: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        parts = torch.split(torch.from_numpy(vector.copy()).reshape(-1), [p.numel() for p in parameters])
        shaped = [part.view_as(p) for part, p in zip(parts, parameters, strict=True)]
        columns = torch.autograd.grad(gradients, parameters, shaped, retain_graph=True)
        return torch.cat([column.reshape(-1) for column in columns]).numpy()

    operator = LinearOperator((size, size), matvec=product, dtype=np.float64)
    start = torch.randn(size, generator=generator(0, "reference"), dtype=torch.float64).numpy()
    return float(eigsh(operator, k=1, which="LA", tol=1e-10, v0=start, return_eigenvectors=False)[0])


def by_pyhessian(s: Subject, seed: int) -> float:
    """PyHessian's power iteration at its default tolerance, 1e-3."""
    from pyhessian import hessian  # type: ignore[import-not-found]

    torch.manual_seed(seed)
    values, _ = hessian(s.model, loss, data=(s.inputs, s.labels), cuda=False).eigenvalues(tol=1e-3)
    s.model.zero_grad()  # it leaves gradients with their graph
    return float(values[0])


def by_curvlinops(s: Subject, seed: int) -> float:
    """The eigsh function of SciPy on the Hessian operator of curvlinops, tolerance 1e-3."""
    from curvlinops import HessianLinearOperator  # type: ignore[import-not-found]

    s.model.eval()
    parameters = list(s.model.parameters())
    operator = HessianLinearOperator(
        s.model, nn.CrossEntropyLoss(), parameters, [(s.inputs, s.labels)], check_deterministic=False
    ).to_scipy(np.float32)
    start = np.random.default_rng(seed).standard_normal(operator.shape[0]).astype(np.float32)
    return float(eigsh(operator, k=1, which="LA", tol=1e-3, v0=start, return_eigenvectors=False)[0])


def hessian_rows() -> list[Row]:
    """Largest Hessian eigenvalue to 1e-3, and how far each answer is from the truth."""
    peers = {"PyHessian": ("pyhessian", by_pyhessian), "eigsh on curvlinops": ("curvlinops", by_curvlinops)}
    found = {name: solve for name, (module, solve) in peers.items() if importlib.util.find_spec(module)}
    rows = [
        Row("hessian", "-", name, float("nan"), note="left out: pip install pyhessian curvlinops-for-pytorch")
        for name in peers.keys() - found.keys()
    ]
    ours = "max_hessian_eigenvalue"
    solvers: dict[str, Callable[[Subject, int], float]] = {
        ours: lambda s, seed: diagnostics.max_hessian_eigenvalue(s.model, loss, s.inputs, s.labels, seed=seed).largest,
        **found,
    }
    rounds = 11
    for case, s in digits_subjects().items():
        truth = exact_largest(s)
        errors: dict[str, list[float]] = {name: [] for name in solvers}
        seeds = dict.fromkeys(solvers, 0)

        def solve(name: str, s: Subject = s, truth: float = truth, errors: Any = errors, seeds: Any = seeds) -> None:
            errors[name].append(abs(solvers[name](s, seeds[name]) / truth - 1))
            seeds[name] += 1

        works = {name: lambda name=name, solve=solve: solve(name) for name in solvers}
        for row in rows_of("hessian", case, in_turn(works, rounds), ours):
            rows.append(replace(row, error=max(errors[row.what])))
    return rows


def demo_rows() -> list[Row]:
    """All runs of the demo's first seed, fresh networks included, with no, light and all diagnostics.

    Run by run in turn, each twice: the ratio is of the sums over runs of the least times.
    """
    from demo import COMPARISONS

    from plasticity_cl.experiments.run import run
    from plasticity_cl.experiments.spec import check

    levels = ("none", "light", "all")
    least: dict[str, float] = dict.fromkeys(levels, 0.0)
    for comparison in COMPARISONS.values():
        for spec in comparison.runs():
            if spec.seed:
                continue
            spec = check(spec)
            times: dict[str, list[float]] = {level: [] for level in levels}
            for _ in range(2):
                for level in levels:
                    with tempfile.TemporaryDirectory() as folder:
                        work = partial(
                            run, replace(spec, diagnostics=level), Path(folder) / "run", Path(folder) / "fresh"
                        )
                        times[level].append(cpu_seconds(work))
            for level, seconds in times.items():
                least[level] += min(seconds)
    return [
        Row("demo", "one seed", f"diagnostics: {level}", 1e3 * seconds, "none", seconds / least["none"])
        for level, seconds in least.items()
    ]


TABLES: dict[str, tuple[Callable[[], list[Row]], str]] = {
    "ntk": (ntk_rows, "Tangent kernels of a 3072-512-512-10 MLP"),
    "resnet": (resnet_rows, "Tangent kernel of ResNet-18, 32 x 32 images, one run each"),
    "units": (unit_rows, "Units and preactivations, all in one pass"),
    "others": (other_rows, "The other diagnostics"),
    "hessian": (hessian_rows, "Largest Hessian eigenvalue to 1e-3, digits, n=256 (worst of 12 errors)"),
    "demo": (demo_rows, "What they add to the demo: the runs of one seed, fresh networks included"),
}


def printed(title: str, rows: list[Row]) -> str:
    """A table of 80 columns."""
    lines = ["", title, f"{'':16}{'':29}{'CPU ms':>10}{'ratio':>8}{'peak MiB':>9}{'error':>8}", "-" * 80]
    for row in rows:
        if row.cpu_ms != row.cpu_ms:
            lines.append(f"{row.case:16}{row.what:29} {row.note}" if row.what != "against torch.func" else row.note)
            continue
        peak = "" if row.peak_mib is None else f"{row.peak_mib:.0f}"
        error = "" if row.error is None else f"{row.error:.0e}"
        lines.append(f"{row.case:16}{row.what:29}{row.cpu_ms:10.2f}{row.ratio:8.2f}{peak:>9}{error:>8}")
        if row.note and row.table == "resnet":
            lines.append(f"{'':16}{row.note}")
    bases = sorted({row.base for row in rows if row.base})
    return "\n".join([*lines, f"ratio: to {' or '.join(bases)}"])


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", help=f"some of: {', '.join(TABLES)}; all if none is named")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/benchmark_diagnostics.csv"), help="the CSV file to write"
    )
    parser.add_argument("--measure", nargs=3, metavar=("NETWORK", "N", "WORK"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")  # the peers' own
    if options.measure:
        network, n, what = options.measure
        print(json.dumps(measure(network, int(n), what)))
        return
    keep_memory()
    for name in options.tables:
        if name not in TABLES:
            raise unknown_name("table", name, TABLES)
    rows = []
    for name in options.tables or TABLES:
        make, title = TABLES[name]
        rows.append(make())
        print(printed(title, rows[-1]), flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(Row.__dataclass_fields__))
        writer.writeheader()
        writer.writerows(asdict(row) for part in rows for row in part)
    print(f"\n{options.out}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"benchmark_diagnostics: {error}", file=sys.stderr)
        sys.exit(2)
