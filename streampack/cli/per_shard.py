"""One piece of work for each shard, in this process or side by side in several: whole shards, the largest first.

In: a function of (index, shard, tell) that can be pickled; it calls `tell` now and then with how many more of the
shard's bytes are done. Out: (index, what it gave) for each shard, in any order.
Never: a process that works on after an error or Ctrl-C; more than a few results in memory.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from streampack.corpus.table import ShardTable
from streampack.errors import LoaderError, ShardError
from streampack.records import Shard

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import Synchronized
    from multiprocessing.synchronize import Event

_Result_co = TypeVar("_Result_co", covariant=True)
Advance = Callable[[int, int], None]
"""Called with (bytes of shards done, shards done) so far."""


class Work(Protocol[_Result_co]):
    """What is done with one shard; `tell` may raise to stop it."""

    def __call__(self, index: int, shard: Shard, *, tell: Callable[[int], None]) -> _Result_co: ...


def num_processes(asked: int | None, table: ShardTable) -> int:
    """As many as asked for, else one per core that this process may use; never more than shards."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(asked or cores, len(table))


def each_shard(
    work: Work[_Result_co], table: ShardTable, indexes: Sequence[int], *, workers: int, advance: Advance
) -> Iterator[tuple[int, _Result_co]]:
    """What `work` gives for each of the shards with these indexes."""
    if workers <= 1:
        yield from _here(work, table, indexes, advance=advance)
    else:
        yield from _side_by_side(work, table, indexes, workers=workers, advance=advance)


def _here(
    work: Work[_Result_co], table: ShardTable, indexes: Sequence[int], *, advance: Advance
) -> Iterator[tuple[int, _Result_co]]:
    bytes_done = finished = 0

    def tell(size: int) -> None:
        nonlocal bytes_done
        bytes_done += size
        advance(bytes_done, finished)

    for index in indexes:
        yield index, work(index, table[index], tell=tell)
        finished += 1


def _side_by_side(
    work: Work[_Result_co], table: ShardTable, indexes: Sequence[int], *, workers: int, advance: Advance
) -> Iterator[tuple[int, _Result_co]]:
    chosen = np.asarray(indexes, dtype=np.int64)
    order = chosen[np.argsort(-table.sizes[chosen], kind="stable")].tolist()  # none large is left
    context = multiprocessing.get_context()
    bytes_done: Synchronized[int] = context.Value("q", 0)
    stop = context.Event()
    with ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start, initargs=(work, bytes_done, stop)
    ) as pool:
        left = iter(order)
        running: dict[Future[Any], int] = {}
        finished = 0
        try:
            while True:
                while len(running) < 2 * workers and (index := next(left, None)) is not None:
                    running[pool.submit(_work, index, table[index])] = index
                if not running:
                    return
                ended, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
                finished += len(ended)
                advance(bytes_done.value, finished)
                for future in ended:
                    yield running.pop(future), future.result()
        except BrokenProcessPool as error:
            raise LoaderError("a working process died: killed, or out of memory; use fewer --workers") from error
        finally:
            stop.set()  # an error, or Ctrl-C: the others end at their next sample
            pool.shutdown(cancel_futures=True)  # without a wait here, its thread may fail when Python ends


_job: "tuple[Work[Any], Synchronized[int], Event]"
"""What this process was started for."""


def _start(*job: Any) -> None:
    global _job  # noqa: PLW0603 (a process pool hands its work to a plain function)
    _job = job
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the main process, which sets `stop`


def _work(index: int, shard: Shard) -> Any:  # Any: what the work gives
    work, bytes_done, stop = _job

    def tell(size: int) -> None:
        with bytes_done.get_lock():
            bytes_done.value += size
        if stop.is_set():
            raise ShardError("stopped", url=shard.url)

    return work(index, shard, tell=tell)
