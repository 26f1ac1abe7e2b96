"""How far many runs have come: a bar on a terminal, a line a minute anywhere else."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from types import TracebackType
from typing import Any

EVERY = 60.0
"""Seconds between two lines."""


class Progress:
    """Shows on the standard error stream how far the runs have come, while it is entered.

    Args:
        ticks: How many ticks are expected in all.
        runs: How many runs are to be done.
        at_a_time: How many are done at a time.
    """

    def __init__(self, ticks: int, runs: int, at_a_time: int) -> None:
        self._ticks, self._runs, self._at_a_time = ticks, runs, at_a_time
        self._ticked = self._ended = 0
        self._over = threading.Event()
        self._bar: Any = None
        self._lines: threading.Thread | None = None

    def __enter__(self) -> Progress:
        self._start = time.monotonic()
        if self._ticks and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=self._ticks, unit="exp", dynamic_ncols=True, leave=False)
        elif self._ticks:
            self._lines = threading.Thread(target=self._write_lines, daemon=True)
            self._lines.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        if self._bar is not None:
            self._bar.close()
        if self._lines is not None:
            self._lines.join()

    def tick(self) -> None:
        """Come one step further."""
        self._ticked += 1
        if self._bar is not None:
            self._bar.update()

    def ended(self) -> None:
        """Count a run that has ended."""
        self._ended += 1

    def say(self, line: str) -> None:
        """Write a line, above the bar where there is one."""
        with contextlib.suppress(OSError):  # nobody reads it any more
            if self._bar is not None:
                self._bar.write(line, file=sys.stderr)
            else:
                print(line, file=sys.stderr, flush=True)

    def line(self) -> str:
        """How far the runs have come, and how long they will take."""
        seconds = time.monotonic() - self._start
        running = min(self._at_a_time, self._runs - self._ended)
        text = f"{self._ended} of {self._runs} runs done, {running} running"
        if not self._ticked:
            return f"{text}, for {_duration(seconds)}"
        # What is done again after an accident ticks again.
        left = max(self._ticks - self._ticked, 0) * seconds / self._ticked
        share = min(self._ticked / self._ticks, 1)
        return f"{text}, {share:.0%} after {_duration(seconds)}, about {_duration(left)} left"

    def _write_lines(self) -> None:
        while not self._over.wait(EVERY):
            self.say(self.line())


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes / 60:.0f} h"
