"""Signs of life of a worker, for the process that waits for it.

In:    calls where there is progress: a sample begun, a pack made, bytes received, an intended wait.
Out:   a row of integers in memory shared with the main process: how often there was progress, and at which sample; and
       where the worker's time goes (`clock`).
Never: a sign from a thread that runs on while the work stands still: these signs alone distinguish a slow process from
       one that is stopped or waits for a lock for ever.

In a process that is not a worker the calls do nothing.
"""

import mmap
import os
import time
from typing import NamedTuple, TypeAlias

from streampack.metrics import clock

NUM_FIELDS = 5
"""Integers of a row: signs of life so far, then a `SampleLocation`. Then come those of the worker's clock."""
_NAP_S = 1.0

Row: TypeAlias = memoryview
"""`NUM_FIELDS` integers or more."""

_row: Row | None = None  # of this process, which does the work of one worker


class SampleLocation(NamedTuple):
    """The sample that a worker has begun last; -1: none yet."""

    lane: int = -1
    shard: int = -1
    sample: int = -1
    """`Sample.position`."""
    source: int = 0
    """Whose shard it is: the index of the source in the run."""


def new_rows(descriptor: int, num_workers: int, num_sources: int) -> list[Row]:
    """The rows of all workers, in the memory that a descriptor stands for, which is empty."""
    os.ftruncate(descriptor, num_workers * (NUM_FIELDS + clock.NUM_SLOTS * num_sources) * 8)
    found = rows(descriptor, num_workers)
    for row in found:
        row[1], row[2], row[3], row[4] = SampleLocation()
    return found


def rows(descriptor: int, num_workers: int) -> list[Row]:
    """The rows of all workers."""
    memory = memoryview(mmap.mmap(descriptor, 0))
    item = len(memory) // num_workers
    return [memory[start : start + item].cast("q") for start in range(0, len(memory), item)]


def clock_of(row: Row) -> clock.Clock:
    """The clock of the worker whose row it is."""
    return clock.Clock(row[NUM_FIELDS:])


def report_to(row: Row | None) -> None:
    """Write this process's signs of life into `row` from now on, the first one at once; None: nowhere."""
    global _row  # noqa: PLW0603 (a worker is a process, so its row is the process's)
    _row = row
    if row is not None:
        row[1], row[2], row[3], row[4] = SampleLocation()
        beat()


def beat() -> None:
    """Report progress."""
    row = _row
    if row is not None:
        row[0] += 1


def begin_sample(lane: int, shard: int, sample: int) -> None:
    """Report progress, and the sample that is being worked on from now on."""
    row = _row
    if row is not None:
        row[1], row[2], row[3] = lane, shard, sample
        row[0] += 1


def begin_source(source: int) -> None:
    """Report of which source the samples are that are worked on from now on."""
    row = _row
    if row is not None:
        row[4] = source


def sleep(seconds: float) -> None:
    """Wait, and give signs of life meanwhile."""
    end, before = time.monotonic() + seconds, clock.wait()
    try:
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, _NAP_S))  # the pause itself
            beat()
    finally:
        clock.switch(before)


def read(row: Row) -> tuple[int, SampleLocation]:
    """The number of signs of life so far, and the sample that the worker has begun last."""
    beats, *location = row[:NUM_FIELDS]
    return beats, SampleLocation(*location)
