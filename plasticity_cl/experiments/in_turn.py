"""The executor that does one job after the other."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence

from plasticity_cl.experiments.plan import Job, Outcome, first_jobs
from plasticity_cl.experiments.progress import Progress


class InTurn:
    """Does one job after the other, in this process."""

    def do_all(
        self, waiting: Mapping[Job, Sequence[Job]], progress: Progress
    ) -> Generator[tuple[Job, Outcome], None, None]:
        """See :class:`~plasticity_cl.experiments.plan.Executor`."""
        order = [(job, Outcome("done")) for job in first_jobs(waiting)]
        for job, before in order:
            outcome = job.do(progress.tick) if before else before
            yield job, outcome
            order += [(dependent, outcome) for dependent in waiting.get(job, ())]
