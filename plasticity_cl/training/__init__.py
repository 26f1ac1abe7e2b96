"""The training loop: Avalanche's supervised template, fast on streams that are kept in memory."""

from plasticity_cl.training.in_memory import InMemoryExperience, Samples, SamplesLoader, samples_of
from plasticity_cl.training.template import SupervisedTemplate

__all__ = ["InMemoryExperience", "Samples", "SamplesLoader", "SupervisedTemplate", "samples_of"]
