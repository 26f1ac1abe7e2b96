"""The pictures of a run: what its metrics drew, one file each, for the report."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avalanche.evaluation.metric_results import AlternativeValues, MetricValue
from avalanche.logging import BaseLogger
from PIL.Image import Image

from plasticity_cl.writing import write_atomically


class PictureLogger(BaseLogger):  # type: ignore[misc]
    """Writes every image that a metric emits as ``NAME-EXPERIENCE.png``, the name without its group.

    Args:
        directory: The folder; made when there is something to write.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self._directory = directory

    def log_metrics(self, metric_values: list[MetricValue]) -> None:
        """Write the images; other values are none."""
        for value in metric_values:
            shown = value.value
            image = shown.best_supported_value(Image) if isinstance(shown, AlternativeValues) else shown
            if isinstance(image, Image):
                self._directory.mkdir(exist_ok=True)
                name = value.name.rpartition("/")[2]
                buffer = io.BytesIO()
                image.save(buffer, format="PNG")
                write_atomically(self._directory / f"{name}-{value.x_plot:04d}.png", buffer.getvalue())

    def state_dict(self) -> dict[str, Any]:
        """Nothing: a picture that is drawn again takes the place of the one before."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state, which says nothing."""
