"""Packs from workers to the main process, few and large; `dealing` puts them back into the global order.

A rank takes its lanes in turn: slot s of round n is pack n of its s-th lane. Worker w of W makes the slots w, w + W,
... of each round, in order, and sends some at a time; where W does not divide the lanes, the last slots of a round are
empty. Every worker sends the same number of slots in its t-th message, so that one message of each worker, a
**wave**, is an unbroken stretch of the rank's order:

    6 lanes, 2 workers, 2 slots a message     worker 0:  [s0 s2] [s4 s0'] [s2' s4'] ...
                                              worker 1:  [s1 s3] [s5 s1'] [s3' s5'] ...
    wave by wave, dealt slot by slot          s0 s1 s2 s3 | s4 s5 s0' s1' | s2' s3' s4' s5' ...

Workers never end by themselves: a lane that has ended says so in each of its slots, for as long as anyone asks. Where
a lane fails, the message ends with the slot before, and carries the error: it takes its place in the rank's order, and
all that comes before it is given.
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
from streampack.lanes.reader import SkippedRange
from streampack.lanes.stream import LaneEnd, LanePack, LanePosition, Provenance
from streampack.packing.blocks import stack
from streampack.packing.packs import PackBlock
from streampack.records import Counts, StorageUse
from streampack.state.checkpoint import DIGEST, FIELDS, PACKS


class Slot(enum.IntEnum):
    """What stands in a slot of a message."""

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
    """int64 [B, len(FIELDS)]: what each pack does to its lane's row, as `Committed.add` takes it."""
    ends: tuple[tuple[int, Counts], ...]
    """(index in `slots`, counts after the lane's last pack) for slots of ended lanes."""
    skipped_ranges: tuple[tuple[int, SkippedRange], ...]
    """(index of the pack, skipped_range)."""
    sources: tuple[tuple[Provenance, ...], ...] | None
    """One tuple per pack, one entry per segment."""
    storage: StorageUse
    """What the storage was asked for while the message was made."""
    error: Exception | None = None
    """What stands in the place of the slot behind the last one; no message follows."""

    @property
    def cursors(self) -> NDArray[np.int64]:
        """int64 [B, len(Cursor)]: the lane's cursor after the pack."""
        return self.changes[:, :PACKS]

    @property
    def digest_and_counts(self) -> NDArray[np.int64]:
        """int64 [B, 1 + len(Counts)]."""
        return self.changes[:, DIGEST:]


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What the workers of one rank are told; each finds its own part by its number."""

    pipeline: Pipeline
    corpus: Corpus
    lanes: Sequence[int]
    """The rank's lanes, in order."""
    starts: Sequence[LanePosition]
    """One per lane."""
    first_round: int
    end_epoch: int | None
    first_slots: int
    """Slots of a worker's first message; it doubles up to `max_slots`."""
    max_slots: int
    max_buffer_bytes: int
    with_sources: bool
    given: Sequence[int] = ()
    """Messages that each worker has given before, `starts` being behind them; empty: none."""


class WorkerStream:
    """The messages of one worker, for ever, behind those that it has given before."""

    def __init__(self, share: Share, *, worker: int = 0, num_workers: int = 1) -> None:
        self._share = share
        self._worker = worker
        self._num_workers = num_workers

    def __iter__(self) -> Iterator[Message]:
        share, num_workers = self._share, self._num_workers
        lanes, starts = share.lanes[self._worker :: num_workers], share.starts[self._worker :: num_workers]
        width = -(-len(share.lanes) // num_workers)
        pipeline = share.pipeline
        if num_workers > 1 or len(share.lanes) < share.corpus.num_lanes:  # this process is not the only one
            pipeline.storage.spread_first_requests(share.corpus.num_lanes)
        pool = LanePool(
            pipeline,
            share.corpus,
            dict(zip(lanes, starts, strict=True)),
            budget_bytes=share.max_buffer_bytes // num_workers,
            end_epoch=share.end_epoch,
            with_sources=share.with_sources,
        )
        done, size = 0, share.first_slots
        for _ in range(share.given[self._worker] if share.given else 0):
            done, size = done + size, min(2 * size, share.max_slots)
        slots = _slots(pool, lanes, starts, first_round=share.first_round + done // width, width=width)
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
            yield _message(made, pipeline, with_sources=share.with_sources, storage=use.since(before), error=error)
            if error is not None:
                return
            before = use
            size = min(2 * size, share.max_slots)


def _slots(
    pool: LanePool, lanes: Sequence[int], starts: Sequence[LanePosition], *, first_round: int, width: int
) -> Iterator[LanePack | LaneEnd | None]:
    number = first_round
    while True:
        for place in range(width):
            if place >= len(lanes) or starts[place].packs > number:
                yield None
            else:
                yield pool.take(lanes[place])
                heartbeat.beat()
        number += 1


def _message(
    slots: Sequence[LanePack | LaneEnd | None],
    pipeline: Pipeline,
    *,
    with_sources: bool,
    storage: StorageUse,
    error: Exception | None,
) -> Message:
    packs: list[LanePack] = []
    kinds: list[int] = []
    changes: list[int] = []
    ends: list[tuple[int, Counts]] = []
    skipped_ranges: list[tuple[int, SkippedRange]] = []
    for slot in slots:
        if isinstance(slot, LanePack):
            if slot.skipped_ranges:
                skipped_ranges += [(len(packs), skipped_range) for skipped_range in slot.skipped_ranges]
            packs.append(slot)
            kinds.append(_PACK)
            changes += slot.cursor
            changes.append(1)
            changes.append(slot.digest - (slot.digest >> 63 << 64))  # the same 64 bits, with a sign
            changes += slot.counts
        elif slot is None:
            kinds.append(_NOTHING)
        else:
            ends.append((len(kinds), slot.counts))
            kinds.append(_ENDED)
    return Message(
        slots=np.array(kinds, dtype=np.int8),
        block=stack([pack.rows for pack in packs], seq_len=pipeline.seq_len, pad_id=pipeline.pad_id),
        changes=np.array(changes, dtype=np.int64).reshape(len(packs), len(FIELDS)),
        ends=tuple(ends),
        skipped_ranges=tuple(skipped_ranges),
        sources=tuple(pack.sources for pack in packs) if with_sources else None,
        storage=storage,
        error=error,
    )
