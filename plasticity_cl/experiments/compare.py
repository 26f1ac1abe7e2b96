"""Many runs: which are left to do, and who does them."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path

from plasticity_cl.errors import UserError
from plasticity_cl.experiments.directory import (
    check_out,
    disk_errors,
    diverged_because,
    finished_state,
    locked,
    run_directory,
    write_failure,
)
from plasticity_cl.experiments.pool import ATTEMPTS, Killed, do_all, first_jobs
from plasticity_cl.experiments.preflight import check_machine
from plasticity_cl.experiments.progress import Progress
from plasticity_cl.experiments.spec import Machine, RunSpec, baseline_spec, check, fresh_spec
from plasticity_cl.scenarios.catalogue import SCENARIOS

_ONE_SAMPLE = "Expected more than 1 value per channel when training"
"""What torch says where batch normalisation is given a single sample."""


@dataclasses.dataclass(frozen=True)
class _Outcome:
    """How a job ended; false where it failed.

    Attributes:
        state: ``done``, ``diverged``, or ``failed: ...``.
        trace: The traceback of a failure; none where the mistake is the user's.
    """

    state: str
    trace: str = ""

    def __bool__(self) -> bool:
        return not self.state.startswith("failed")


@dataclasses.dataclass(frozen=True)
class _Job:
    """One run, or the fresh references of several runs; picklable."""

    spec: RunSpec
    directory: Path | None
    cache: Path
    machine: Machine

    @property
    def ticks(self) -> int:
        """How many times it says that it has come further."""
        entry = SCENARIOS[self.spec.scenario]
        length = self.spec.n_experiences or entry.n_experiences
        if self.directory is not None:
            return length
        return min(self.spec.n_fresh, length) if entry.exchangeable else length

    def do(self, tick: Callable[[], None]) -> _Outcome:
        """Do it; whatever goes wrong is told and stops no other job."""
        try:
            from plasticity_cl.experiments.run import compute_fresh, run

            if self.directory is None:
                compute_fresh(self.spec, self.cache, self.machine, tick)
                return _Outcome("done")
            with locked(self.directory):
                # Another command may have done it since.
                state = finished_state(self.directory, self.spec)
                return _Outcome(state or run(self.spec, self.directory, self.cache, self.machine, tick))
        except UserError as error:
            return _Outcome(f"failed: {error}")
        except (Exception, SystemExit) as error:
            return _Outcome(f"failed: {_in_one_line(error)}", traceback.format_exc())


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
    if machine.jobs is not None and machine.jobs < 1:
        raise UserError(f"jobs is {machine.jobs}: it must be at least 1")
    left = {directory: spec for directory, spec in runs.items() if finished_state(directory, spec) is None}
    for spec in left.values():
        check_machine(spec, machine)
    waiting = plan(left, cache, machine)
    if left:
        with disk_errors(cache):
            cache.mkdir(parents=True, exist_ok=True)
    # A process is forked, where there is more than one: elsewhere one does all.
    n_workers = min(machine.jobs or os.cpu_count() or 1, len(left)) if hasattr(os, "fork") else 1
    ended: dict[Path, _Outcome] = {}
    ticks = sum(job.ticks for job in {job for first, others in waiting.items() for job in (first, *others)})
    with Progress(ticks, len(left), n_workers) as progress:
        done = _in_processes(waiting, n_workers, progress) if n_workers > 1 else _in_turn(waiting, progress)
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


def plan(runs: Mapping[Path, RunSpec], cache: Path, machine: Machine) -> dict[_Job, list[_Job]]:
    """The jobs behind which others wait: a run waits for its fresh reference, and that one for the baseline's.

    So every reference is computed once, whatever is done at a time. On a stream without a twin the baseline's is its
    own fresh reference, and its runs wait for that alone.
    """
    waiting: dict[_Job, list[_Job]] = {}
    for directory, spec in runs.items():
        baseline, fresh = (_Job(of(spec), None, cache, machine) for of in (baseline_spec, fresh_spec))
        if fresh not in waiting.setdefault(baseline, []) and fresh != baseline:
            waiting[baseline].append(fresh)
        waiting.setdefault(fresh, []).append(_Job(spec, directory, cache, machine))
    return waiting


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


def _in_turn(
    waiting: Mapping[_Job, Sequence[_Job]], progress: Progress
) -> Generator[tuple[_Job, _Outcome], None, None]:
    order = [(job, _Outcome("done")) for job in first_jobs(waiting)]
    for job, before in order:
        outcome = job.do(progress.tick) if before else before
        yield job, outcome
        order += [(dependent, outcome) for dependent in waiting.get(job, ())]


def _in_processes(
    waiting: Mapping[_Job, Sequence[_Job]], n_workers: int, progress: Progress
) -> Generator[tuple[_Job, _Outcome], None, None]:
    def say(job: _Job, by: str) -> None:
        progress.say(f"a worker process {by}: its run is done again")

    done: set[_Job] = set()
    for _ in range(ATTEMPTS):
        left: dict[_Job, list[_Job]] = {}
        for first, dependents in waiting.items():
            undone = [job for job in dependents if job not in done]
            if first not in done:
                left[first] = undone
            else:
                left |= {job: [] for job in undone if job not in waiting}
        events = do_all(left, n_workers, "plasticity_cl.experiments.run", progress.tick, say)
        try:
            with contextlib.closing(events):
                for job, outcome in events:
                    done.add(job)
                    yield job, _of_killed(outcome) if isinstance(outcome, Killed) else outcome
            return
        except ConnectionError as error:
            progress.say(f"{error}: what it left undone is done again")
    raise UserError(f"the processes were killed {ATTEMPTS} times; try fewer at a time with --jobs 1")


def _of_killed(killed: Killed) -> _Outcome:
    message = f"its process {killed.by}, {ATTEMPTS} times; fewer at a time, with --jobs 1, need less memory"
    return _Outcome(f"failed: {message}", message)


def _in_one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if _ONE_SAMPLE in text:
        return (
            "the last batch of an experience has one sample, which batch normalisation cannot train on: "
            "choose another batch_size or n_samples"
        )
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
