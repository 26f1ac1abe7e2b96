"""Random crop and flip of whole batches, so that training with augmentation stays as fast as without."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from plasticity_cl.errors import UserError


def crop(images: Tensor, top: Tensor, left: Tensor, padding: int, fill: float | Tensor = 0.0) -> Tensor:
    """Pad each image on all sides and cut a window of its old size out of it.

    Args:
        images: ``[b, C, H, W]``, uint8 or floating point.
        top: ``[b]`` int64 in ``0 .. 2 * padding``, the first row of each window.
        left: ``[b]`` int64 in the same range, its first column.
        padding: Pixels added on each side.
        fill: The value of the new pixels; or ``[C, 1, 1]``, one for each channel.

    Returns:
        ``[b, C, H, W]`` of the same kind.
    """
    height, width = images.shape[-2:]
    if isinstance(fill, Tensor):
        rows, columns = height + 2 * padding, width + 2 * padding
        padded = fill.to(images).expand(len(images), images.shape[1], rows, columns).contiguous()
        padded[..., padding : padding + height, padding : padding + width] = images
    else:
        padded = F.pad(images, [padding] * 4, value=fill)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(len(images), device=images.device), :, top, left]


def flip(images: Tensor, which: Tensor) -> Tensor:
    """Mirror some images left to right.

    Args:
        images: ``[b, C, H, W]``.
        which: ``[b]`` bool.
    """
    return torch.where(which.view(-1, 1, 1, 1), images.flip(3), images)


def random_crop(
    images: Tensor, padding: int = 4, *, fill: float | Tensor = 0.0, generator: torch.Generator | None = None
) -> Tensor:
    """:func:`crop` at places drawn uniformly, for each image its own; what torchvision's ``RandomCrop`` does to one.

    Args:
        images: ``[b, C, H, W]``.
        padding: Pixels added on each side.
        fill: The value of the new pixels.
        generator: A CPU generator; torch's global one when ``None``.
    """
    top, left, _ = CropFlip(padding, 0.0).draw(len(images), generator).to(images.device).unbind(1)
    return crop(images, top, left, padding, fill)


def random_flip(images: Tensor, probability: float = 0.5, *, generator: torch.Generator | None = None) -> Tensor:
    """:func:`flip` of each image with a probability of its own; what torchvision's ``RandomHorizontalFlip`` does.

    Args:
        images: ``[b, C, H, W]``.
        probability: Of a flip.
        generator: A CPU generator; torch's global one when ``None``.
    """
    which = CropFlip(0, probability).draw(len(images), generator)[:, 2]
    return flip(images, which.to(images.device, torch.bool))


@dataclass(frozen=True)
class CropFlip:
    """Random crop, then random horizontal flip: the usual augmentation of CIFAR.

    Give it to :class:`~plasticity_cl.training.Samples`; training then sees augmented images, evaluation never does.

    Args:
        padding: Pixels added on each side before the crop.
        probability: Of a flip.
        fill: The value of the new pixels, in the units in which the images are stored.

    Raises:
        UserError: If the padding is negative, or the probability is none.
    """

    padding: int = 4
    probability: float = 0.5
    fill: float = 0.0

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise UserError(f"padding is {self.padding}: it must be 0 or more pixels")
        if not 0 <= self.probability <= 1:
            raise UserError(f"probability is {self.probability}: it must be between 0 and 1")

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw what happens to ``n`` images.

        Args:
            n: How many.
            generator: A CPU generator; torch's global one when ``None``.

        Returns:
            ``[n, 3]`` int64: first row and first column of the crop, and 1 where the image is flipped.
        """
        corner = torch.randint(2 * self.padding + 1, (n, 2), generator=generator)
        flipped = torch.rand(n, 1, generator=generator) < self.probability
        return torch.cat([corner, flipped], 1)

    def apply(self, images: Tensor, drawn: Tensor, fill: float | Tensor | None = None) -> Tensor:
        """Augment images as it was drawn.

        Args:
            images: ``[b, C, H, W]``, uint8 or floating point.
            drawn: ``[b, 3]``, of :meth:`draw`, on the device of the images.
            fill: Instead of ``self.fill``, for images in other units than the stored ones.
        """
        top, left, flipped = drawn.unbind(1)
        cropped = crop(images, top, left, self.padding, self.fill if fill is None else fill)
        return flip(cropped, flipped.bool())

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw and apply: ``[b, C, H, W]`` to the same."""
        return self.apply(images, self.draw(len(images), generator).to(images.device))
