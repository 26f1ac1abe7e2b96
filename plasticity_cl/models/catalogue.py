"""Every network by name. Light to import: torch is loaded when one is made.

A new one is a file beside the others and a line here: a class or function of ``input_shape`` (one input, without the
batch), ``n_outputs`` and its options, of which either of the first two may be missing. The global generators are seeded
while it is made, so that its initial weights depend on the seed alone.
"""

from __future__ import annotations

from plasticity_cl.parts import Catalogue, Entry

_HERE = "plasticity_cl.models"
_IMAGENET = f"{_HERE}.imagenet_resnet:make_imagenet_resnet"

MODELS = Catalogue(
    "network",
    "models",
    {
        "mlp": Entry(f"{_HERE}.mlp:MLP", "multilayer perceptron; images are flattened"),
        "cnn": Entry(f"{_HERE}.cnn:CNN", "stages of convolution and pooling, then a hidden layer"),
        "resnet18": Entry(f"{_HERE}.resnet:ResNet18", "ResNet-18 with the stem for small images"),
        "vit": Entry(f"{_HERE}.vit:ViT", "a small vision transformer"),
        "imagenet-resnet18": Entry(_IMAGENET, "torchvision's ResNet-18", {"name": "imagenet-resnet18"}),
        "imagenet-resnet50": Entry(_IMAGENET, "torchvision's ResNet-50", {"name": "imagenet-resnet50"}),
    },
    given=("input_shape", "n_outputs", "seed"),
)
