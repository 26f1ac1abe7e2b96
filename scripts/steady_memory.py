"""For the benchmarks: memory that does not come and go."""

import contextlib
import ctypes


def keep_memory() -> None:
    """Have the C library keep what it frees.

    Left to itself it gives large blocks back to the system at some moments and not at others, and faulting them in
    again costs a step of a small CNN anything between nothing and a third, whoever takes it.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL("libc.so.6")
        trim_threshold, mmap_threshold = -1, -3
        library.mallopt(mmap_threshold, 1 << 30)
        library.mallopt(trim_threshold, 1 << 30)
