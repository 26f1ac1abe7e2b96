"""Worker processes: they do every job once, end with the one that started them, and take nothing with them.

All with real processes and real signals, of jobs that are light to import.
"""

import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import closing
from pathlib import Path

import pytest
from pool_jobs import Work

from plasticity_cl.experiments.pool import Killed, do_all

JOBS = Path(__file__).parent


def until(true, seconds=30.0):
    """Wait until something is true, and return it."""
    end = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return value


def alive(pid):
    shown = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout
    return bool(shown.strip()) and not shown.startswith("Z")


def children(pid):
    """All processes below one."""
    shown = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True).stdout
    pairs = [tuple(map(int, line.split())) for line in shown.splitlines()]
    below = [child for child, parent in pairs if parent == pid]
    return below + [pid for child in below for pid in children(child)]


def outcomes(waiting, n_workers=2):
    ticks, killed = [], []
    with closing(do_all(waiting, n_workers, "json", lambda: ticks.append(1), lambda *of: killed.append(of))) as events:
        done = dict(events)
    return done, len(ticks), killed


def runs_of(folder, name):
    return len(list(folder.glob(f"{name}.*")))


def test_every_job_is_done_once_after_what_it_waits_for(tmp_path):
    waiting = {
        Work(str(tmp_path), f"first{i}", 0.05): [Work(str(tmp_path), f"then{i}{j}", 0.05) for j in range(3)]
        for i in range(4)
    }
    done, ticks, killed = outcomes(waiting, 3)
    assert set(done.values()) == {"done"}
    assert len(done) == 16
    assert ticks >= 16
    assert killed == []
    assert all(runs_of(tmp_path, job.name) == 1 for job in done)
    for first, others in waiting.items():
        began = (tmp_path / f"{first.name}.0").stat().st_mtime
        assert all((tmp_path / f"{other.name}.0").stat().st_mtime >= began + 0.05 for other in others)


def test_what_waits_for_a_job_in_vain_shares_its_outcome_and_is_not_begun(tmp_path):
    bad = Work(str(tmp_path), "bad", outcome="")
    good, heir, other = Work(str(tmp_path), "good"), Work(str(tmp_path), "heir"), Work(str(tmp_path), "other")
    done, _, _ = outcomes({bad: [heir], good: [other]})
    assert done == {bad: "", heir: "", good: "done", other: "done"}
    assert runs_of(tmp_path, "heir") == 0


def test_a_killed_worker_loses_its_own_job_alone_which_is_done_again(tmp_path):
    victim, steady = Work(str(tmp_path), "victim", deaths=2), Work(str(tmp_path), "steady", 1.0)
    done, _, killed = outcomes({victim: [], steady: []})
    assert done == {victim: "done", steady: "done"}
    assert killed == [(victim, "was killed by SIGKILL (out of memory?)")] * 2
    assert (runs_of(tmp_path, "victim"), runs_of(tmp_path, "steady")) == (3, 1)


def test_a_job_whose_process_is_killed_every_time_is_given_up_and_the_others_are_done(tmp_path):
    doomed, heir, steady = (Work(str(tmp_path), name, deaths=9 * (name == "doomed")) for name in ("doomed", "h", "s"))
    done, _, _ = outcomes({doomed: [heir], steady: []})
    assert done == {
        doomed: Killed("was killed by SIGKILL (out of memory?)"),
        heir: Killed("was killed by SIGKILL (out of memory?)"),
        steady: "done",
    }
    assert runs_of(tmp_path, "doomed") == 3


def test_workers_end_when_nobody_wants_their_outcomes_any_more(tmp_path):
    jobs = {Work(str(tmp_path), name, 60.0): [] for name in ("one", "two")}
    jobs[Work(str(tmp_path), "quick")] = []
    with closing(do_all(jobs, 3, "json", lambda: None, lambda *_: None)) as events:
        assert next(events)[0].name == "quick"
        pids = until(lambda: [int(path.read_text()) for path in tmp_path.glob("*.0") if path.name != "quick.0"])
    assert not any(map(alive, pids))


def test_the_end_of_the_server_is_told_and_ends_the_workers(tmp_path):
    jobs = {Work(str(tmp_path), name, 60.0): [] for name in ("one", "two")}
    jobs[Work(str(tmp_path), "quick")] = []
    with closing(do_all(jobs, 3, "json", lambda: None, lambda *_: None)) as events:
        next(events)
        workers = until(lambda: list(tmp_path.glob("*.0")) if len(list(tmp_path.glob("*.0"))) == 3 else [])
        pids = [int(path.read_text()) for path in workers]
        parent = subprocess.run(["ps", "-o", "ppid=", "-p", str(pids[0])], capture_output=True, text=True).stdout
        os.kill(int(parent), signal.SIGKILL)
        with pytest.raises(ConnectionError, match="was killed by SIGKILL"):
            next(events)
    until(lambda: not any(map(alive, pids)), 5)


