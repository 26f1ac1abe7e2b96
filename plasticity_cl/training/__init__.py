"""The training loop: Avalanche's supervised template, fast on streams that are kept in memory."""

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
