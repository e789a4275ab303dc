"""The messages of a rank's workers back into the global order, and packs of any of them side by side.

In: messages, one of each worker in turn. Out: items in the rank's order, and the blocks that batches are made of.
Never: a copy of packs that are neighbours in their message.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

from streampack.lanes.reader import SkippedRange
from streampack.lanes.stream import Provenance
from streampack.loader.messages import Message, Slot
from streampack.records import Counts, PackBlock

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NOTHING, _PACK = int(Slot.NOTHING), int(Slot.PACK)  # looking up an enum's member costs as much as the rest of a slot


class Item(NamedTuple):
    """One slot of the rank's order: a pack somewhere in a message, or that its lane has ended, or an error."""

    round: int
    lane_index: int
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
    def skipped_ranges(self) -> list[SkippedRange]:
        return [skipped_range for index, skipped_range in self.message.skipped_ranges if index == self.number]

    @property
    def sources(self) -> tuple[Provenance, ...]:
        """One per segment; empty where the workers were not asked for them."""
        return () if self.message.sources is None else self.message.sources[self.number]


def deal(messages: Iterator[Message], *, num_lanes: int, num_workers: int, first_round: int) -> Iterator[Item]:
    """The messages of a rank's workers (worker 0, 1, ..., 0, 1, ...) as items in the rank's order."""
    width = -(-num_lanes // num_workers)
    step = 0
    while True:
        wave = [_opened(next(messages)) for _ in range(num_workers)]
        for index in range(max(map(len, wave))):
            number, column = divmod(step, width)
            for worker, slots in enumerate(wave):
                slot = slots[index]
                if slot is not None:
                    yield Item(first_round + number, column * num_workers + worker, *slot)
                    if slot[2] is not None:
                        return
            step += 1


_Opened: TypeAlias = tuple[PackRef | None, Counts | None, Exception | None]  # an item without its place


def _opened(message: Message) -> list[_Opened | None]:
    """What stands in each slot of a message, and its error behind them."""
    slots: list[_Opened | None] = []
    ends = dict(message.ends)
    num_segments = message.block.num_segments.tolist()
    number, first = 0, 0
    for index, kind in enumerate(message.slots.tolist()):
        if kind == _PACK:
            stop = first + num_segments[number]
            slots.append((PackRef(message, number, slice(first, stop)), None, None))
            number, first = number + 1, stop
        else:
            slots.append(None if kind == _NOTHING else (None, ends.get(index), None))
    if message.error is not None:
        slots.append((None, None, message.error))
    return slots


def gather(packs: Iterable[PackRef | None], *, seq_len: int, pad_id: int) -> PackBlock:
    """Packs from any messages side by side; None is a filler: all padding. Of neighbours nothing is copied."""
    packs = list(packs)
    if (block := _neighbours(packs)) is not None:
        return block
    none = np.zeros(0, dtype=np.int32)
    tokens, seq_lens, edge_labels = [none], [none], [none]
    ignored: NDArray[np.bool_] | None = None
    num_segments: list[int] = []
    num_targets = np.zeros(len(packs), dtype=np.int64)
    for row, pack in enumerate(packs):
        if pack is None:
            tokens.append(np.full(seq_len, pad_id, dtype=np.int32))
            num_segments.append(0)
            continue
        message, number, segments = pack
        block = message.block
        tokens.append(block.tokens[number])
        seq_lens.append(block.seq_lens[segments])
        edge_labels.append(block.edge_labels[segments])
        num_segments.append(segments.stop - segments.start)
        num_targets[row] = block.num_targets[number]
        if block.ignored is not None:
            if ignored is None:
                ignored = np.zeros((len(packs), seq_len), dtype=np.bool_)
            ignored[row] = block.ignored[number]
    return PackBlock(
        tokens=np.concatenate(tokens).reshape(len(packs), seq_len),
        num_segments=np.array(num_segments, dtype=np.int32),
        seq_lens=np.concatenate(seq_lens),
        edge_labels=np.concatenate(edge_labels),
        ignored=ignored,
        num_targets=num_targets,
    )


def _neighbours(packs: Sequence[PackRef | None]) -> PackBlock | None:
    """The packs as a part of the block that they stand in, if they are neighbours there: all are, without workers."""
    if not packs or packs[0] is None or packs[-1] is None:
        return None
    message, first, segments = packs[0]
    for number, pack in enumerate(packs, start=first):
        if pack is None or pack.number != number or pack.message is not message:
            return None
    block, end = message.block, first + len(packs)
    if len(packs) == len(block.num_targets):
        return block
    segments = slice(segments.start, packs[-1].segments.stop)
    return PackBlock(
        tokens=block.tokens[first:end],
        num_segments=block.num_segments[first:end],
        seq_lens=block.seq_lens[segments],
        edge_labels=block.edge_labels[segments],
        ignored=None if block.ignored is None else block.ignored[first:end],
        num_targets=block.num_targets[first:end],
    )
