"""Seeds derived from names, and a guard that gives every random number generator its state back."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def derive_seed(*parts: int | str) -> int:
    """Derive a 63-bit seed from a root seed and names, the same on every machine.

    Streams, initialisations and batch orders draw from seeds of their own, so that asking for one thing more, or in
    another order, never moves the others.

    Args:
        *parts: The root seed and whatever tells the uses apart, for instance ``derive_seed(0, "labels", 17)``.

    Returns:
        A seed for ``torch.Generator.manual_seed``.
    """
    digest = hashlib.sha256("\x1f".join(f"{type(part).__name__}:{part}" for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """Make a CPU generator seeded by :func:`derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(*parts))


def rng_state() -> Any:
    """The state of Python's, NumPy's and torch's global generators (CPU and every CUDA device in use)."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda


def restore_rng(state: Any) -> None:
    """Give the generators a state that :func:`rng_state` took."""
    python, numpy, cpu, cuda = state
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(cpu)
    if cuda is not None:
        torch.cuda.set_rng_state_all(cuda)


@contextmanager
def preserve_rng() -> Iterator[None]:
    """Give the global generators their state back afterwards, see :func:`rng_state`."""
    state = rng_state()
    try:
        yield
    finally:
        restore_rng(state)
