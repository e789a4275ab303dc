"""What a worker's message holds, and how batches are put together from messages."""

import dataclasses

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from streampack.errors import LoaderError
from streampack.loader.dealing import Item, deal
from streampack.loader.messages import COLUMNS, Message, Slot
from streampack.packing.blocks import PackInBlock, gather, stack
from streampack.packing.packs import PackBlock, PackRows
from streampack.records import StorageUse

SEQ_LEN, PAD_ID = 6, 77


def rows_of(number: int) -> PackRows:
    """A pack whose numbers of rows, segments and targets follow from its number."""
    lengths = [1 + (number + segment) % 3 for segment in range(number % 3)]
    size = sum(lengths)
    return PackRows(
        tokens=np.arange(size, dtype=np.int32) + 100 * number,
        seq_lens=np.array(lengths, np.int32),
        edge_labels=np.array(lengths, np.int32) + number,
        ignored=np.arange(size) % 2 == 0 if number % 5 == 1 else None,
        num_targets=number,
        documents=(),
        offsets=(0,),
        next_document=0,
        next_row=0,
    )


def message_of(packs: list[PackRows]) -> Message:
    return Message(
        slots=np.ones(len(packs), np.int8),
        block=stack(packs, seq_len=SEQ_LEN, pad_id=PAD_ID),
        changes=np.zeros((len(packs), len(COLUMNS)), np.int64),
        sources=np.zeros(len(packs), np.int16),
        ends=(),
        skipped_ranges=(),
        provenance=None,
        storage=StorageUse(),
    )


def plain(block: PackBlock) -> list[object]:
    ignored = np.zeros_like(block.tokens, np.bool_) if block.ignored is None else block.ignored
    arrays = (block.tokens, block.num_segments, block.seq_lens, block.edge_labels, ignored, block.num_targets)
    return [(array.dtype, array.tolist()) for array in arrays]


NONE = PackRows(
    tokens=np.empty(0, np.int32),
    seq_lens=np.empty(0, np.int32),
    edge_labels=np.empty(0, np.int32),
    ignored=None,
    num_targets=0,
    documents=(),
    offsets=(),
    next_document=0,
    next_row=0,
)


def in_block(item: Item) -> PackInBlock:
    assert item.pack is not None
    return item.pack.in_block


@given(st.integers(1, 3), st.integers(1, 8), st.data())
def test_packs_gathered_from_messages_are_the_packs_stacked(workers: int, size: int, data: st.DataObject) -> None:
    rows = [rows_of(number) for number in range(2 * workers * size)]
    messages = [
        message_of(rows[wave + worker : wave + workers * size : workers])
        for wave in (0, workers * size)
        for worker in range(workers)
    ]
    items = deal(iter(messages), num_lanes=workers, num_workers=workers, first_round=0)
    dealt: list[PackInBlock | None] = [in_block(next(items)) for _ in rows]
    packs: list[PackRows] = list(rows)
    first, last = sorted(data.draw(st.tuples(st.integers(0, len(rows)), st.integers(0, len(rows)))))
    chosen = data.draw(st.one_of(st.just(range(first, last)), st.lists(st.integers(0, len(rows)))))
    dealt.append(None)
    packs.append(NONE)
    block = gather([dealt[number] for number in chosen], seq_len=SEQ_LEN, pad_id=PAD_ID)
    assert plain(block) == plain(stack([packs[number] for number in chosen], seq_len=SEQ_LEN, pad_id=PAD_ID))


def test_neighbours_in_a_message_are_not_copied() -> None:
    message = message_of([rows_of(number) for number in range(9)])
    items = deal(iter([message]), num_lanes=1, num_workers=1, first_round=0)
    packs = [in_block(next(items)) for _ in range(9)]
    assert gather(packs, seq_len=SEQ_LEN, pad_id=PAD_ID) is message.block
    assert np.shares_memory(gather(packs[3:7], seq_len=SEQ_LEN, pad_id=PAD_ID).tokens, message.block.tokens)
    assert not np.shares_memory(gather(packs[::2], seq_len=SEQ_LEN, pad_id=PAD_ID).tokens, message.block.tokens)


def test_the_error_of_a_worker_that_sends_no_more_is_in_its_next_slot_that_has_a_lane() -> None:
    """Three lanes, two workers, a slot a message: the second worker has nothing in each second wave."""

    def dealt(waves: int) -> list[tuple[int, int]]:
        error = LoaderError("died")
        messages: list[Message] = []
        for wave in range(waves):
            messages.append(message_of([rows_of(wave)]))
            messages.append(message_of([rows_of(wave)]))
            if wave % 2:
                messages[-1] = dataclasses.replace(message_of([]), slots=np.array([Slot.NOTHING], np.int8))
        messages += [message_of([rows_of(9)]), dataclasses.replace(message_of([]), error=error)]
        items = list(deal(iter(messages), num_lanes=3, num_workers=2, first_round=4))
        assert items[-1].error is error
        assert all(item.pack is not None for item in items[:-1])
        return [(item.round, item.lane_index) for item in items]

    assert dealt(0) == [(4, 0), (4, 1)]
    assert dealt(1) == [(4, 0), (4, 1), (4, 2), (5, 1)]
    assert dealt(2) == [(4, 0), (4, 1), (4, 2), (5, 0), (5, 1)]
