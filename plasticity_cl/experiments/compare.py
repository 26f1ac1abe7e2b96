"""Many runs: which are left to do, and how they ended."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from plasticity_cl.errors import UserError
from plasticity_cl.experiments.catalogue import EXECUTORS
from plasticity_cl.experiments.directory import (
    check_out,
    disk_errors,
    diverged_because,
    finished_state,
    run_directory,
    write_failure,
)
from plasticity_cl.experiments.plan import Executor, Outcome, plan
from plasticity_cl.experiments.preflight import check_needs
from plasticity_cl.experiments.progress import Progress
from plasticity_cl.experiments.spec import Machine, RunSpec, check, check_machine


def compare(specs: Sequence[RunSpec], out: Path, machine: Machine) -> dict[Path, str]:
    """Do the runs of one comparison below one results folder; see :func:`run_all`.

    Args:
        specs: Runs that differ in strategy and seed alone.
        out: The folder; what it holds of the same comparison is kept and continued.
        machine: Where and how.

    Returns:
        The state of each run directory.

    Raises:
        UserError: If a spec is wrong, or the folder holds anything else.
    """
    checked = [check(spec) for spec in specs]
    check_out(out, checked[0])
    return run_all({run_directory(out, spec): spec for spec in checked}, out / "fresh", machine)


def run_all(runs: Mapping[Path, RunSpec], cache: Path, machine: Machine) -> dict[Path, str]:
    """Do all runs that are not finished yet, several at a time, and say how each ended.

    Each fresh reference is computed once, before the runs that need it. A run that fails, or whose process is killed,
    takes no other run with it. How far it is, is shown on the standard error stream.

    Args:
        runs: The directory of each run, and what to run.
        cache: Folder of the cached fresh references.
        machine: Where and how.

    Returns:
        The state of each run: ``done``, ``diverged``, or ``failed: ...``; see :func:`problems`.

    Raises:
        UserError: If the machine lacks what a run needs, or the same mistake of the user's stops every run that was
            left to do.
    """
    check_machine(machine)
    left = {directory: spec for directory, spec in runs.items() if finished_state(directory, spec) is None}
    for spec in left.values():
        check_needs(spec, machine)
    waiting = plan(left, cache, machine)
    if left:
        with disk_errors(cache):
            cache.mkdir(parents=True, exist_ok=True)
    n_workers = max(min(machine.jobs or os.cpu_count() or 1, len(left)), 1)
    executor: Executor = EXECUTORS.make(machine.executor, n_workers=n_workers)
    ended: dict[Path, Outcome] = {}
    ticks = sum(job.ticks for job in {job for first, others in waiting.items() for job in (first, *others)})
    with Progress(ticks, len(left), n_workers) as progress:
        done = executor.do_all(waiting, progress)
        with contextlib.closing(done):
            for job, outcome in done:
                if job.directory is None:
                    continue
                ended[job.directory] = outcome
                progress.ended()
                if outcome.trace:
                    write_failure(job.directory, job.spec, outcome.state, outcome.trace)
    stopped = {directory: outcome.state for directory, outcome in ended.items() if not outcome and not outcome.trace}
    if stopped and len(stopped) == len(left) and len(set(stopped.values())) == 1:
        raise UserError(next(iter(stopped.values())).removeprefix("failed: "))
    for directory, state in stopped.items():
        write_failure(directory, left[directory], state)
    return {
        directory: ended[directory].state if directory in ended else finished_state(directory, spec) or ""
        for directory, spec in runs.items()
    }


def problems(states: Mapping[Path, str]) -> list[str]:
    """Say in one line each what went wrong in the runs that :func:`run_all` did; nothing where nothing did.

    Runs of one strategy that ended in the same way share a line.
    """
    alike: dict[tuple[Path, str], list[Path]] = {}
    for directory, state in states.items():
        if state != "done":
            alike.setdefault((directory.parent, state), []).append(directory)
    lines = []
    for (folder, state), directories in alike.items():
        first = directories[0]
        where = str(first) if len(directories) == 1 else f"{folder} ({', '.join(path.name for path in directories)})"
        if state == "diverged":
            lines.append(f"{where} diverged: {diverged_because(first)}; a lower lr may help")
        else:
            trace = f"; see {first / 'error.txt'}" if (first / "error.txt").exists() else ""
            lines.append(f"{where} {state}{trace}")
    return lines
