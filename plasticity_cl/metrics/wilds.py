"""The metrics of WILDS: accuracy, macro recall and macro F1, over classes that are the same for every experience."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from plasticity_cl.errors import UserError
from plasticity_cl.metrics.guard import GuardedMetric, PerStrategy
from plasticity_cl.metrics.identity import number_of
from plasticity_cl.metrics.passage import Passage
from plasticity_cl.metrics.scalar import Scalar
from plasticity_cl.metrics.scores import logits_of
from plasticity_cl.quantity import Quantity
from plasticity_cl.training.learner import Learner

_SHARE: Mapping[str, Any] = {"low": 0, "high": 1, "unit": "share"}


@dataclass(frozen=True)
class WildsScores:
    """Scores in [0, 1]; NaN where nothing was evaluated.

    Attributes:
        accuracy: Correct over all, ``acc_avg`` in WILDS.
        macro_recall: Mean recall of the classes, ``recall-macro_all`` in WILDS.
        macro_f1: Mean F1 of the classes, ``F1-macro_all`` in WILDS.
    """

    accuracy: float
    macro_recall: float
    macro_f1: float


def add_to_confusion(confusion: Tensor, prediction: Tensor, target: Tensor) -> None:
    """Count predictions in a confusion matrix, in place and without waiting for the device.

    Args:
        confusion: ``[C, C]`` int64: how many samples of class i were taken for class j.
        prediction: ``[b]`` int64 classes.
        target: ``[b]`` int64 classes.
    """
    cell = target * len(confusion) + prediction
    confusion.view(-1).index_add_(0, cell, torch.ones_like(cell))


def wilds_scores(confusion: Tensor, classes: Tensor | None = None) -> WildsScores:
    """Accuracy, macro recall and macro F1 of a confusion matrix.

    With ``R_c = n_cc / n_c.`` and ``F_c = 2 n_cc / (n_c. + n_.c)`` macro recall and macro F1 are their means over
    ``classes``; a class without samples, or for F1 one without samples and predictions, counts as 0. These are
    scikit-learn's ``recall_score`` and ``f1_score`` with ``labels=classes`` and ``zero_division=0``.

    WILDS takes the classes that are present in what it evaluates. On a whole test split, with its classes, the scores
    are those of ``IWildCamDataset.eval``. On an experience they are not: WILDS would average over other classes at each
    experience, here it is always the same ones. A macro score of an experience is then bounded by the share of the
    classes that it holds, and can be compared between strategies and in time.

    Args:
        confusion: ``[C, C]`` as from :func:`add_to_confusion`.
        classes: ``[m]`` classes to average over; those with samples when ``None``, as WILDS does it.
    """
    counts = confusion.double().cpu()
    correct, of_class, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
    chosen = of_class.nonzero().squeeze(1) if classes is None else classes.cpu()
    if not of_class.sum():
        return WildsScores(float("nan"), float("nan"), float("nan"))
    recall = correct / of_class.clamp(min=1)
    f1 = 2 * correct / (of_class + predicted).clamp(min=1)
    return WildsScores(float(correct.sum() / of_class.sum()), float(recall[chosen].mean()), float(f1[chosen].mean()))


class WildsMetric(GuardedMetric):
    """Accuracy, macro recall and macro F1 of the evaluated experiences, and of streams that are evaluated whole.

    Emitted, ``<score>`` being ``accuracy``, ``macro_recall`` or ``macro_f1``:
        ``wilds/<score>/<stream>``: of an evaluated experience, over the classes of its whole stream, with the
        experience on the horizontal axis.
        ``wilds/stream_<score>/<stream>``: of all experiences together, where an evaluation covered each of them, with
        the experience trained on last on the horizontal axis, -1 before any.

    Args:
        classes: For each stream to be watched, the classes ``[m]`` that occur in it, for instance
            ``{name: scenario.classes_in(name) for name in ("test", "ood")}``. Other streams are passed over.
        n_classes: Outputs of the network.

    Raises:
        UserError: If a class is none of the outputs, or a stream has no class.
    """

    quantities: Mapping[str, Quantity] = {
        "accuracy": Quantity("accuracy", "Scores", "down", **_SHARE),
        "macro_recall": Quantity("macro recall", "Scores", "down", **_SHARE),
        "macro_f1": Quantity("macro f1", "Scores", "down", **_SHARE),
        "stream_accuracy": Quantity("stream accuracy", "Scores", "down", **_SHARE),
        "stream_macro_recall": Quantity("stream macro recall", "Scores", "down", **_SHARE),
        "stream_macro_f1": Quantity("stream macro f1", "Scores", "down", **_SHARE),
    }

    def __init__(self, classes: Mapping[str, Tensor], n_classes: int) -> None:
        super().__init__()
        for stream, listed in classes.items():
            if len(listed) == 0 or not 0 <= int(listed.min()) <= int(listed.max()) < n_classes:
                raise UserError(f"the classes of stream {stream} must be one or more of 0 to {n_classes - 1}")
        self._classes, self._n_classes = dict(classes), n_classes
        self._trained = PerStrategy(Passage)
        self.reset()

    def state_dict(self) -> dict[str, Any]:
        """How far the training has come; an evaluation begins anew."""
        return {"trained": self._trained.alone().state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave.

        Args:
            state: As it was, or as ``torch.load(..., weights_only=True)`` read it.
        """
        self._trained.adopt(Passage.from_state(state["trained"]))

    def reset(self) -> None:
        """Forget what was evaluated."""
        self._confusion: Tensor | None = None
        self._of_stream: dict[str, Tensor] = {}
        self._covered: dict[str, set[int]] = {}
        self._whole: dict[str, int] = {}

    def result(self) -> dict[str, WildsScores]:
        """The scores of each watched stream in the last evaluation, over the experiences that it covered."""
        return {stream: wilds_scores(counts, self._classes[stream]) for stream, counts in self._of_stream.items()}

    def after_training_exp(self, strategy: Learner) -> None:
        """Note how far the training has come."""
        self._trained.of(strategy).begin(strategy.experience)

    def before_eval(self, strategy: Learner) -> None:
        """Start an evaluation."""
        self.reset()

    def before_eval_exp(self, strategy: Learner) -> None:
        """Start an experience."""
        stream = strategy.experience.origin_stream.name
        self._confusion = None
        if stream in self._classes:
            shape = (self._n_classes, self._n_classes)
            self._confusion = torch.zeros(shape, dtype=torch.int64, device=strategy.device)

    def after_eval_iteration(self, strategy: Learner) -> None:
        """Count a batch."""
        if self._confusion is not None:
            add_to_confusion(self._confusion, logits_of(strategy.mb_output).argmax(1), strategy.mb_y)

    def after_eval_exp(self, strategy: Learner) -> list[Scalar]:
        """Emit the scores of the experience."""
        if self._confusion is None:
            return []
        stream, number = strategy.experience.origin_stream, number_of(strategy.experience)
        total = self._of_stream.get(stream.name)
        self._of_stream[stream.name] = self._confusion if total is None else total + self._confusion
        self._covered.setdefault(stream.name, set()).add(number)
        self._whole[stream.name] = _n_experiences(stream)
        return self._emit("", wilds_scores(self._confusion, self._classes[stream.name]), stream.name, number)

    def after_eval(self, strategy: Learner) -> list[Scalar]:
        """Emit the scores of the streams that were covered."""
        values = []
        for stream, scores in self.result().items():
            if len(self._covered[stream]) == self._whole[stream]:
                values += self._emit("stream_", scores, stream, self._trained.of(strategy).number)
        return values

    def _emit(self, prefix: str, scores: WildsScores, stream: str, experience: int) -> list[Scalar]:
        return [
            Scalar(self, "wilds", prefix + name, value, experience, stream=stream)
            for name, value in vars(scores).items()
        ]


def _n_experiences(stream: Any) -> int:
    """Experiences with samples in the stream that ``stream`` is, or is a slice of."""
    whole = stream.benchmark.streams[stream.name]
    rows = getattr(whole, "rows", None)
    return len(whole) if rows is None else sum(len(held) > 0 for held in rows)
