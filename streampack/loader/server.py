"""The process that a rank's workers come from: it has loaded what they need once, and forks them from itself.

In:    a recipe; from the trainer, through a socket, requests to start a worker and to kill one.
Out:   workers; to the trainer, which processes they are and how they have ended.
Never: torch, unless the user's own objects bring it; the trainer's main module; a fork while this process has more than
       one thread, as a lock that another thread holds would be held for ever in the worker. What the user's objects
       start threads for is loaded again in each worker, which is then a program of its own. A life after the trainer's.

    trainer --- START, KILL; the socket's end: the trainer has gone ---> server ---fork---> worker 0, worker 1, ...
            <-- STARTED, ENDED ----------------------------------------
"""

import enum
import gc
import io
import logging
import os
import select
import signal
import socket
import struct
import sys
import threading
import traceback
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from streampack.errors import ConfigError
from streampack.loader import channels, recipes, shortage
from streampack.loader.failures import Failure, failure_of
from streampack.loader.surroundings import take
from streampack.loader.working import send, work
from streampack.metrics import heartbeat

_log = logging.getLogger(__name__)

BOOT = (
    "import json, sys; end = sys.argv.index('--'); values = json.loads(''.join(sys.argv[end + 1 :])); "
    "del sys.argv[end:]; sys.path[:] = values['path']; "
    "from streampack.loader.server import main; main(values)"
)
"""What a new interpreter runs to become a server or a worker; its arguments after `--` are `Surroundings.values`."""
NAME = "streampack-workers"
"""The first argument, for who lists processes."""
REQUEST = struct.Struct("<4q")
"""A `Request`, the key of a worker, its number, how many workers there are. With a START come descriptors: the parcels
of the recipe and of the assignment, the memory of the signs of life, the worker's socket."""
REPLY = struct.Struct("<3q")
"""A `Reply`, the key of a worker; its process id, or the status of its end, or whether the recipe was loaded."""
NOT_STARTED = -1
"""The status of a worker that could not be started; its first message says why."""
_LEFT_TO_THE_TRAINER = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_PR_SET_PDEATHSIG = 1


class Request(enum.IntEnum):
    """What the trainer asks for."""

    START = 0
    KILL = 1


class Reply(enum.IntEnum):
    """What the server says of a worker."""

    STARTED = 0
    ENDED = 1
    LOADED = 2
    """Once, of the server itself: it looks at its socket from now on."""


def main(values: Mapping[str, Any]) -> NoReturn:
    """The life of a server, or of a worker that is a program of its own; the arguments say which."""
    channels.open_stdio()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None where the trainer has it closed
            stream.reconfigure(line_buffering=True)  # a worker may be killed after each line
    _leave_signals_to_the_trainer()
    _, _, role, *numbers = sys.argv
    take(values)
    if role == "server":
        control, recipe, was_loaded = map(int, numbers)
        Server(socket.socket(fileno=control), recipe, was_loaded=bool(was_loaded)).run()
    recipe, assignment, memory, theirs, worker, num_workers, server = map(int, numbers)

    def loaded() -> recipes.Recipe:
        _end_with(server)
        return recipes.load_recipe(recipe)

    _become_worker(loaded, assignment, memory, socket.socket(fileno=theirs), worker, num_workers, server)


