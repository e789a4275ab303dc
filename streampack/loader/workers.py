"""The workers of a rank: started, listened to, ended.

In:    what to do, and how many workers do it.
Out:   their messages, each worker's in its order; the error that a worker's own code raised; or `LostError` where a
       worker has died, gives no sign of life while the loader waits for it, or has too little memory or descriptors.
Never: a wait without an end; a message that is taken for another one; a signal handler in the trainer's process.

Each worker has a socket of its own, so whatever happens to one in the middle of a message concerns no other:

    trainer  -- a byte for each message that may be made ------------------------>  worker
             <-- the number and a file of shared memory of each message ----------

What a worker has sent before it died is still good, and is read before its death is noticed.
"""

import dataclasses
import os
import select
import socket
import time
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from streampack.errors import LoaderError
from streampack.loader import channels, parcels, shortage
from streampack.loader.messages import Message, Work
from streampack.loader.processes import Launcher, WorkerProcess
from streampack.loader.times import WorkerTimes
from streampack.loader.working import FRAME
from streampack.metrics import clock, heartbeat

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streampack.loader.failures import Failure

AHEAD = 2
"""Messages that a worker may make ahead of the one that the loader takes next."""
START_S = 120.0
"""Seconds that a worker always has for its first sign of life: what it loads may come over a network."""
_LOOK_S = 0.5
_ENDING_S = 2.0
"""Within which the end of a process follows that of its socket."""


class LostError(Exception):
    """A worker that has died, hangs or cannot go on."""

    def __init__(self, why: str, *, worker: int, pid: int | None, location: heartbeat.SampleLocation) -> None:
        super().__init__(why)
        self.why = why
        self.worker = worker
        self.pid = pid
        self.location = location


class _Worker(NamedTuple):
    process: WorkerProcess
    socket: socket.socket
    row: heartbeat.Row


class Workers:
    """Processes that make the messages of a rank, from their start until `end`."""

    def __init__(
        self, assignment: Work, num_workers: int, launcher: Launcher, times: WorkerTimes, *, timeout_s: float
    ) -> None:
        self._timeout_s = timeout_s
        self._launcher = launcher
        self._owner = os.getpid()
        self._is_interrupted = False
        self._received = [0] * num_workers
        """Messages, by worker."""
        self._workers = _started(assignment, num_workers, launcher)
        self._clocks = times.begin([each.row for each in self._workers])
        # Also where nobody calls `end`; then the launcher ends the processes.
        self._finalizer = weakref.finalize(self, _close, [each.socket for each in self._workers])

    def check_owner(self) -> None:
        """Raise a `LoaderError` in a fork of the process that started them."""
        if os.getpid() != self._owner:
            raise LoaderError(
                f"these workers belong to process {self._owner}, of which this one is a fork: make a PackedDataLoader "
                "in each process that iterates"
            )

    def receive(self, worker: int) -> Message:
        """The worker's next message.

        Raises:
            LostError: it does not come, or says that something is short.
            Exception: what the worker's code raised.
        """
        number, parcel = self._next_parcel(worker)
        try:
            if number != self._received[worker]:
                raise self._lost(worker, f"sent message {number} where message {self._received[worker]} was due")
            message: Message | None
            failure: Failure | None
            message, failure = shortage.persist(lambda: parcels.unwrap(parcel), "a message of a worker")
        finally:
            os.close(parcel)
        self._received[worker] += 1
        self._clocks.received(worker)
        with suppress(OSError):  # it has died since
            self._workers[worker].socket.send(b"+")
        if failure is None:
            assert message is not None
            return message
        if failure.shortage is not None:
            raise self._lost(worker, f"found that {failure.shortage}")
        if message is None:
            raise failure.error()
        return dataclasses.replace(message, error=failure.error())

    def _next_parcel(self, worker: int) -> tuple[int, int]:
        """The number of the worker's next message, and its descriptor."""
        process, ours, row = self._workers[worker]
        silent_s, heard = 0.0, row[0]
        while True:
            ending = process.ending()  # asked before the last look for what it had sent
            try:
                found = shortage.persist(lambda: channels.receive(ours, FRAME.size, 1), "a message of a worker")
            except EOFError:
                waits_s = 0.0 if self._is_interrupted else _ENDING_S
                ending = process.ending(waits_s)
                raise self._lost(worker, "has closed its socket" if ending is None else ending) from None
            if found is not None:
                frame, descriptors = found
                return FRAME.unpack(frame)[0], descriptors[0]
            if ending is not None:
                raise self._lost(worker, ending)
            limit_s = self._timeout_s if row[0] else max(self._timeout_s, START_S)
            if silent_s >= limit_s:
                raise self._lost(worker, f"was silent for {silent_s:.0f} s")
            self._clocks.wait(worker)
            waited_s = _wait(ours, process, min(_LOOK_S, limit_s / 4))
            if row[0] != heard:
                silent_s, heard = 0.0, row[0]
            else:  # a job that was stopped as a whole has not waited all that time
                silent_s += min(waited_s, 2 * _LOOK_S)

    def _lost(self, worker: int, why: str) -> LostError:
        process, _, row = self._workers[worker]
        beats, location = heartbeat.read(row)
        return LostError(
            why if beats else f"{why} before it began", worker=worker, pid=process.pid, location=location
        )

    def end(self) -> None:
        """End all of them: they hold nothing that is worth waiting for."""
        if os.getpid() == self._owner:
            self._launcher.end([each.process for each in self._workers])
        self._clocks.end()
        self._finalizer()
        self._workers = []

    def interrupt(self) -> None:
        """From another thread: let the one that waits in `receive` come back with a `LostError`; `end` is still due."""
        self._is_interrupted = True
        for each in self._workers:
            with suppress(OSError):  # it has died
                each.socket.shutdown(socket.SHUT_RDWR)


def _started(assignment: Work, num_workers: int, launcher: Launcher) -> list[_Worker]:
    pairs: list[tuple[socket.socket, socket.socket]] = []
    processes: Sequence[WorkerProcess] = ()
    memory = channels.memory()
    try:
        rows = heartbeat.new_rows(memory, num_workers, len(assignment.run.sources))
        while len(pairs) < num_workers:
            pairs.append(channels.pair())
        for ours, _ in pairs:
            ours.send(b"+" * AHEAD)
        processes = launcher.launch(assignment, [theirs for _, theirs in pairs], memory, rows)
    finally:
        os.close(memory)
        for ours, theirs in pairs:
            theirs.close()  # or a dead worker's socket would not look closed
            if not processes:
                ours.close()
    return [_Worker(process, ours, row) for process, (ours, _), row in zip(processes, pairs, rows, strict=True)]


def _close(sockets: "Sequence[socket.socket]") -> None:
    for each in sockets:
        each.close()


def _wait(ours: socket.socket, process: WorkerProcess, limit_s: float) -> float:
    """Wait until a worker may have sent something or died; returns the seconds that this took."""
    began = time.monotonic()
    news = select.poll()
    news.register(ours, select.POLLIN)
    if process.fileno() >= 0:
        news.register(process, select.POLLIN)
    clock.waited(news.poll, 1000 * limit_s)
    return time.monotonic() - began
