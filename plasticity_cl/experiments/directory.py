"""The run directory: the unit of truth that reports read and that makes a comparison resumable. Light to import."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from plasticity_cl.errors import UserError
from plasticity_cl.experiments.spec import RunSpec


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that no reader ever sees half of it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def disk_errors(directory: Path) -> Iterator[None]:
    """Turn what the disk refuses into one clear line."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write to {directory}: {error.strerror or error}") from error


def start(directory: Path, spec: RunSpec) -> None:
    """Make the directory anew for a run; what an unfinished run left in it is removed."""
    with disk_errors(directory):
        if directory.exists():
            shutil.rmtree(directory)
        directory.mkdir(parents=True)
        write_atomically(directory / "spec.json", json.dumps(dataclasses.asdict(spec), indent=2) + "\n")


def write_status(directory: Path, state: str, score: str, message: str = "", *, forgetting_counts: bool = True) -> None:
    """Say how far the run has come: ``running``, ``done``, ``diverged`` or ``failed``; and how its scores are meant."""
    status = {"state": state, "message": message, "score": score, "forgetting_counts": forgetting_counts}
    write_atomically(directory / "status.json", json.dumps(status, indent=2) + "\n")


def finished_state(directory: Path, spec: RunSpec) -> str | None:
    """``done`` or ``diverged`` where the directory holds the finished run of this very spec, otherwise ``None``."""
    try:
        saved = json.loads((directory / "spec.json").read_text(encoding="utf-8"))
        state = json.loads((directory / "status.json").read_text(encoding="utf-8")).get("state")
    except (OSError, ValueError):
        return None
    return state if saved == dataclasses.asdict(spec) and state in ("done", "diverged") else None


def run_directory(out: Path, spec: RunSpec) -> Path:
    """Where the run of ``spec`` stands in a results folder."""
    return out / spec.strategy / f"seed{spec.seed}"


def check_out(out: Path, spec: RunSpec) -> None:
    """Refuse a results folder that holds anything but runs of the same comparison.

    Runs that differ from ``spec`` in strategy and seed alone are of the same comparison: they are kept and added to.

    Raises:
        UserError: If ``out`` is a file, holds runs with other settings, or files that are no results at all.
    """
    if not out.exists():
        return
    advice = "choose another --out, or remove it"
    if not out.is_dir():
        raise UserError(f"{out} is a file, not a folder: {advice}")
    found = sorted(path.parent for path in out.rglob("spec.json"))
    if not found and any(out.iterdir()) and not (out / "fresh").is_dir():
        raise UserError(f"{out} holds files that are no results: {advice}")
    for directory in found:
        try:
            saved = json.loads((directory / "spec.json").read_text(encoding="utf-8"))
        except ValueError:
            continue
        for name, wanted in dataclasses.asdict(spec).items():
            if name not in ("strategy", "seed") and saved.get(name) != wanted:
                there = saved.get(name)
                raise UserError(f"{out} holds other results ({name} is {there} there, not {wanted}): {advice}")
