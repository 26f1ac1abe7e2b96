"""Files and folders that are whole or not there at all, whatever ends the process that writes them. Light to import."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path beside ``path`` to write a file or a folder at; it takes the place of ``path`` when all is written.

    Where writing fails, ``path`` stays as it was, and what was written is removed.

    Args:
        path: The file; or the folder, which must not be there yet or be empty.

    Returns:
        The path to write at, hidden and of this process alone.

    Raises:
        OSError: What the body or the replacing raises; an error of the operating system names a file, if only
            ``path``.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        if error.errno is not None:  # without a number it is a text alone, which a file name would hide
            error.filename = error.filename or str(path)  # writing to an open file names none
        raise
    finally:
        with contextlib.suppress(OSError):
            if partial.is_dir():
                shutil.rmtree(partial)
            else:
                partial.unlink(missing_ok=True)


def write_atomically(path: Path, data: str | bytes, *, durable: bool = False) -> None:
    """Write a file so that no reader ever sees half of it; text as UTF-8.

    Args:
        path: The file, replaced if it is there.
        data: All of its content.
        durable: Wait until the content has reached the disk, so that not even a power cut leaves half of it.

    Raises:
        OSError: If it cannot be written; it names a file.
    """
    with replacing(path) as partial, partial.open("wb") as file:
        file.write(data.encode() if isinstance(data, str) else data)
        if durable:
            file.flush()
            os.fsync(file.fileno())
