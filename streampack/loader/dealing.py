"""The messages of a rank's workers back into the global order.

In:    messages, one of each worker in turn.
Out:   items in the rank's order.
"""

from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

from streampack.lanes.position import LaneEnd, SkippedRange
from streampack.lanes.provenance import Provenance
from streampack.loader.messages import Message, Slot
from streampack.packing.blocks import PackInBlock

_NOTHING, _PACK, _WAITS, _ = map(int, Slot)  # looking up an enum's member costs as much as the rest of a slot


class Item(NamedTuple):
    """One slot of the rank's order: a pack somewhere in a message, or that its lane has none, or an error."""

    round: int
    lane_index: int
    """Which of the rank's lanes."""
    pack: "PackRef | None"
    """None: the lane has no pack in this round, or there is an error in its place."""
    ends: tuple[LaneEnd, ...] = ()
    """What came after the last pack of sources of the lane, as `Message.ends` has it."""
    error: Exception | None = None
    """What was raised in the pack's place; it is raised when the pack is needed. The item is the last one."""
    waits: bool = False
    """Whether the lane, which has no pack in this round, has some again in a later stage; else it is over."""


class PackRef(NamedTuple):
    """One pack of a message."""

    message: Message
    number: int
    segments: slice
    """Its part of the `seq_lens` and `edge_labels` of the message's block."""

    @property
    def source(self) -> int:
        """The index of the pack's source in the run."""
        return int(self.message.sources[self.number])

    @property
    def in_block(self) -> PackInBlock:
        return PackInBlock(self.message.block, self.number, self.segments)

    @property
    def skipped_ranges(self) -> list[SkippedRange]:
        """What was skipped for the first time while the pack was made."""
        return [skipped_range for index, skipped_range in self.message.skipped_ranges if index == self.number]

    @property
    def provenance(self) -> tuple[Provenance, ...]:
        """One per segment; empty where the workers were not asked for it."""
        return () if self.message.provenance is None else self.message.provenance[self.number]


def deal(messages: Iterator[Message], *, num_lanes: int, num_workers: int, first_round: int) -> Iterator[Item]:
    """The messages of a rank's workers (worker 0, 1, ..., 0, 1, ...) as items in the rank's order."""
    width = -(-num_lanes // num_workers)
    step = 0
    while True:
        wave: list[list[_Opened | None]] = []
        while len(wave) < num_workers:
            wave.append(_opened(next(messages)))
            if wave[-1][0] is not None and wave[-1][0][2] is not None:
                break  # no message follows, and no slot after this one is dealt
        for index in range(max(map(len, wave))):
            number, column = divmod(step, width)
            for worker, slots in enumerate(wave):
                slot = slots[index]
                if slot is not None:
                    lane_index = column * num_workers + worker
                    if lane_index >= num_lanes:  # an error where the worker has no lane: in its next slot that has one
                        number, lane_index = number + 1, worker
                    yield Item(first_round + number, lane_index, *slot)
                    if slot[2] is not None:
                        return
            step += 1


_Opened: TypeAlias = tuple[PackRef | None, tuple[LaneEnd, ...], Exception | None, bool]
"""An item without its round and lane."""


def _opened(message: Message) -> list[_Opened | None]:
    """What each slot of a message holds, then the message's error."""
    slots: list[_Opened | None] = []
    ends: dict[int, tuple[LaneEnd, ...]] = {}
    for index, end in message.ends:
        ends[index] = (*ends.get(index, ()), end)
    num_segments = message.block.num_segments.tolist()
    number, first = 0, 0
    for index, kind in enumerate(message.slots.tolist()):
        if kind == _PACK:
            stop = first + num_segments[number]
            pack = PackRef(message, number, slice(first, stop))
            slots.append((pack, ends.get(index, ()) if ends else (), None, False))
            number, first = number + 1, stop
        else:
            slots.append(None if kind == _NOTHING else (None, ends.get(index, ()), None, kind == _WAITS))
    if message.error is not None:
        slots.append((None, (), message.error, False))
    return slots
