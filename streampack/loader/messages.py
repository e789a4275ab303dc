"""Packs on their way from workers to the main process, in few and large messages.

In:    the positions of a rank's lanes.
Out:   one stream of messages for each worker; `dealing` puts their packs back into the global order.
Never: a message that depends on what another worker does; an end of the stream, as a lane without a pack says so in
       each of its slots.

A rank takes its lanes in turn: slot s of round n is pack n of its s-th lane. Worker w of W makes the slots w, w + W,
... of each round, in order, and sends some at a time; where W does not divide the lanes, the last slots of a round are
empty. Every worker sends the same number of slots in its t-th message, so that one message of each worker, a
**wave**, is an unbroken stretch of the rank's order:

    6 lanes, 2 workers, 2 slots a message     worker 0:  [s0 s2] [s4 s0'] [s2' s4'] ...
                                              worker 1:  [s1 s3] [s5 s1'] [s3' s5'] ...
    wave by wave, dealt slot by slot          s0 s1 s2 s3 | s4 s5 s0' s1' | s2' s3' s4' s5' ...

Where a lane fails, the message ends with the slot before and carries the error: the error takes the failed slot's place
in the rank's order, and all packs before it are handed out first.
"""

import enum
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from streampack.lanes.digest import pack_digest
from streampack.lanes.pool import LanePool
from streampack.lanes.position import NUM_CURSOR, LaneEnd, LaneFiller, LanePack, SkippedRange
from streampack.lanes.provenance import Provenance
from streampack.lanes.run import LaneStart, Run
from streampack.metrics import heartbeat
from streampack.packing.blocks import stack
from streampack.packing.packs import PackBlock
from streampack.records import Counts, Cursor, StorageUse
from streampack.storage import pacing

COLUMNS = (*Cursor._fields, "digest", *Counts._fields)
"""Of a message's `changes`: the cursor after a pack, then what the pack adds. A checkpoint has columns of its own."""
DIGEST = NUM_CURSOR
DOCUMENTS = COLUMNS.index("documents")


class Slot(enum.IntEnum):
    """What a slot of a message holds."""

    NOTHING = 0
    """No lane, or a pack that was handed out before the resume."""
    PACK = 1
    WAITS = 2
    """No pack in this round; the lane has some again in a later stage."""
    OVER = 3
    """No pack in this round or a later one."""


_NOTHING, _PACK, _WAITS, _OVER = map(int, Slot)  # looking up an enum's member costs as much as the rest of a slot


@dataclass(frozen=True, slots=True)
class Message:
    """Some slots of one worker."""

    slots: NDArray[np.int8]
    """int8 [P], see `Slot`."""
    block: PackBlock
    """The packs, one for each slot that has one: B of them."""
    changes: NDArray[np.int64]
    """int64 [B, len(COLUMNS)]: what each pack changes for its lane and source, as `advance_rows` takes it."""
    sources: NDArray[np.int16]
    """int16 [B]: the index of each pack's source in the run."""
    ends: tuple[tuple[int, LaneEnd], ...]
    """(index in `slots`, what came after the last pack of a source in the slot's lane); each is told once, where the
    lane's next pack was looked for in it. What had nothing after its last pack has no entry."""
    skipped_ranges: tuple[tuple[int, SkippedRange], ...]
    """(index of the pack, what was skipped for the first time while it was made)."""
    provenance: tuple[tuple[Provenance, ...], ...] | None
    """One tuple per pack, one entry per segment; None where it is not asked for."""
    storage: StorageUse
    """What the storage was asked for while the message was made."""
    engine_differences: tuple[tuple[int, str], ...] = ()
    """As `Run.engine_differences`: those met while the message was made."""
    error: Exception | None = None
    """What was raised in place of the slot after the last one; no message follows."""

    @property
    def digests(self) -> NDArray[np.int64]:
        """int64 [B]: the digest of each pack, its 64 bits with a sign."""
        return self.changes[:, DIGEST]


class Work(Protocol):
    """What the workers of one rank are to do; each finds its own part by its number."""

    @property
    def run(self) -> Run:
        """What is read."""

    def messages(self, worker: int = 0, num_workers: int = 1) -> "Iterator[Message]":
        """The messages of one worker, after those that it has sent already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """The lanes of a rank, to be read on and on: `Work`."""

    run: Run
    lanes: Sequence[int]
    """The rank's lanes, in order."""
    starts: Sequence[LaneStart]
    """Where each lane continues."""
    first_round: int
    first_slots: int
    """Slots of a worker's first message; the next ones have twice as many, and so on up to the bounds."""
    max_slots: int
    max_rows: int
    """Of the packs of a message; a message has one pack in any case."""
    budget_bytes: int
    """Of each worker."""
    with_provenance: bool
    sent: Sequence[int] = ()
    """Messages that each worker has sent already; `starts` are those after them. Empty: none."""

    def messages(self, worker: int = 0, num_workers: int = 1) -> "Iterator[Message]":
        """The messages of one worker, without end."""
        return iter(WorkerStream(self, worker=worker, num_workers=num_workers))