class Server:
    """Starts workers and tells the trainer of their ends, until the trainer closes its end of the socket."""

    def __init__(self, control: socket.socket, recipe: int, *, was_loaded: bool) -> None:
        """`was_loaded`: an earlier server has loaded this recipe, so if this one cannot, another one may."""
        self._control = control
        self._was_loaded = was_loaded
        self._recipe_descriptor = recipe
        self._recipe: recipes.Recipe | None = None
        self._failure: Failure | None = None
        """Why there is no recipe."""
        self._children: dict[int, int] = {}
        """The process id of each worker that has not been waited for, by key."""
        self._wakes, self._wake = socket.socketpair()
        self._has_warned = False
        self._threads = {each.name for each in threading.enumerate()}
        """Names of those that this process had before the recipe was loaded."""
        self._num_threads = _num_threads()

    def run(self) -> NoReturn:
        """Serve."""
        for each in (self._wakes, self._wake):
            each.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # or there would be nothing to wake up for
        signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        self._load()
        gc.collect()
        gc.freeze()  # the collector leaves the pages alone that the workers share
        self._reply(Reply.LOADED, 0, int(self._recipe is not None))
        waiting = select.poll()
        waiting.register(self._control, select.POLLIN)
        waiting.register(self._wakes, select.POLLIN)
        with suppress(EOFError, ConnectionError):
            while True:
                waiting.poll()
                self._reap()
                while self._serve_next():
                    pass
        for pid in self._children.values():
            _kill_group(pid)
        for pid in self._children.values():
            os.waitpid(pid, 0)
        os._exit(0)

    def _load(self) -> None:
        try:
            self._recipe = recipes.load_recipe(self._recipe_descriptor)
        except BaseException as error:  # noqa: BLE001 (it is raised in the trainer)
            failure = failure_of(_not_loaded(error), f"raised in the workers' server (process {os.getpid()})")
            if self._was_loaded:
                said = f"what was loaded before cannot be loaded again ({type(error).__name__}: {error})"
                failure = failure._replace(shortage=said)
            self._failure = failure
        finally:
            os.close(self._recipe_descriptor)  # it comes again with each request for a worker

    def _serve_next(self) -> bool:
        """Do what one request asks for; whether there was one."""
        found = shortage.persist(lambda: channels.receive(self._control, REQUEST.size, 4), "a request for a worker")
        if found is None:
            return False
        frame, descriptors = found
        request, key, worker, num_workers = REQUEST.unpack(frame)
        if request == Request.KILL:
            if key in self._children:
                _kill_group(self._children[key])
            return True
        *parcels, theirs = descriptors
        with socket.socket(fileno=theirs) as channel:
            try:
                pid = self._start(parcels, channel, worker, num_workers)
            finally:
                for each in parcels:
                    os.close(each)
        if pid is None:
            self._reply(Reply.ENDED, key, NOT_STARTED)
        else:
            self._children[key] = pid
            self._reply(Reply.STARTED, key, pid)
        return True

    def _start(self, parcels: list[int], theirs: socket.socket, worker: int, num_workers: int) -> int | None:
        """The process id of a new worker; None: there is none, and its socket says why."""
        recipe, failure = self._recipe, self._failure
        try:
            if recipe is not None:
                if _num_threads() > 1:
                    return self._spawn(parcels, theirs, worker, num_workers)
                server = os.getpid()
                pid = shortage.persist(os.fork, "starting a worker")
                if pid == 0:
                    loaded, assignment, memory = parcels
                    _become_worker(
                        lambda: self._left(recipe, loaded, server),
                        assignment,
                        memory,
                        theirs,
                        worker,
                        num_workers,
                        server,
                    )
                with suppress(OSError):  # it has done that itself, and may have ended
                    os.setpgid(pid, pid)
                return pid
        except Exception as error:  # noqa: BLE001 (it is raised in the trainer)
            failure = failure_of(error, f"raised in the workers' server (process {os.getpid()})")
        assert failure is not None
        with suppress(Exception):  # else the socket's end says that there is no worker
            send(theirs, 0, None, failure)
        return None

    def _spawn(self, parcels: list[int], theirs: socket.socket, worker: int, num_workers: int) -> int:
        if not self._has_warned:
            self._has_warned = True
            self._warn_of_threads()
        kept = [*parcels, theirs.fileno()]
        for each in kept:
            os.set_inheritable(each, True)  # this process starts nothing else
        numbers = [*kept, worker, num_workers, os.getpid()]
        as_this_one = sys.orig_argv[: sys.orig_argv.index("-c") + 2]
        values = sys.orig_argv[sys.orig_argv.index("--") :]
        command = [*as_this_one, NAME, "worker", *map(str, numbers), *values]
        return shortage.persist(
            lambda: os.posix_spawn(sys.executable, command, os.environ, setpgroup=0), "starting a worker"
        )

    def _warn_of_threads(self) -> None:
        new = {each.name for each in threading.enumerate()} - self._threads
        if self._num_threads < _num_threads():
            whose = f"the transform or the tokenizer has started threads ({_listed(new)}) when it was loaded"
            which = "the process that loaded it"
        else:
            names = _listed(self._threads - {"MainThread"})
            whose = f"a new Python process has threads here before it loads anything ({names}; see sitecustomize)"
            which = "a clean process"
        _log.warning(
            "%s, so workers are not forked from %s: each is a program of its own and loads it again", whose, which
        )

    def _left(self, recipe: recipes.Recipe, descriptor: int, server: int) -> recipes.Recipe:
        """In a worker: the recipe, after what else is the server's was let go of."""
        _end_with(server)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for each in (self._control, self._wakes, self._wake):
            each.close()
        os.close(descriptor)
        return recipe

    def _reap(self) -> None:
        with suppress(BlockingIOError):
            while self._wakes.recv(512):
                pass
        for key, pid in list(self._children.items()):
            if hasattr(os, "waitid"):
                if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                    continue
                _kill_group(pid)  # what it has started; as nobody has waited for it yet, its number is still its own
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                del self._children[key]
                self._reply(Reply.ENDED, key, status)

    def _reply(self, reply: Reply, key: int, value: int) -> None:
        channels.send(self._control, REPLY.pack(reply, key, value), [])


