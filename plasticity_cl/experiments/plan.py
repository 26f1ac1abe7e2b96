"""Which jobs the runs of a comparison come to, and which wait for which; who does them is chosen apart. Light."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from plasticity_cl.errors import UserError, in_one_line
from plasticity_cl.experiments.directory import finished_state, locked
from plasticity_cl.experiments.progress import Progress
from plasticity_cl.experiments.spec import Machine, RunSpec, baseline_spec, fresh_spec, scenario_facts, usual_length

_ONE_SAMPLE = "Expected more than 1 value per channel when training"
"""What torch says where batch normalisation is given a single sample."""


@dataclass(frozen=True)
class Outcome:
    """How a job ended; false where it failed.

    Attributes:
        state: ``done``, ``diverged``, or ``failed: ...``.
        trace: The traceback of a failure; none where the mistake is the user's.
    """

    state: str
    trace: str = ""

    def __bool__(self) -> bool:
        return not self.state.startswith("failed")


@dataclass(frozen=True)
class Job:
    """One run, or the fresh references of several runs; picklable."""

    spec: RunSpec
    directory: Path | None
    cache: Path
    machine: Machine

    @property
    def ticks(self) -> int:
        """How many times it says that it has come further."""
        length = usual_length(self.spec)
        if self.directory is not None:
            return length
        return min(self.spec.n_fresh, length) if scenario_facts(self.spec).get("exchangeable") else length

    def do(self, tick: Callable[[], None]) -> Outcome:
        """Do it; whatever goes wrong is told and stops no other job."""
        try:
            from plasticity_cl.experiments.run import compute_fresh, run

            if self.directory is None:
                compute_fresh(self.spec, self.cache, self.machine, tick)
                return Outcome("done")
            with locked(self.directory):
                # Another command may have done it since.
                state = finished_state(self.directory, self.spec)
                return Outcome(state or run(self.spec, self.directory, self.cache, self.machine, tick))
        except UserError as error:
            return Outcome(f"failed: {error}")
        except (Exception, SystemExit) as error:
            return Outcome(f"failed: {_in_one_line(error)}", traceback.format_exc())


class Executor(Protocol):
    """Does jobs, in whatever order the waiting ones allow, and says how each ended as soon as it is known."""

    def do_all(
        self, waiting: Mapping[Job, Sequence[Job]], progress: Progress
    ) -> Generator[tuple[Job, Outcome], None, None]:
        """Do all jobs.

        Args:
            waiting: Jobs, each with those that wait for it, for which others may wait in turn; a job waits for one
                other at most. Where its outcome is false, it is theirs as well.
            progress: To be told of each tick of a job.

        Yields:
            Each job with its outcome. When the generator is closed, no job goes on.
        """
        ...


def plan(runs: Mapping[Path, RunSpec], cache: Path, machine: Machine) -> dict[Job, list[Job]]:
    """The jobs behind which others wait: a run waits for its fresh reference, and that one for the baseline's.

    So every reference is computed once, whatever is done at a time. On a stream without a twin the baseline's is its
    own fresh reference, and its runs wait for that alone.
    """
    waiting: dict[Job, list[Job]] = {}
    for directory, spec in runs.items():
        baseline, fresh = (Job(of(spec), None, cache, machine) for of in (baseline_spec, fresh_spec))
        if fresh not in waiting.setdefault(baseline, []) and fresh != baseline:
            waiting[baseline].append(fresh)
        waiting.setdefault(fresh, []).append(Job(spec, directory, cache, machine))
    return waiting


def first_jobs(waiting: Mapping[Job, Sequence[Job]]) -> list[Job]:
    """The jobs that wait for no other."""
    others = {job for dependents in waiting.values() for job in dependents}
    return [job for job in waiting if job not in others]


def _in_one_line(error: BaseException) -> str:
    text = in_one_line(error)
    if _ONE_SAMPLE in text:
        return (
            "the last batch of an experience has one sample, which batch normalisation cannot train on: "
            "choose another batch_size or n_samples"
        )
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
