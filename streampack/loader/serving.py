"""The server of a loader's workers, as the trainer has it: started at the first use, and again after it has died.

In:    what the workers of a rank are to do.
Out:   workers, which the server forks from itself.
Never: a fork of the trainer: a child would inherit locks that the trainer's threads hold, its CUDA context, its
       sockets and its memory. A server that outlives the trainer: it ends at the end of its socket, whose other end
       only the trainer holds. A signal to a process id that may be another process's: only the parent of a process
       sends it one, or who holds a descriptor of the process. Another copy of the user's objects after a restart.
"""

import itertools
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterable, Sequence
from contextlib import suppress
from multiprocessing import spawn
from pathlib import Path

from streampack.errors import ConfigError
from streampack.loader import channels, recipes
from streampack.loader.messages import Work
from streampack.loader.processes import WorkerProcess, ending_of
from streampack.loader.server import BOOT, NAME, NOT_STARTED, REPLY, REQUEST, Reply, Request
from streampack.loader.surroundings import surroundings
from streampack.metrics import heartbeat

_PATIENCE_S = 2.0
"""Within which a server that is not stopped does what it is told."""
_KILLED_S = 10.0


class WorkerServer:
    """Starts workers through a server."""

    def __init__(self) -> None:
        self._running: _Running | None = None
        self._given: _Given | None = None
        self._keys = itertools.count()

    def launch(
        self,
        assignment: Work,
        sockets: Sequence[socket.socket],
        memory: int,
        rows: Sequence[heartbeat.Row],
    ) -> "list[ServedProcess]":
        """Start them; see `Launcher`."""
        given = self._given_of(recipes.Parts.of(assignment.run))
        running = self._server_with(given)
        parcel = recipes.wrap_assignment(assignment)
        started = []
        try:
            for worker, theirs in enumerate(sockets):
                key = next(self._keys)
                running.start(key, worker, len(sockets), [given.recipe, parcel, memory, theirs.fileno()])
                started.append(ServedProcess(running, key))
        except BaseException:  # an interrupt too: those that were started are ended
            self.end(started)
            raise
        finally:
            os.close(parcel)
        return started

    def end(self, processes: Sequence[WorkerProcess]) -> None:
        """End them; see `Launcher`."""
        keys = [each.key for each in processes if isinstance(each, ServedProcess)]
        if self._running is not None and not self._running.kill(keys):
            self._end_server()  # it is loading, is stopped, or hangs

    def close(self) -> None:
        """End the server and all its workers, and forget what it was given."""
        self._end_server()
        if self._given is not None:
            self._given.finalizer()
            self._given = None

    def _end_server(self) -> None:
        if self._running is not None:
            self._running.listen()
            if self._running.has_recipe and self._given is not None:
                self._given.was_loaded = True
            self._running.finalizer()
            self._running = None

    def _given_of(self, parts: recipes.Parts) -> "_Given":
        if self._running is not None and self._running.owner != os.getpid():
            self._running = None  # of the process that this one was forked from
        if self._given is None or not self._given.parts.are(parts):
            self.close()
            self._given = _Given(parts)
        return self._given

    def _server_with(self, given: "_Given") -> "_Running":
        if self._running is not None and (self._running.is_gone() or self._running.has_failed):
            self._end_server()
        if self._running is None:
            self._running = _start(given)
        return self._running


class _Given:
    """What a server is given: copied once, so that a server that is started after another one has the same."""

    def __init__(self, parts: recipes.Parts) -> None:
        self.parts = parts
        self.surroundings = surroundings()
        self.recipe = recipes.wrap_recipe(parts)
        self.was_loaded = False
        """Whether a server that has ended had loaded it."""
        self.finalizer = weakref.finalize(self, os.close, self.recipe)


class ServedProcess:
    """A worker that the server has been asked for."""

    def __init__(self, running: "_Running", key: int) -> None:
        self._running = running
        self.key = key

    @property
    def pid(self) -> int | None:
        self._running.listen()
        return self._running.pids.get(self.key)

    def fileno(self) -> int:
        return self._running.control.fileno()

    def ending(self, limit_s: float = 0.0) -> str | None:
        self._running.listen_for([self.key], limit_s)
        return self._running.endings.get(self.key)


