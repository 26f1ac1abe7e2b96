"""What a strategy costs beside a bare loop: ours, Avalanche's Naive and a loop written by hand, on the same batches.

    python scripts/benchmark_training.py                     on a CPU, one thread, CPU time, a minute or two
    python scripts/benchmark_training.py --device cuda       on a GPU, wall time: label reset on CIFAR-shaped images

The three take turns in one process, on the same tensors and in the same batch order, and must end with the same
weights. The strategies compute what users have on: Avalanche's accuracy and loss of epoch, experience and stream, the
separation and the learning curve. The bare loop sums the accuracy and the loss. Ratios are medians over turns, with
their quartiles; the machine may be busy.
"""

import argparse
import csv
import multiprocessing
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from steady_memory import keep_memory
from torch import Tensor, nn

from plasticity_cl.errors import UserError
from plasticity_cl.metrics import LearningCurveMetric, SeparationMetric, mechanism_metrics
from plasticity_cl.models import make_model
from plasticity_cl.scenarios.sources import load_source
from plasticity_cl.scenarios.stream import InMemoryScenario
from plasticity_cl.seeding import generator
from plasticity_cl.training import Samples, SupervisedTemplate

LONG_STREAM = 200


@dataclass
class Row:
    """One line of the table: the time of the bare loop, and the others' times over it, turn by turn."""

    what: str
    bare: list[float]
    ours: list[float]
    naive: list[float]
    target: float


class Setting:
    """A network and a data set, and three ways to train and evaluate the one on the other."""

    def __init__(self, model: Callable[[], nn.Module], inputs: Tensor, labels: Tensor, batch: int, device: str) -> None:
        self.inputs, self.labels, self.batch, self.device = inputs.to(device), labels.to(device), batch, device
        self.bare = model().to(device)
        self.optimizer = torch.optim.SGD(self.bare.parameters(), lr=0.01)
        self.make_model = model
        self.ours, self.naive = self.strategy(SupervisedTemplate), self.strategy(Naive)

    def strategy(self, kind: Any, *more: Any) -> Any:
        """A strategy around a new network, with metrics on, and ``more`` of them."""
        model = self.make_model()
        reference = {"train": [1.0] * LONG_STREAM, "test": [1.0] * LONG_STREAM}
        metrics = [
            accuracy_metrics(epoch=True, experience=True, stream=True),
            loss_metrics(epoch=True, experience=True, stream=True),
            SeparationMetric(reference),
            LearningCurveMetric(),
            *more,
        ]
        return kind(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
            criterion=nn.CrossEntropyLoss(),
            train_mb_size=self.batch,
            eval_mb_size=self.batch,
            device=self.device,
            evaluator=EvaluationPlugin(*metrics, loggers=[]),
        )

    def stream(self, n_experiences: int = 1, repeat: int = 1) -> InMemoryScenario:
        """Experiences that all hold the data, ``repeat`` times over."""
        inputs, labels = self.inputs.repeat(repeat, *[1] * (self.inputs.dim() - 1)), self.labels.repeat(repeat)
        samples = lambda _: Samples(inputs, labels)  # noqa: E731
        return InMemoryScenario("benchmark", n_experiences, samples, samples, input_shape=(), n_outputs=10)

    def train_bare(self, epochs: int) -> None:
        """The loop that one would write by hand."""
        self.bare.train()
        criterion = nn.CrossEntropyLoss()
        for _ in range(epochs):
            correct, total = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
            order = _order(len(self.labels)).to(self.device)
            for start in range(0, len(order), self.batch):
                rows = order[start : start + self.batch]
                x, y = self.inputs[rows], self.labels[rows]
                self.optimizer.zero_grad()
                output = self.bare(x)
                loss = criterion(output, y)
                loss.backward()
                self.optimizer.step()
                correct += (output.argmax(1) == y).sum()
                total += loss.detach() * len(y)
            _ = float(correct) / len(order), float(total) / len(order)

    @torch.no_grad()
    def evaluate_bare(self, inputs: Tensor, labels: Tensor) -> None:
        """Likewise for evaluation."""
        self.bare.eval()
        criterion = nn.CrossEntropyLoss()
        correct, total = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        for x, y in zip(inputs.split(self.batch), labels.split(self.batch), strict=True):
            output = self.bare(x)
            total += criterion(output, y) * len(y)
            correct += (output.argmax(1) == y).sum()
        _ = float(correct) / len(labels), float(total) / len(labels)

    def check(self) -> None:
        """All three must have learned the very same on a CPU."""
        for strategy in (self.ours, self.naive):
            pairs = zip(self.bare.parameters(), strategy.model.parameters(), strict=True)
            if self.device == "cpu" and not all(torch.equal(p, q) for p, q in pairs):
                raise AssertionError(f"{type(strategy).__name__} has other weights than the bare loop")


