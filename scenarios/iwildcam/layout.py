"""The published layout of iWildCam: what must be where. Light to import, to say so at once when it is not."""

from __future__ import annotations

from pathlib import Path

from plasticity_cl.errors import UserError
from plasticity_cl.scenarios.files import data_folder

VERSION = "2.0"
FOLDER = f"iwildcam_v{VERSION}"

SPLITS = ("train", "val", "test", "id_val", "id_test")
"""The splits of WILDS: ``val`` and ``test`` are at locations of their own, ``id_val`` and ``id_test`` at those of
``train``, on days of their own."""

LAYOUT = f"""\
ROOT/
  {FOLDER}/
    RELEASE_v{VERSION}.txt
    metadata.csv                 203,029 rows: split, location, sequence, class, date, file of each image
    categories.csv               the names of the 182 classes
    train/<image id>.jpg         all images, of every split, about 12 GB
"""
"""The published layout, for those who have to put it there."""


def check_wilds(data_root: str | Path | None, download: bool) -> None:
    """Check that the published data set is in the data folder; it is never fetched.

    Raises:
        UserError: If it is not.
    """
    check_present(data_folder(data_root))


def check_present(root: Path) -> Path:
    """Find the data set.

    Args:
        root: The folder that must hold it.

    Returns:
        Its own folder.

    Raises:
        UserError: If it is not there, or in another version.
    """
    folder = root / FOLDER
    missing = [name for name in (f"RELEASE_v{VERSION}.txt", "metadata.csv") if not (folder / name).is_file()]
    if missing:
        others = [*sorted(root.glob("iwildcam_v*")), *sorted(folder.glob("RELEASE_v*.txt"))]
        found = f", only {', '.join(p.name for p in others if p != folder)}" if set(others) - {folder} else ""
        raise UserError(
            f"no WILDS iWildCam v{VERSION} in {root}: {FOLDER}/{missing[0]} is not there{found}; fetch it as WILDS "
            "publishes it (about 12 GB, licence CDLA-Permissive-1.0) and give the folder that holds "
            f"{FOLDER}/"
        )
    return folder
