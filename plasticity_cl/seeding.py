"""Seeds derived from names, and a guard that gives every random number generator its state back."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

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


@contextmanager
def preserve_rng() -> Iterator[None]:
    """Give Python's, NumPy's and torch's global generators (CPU and every CUDA device in use) their state back."""
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
        if cuda_states is not None:
            torch.cuda.set_rng_state_all(cuda_states)
