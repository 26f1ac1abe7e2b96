"""A small convolutional network."""

from __future__ import annotations

from torch import Tensor, nn

from plasticity_cl.errors import UserError
from plasticity_cl.models.layers import Activation, Normalization, image_shape, normalized_activation
from plasticity_cl.parts.values import Count, limit


class CNN(nn.Module):
    """Stages of 3x3 convolution, activation and 2x2 max-pooling, then a dense hidden layer. Initialised as torch does.

    Stage i has ``width * 2**i`` channels and halves the sides of the image; the hidden layer has ``4 * width`` units.

    Args:
        input_shape: Channels, height and width of an image; each stage needs to halve both sides.
        n_outputs: Number of outputs.
        width: Channels of the first stage.
        depth: Number of stages.
        activation: One of ``ACTIVATIONS``.
        normalization: One of ``NORMALIZATIONS``, put before each activation, or ``None``.

    Raises:
        UserError: The image is too small for that many stages.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        n_outputs: int,
        *,
        width: Count = 32,
        depth: Count = 2,
        activation: Activation = "relu",
        normalization: Normalization | None = None,
    ) -> None:
        super().__init__()
        limit(Count, "width", width)
        limit(Count, "depth", depth)
        channels, height, side = image_shape("cnn", input_shape)
        if min(height, side) < 2**depth:
            raise UserError(
                f"{depth} stages of the cnn need images of at least {2**depth} x {2**depth}, got {height} x {side}; "
                "use a smaller depth"
            )
        layers: list[nn.Module] = []
        for stage in range(depth):
            n_out = width * 2**stage
            layers += [
                nn.Conv2d(channels, n_out, 3, padding=1),
                *normalized_activation(activation, normalization, n_out, spatial_dims=2),
                nn.MaxPool2d(2),
            ]
            channels = n_out
        self.features = nn.Sequential(*layers)
        hidden = 4 * width
        n_features = channels * (height >> depth) * (side >> depth)
        self.hidden = nn.Sequential(
            nn.Linear(n_features, hidden), *normalized_activation(activation, normalization, hidden)
        )
        self.output = nn.Linear(hidden, n_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [N, channels, height, width] to [N, n_outputs]."""
        return self.output(self.hidden(self.features(x).flatten(1)))  # type: ignore[no-any-return]
