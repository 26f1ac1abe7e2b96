"""The executor that does several jobs at a time, each in a process of its own."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Mapping, Sequence

from plasticity_cl.errors import UserError
from plasticity_cl.experiments.in_turn import InTurn
from plasticity_cl.experiments.plan import Job, Outcome
from plasticity_cl.experiments.pool import ATTEMPTS, Killed, do_all
from plasticity_cl.experiments.progress import Progress


class Processes:
    """Does several jobs at a time; one after the other where one is asked for, or where no process can be forked.

    Args:
        n_workers: How many at a time.
    """

    def __init__(self, n_workers: int) -> None:
        self._n_workers = n_workers if hasattr(os, "fork") else 1

    def do_all(
        self, waiting: Mapping[Job, Sequence[Job]], progress: Progress
    ) -> Generator[tuple[Job, Outcome], None, None]:
        """See :class:`~plasticity_cl.experiments.plan.Executor`."""
        if self._n_workers == 1:
            yield from InTurn().do_all(waiting, progress)
            return

        def say(job: Job, by: str) -> None:
            progress.say(f"a worker process {by}: its run is done again")

        done: set[Job] = set()
        for _ in range(ATTEMPTS):
            left: dict[Job, list[Job]] = {}
            for first, dependents in waiting.items():
                undone = [job for job in dependents if job not in done]
                if first not in done:
                    left[first] = undone
                else:
                    left |= {job: [] for job in undone if job not in waiting}
            events = do_all(left, self._n_workers, "plasticity_cl.experiments.run", progress.tick, say)
            try:
                with contextlib.closing(events):
                    for job, outcome in events:
                        done.add(job)
                        yield job, _of_killed(outcome) if isinstance(outcome, Killed) else outcome
                return
            except ConnectionError as error:
                progress.say(f"{error}: what it left undone is done again")
        raise UserError(f"the processes were killed {ATTEMPTS} times; try fewer at a time with --jobs 1")


def _of_killed(killed: Killed) -> Outcome:
    message = f"its process {killed.by}, {ATTEMPTS} times; fewer at a time, with --jobs 1, need less memory"
    return Outcome(f"failed: {message}", message)
