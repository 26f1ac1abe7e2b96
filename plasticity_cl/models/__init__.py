"""Networks by name, and surgery that puts a normalisation before every nonlinearity of a network."""

from plasticity_cl.models.build import MODELS, make_model
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
