"""The messages of a rank's workers, which are restarted when one of them dies, hangs, or is short of something.

In:    what the workers are to do.
Out:   their messages in the rank's order, without end; the same messages however often the workers were restarted, so
       that nothing after this stage (counts, exchanges between ranks, batches) notices a restart. Where no restart
       helps, the error as the last message: it has a place in the order, and the other ranks learn of it.
Never: a message twice, or one left out; a restart beyond the budget; a restart because of what a worker's code raised,
       but for errors that say that memory, descriptors or threads are short, which a new process may have.

    worker 0:  [m0] [m1] [m2] x          dead, or silent for too long: all workers are ended and started again
    worker 1:  [m0] [m1]                 at the lanes' positions after the messages that were received:
    worker 0:                 [m3] ...   worker 0 continues with its message 3,
    worker 1:            [m2] [m3] ...   worker 1 with its message 2
"""

import dataclasses
import logging
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from streampack.errors import LoaderError
from streampack.lanes.position import NUM_CURSOR, LanePosition, advance_rows, known_after
from streampack.lanes.run import LaneStart
from streampack.loader import shortage
from streampack.loader.messages import COLUMNS, DOCUMENTS, Assignment, Message, Slot, Work, failed
from streampack.loader.processes import Launcher
from streampack.loader.times import WorkerTimes
from streampack.loader.workers import LostError, Workers
from streampack.metrics.heartbeat import SampleLocation
from streampack.records import Cursor
from streampack.storage.redaction import redacted
from streampack.tar.codecs import is_compressed

if TYPE_CHECKING:
    from streampack.lanes.position import SkippedRange

_log = logging.getLogger(__name__)

BUDGET = 3
"""Restarts allowed within `PERIOD_S`; a cause that kills workers more often is not removed by restarts."""
PERIOD_S = 3600.0


@dataclass(slots=True)
class WorkerRestarts:
    """What starts a loader's workers, where their time goes, and how often they were restarted."""

    launcher: Launcher
    times: WorkerTimes = field(default_factory=WorkerTimes)
    number: int = 0
    _recent: deque[float] = field(default_factory=deque)

    def allow(self) -> bool:
        """Count one more, unless the budget is spent."""
        now = time.monotonic()
        while self._recent and now - self._recent[0] > PERIOD_S:
            self._recent.popleft()
        if len(self._recent) >= BUDGET:
            return False
        self._recent.append(now)
        self.number += 1
        return True


class RestartingMessages:
    """The messages of a rank's workers: worker 0's, worker 1's, ..., worker 0's, ..."""

    def __init__(
        self,
        work: Work,
        num_workers: int,
        progress: "Progress",
        *,
        timeout_s: float,
        restarts: WorkerRestarts,
    ) -> None:
        """`progress`: told what comes, and asked what is left of `work` when the workers are restarted."""
        self._run = work.run
        self._num_workers = num_workers
        self._progress = progress
        self._timeout_s = timeout_s
        self._restarts = restarts
        self._next = 0
        self._is_interrupted = False
        self._workers = self._start(work)

    def _start(self, work: Work) -> Workers:
        def start() -> Workers:
            launcher, times = self._restarts.launcher, self._restarts.times
            return Workers(work, self._num_workers, launcher, times, timeout_s=self._timeout_s)

        return shortage.persist(start, "starting the workers")

    def __iter__(self) -> "RestartingMessages":
        return self

    def __next__(self) -> Message:
        """The next message; the last one has what a worker's code raised, or why a restart does not help.

        Raises:
            LoaderError: this process is a fork of the trainer, or another thread has interrupted this one.
        """
        self._workers.check_owner()
        try:
            message = self._receive()
        except Exception as error:  # it is raised in its place
            if self._is_interrupted:
                raise
            return failed(error, self._run)
        self._progress.add(self._next, message)
        self._next = (self._next + 1) % self._num_workers
        return message

    def _receive(self) -> Message:
        while True:
            try:
                return self._workers.receive(self._next)
            except LostError as lost:
                self._restart(lost)

    def close(self) -> None:
        """End the workers."""
        self._workers.end()

    def interrupt(self) -> None:
        """From another thread: cut the workers off; the thread that waits for a message gets a `LoaderError`."""
        self._is_interrupted = True
        self._workers.interrupt()

    def _restart(self, lost: LostError) -> None:
        what = f"worker {lost.worker} ({f'pid {lost.pid}' if lost.pid else 'not started yet'}) {lost.why}"
        if self._is_interrupted:
            raise LoaderError("the loader was closed, or continues elsewhere, while this thread waited for a batch")
        if not self._restarts.allow():
            raise self._spent(what, lost.location) from lost
        _log.warning(
            "%s, %s: all %d workers are restarted (restart %d of this loader)",
            what,
            self._describe(lost.location),
            self._num_workers,
            self._restarts.number,
        )
        self._workers.end()
        self._workers = self._start(self._progress.rest())

    def _describe(self, location: SampleLocation) -> str:
        if location.shard < 0:
            return "before its first sample"
        url = self._run.sources[location.source].corpus.table[location.shard].url
        sample = f"sample {location.sample}" if is_compressed(url) else f"the sample at byte {location.sample}"
        return f"in lane {location.lane}, {redacted(url)}, {sample}"

    def _spent(self, what: str, location: SampleLocation) -> LoaderError:
        return LoaderError(
            f"{what}, {self._describe(location)}; the workers were restarted {BUDGET} times within an hour, "
            f"and that did not help. The state is good: the run continues from state_dict(). If it is this sample each "
            f"time, look at what it does to the tokenizer or the transform. {_ADVICE}"
        )


