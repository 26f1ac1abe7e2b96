"""The training loop: Avalanche's supervised template, fast on streams that are kept in memory."""

from typing import TYPE_CHECKING

from plasticity_cl.lazy import lazy_names

if TYPE_CHECKING:
    from plasticity_cl.training.augmentation import CropFlip, random_crop, random_flip
    from plasticity_cl.training.in_memory import InMemoryExperience, Samples, SamplesLoader, samples_of
    from plasticity_cl.training.template import SupervisedTemplate

__all__ = [
    "CropFlip",
    "InMemoryExperience",
    "Samples",
    "SamplesLoader",
    "SupervisedTemplate",
    "random_crop",
    "random_flip",
    "samples_of",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        **dict.fromkeys(("CropFlip", "random_crop", "random_flip"), "augmentation"),
        **dict.fromkeys(("InMemoryExperience", "Samples", "SamplesLoader", "samples_of"), "in_memory"),
        "SupervisedTemplate": "template",
    },
)