def _become_worker(
    recipe: Callable[[], recipes.Recipe],
    assignment: int,
    memory: int,
    theirs: socket.socket,
    worker: int,
    num_workers: int,
    server: int,
) -> NoReturn:
    """Do a worker's work in this process, and end."""
    status, has_begun = 1, False
    try:
        loaded = recipe()
        row = heartbeat.rows(memory, num_workers)[worker]
        os.close(memory)
        to_do = recipes.load_assignment(assignment, loaded)
        os.close(assignment)
        has_begun = True
        work(to_do, worker, num_workers, theirs, row, server=server)
        status = 0
    except BaseException as error:  # noqa: BLE001 (nothing above this would print it)
        traceback.print_exc()
        if not has_begun:
            with suppress(Exception):  # else the socket's end says that there is no worker
                send(theirs, 0, None, failure_of(error, f"raised in worker {worker} as it began"))
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _kill_group(pid: int) -> None:
    """End a child and all that it has started, but for what has begun a session of its own."""
    with suppress(OSError):  # all have ended
        os.killpg(pid, signal.SIGKILL)


def _listed(names: Collection[str]) -> str:
    return ", ".join(sorted(names)) or "of a library"


def _num_threads() -> int:
    """Threads of this process, also those that Python does not know."""
    try:
        return sum(1 for _ in Path("/proc/self/task").iterdir())
    except OSError:
        return threading.active_count()


def _leave_signals_to_the_trainer() -> None:
    """Do nothing at the signals that a terminal or a batch system sends to all processes of a job.

    A handler, as a program that a transform starts would inherit that a signal is ignored.
    """
    for number in _LEFT_TO_THE_TRAINER:
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])  # not what the trainer's thread had blocked


def _end_with(server: int) -> None:
    """Let the kernel kill this worker when its server, which has one thread, has ended; also a stopped worker.

    It is in a process group of its own from here on, so that what it starts ends with it.
    """
    os.setpgid(0, 0)
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != server:
        os._exit(1)


def _not_loaded(error: BaseException) -> ConfigError:
    if isinstance(error, ConfigError):
        return error
    problem = ConfigError(
        f"the workers' process cannot load what it was given of the dataset ({type(error).__name__}: {error}). What is "
        "defined in a module is imported there again, by the trainer's sys.path; what is defined in the script or "
        'notebook goes as it is. multiprocessing_context="fork" forks the workers from the trainer instead.'
    )
    problem.__cause__ = error
    return problem
