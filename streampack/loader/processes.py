"""A worker's process as the trainer has it, and the way to start it: by a server (`serving`), or by a fork.

In:    what the workers of a rank are to do, and each worker's end of a socket.
Out:   a process for each, which can be asked whether it has ended and how, and can be ended.
Never: a process that outlives the loader, also where nobody closes it.
"""

import multiprocessing
import os
import signal
import socket
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import util
from multiprocessing.process import BaseProcess
from typing import Protocol

from streampack.loader.messages import Work
from streampack.loader.working import work_in_fork
from streampack.metrics import heartbeat

_KILLED_S = 10.0


class WorkerProcess(Protocol):
    """One worker."""

    @property
    def pid(self) -> int | None:
        """None: it is not known yet."""

    def fileno(self) -> int:
        """What becomes readable when there may be news of it."""

    def ending(self, limit_s: float = 0.0) -> str | None:
        """How it has ended, if it has by now, or does within so many seconds, as "ended with exit code 1"."""


class Launcher(Protocol):
    """Starts and ends the workers of a loader."""

    def launch(
        self,
        assignment: Work,
        sockets: Sequence[socket.socket],
        memory: int,
        rows: Sequence[heartbeat.Row],
    ) -> Sequence[WorkerProcess]:
        """Start a worker for each socket. Its signs of life go to its row, in the memory that a descriptor stands for.

        Raises:
            ConfigError: the workers cannot be given what they need.
            OSError: something is short.
        """

    def end(self, processes: Sequence[WorkerProcess]) -> None:
        """End them, whatever they do, and wait for their end."""

    def close(self) -> None:
        """End all that this has started."""


class Forks:
    """Workers that are forked from the trainer."""

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._living: list[BaseProcess] = []
        # Before multiprocessing ends its processes by itself, as it waits for stopped ones.
        self._finalizer = util.Finalize(self, _end, args=(self._living,), exitpriority=10)

    def launch(
        self,
        assignment: Work,
        sockets: Sequence[socket.socket],
        memory: int,
        rows: Sequence[heartbeat.Row],
    ) -> "list[ForkedProcess]":
        """Start them; see `Launcher`."""
        if self._owner != os.getpid():  # a fork of the process whose workers these are
            self._owner = os.getpid()
            self._living.clear()
        context = multiprocessing.get_context("fork")
        started = []
        try:
            for worker, (theirs, row) in enumerate(zip(sockets, rows, strict=True)):
                others = [each for each in sockets if each is not theirs]
                process = context.Process(
                    target=work_in_fork,
                    args=(assignment, worker, len(sockets), theirs, row, others),
                    name=f"streampack-worker-{worker}",
                    daemon=True,
                )
                process.start()
                self._living.append(process)
                started.append(ForkedProcess(process))
        except BaseException:  # an interrupt too: those that were started are ended
            self.end(started)
            raise
        return started

    def end(self, processes: Sequence[WorkerProcess]) -> None:
        """End them; see `Launcher`."""
        ended = [each for each in self._living if each.pid in {process.pid for process in processes}]
        for each in ended:
            self._living.remove(each)
        _end(ended)

    def close(self) -> None:
        """End all of them."""
        if self._owner == os.getpid():
            _end(self._living)


class ForkedProcess:
    """A child of the trainer."""

    def __init__(self, process: BaseProcess) -> None:
        self._process = process

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def fileno(self) -> int:
        return self._process.sentinel

    def ending(self, limit_s: float = 0.0) -> str | None:
        self._process.join(limit_s)
        if self._process.is_alive():
            return None
        code = self._process.exitcode
        return "ended" if code is None else ending_of(code)  # None: somebody else has waited for it


def ending_of(code: int) -> str:
    """How a process ended, by its exit code; a signal's number is negative."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    memory = ", as when memory runs out" if -code == signal.SIGKILL else ""
    return f"was ended by {name}{memory}"


def _end(living: list[BaseProcess]) -> None:
    for each in living:
        each.kill()  # a stopped one too
    for each in living:
        each.join(_KILLED_S)
        with suppress(ValueError):  # it hangs in the kernel and cannot be killed before it returns
            each.close()
    living.clear()
