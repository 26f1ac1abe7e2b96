"""What an executor promises."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from plasticity_cl.experiments.catalogue import EXECUTORS
from plasticity_cl.experiments.in_turn import InTurn
from plasticity_cl.experiments.plan import Job, Outcome, plan
from plasticity_cl.experiments.progress import Progress
from plasticity_cl.experiments.spec import Machine, RunSpec, check
from plasticity_cl.testing.bench import undisturbed
from plasticity_cl.testing.promises import SPELLING, BrokenError, Part, made_by, name_of, promise

ALL = "every job is done once, and a failure takes none with it but those that wait for it"
SAME = "runs write the same bytes as one after the other"

_STRATEGIES = ("finetune", "l2=0.01", "scale-invariant")
"""The last one fails: it is for numbers, and the stream has classes."""


def check_executor(executor: Part, *, n_workers: int = 2) -> None:
    """Check what an executor promises.

    - **Spelling**: one that is named reads back from its text.
    - **All**: every job ends once, those that wait for one that failed as that one, and all others well.
    - **Same**: ``metrics.csv`` of every run has the bytes that it has where jobs are done one after the other.

    Args:
        executor: The executor: a name with its options, a dotted path, or a class or function of ``n_workers``.
        n_workers: How many jobs at a time.

    Raises:
        AssertionError: For the first promise that is broken, in one line.
    """
    name = name_of(executor)
    with undisturbed(), tempfile.TemporaryDirectory() as folder:
        if isinstance(executor, str):
            with promise(name, SPELLING):
                text = EXECUTORS.read(executor).text
                if EXECUTORS.read(text).text != text:
                    raise BrokenError(f"{text} reads back as {EXECUTORS.read(text).text}")
        with promise(name, ALL):
            if isinstance(executor, str):
                made = EXECUTORS.make(executor, n_workers=n_workers)
            else:
                made = made_by(executor, n_workers=n_workers)
            found = _rows(made, Path(folder) / "found")
        with promise(name, SAME):
            expected = _rows(InTurn(), Path(folder) / "expected")
            for strategy, rows in expected.items():
                if found[strategy] != rows:
                    raise BrokenError(f"metrics.csv of {strategy} has other bytes")


def _rows(executor: Any, folder: Path) -> dict[str, bytes]:
    """Do a few runs, and give the rows of each by strategy."""
    common = RunSpec(
        scenario="label-reset:n_experiences=2,n_samples=32", model="mlp:width=8,depth=1", epochs=1, diagnostics="none"
    )
    specs = [check(dataclasses.replace(common, strategy=name)) for name in _STRATEGIES]
    runs = {folder / str(number): spec for number, spec in enumerate(specs)}
    waiting = plan(runs, folder / "fresh", Machine())
    ended: dict[Job, Outcome] = {}
    with Progress(0, 0, 1) as progress:
        for job, outcome in executor.do_all(waiting, progress):
            if job in ended:
                raise BrokenError(f"a job of {job.spec.strategy} ends twice")
            ended[job] = outcome
    for job in {job for first, others in waiting.items() for job in (first, *others)}:
        what = f"{'the run' if job.directory else 'the fresh network'} of {job.spec.strategy}"
        if job not in ended:
            raise BrokenError(f"{what} does not end")
        fails = job.spec.strategy == specs[-1].strategy
        if bool(ended[job]) == fails:
            raise BrokenError(f"{what} ends as {ended[job].state}, and should {'fail' if fails else 'be done'}")
    return {spec.strategy: (path / "metrics.csv").read_bytes() for path, spec in list(runs.items())[:-1]}
