"""The two sources of camera-trap pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from plasticity_cl.scenarios.files import data_folder
from plasticity_cl.scenarios.iwildcam.camera_traps import write_camera_traps


@dataclass(frozen=True)
class CameraTraps:
    """A data set of camera traps on disk.

    Args:
        root: The folder that holds ``iwildcam_v2.0``.
        cache: The folder for decoded images.
    """

    root: Path
    cache: Path


def wilds(*, data_root: str | Path | None = None) -> CameraTraps:
    """WILDS iWildCam v2.0 as published, in the data folder.

    Args:
        data_root: The folder that holds ``iwildcam_v2.0``.
    """
    folder = data_folder(data_root)
    return CameraTraps(folder, folder / "images")


def camera_traps(*, data_root: str | Path | None = None) -> CameraTraps:
    """A small synthetic data set in the same format, written below the data folder if it is not there yet.

    Args:
        data_root: The data folder.

    Raises:
        UserError: If it cannot be written.
    """
    folder = data_folder(data_root)
    return CameraTraps(write_camera_traps(folder / "camera-traps-v1"), folder / "images")
