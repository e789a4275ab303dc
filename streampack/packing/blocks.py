"""Packs side by side: joined into a block, and a block as the arrays of a batch.

In:  packs as the packer makes them, or packs that are in blocks already.
Out: one `PackBlock`; "tokens", "labels", "position_ids" and "segment_ids" of a block.
Never: a copy of packs that are neighbours in one block; two arrays of a batch that share memory.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from streampack.packing.packs import Pack, PackBlock, PackRows
from streampack.records import IGNORE_INDEX, Mask, Tokens


class CompactPack(Protocol):
    """The fields of a pack that a block has: those of `PackRows`, whose docstring describes them.

    `tokens` and `ignored` may be padded already.
    """

    @property
    def tokens(self) -> Tokens: ...
    @property
    def seq_lens(self) -> NDArray[np.int32]: ...
    @property
    def edge_labels(self) -> NDArray[np.int32]: ...
    @property
    def ignored(self) -> Mask | None: ...
    @property
    def num_targets(self) -> int: ...


class PackInBlock(NamedTuple):
    """One pack of a block."""

    block: PackBlock
    number: int
    """Zero-based."""
    segments: slice
    """Its part of the block's `seq_lens` and `edge_labels`."""


class Stretches(NamedTuple):
    """The sequences that attention keeps apart, pack by pack: the segments of a pack, then its padding if it has any.

    Their lengths add up to B * seq_len.
    """

    lengths: NDArray[np.int32]
    """Rows of each stretch, int32 [n]; where no pack has padding, the block's `seq_lens` itself."""
    segment_ids: NDArray[np.int64]
    """int64 [n]: 1, 2, 3, ... in each pack; 0: padding."""
    counts: list[int]
    """Stretches of each pack, [B]."""


class _Compact(NamedTuple):
    tokens: Tokens
    seq_lens: NDArray[np.int32]
    edge_labels: NDArray[np.int32]
    ignored: Mask | None
    num_targets: int


_NO_ROWS = np.empty(0, np.int32)
_FILLER = _Compact(_NO_ROWS, _NO_ROWS, _NO_ROWS, None, 0)


def stack(packs: Sequence[CompactPack], *, seq_len: int, pad_id: int) -> PackBlock:
    """Return the packs side by side, each padded to `seq_len`; a pack without rows becomes all padding."""
    tokens, seq_lens, edge_labels = [_NO_ROWS], [_NO_ROWS], [_NO_ROWS]  # np.concatenate wants at least one array
    num_segments: list[int] = []
    num_targets: list[int] = []
    ignored: Mask | None = None
    for index, pack in enumerate(packs):
        size = pack.tokens.size
        tokens.append(pack.tokens)
        if size < seq_len:
            tokens.append(np.full(seq_len - size, pad_id, np.int32))
        seq_lens.append(pack.seq_lens)
        edge_labels.append(pack.edge_labels)
        num_segments.append(pack.seq_lens.size)
        num_targets.append(pack.num_targets)
        if pack.ignored is not None:
            if ignored is None:
                ignored = np.zeros((len(packs), seq_len), np.bool_)
            ignored[index, :size] = pack.ignored
    return PackBlock(
        tokens=np.concatenate(tokens).reshape(len(packs), seq_len),
        num_segments=np.array(num_segments, np.int32),
        seq_lens=np.concatenate(seq_lens),
        edge_labels=np.concatenate(edge_labels),
        ignored=ignored,
        num_targets=np.array(num_targets, np.int64),
    )


def gather(packs: Sequence[PackInBlock | None], *, seq_len: int, pad_id: int) -> PackBlock:
    """Return packs of any blocks as one block; None is a filler: all padding. Neighbours in a block are not copied."""
    if (block := _neighbours(packs)) is not None:
        return block
    return stack([_FILLER if pack is None else _compact(*pack) for pack in packs], seq_len=seq_len, pad_id=pad_id)


