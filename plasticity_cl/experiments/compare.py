"""Many runs: which are left to do, and who does them."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from tqdm import tqdm

from plasticity_cl.errors import UserError
from plasticity_cl.experiments.directory import check_out, finished_state, run_directory
from plasticity_cl.experiments.spec import Machine, RunSpec, baseline_spec, check, fresh_spec
from plasticity_cl.scenarios.catalogue import SCENARIOS

_ATTEMPTS = 3


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

    def do(self, tick: Callable[[], None]) -> str:
        """Do it; a mistake of ours is written down beside the run and does not stop the others."""
        from plasticity_cl.experiments.directory import write_status
        from plasticity_cl.experiments.run import compute_fresh, run

        if self.directory is None:
            compute_fresh(self.spec, self.cache, self.machine, tick)
            return "done"
        try:
            return run(self.spec, self.directory, self.cache, self.machine, tick)
        except UserError:
            raise
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
            self.directory.mkdir(parents=True, exist_ok=True)
            (self.directory / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
            write_status(self.directory, "failed", "", message)
            return f"failed: {message}"


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

    Each fresh reference is computed once, before the runs that need it. A process that is killed takes no other run
    with it: what it left undone is done again.

    Args:
        runs: The directory of each run, and what to run.
        cache: Folder of the cached fresh references.
        machine: Where and how.

    Returns:
        The state of each run: ``done``, ``diverged``, or ``failed: ...``.

    Raises:
        UserError: The first mistake of the user's that a run finds, or when processes keep being killed; finished runs
            are kept.
    """
    left = {directory: spec for directory, spec in runs.items() if finished_state(directory, spec) is None}
    waiting = plan(left, cache, machine)
    if machine.jobs is not None and machine.jobs < 1:
        raise UserError(f"jobs is {machine.jobs}: it must be at least 1")
    jobs = min(machine.jobs or os.cpu_count() or 1, len(left))
    total = sum(job.ticks for job in _in_order(waiting))
    # Quiet when piped: the bar is for eyes.
    with tqdm(total=total, unit="exp", disable=None, dynamic_ncols=True, leave=False) as bar:
        if jobs > 1:
            done = _in_processes(waiting, jobs, bar)
        else:
            done = {job: job.do(bar.update) for job in _in_order(waiting)}
    states = {job.directory: state for job, state in done.items() if job.directory is not None}
    return {
        directory: states.get(directory) or finished_state(directory, spec) or "" for directory, spec in runs.items()
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


def _in_order(waiting: Mapping[_Job, list[_Job]]) -> list[_Job]:
    """All jobs, each behind the one that it waits for."""
    order = list(_first(waiting))
    for job in order:
        order += waiting.get(job, ())
    return order


def _first(waiting: Mapping[_Job, list[_Job]]) -> list[_Job]:
    """The jobs that wait for no other."""
    others = {job for dependents in waiting.values() for job in dependents}
    return [job for job in waiting if job not in others]


def _in_processes(waiting: Mapping[_Job, list[_Job]], jobs: int, bar: tqdm[Any]) -> dict[_Job, str]:
    # A server process imports everything once, and each worker is forked off it: importing Avalanche takes seconds.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["plasticity_cl.experiments.run"])
    # Workers that are ended leave a semaphore to Python's tracker, which unlinks it and need not tell the user.
    sys.warnoptions.append("ignore:resource_tracker:UserWarning")
    done: dict[_Job, str] = {}
    for _ in range(_ATTEMPTS):
        ticks = context.SimpleQueue()
        executor = ProcessPoolExecutor(jobs, context, _prepare_worker, (ticks,))
        running: dict[Future[str], _Job] = {}
        try:
            ready = [*_first(waiting), *(job for first in waiting if first in done for job in waiting[first])]
            running |= {executor.submit(_work, job): job for job in ready if job not in done}
            while running:
                finished, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
                while not ticks.empty():
                    bar.update(ticks.get())
                for future in finished:
                    job = running.pop(future)
                    done[job] = future.result()
                    for dependent in waiting.get(job, []):
                        running[executor.submit(_work, dependent)] = dependent
            return done
        except BrokenProcessPool:
            bar.write("a worker process was killed (out of memory?); doing its run again", file=sys.stderr)
        finally:
            # Runs are left where an exception ended the loop: nobody waits for them any more.
            for process in list((executor._processes or {}).values()) if running else ():
                process.terminate()
            executor.shutdown(cancel_futures=True)
    raise UserError(f"worker processes were killed {_ATTEMPTS} times; try fewer at a time with --jobs 1")


_ticks: Any = None


def _prepare_worker(ticks: Any) -> None:
    global _ticks
    _ticks = ticks
    # The parent hears the interrupt and ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _work(job: _Job) -> str:
    return job.do(lambda: _ticks.put(1))
