"""Signs of life of a worker, for the process that waits for it.

In:    calls where there is progress: a sample begun, a pack made, bytes received, an intended wait.
Out:   a row of integers in memory shared with the main process: how often there was progress, and at which sample.
Never: a sign from a thread that runs on while the work stands still: a process that is stopped, or waits for a lock for
       ever, is told from a slow one by these signs alone.

In a process that is no worker the calls do nothing.
"""

import time
from collections.abc import MutableSequence
from typing import NamedTuple

NUM_FIELDS = 4
"""Integers of a row: signs of life so far, then a `SampleLocation`."""
_NAP_S = 1.0

_row: MutableSequence[int] | None = None  # of this process, which does the work of one worker


class SampleLocation(NamedTuple):
    """The sample that a worker has begun last; -1: none yet."""

    lane: int = -1
    shard: int = -1
    sample: int = -1
    """`Sample.position`."""


def report_to(row: MutableSequence[int] | None) -> None:
    """Write this process's signs of life into `row` from now on, the first one at once; None: nowhere."""
    global _row  # noqa: PLW0603 (a worker is a process, so its row is the process's)
    _row = row
    if row is not None:
        row[1:NUM_FIELDS] = SampleLocation()
        beat()


def beat() -> None:
    """There was progress."""
    row = _row
    if row is not None:
        row[0] += 1


def begin_sample(lane: int, shard: int, sample: int) -> None:
    """There was progress, and this is in work now."""
    row = _row
    if row is not None:
        row[1], row[2], row[3] = lane, shard, sample
        row[0] += 1


def sleep(seconds: float) -> None:
    """Wait, and give signs of life meanwhile."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, _NAP_S))
        beat()


def read(row: MutableSequence[int]) -> tuple[int, SampleLocation]:
    """Signs of life so far, and where the worker is."""
    beats, *location = row[0:NUM_FIELDS]
    return beats, SampleLocation(*location)
