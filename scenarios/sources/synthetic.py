"""Clusters that are generated: the lightest source of all."""

from __future__ import annotations

import torch

from plasticity_cl.scenarios.sources.source import Source, standardised
from plasticity_cl.seeding import generator


def synthetic() -> Source:
    """Draw ten Gaussian clusters as 1 x 8 x 8 images: 2000 to train, 500 to test.

    Centres are N(0, 1/4) and noise is N(0, 1) per pixel, so that the best possible test accuracy is about 0.95. Drawn
    in float64 and rounded to float32, which hides the last bits in which machines differ.
    """
    draws = generator(0, "synthetic")
    labels = torch.arange(2500) % 10
    centres = 0.5 * torch.randn(10, 1, 8, 8, generator=draws, dtype=torch.float64)
    inputs = centres[labels] + torch.randn(2500, 1, 8, 8, generator=draws, dtype=torch.float64)
    return standardised("synthetic", inputs, labels, n_test=500)