_ADVICE = (
    "Look at what the worker wrote to the job's output, and for the kernel's out-of-memory report; fewer workers "
    "(num_workers), a smaller limits.buffer_bytes or prefetch_bytes need less memory, and a larger worker_timeout_s "
    "waits longer for a slow transform or storage."
)


class Progress(Protocol):
    """What has come from the workers."""

    def add(self, worker: int, message: Message) -> None:
        """A message of a worker came whole."""

    def rest(self) -> Work:
        """What is left to do."""


class LaneProgress:
    """What has come of the lanes of a rank: `Progress`."""

    def __init__(self, assignment: Assignment, num_workers: int) -> None:
        self._assignment = assignment
        self._received = [_Received(assignment, worker, num_workers) for worker in range(num_workers)]

    def add(self, worker: int, message: Message) -> None:
        """A message of a worker came whole."""
        self._received[worker].add(message)

    def rest(self) -> Assignment:
        """The lanes after all messages."""
        starts = list(self._assignment.starts)
        for worker, received in enumerate(self._received):
            starts[worker :: len(self._received)] = received.starts()
        sent = tuple(received.messages for received in self._received)
        return dataclasses.replace(self._assignment, starts=starts, sent=sent)


class _Received:
    """What has come from one worker: where its lanes continue."""

    def __init__(self, assignment: Assignment, worker: int, num_workers: int) -> None:
        self.messages = 0
        self._sources = assignment.run.sources
        self._begin = assignment.starts[worker::num_workers]
        self._width = -(-len(assignment.lanes) // num_workers)
        self._slots = 0
        self._packs = np.array([begin.packs for begin in self._begin])
        positions = self._positions = [position for begin in self._begin for position in begin.positions]
        self._rows = np.zeros((len(positions), len(COLUMNS)), dtype=np.int64)
        self._packs_of = np.array([position.packs for position in positions])
        for row, position in zip(self._rows, positions, strict=True):
            row[:NUM_CURSOR], row[DOCUMENTS] = position.cursor, position.documents
        self._skipped_ranges: list[list[SkippedRange]] = [[] for _ in positions]

    def add(self, message: Message) -> None:
        """A message came whole."""
        lanes = (self._slots + np.arange(len(message.slots))) % self._width
        self._packs += np.bincount(lanes[message.slots != Slot.NOTHING], minlength=len(self._packs))
        rows = lanes[message.slots == Slot.PACK] * len(self._sources) + message.sources
        advance_rows(self._rows, rows, message.changes)
        self._packs_of += np.bincount(rows, minlength=len(self._packs_of))
        for pack, skipped_range in message.skipped_ranges:
            self._skipped_ranges[rows[pack]].append(skipped_range)
        for slot, end in message.ends:
            row = lanes[slot] * len(self._sources) + end.source
            self._rows[row, :NUM_CURSOR] = Cursor(epoch=self._sources[end.source].end_epoch or 0)
            self._rows[row, DOCUMENTS] += end.counts.documents
            self._skipped_ranges[row] += end.skipped_ranges
        self._slots += len(message.slots)
        self.messages += 1

    def starts(self) -> list[LaneStart]:
        """Where each of the worker's lanes continues after all messages."""
        positions = [
            LanePosition(
                cursor=Cursor(*row[:NUM_CURSOR]),
                packs=packs,
                documents=row[DOCUMENTS],
                num_skipped=begin.num_skipped + len(skipped_ranges),
                skipped_ranges=known_after(begin.skipped_ranges, skipped_ranges, row),
            )
            for row, packs, begin, skipped_ranges in zip(
                self._rows.tolist(), self._packs_of.tolist(), self._positions, self._skipped_ranges, strict=True
            )
        ]
        step = len(self._sources)
        return [
            LaneStart(packs, tuple(positions[lane * step : (lane + 1) * step]))
            for lane, packs in enumerate(self._packs.tolist())
        ]
