"""The names of networks and their parts, to be checked or listed without torch. A test holds them to the real ones."""

from __future__ import annotations

NETWORKS = ("mlp", "cnn", "resnet18", "vit")
IMAGENET_NETWORKS = ("imagenet-resnet18", "imagenet-resnet50")
"""torchvision's."""
ACTIVATIONS = ("relu", "leaky_relu", "gelu", "tanh", "silu")
NORMALIZATIONS = ("layer", "batch", "rms", "group")
