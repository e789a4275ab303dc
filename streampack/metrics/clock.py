"""Where the time of a thread that makes packs or hands them out goes: nanoseconds by source, stage, and work or wait.

In:    calls where a thread goes from one stage to another, for many documents at a time.
Out:   a row of integers, which another thread, or another process that shares the memory, may read at any time.
Never: time in two stages at once; an end that a reader waits for: what a stage has had so far counts.

A cell of the row is the total of a slot; while the thread is in that slot, the total less the clock's reading when it
began. That is negative, as no slot can have had more time than the clock has run, so a reader knows what to add:

    cell              0      -1000              250               -1750
                      enters at 1000    leaves at 1250    enters at 2000      read at 2100: -1750 + 2100 = 350

In a thread without a clock the calls do nothing.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import ParamSpec, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

_T = TypeVar("_T")
_P = ParamSpec("_P")

STAGES = ("storage", "decompress", "tar", "transform", "tokenize", "pack", "send", "main", "trainer")
"""From a shard to the trainer."""
STORAGE, DECOMPRESS, TAR, TRANSFORM, TOKENIZE, PACK, SEND, MAIN, TRAINER = range(0, 2 * len(STAGES), 2)
"""Slots: the work of each stage; that + `WAIT` is its wait."""
WAIT = 1
IDLE = TRAINER + WAIT
"""Nothing that is counted."""
NUM_SLOTS = IDLE + 1

Cells: TypeAlias = memoryview
"""`NUM_SLOTS` integers for each source."""


class Clock:
    """The clock of one thread."""

    __slots__ = ("_base", "_cells", "_slot")

    def __init__(self, cells: Cells) -> None:
        self._cells = cells
        self._base = 0
        """Of the present source."""
        self._slot = IDLE

    @classmethod
    def of_sources(cls, num_sources: int) -> "Clock":
        """A clock that only this process can read."""
        return cls(memoryview(bytearray(8 * NUM_SLOTS * num_sources)).cast("q"))

    def switch(self, slot: int) -> int:
        """Go to a slot; returns the one before. An exception of a signal handler in the middle costs its time only."""
        cells, now, before = self._cells, time.monotonic_ns(), self._slot
        at = self._base + before
        if (held := cells[at]) < 0:
            cells[at] = held + now
        self._slot = slot
        cells[self._base + slot] -= now
        return before

    def begin_source(self, source: int) -> None:
        """Count for a source from now on; for the first one where the clock is of another run, with fewer sources."""
        base = NUM_SLOTS * source
        if base >= len(self._cells):
            base = 0
        if base != self._base:
            slot = self.switch(IDLE)
            cells, at = self._cells, self._base + IDLE
            cells[at] += time.monotonic_ns()
            self._base, self._slot = base, IDLE
            self.switch(slot)

    def wait(self) -> int:
        """Go to the wait of the present stage; returns the slot before."""
        return self.switch(self._slot | WAIT)

    def read(self) -> NDArray[np.int64]:
        """int64 [num_sources, NUM_SLOTS]: nanoseconds so far."""
        return read(self._cells)


class _Thread(threading.local):
    clock: Clock | None = None


_this = _Thread()


def install(clock: Clock | None) -> Clock | None:
    """Count this thread's time on a clock from now on, or on none; returns the one before."""
    before, _this.clock = _this.clock, clock
    return before


def switch(slot: int) -> int:
    """Go to a slot; returns the one before, to go back there."""
    clock = _this.clock
    return slot if clock is None else clock.switch(slot)


def wait() -> int:
    """Go to the wait of the present stage; returns the slot before, to go back there."""
    clock = _this.clock
    return IDLE if clock is None else clock.wait()


def timed(slot: int, call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """What a call gives, which is made in the time of a slot."""
    clock = _this.clock
    if clock is None:
        return call(*args, **kwargs)
    before = clock.switch(slot)
    try:
        return call(*args, **kwargs)
    finally:
        clock.switch(before)


def waited(call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """What a call gives, for which the present stage waits."""
    before = wait()
    try:
        return call(*args, **kwargs)
    finally:
        switch(before)


def begin_source(source: int) -> None:
    """Count for a source of the run from now on."""
    clock = _this.clock
    if clock is not None:
        clock.begin_source(source)


def within(slot: int, items: Iterable[_T]) -> Iterator[_T]:
    """The items; the time in which each is made is that of the slot."""
    iterator = iter(items)
    while True:
        before = switch(slot)
        try:
            item = next(iterator)
        except StopIteration:
            return
        finally:
            switch(before)
        yield item


def read(cells: Cells) -> NDArray[np.int64]:
    """int64 [num_sources, NUM_SLOTS]: nanoseconds so far, of a thread that goes on meanwhile.

    A later reading may have some microseconds less in a cell.
    """
    found = np.array(cells, dtype=np.int64)
    found[found < 0] += time.monotonic_ns()
    return found.reshape(-1, NUM_SLOTS)
