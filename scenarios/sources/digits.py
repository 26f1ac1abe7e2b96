"""Digits that come with scikit-learn: real images that need no download."""

from __future__ import annotations

import torch

from plasticity_cl.scenarios.sources.source import Source, standardised


def digits() -> Source:
    """Read scikit-learn's 1797 handwritten digits, 1 x 8 x 8 with 17 levels of grey: 1437 to train, 360 to test.

    Both splits are in a fixed random order in which every run of images from the start holds as many of each class, to
    within one, while they last.
    """
    from sklearn.datasets import load_digits  # scikit-learn takes a second to import

    bundled = load_digits()
    inputs = torch.from_numpy(bundled.images).unsqueeze(1)
    labels = torch.from_numpy(bundled.target).long()
    return standardised("digits", inputs, labels, n_test=360)
