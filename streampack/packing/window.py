"""The packs of one packing window under best fit.

In:  the documents of the window, side by side.
Out: its packs, in the order in which they go out.
Invariants: a document of more than seq_len rows is cut into pieces of seq_len rows and a rest; the pieces of a pack
stand in the order of their documents. The packs go out in an order that is chosen by a hash of the window's token ids:
it has nothing to do with how full they are, and as it differs from window to window, the least full packs of lanes that
keep in step do not meet in one batch.
Never: a label that crosses documents; Python work for each row.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streampack.hashing import Purpose, permutation
from streampack.packing.placing import place
from streampack.records import IGNORE_INDEX, Mask, Tokens


class WindowDocuments(NamedTuple):
    """Documents side by side, [n]."""

    ids: NDArray[np.integer]
    """The tokens of all of them."""
    lengths: NDArray[np.int64]
    """Tokens of each."""
    rows: NDArray[np.int64]
    """Input rows of each that are to be packed; a row has a label if a token of its document follows it."""
    may_be_target: Mask | None
    """Which of the tokens may be a target; None: all."""


class PlacedPack(NamedTuple):
    """One pack of the window; the fields are those of `PackRows`."""

    tokens: Tokens
    seq_lens: NDArray[np.int32]
    edge_labels: NDArray[np.int32]
    ignored: Mask | None
    num_targets: int
    documents: NDArray[np.int64]
    """Index of each segment's document in the window, [k]."""
    offsets: NDArray[np.int64]


def join_documents(
    ids: Sequence[NDArray[np.integer]], masks: Sequence[Mask | None], lengths: Sequence[int], rows: Sequence[int]
) -> WindowDocuments:
    """The documents of a window; `ids` and `masks` may have several documents in each array, side by side."""
    mask: Mask | None = None
    if any(each is not None for each in masks):
        parts = [np.ones(len(n), np.bool_) if each is None else each for n, each in zip(ids, masks, strict=True)]
        mask = np.concatenate(parts)
    return WindowDocuments(
        np.concatenate(ids, dtype=np.int32), np.array(lengths, np.int64), np.array(rows, np.int64), mask
    )


def window_packs(window: WindowDocuments, *, first_row: int, seq_len: int) -> Iterator[PlacedPack]:
    """Give the packs of the window; `first_row`: rows of the first document that are in packs before the window."""
    ids, lengths, rows, may_be_target = window
    num_pieces = -(-rows // seq_len)
    documents = np.arange(len(rows)).repeat(num_pieces)
    offsets = (np.arange(len(documents)) - (num_pieces.cumsum() - num_pieces)[documents]) * seq_len
    sizes = np.minimum(rows[documents] - offsets, seq_len)
    offsets[documents == 0] += first_row
    ends = lengths.cumsum()
    pack, num_packs = place(sizes, seq_len)
    if not num_packs:
        return
    out = permutation(Purpose.PACK_ORDER, int(ids.sum(dtype=np.int64)), count=num_packs)
    turn = np.empty(num_packs, np.int64)
    turn[out] = np.arange(num_packs)
    order = np.argsort(turn[pack], kind="stable")
    documents, offsets, sizes = documents[order], offsets[order], sizes[order]
    starts = (ends - lengths)[documents] + offsets
    stops = starts + sizes
    bounds = list(zip(starts.tolist(), stops.tolist(), strict=True))

    tokens = np.concatenate([ids[start:stop] for start, stop in bounds])
    has_label = stops < ends[documents]  # a token of the same document follows
    following = np.minimum(stops, ids.size - 1)
    ignored: Mask | None = None
    if may_be_target is not None:
        has_label &= may_be_target[following]
        next_is_ignored = ~np.append(may_be_target[1:], np.True_)
        ignored = np.concatenate([next_is_ignored[start:stop] for start, stop in bounds])
        ignored[sizes.cumsum() - 1] = False  # the edges have labels of their own
    edge_labels = np.where(has_label, ids[following], IGNORE_INDEX).astype(np.int32)
    seq_lens = sizes.astype(np.int32)

    piece = row = 0
    for count in np.bincount(pack, minlength=num_packs)[out].tolist():
        own = slice(piece, piece + count)
        num_rows = int(sizes[own].sum())
        masked = None if ignored is None else ignored[row : row + num_rows]
        num_masked = 0 if masked is None else int(np.count_nonzero(masked))
        yield PlacedPack(
            tokens[row : row + num_rows],
            seq_lens[own],
            edge_labels[own],
            masked if num_masked else None,
            num_rows - num_masked - int(np.count_nonzero(edge_labels[own] == IGNORE_INDEX)),
            documents[own],
            offsets[own],
        )
        piece, row = piece + count, row + num_rows
