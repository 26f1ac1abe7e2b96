"""How far many runs have come: a line a minute in a file, a bar that fits on a terminal."""

import os
import pty
import re
import subprocess
import sys
import termios
import time

import pytest

from plasticity_cl.experiments import progress
from plasticity_cl.experiments.progress import Progress


def test_lines_say_what_is_done_what_runs_and_how_long_it_will_take(monkeypatch, capsys):
    monkeypatch.setattr(progress, "EVERY", 0.2)
    with Progress(ticks=40, runs=4, at_a_time=3) as shown:
        time.sleep(0.3)
        for _ in range(20):
            shown.tick()
        shown.ended()
        shown.ended()
        time.sleep(0.2)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "0 of 4 runs done, 3 running, for 0 s"
    assert re.fullmatch(r"2 of 4 runs done, 2 running, 50% after [01] s, about [01] s left", lines[1])
    assert len(lines) == 2


def test_time_left_is_what_the_rest_takes_at_the_speed_so_far(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with Progress(ticks=100, runs=5, at_a_time=1) as shown:
        now += 600
        for _ in range(25):
            shown.tick()
        assert shown.line() == "0 of 5 runs done, 1 running, 25% after 10 min, about 30 min left"
        now += 72000
        assert shown.line().endswith("about 60 h left")


def test_short_work_is_quiet_and_no_work_is_silent(capsys):
    for ticks in (3, 0):
        with Progress(ticks, runs=1, at_a_time=1) as shown:
            for _ in range(ticks):
                shown.tick()
    assert capsys.readouterr().err == ""


SCRIPT = """
import time
from plasticity_cl.experiments.progress import Progress
with Progress(ticks=30, runs=3, at_a_time=2) as shown:
    for i in range(30):
        time.sleep(0.02)
        shown.tick()
        if i == 15:
            shown.say("a word")
"""


@pytest.mark.parametrize("columns", [10, 24, 40, 80])
def test_the_bar_fits_on_a_terminal(columns):
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, columns))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen([sys.executable, "-c", SCRIPT], stderr=theirs, env=environment)
    os.close(theirs)
    written = b""
    try:
        while part := os.read(ours, 4096):
            written += part
    except OSError:  # how a terminal says that it is closed
        pass
    os.close(ours)
    assert process.wait() == 0
    drawn = re.split(r"[\r\n]+", written.decode())
    assert len(drawn) > 5
    assert "a word" in [line.strip() for line in drawn]
    assert max(len(line) for line in drawn) <= columns, "a longer line would be wrapped, and never wiped out"
