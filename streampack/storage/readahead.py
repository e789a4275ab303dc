"""One request for a range, made by the consumer itself or ahead of it by a thread of this process.

    fetch = Fetch(reader, start, stop)
    fetch_ahead(fetch)                  a thread makes the request, once; it never waits and never tries again
    ...                                 the consumer uses what it has
    fetch.finish()                      waits for it, or makes the request here if no thread has begun to
    fetch.blocks, fetch.error           what came, also where it failed in the middle

So only the consumer waits between tries, with an empty buffer; a thread is busy for one request at most, and a shard
that stalls cannot keep the others from being read.
Never: a thread or a lock of another process; a thread that keeps the interpreter from ending.
"""

import contextlib
import os
import queue
import threading
import time
from collections import deque

from streampack.metrics import heartbeat
from streampack.storage.objects import RangeReader
from streampack.storage.pacing import asked_since

MOST_THREADS = 8
"""Threads of a process. With the consumer's own, at most one more request is under way. A process begins with one
thread, so that a storage that refuses requests has refused few when the processes learn it (`pacing`)."""
_IDLE_S = 15.0
_BLOCK_BYTES = 256 * 1024
"""Small pieces that come over the network are joined to blocks of about this size."""


class _DroppedError(Exception):
    """The consumer does not want the rest."""


class Fetch:
    """One request for the bytes from `start` to `stop`."""

    def __init__(self, reader: RangeReader, start: int, stop: int) -> None:
        self.start = start
        self.stop = stop
        self.blocks: deque[bytes] = deque()
        """What has come, in order, from `start` on."""
        self.num_bytes = 0
        self.error: Exception | None = None
        self.seconds = 0.0
        self.asked_since = 0.0
        """When a request that has failed was made, after the pause before it."""
        self._reader = reader
        self._pid = os.getpid()
        self._claim = threading.Lock()  # taken for good by whoever makes the request
        self._done = threading.Event()
        self._dropped = False
        self._parts: list[bytes] = []
        self._part_bytes = 0

    @property
    def is_short(self) -> bool:
        """Whether fewer bytes have come than were asked for."""
        return self.num_bytes < self.stop - self.start

    def run(self) -> None:
        """Make the request, if no thread has begun to."""
        if not self._claim.acquire(blocking=False):
            return
        began = time.monotonic()
        try:
            if not self._dropped:
                self._reader.fetch(self.start, self.stop, self._keep)
        except Exception as error:  # noqa: BLE001 - it is the consumer's to judge
            self.error = error
            self.asked_since = asked_since(began)
        finally:
            self._join()
            self.seconds = time.monotonic() - began
            self._done.set()

    def finish(self) -> None:
        """Make or await the request; returns when it has ended, also in an error."""
        assert self._pid == os.getpid(), "a reading that is under way does not cross a fork"
        self.run()
        self._done.wait()

    def drop(self) -> None:
        """Tell the thread that makes the request to end it; takes no lock, as it may run in a forked child."""
        self._dropped = True
        self.blocks.clear()

    def _keep(self, block: bytes) -> None:
        if self._dropped:
            raise _DroppedError
        heartbeat.beat()
        self.num_bytes += len(block)
        self._parts.append(block)
        self._part_bytes += len(block)
        if self._part_bytes >= _BLOCK_BYTES:
            self._join()

    def _join(self) -> None:
        if self._parts:
            self.blocks.append(self._parts[0] if len(self._parts) == 1 else b"".join(self._parts))
            self._parts, self._part_bytes = [], 0


class _Threads:
    """Daemon threads that come when there is work and go when there was none for a while."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._waiting: queue.SimpleQueue[Fetch] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._running = 0
        self._idle = 0
        self._num_answered = 0

    def add(self, fetch: Fetch) -> None:
        with self._lock:
            self._waiting.put(fetch)
            self._grow()

    def _grow(self) -> None:
        """Start a thread where one is wanted; at first there is one, and one more after each answer."""
        if self._idle < self._waiting.qsize() and self._running < min(MOST_THREADS, 1 + self._num_answered):
            with contextlib.suppress(RuntimeError):  # no thread is left: the consumer makes the request itself
                threading.Thread(target=self._work, name="streampack-read-ahead", daemon=True).start()
                self._running += 1

    def _work(self) -> None:
        while True:
            with self._lock:
                self._idle += 1
            try:
                fetch: Fetch | None = self._waiting.get(timeout=_IDLE_S)
            except queue.Empty:
                fetch = None
            with self._lock:
                self._idle -= 1
                if fetch is None and self._waiting.empty():
                    self._running -= 1
                    return
            if fetch is not None:
                fetch.run()
                with self._lock:
                    self._num_answered += fetch.error is None
                    self._grow()
                del fetch  # or it would hold the range until the next one comes


_threads: _Threads | None = None


def fetch_ahead(fetch: Fetch) -> None:
    """Have a thread of this process make the request."""
    global _threads  # noqa: PLW0603 - threads belong to the process, not to a reading
    if _threads is None or _threads.pid != os.getpid():
        _threads = _Threads()
    _threads.add(fetch)
