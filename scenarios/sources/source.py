"""What a stream is made of: images and labels in memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from plasticity_cl.errors import UserError
from plasticity_cl.images import to_float
from plasticity_cl.seeding import generator


@dataclass(frozen=True, eq=False)
class Source:
    """Images and labels of one data set, in memory, to be shared by everything that reads them and changed by nothing.

    Args:
        name: What it is called in messages.
        train_inputs: ``[n, C, H, W]``: float32, already standardised, or uint8 as published, for :func:`to_float`.
        train_labels: int64 ``[n]``, in ``0 .. n_classes - 1``.
        test_inputs: As ``train_inputs``, of the published test split.
        test_labels: As ``train_labels``.
        n_classes: Number of classes.
        mean: Per channel, the training images' mean in units of ``[0, 1]``; empty where the inputs are float32.
        std: Per channel, their standard deviation; empty where the inputs are float32.

    Raises:
        UserError: Where these do not fit each other.
    """

    name: str
    train_inputs: Tensor
    train_labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor
    n_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        for split in ("train", "test"):
            inputs, labels = getattr(self, f"{split}_inputs"), getattr(self, f"{split}_labels")
            if inputs.dim() != 4 or inputs.shape[1:] != self.train_inputs.shape[1:]:
                raise UserError(f"{split} images of {self.name!r} must be [n, C, H, W], got {list(inputs.shape)}")
            if labels.shape != inputs.shape[:1] or len(labels) == 0:
                raise UserError(
                    f"{split} images of {self.name!r} need a label each, got images {list(inputs.shape)} "
                    f"and labels {list(labels.shape)}"
                )
            if labels.dtype != torch.int64 or not 0 <= int(labels.min()) <= int(labels.max()) < self.n_classes:
                raise UserError(f"{split} labels of {self.name!r} must be int64 in 0 .. {self.n_classes - 1}")
            to_float(inputs[:1], self.mean, self.std)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of one image, (C, H, W)."""
        channels, height, width = self.train_inputs.shape[1:]
        return channels, height, width


def standardised(name: str, inputs: Tensor, labels: Tensor, n_test: int) -> Source:
    """Split float64 images, test first, in a fixed balanced order, and standardise both by the training images."""
    draws = generator(0, name, "order")
    order = torch.randperm(len(labels), generator=draws)
    # The rank of each image among those of its class, in that order; each rank holds one image of each class.
    rank = torch.nn.functional.one_hot(labels[order]).cumsum(0).gather(1, labels[order, None]).squeeze(1)
    order = order[(rank + torch.rand(len(labels), generator=draws, dtype=torch.float64)).argsort()]
    inputs, labels = inputs[order], labels[order]
    train = inputs[n_test:]
    inputs = ((inputs - train.mean()) / train.std(correction=0)).float()
    return Source(
        name=name,
        train_inputs=inputs[n_test:],
        train_labels=labels[n_test:],
        test_inputs=inputs[:n_test],
        test_labels=labels[:n_test],
        n_classes=int(labels.max()) + 1,
        mean=(),
        std=(),
    )


def channel_constants(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, in units of ``[0, 1]``, of uint8 images ``[n, C, H, W]``.

    A channel that is the same everywhere has a standard deviation of 1.
    """
    values = images.transpose(0, 1).flatten(1)
    counts = torch.stack([channel.bincount(minlength=256) for channel in values.long()]).double()
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean = (counts @ levels) / counts.sum(1)
    variance = (counts * (levels - mean[:, None]).square()).sum(1) / counts.sum(1)
    std = torch.where(variance > 0, variance.sqrt(), 1.0)
    return tuple(mean.tolist()), tuple(std.tolist())
