"""Packs on their way from workers to the main process, in few and large messages.

In:    the positions of a rank's lanes.
Out:   one stream of messages for each worker; `dealing` puts their packs back into the global order.
Never: a message that depends on what another worker does; an end of the stream, as an ended lane says so in each of its
       slots.

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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streampack import heartbeat
from streampack.corpus.epochs import Corpus
from streampack.lanes.pipeline import Pipeline
from streampack.lanes.pool import LanePool
from streampack.lanes.position import NUM_CURSOR, LaneEnd, LanePack, LanePosition, SkippedRange
from streampack.lanes.provenance import Provenance
from streampack.packing.blocks import stack
from streampack.packing.packs import PackBlock
from streampack.records import Counts, Cursor, StorageUse

COLUMNS = (*Cursor._fields, "digest", *Counts._fields)
"""Of a message's `changes`: the cursor after a pack, then what the pack adds. A checkpoint has columns of its own."""
DIGEST = NUM_CURSOR
DOCUMENTS = COLUMNS.index("documents")


class Slot(enum.IntEnum):
    """What a slot of a message holds."""

    NOTHING = 0
    """No lane, or a pack that was handed out before the resume."""
    PACK = 1
    ENDED = 2


_NOTHING, _PACK, _ENDED = map(int, Slot)  # looking up an enum's member costs as much as the rest of a slot


@dataclass(frozen=True, slots=True)
class Message:
    """Some slots of one worker."""

    slots: NDArray[np.int8]
    """int8 [P], see `Slot`."""
    block: PackBlock
    """The packs, one for each slot that has one: B of them."""
    changes: NDArray[np.int64]
    """int64 [B, len(COLUMNS)]: what each pack changes for its lane, as `advance_rows` takes it."""
    ends: tuple[tuple[int, LaneEnd], ...]
    """(index in `slots`, what came after the lane's last pack) for slots of ended lanes."""
    skipped_ranges: tuple[tuple[int, SkippedRange], ...]
    """(index of the pack, what was skipped for the first time while it was made)."""
    provenance: tuple[tuple[Provenance, ...], ...] | None
    """One tuple per pack, one entry per segment; None where it is not asked for."""
    storage: StorageUse
    """What the storage was asked for while the message was made."""
    error: Exception | None = None
    """What was raised in place of the slot after the last one; no message follows."""

    @property
    def digests(self) -> NDArray[np.int64]:
        """int64 [B]: the digest of each pack, its 64 bits with a sign."""
        return self.changes[:, DIGEST]


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """What the workers of one rank are to do; each finds its own part by its number."""

    pipeline: Pipeline
    corpus: Corpus
    lanes: Sequence[int]
    """The rank's lanes, in order."""
    positions: Sequence[LanePosition]
    """Where each lane continues."""
    first_round: int
    end_epoch: int | None
    first_slots: int
    """Slots of a worker's first message; it doubles up to `max_slots`."""
    max_slots: int
    budget_bytes: int
    """Of each worker."""
    with_provenance: bool
    sent: Sequence[int] = ()
    """Messages that each worker has sent already; `positions` are those after them. Empty: none."""


class WorkerStream:
    """The messages of one worker, without end, after those that it has sent already."""

    def __init__(self, assignment: Assignment, *, worker: int = 0, num_workers: int = 1) -> None:
        self._assignment = assignment
        self._worker = worker
        self._num_workers = num_workers

    def __iter__(self) -> Iterator[Message]:
        assignment, num_workers = self._assignment, self._num_workers
        lanes = assignment.lanes[self._worker :: num_workers]
        positions = assignment.positions[self._worker :: num_workers]
        width = -(-len(assignment.lanes) // num_workers)
        pipeline = assignment.pipeline
        if num_workers > 1 or len(assignment.lanes) < assignment.corpus.num_lanes:  # this process is not the only one
            pipeline.storage.spread_first_requests(assignment.corpus.num_lanes)
        if any(assignment.sent):
            pipeline.storage.expect_answers()
        pool = LanePool(
            pipeline,
            assignment.corpus,
            dict(zip(lanes, positions, strict=True)),
            budget_bytes=assignment.budget_bytes,
            end_epoch=assignment.end_epoch,
            with_provenance=assignment.with_provenance,
        )
        done, size = 0, assignment.first_slots
        for _ in range(assignment.sent[self._worker] if assignment.sent else 0):
            done, size = done + size, min(2 * size, assignment.max_slots)
        slots = _slots(pool, lanes, positions, first_round=assignment.first_round + done // width, width=width)
        slots = itertools.islice(slots, done % width, None)
        before = pipeline.storage.use
        while True:
            made: list[LanePack | LaneEnd | None] = []
            error: Exception | None = None
            try:
                for _ in range(size):
                    made.append(next(slots))  # noqa: PERF401 (what was made before an error is sent)
            except Exception as failure:  # noqa: BLE001 (it is raised in its place)
                error = failure
            use = pipeline.storage.use  # threads read ahead between two messages, too
            yield _message(
                made, pipeline, with_provenance=assignment.with_provenance, storage=use.since(before), error=error
            )
            if error is not None:
                return
            before = use
            size = min(2 * size, assignment.max_slots)


def failed(error: Exception, pipeline: Pipeline) -> Message:
    """The message of a worker that sends no other: the error takes the place of its next slot."""
    return _message([], pipeline, with_provenance=False, storage=StorageUse(), error=error)


def _slots(
    pool: LanePool, lanes: Sequence[int], positions: Sequence[LanePosition], *, first_round: int, width: int
) -> Iterator[LanePack | LaneEnd | None]:
    number = first_round
    while True:
        for index in range(width):
            if index >= len(lanes) or positions[index].packs > number:
                yield None
            else:
                yield pool.take(lanes[index])
                heartbeat.beat()
        number += 1


def _message(
    slots: Sequence[LanePack | LaneEnd | None],
    pipeline: Pipeline,
    *,
    with_provenance: bool,
    storage: StorageUse,
    error: Exception | None,
) -> Message:
    packs: list[LanePack] = []
    kinds: list[int] = []
    changes: list[int] = []
    ends: list[tuple[int, LaneEnd]] = []
    skipped_ranges: list[tuple[int, SkippedRange]] = []
    for slot in slots:
        if isinstance(slot, LanePack):
            if slot.skipped_ranges:
                skipped_ranges += [(len(packs), skipped_range) for skipped_range in slot.skipped_ranges]
            packs.append(slot)
            kinds.append(_PACK)
            changes += slot.cursor
            changes.append(slot.digest - (slot.digest >> 63 << 64))  # the same 64 bits, with a sign
            changes += slot.counts
        elif slot is None:
            kinds.append(_NOTHING)
        else:
            ends.append((len(kinds), slot))
            kinds.append(_ENDED)
    return Message(
        slots=np.array(kinds, dtype=np.int8),
        block=stack([pack.rows for pack in packs], seq_len=pipeline.seq_len, pad_id=pipeline.pad_id),
        changes=np.array(changes, dtype=np.int64).reshape(len(packs), len(COLUMNS)),
        ends=tuple(ends),
        skipped_ranges=tuple(skipped_ranges),
        provenance=tuple(pack.provenance for pack in packs) if with_provenance else None,
        storage=storage,
        error=error,
    )