# Scripts as users write them

SCRIPT = """
    import sys
    sys.path.insert(0, {tests!r})
    from pool_jobs import Work
    from plasticity_cl.cli import carry_out
    from plasticity_cl.experiments.pool import do_all

    print("begun")
    def work():
        jobs = {{Work({folder!r}, name, {seconds}): [] for name in ("one", "two")}}
        print(sorted(outcome for _, outcome in do_all(jobs, 2, {preload!r}, lambda: None, lambda *_: None)))
    sys.exit(carry_out("script", work))
"""


def script(folder, seconds=0.1, preload="json"):
    values = {"tests": str(JOBS), "folder": str(folder), "seconds": seconds, "preload": preload}
    return textwrap.dedent(SCRIPT).format(**values)


@pytest.mark.parametrize("how", ["file", "-c", "stdin", "exec"])
def test_a_script_needs_no_guard_and_is_not_run_again_in_the_processes(tmp_path, how):
    text = script(tmp_path)
    (tmp_path / "mine.py").write_text(text)
    command, given = {
        "file": ([str(tmp_path / "mine.py")], None),
        "-c": (["-c", text], None),
        "stdin": (["-"], text),
        # As in a notebook: a main module without a file.
        "exec": (
            ["-c", f"import code; code.InteractiveInterpreter().runcode(compile({text!r}, 'cell', 'exec'))"],
            None,
        ),
    }[how]
    finished = subprocess.run([sys.executable, *command], input=given, capture_output=True, text=True, timeout=60)
    assert (finished.stdout, finished.stderr) == ("begun\n['done', 'done']\n", "")


def started(folder, preload="json", **options):
    # A shell without job control starts its background processes with interrupts ignored: here they are not.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            [sys.executable, "-c", script(folder, 60.0, preload)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **options,
        )
    finally:
        signal.signal(signal.SIGINT, before)


SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL]


@pytest.mark.parametrize("group", [False, True], ids=["alone", "group"])
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_no_process_outlives_the_main_one(tmp_path, number, group):
    process = started(tmp_path)
    until(lambda: len(list(tmp_path.glob("*.0"))) == 2)
    below = children(process.pid)
    assert len(below) == 3, "the server and two workers"
    (os.killpg if group else os.kill)(process.pid, number)
    _, shown = process.communicate(timeout=10)
    until(lambda: not any(map(alive, below)), 5)
    if number != signal.SIGKILL:
        assert process.returncode == 128 + number
        assert shown.count("\n") == 1
        assert shown.startswith("script: ")


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_nor_while_it_is_still_importing(tmp_path, number):
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(60)\n")
    process = started(tmp_path, "slow", env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])})
    below = until(lambda: children(process.pid))
    time.sleep(0.5)
    os.killpg(process.pid, number) if number != signal.SIGKILL else process.kill()
    _, shown = process.communicate(timeout=10)
    until(lambda: not any(map(alive, below)), 5)
    assert "Traceback" not in shown


@pytest.mark.slow
def test_interrupts_at_any_moment_end_everything(tmp_path):
    """Ten moments, from the first line of the script on."""
    for i in range(10):
        folder = tmp_path / str(i)
        folder.mkdir()
        process = started(folder)
        assert process.stdout.readline() == "begun\n"
        time.sleep(0.06 * i)
        below = children(process.pid)
        os.killpg(process.pid, signal.SIGINT)
        _, shown = process.communicate(timeout=10)
        assert process.returncode == 130, shown
        assert "Traceback" not in shown
        assert not any(map(alive, below))


def test_interrupts_that_were_ignored_before_stay_ignored(tmp_path):
    """As a shell without job control has it for what it starts in the background; SIGTERM ends it even so."""
    path = tmp_path / "mine.py"
    path.write_text(script(tmp_path, 60.0))
    shell = f"'{sys.executable}' '{path}' >'{tmp_path}/shown' 2>&1 & echo $!; wait $!; echo $?"
    process = subprocess.Popen(["sh", "-c", shell], stdout=subprocess.PIPE, text=True)
    pid = int(process.stdout.readline())
    until(lambda: len(list(tmp_path.glob("*.0"))) == 2)
    os.kill(pid, signal.SIGINT)
    time.sleep(0.5)
    assert alive(pid)
    os.kill(pid, signal.SIGTERM)
    assert process.communicate(timeout=10)[0] == "143\n"
