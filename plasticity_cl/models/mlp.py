"""The multilayer perceptron."""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor, nn

from plasticity_cl.models.layers import Activation, Normalization, normalized_activation
from plasticity_cl.parts.values import Count, limit


class MLP(nn.Module):
    """Hidden layers of equal width; an image is flattened. Initialised as torch does.

    Args:
        input_shape: Shape of one input, of any number of dimensions.
        n_outputs: Number of outputs.
        width: Units of each hidden layer.
        depth: Number of hidden layers.
        activation: One of ``ACTIVATIONS``.
        normalization: One of ``NORMALIZATIONS``, put between each hidden layer and its activation, or ``None``.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        n_outputs: int,
        *,
        width: Count = 128,
        depth: Count = 3,
        activation: Activation = "relu",
        normalization: Normalization | None = None,
    ) -> None:
        super().__init__()
        limit(Count, "width", width)
        limit(Count, "depth", depth)
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise([math.prod(input_shape)] + [width] * depth):
            layers += [nn.Linear(n_in, n_out), *normalized_activation(activation, normalization, n_out)]
        self.hidden = nn.Sequential(*layers)
        self.output = nn.Linear(width, n_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [N, *input_shape] to [N, n_outputs]."""
        return self.output(self.hidden(x.flatten(1)))  # type: ignore[no-any-return]
