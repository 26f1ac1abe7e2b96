"""Every optimizer by name. Light to import: torch is loaded when one is made.

A new one is a file and a line here: a class of ``params`` and its options.
"""

from __future__ import annotations

from plasticity_cl.parts import Catalogue, Entry

# One kernel for all parameters: of a small network's step, the loop over them is the longest part.
_FUSED = {"fused": True}

OPTIMIZERS = Catalogue(
    "optimizer",
    "optimizers",
    {
        "adam": Entry("torch.optim.adam:Adam", "PyTorch's Adam", _FUSED),
        "adamw": Entry("torch.optim.adamw:AdamW", "PyTorch's AdamW", _FUSED),
        "sgd": Entry("torch.optim.sgd:SGD", "PyTorch's SGD", _FUSED),
    },
    given=("params",),
)
