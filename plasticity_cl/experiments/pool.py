"""Processes that do jobs: a server imports what is heavy once, and every worker is forked off it.

The pools of Python's library import the caller's main script again in each process, lose all running jobs with one
worker, can wait for ever for a lock that a killed worker held, and outlive a main process that is killed. Here a
process talks to the one that started it over a socket of its own, and to nobody else: there is no lock to be left
behind, and where the socket ends, because the process at its other end has ended in whatever way, so does the process.

    main  <- socket ->  server  <- socket ->  worker
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import multiprocessing
import os
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, Protocol, TypeVar

ATTEMPTS = 3
"""How often a job is begun whose process is killed under it."""

_SERVER = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from plasticity_cl.experiments.pool import serve; serve(int(sys.argv[2]))"
)
_PR_SET_PDEATHSIG = 1


class Job(Protocol):
    """What the pool can do: a hashable object that can be pickled."""

    def do(self, tick: Callable[[], None]) -> Any:
        """Do it, call ``tick`` now and then, and return its outcome: false where what waits for it waits in vain."""


J = TypeVar("J", bound=Job)


@dataclass(frozen=True)
class Killed:
    """The outcome of a job whose processes were killed, each time it was tried."""

    by: str

    def __bool__(self) -> bool:
        return False


def do_all(
    waiting: Mapping[J, Sequence[J]],
    n_workers: int,
    preload: str,
    on_tick: Callable[[], None],
    on_killed: Callable[[J, str], None],
) -> Generator[tuple[J, Any], None, None]:
    """Do jobs in processes of their own, and yield each with its outcome as soon as it is known.

    When the iterator is closed, or anything is raised, all processes have ended.

    Args:
        waiting: Jobs, each with those that wait for it, for which others may wait in turn; a job waits for one other at
            most. Where its outcome is false, it is theirs as well.
        n_workers: How many jobs are done at a time.
        preload: Module that the server imports.
        on_tick: Called for each tick of a job.
        on_killed: Called with a job that will be done again, and what killed its process.

    Raises:
        ConnectionError: If the server itself is killed.
    """
    ours, theirs = multiprocessing.Pipe()
    process, is_ready = None, False
    left = {job for first, others in waiting.items() for job in (first, *others)}
    try:
        # An interrupt at the terminal reaches every process: the main one alone hears it, and ends the others.
        with _blocked(signal.SIGINT):
            arguments = [json.dumps([str(path) for path in sys.path]), str(theirs.fileno())]
            command = [sys.executable, "-P", "-c", _SERVER, *arguments]
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
        theirs.close()
        with _server_errors(process):
            ours.send((os.getpid(), dict(waiting), n_workers, preload))
        while left:
            with _server_errors(process):
                kind, job, value = ours.recv()
            if kind == "ready":
                is_ready = True
            elif kind == "tick":
                on_tick()
            elif kind == "killed":
                on_killed(job, value)
            else:
                left.remove(job)
                yield job, value
    finally:
        theirs.close()
        ours.close()
        if process is not None:
            if not is_ready:  # it imports, and has no workers yet
                process.kill()
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:  # it was stopped: its workers hear its end
                process.kill()
                process.wait()


def first_jobs(waiting: Mapping[J, Sequence[J]]) -> list[J]:
    """The jobs that wait for no other."""
    others = {job for dependents in waiting.values() for job in dependents}
    return [job for job in waiting if job not in others]


@contextlib.contextmanager
def _server_errors(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError) as error:
        raise ConnectionError(f"the process that starts the workers {_ended(process.wait())}") from error


@contextlib.contextmanager
def _blocked(signum: signal.Signals) -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signum})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ended(code: int) -> str:
    """Say in words how a process ended that ``subprocess`` gives the return code of."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was killed by {name}{' (out of memory?)' if -code == signal.SIGKILL else ''}"


# In the server


@dataclass
class _Worker(Generic[J]):
    pid: int
    job: J | None = None


