"""One run: from a spec to a run directory."""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from avalanche.logging import TensorboardLogger
from avalanche.training.plugins import EvaluationPlugin

from plasticity_cl.experiments.build import Opened, Recipe, open_recipe, open_run
from plasticity_cl.experiments.directory import disk_errors, start, write_status
from plasticity_cl.experiments.fresh import STREAMS, fresh_reference
from plasticity_cl.experiments.pictures import PictureLogger
from plasticity_cl.experiments.rows import RowLogger, write_quantities
from plasticity_cl.experiments.spec import SCORES, Machine, RunSpec
from plasticity_cl.metrics import SeparationMetric, plasticity_metrics
from plasticity_cl.training import InMemoryExperience, SupervisedTemplate
from plasticity_cl.writing import write_atomically

Scores = Mapping[str, Sequence[float]]
"""For each stream, one score an experience."""


class DivergedError(Exception):
    """The loss became NaN or infinite, or the outputs NaN: nothing after it means anything."""


class _StopWhenDiverged(SupervisedPlugin):  # type: ignore[misc]
    # It remembers nothing from one experience to the next.
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass

    # Weights that are NaN stay so: looking at the last loss of each epoch misses none and costs one wait an epoch.
    def after_training_epoch(self, strategy: Any, **_: Any) -> None:
        loss = float(strategy.loss.detach())
        if not math.isfinite(loss):
            k, epoch = strategy.clock.train_exp_counter, strategy.clock.train_exp_epochs
            raise DivergedError(f"the loss became {loss} in experience {k}, epoch {epoch}")

    # A loss may hide it, and statistics of normalisations act in evaluation only.
    def before_eval_exp(self, strategy: Any, **_: Any) -> None:
        self._nan = torch.zeros((), dtype=torch.bool, device=strategy.device)

    def after_eval_forward(self, strategy: Any, **_: Any) -> None:
        self._nan |= strategy.mb_output.isnan().any()

    def after_eval_exp(self, strategy: Any, **_: Any) -> None:
        if self._nan:
            raise DivergedError(f"the outputs became nan by experience {strategy.clock.train_exp_counter}")


def compute_fresh(
    spec: RunSpec,
    cache: Path,
    machine: Machine = Machine(),  # noqa: B008 - immutable
    tick: Callable[[], None] = lambda: None,
) -> None:
    """Fill the cache with the fresh reference of ``spec``; see :func:`run` for the arguments."""
    torch.set_num_threads(spec.threads)
    fresh_reference(open_recipe(spec, machine), cache, tick)


def run(
    spec: RunSpec,
    directory: Path,
    cache: Path,
    machine: Machine = Machine(),  # noqa: B008 - immutable
    tick: Callable[[], None] = lambda: None,
) -> str:
    """Train one strategy on one stream and write its run directory.

    After experience k, experiences k - 1 and k are evaluated on the training and the test stream; at the end, all
    streams as a whole: the cost is linear in the length of the stream.

    Args:
        spec: What to run; the result depends on nothing else.
        directory: The run directory; made anew.
        cache: Folder of the cached fresh references.
        machine: Where data sets are.
        tick: Called after each experience.

    Returns:
        The state of the run: ``done``, or ``diverged`` when the loss or an output became NaN; what was before is kept.

    Raises:
        UserError: If the data set is missing, an option is out of its range, or the disk refuses.
    """
    torch.set_num_threads(spec.threads)
    parts = open_run(spec, machine)
    fresh, baseline = (fresh_reference(recipe, cache) for recipe in (parts.fresh, parts.baseline))
    start(directory, spec)
    with disk_errors(directory):
        return _run(parts, directory, fresh, baseline, tick)


def _run(parts: Opened, directory: Path, fresh: Scores, baseline: Scores, tick: Callable[[], None]) -> str:
    scenario, score = parts.run.scenario, parts.run.score
    write = partial(
        write_status,
        directory,
        score=SCORES[score],
        forgetting_counts=scenario.forgetting_counts,
        twin=parts.twin_words,
    )
    with contextlib.ExitStack() as stack:
        write("running")
        rows = RowLogger(directory / "metrics.csv")
        separation, *others = plasticity_metrics(
            reference=fresh, baseline=baseline, score=score, threshold=parts.threshold
        )
        assert isinstance(separation, SeparationMetric)
        others += parts.make_metrics()
        write_quantities(directory / "metrics.json", [separation, *others])
        tensorboard = stack.enter_context(_tensorboard(directory / "tensorboard"))
        loggers = [rows, tensorboard, PictureLogger(directory / "pictures")]
        evaluator = EvaluationPlugin(separation, *others, loggers=loggers, collect_all=False)
        strategy = parts.run.strategy(evaluator)
        strategy.plugins.insert(0, _StopWhenDiverged())
        state, message = "done", ""
        try:
            _train(parts.run, strategy, tick)
        except DivergedError as error:
            state, message = "diverged", str(error)
        chance = {stream: [best_constant(score, e) for e in scenario.streams[stream]] for stream in STREAMS}
        rows.finish(separation.result(), chance)
        stack.close()
        _save_snapshot(directory / "snapshot.pt", strategy)
        write(state, message=message)
    return state


def best_constant(score: str, experience: Any) -> float:
    """The score of the best prediction that is the same for all samples: what is reached without learning from inputs.

    Args:
        score: One of :data:`~plasticity_cl.experiments.spec.SCORES`.
        experience: Of a stream of ours.

    Returns:
        The share of the most frequent class; for numbers, of which the mean is the best constant, that of an R2 of 0.
    """
    if score != "accuracy":
        return {"bounded-r2": 0.5, "r2": 0.0}[score]
    in_memory = isinstance(experience, InMemoryExperience)
    targets = experience.samples.targets if in_memory else torch.tensor(list(experience.dataset.targets))
    return float(targets.bincount().max()) / len(targets)


@contextlib.contextmanager
def _tensorboard(directory: Path) -> Iterator[TensorboardLogger]:
    logger = TensorboardLogger(directory)
    try:
        yield logger
        logger.writer.close()
    except OSError:
        # A writer that the disk has refused would raise again, as a traceback, when the interpreter closes it.
        logger.writer.file_writer = logger.writer.all_writers = None
        raise


def _train(recipe: Recipe, strategy: SupervisedTemplate, tick: Callable[[], None]) -> None:
    scenario = recipe.scenario
    streams = (scenario.train_stream, scenario.test_stream)
    for k, experience in enumerate(scenario.train_stream):
        for stream in streams:
            strategy.eval(stream[k : k + 1])
        recipe.seed_experience(k)
        with warnings.catch_warnings():
            # Avalanche's own plugins call Avalanche's own deprecated functions.
            warnings.filterwarnings("ignore", category=DeprecationWarning, module="avalanche")
            strategy.train(experience, eval_streams=[])
        for stream in streams:
            strategy.eval(stream[max(k - 1, 0) : k + 1])
        tick()
    for stream in scenario.streams.values():
        strategy.eval(stream)


def _save_snapshot(path: Path, strategy: SupervisedTemplate) -> None:
    """The final network and optimizer, to be loaded with ``torch.load(path, weights_only=True)``."""
    data = io.BytesIO()
    torch.save({"model": strategy.model.state_dict(), "optimizer": strategy.optimizer.state_dict()}, data)
    write_atomically(path, data.getvalue())
