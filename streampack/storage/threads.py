"""Questions to storages that several threads ask at once: their answers in order, or the first error at once.

    with contextlib.closing(side_by_side(storage.size, urls, num_threads=32)) as sizes:
        for size in sizes: ...

In: a function, and what it is called with, once each. Out: what it returned, in the same order.
Never: after an error or an interrupt a wait for the other threads, or one of them that asks again: each ends with the
request that it is in, at its next wait or `check`.
"""

import threading
import time
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from streampack.errors import StreampackError
from streampack.metrics import heartbeat

_Item = TypeVar("_Item")
_Answer = TypeVar("_Answer")
_NAP_S = 0.1


class StoppedError(StreampackError):
    """Nobody waits any more for what this thread asks."""


class _Thread(threading.local):
    stops: tuple[threading.Event, ...] = ()
    """Set when this thread is to end: one for each `side_by_side` that it works for."""


_this = _Thread()


def side_by_side(
    work: Callable[[_Item], _Answer], items: Iterable[_Item], *, num_threads: int
) -> Generator[_Answer, None, None]:
    """What `work` returns for each item, in order. Close it (`contextlib.closing`) where not all of it may be taken."""
    stop = threading.Event()
    stops = (*_this.stops, stop)

    def run(item: _Item) -> _Answer:
        _this.stops = stops
        check()
        return work(item)

    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="streampack-ask")
    try:
        yield from pool.map(run, items)
    except BaseException:  # an interrupt too: threads are not waited for
        stop.set()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def check() -> None:
    """Raise `StoppedError` in a thread whose answer nobody waits for any more."""
    if any(stop.is_set() for stop in _this.stops):
        raise StoppedError("stopped, as what asked for it has ended in an error or an interrupt")


def pause(seconds: float) -> None:
    """Wait, with signs of life; in a thread whose answer nobody waits for any more, raise `StoppedError` instead."""
    if not _this.stops:
        return heartbeat.sleep(seconds)
    end = time.monotonic() + seconds
    check()
    while (left := end - time.monotonic()) > 0:
        heartbeat.sleep(min(left, _NAP_S))
        check()
    return None