@dataclass
class _Server(Generic[J]):
    main: Connection
    waiting: Mapping[J, Sequence[J]]
    n_workers: int
    todo: deque[J] = field(default_factory=deque)
    workers: dict[Connection, _Worker[J]] = field(default_factory=dict)
    deaths: dict[J, int] = field(default_factory=dict)

    def run(self) -> None:
        """Do all jobs, or end where the main process does."""
        self.todo.extend(first_jobs(self.waiting))
        while self.todo or any(worker.job for worker in self.workers.values()):
            self._hand_out()
            for ready in wait([self.main, *self.workers]):
                if ready is self.main:  # it has sent everything that it has to say
                    raise EOFError
                assert isinstance(ready, Connection)
                if ready in self.workers:
                    self._listen(ready)

    def _hand_out(self) -> None:
        idle = [connection for connection, worker in self.workers.items() if worker.job is None]
        while self.todo and (idle or len(self.workers) < self.n_workers):
            connection = idle.pop() if idle else self._fork()
            worker = self.workers[connection]
            worker.job = self.todo.popleft()
            # A worker that has just been killed is noticed when it is listened to.
            with contextlib.suppress(OSError):
                connection.send(worker.job)

    def _fork(self) -> Connection:
        ours, theirs = multiprocessing.Pipe()
        pid = os.fork()
        if pid == 0:
            for other in (self.main, ours, *self.workers):
                other.close()
            _work(theirs)
        theirs.close()
        self.workers[ours] = _Worker(pid)
        return ours

    def _listen(self, connection: Connection) -> None:
        worker = self.workers[connection]
        job = worker.job
        try:
            kind, value = connection.recv()
        except (EOFError, OSError):
            del self.workers[connection]
            connection.close()
            by = _ended(os.waitstatus_to_exitcode(os.waitpid(worker.pid, 0)[1]))
            if job is not None:
                self._lost(job, by)
            return
        assert job is not None
        if kind == "tick":
            self.main.send(("tick", job, None))
            return
        worker.job = None
        self._settle(job, value)

    def _lost(self, job: J, by: str) -> None:
        self.deaths[job] = self.deaths.get(job, 0) + 1
        if self.deaths[job] < ATTEMPTS:
            self.todo.appendleft(job)
            self.main.send(("killed", job, by))
        else:
            self._settle(job, Killed(by))

    def _settle(self, job: J, outcome: Any) -> None:
        self.main.send(("outcome", job, outcome))
        for dependent in self.waiting.get(job, ()):
            if outcome:
                self.todo.append(dependent)
            else:
                self._settle(dependent, outcome)

    def end(self) -> None:
        """End all workers."""
        for worker in self.workers.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGKILL)
        for worker in self.workers.values():
            with contextlib.suppress(ChildProcessError):
                os.waitpid(worker.pid, 0)


def serve(descriptor: int) -> None:
    """What the server process does, from its start to its end."""
    main = Connection(descriptor)
    server: _Server[Any] | None = None
    try:
        parent, waiting, n_workers, preload = main.recv()
        _die_with(parent)
        # If it fails, it fails in each job again, and is told there.
        with contextlib.suppress(Exception):
            importlib.import_module(preload)
        main.send(("ready", None, None))
        server = _Server(main, waiting, n_workers)
        server.run()
    except (EOFError, OSError):  # the main process has ended
        pass
    finally:
        if server is not None:
            server.end()


def _die_with(parent: int) -> None:
    """Have the kernel end this process with its parent, while it imports and does not listen; Linux only."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise EOFError


def _work(connection: Connection) -> None:
    """What a worker process does, from its start to its end."""
    jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
    try:
        threading.Thread(target=_receive, args=(connection, jobs), daemon=True).start()
        while True:
            outcome = jobs.get().do(lambda: connection.send(("tick", None)))
            sys.stdout.flush()
            connection.send(("outcome", outcome))
    except BaseException:  # of the pool or the job's own: the server sees that the worker has ended
        traceback.print_exc()
    finally:
        os._exit(1)


def _receive(connection: Connection, jobs: queue.SimpleQueue[Any]) -> None:
    # In a thread, because the end of the server is to be noticed in the middle of a job.
    try:
        while True:
            jobs.put(connection.recv())
    except (EOFError, OSError):
        os._exit(0)
