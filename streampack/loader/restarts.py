"""The messages of a rank's workers, which are restarted when one of them dies or hangs.

In:    what the workers are to do.
Out:   their messages in the rank's order, without end; the same messages however often the workers were restarted, so
       that nothing after this stage (counts, exchanges between ranks, batches) notices a restart.
Never: a message twice, or one left out; a restart beyond the budget; a restart because of what a worker's code raised.

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
from typing import TYPE_CHECKING

import numpy as np

from streampack.errors import LoaderError
from streampack.heartbeat import SampleLocation
from streampack.lanes.stream import LanePosition
from streampack.loader.messages import Message, Share, Slot
from streampack.loader.workers import LostError, Workers
from streampack.records import Counts, Cursor
from streampack.storage.faults import redacted
from streampack.tar.codecs import is_compressed

if TYPE_CHECKING:
    from streampack.lanes.reader import SkippedRange

_log = logging.getLogger(__name__)

BUDGET = 3
"""Restarts allowed within `PERIOD_S`; workers that die more often have a cause that a restart does not remove."""
PERIOD_S = 3600.0
_DOCUMENTS = 1 + Counts._fields.index("documents")  # its column in `Message.digest_and_counts`


@dataclass(slots=True)
class WorkerRestarts:
    """How often a loader's workers were restarted."""

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
        self, share: Share, num_workers: int, *, start_method: str | None, timeout_s: float, restarts: WorkerRestarts
    ) -> None:
        self._share = share
        self._num_workers = num_workers
        self._start_method = start_method
        self._timeout_s = timeout_s
        self._restarts = restarts
        self._heard = [_Heard(share, worker, num_workers) for worker in range(num_workers)]
        self._next = 0
        self._workers = self._start(share)

    def _start(self, share: Share) -> Workers:
        return Workers(share, self._num_workers, start_method=self._start_method, timeout_s=self._timeout_s)

    def __iter__(self) -> "RestartingMessages":
        return self

    def __next__(self) -> Message:
        """The next message; raises what a worker's code raised, or `LoaderError` where a restart does not help."""
        while True:
            try:
                message = self._workers.receive(self._next)
            except LostError as lost:
                self._restart(lost)
            else:
                self._heard[self._next].add(message)
                self._next = (self._next + 1) % self._num_workers
                return message

    def close(self) -> None:
        """End the workers."""
        self._workers.end(politely=True)

    def _restart(self, lost: LostError) -> None:
        what = f"worker {lost.worker} (pid {lost.pid}) {lost.why}"
        if lost.is_hopeless:
            raise LoaderError(f"{what}; what it said on the way is in the job's output. {_ADVICE}") from lost
        if not self._restarts.allow():
            raise self._spent(what, lost.location) from lost
        _log.warning(
            "%s, %s: all %d workers are restarted (restart %d of this loader)",
            what,
            self._describe(lost.location),
            self._num_workers,
            self._restarts.number,
        )
        self._workers.end(politely=False)
        starts = list(self._share.starts)
        for worker, heard in enumerate(self._heard):
            starts[worker :: self._num_workers] = heard.starts()
        given = tuple(heard.messages for heard in self._heard)
        self._workers = self._start(dataclasses.replace(self._share, starts=starts, given=given))

    def _describe(self, location: SampleLocation) -> str:
        if location.shard < 0:
            return "before its first sample"
        url = self._share.corpus.table[location.shard].url
        sample = f"sample {location.sample}" if is_compressed(url) else f"the sample at byte {location.sample}"
        return f"in lane {location.lane}, {redacted(url)}, {sample}"

    def _spent(self, what: str, location: SampleLocation) -> LoaderError:
        return LoaderError(
            f"{what}, {self._describe(location)}; the workers were restarted {BUDGET} times within an hour, "
            f"and that did not help. The state is good: the run continues from state_dict(). If it is this sample each "
            f"time, look at what it does to the tokenizer or the transform. {_ADVICE}"
        )


_ADVICE = (
    "Look for the kernel's out-of-memory report; fewer workers (num_workers), a smaller max_buffer_bytes or "
    "prefetch_bytes need less memory, a larger worker_timeout_s waits longer for a slow transform or storage, and "
    'multiprocessing_context="forkserver" keeps what the trainer holds away from the workers.'
)


class _Heard:
    """What has come from one worker: where its lanes go on."""

    def __init__(self, share: Share, worker: int, num_workers: int) -> None:
        self.messages = 0
        self._first_round = share.first_round
        self._begin = share.starts[worker::num_workers]
        self._width = -(-len(share.lanes) // num_workers)
        self._slots = 0
        self._cursors: dict[int, list[int]] = {}
        self._skipped_ranges: dict[int, list[SkippedRange]] = {}
        self._documents = [start.documents for start in self._begin]

    def add(self, message: Message) -> None:
        """A message came whole."""
        packs = np.flatnonzero(message.slots == Slot.PACK)
        columns = ((self._slots + packs) % self._width).tolist()
        self._cursors.update(zip(columns, message.cursors.tolist(), strict=True))  # a lane's last one stays
        for column, documents in zip(columns, message.digest_and_counts[:, _DOCUMENTS].tolist(), strict=True):
            self._documents[column] += documents
        for index, skipped_range in message.skipped_ranges:
            self._skipped_ranges.setdefault(columns[index], []).append(skipped_range)
        self._slots += len(message.slots)
        self.messages += 1

    def starts(self) -> list[LanePosition]:
        """Where each of the worker's lanes goes on behind all messages."""
        found = []
        for column, begin in enumerate(self._begin):
            rounds = max(0, self._slots - column + self._width - 1) // self._width
            found.append(
                LanePosition(
                    cursor=Cursor(*self._cursors.get(column, begin.cursor)),
                    packs=max(begin.packs, self._first_round + rounds),
                    documents=self._documents[column],
                    skipped_ranges=begin.skipped_ranges.union(self._skipped_ranges.get(column, ())),
                )
            )
        return found
