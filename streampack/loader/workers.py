"""The processes of a rank: started, listened to, ended.

In:    what to do, and how many workers do it.
Out:   their messages, each worker's in its order; the error that a worker's own code raised; or `LostError` where a
       worker has died, or gives no sign of life while the loader waits for it.
Never: a wait without an end; a signal handler in the trainer's process; a process that outlives the loader.

Each worker has a socket of its own, so whatever happens to one in the middle of a message concerns no other:

    main process  -- a byte for each message that may be made --------------->  worker
                  <-- a byte and a file of shared memory for each message ----

What a worker has sent before it died is still good, and is read before its death is noticed.
"""

import dataclasses
import gc
import multiprocessing
import os
import pickle
import random
import signal
import socket
import threading
import time
from collections.abc import MutableSequence
from contextlib import suppress
from multiprocessing import connection, util
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import NamedTuple

import numpy as np
import torch

from streampack import heartbeat
from streampack.loader import parcels
from streampack.loader.messages import Assignment, Message, WorkerStream
from streampack.ranks.torch_private import ExceptionWrapper

AHEAD = 2
"""Messages that a worker may make ahead of the one that the loader takes next."""
START_S = 120.0
"""Seconds that a worker always has for its first sign of life: a spawned one imports torch, maybe over a network."""
_LOOK_S = 0.5
_POLITE_S = 1.0
_KILLED_S = 10.0


class LostError(Exception):
    """A worker that has died or hangs."""

    def __init__(
        self, why: str, *, worker: int, pid: int, location: heartbeat.SampleLocation, is_hopeless: bool
    ) -> None:
        super().__init__(why)
        self.why = why
        self.worker = worker
        self.pid = pid
        self.location = location
        self.is_hopeless = is_hopeless
        """Whether it failed before its first line of work, so that a restart would fail as well."""


class _Worker(NamedTuple):
    process: BaseProcess
    socket: socket.socket
    row: MutableSequence[int]


