"""What counts as a nonlinearity: the one table that networks, surgery on them and diagnostics of units go by."""

from __future__ import annotations

from torch import nn

NONLINEARITIES: dict[type[nn.Module], tuple[str, ...]] = {
    nn.ReLU: ("relu",),
    nn.ReLU6: ("relu6",),
    nn.LeakyReLU: ("leaky_relu",),
    nn.PReLU: ("prelu",),
    nn.RReLU: ("rrelu",),
    nn.ELU: ("elu",),
    nn.CELU: ("celu",),
    nn.SELU: ("selu",),
    nn.GELU: ("gelu",),
    nn.SiLU: ("silu",),
    nn.Mish: ("mish",),
    nn.GLU: ("glu",),
    nn.Tanh: ("tanh",),
    nn.Hardtanh: ("hardtanh",),
    nn.Hardswish: ("hardswish",),
    nn.Softplus: ("softplus",),
    nn.Softsign: ("softsign",),
    nn.Softshrink: ("softshrink",),
    nn.Hardshrink: ("hardshrink",),
    nn.Tanhshrink: ("tanhshrink",),
    nn.Threshold: ("threshold",),
    nn.LogSigmoid: ("logsigmoid", "log_sigmoid"),
    nn.Sigmoid: ("sigmoid", "expit", "special_expit"),
    nn.Hardsigmoid: ("hardsigmoid",),
}
"""What counts as a nonlinearity: the module, and the names of its functions and methods (in place: with ``_`` added).

Softmax does not count, nor do maximum pooling and arithmetic. ``insert_normalization`` says when sigmoids do."""

FUNCTIONS = {function: module for module, functions in NONLINEARITIES.items() for function in functions}
"""The same the other way round: from the name of a function to the module."""

SIGMOIDS = (nn.Sigmoid, nn.Hardsigmoid)

ACTIVATIONS: dict[str, type[nn.Module]] = {
    name: FUNCTIONS[name] for name in ("relu", "leaky_relu", "gelu", "tanh", "silu")
}
"""The activations that networks can be made with, by name."""