def _compact(block: PackBlock, number: int, segments: slice) -> _Compact:
    return _Compact(
        tokens=block.tokens[number],
        seq_lens=block.seq_lens[segments],
        edge_labels=block.edge_labels[segments],
        ignored=None if block.ignored is None else block.ignored[number],
        num_targets=block.num_targets.item(number),
    )


def _neighbours(packs: Sequence[PackInBlock | None]) -> PackBlock | None:
    """The packs as a part of the block that they lie in, if they lie there in this order side by side; else None.

    Without workers they always do.
    """
    if not packs or packs[0] is None or packs[-1] is None:
        return None
    block, first, segments = packs[0]
    for number, pack in enumerate(packs, start=first):
        if pack is None or pack.number != number or pack.block is not block:
            return None
    end = first + len(packs)
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


def expand_block(block: PackBlock) -> dict[str, NDArray[np.int64]]:
    """Return "tokens", "labels", "position_ids" and "segment_ids" of a block, each int64 [B, seq_len].

    They are new, contiguous, and overlap neither each other nor the block.
    """
    # The caches are cold here, as documents were read and packed since the batch before: half of the time goes into
    # writing the four arrays, most of the rest into other arrays of that length; so those are few, and int32.
    num_packs, seq_len = shape = block.tokens.shape
    lengths, ids, _ = stretches(block)
    ends = lengths.cumsum()
    # One allocation for three: with one for each, malloc gives the pages of all of them back to the system, batch
    # after batch, and the page faults cost more than all the work here. The fourth saves a copy of it.
    tokens, labels, position_ids = np.empty((3, num_packs * seq_len), np.int64)
    segment_ids = ids.repeat(lengths)
    tokens[:] = block.tokens.reshape(-1)
    labels[:-1] = tokens[1:]
    if block.ignored is not None:
        labels[np.flatnonzero(block.ignored)] = IGNORE_INDEX
    if lengths is block.seq_lens:
        labels[ends - 1] = block.edge_labels
    else:
        labels[ends[ids > 0] - 1] = block.edge_labels
        for end, length in zip(ends[ids == 0].tolist(), lengths[ids == 0].tolist(), strict=True):
            labels[end - length : end] = IGNORE_INDEX
    upwards = np.arange(seq_len)
    np.concatenate([upwards[:length] for length in (0, *lengths.tolist())], out=position_ids)  # one array at least
    arrays = {"tokens": tokens, "labels": labels, "position_ids": position_ids, "segment_ids": segment_ids}
    return {name: array.reshape(shape) for name, array in arrays.items()}


def stretches(block: PackBlock) -> Stretches:
    """Return the stretches of rows that a block consists of."""
    num_segments = block.num_segments.tolist()
    ids: list[int] = []
    if block.seq_lens.sum() == block.tokens.size:
        for count in num_segments:
            ids += range(1, count + 1)
        return Stretches(block.seq_lens, np.array(ids, np.int64), num_segments)
    seq_len, seq_lens = block.tokens.shape[1], block.seq_lens.tolist()
    lengths: list[int] = []
    counts: list[int] = []
    first = 0
    for count in num_segments:
        own = seq_lens[first : first + count]
        first += count
        lengths += own
        ids += range(1, count + 1)
        padding = seq_len - sum(own)
        if padding:
            lengths.append(padding)
            ids.append(0)
        counts.append(count + (padding > 0))
    return Stretches(np.array(lengths, np.int32), np.array(ids, np.int64), counts)


def spell_out(rows: PackRows, *, seq_len: int, pad_id: int) -> Pack:
    """Return one pack with its labels, positions and segments."""
    arrays = expand_block(stack([rows], seq_len=seq_len, pad_id=pad_id))
    return Pack(
        tokens=arrays["tokens"][0],
        labels=arrays["labels"][0],
        position_ids=arrays["position_ids"][0],
        segment_ids=arrays["segment_ids"][0],
        seq_lens=rows.seq_lens.astype(np.int64),
        num_tokens=rows.tokens.size,
        num_targets=rows.num_targets,
        spans=rows.spans,
    )
