"""Parts by name: one grammar, options read from a part's own constructor, and strangers' parts. Light to import."""

from plasticity_cl.parts.catalogue import Catalogue, Chosen, Entry, facts

__all__ = ["Catalogue", "Chosen", "Entry", "facts"]
