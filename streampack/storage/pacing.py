"""When a request to a storage may be made: the first ones of many processes, and all while a storage refuses some.

In:    how many processes begin at once; each request before it is made; each refusal (HTTP 503 or 429).
Out:   a pause before a request, mostly none.
Never: a lock, or anything else that a process that has died leaves to the others; a pause for a local file, or with a
       policy that never waits (`RetryPolicy.immediate()`).

The processes of a node that ask one place (a bucket, a web server) slow down together: what one of them is told holds
for all. They share five numbers for each place in a small file of their user, which each maps into its memory.

    seconds after a refusal         0       2       4       6       8      12      20
    requests a second, where r      0.7 r   0.96 r  r       1.04 r  1.3 r   3.4 r   no limit
    were too many

This is how CUBIC (RFC 9438) has a connection try for more: soon almost as much as was too much, for a while about that,
then ever faster. A request takes the next turn, 1 / rate after the one before. What was sent before a cut and is
refused after it is no second reason to cut. Two processes that write at the same moment lose one of two counts or
turns, and of many places two may have the same five numbers; both do no harm.
"""

import errno
import functools
import math
import mmap
import os
import random
import re
import stat
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import ParamSpec, TypeVar

from streampack.storage import threads
from streampack.storage.cache.blocknames import object_key
from streampack.storage.clients import Clients, local_path
from streampack.storage.faults import is_throttled, retry_after_s
from streampack.storage.objects import Keep, RangeReader

_P = ParamSpec("_P")
_T = TypeVar("_T")

_STARTS_A_SECOND = 20_000
"""Processes of a job that begin to ask in a second."""
_LONGEST_START_S = 1.0
_CUT = 0.7
_BACK_S = 4.0
"""Seconds after a cut in which the rate is that again which was refused."""
_LOWEST_RATE = 10.0
"""Requests a second of a node that are never paced: below it each request waits only for itself (`retry`)."""
_KNOWN_S = 20.0
"""Seconds after a cut in which there is a limit; no request waits longer for its turn."""
_RECENT_S = 0.2
"""Over which the requests of the node are averaged; no longer, as the first refusals come after so much time."""

_RECENT, _RECENT_AT, _CUT_AT, _REFUSED, _NEXT = range(5)
"""Requests a second and when that was; when the rate was cut, and the rate that was too high; the next turn."""
_SLOTS, _SLOT_BYTES = 512, 64
"""Of the file; each place has a slot, by its hash."""

_turn = threading.local()
_start = 0, 0.0
"""The process that waits with its first request, and until when."""


def begin_among(num_processes: int) -> None:
    """This process is one of so many that begin at one moment: its first request waits for its own part of a second.

    At most 0.05 ms for each process, and no more than a second; drawn once in the life of a process.
    """
    global _start  # noqa: PLW0603 - a matter of the process, whatever it reads
    if _start[0] != os.getpid():
        longest_s = min(num_processes / _STARTS_A_SECOND, _LONGEST_START_S) if num_processes > 1 else 0.0
        _start = os.getpid(), time.monotonic() + random.SystemRandom().random() * longest_s


