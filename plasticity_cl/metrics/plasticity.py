"""The separation of plasticity loss and forgetting as an Avalanche metric."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from avalanche.evaluation import PluginMetric

from plasticity_cl.metrics.experience_score import NAN, ExperienceScore
from plasticity_cl.metrics.fresh import FreshFactory, FreshNetworks
from plasticity_cl.metrics.scalar import Scalar
from plasticity_cl.metrics.separation import Separation, separate

Reference = Mapping[str, Sequence[float]] | FreshFactory


class SeparationMetric(PluginMetric):  # type: ignore[misc]
    """Plasticity loss and forgetting of every experience, side by side; see :func:`separate`.

    It listens to whatever is evaluated, on any stream. For experience k of a stream, A_kk is the first score after
    training on k and before training on another, A_Kk the latest score. Evaluating only k after training on k, and
    everything once at the end, is enough. Scores are accuracy for integer targets and R2 for floating-point ones.

    Emitted, with the experience on the horizontal axis:
        ``plasticity/score_before_training/<stream>``: the score before training on the experience, if evaluated.
        ``plasticity/learned/<stream>``: A_kk, right after training.
        ``plasticity/fresh/<stream>`` and ``plasticity/plasticity_loss/<stream>``: S_k and S_k - A_kk, with a reference.
        ``plasticity/relative_to_first/<stream>``: A_kk - A_00, without one.
        ``forgetting/forgetting_so_far/<stream>``: mean of A_kk - A_jk over the earlier experiences k that an evaluation
        after experience j covers.
        ``forgetting/forgetting/<stream>``: A_kk - A_Kk of each k, at the end of the stream.

    Args:
        reference: S_k as a mapping from stream name to one score an experience; or a factory of fresh networks, which
            are then trained as the run goes on, at the price of a second training; or nothing.
    """

    takes_only_the_batch = True

    def __init__(self, reference: Reference | None = None) -> None:
        super().__init__()
        self._fresh_networks = FreshNetworks(reference) if callable(reference) else None
        self._scores = dict(reference) if isinstance(reference, Mapping) else {}
        self._has_reference = reference is not None
        self._current = ExperienceScore()
        self.reset()

    def reset(self) -> None:
        """Forget every score; a given reference stays."""
        self._learned: dict[str, dict[int, float]] = defaultdict(dict)
        self._latest: dict[str, dict[int, float]] = defaultdict(dict)
        self._fresh: dict[str, dict[int, float]] = defaultdict(dict)
        self._at_end_of_training: dict[str, tuple[int, float, float]] = {}
        self._trained: list[int] = []
        self._training: int | None = None
        self._evaluated: dict[str, set[int]] = defaultdict(set)
        self._lengths: dict[str, int] = {}

    def result(self) -> dict[str, Separation]:
        """The separation on every evaluated stream, as far as the run has come; NaN where a score is missing."""
        separations = {}
        for stream, latest in self._latest.items():
            size = max(latest) + 1
            learned, final, fresh = (
                [scores.get(k, NAN) for k in range(size)] for scores in (self._learned[stream], latest, self._s(stream))
            )
            separations[stream] = separate(learned, final, fresh)
        return separations

    def before_training_exp(self, strategy: Any) -> None:
        """Train the fresh network of this experience, where a factory was given."""
        self._training = strategy.experience.current_experience
        self._at_end_of_training = {}
        if self._fresh_networks is not None:
            self._fresh_networks.train(strategy)

    def before_training(self, strategy: Any) -> None:
        """Keep the plugins as they are before any training, for the fresh networks."""
        if self._fresh_networks is not None:
            self._fresh_networks.remember(strategy)

    def after_training_exp(self, strategy: Any) -> list[Scalar]:
        """Count the experience as learned; an evaluation after its very last step stands for A_kk."""
        k = self._training
        assert k is not None
        self._training = None
        self._trained.append(k)
        values = []
        for stream, (step, score, fresh) in self._at_end_of_training.items():
            if step == strategy.clock.train_exp_iterations:
                values += self._take(stream, k, score, fresh)
        return values

    def before_eval(self, strategy: Any) -> None:
        """Start to note which experiences the evaluation covers."""
        self._evaluated = defaultdict(set)

    def before_eval_exp(self, strategy: Any) -> None:
        """Start the score of an experience."""
        self._current.before_eval_exp(strategy)

    def after_eval_iteration(self, strategy: Any) -> None:
        """Take in a batch."""
        self._current.after_eval_iteration(strategy)

    def after_eval_exp(self, strategy: Any) -> list[Scalar]:
        """Take the score for A_kk, A_Kk or the score before training, whichever it is."""
        k, stream, score = strategy.experience.current_experience, _stream_name(strategy), self._current.result()
        if k in self._trained:
            self._evaluated[stream].add(k)
            self._lengths[stream] = _whole_length(strategy.experience.origin_stream)
            if k == self._trained[-1] and k not in self._learned[stream]:
                return self._take(stream, k, score, self._fresh_score(strategy))
            self._latest[stream][k] = score
        elif k == self._training:
            # Periodic evaluation: Avalanche gives the last one of an experience before the experience has ended.
            step = strategy.clock.train_exp_iterations
            self._at_end_of_training[stream] = (step, score, self._fresh_score(strategy))
        else:
            return [Scalar(self, "plasticity", "score_before_training", score, k, stream=stream)]
        return []

    def after_eval(self, strategy: Any) -> list[Scalar]:
        """Emit what was forgotten of the earlier experiences that the evaluation covered."""
        values = []
        for stream, covered in self._evaluated.items():
            last, learned, latest = self._trained[-1], self._learned[stream], self._latest[stream]
            lost = {k: learned[k] - latest[k] for k in sorted(covered) if k in learned}
            earlier = [loss for k, loss in lost.items() if k != last]
            if earlier:
                mean = sum(earlier) / len(earlier)
                values.append(Scalar(self, "forgetting", "forgetting_so_far", mean, last, stream=stream))
            if len(lost) == self._lengths[stream]:
                values += [Scalar(self, "forgetting", "forgetting", loss, k, stream=stream) for k, loss in lost.items()]
        return values

    def _take(self, stream: str, k: int, score: float, fresh: float) -> list[Scalar]:
        self._learned[stream][k] = self._latest[stream][k] = score
        values = [Scalar(self, "plasticity", "learned", score, k, stream=stream)]
        if not self._has_reference:
            first = self._learned[stream].get(self._trained[0], NAN)
            values.append(Scalar(self, "plasticity", "relative_to_first", score - first, k, stream=stream))
            return values
        if self._fresh_networks is not None:
            self._fresh[stream][k] = fresh
        fresh = self._s(stream).get(k, NAN)
        values.append(Scalar(self, "plasticity", "fresh", fresh, k, stream=stream))
        values.append(Scalar(self, "plasticity", "plasticity_loss", fresh - score, k, stream=stream))
        return values

    def _fresh_score(self, strategy: Any) -> float:
        return NAN if self._fresh_networks is None else self._fresh_networks.score(strategy, ExperienceScore())

    def _s(self, stream: str) -> dict[int, float]:
        return (
            self._fresh[stream] if self._fresh_networks is not None else dict(enumerate(self._scores.get(stream, ())))
        )


def _stream_name(strategy: Any) -> str:
    stream = strategy.experience.origin_stream
    return str(stream.name) if stream is not None else "stream"


def _whole_length(stream: Any) -> int:
    """Experiences in the stream that ``stream`` is, or is a slice of; -1 where it can't tell."""
    benchmark = getattr(stream, "benchmark", None)
    whole = stream if benchmark is None else benchmark.streams.get(stream.name)
    return len(whole) if hasattr(whole, "__len__") else -1
