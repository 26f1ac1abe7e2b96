"""The run directory: the unit of truth that reports read and that makes a comparison resumable. Light to import.

Nothing is ever deleted but what an unfinished run of the very same spec has written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import plasticity_cl
from plasticity_cl.errors import UserError
from plasticity_cl.experiments.spec import FORMAT, RunSpec, completed
from plasticity_cl.writing import write_atomically

_FILES = ("spec.json", "status.json", "metrics.csv", "metrics.json", "snapshot.pt", "error.txt")
_OURS = (*_FILES, *(f".{name}*" for name in _FILES), "tensorboard/events.out.tfevents.*")
_OURS += ("pictures/*.png", "pictures/.*.png.*")
"""What runs write into their directories, as patterns. Hidden files are those that were being written."""
_ADVICE = "choose another --out, or move it away"
_LONGEST_NAME = 200


@contextlib.contextmanager
def disk_errors(directory: Path) -> Iterator[None]:
    """Turn what the disk refuses to write below ``directory`` into one clear line.

    Any other error of the operating system passes through: a data file that cannot be read, or one of the user's own.
    """
    # TensorBoard writes in a thread, and raises there what it raises at its next call as well: once is enough.
    hook = threading.excepthook
    threading.excepthook = lambda of: None if issubclass(of.exc_type, OSError) else hook(of)
    try:
        yield
    except OSError as error:
        if not _is_of_writing(error, directory):
            raise
        raise UserError(f"cannot write to {directory}: {error.strerror or error}") from error
    finally:
        threading.excepthook = hook


def _is_of_writing(error: OSError, directory: Path) -> bool:
    # Opening, making and replacing a file name it. Writing to an open one does not, and fails where the disk is full.
    names = [name for name in (error.filename, error.filename2) if isinstance(name, str | bytes | os.PathLike)]
    if names:
        whole = directory.absolute()
        paths = [Path(os.fsdecode(name)).absolute() for name in names]
        return any(path.is_relative_to(whole) or whole.is_relative_to(path) for path in paths)
    if error.errno in (errno.EDQUOT, errno.EFBIG, errno.EROFS):
        return True
    return error.errno == errno.ENOSPC and shutil.disk_usage(_existing(directory)).free < 2**24


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Make a run directory, and keep other commands out of it; the lock goes with the process that holds it.

    Raises:
        UserError: If another command works in it, or it cannot be made.
    """
    import fcntl  # not on Windows, which a report can be made on all the same

    with disk_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another command works in {directory}: wait for it, or choose another --out") from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(descriptor)


def start(directory: Path, spec: RunSpec) -> None:
    """Make the directory ready for a run; what an unfinished run of the same spec wrote into it is removed.

    Raises:
        UserError: If it holds a finished run or anything else, or cannot be written.
    """
    if finished_state(directory, spec) is not None:
        raise UserError(f"{directory} holds a finished run: {_ADVICE}")
    with disk_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        for path in (path for pattern in _OURS for path in directory.glob(pattern)):
            path.unlink()
        for name in ("tensorboard", "pictures"):
            with contextlib.suppress(OSError):  # it is not there, or holds something else
                (directory / name).rmdir()
        _write_spec(directory, spec)


def _write_spec(directory: Path, spec: RunSpec) -> None:
    fields = {"format": FORMAT, **dataclasses.asdict(spec)}
    write_atomically(directory / "spec.json", json.dumps(fields, indent=2) + "\n")


def write_status(
    directory: Path, state: str, score: str, message: str = "", *, forgetting_counts: bool = True, twin: str = ""
) -> None:
    """Say how far the run has come: ``running``, ``done``, ``diverged`` or ``failed``; and how its scores are meant.

    Args:
        directory: The run directory.
        state: How far.
        score: What is scored, in words.
        message: Why it diverged or failed.
        forgetting_counts: Whether what is forgotten is damage.
        twin: On which stream the networks of the common reference are trained, in words, where it is another one.
    """
    status = {
        "state": state,
        "message": message,
        "score": score,
        "forgetting_counts": forgetting_counts,
        "twin": twin,
        "version": plasticity_cl.__version__,
    }
    write_atomically(directory / "status.json", json.dumps(status, indent=2) + "\n")


def write_failure(directory: Path, spec: RunSpec, state: str, trace: str = "") -> None:
    """Write down beside a run that it failed, if there is a place for that.

    Args:
        directory: The run directory, in whatever state the failure left it.
        spec: The run.
        state: ``failed: ...``.
        trace: The traceback, for ``error.txt``.
    """
    with contextlib.suppress(OSError, UserError), locked(directory):
        if finished_state(directory, spec) is None:
            _write_spec(directory, spec)
            if trace:
                write_atomically(directory / "error.txt", trace)
            write_status(directory, "failed", "", state.removeprefix("failed: "))