def in_turn(url: str, clients: Clients, ask: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """What a request gives, which is made when it is its turn; a refusal slows this node's processes down.

    Raises:
        Exception: what `ask` raises.
        StoppedError: nobody waits for the answer any more.
    """
    retry = clients.retry
    if retry.max_wait_s == 0 or local_path(url) is not None:
        return ask(*args, **kwargs)
    place = _place(url)
    pace = clients.client(f"pace of {place}", lambda: Pace.of(object_key(place, clients)))
    began = _turn.began = _await_turn(pace, min(_KNOWN_S, retry.budget_s))
    try:
        return ask(*args, **kwargs)
    except Exception as error:  # of whatever library asks; raised again
        if is_throttled(error):
            pace.refused(began, time.monotonic(), retry_after_s(error))
        raise


def asked_since(began: float) -> float:
    """Since when the request of this thread that began at `began` has really been made: after the pause before it."""
    return max(began, getattr(_turn, "began", began))


def _await_turn(pace: "Pace", longest_s: float) -> float:
    """Wait for the turn of a request, at most so many seconds; returns when it begins."""
    now = time.monotonic()
    if now < _start[1] and _start[0] == os.getpid():
        threads.pause(_start[1] - now)
        now = time.monotonic()
    end = now + longest_s
    while True:
        cut_at = pace.cut_at
        turn = min(pace.turn(now), end)
        if turn > now:
            threads.pause(turn - now)
            now = time.monotonic()
        if pace.cut_at == cut_at or now >= end:  # else the turn was one of a rate that was refused meanwhile
            pace.sent(now)
            return now


class PacedObject(RangeReader):
    """The reader of a remote object, each of whose requests is made in its turn."""

    def __init__(self, inner: RangeReader, clients: Clients) -> None:
        self.pin = inner.pin
        self.whole_ranges = inner.whole_ranges
        self.tells_version = inner.tells_version
        self._inner = inner
        self._clients = clients

    @property
    def reads_ahead(self) -> bool:  # type: ignore[override]  # some readers know it after their first answer
        return self._inner.reads_ahead

    def fetch(self, start: int, stop: int, keep: Keep) -> None:
        in_turn(self.pin.url, self._clients, self._inner.fetch, start, stop, keep)

    def close(self) -> None:
        self._inner.close()


class Pace:
    """How fast the processes of a node ask one place; times are those of the machine's monotonic clock, in seconds."""

    def __init__(self, shared: memoryview) -> None:
        """`shared`: a slot, zeros at first."""
        self._shared = shared.cast("d")  # a number is read and written in one piece

    @classmethod
    def of(cls, place: str) -> "Pace":
        """That of all processes of this user on this node."""
        slot = int.from_bytes(blake2b(place.encode("utf-8", "surrogatepass"), digest_size=8).digest()) % _SLOTS
        return cls(memoryview(_memory())[slot * _SLOT_BYTES :][:_SLOT_BYTES])

    @property
    def cut_at(self) -> float:
        """When the rate was cut last; 0: never."""
        return self._shared[_CUT_AT]

    def rate(self, now: float) -> float:
        """Requests a second that the node may make."""
        since = now - self._shared[_CUT_AT]
        if self._shared[_CUT_AT] and 0 <= since < _KNOWN_S:
            return max(self._shared[_REFUSED] * (1 + (1 - _CUT) * (since / _BACK_S - 1) ** 3), _LOWEST_RATE)
        return math.inf  # a time to come was written before the machine was started again

    def turn(self, now: float) -> float:
        """When a request may be made that is wanted now; the next one comes after it."""
        rate = self.rate(now)
        if rate == math.inf:
            return now
        turn = min(max(now, self._shared[_NEXT]), now + _KNOWN_S)
        self._shared[_NEXT] = turn + 1 / rate
        return turn

    def sent(self, now: float) -> None:
        """A request is made now."""
        self._shared[_RECENT], self._shared[_RECENT_AT] = self._recent(now) + 1 / _RECENT_S, now

    def refused(self, began: float, now: float, asked_s: float = 0.0) -> None:
        """A request that was made at `began` is refused; the server asks for `asked_s` seconds without requests."""
        shared = self._shared
        if not began <= shared[_CUT_AT] <= now:
            shared[_REFUSED] = min(self.rate(now), self._recent(now))
            shared[_CUT_AT] = shared[_NEXT] = now
        if 0 < asked_s <= _KNOWN_S:  # who is asked to wait for longer does so by himself, or has no budget for it
            shared[_NEXT] = max(shared[_NEXT], now + asked_s)

    def _recent(self, now: float) -> float:
        """Requests a second of the node."""
        past_s = max(now - self._shared[_RECENT_AT], 0.0)
        return self._shared[_RECENT] * math.exp(-past_s / _RECENT_S)


def _place(url: str) -> str:
    """What refuses as one, as the beginning of its URLs: a bucket or a web server."""
    return re.match(r"(\w+::)*[^:/]*(://[^/?#]*)?", url)[0]  # type: ignore[index]  # matches whatever there is


@functools.cache  # it stays the same file in forked processes
def _memory() -> mmap.mmap:
    """The memory that this user's processes share; of this process and its children where there can be no file."""
    with suppress(OSError, ValueError):
        folder = Path("/dev/shm")  # noqa: S108 - memory; that the file is this user's own is looked at
        if not os.access(folder, os.W_OK):
            folder = Path(tempfile.gettempdir())
        return _map(folder / f"streampack-pace-1-{os.geteuid()}")
    return mmap.mmap(-1, _SLOTS * _SLOT_BYTES)


def _map(path: Path) -> mmap.mmap:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    descriptor = os.open(path, flags, 0o600)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            raise OSError(errno.EPERM, "not a file of this user")
        missing = _SLOTS * _SLOT_BYTES - found.st_size
        if missing > 0:  # written, not only made longer: a hole in a folder that is full would kill who writes there
            os.pwrite(descriptor, bytes(missing), found.st_size)
        return mmap.mmap(descriptor, _SLOTS * _SLOT_BYTES)
    finally:
        os.close(descriptor)