def _order(n: int) -> Tensor:
    """A batch order, drawn as PyTorch's ``DataLoader`` draws it."""
    torch.empty((), dtype=torch.int64).random_()
    seed = int(torch.empty((), dtype=torch.int64).random_().item())
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def clock(device: str, work: Callable[[], Any]) -> float:
    """Seconds that ``work`` takes: CPU time of this process on a CPU, wall time on a GPU."""
    if device == "cpu":
        start = time.process_time()
        work()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def measure_training(what: str, setting: Setting, epochs: int, turns: int, target: float) -> Row:
    """Train in turns, whole calls of ``train`` on one experience."""
    experience, row = setting.stream().train_stream[0], Row(what, [], [], [], target)
    steps = epochs * -(-len(setting.labels) // setting.batch)
    for strategy in (setting.ours, setting.naive):
        strategy.train_epochs = epochs
    for turn in range(-1, turns):
        works = [
            lambda: setting.train_bare(epochs),
            lambda: setting.ours.train(experience, eval_streams=[]),
            lambda: setting.naive.train(experience, eval_streams=[]),
        ]
        _take_turn(row, setting.device, works, steps, turn)
    setting.check()
    return row


def measure_evaluation(what: str, setting: Setting, repeat: int, turns: int, target: float) -> Row:
    """Evaluate in turns, whole calls of ``eval`` on one experience that holds the data ``repeat`` times."""
    stream, row = setting.stream(repeat=repeat).test_stream, Row(what, [], [], [], target)
    samples = stream[0].samples
    for turn in range(-1, turns):
        works = [
            lambda: setting.evaluate_bare(samples.inputs, samples.targets),
            lambda: setting.ours.eval(stream),
            lambda: setting.naive.eval(stream),
        ]
        _take_turn(row, setting.device, works, -(-len(samples) // setting.batch), turn)
    return row


def _take_turn(row: Row, device: str, works: list[Callable[[], Any]], steps: int, turn: int) -> None:
    times = [0.0] * 3
    # Who goes first changes, so that a machine that slows down favours nobody.
    for i in [(turn + j) % 3 for j in range(3)]:
        torch.manual_seed(turn)
        times[i] = clock(device, works[i])
    if turn >= 0:  # the first turn warms up
        row.bare.append(times[0] / steps)
        row.ours.append(times[1] / times[0])
        row.naive.append(times[2] / times[0])


def measure_start_up(setting: Setting) -> tuple[float, float]:
    """Milliseconds that an experience costs beyond its one step and its evaluation, ours and Naive's.

    Over a stream of 200 experiences, each trained on and evaluated.
    """
    scenario = setting.stream(LONG_STREAM)

    def bare(_: int) -> None:
        setting.train_bare(1)
        setting.evaluate_bare(setting.inputs, setting.labels)

    def run(strategy: Any, k: int) -> None:
        strategy.train(scenario.train_stream[k], eval_streams=[])
        strategy.eval(scenario.test_stream[k : k + 1])

    works = [bare, *(partial(run, setting.strategy(kind)) for kind in (SupervisedTemplate, Naive))]
    times = [[clock(setting.device, partial(work, k)) for work in works] for k in range(LONG_STREAM)]
    loop, ours, naive = (1e3 * statistics.fmean(column) for column in zip(*times, strict=True))
    return ours - loop, naive - loop


def measure_flatness() -> float:
    """Time of the last experiences up to the 200th over that of those from the 10th, old and young in turn."""
    setting = digits_setting(512, 32)
    scenario = setting.stream(LONG_STREAM)
    old, young = (setting.strategy(SupervisedTemplate, mechanism_metrics()) for _ in range(2))
    turns, first = 20, 9
    for strategy, length in ((old, LONG_STREAM - turns), (young, first)):
        for k in range(length):
            one_of_many(strategy, scenario, k)
    ratios = []
    for turn in range(turns):
        aged = clock("cpu", partial(one_of_many, old, scenario, LONG_STREAM - turns + turn))
        ratios.append(aged / clock("cpu", partial(one_of_many, young, scenario, first + turn)))
    return statistics.median(ratios)


def measure_memory() -> float:
    """KiB of resident memory that an experience adds, from the 20th to the 200th.

    To be run in a process of its own: in one that has freed memory before, growth would not show.
    """
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="No loggers specified")
    setting = digits_setting(512, 32)
    scenario = setting.stream(LONG_STREAM)
    strategy = setting.strategy(SupervisedTemplate, mechanism_metrics())
    memory = []
    for k in range(LONG_STREAM):
        one_of_many(strategy, scenario, k)
        memory.append(_resident_kib())
    return (memory[-1] - memory[19]) / (len(memory) - 20)


def one_of_many(strategy: Any, scenario: InMemoryScenario, k: int) -> None:
    """Train on experience k, then evaluate it and the one before it on both streams, with the mechanism metrics on."""
    strategy.train_epochs = 4
    strategy.train(scenario.train_stream[k], eval_streams=[])
    for stream in (scenario.train_stream, scenario.test_stream):
        strategy.eval(stream[max(k - 1, 0) : k + 1])


def digits_setting(n: int | None, batch: int) -> Setting:
    """The first so many digits and the MLP 64-128-128-10."""
    digits = load_source("digits")
    inputs, labels = digits.train_inputs.flatten(1)[:n], digits.train_labels[:n]
    return Setting(lambda: make_model("mlp", (64,), 10, width=128, depth=2, seed=0), inputs, labels, batch, "cpu")


def _resident_kib() -> float:
    pages = Path("/proc/self/statm")
    return int(pages.read_text().split()[1]) * 4.0 if pages.exists() else float("nan")


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    low, middle, high = statistics.quantiles(values, n=4)
    return low, middle, high


def table(rows: list[Row]) -> str:
    """The rows in 80 columns."""
    lines = [f"{'':28}{'bare':>8}  {'ours / bare':>19}  {'Naive / bare':>12}{'target':>9}"]
    lines[0] += "\n" + f"{'':28}{'us/step':>8}  {'median [quartiles]':>19}  {'median':>12}{'at most':>9}"
    for row in rows:
        low, middle, high = quartiles(row.ours)
        spread = f"{middle:.3f} [{low:.2f},{high:.2f}]"
        bare, naive = 1e6 * statistics.median(row.bare), statistics.median(row.naive)
        lines.append(f"{row.what:28}{bare:8.0f}  {spread:>19}  {naive:12.2f}{row.target:9.2f}")
    return "\n".join(lines)


def write(out: Path, rows: list[Row], others: dict[str, float]) -> None:
    """Every turn as CSV, and the ratios as a figure."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / "benchmark_training.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["what", "turn", "bare_seconds_per_step", "ours_over_bare", "naive_over_bare"])
        for row in rows:
            for turn, values in enumerate(zip(row.bare, row.ours, row.naive, strict=True)):
                writer.writerow([row.what, turn, *(f"{value:.6g}" for value in values)])
        for what, value in others.items():
            writer.writerow([what, "", f"{value:.6g}", "", ""])
    figure, axes = plt.subplots(figsize=(7, 0.55 * len(rows) + 1.2), layout="constrained")
    places = range(len(rows))[::-1]
    for place, row in zip(places, rows, strict=True):
        for values, colour in ((row.ours, "tab:blue"), (row.naive, "tab:orange")):
            low, middle, high = quartiles(values)
            axes.plot([low, high], [place, place], color=colour, linewidth=4, alpha=0.4)
            axes.plot(middle, place, "o", color=colour)
        axes.plot(row.target, place, "|", color="black", markersize=18)
    axes.plot([], [], "o", color="tab:blue", label="plasticity-cl")
    axes.plot([], [], "o", color="tab:orange", label="Avalanche's Naive")
    axes.plot([], [], "|", color="black", label="target")
    axes.axvline(1, color="gray", linewidth=1)
    axes.set(xscale="log", xlabel="time over that of a bare loop", yticks=list(places))
    ticks = [1, 1.5, 2, 3, 5, 10, 20]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
    axes.set_yticks(list(places), [row.what for row in rows])
    axes.legend(loc="lower right", fontsize=8)
    figure.savefig(out / "benchmark_training.png", dpi=150)


def on_cpu(turns: int) -> tuple[list[Row], dict[str, float]]:
    """The digits-size MLP and the small CNN on a CPU with one thread, start-up and flatness."""
    torch.set_num_threads(1)
    rows = []
    for batch, target in ((32, 1.15), (128, 1.10)):
        setting = digits_setting(None, batch)
        rows.append(measure_training(f"train, MLP, batch {batch}", setting, 5, turns, target))
        rows.append(measure_evaluation(f"evaluate, MLP, batch {batch}", setting, 10, turns, 1.25))
    images = torch.randn(256, 3, 32, 32, generator=generator("images"))
    labels = torch.randint(10, (256,), generator=generator("labels"))
    cnn = Setting(lambda: make_model("cnn", (3, 32, 32), 10, seed=0), images, labels, 32, "cpu")
    rows.append(measure_training("train, CNN, batch 32", cnn, 1, max(3, turns // 2), 1.03))
    start_up, naive = measure_start_up(digits_setting(32, 32))
    time_ratio = measure_flatness()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        memory = pool.apply(measure_memory)
    return rows, {
        "start-up with evaluation, ms an experience (at most 1.5)": start_up,
        "the same of Naive": naive,
        "200th experience's time over the 10th's (at most 1.05)": time_ratio,
        "memory, KiB an experience (at most 20)": memory,
    }


def on_gpu(turns: int, device: str) -> tuple[list[Row], dict[str, float]]:
    """Label reset on CIFAR-shaped images with the small CNN, on tensors that are on the device."""
    if not torch.cuda.is_available():
        raise UserError("torch sees no CUDA device; run without --device cuda")
    images = torch.randn(10_000, 3, 32, 32, generator=generator("images"))
    labels = torch.randint(10, (10_000,), generator=generator("labels"))
    rows = []
    for batch in (128, 512):
        setting = Setting(lambda: make_model("cnn", (3, 32, 32), 10, seed=0), images, labels, batch, device)
        rows.append(measure_training(f"train, CNN, batch {batch}", setting, 2, turns, 1.1))
        rows.append(measure_evaluation(f"evaluate, CNN, batch {batch}", setting, 1, turns, 1.1))
    print(torch.cuda.get_device_name())
    return rows, {}


def main() -> None:
    """Measure, print the table, write CSV and figure."""
    warnings.filterwarnings("ignore", message="No loggers specified")
    keep_memory()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--turns", type=int, default=15, help="how often the three take turns; at least 2")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark_training"), help="folder of CSV and figure")
    options = parser.parse_args()
    if options.turns < 2:
        raise UserError(f"--turns is {options.turns}: quartiles need at least 2")
    if options.device.split(":")[0] not in ("cpu", "cuda"):
        raise UserError(f"--device is {options.device}: cpu or cuda")
    rows, others = on_cpu(options.turns) if options.device == "cpu" else on_gpu(options.turns, options.device)
    print(table(rows))
    for what, value in others.items():
        print(f"{what:60}{value:9.2f}")
    write(options.out, rows, others)
    print(f"\n{options.out}/benchmark_training.csv and .png")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"benchmark_training: {error}", file=sys.stderr)
        sys.exit(2)
