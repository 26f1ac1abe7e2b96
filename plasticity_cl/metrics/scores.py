"""Scores of a data set, summed up without waiting for the device, and which one a criterion calls for."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plasticity_cl.errors import UserError, unknown_name
from plasticity_cl.training.deferred import compare

IGNORED = -100
"""The class that PyTorch's criteria pass over if they are not told otherwise."""

_TOGETHER = 64


class Score(Protocol):
    """A score where higher is better."""

    def update(self, output: Tensor, target: Tensor) -> None:
        """Take in a batch."""

    def result(self) -> float:
        """The score of all batches since it was made; NaN before the first."""


Choice = str | Callable[[], Score] | None
"""``"accuracy"``, ``"bounded-r2"``, ``"r2"``, a function that gives a score, or ``None``: by targets and criterion."""


class Accuracy:
    """The share of right classes.

    Without a threshold a sample's class is its largest output, along dimension 1; the right one is its label, or where
    targets are probabilities of the classes, the most probable one. With a threshold every output is a label of its
    own that is set where it is above the threshold, and targets are set above 0.5, so that labels may be 0 and 1 or -1
    and 1. With labels for each position (segmentation) positions are counted.

    Args:
        threshold: Outputs above it count as a label that is set: 0 for logits, 0.5 for probabilities; ``None`` for
            outputs that compete.
        ignore: Positions whose label is this class are passed over.
    """

    def __init__(self, threshold: float | None = None, ignore: int = IGNORED) -> None:
        self._threshold, self._ignore = threshold, ignore
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._correct: Tensor | int = 0
        self._seen: Tensor | int = 0

    def update(self, output: Tensor, target: Tensor) -> None:
        """Take in a batch.

        Args:
            output: ``[b, C, ...]`` for classes; of the targets' number of values for labels.
            target: ``[b, ...]`` classes, ``[b, C, ...]`` probabilities of classes, or labels of any shape.

        Raises:
            UserError: If the shapes are others.
        """
        hits = compare(output, target) if output.dim() == 2 and output.shape[1] > 1 else None
        if hits is not None:
            self._waiting.append((hits, target))
            if len(self._waiting) == _TOGETHER:
                self._count()
        elif target.numel():
            self._add(*self._compare(output, target))

    @torch.no_grad()
    def _compare(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Where the predictions are right, and where there is something to predict."""
        several = output.dim() > 1 and output.shape[1] > 1
        labels = not target.is_floating_point() and not target.is_complex()
        if several and labels and output.shape[:1] + output.shape[2:] == target.shape:
            return output.argmax(1) == target, target != self._ignore
        if self._threshold is not None and output.numel() == target.numel():
            return (output.reshape(target.shape) > self._threshold) == (target > 0.5), torch.ones_like(target) > 0
        if self._threshold is None and several and output.shape == target.shape and not labels:
            # Of classes that are equally probable each is right.
            hits = target.gather(1, output.argmax(1, keepdim=True)) == target.amax(1, keepdim=True)
            return hits, torch.ones_like(hits)
        raise UserError(f"outputs {list(output.shape)} do not give one class for each of {list(target.shape)} targets")

    def _add(self, hits: Tensor, counted: Tensor) -> None:
        self._correct = self._correct + (hits & counted).sum()
        self._seen = self._seen + counted.sum()

    def _count(self) -> None:
        if self._waiting:
            hits, targets = (torch.cat(tensors) for tensors in zip(*self._waiting, strict=True))
            self._waiting = []
            self._add(hits, targets != self._ignore)

    def result(self) -> float:
        """Correct over seen, in [0, 1]."""
        self._count()
        seen = int(self._seen)
        return int(self._correct) / seen if seen else float("nan")


class R2:
    """The coefficient of determination, 1 - sum (y - f)^2 / sum (y - mean y)^2, of a whole data set.

    From sufficient statistics in float64, merged batch by batch (Chan, Golub and LeVeque 1979), so that a mean of 1e6
    costs no digits and the result does not depend on how the data were cut into batches beyond rounding. Means of
    per-batch R2, which Avalanche's unreleased version reports, are another quantity. With several outputs both sums run
    over all of them. NaN where all targets are the same: what they are is subtracted first, which leaves no rounding.
    """

    def __init__(self) -> None:
        self._residual: Tensor | float = 0.0
        self._spread: Tensor | float = 0.0
        self._mean: Tensor | float = 0.0
        self._origin: Tensor | None = None
        self._seen = 0

    @torch.no_grad()
    def update(self, output: Tensor, target: Tensor) -> None:
        """Take in a batch.

        Args:
            output: ``[b, d]`` or ``[b]`` predictions.
            target: ``[b, d]`` or ``[b]``, the same number of values.

        Raises:
            UserError: If the two hold different numbers of values: broadcasting would hide it.
        """
        if output.numel() != target.numel():
            raise UserError(
                f"the network gives {tuple(output.shape)} for targets of shape {tuple(target.shape)}; "
                "a criterion with encoded outputs must have a decode method"
            )
        if not target.numel():
            return
        y = target.reshape(len(target), -1).double()
        self._residual = self._residual + (output.reshape_as(y).double() - y).square().sum()
        if self._origin is None:
            self._origin = y[0].clone()
        y = y - self._origin
        batch, mean = len(y), y.mean(0)
        total = self._seen + batch
        shift = mean - self._mean
        self._spread = self._spread + (y - mean).square().sum() + (shift.square() * (self._seen * batch / total)).sum()
        self._mean = self._mean + shift * (batch / total)
        self._seen = total

    def result(self) -> float:
        """1 - residual / spread; at most 1."""
        spread = float(self._spread)
        return 1.0 - float(self._residual) / spread if spread > 0 else float("nan")


class BoundedR2(R2):
    """The coefficient of determination brought into [0, 1]: 1 / (2 - R2) = spread / (spread + residual).

    It rises with R2: 1 for perfect predictions, 0.5 for those no better than the mean, and towards 0 where R2 goes to
    minus infinity, so that one network that is far off does not swamp a mean over networks. NaN where R2 is.
    """

    def result(self) -> float:
        """Spread / (spread + residual), in [0, 1]."""
        spread = float(self._spread)
        return spread / (spread + float(self._residual)) if spread > 0 else float("nan")


SCORES: dict[str, Callable[[], Score]] = {"accuracy": Accuracy, "bounded-r2": BoundedR2, "r2": R2}

# What the outputs are that a criterion takes: competing classes, one logit or probability a label, or numbers.
_CLASSES, _LOGITS, _PROBABILITIES, _NUMBERS = "classes", "logits", "probabilities", "numbers"
_THRESHOLDS = {_LOGITS: 0.0, _PROBABILITIES: 0.5}
_MODULES: tuple[tuple[type[nn.Module], str], ...] = (
    *((kind, _CLASSES) for kind in (nn.CrossEntropyLoss, nn.NLLLoss, nn.MultiMarginLoss, nn.KLDivLoss)),
    *((kind, _LOGITS) for kind in (nn.BCEWithLogitsLoss, nn.MultiLabelSoftMarginLoss, nn.SoftMarginLoss)),
    (nn.BCELoss, _PROBABILITIES),
    *((kind, _NUMBERS) for kind in (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss)),
    *((kind, _NUMBERS) for kind in (nn.GaussianNLLLoss, nn.PoissonNLLLoss)),
)
_FUNCTIONS: dict[Any, str] = {
    **dict.fromkeys((F.cross_entropy, F.nll_loss, F.multi_margin_loss, F.kl_div), _CLASSES),
    **dict.fromkeys((F.binary_cross_entropy_with_logits, F.multilabel_soft_margin_loss, F.soft_margin_loss), _LOGITS),
    F.binary_cross_entropy: _PROBABILITIES,
    **dict.fromkeys((F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss), _NUMBERS),
    **dict.fromkeys((F.gaussian_nll_loss, F.poisson_nll_loss), _NUMBERS),
}


@dataclass(frozen=True)
class Criterion:
    """What is known of a criterion.

    Attributes:
        outputs: What it takes its outputs for: ``classes``, ``logits``, ``probabilities`` or ``numbers``; empty for an
            unknown one.
        options: Its settings by name, where it is one of PyTorch's or wraps one.
        plain: Whether it is one of PyTorch's, with nothing around it that could change what it gives.
    """

    outputs: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    plain: bool = False


def look_up(criterion: Any, depth: int = 4) -> Criterion:
    """Find the criterion of PyTorch's that ``criterion`` is, is a subclass of, or wraps; as a module or a function.

    One that wraps several of different kinds is unknown, and so is a function that is not PyTorch's own.

    Args:
        criterion: Any function of output and target.
        depth: How many wrappers to look through.
    """
    if not depth:
        return Criterion()
    if isinstance(criterion, functools.partial):
        inner = look_up(criterion.func, depth - 1)
        return replace(inner, options={**inner.options, **criterion.keywords})
    if inspect.ismethod(criterion):
        return look_up(criterion.__self__, depth - 1)
    if inspect.isroutine(criterion):
        outputs = _FUNCTIONS.get(criterion, "")
        return Criterion(outputs, plain=bool(outputs))
    for kind, outputs in _MODULES:
        if isinstance(criterion, kind):
            return Criterion(outputs, vars(criterion), type(criterion) is kind)
    parts = list(getattr(criterion, "__dict__", {}).values())
    if isinstance(criterion, nn.Module):
        parts += list(criterion.children())
    inner_ones = [
        look_up(part, depth - 1)
        for part in parts
        if isinstance(part, nn.Module | functools.partial) or inspect.isroutine(part)
    ]
    known = [inner for inner in inner_ones if inner.outputs]
    return replace(known[0], plain=False) if len({inner.outputs for inner in known}) == 1 else Criterion()


def logits_of(output: Any) -> Tensor:
    """The tensor of predictions in what a network gives.

    Args:
        output: A tensor; something with ``logits`` (the outputs of Hugging Face and torchvision), a mapping with
            ``logits`` or ``out`` or with one tensor alone; a tuple or list, of which it is the first tensor.

    Raises:
        UserError: If it is anything else.
    """
    if isinstance(output, Tensor):
        return output
    for name in ("logits", "out"):
        found = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if isinstance(found, Tensor):
            return found
    if isinstance(output, Mapping):
        tensors = [value for value in output.values() if isinstance(value, Tensor)]
        if len(tensors) == 1:
            return tensors[0]
        raise UserError(f"the network gives a mapping with {list(output)}: name its predictions 'logits'")
    for part in output if isinstance(output, tuple | list) else ():
        if isinstance(part, Tensor):
            return part
    raise UserError(f"the network gives a {type(output).__name__} without a tensor of predictions")


def predictor_for(criterion: Any) -> Callable[[Any], Tensor]:
    """What makes predictions of the outputs of a network.

    Args:
        criterion: One with a ``decode`` method has the logits decoded; those of ``PoissonNLLLoss`` are logarithms
            unless it says otherwise; of any other criterion they are the predictions.

    Returns:
        From what the network gave, see :func:`logits_of`, to its predictions.
    """
    decode = getattr(criterion, "decode", None)
    if decode is None:
        is_poisson = getattr(criterion, "func", criterion) is F.poisson_nll_loss
        if isinstance(criterion, nn.PoissonNLLLoss):
            decode = torch.exp if criterion.log_input else None
        elif is_poisson and getattr(criterion, "keywords", {}).get("log_input", True):
            decode = torch.exp
    return logits_of if decode is None else functools.partial(_decoded, decode)


def _decoded(decode: Callable[[Tensor], Tensor], output: Any) -> Tensor:
    return decode(logits_of(output))


def check_choice(score: Choice) -> None:
    """Refuse what is no score.

    Raises:
        UserError: If it is a name of none, or neither a name nor a function.
    """
    if isinstance(score, str) and score not in SCORES:
        raise unknown_name("score", score, SCORES)
    if not (score is None or isinstance(score, str) or callable(score)):
        raise UserError(f"score must be one of {', '.join(SCORES)} or a function that gives a score, not {score!r}")


def score_for(output: Tensor, target: Tensor, criterion: Any, choice: Choice = None) -> Score:
    """Choose the score of what is being learned.

    In this order:

    1. What ``choice`` says.
    2. Accuracy where targets are integers with several outputs for each, whatever the criterion.
    3. Accuracy for a criterion of classes (cross-entropy and the like, also with soft labels) or of labels (binary
       cross-entropy and the like, label by label, at the threshold 0 for logits and 0.5 for probabilities); also for a
       criterion that wraps one or is a subclass of one.
    4. Accuracy where the target of every sample is one-hot.
    5. Bounded R2 for a regression criterion, and for one with a ``decode`` method.
    6. Bounded R2 of floating-point targets for any other criterion, unless they look like classes: it is not known then
       what the outputs are.

    Args:
        output: The predictions for a batch, ``[b, ...]``.
        target: Their targets.
        criterion: What is minimised.
        choice: A name or a function, or ``None``.

    Raises:
        UserError: If no score is defined.
    """
    if callable(choice):
        return choice()
    if choice in ("r2", "bounded-r2"):
        return SCORES[choice]()
    known = look_up(criterion)
    ignore = known.options.get("ignore_index", IGNORED)
    integers = not target.is_floating_point()
    several = output.dim() > 1 and output.shape[1] > 1
    if integers and several and output.dim() == target.dim() + 1:
        return Accuracy(ignore=ignore)
    # What wraps a criterion of probabilities may make them of logits itself.
    unsure = known.outputs == _PROBABILITIES and not known.plain and bool(((output < 0) | (output > 1)).any())
    if known.outputs in (_CLASSES, *_THRESHOLDS) and not unsure:
        return Accuracy(_THRESHOLDS.get(known.outputs), ignore)
    of_classes = choice == "accuracy" and _are_probabilities(target)
    if several and output.shape == target.shape and not integers and (of_classes or _are_one_hot(target)):
        return Accuracy()
    if choice is None and not unsure:
        if known.outputs == _NUMBERS or hasattr(criterion, "decode"):
            return BoundedR2()
        if not integers and not _look_like_classes(target):
            return BoundedR2()
    name = getattr(criterion, "__name__", type(criterion).__name__)
    raise UserError(
        f"no score is defined for the criterion {name} with outputs {list(output.shape)} and targets "
        f"{list(target.shape)} of {str(target.dtype).removeprefix('torch.')}; name one: score='bounded-r2' for "
        "numbers, score=lambda: Accuracy(threshold=0.0) for labels from logits, 0.5 from probabilities, Accuracy() for "
        "classes"
    )


def _are_one_hot(target: Tensor) -> bool:
    """Whether each row ``[C]`` of ``target`` ``[b, C, ...]`` holds one 1, and 0 otherwise."""
    return bool(((target == 0) | (target == 1)).all()) and _are_probabilities(target)


def _are_probabilities(target: Tensor) -> bool:
    """Whether each row ``[C]`` of ``target`` ``[b, C, ...]`` is a distribution, up to what half precision loses."""
    if target.dim() < 2 or target.shape[1] < 2:
        return False
    return bool((target >= 0).all() and ((target.double().sum(1) - 1).abs() < 1e-2).all())


def _look_like_classes(target: Tensor) -> bool:
    """Whether all targets are 0 and 1, or -1 and 1, or rows of probabilities."""
    binary = ((target == 0) | (target == 1)).all() or (target.abs() == 1).all()
    return bool(binary) or _are_probabilities(target)
