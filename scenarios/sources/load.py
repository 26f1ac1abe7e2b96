"""A source by name."""

from __future__ import annotations

from pathlib import Path

from plasticity_cl.scenarios.catalogue import SOURCES
from plasticity_cl.scenarios.sources.source import Source


def load_source(name: str, *, data_root: Path | str | None = None, download: bool = False) -> Source:
    """Load a data set by name. Nothing is fetched from the network unless ``download`` is true.

    Args:
        name: One of :data:`~plasticity_cl.scenarios.catalogue.SOURCES`, with its options: ``"digits"``,
            ``"image-folder=photos"``, or the dotted path of a function that returns a :class:`Source`.
        data_root: Folder of published data sets. By default what ``PLASTICITY_CL_DATA`` names, or else
            ``~/.cache/plasticity-cl``.
        download: Fetch what is missing into ``data_root``.

    Returns:
        The source.

    Raises:
        UserError: For an unknown name, and for files that are missing, broken or could not be fetched.
    """
    source: Source = SOURCES.make(name, data_root=data_root, download=download)
    return source
