"""Jobs for the tests of processes, light to import in each of them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Work:
    """Leaves the id of its process in a folder, then works for some time, ticking.

    Args:
        folder: Where ``NAME.TIMES`` is written, with the id of the process.
        name: What tells it apart.
        seconds: How long it works.
        deaths: How often its process is killed first.
        outcome: What it returns.
    """

    folder: str
    name: str
    seconds: float = 0.0
    deaths: int = 0
    outcome: str = "done"

    def do(self, tick: Callable[[], None]) -> str:
        times = len(list(Path(self.folder).glob(f"{self.name}.*")))
        partial = Path(self.folder, f"{self.name}-partial")
        partial.write_text(str(os.getpid()))
        partial.replace(Path(self.folder, f"{self.name}.{times}"))
        if times < self.deaths:
            os.kill(os.getpid(), 9)
        end = time.monotonic() + self.seconds
        while time.monotonic() < end:
            time.sleep(0.01)
            tick()
        return self.outcome
