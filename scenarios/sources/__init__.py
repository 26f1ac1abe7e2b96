"""Where the images come from: bundled, generated, published, or the user's own; one file each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plasticity_cl.lazy import lazy_names

if TYPE_CHECKING:
    from plasticity_cl.scenarios.sources.load import load_source
    from plasticity_cl.scenarios.sources.source import Source

__all__ = ["Source", "load_source"]

__getattr__, __dir__ = lazy_names(__name__, {"Source": "source", "load_source": "load"})
