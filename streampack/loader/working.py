"""What a worker does, in whatever way its process was started.

In:    what the workers of its rank are to do, its number, its end of a socket, its row of signs of life.
Out:   a numbered message for each byte that comes through the socket.
Never: torch, unless the user's own objects bring it; a life after the trainer's.
"""

import contextlib
import dataclasses
import gc
import itertools
import os
import select
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Sequence

from streampack.errors import LoaderError
from streampack.loader import channels, parcels, shortage
from streampack.loader.failures import Failure, failure_of
from streampack.loader.messages import Work
from streampack.metrics import clock, heartbeat
from streampack.storage.redaction import redacted

FRAME = struct.Struct("<q")
"""What comes with the descriptor of a message: how many messages the worker has sent before it."""
_SERVER_S = 2.0
"""Within which a server that is not stopped has ended its workers after the trainer's end."""


def work(
    assignment: Work,
    worker: int,
    num_workers: int,
    theirs: socket.socket,
    row: heartbeat.Row,
    *,
    server: int | None = None,
) -> None:
    """Make messages until the socket is closed; `server`: the process id of the server that has started this one."""
    heartbeat.report_to(row)
    clock.install(heartbeat.clock_of(row))
    gc.freeze()  # the collector writes to what it looks at, and what a fork shares would be copied after some minutes
    _end_with_trainer(theirs, server)
    messages, has_failed = assignment.messages(worker, num_workers), False
    with theirs, contextlib.suppress(ConnectionError):
        for number in itertools.count():
            clock.switch(clock.SEND + clock.WAIT)
            if not theirs.recv(1):
                return
            clock.switch(clock.PACK)
            if has_failed:
                continue
            message, failure = None, None
            try:
                message = next(messages)
                if message.error is not None:
                    failure = failure_of(message.error, _here(worker))
                    message = dataclasses.replace(message, error=None)
            except BaseException as error:  # noqa: BLE001 (it is raised in the trainer)
                failure = failure_of(_as_exception(error, assignment, row), _here(worker))
            has_failed = failure is not None
            clock.switch(clock.SEND)
            send(theirs, number, message, failure)


def send(theirs: socket.socket, number: int, message: object, failure: Failure | None) -> None:
    """Send one message; where something is short, after that has passed."""
    parcel = shortage.persist(lambda: parcels.wrap((message, failure)), "a message of a worker")
    try:
        shortage.persist(lambda: channels.send(theirs, FRAME.pack(number), [parcel]), "a message of a worker")
    finally:
        os.close(parcel)


def _as_exception(error: BaseException, assignment: Work, row: heartbeat.Row) -> Exception:
    """The error; for one that ends a process, such as `SystemExit`, one that says who raised it."""
    if isinstance(error, Exception):
        return error
    _, location = heartbeat.read(row)
    where = ""
    if location.shard >= 0:
        url = redacted(assignment.run.sources[location.source].corpus.table[location.shard].url)
        where = f" at lane {location.lane}, {url}, sample {location.sample}"
    exits = ", as sys.exit() does" if isinstance(error, SystemExit) else ""
    problem = LoaderError(
        f"the transform or the tokenizer has raised {type(error).__name__}({error}){exits}{where}. That would end the "
        "worker: let it raise an Exception that says what is wrong, or return None to leave a document out"
    )
    problem.__cause__ = error
    return problem


def _here(worker: int) -> str:
    return f"raised in worker {worker} (process {os.getpid()})"


def _end_with_trainer(theirs: socket.socket, server: int | None) -> None:
    """Let this process end when the trainer has, in the middle of anything: only the trainer has the other end."""
    closed = select.poll()
    closed.register(theirs.fileno(), 0)  # no event but the other end's closing

    def watch() -> None:
        closed.poll()
        if server is not None:
            time.sleep(_SERVER_S)  # a server that is not stopped ends its workers meanwhile
            if os.getppid() == server:
                os.kill(server, signal.SIGKILL)
            os.killpg(0, signal.SIGKILL)  # this process, and what it has started
        os._exit(1)

    threading.Thread(target=watch, name="streampack-trainer-watch", daemon=True).start()


def work_in_fork(
    assignment: Work,
    worker: int,
    num_workers: int,
    theirs: socket.socket,
    row: heartbeat.Row,
    others: Sequence[socket.socket],
) -> None:
    """`work` in a process that was forked from the trainer; `others`: sockets of the other workers."""
    for each in others:
        each.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # for the trainer to decide
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not the trainer's handler
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)
    work(assignment, worker, num_workers, theirs, row)