def finished_state(directory: Path, spec: RunSpec) -> str | None:
    """``done`` or ``diverged`` where the directory holds the finished run of this very spec.

    Returns:
        The state, or ``None`` where there is no such directory, an empty one, or an unfinished run of this spec.

    Raises:
        UserError: If the directory holds anything else: it is not to be touched.
    """
    if not any(directory.glob("*")):
        if directory.exists() and not directory.is_dir():
            raise UserError(f"{directory} is a file, not a folder: {_ADVICE}")
        return None
    saved = _read(directory / "spec.json")
    if saved is None:
        if all(path.match(pattern) for path in directory.iterdir() for pattern in [".spec.json.*"]):
            return None
        raise UserError(f"{directory} holds files that are no results of this run: {_ADVICE}")
    _compare(directory, saved, spec, ())
    state = (_read(directory / "status.json") or {}).get("state")
    return state if state in ("done", "diverged") else None


def diverged_because(directory: Path) -> str:
    """What the status of a run says of it."""
    return str((_read(directory / "status.json") or {}).get("message", ""))


def run_directory(out: Path, spec: RunSpec) -> Path:
    """Where the run of ``spec`` stands in a results folder."""
    return out / folder_name(spec.strategy) / f"seed{spec.seed}"


def folder_name(strategy: str) -> str:
    """The name of the folder of a strategy: its own, without signs that no name of a folder should have.

    Other signs are written as in addresses, %2F for a slash; a name too long for a folder is cut, and told apart by a
    hash.
    """
    name = quote(strategy, safe="=+:,.@-_ ")
    if not name.strip("."):  # a folder's own name for itself, or for the one above
        name = name.replace(".", "%2E")
    if len(name) <= _LONGEST_NAME:
        return name
    return f"{name[: _LONGEST_NAME - 17]}-{hashlib.sha256(strategy.encode()).hexdigest()[:16]}"


def check_out(out: Path, spec: RunSpec) -> None:
    """Refuse a results folder that holds anything but runs of the same comparison, or cannot be written.

    Runs that differ from ``spec`` in strategy and seed alone are of the same comparison: they are kept and added to.

    Raises:
        UserError: If ``out`` is a file or cannot be written, or holds runs with other settings or of another version,
            or files that are no results at all.
    """
    there = _existing(out)
    if not there.is_dir():
        raise UserError(f"{there} is a file, not a folder: {_ADVICE}")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"cannot write to {out}: {there} does not allow it; choose another --out")
    if there != out:
        return
    found = sorted(path.parent for path in out.rglob("spec.json"))
    if not found and not (out / "fresh").is_dir() and any(path.is_file() for path in out.rglob("*")):
        raise UserError(f"{out} holds files that are no results: {_ADVICE}")
    for directory in found:
        saved = _read(directory / "spec.json")
        assert saved is not None
        _compare(directory, saved, spec, ("strategy", "seed"), out)


def _compare(
    directory: Path, saved: dict[str, Any], spec: RunSpec, but_for: tuple[str, ...], out: Path | None = None
) -> None:
    """Refuse a run directory of another version, or whose spec differs from ``spec`` in any other field."""
    folder = out or directory
    found = saved.get("format", 1)
    if found != FORMAT:
        raise UserError(
            f"{folder} holds results of format {found}, and this version writes format {FORMAT}: they can be reported, "
            f"not continued; {_ADVICE}"
        )
    version = (_read(directory / "status.json") or {"version": plasticity_cl.__version__}).get("version")
    if version != plasticity_cl.__version__:
        of = f"version {version}" if version else "an earlier version"
        raise UserError(f"{folder} holds results of {of}, and this is {plasticity_cl.__version__}: {_ADVICE}")
    wanted = dataclasses.asdict(spec)
    # A field that was added since has its default there.
    there = completed({name: value for name, value in saved.items() if name != "format"})
    for name, value in there.items():
        if name not in but_for and (name not in wanted or value != wanted[name]):
            here = f"not {wanted[name]}" if name in wanted else "and is nothing here"
            raise UserError(f"{folder} holds other results ({name} is {value} there, {here}): {_ADVICE}")


def _read(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; ``None`` where there is no such file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not one of ours: {_ADVICE}")
    return content


def _existing(path: Path) -> Path:
    """The path itself, or the nearest folder above it that is there."""
    return next((parent for parent in (path, *path.absolute().parents) if os.path.lexists(parent)), Path("/"))
