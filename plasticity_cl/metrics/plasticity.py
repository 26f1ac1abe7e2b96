"""The separation of plasticity loss and forgetting as an Avalanche metric."""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from avalanche.benchmarks import OnlineCLExperience
from avalanche.training import JointTraining

from plasticity_cl.errors import UserError, unknown_name
from plasticity_cl.metrics.experience_score import NAN, ExperienceScore
from plasticity_cl.metrics.fresh import FreshFactory, FreshNetworks
from plasticity_cl.metrics.guard import GuardedMetric, PerStrategy, RefusedError
from plasticity_cl.metrics.identity import (
    benchmark_of,
    number_of,
    stream_length,
    stream_name,
    stream_of,
    streams_of_benchmark,
)
from plasticity_cl.metrics.scalar import Scalar
from plasticity_cl.metrics.scores import Choice
from plasticity_cl.metrics.separation import Separation, separate
from plasticity_cl.quantity import Quantity
from plasticity_cl.training.avalanche_names import joint_experiences
from plasticity_cl.training.learner import Learner

Reference = Mapping[str, Sequence[float]] | FreshFactory


_TABLES = ("learned", "latest", "fresh")
_KEPT = ("trained", "n_trained_stream", "lengths", "checked", "moved_on")


@dataclass
class _Run:
    """What is known of one strategy's run. Scores are by stream, then by experience."""

    fresh_networks: FreshNetworks | None
    learned: dict[str, dict[int, float]] = field(default_factory=lambda: defaultdict(dict))
    latest: dict[str, dict[int, float]] = field(default_factory=lambda: defaultdict(dict))
    fresh: dict[str, dict[int, float]] = field(default_factory=lambda: defaultdict(dict))
    trained: list[int] = field(default_factory=list)
    """Experiences in the order in which they were trained on last."""
    just_trained: frozenset[int] = frozenset()
    """Those that the last training was on: an evaluation of them now gives A_kk."""
    training: frozenset[int] = frozenset()
    """Those that the training that is going on is on."""
    benchmark: Any = None
    n_trained_stream: int | None = None
    at_end_of_training: dict[str, tuple[Any, dict[int, tuple[float, float]]]] = field(default_factory=dict)
    """Scores of a periodic evaluation, and what the network was when they were taken."""
    evaluated: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    lengths: dict[str, int | None] = field(default_factory=dict)
    first_of_train: bool = True
    checked: bool = False
    moved_on: bool = False
    """Whether the run has gone on to another benchmark, for which no scores were given."""
    resumed: bool = False
    """Whether the run was loaded, and the benchmark that it goes on with has not been seen yet."""

    def state_dict(self) -> dict[str, Any]:
        """The table, and what the next evaluation and the next training go by."""
        tables = {name: {s: dict(scores) for s, scores in getattr(self, name).items()} for name in _TABLES}
        return {
            **tables,
            **{name: getattr(self, name) for name in _KEPT},
            "just_trained": sorted(self.just_trained),
            "fresh_networks": None if self.fresh_networks is None else self.fresh_networks.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        for name in _TABLES:
            setattr(self, name, defaultdict(dict, {stream: dict(scores) for stream, scores in state[name].items()}))
        for name in _KEPT:
            setattr(self, name, state[name])
        self.just_trained, self.resumed = frozenset(state["just_trained"]), True
        if self.fresh_networks is not None:
            self.fresh_networks.load_state_dict(state["fresh_networks"])


class SeparationMetric(GuardedMetric):
    """Handicap, plasticity loss and forgetting of every experience, side by side; see :func:`separate`.

    It listens to whatever is evaluated, on any stream. For experience k of a stream, A_kk is the first score after
    training on k (the last time, where it is trained on again) and before training on another, A_Kk the latest score.
    Evaluating only k after training on k, and everything once at the end, is enough. Mini experiences of an online
    stream count as the experience that they are part of. What was never trained on is not in the table. One metric may
    serve several strategies: each has a table of its own, and :meth:`result` is that of the strategy met last.

    Emitted, with the experience on the horizontal axis:
        ``plasticity/score_before_training/<stream>``: the score before training on the experience, if evaluated.
        ``plasticity/learned/<stream>``: A_kk, right after training.
        ``plasticity/fresh/<stream>`` and ``plasticity/plasticity_loss/<stream>``: S_k and S_k - A_kk, with a reference.
        ``plasticity/baseline/<stream>`` and ``plasticity/handicap/<stream>``: S_ref and S_ref - S_k, with a baseline.
        ``plasticity/relative_to_first/<stream>``: A_kk - A_00, without a reference.
        ``forgetting/forgetting_of_previous/<stream>``: A_ii - A_ij after experience j, i being the one trained on
        before j.
        ``forgetting/forgetting_so_far/<stream>``: mean of A_ii - A_ij over all experiences i trained on before j, by an
        evaluation that covers all of them; no other evaluation gives a value.
        ``forgetting/forgetting/<stream>``: A_kk - A_Kk of each k, at the end of the stream.
    What :meth:`result` has beside these, ``final`` (A_Kk) and ``total``, a run writes down at its end.

    Args:
        reference: S_k as a mapping from stream name to one score an experience; or a factory of fresh networks, or of
            whole new strategies, which are then trained as the run goes on, at the price of a second training; or
            nothing. See :class:`~plasticity_cl.metrics.fresh.FreshNetworks`.
        baseline: S_ref as a mapping from stream name to one score an experience: what the strategies that are compared
            have in common as their reference, for instance ``result()[...].fresh`` of a run without interventions.
        score: What is scored, see :func:`~plasticity_cl.metrics.scores.score_for`.

    Raises:
        UserError: If a reference or a baseline is no such thing. When the run begins, a :class:`RefusedError` if it
            names a stream that there is not, or has fewer scores than there are experiences.
    """

    takes_only_the_batch = True
    quantities: Mapping[str, Quantity] = {
        "learned": Quantity("learned", "Scores", "down"),
        "final": Quantity("final", "Scores", "down"),
        "fresh": Quantity("fresh", "Scores", "down"),
        "baseline": Quantity("baseline", "Scores"),
        "score_before_training": Quantity("score before training", "Scores"),
        "handicap": Quantity("handicap", "Plasticity", "up"),
        "plasticity_loss": Quantity("plasticity loss", "Plasticity", "up"),
        "relative_to_first": Quantity("relative to first", "Plasticity", "down"),
        "forgetting": Quantity("forgetting", "Forgetting", "up"),
        "forgetting_of_previous": Quantity("forgetting of previous", "Forgetting", "up"),
        "forgetting_so_far": Quantity("forgetting so far", "Forgetting", "up"),
        "total": Quantity("total", "Plasticity and forgetting", "up"),
    }

    def __init__(
        self,
        reference: Reference | None = None,
        *,
        baseline: Mapping[str, Sequence[float]] | None = None,
        score: Choice = None,
    ) -> None:
        super().__init__()
        self._factory: FreshFactory | None = None
        self._given: dict[str, dict[str, list[float]]] = {}
        if callable(reference):
            self._factory = reference
        elif reference is not None:
            self._given["reference"] = _checked("reference", reference)
        if baseline is not None:
            self._given["baseline"] = _checked("baseline", baseline)
        self._has_reference = reference is not None
        self._choice, self._current = score, ExperienceScore(score)
        self._said: set[str] = set()
        self._failed = False
        self.reset()

    def reset(self) -> None:
        """Forget every score; a given reference stays."""
        self._runs = PerStrategy(self._new_run)
        self._current.reset()

    def meet(self, strategy: Learner) -> None:
        """Copy a strategy as it is before its first training, where fresh networks are to be trained beside it."""
        self._runs.of(strategy)
        if self._fresh_networks is not None:
            self._fresh_networks.remember(strategy)

    def state_dict(self) -> dict[str, Any]:
        """Every score; the last fresh network is left out, so that its score is to be taken before."""
        return self._runs.alone().state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave; with fresh networks, after :meth:`meet`.

        Args:
            state: As it was, or as ``torch.load(..., weights_only=True)`` read it.
        """
        run = self._runs.alone()
        run.load_state_dict(state)
        self._runs.adopt(run)

    def without_reference(self) -> SeparationMetric:
        """The same metric for a fresh network, which has no reference itself."""
        return SeparationMetric(score=self._choice)

    def result(self) -> dict[str, Separation]:
        """The separation on every evaluated stream, as far as the run has come; NaN where a score is missing."""
        run, separations = self._runs.latest, {}
        for stream, latest in run.latest.items():
            known = {**latest, **run.learned[stream]}
            if not known:
                continue
            columns = [run.learned[stream], latest, self._s(stream)]
            if "baseline" in self._given:
                columns.append(self._listed("baseline", stream))
            separations[stream] = separate(*([scores.get(k, NAN) for k in range(max(known) + 1)] for scores in columns))
        return separations

    def on_failure(self, strategy: Learner, event: str) -> None:
        """Drop the score that was being taken; what was measured before stays."""
        self._failed = True

    def before_training(self, strategy: Learner) -> None:
        """Note how the training begins, for the fresh networks."""
        self._runs.of(strategy).first_of_train = True
        if self._fresh_networks is not None:
            self._fresh_networks.before_training(strategy)

    def before_train_dataset_adaptation(self, strategy: Learner) -> None:
        """Note how the training on an experience begins, where it is not the first in one call of ``train()``."""
        run = self._runs.of(strategy)
        if self._fresh_networks is not None and not run.first_of_train:
            self._fresh_networks.before_experience()
        run.first_of_train = False

    def before_training_exp(self, strategy: Learner) -> None:
        """Train the fresh network of this experience, where a factory was given."""
        run = self._runs.of(strategy)
        run.at_end_of_training = {}
        self._begin(run, strategy)
        if self._fresh_networks is not None:
            self._fresh_networks.train(strategy)

    def after_training_exp(self, strategy: Learner) -> list[Scalar]:
        """Count the experience as learned; an evaluation after its very last step stands for A_kk."""
        run = self._runs.of(strategy)
        run.just_trained, run.training = run.training, frozenset()
        run.trained = [k for k in run.trained if k not in run.just_trained] + sorted(run.just_trained)
        values = []
        for stream, (state, scores) in run.at_end_of_training.items():
            if state == _state_of_network(strategy):
                for k, (score, fresh) in scores.items():
                    values += self._take(run, stream, k, score, fresh)
        return values

    def after_training(self, strategy: Learner) -> None:
        """Note how the training ended, for the fresh networks."""
        self._runs.of(strategy)
        if self._fresh_networks is not None:
            self._fresh_networks.after_training(strategy)

    def before_eval(self, strategy: Learner) -> None:
        """Start to note which experiences the evaluation covers."""
        run = self._runs.of(strategy)
        if self._fresh_networks is not None:
            self._fresh_networks.remember(strategy)
        run.evaluated = defaultdict(set)

    def before_eval_exp(self, strategy: Learner) -> None:
        """Start the score of an experience."""
        self._failed = False
        self._current.before_eval_exp(strategy)

    def after_eval_iteration(self, strategy: Learner) -> None:
        """Take in a batch."""
        self._current.after_eval_iteration(strategy)

    def after_eval_exp(self, strategy: Learner) -> list[Scalar]:
        """Take the score for A_kk, A_Kk or the score before training, whichever it is."""
        run, score = self._runs.of(strategy), NAN if self._failed else self._current.result()
        self._current.reset()
        experience = strategy.experience
        k, stream = number_of(experience), stream_name(experience)
        if isinstance(experience, OnlineCLExperience):
            self._say("mini experiences are not scored one by one: evaluate the experiences that they are part of")
            return []
        self._check_numbers(run, experience)
        if k in run.training:
            # Periodic evaluation: Avalanche gives the last one of an experience before the experience has ended.
            state = _state_of_network(strategy)
            known_state, scores = run.at_end_of_training.get(stream, (state, {}))
            scores = scores if known_state == state else {}
            run.at_end_of_training[stream] = (state, {**scores, k: (score, self._fresh_score(strategy))})
        elif k in run.trained:
            run.evaluated[stream].add(k)
            run.lengths[stream] = stream_length(experience)
            if k in run.just_trained and not run.training and k not in run.learned[stream]:
                return self._take(run, stream, k, score, self._fresh_score(strategy))
            if k not in run.learned[stream]:
                self._say(
                    f"experience {k} of stream {stream} was not evaluated right after training on it, so what it lost "
                    "since is not known; evaluate each experience after training on it"
                )
            run.latest[stream][k] = score
        elif not math.isnan(score):
            return [Scalar(self, "plasticity", "score_before_training", score, k, stream=stream)]
        return []

    def after_eval(self, strategy: Learner) -> list[Scalar]:
        """Emit what was forgotten of the earlier experiences that the evaluation covered."""
        run, values = self._runs.of(strategy), []
        for stream, covered in run.evaluated.items():
            if run.training or not covered:
                continue
            learned, latest, last = run.learned[stream], run.latest[stream], run.trained[-1]
            lost = {k: learned[k] - latest[k] for k in sorted(covered) if k in learned}
            lost = {k: loss for k, loss in lost.items() if not math.isnan(loss)}
            earlier = [k for k in run.trained if k not in run.just_trained]
            if earlier and earlier[-1] in lost:
                previous = lost[earlier[-1]]
                values.append(Scalar(self, "forgetting", "forgetting_of_previous", previous, last, stream=stream))
            if earlier and all(k in lost for k in earlier):
                mean = sum(lost[k] for k in earlier) / len(earlier)
                values.append(Scalar(self, "forgetting", "forgetting_so_far", mean, last, stream=stream))
            if len(lost) == run.lengths[stream]:
                values += [Scalar(self, "forgetting", "forgetting", loss, k, stream=stream) for k, loss in lost.items()]
        return values

    def _new_run(self) -> _Run:
        return _Run(None if self._factory is None else FreshNetworks(self._factory))

    def _begin(self, run: _Run, strategy: Learner) -> None:
        """Note what the training is on. Where it was trained on before, its new scores take the old ones' place."""
        experience = strategy.experience
        benchmark = benchmark_of(experience)
        if run.trained and benchmark is not run.benchmark and not run.resumed:
            self._say(
                "the run goes on with another benchmark, whose experiences have the same numbers: a new table begins"
                + (", without the scores that were given" if self._given else "")
            )
            run.learned, run.latest, run.fresh = defaultdict(dict), defaultdict(dict), defaultdict(dict)
            run.trained, run.just_trained, run.moved_on = [], frozenset(), True
        run.resumed = False
        run.benchmark, run.n_trained_stream = benchmark, stream_length(experience)
        self._check_given(run, experience)
        numbers = [number_of(experience)]
        if isinstance(strategy, JointTraining):
            numbers = [number_of(joint) for joint in joint_experiences(strategy)]
        run.training = frozenset(numbers)
        goes_on = isinstance(experience, OnlineCLExperience) and run.just_trained == run.training
        again = [k for k in numbers if k in run.trained]
        if again and not goes_on:
            self._say(f"experience {again[0]} is trained on again: the table shows its last time")
        if again:
            for scores in (*run.learned.values(), *run.latest.values(), *run.fresh.values()):
                for k in again:
                    scores.pop(k, None)

    def _check_numbers(self, run: _Run, experience: Any) -> None:
        length = stream_length(experience)
        if run.trained and None not in (length, run.n_trained_stream) and length != run.n_trained_stream:
            self._say(
                f"stream {stream_name(experience)} has {length} experiences and the stream that is trained on "
                f"{run.n_trained_stream}: they are taken for each other's by number"
            )

    def _check_given(self, run: _Run, experience: Any) -> None:
        """Refuse a reference that names a stream that there is not, or has too few scores; once a run."""
        if run.checked or not self._given:
            return
        streams = streams_of_benchmark(experience) or {stream_name(experience): stream_of(experience)}
        for name, given in self._given.items():
            for stream, scores in given.items():
                if len(streams) > 1 and stream not in streams:
                    raise RefusedError(f"{name}: {unknown_name('stream', stream, streams)}")
                whole: Any = streams.get(stream)
                length = len(whole) if hasattr(whole, "__len__") else number_of(experience) + 1
                if len(scores) < length:
                    raise RefusedError(
                        f"{name}: stream {stream} has {length} experiences, and {len(scores)} scores are given; give "
                        "one for each"
                    )
        run.checked = True

    def _take(self, run: _Run, stream: str, k: int, score: float, fresh: float) -> list[Scalar]:
        run.learned[stream][k] = run.latest[stream][k] = score
        values = {"learned": score}
        if self._has_reference:
            if self._fresh_networks is not None:
                run.fresh[stream][k] = fresh
            fresh = self._s(stream).get(k, NAN)
            values |= {"fresh": fresh, "plasticity_loss": fresh - score}
            baseline = self._listed("baseline", stream).get(k, NAN)
            values |= {"baseline": baseline, "handicap": baseline - fresh}
        else:
            values["relative_to_first"] = score - run.learned[stream].get(run.trained[0], NAN)
        return [
            Scalar(self, "plasticity", name, value, k, stream=stream)
            for name, value in values.items()
            if not math.isnan(value)
        ]

    def _fresh_score(self, strategy: Learner) -> float:
        networks = self._fresh_networks
        return NAN if networks is None else networks.score(strategy, ExperienceScore(self._choice))

    @property
    def _fresh_networks(self) -> FreshNetworks | None:
        """Those of the strategy met last."""
        return self._runs.latest.fresh_networks

    def _s(self, stream: str) -> dict[int, float]:
        return self._listed("reference", stream) if self._factory is None else self._runs.latest.fresh[stream]

    def _listed(self, name: str, stream: str) -> dict[int, float]:
        return {} if self._runs.latest.moved_on else dict(enumerate(self._given.get(name, {}).get(stream, ())))

    def _say(self, what: str) -> None:
        kind = what.translate({ord(digit): None for digit in "0123456789"})
        if kind not in self._said:
            self._said.add(kind)
            warnings.warn(f"{type(self).__name__}: {what}", stacklevel=4)


def _state_of_network(strategy: Learner) -> list[float]:
    """Something that changes with every step, and when a plugin puts other weights in place, as early stopping does.

    Two sums over each tensor: versions that PyTorch counts miss what is written to ``parameter.data``.
    """
    tensors = [tensor.detach().float() for tensor in (*strategy.model.parameters(), *strategy.model.buffers())]
    sums = [part for tensor in tensors for part in (tensor.sum(), tensor.square().sum())]
    return torch.stack(sums).tolist() if sums else []


def _checked(name: str, given: Any) -> dict[str, list[float]]:
    """A mapping from stream name to scores, as floats.

    Raises:
        UserError: If it is anything else.
    """
    advice = f'{name} must be a mapping from stream name to one score an experience, as {{"test": [0.9, 0.8]}}'
    if not isinstance(given, Mapping):
        other = ", or a function that returns a fresh network" if name == "reference" else ""
        raise UserError(f"{advice}{other}; it is a {type(given).__name__}")
    checked = {}
    for stream, scores in given.items():
        try:
            checked[str(stream)] = [float(score) for score in scores]
        except (TypeError, ValueError):
            raise UserError(f"{advice}; the scores of {stream!r} are {scores!r}") from None
    return checked
