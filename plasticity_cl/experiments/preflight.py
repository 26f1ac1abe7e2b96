"""What this machine lacks for a run, found out before torch is imported, which takes longer than any answer may."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from plasticity_cl.errors import UserError, unknown_name
from plasticity_cl.experiments.spec import Machine, RunSpec
from plasticity_cl.scenarios.catalogue import SOURCES, check_present

_DEVICE_FILES: Mapping[str, tuple[str, ...]] = {
    # NVIDIA's driver, its small boards, Windows' Linux, and AMD's driver, whose devices torch calls cuda, too.
    "cuda": ("nvidia*", "nvhost*", "nvgpu*", "dxg", "kfd"),
    "xpu": ("dri/render*", "dxg"),
}
"""What a Linux kernel has in /dev where there is a driver for such a device."""


def check_needs(spec: RunSpec, machine: Machine) -> None:
    """Check that a run finds its device and its data set here, as far as can be told without torch.

    Raises:
        UserError: For the first that it does not find.
    """
    check_device(spec.device)
    check_present(SOURCES.read(spec.source).name, machine.data_root, machine.download)


def check_device(name: str) -> None:
    """Check that a device has a name that torch knows, and a driver.

    A driver alone is no promise: whether torch can use the device, it says itself when the run is built.

    Args:
        name: ``cpu``, ``cuda``, ``mps`` or ``xpu``, the last three with ``:NUMBER`` or without.

    Raises:
        UserError: If the name is unknown, or the machine has certainly no such device.
    """
    kind = name.partition(":")[0]
    if kind not in ("cpu", "cuda", "mps", "xpu"):
        raise unknown_name("device", name, ["cpu", "cuda", "cuda:1", "mps", "xpu"])
    if not re.fullmatch(r"cpu|(cuda|mps|xpu)(:\d+)?", name):
        raise UserError(f"unknown device {name!r}; write cpu, or for instance cuda:1")
    if kind == "cuda" and os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        raise UserError(f"device {name} is not there: CUDA_VISIBLE_DEVICES hides them all; change that, or use cpu")
    if _certainly_missing(kind):
        raise UserError(f"device {name} is not there: this machine has no driver for one; use cpu")


def _certainly_missing(kind: str) -> bool:
    if kind == "mps":
        return sys.platform != "darwin"
    if kind not in _DEVICE_FILES or sys.platform == "win32":
        return False
    return not any(True for pattern in _DEVICE_FILES[kind] for _ in Path("/dev").glob(pattern))