class Workers:
    """Processes that make the messages of a rank, from their start until `end`."""

    def __init__(self, assignment: Assignment, num_workers: int, *, start_method: str | None, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._workers: list[_Worker] = []
        # Also where `end` is not called; before multiprocessing ends its processes, as it waits for stopped ones.
        self._finalizer = util.Finalize(self, _end, args=(self._workers,), exitpriority=10)
        context = multiprocessing.get_context(start_method)
        try:
            for worker in range(num_workers):
                self._workers.append(_start(assignment, worker, num_workers, context))
        except BaseException:
            self.end(politely=False)
            raise

    def receive(self, worker: int) -> Message:
        """The worker's next message; raises what went wrong in it, or `LostError`."""
        process, ours, row = self._workers[worker]
        descriptor = _take(ours)
        silent_s, heard = 0.0, row[0]
        while descriptor is None:
            is_dead = not process.is_alive()  # asked before the last look for what it had sent
            descriptor = _take(ours)
            if descriptor is not None:
                break
            limit_s = self._timeout_s if row[0] else max(self._timeout_s, START_S)
            if is_dead or silent_s >= limit_s:
                raise self._lost(worker, silent_s)
            waited_s = _wait(ours, process, min(_LOOK_S, limit_s / 4))
            if row[0] != heard:
                silent_s, heard = 0.0, row[0]
            else:  # a job that was stopped as a whole has not waited all that time
                silent_s += min(waited_s, 2 * _LOOK_S)
        with suppress(OSError):  # it has died since
            ours.send(b"+")
        message, failure = parcels.unwrap(descriptor)
        if message is None:
            failure.reraise()
        assert isinstance(message, Message)
        return message if failure is None else dataclasses.replace(message, error=_raised(failure))

    def _lost(self, worker: int, silent_s: float) -> LostError:
        process, _, row = self._workers[worker]
        beats, location = heartbeat.read(row)
        code = process.exitcode
        if process.is_alive():
            why = f"was silent for {silent_s:.0f} s"
        elif code is None:  # somebody else has waited for it
            why = "ended"
        elif code < 0:
            why = f"was ended by {_signal_name(-code)}"
        else:
            why = f"ended with exit code {code}"
        if not beats:
            why += " before it began"
        assert process.pid is not None
        is_hopeless = not beats and code is not None and code > 0
        return LostError(why, worker=worker, pid=process.pid, location=location, is_hopeless=is_hopeless)

    def end(self, *, politely: bool) -> None:
        """End all of them; `politely`: one that is between two messages, or soon will be, may end by itself."""
        if not politely:
            self.kill()
        self._finalizer()

    def kill(self) -> None:
        """Kill the processes and leave all else to `end`; from any thread."""
        for each in tuple(self._workers):
            with suppress(ValueError):  # it was closed meanwhile
                each.process.kill()


def _start(assignment: Assignment, worker: int, num_workers: int, context: BaseContext) -> _Worker:
    ours, theirs = socket.socketpair()
    row = context.RawArray("q", heartbeat.NUM_FIELDS)
    process: BaseProcess = context.Process(  # type: ignore[attr-defined]  # every context has it but the base class
        target=_work,
        args=(assignment, worker, num_workers, theirs, row),
        name=f"streampack-worker-{worker}",
        daemon=True,
    )
    try:
        ours.setblocking(False)
        ours.send(b"+" * AHEAD)
        process.start()
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()  # or a dead worker's socket would not look closed
    return _Worker(process, ours, row)


def _take(ours: socket.socket) -> int | None:
    """The next message's descriptor, if one has come."""
    try:
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
    except (BlockingIOError, ConnectionError):
        return None
    return descriptors[0] if descriptors else None  # none: closed


def _wait(ours: socket.socket, process: BaseProcess, limit_s: float) -> float:
    """Wait until a worker may have sent something or died; returns the seconds that this took."""
    began = time.monotonic()
    ready = connection.wait([ours, process.sentinel], limit_s)
    if process.sentinel in ready or (ready and _is_closed(ours)):
        process.join(limit_s)
    return time.monotonic() - began


def _is_closed(ours: socket.socket) -> bool:
    try:
        return not ours.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def _end(workers: list[_Worker]) -> None:
    for each in workers:
        with suppress(OSError):
            each.socket.shutdown(socket.SHUT_RDWR)  # reaches the worker whoever else has inherited our end
        each.socket.close()
    patience = time.monotonic() + _POLITE_S
    for each in workers:
        each.process.join(max(0.0, patience - time.monotonic()))
    for each in workers:
        each.process.kill()  # a stopped one too
    for each in workers:
        each.process.join(_KILLED_S)
        with suppress(ValueError):  # it hangs in the kernel and cannot be killed before it returns
            each.process.close()
    workers.clear()


def _signal_name(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    return f"{name}, as when memory runs out" if number == signal.SIGKILL else name


# --- in the worker


def _work(
    assignment: Assignment, worker: int, num_workers: int, theirs: socket.socket, row: MutableSequence[int]
) -> None:
    """A worker's life: a message for each byte that comes, until the socket is closed."""
    heartbeat.report_to(row)
    gc.freeze()  # the collector writes to what it looks at, and what a fork shares would be copied after some minutes
    _end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # for the main process to decide
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not the trainer's handler
    torch.set_num_threads(1)
    # Nothing of ours draws from these; a transform that does should not draw what all others draw.
    random.seed(worker)
    np.random.seed(worker)  # noqa: NPY002 (the global stream is what is meant)
    torch.manual_seed(worker)
    messages, has_failed = iter(WorkerStream(assignment, worker=worker, num_workers=num_workers)), False
    with theirs, suppress(ConnectionError):
        while theirs.recv(1):
            if has_failed:
                continue
            message, failure = None, None
            try:
                message = next(messages)
                if message.error is not None:
                    failure, message = _wrapped(message.error, worker), dataclasses.replace(message, error=None)
            except Exception as error:  # noqa: BLE001 (it is raised in the main process)
                failure = _wrapped(error, worker)
            has_failed = failure is not None
            parcel = parcels.wrap((message, failure))
            try:
                socket.send_fds(theirs, [b"+"], [parcel])
            finally:
                os.close(parcel)


def _wrapped(error: Exception, worker: int) -> ExceptionWrapper:
    """The error as torch takes one from process to process."""
    raised = (type(error), error, error.__traceback__)
    wrapper = ExceptionWrapper(raised, where=f"in worker process {worker}")  # type: ignore[no-untyped-call]
    try:
        pickle.dumps(wrapper)
    except Exception:  # noqa: BLE001 (a class that cannot be pickled)
        wrapper.exc_type = RuntimeError
    return wrapper


def _raised(failure: ExceptionWrapper) -> Exception:
    """What torch makes of it here."""
    try:
        failure.reraise()  # type: ignore[no-untyped-call]
    except Exception as error:  # noqa: BLE001 (it is raised in its place)
        return error
    raise AssertionError("what was wrapped is raised")


def _end_with_parent() -> None:
    """Let this worker end when its parent has: it may be in the middle of anything."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)  # a parent's end sends no signal
        os._exit(1)

    threading.Thread(target=watch, name="streampack-parent-watch", daemon=True).start()