class WorkerStream:
    """The messages of one worker, without end, after those that it has sent already."""

    def __init__(self, assignment: Assignment, *, worker: int = 0, num_workers: int = 1) -> None:
        self._assignment = assignment
        self._worker = worker
        self._num_workers = num_workers

    def __iter__(self) -> Iterator[Message]:
        assignment, run = self._assignment, self._assignment.run
        lanes = assignment.lanes[self._worker :: self._num_workers]
        starts = dict(zip(lanes, assignment.starts[self._worker :: self._num_workers], strict=True))
        width = -(-len(assignment.lanes) // self._num_workers)
        pacing.begin_among(run.num_lanes // len(assignment.lanes) * self._num_workers)
        if any(assignment.sent):
            for storage in run.storages:
                storage.expect_answers()
        pool = LanePool(
            run, starts, budget_bytes=assignment.budget_bytes, with_provenance=assignment.with_provenance
        )
        sizes = _sizes(assignment, width)
        done = 0
        for _ in range(assignment.sent[self._worker] if assignment.sent else 0):
            done += next(sizes).slots
        slots = _slots(pool, starts, first_round=assignment.first_round + done // width, width=width)
        slots = itertools.islice(slots, done % width, None)
        parts = (Part(size.seq_len, itertools.islice(slots, size.slots)) for size in sizes)
        yield from messages_of(parts, run, with_provenance=assignment.with_provenance)


def failed(error: Exception, run: Run) -> Message:
    """The message of a worker that sends no other: the error takes the place of its next slot."""
    seq_len = run.schedule.stages[0].seq_len
    return message_of([], run, seq_len=seq_len, with_provenance=False, storage=StorageUse(), error=error)


class _Size(NamedTuple):
    """What the next message of each worker of a rank has."""

    slots: int
    seq_len: int


def _sizes(assignment: Assignment, width: int) -> Iterator[_Size]:
    """Of a worker's messages; the same for all workers, as a stage begins in the same slot of each."""
    schedule, first_round = assignment.run.schedule, assignment.first_round
    done, growing = 0, assignment.first_slots
    while True:
        here = schedule.begin_of(first_round + done // width)
        seq_len = schedule.stage_of(here).seq_len
        slots = max(1, min(growing, assignment.max_slots, assignment.max_rows // seq_len))
        if (end := schedule.next_length(here)) is not None:
            slots = min(slots, (end // schedule.num_lanes - first_round) * width - done)
        yield _Size(slots, seq_len)
        done, growing = done + slots, min(2 * growing, assignment.max_slots)


class Made(NamedTuple):
    """What a slot holds."""

    global_pack: int
    pack: LanePack | LaneFiller | None


class Part(NamedTuple):
    """What one message has."""

    seq_len: int
    slots: Iterator[Made]
    """May raise in the place of a slot."""


def _slots(pool: LanePool, starts: Mapping[int, LaneStart], *, first_round: int, width: int) -> Iterator[Made]:
    num_lanes = pool.num_lanes
    number = first_round
    while True:
        for lane, start in starts.items():
            if start.packs > number:
                yield Made(0, None)
            else:
                yield Made(number * num_lanes + lane, pool.take(lane))
                heartbeat.beat()
        for _ in range(len(starts), width):
            yield Made(0, None)
        number += 1


def messages_of(parts: Iterable[Part], run: Run, *, with_provenance: bool) -> Iterator[Message]:
    """A message of each part, up to the first error."""
    before = run.storage_use()
    run.engine_differences()  # those of others, who have not asked
    for part in parts:
        made: list[Made] = []
        error: Exception | None = None
        try:
            for each in part.slots:
                made.append(each)  # noqa: PERF402 (what was made before an error is sent)
        except Exception as failure:  # noqa: BLE001 (it is raised in its place)
            error = failure
        use = run.storage_use()  # threads read ahead between two messages, too
        yield message_of(
            made,
            run,
            seq_len=part.seq_len,
            with_provenance=with_provenance,
            storage=use.since(before),
            engine_differences=run.engine_differences(),
            error=error,
        )
        if error is not None:
            return
        before = use


def message_of(
    made: Sequence[Made],
    run: Run,
    *,
    seq_len: int,
    with_provenance: bool,
    storage: StorageUse,
    engine_differences: tuple[tuple[int, str], ...] = (),
    error: Exception | None = None,
) -> Message:
    """What was made, as a message; packs of one length."""
    pad_id = run.pad_id
    packs: list[LanePack] = []
    kinds: list[int] = []
    changes: list[int] = []
    ends: list[tuple[int, LaneEnd]] = []
    skipped_ranges: list[tuple[int, SkippedRange]] = []
    for global_pack, pack in made:
        if pack is None:
            kinds.append(_NOTHING)
            continue
        if pack.ends:
            ends += [(len(kinds), end) for end in pack.ends]
        if isinstance(pack, LanePack):
            if pack.skipped_ranges:
                skipped_ranges += [(len(packs), skipped_range) for skipped_range in pack.skipped_ranges]
            packs.append(pack)
            kinds.append(_PACK)
            changes += pack.cursor
            changes.append(pack_digest(pack.rows, global_pack, seq_len=seq_len, pad_id=pad_id))
            changes += pack.counts
        else:
            kinds.append(_WAITS if pack.waits else _OVER)
    return Message(
        slots=np.array(kinds, dtype=np.int8),
        block=stack([pack.rows for pack in packs], seq_len=seq_len, pad_id=pad_id),
        changes=np.array(changes, dtype=np.int64).reshape(len(packs), len(COLUMNS)),
        sources=np.array([pack.source for pack in packs], dtype=np.int16),
        ends=tuple(ends),
        skipped_ranges=tuple(skipped_ranges),
        provenance=tuple(pack.provenance for pack in packs) if with_provenance else None,
        storage=storage,
        engine_differences=engine_differences,
        error=error,
    )
