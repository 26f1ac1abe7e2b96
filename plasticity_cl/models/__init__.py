"""Networks by name, and surgery that puts a normalisation before every nonlinearity of a network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plasticity_cl.lazy import lazy_names

if TYPE_CHECKING:
    from plasticity_cl.models.build import make_model
    from plasticity_cl.models.catalogue import MODELS
    from plasticity_cl.models.layers import NORMALIZATIONS, make_activation, make_normalization
    from plasticity_cl.models.nonlinearities import ACTIVATIONS, NONLINEARITIES
    from plasticity_cl.models.surgery import insert_normalization

__all__ = [
    "ACTIVATIONS",
    "MODELS",
    "NONLINEARITIES",
    "NORMALIZATIONS",
    "insert_normalization",
    "make_activation",
    "make_model",
    "make_normalization",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "MODELS": "catalogue",
        "make_model": "build",
        **dict.fromkeys(("ACTIVATIONS", "NONLINEARITIES"), "nonlinearities"),
        "insert_normalization": "surgery",
        **dict.fromkeys(("NORMALIZATIONS", "make_activation", "make_normalization"), "layers"),
    },
)
