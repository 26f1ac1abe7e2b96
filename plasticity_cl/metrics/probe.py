"""What all diagnostics share while a run goes on: when they look, at which samples, and what they do about errors."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from avalanche.evaluation.metric_results import MetricValue

from plasticity_cl.errors import UserError, unknown_name
from plasticity_cl.metrics.guard import GuardedMetric, PerStrategy
from plasticity_cl.metrics.identity import stream_length
from plasticity_cl.metrics.passage import Passage
from plasticity_cl.metrics.scalar import Scalar
from plasticity_cl.seeding import preserve_rng
from plasticity_cl.training.learner import Batch, Learner, probe_samples

At = Literal["start", "end"]


@dataclass
class ProbeRun:
    """What a diagnostic knows of one strategy's run.

    Attributes:
        probe: The fixed batch, drawn from the first experience; ``None`` where no samples could be taken.
        initial: What :meth:`ProbeMetric.remember` took from the network before its first step; ``None`` if it raised.
        prepared: What :meth:`ProbeMetric.prepare` made for the training that is going on.
    """

    probe: Batch | None = None
    initial: Any = None
    prepared: Any = None
    passage: Passage = field(default_factory=Passage)
    last: dict[str, float] = field(default_factory=dict)
    begun: bool = False

    def release(self) -> None:
        """Let go of what was prepared."""
        if self.prepared is not None:
            self.prepared.close()
        self.prepared = None


class ProbeMetric(GuardedMetric):
    """A diagnostic that looks at the network at chosen moments.

    It looks at the first experience, at every ``every``-th after it (number every - 1, 2 every - 1, ...), and at the
    last one where the stream says how long it is; never in between, so that training costs what it costs without it.
    The mini experiences of an online stream are one experience. A network that cannot be looked at gets no values and
    one warning. One metric may serve several strategies.

    Samples are those that the learner gives, see :func:`~plasticity_cl.training.learner.probe_samples`: drawn at random
    from an experience, by a seed of their own. A diagnostic sees the network through
    :func:`~plasticity_cl.metrics.look.looking`.

    Args:
        size: Samples to look at, as they are evaluated.
        every: Look at every so many experiences.
        at: Before the first step on an experience (``"start"``), or after the last one.

    Raises:
        UserError: If ``size`` or ``every`` is out of range, or ``at`` unknown.
    """

    group: str
    """First part of the names of what it emits."""

    looks_at_first = True
    """Whether the first experience is always due."""

    needs_samples = True
    """Whether there is nothing to see without samples."""

    def __init__(self, size: int, every: int, at: At) -> None:
        super().__init__()
        if size < 2:
            raise UserError(f"a diagnostic on {size} samples: it needs at least 2")
        if every < 1:
            raise UserError(f"every is {every}: it must be at least 1")
        if at not in get_args(At):
            raise unknown_name("moment", at, get_args(At))
        self._size, self._every, self._at = size, every, at
        self.reset()

    def reset(self) -> None:
        """Forget every probe batch, and all that was measured."""
        self._runs = PerStrategy(ProbeRun)

    def result(self) -> dict[str, float]:
        """The last values by name, layers as ``name/layer``, of the strategy met last; empty before the first."""
        return dict(self._runs.latest.last)

    def state_dict(self) -> dict[str, Any]:
        """The probe batch, what was remembered of the initialisation, and how far the training has come."""
        run = self._runs.alone()
        return {
            "probe": None if run.probe is None else dict(vars(run.probe)),
            "initial": None if run.initial is None else self.save_initial(run.initial),
            "passage": run.passage.state_dict(),
            "last": dict(run.last),
            "begun": run.begun,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave.

        Args:
            state: As it was, or as ``torch.load(..., weights_only=True)`` read it.
        """
        self._runs.adopt(
            ProbeRun(
                probe=None if state["probe"] is None else Batch(**state["probe"]),
                initial=None if state["initial"] is None else self.load_initial(state["initial"]),
                passage=Passage.from_state(state["passage"]),
                last=dict(state["last"]),
                begun=state["begun"],
            )
        )

    def save_initial(self, initial: Any) -> Any:
        """What :meth:`remember` took, as tensors, numbers and collections of them; as it is if not overridden."""
        return initial

    def load_initial(self, saved: Any) -> Any:
        """What :meth:`save_initial` saved, as :meth:`remember` took it."""
        return saved

    def before_training_exp(self, strategy: Learner) -> list[MetricValue]:
        """Draw the probe batch from the first experience; look, if this is the moment."""
        run, experience = self._runs.of(strategy), strategy.experience
        run.release()
        begins = run.passage.begin(experience)
        if not run.begun or (self.needs_samples and run.probe is None):
            self._first(strategy, run)
        if not self._is_due(run, experience):
            return []
        if self._at == "start":
            return self._look(strategy, run) if begins else []
        if run.passage.ends(experience):
            run.prepared = self.attempt("before_training_exp", self.prepare, strategy)
        return []

    def after_training_exp(self, strategy: Learner) -> list[MetricValue]:
        """Look, if this is the moment."""
        run, experience = self._runs.of(strategy), strategy.experience
        try:
            due = self._at == "end" and run.passage.ends(experience) and self._is_due(run, experience)
            return self._look(strategy, run) if due else []
        finally:
            run.release()

    def on_failure(self, strategy: Learner, event: str) -> None:
        """Drop the last values: they are not of this experience."""
        run = self._runs.of(strategy)
        run.last = {}
        run.release()

    def remember(self, strategy: Learner, run: ProbeRun) -> Any:
        """Take from the network, before its first step, what later values are related to."""

    def prepare(self, strategy: Learner) -> Any:
        """Get ready for a training at whose end the diagnostic is due: something with a ``close()``, or ``None``."""

    @abstractmethod
    def measure(self, strategy: Learner, run: ProbeRun) -> Mapping[str, float]:
        """Values by name, those of a layer as ``name/layer``."""

    def pictures(self, strategy: Learner, run: ProbeRun) -> Iterable[tuple[str, Any]]:
        """Values that are no numbers: images, and tensors for histograms, by their full name."""
        return ()

    def samples(self, strategy: Learner) -> Batch:
        """Samples of the current experience."""
        return probe_samples(strategy, self._size)

    def _first(self, strategy: Learner, run: ProbeRun) -> None:
        """Draw the probe batch; an experience without samples leaves it to the next one."""
        is_initial, run.begun = not run.begun, True
        if self.needs_samples:
            run.probe = self.attempt("before_training_exp", self.samples, strategy)
        if is_initial and (run.probe is not None or not self.needs_samples):
            with preserve_rng():
                run.initial = self.attempt("before_training_exp", self.remember, strategy, run)

    def _look(self, strategy: Learner, run: ProbeRun) -> list[MetricValue]:
        run.last = {}
        if self.needs_samples and run.probe is None:
            return []
        k = run.passage.number
        with preserve_rng():
            last = dict(self.measure(strategy, run))
            pictures = list(self.pictures(strategy, run))
        run.last = last
        stream = "probe" if self._at == "end" else "probe_start"
        scalars = [
            Scalar(self, self.group, name.partition("/")[0], value, k, stream=stream, layer=name.partition("/")[2])
            for name, value in last.items()
        ]
        return [*scalars, *(MetricValue(self, name, value, k) for name, value in pictures)]

    def _is_due(self, run: ProbeRun, experience: Any) -> bool:
        k = run.passage.number
        return (k == 0 and self.looks_at_first) or (k + 1) % self._every == 0 or k + 1 == stream_length(experience)
