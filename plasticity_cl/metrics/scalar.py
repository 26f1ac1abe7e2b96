"""What every metric here gives to Avalanche's loggers."""

from __future__ import annotations

from typing import Any

from avalanche.evaluation.metric_results import AlternativeValues, MetricValue, TensorImage
from PIL.Image import Image
from torch import Tensor


class Scalar(MetricValue):  # type: ignore[misc]
    """A metric value that also says, field by field, what its name says in one string.

    The name is ``group/metric``, ``group/metric/stream`` or ``group/metric/layer``, which TensorBoard groups by its
    first part; the position on the horizontal axis is the number of the experience.

    Args:
        origin: The metric that emits it.
        group: ``plasticity``, ``forgetting``, ``units``, ...
        metric: What it is, one name for one concept.
        value: The value; a Python float, since loggers drop other numbers.
        experience: The experience it belongs to, from 0.
        stream: ``train`` or ``test``, where it is measured on a stream.
        layer: The layer's name, where it is of one layer; it takes the place of the stream in the name.
    """

    def __init__(
        self, origin: Any, group: str, metric: str, value: float, experience: int, *, stream: str = "", layer: str = ""
    ) -> None:
        name = "/".join(part for part in (group, metric, layer or stream) if part)
        super().__init__(origin, name, float(value), experience)
        self.metric, self.stream, self.layer = metric, stream, layer


class Shown(AlternativeValues, TensorImage):  # type: ignore[misc]
    """An image, or a tensor for a histogram, for loggers that can show it.

    TensorBoard's and wandb's loggers choose what they can show of alternative values. Those that print everything as
    text print no ``TensorImage``: a page of numbers, or the name of an object, says nothing to anybody.

    Args:
        value: What is to be shown.
    """

    def __init__(self, value: Image | Tensor) -> None:
        super().__init__(value)
        self.image = value

    def __repr__(self) -> str:
        return "an image" if isinstance(self.image, Image) else f"a histogram of {self.image.numel()} values"
