"""Packs from workers to the main process, few and large, and back into the global order.

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
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streampack import progress
from streampack.boundary import stack
from streampack.corpus import Corpus
from streampack.lanereader import Hole
from streampack.pool import LanePool
from streampack.recipe import Recipe
from streampack.records import Cursor, PackBlock
from streampack.stats import Counts, StorageUse
from streampack.stream import LaneEnd, LanePack, LaneStart, Source


class Slot(enum.IntEnum):
    """What stands in a slot of a message."""

    NOTHING = 0
    """No lane, or a pack that was handed out before the resume."""
    PACK = 1
    ENDED = 2


@dataclass(frozen=True, slots=True)
class Message:
    """Some slots of one worker."""

    slots: NDArray[np.int8]
    """int8 [P], see `Slot`."""
    block: PackBlock
    """The packs, one for each slot that has one: B of them."""
    cursors: NDArray[np.int64]
    """int64 [B, len(Cursor)]: the lane's cursor after the pack."""
    digest_and_counts: NDArray[np.int64]
    """int64 [B, 1 + len(Counts)]."""
    ends: tuple[tuple[int, Counts], ...]
    """(index in `slots`, counts after the lane's last pack) for slots of ended lanes."""
    holes: tuple[tuple[int, Hole], ...]
    """(index of the pack, hole)."""
    sources: tuple[tuple[Source, ...], ...] | None
    """One tuple per pack, one entry per segment."""
    storage: StorageUse
    """What the storage was asked for while the message was made."""
    error: Exception | None = None
    """What stands in the place of the slot behind the last one; no message follows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What the workers of one rank are told; each finds its own part by its number."""

    recipe: Recipe
    corpus: Corpus
    lanes: Sequence[int]
    """The rank's lanes, in order."""
    starts: Sequence[LaneStart]
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
        recipe = share.recipe
        if num_workers > 1 or len(share.lanes) < share.corpus.num_lanes:  # this process is not the only one
            recipe.storage.spread_first_requests(share.corpus.num_lanes)
        pool = LanePool(
            recipe,
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
        before = recipe.storage.use
        while True:
            made, error = list[LanePack | LaneEnd | None](), None
            try:
                for _ in range(size):
                    made.append(next(slots))
            except Exception as failure:  # noqa: BLE001 (it is raised in its place)
                error = failure
            use = recipe.storage.use  # threads read ahead between two messages, too
            yield _message(made, recipe, with_sources=share.with_sources, storage=use.since(before), error=error)
            if error is not None:
                return
            before = use
            size = min(2 * size, share.max_slots)


def _slots(
    pool: LanePool, lanes: Sequence[int], starts: Sequence[LaneStart], *, first_round: int, width: int
) -> Iterator[LanePack | LaneEnd | None]:
    number = first_round
    while True:
        for place in range(width):
            if place >= len(lanes) or starts[place].packs > number:
                yield None
            else:
                yield pool.take(lanes[place])
                progress.beat()
        number += 1


def _message(
    slots: Sequence[LanePack | LaneEnd | None],
    recipe: Recipe,
    *,
    with_sources: bool,
    storage: StorageUse,
    error: Exception | None,
) -> Message:
    packs = [slot for slot in slots if isinstance(slot, LanePack)]
    digests = np.array([pack.digest for pack in packs], dtype=np.uint64).view(np.int64)
    counts = np.array([pack.counts for pack in packs], dtype=np.int64).reshape(len(packs), len(Counts._fields))
    kinds = [Slot.NOTHING if slot is None else Slot.ENDED if isinstance(slot, LaneEnd) else Slot.PACK for slot in slots]
    return Message(
        slots=np.array(kinds, dtype=np.int8),
        block=stack([pack.rows for pack in packs], seq_len=recipe.seq_len, pad_id=recipe.pad_id),
        cursors=np.array([pack.cursor for pack in packs], dtype=np.int64).reshape(len(packs), len(Cursor._fields)),
        digest_and_counts=np.column_stack([digests, counts]),
        ends=tuple((index, slot.counts) for index, slot in enumerate(slots) if isinstance(slot, LaneEnd)),
        holes=tuple((index, hole) for index, pack in enumerate(packs) for hole in pack.holes),
        sources=tuple(pack.sources for pack in packs) if with_sources else None,
        storage=storage,
        error=error,
    )


class Item(NamedTuple):
    """One slot of the rank's order: a pack somewhere in a message, or that its lane has ended, or an error."""

    round: int
    place: int
    """Which of the rank's lanes."""
    pack: "PackRef | None"
    end: Counts | None
    """For an ended lane: what it counted after its last pack, the first time it says so."""
    error: Exception | None = None
    """What was raised in the pack's place, for whoever needs the pack; it is the last item."""


class PackRef(NamedTuple):
    """One pack of a message."""

    message: Message
    number: int
    segments: slice
    """Its part of the message's `seq_lens` and `edge_labels`."""

    @property
    def holes(self) -> list[Hole]:
        return [hole for index, hole in self.message.holes if index == self.number]

    @property
    def sources(self) -> tuple[Source, ...]:
        """One per segment; empty where the workers were not asked for them."""
        return () if self.message.sources is None else self.message.sources[self.number]


def deal(messages: Iterator[Message], *, num_lanes: int, num_workers: int, first_round: int) -> Iterator[Item]:
    """The messages of a rank's workers (worker 0, 1, ..., 0, 1, ...) as items in the rank's order."""
    width = -(-num_lanes // num_workers)
    step = 0
    while True:
        wave = [_Opened(next(messages)) for _ in range(num_workers)]
        for index in range(max(opened.num_slots for opened in wave)):
            number, column = divmod(step, width)
            for worker, opened in enumerate(wave):
                item = opened.item(index, first_round + number, column * num_workers + worker)
                if item is not None:
                    yield item
                    if item.error is not None:
                        return
            step += 1


class _Opened:
    """A message with its packs numbered."""

    def __init__(self, message: Message) -> None:
        self.message = message
        self._kinds = message.slots.tolist()
        self._packs = np.cumsum(message.slots == Slot.PACK).tolist()
        self._segments = [0, *np.cumsum(message.block.num_segments).tolist()]
        self._ends = dict(message.ends)

    @property
    def num_slots(self) -> int:
        return len(self._kinds) + (self.message.error is not None)

    def item(self, index: int, number: int, place: int) -> Item | None:
        if index == len(self._kinds):
            return Item(number, place, None, None, self.message.error)
        kind = self._kinds[index]
        if kind == Slot.NOTHING:
            return None
        if kind == Slot.ENDED:
            return Item(number, place, None, self._ends.get(index))
        pack = self._packs[index] - 1
        return Item(
            number, place, PackRef(self.message, pack, slice(self._segments[pack], self._segments[pack + 1])), None
        )


def gather(packs: Iterable[PackRef | None], *, seq_len: int, pad_id: int) -> PackBlock:
    """Packs from any messages side by side; None is a filler: all padding."""
    packs = list(packs)
    if packs and packs[0] is not None and _are_all_of(packs[0].message, packs):
        return packs[0].message.block
    tokens = np.full((len(packs), seq_len), pad_id, dtype=np.int32)
    ignored: NDArray[np.bool_] | None = None
    num_segments = np.zeros(len(packs), dtype=np.int32)
    num_targets = np.zeros(len(packs), dtype=np.int64)
    seq_lens, edge_labels = [np.zeros(0, dtype=np.int32)], [np.zeros(0, dtype=np.int32)]
    for row, pack in enumerate(packs):
        if pack is None:
            continue
        block, index, segments = pack.message.block, pack.number, pack.segments
        tokens[row] = block.tokens[index]
        num_segments[row] = block.num_segments[index]
        num_targets[row] = block.num_targets[index]
        seq_lens.append(block.seq_lens[segments])
        edge_labels.append(block.edge_labels[segments])
        if block.ignored is not None:
            if ignored is None:
                ignored = np.zeros((len(packs), seq_len), dtype=np.bool_)
            ignored[row] = block.ignored[index]
    return PackBlock(
        tokens=tokens,
        num_segments=num_segments,
        seq_lens=np.concatenate(seq_lens),
        edge_labels=np.concatenate(edge_labels),
        ignored=ignored,
        num_targets=num_targets,
    )


def _are_all_of(message: Message, packs: Sequence[PackRef | None]) -> bool:
    """Whether the packs are those of the message, all of them and in its order."""
    return len(packs) == len(message.block.num_targets) and all(
        pack is not None and pack.message is message and pack.number == number for number, pack in enumerate(packs)
    )