class _Running:
    """One server: what it was asked for, and what it has said. A thread may end it while another one listens."""

    def __init__(self, process: "subprocess.Popen[bytes]", control: socket.socket) -> None:
        self.owner = os.getpid()
        self.process = process
        self.control = control
        self._listening = threading.Lock()
        self.pids: dict[int, int] = {}
        """Of workers that have begun and were not ended by `kill`, by key."""
        self.living: set[int] = set()
        """Keys of the workers that it was asked for and that have not ended."""
        self.endings: dict[int, str] = {}
        self.has_loaded = threading.Event()
        """Before that it has no workers, and does not look at its socket."""
        self.has_recipe = False
        """Whether it could load it."""
        # Also where nobody closes the loader, and at the end of the program.
        self.finalizer = weakref.finalize(self, _end, process, control, self.pids, self.has_loaded, self.owner)

    def start(self, key: int, worker: int, num_workers: int, descriptors: list[int]) -> None:
        """Ask for a worker."""
        self.living.add(key)
        with suppress(ConnectionError):  # it has died, which the worker's ending says
            channels.send(self.control, REQUEST.pack(Request.START, key, worker, num_workers), descriptors)

    def kill(self, keys: Iterable[int]) -> bool:
        """End workers, and wait for it; whether the server has done that."""
        self.listen()
        if not self.has_loaded.is_set():
            return False
        with suppress(OSError):  # it has died
            for key in self.living.intersection(keys):
                channels.send(self.control, REQUEST.pack(Request.KILL, key, 0, 0), [])
        self.listen_for(keys, _PATIENCE_S)
        has_ended = not self.living.intersection(keys)
        for key in keys:
            self.endings.pop(key, None)
            if has_ended and self.process.poll() is None:
                self.pids.pop(key, None)
        return has_ended

    @property
    def has_failed(self) -> bool:
        """Whether it could not load the recipe, so that it will never have workers."""
        return self.has_loaded.is_set() and not self.has_recipe

    def is_gone(self) -> bool:
        """Whether it has ended."""
        self.listen()
        return self.process.poll() is not None

    def listen_for(self, keys: Iterable[int], limit_s: float) -> None:
        """Take in what it says until these workers have ended, for so many seconds at most."""
        end = time.monotonic() + limit_s
        self.listen()
        said = select.poll()
        if self.living.intersection(keys):
            said.register(self.control, select.POLLIN)
        while self.living.intersection(keys) and (left := end - time.monotonic()) > 0:
            said.poll(1000 * left)
            self.listen()

    def listen(self) -> None:
        """Take in what it has said."""
        with self._listening:
            self._listen()

    def _listen(self) -> None:
        try:
            if self.control.fileno() < 0:  # it was ended
                raise EOFError
            while (found := channels.receive(self.control, REPLY.size)) is not None:
                reply, key, value = REPLY.unpack(found[0])
                if reply == Reply.LOADED:
                    self.has_recipe = bool(value)
                    self.has_loaded.set()
                elif reply == Reply.STARTED:
                    self.pids[key] = value
                else:
                    code = None if value == NOT_STARTED else os.waitstatus_to_exitcode(value)
                    self._note_end(key, "did not start" if code is None else ending_of(code))
        except EOFError:
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(_PATIENCE_S)
            code = self.process.poll()
            how = "has closed its socket" if code is None else ending_of(code)
            ending = f"ended with the workers' server (pid {self.process.pid}), which {how}"
            for key in list(self.living):
                self._note_end(key, ending)

    def _note_end(self, key: int, ending: str) -> None:
        self.living.discard(key)
        self.endings[key] = ending


def check_can_start() -> None:
    """Raise `ConfigError` where this program cannot start another Python."""
    if getattr(sys, "frozen", False) or not spawn.get_executable():
        raise ConfigError(
            "workers come from a process that Python's interpreter starts, and this program has none "
            '(sys.executable is empty, or the program is frozen): use multiprocessing_context="fork", or num_workers=0 '
            "or multiprocessing.set_executable(path of a python with the same packages)"
        )


def _start(given: _Given) -> _Running:
    interpreter, values, environment, folder = given.surroundings
    ours, theirs = channels.pair()
    with theirs:
        kept = [theirs.fileno(), given.recipe]
        try:
            process = subprocess.Popen(  # noqa: S603 (Python itself)
                [*interpreter, "-c", BOOT, NAME, "server", *map(str, (*kept, int(given.was_loaded))), "--", *values],
                stdin=subprocess.DEVNULL,
                pass_fds=kept,
                env=environment,
                cwd=folder,
                start_new_session=True,  # what a terminal sends is for the trainer to decide on
            )
        except BaseException:  # an interrupt too: the socket would stay open
            ours.close()
            raise
    return _Running(process, ours)


def _end(
    process: "subprocess.Popen[bytes]",
    control: socket.socket,
    pids: dict[int, int],
    has_loaded: threading.Event,
    owner: int,
) -> None:
    """End a server: at the end of its socket it kills its workers and ends."""
    if os.getpid() != owner:  # a fork of the trainer, whose workers are not its own
        return
    control.close()
    try:
        process.wait(_PATIENCE_S if has_loaded.is_set() else 0)
    except subprocess.TimeoutExpired:  # it is loading, is stopped, or hangs
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_KILLED_S)
    if process.returncode:
        _end_session(process.pid)
        _await(list(pids.values()))


def _end_session(session: int) -> None:
    """End what the workers of a server that was killed have started: the kernel ends the workers alone."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            if _session_of(folder) == session:
                process = os.pidfd_open(int(folder.name))
                try:
                    if _session_of(folder) == session:  # still: it is the process that the descriptor stands for
                        signal.pidfd_send_signal(process, signal.SIGKILL)
                finally:
                    os.close(process)


def _session_of(folder: Path) -> int:
    """The session of a process with this folder in /proc."""
    return int((folder / "stat").read_bytes().rpartition(b")")[2].split()[3])


def _await(orphans: list[int]) -> None:
    """Wait until the kernel has ended the workers of a server that was killed."""
    end = time.monotonic() + _PATIENCE_S
    for pid in orphans:
        with suppress(ProcessLookupError):
            while time.monotonic() < end:
                with suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)  # where the trainer takes in orphans, as process 1 does
                os.kill(pid, 0)  # only asks whether there is one
                time.sleep(0.002)  # the kernel tells of the end of a child only
