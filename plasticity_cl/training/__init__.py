"""The training loop: Avalanche's supervised template, fast on streams that are kept in memory."""

from typing import TYPE_CHECKING

from plasticity_cl.lazy import lazy_names

if TYPE_CHECKING:
    from plasticity_cl.training.augmentation import CropFlip, random_crop, random_flip
    from plasticity_cl.training.in_memory import InMemoryExperience, Samples, SamplesLoader, samples_of
    from plasticity_cl.training.learner import Learner, criterion_of
    from plasticity_cl.training.loader import DeviceLoader
    from plasticity_cl.training.snapshot import restore, snapshot_of
    from plasticity_cl.training.template import SupervisedTemplate

__all__ = [
    "CropFlip",
    "DeviceLoader",
    "InMemoryExperience",
    "Learner",
    "Samples",
    "SamplesLoader",
    "SupervisedTemplate",
    "criterion_of",
    "random_crop",
    "random_flip",
    "restore",
    "samples_of",
    "snapshot_of",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        **dict.fromkeys(("CropFlip", "random_crop", "random_flip"), "augmentation"),
        **dict.fromkeys(("InMemoryExperience", "Samples", "SamplesLoader", "samples_of"), "in_memory"),
        **dict.fromkeys(("Learner", "criterion_of"), "learner"),
        **dict.fromkeys(("restore", "snapshot_of"), "snapshot"),
        "DeviceLoader": "loader",
        "SupervisedTemplate": "template",
    },
)
