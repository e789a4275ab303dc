"""One piece of work for each of many items, in this process or side by side in several.

In: a function of (item, tell) that can be pickled; it calls `tell` now and then with how many more bytes are done.
Out: what it gave for each item, as it becomes ready.
Never: a process that works on after an error, Ctrl-C or the end of this process; more than a few results in memory.
"""

import gc
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from streampack.errors import LoaderError
from streampack.storage.threads import StoppedError

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import Synchronized
    from multiprocessing.synchronize import Event

_Item_contra = TypeVar("_Item_contra", contravariant=True)
_Result_co = TypeVar("_Result_co", covariant=True)
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
Advance = Callable[[int, int], None]
"""Called with (bytes done, items done) so far."""


def advance_silently(bytes_done: int, items_done: int) -> None:
    """An `Advance` that tells nobody."""


class Work(Protocol[_Item_contra, _Result_co]):
    """What is done with one item; `tell` may raise to stop it."""

    def __call__(self, item: _Item_contra, *, tell: Callable[[int], None]) -> _Result_co: ...


def num_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def each_item(
    work: Work[_Item, _Result], items: Iterable[_Item], *, workers: int, advance: Advance
) -> Iterator[tuple[_Item, _Result]]:
    """Each item with what `work` gives for it: in order with one worker, in any order with several processes."""
    if workers <= 1:
        yield from _here(work, items, advance=advance)
    else:
        yield from _side_by_side(work, items, workers=workers, advance=advance)


def _here(work: Work[_Item, _Result], items: Iterable[_Item], *, advance: Advance) -> Iterator[tuple[_Item, _Result]]:
    bytes_done = finished = 0

    def tell(size: int) -> None:
        nonlocal bytes_done
        bytes_done += size
        advance(bytes_done, finished)

    for item in items:
        result = work(item, tell=tell)
        finished += 1
        advance(bytes_done, finished)
        yield item, result


def _side_by_side(
    work: Work[_Item, _Result], items: Iterable[_Item], *, workers: int, advance: Advance
) -> Iterator[tuple[_Item, _Result]]:
    context = multiprocessing.get_context()
    bytes_done: Synchronized[int] = context.Value("q", 0)
    stop = context.Event()
    with ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start, initargs=(work, bytes_done, stop)
    ) as pool:
        left = iter(items)
        running: dict[Future[Any], _Item] = {}
        finished = 0
        try:
            while True:
                while len(running) < 2 * workers:
                    try:
                        item = next(left)
                    except StopIteration:
                        break
                    running[pool.submit(_work, item)] = item
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
            stop.set()  # an error, or Ctrl-C: the others end at their next `tell`
            pool.shutdown(cancel_futures=True)  # without a wait here, its thread may fail when Python ends


_job: "tuple[Work[Any, Any], Synchronized[int], Event]"
"""What this process was started for."""


def _start(*job: Any) -> None:
    global _job  # noqa: PLW0603 (a process pool hands its work to a plain function)
    _job = job
    gc.freeze()  # what the main process has left to collect stays its own: clients close connections when they go
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the main process, which sets `stop`
    threading.Thread(target=_end_with_parent, name="streampack-parent", daemon=True).start()


def _end_with_parent() -> None:
    """End this process when the main process is gone: a pool's own processes would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _work(item: Any) -> Any:  # Any: what the work takes and gives
    work, bytes_done, stop = _job

    def tell(size: int) -> None:
        with bytes_done.get_lock():
            bytes_done.value += size
        if stop.is_set():
            raise StoppedError("stopped")

    return work(item, tell=tell)
