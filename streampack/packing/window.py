"""The packs of one packing window under best fit.

In:  the documents of the window, side by side.
Out: its packs, in the order in which they go out; the arrays of each are made when it does.
Invariants: a document of more than seq_len rows is cut into pieces of seq_len rows and a rest; the pieces of a pack
stand in the order of their documents. The packs go out in an order that is chosen by a hash of the window's token ids:
it has nothing to do with how full they are, and as it differs from window to window, the least full packs of lanes that
keep in step do not meet in one batch.
Never: a label that crosses documents; Python work for each row; a copy of what is fed, but for each pack's own rows.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streampack.errors import StateError
from streampack.hashing import Purpose, permutation
from streampack.packing.placing import place
from streampack.records import IGNORE_INDEX, Mask, Tokens


class PlacedPack(NamedTuple):
    """Which pieces of the window are in a pack."""

    pieces: slice
    num_rows: int
    num_targets: int


class PackArrays(NamedTuple):
    """The arrays of a pack, as `PackRows` has them."""

    tokens: Tokens
    seq_lens: NDArray[np.int32]
    edge_labels: NDArray[np.int32]
    ignored: Mask | None
    documents: list[int]
    """Index of each segment's document in the window."""
    offsets: list[int]


class PackingWindow:
    """The documents of one window, placed."""

    def __init__(
        self,
        ids: Sequence[NDArray[np.integer]],
        masks: Sequence[Mask | None],
        lengths: Sequence[int],
        rows: Sequence[int],
        *,
        first_row: int,
        seq_len: int,
    ) -> None:
        """Place the documents.

        Args:
            ids: Their tokens, of the first one those from `first_row` on; some documents side by side in each array.
            masks: For each of the arrays, which tokens may be a target; None: all.
            lengths: Tokens of each document, in `ids`.
            rows: Input rows of each document that are to be packed; a row has a label if a token of its document
                follows it.
            first_row: Rows of the first document that are in packs before the window.
            seq_len: Rows of a pack.
        """
        self._ids = ids
        self._masks = masks
        self._has_masks = any(mask is not None for mask in masks)
        self._dtype = None if all(each.dtype == np.int32 for each in ids) else np.int32
        """Of a pack's tokens; None: that of `ids`, which saves time."""
        num_rows, num_tokens = np.array(rows, np.int64), np.array(lengths, np.int64)
        num_pieces = -(-num_rows // seq_len)
        documents = np.arange(len(num_rows)).repeat(num_pieces)
        offsets = (np.arange(len(documents)) - (num_pieces.cumsum() - num_pieces)[documents]) * seq_len
        sizes = np.minimum(num_rows[documents] - offsets, seq_len)
        pack, num_packs = place(sizes, seq_len)
        key = sum(int(each.sum(dtype=np.int64)) for each in ids)
        out = permutation(Purpose.PACK_ORDER, key, count=num_packs)
        turn = np.empty(num_packs, np.int64)
        turn[out] = np.arange(num_packs)
        order = np.argsort(turn[pack], kind="stable")
        documents, offsets, sizes = documents[order], offsets[order], sizes[order]

        ends = num_tokens.cumsum()
        starts = (ends - num_tokens)[documents] + offsets
        is_followed = starts + sizes < ends[documents]  # by a token of the same document
        offsets[documents == 0] += first_row
        array_ends = np.cumsum([each.size for each in ids])
        array = array_ends.searchsorted(starts, side="right")
        starts -= np.concatenate(([0], array_ends))[array]
        self._arrays, self._starts, self._stops = array.tolist(), starts.tolist(), (starts + sizes).tolist()
        self._seq_lens = sizes.astype(np.int32)
        self._documents, self._offsets = documents.tolist(), offsets.tolist()
        self._edge_labels = np.full(len(sizes), IGNORE_INDEX, np.int32)
        for piece in np.flatnonzero(is_followed).tolist():
            number, stop = self._arrays[piece], self._stops[piece]
            mask = masks[number]
            if mask is None or mask[stop]:
                self._edge_labels[piece] = ids[number][stop]
        self.packs = self._placed(np.bincount(pack, minlength=num_packs)[out])
        """In the order in which they go out."""

    @property
    def num_bytes(self) -> int:
        """Bytes of what was fed."""
        return sum(each.nbytes for each in self._ids) + sum(0 if each is None else each.nbytes for each in self._masks)

    def pieces_after(self, given: int) -> list[tuple[int, int, int]]:
        """(document, row, row after it) of each piece in the packs after the first `given`, rows those of documents."""
        first = self.packs[given].pieces.start if given < len(self.packs) else len(self._offsets)
        columns = self._documents[first:], self._offsets[first:], self._seq_lens[first:].tolist()
        return [(document, row, row + size) for document, row, size in zip(*columns, strict=True)]

    def arrays(self, pack: PlacedPack) -> PackArrays:
        """The arrays of one pack."""
        own = pack.pieces
        ids, where = self._ids, zip(self._arrays[own], self._starts[own], self._stops[own], strict=True)
        tokens = np.concatenate([ids[number][start:stop] for number, start, stop in where], dtype=self._dtype)
        seq_lens, ignored = self._seq_lens[own], None
        if self._has_masks:
            pieces = zip(self._arrays[own], self._starts[own], self._stops[own], strict=True)
            ignored = np.concatenate([self._ignored(*piece) for piece in pieces])
        return PackArrays(
            tokens,
            seq_lens,
            self._edge_labels[own],
            ignored if ignored is not None and np.count_nonzero(ignored) else None,
            self._documents[own],
            self._offsets[own],
        )

    def _ignored(self, number: int, start: int, stop: int) -> Mask:
        """Which rows of a piece have no label though a token of the same document follows; the last one is an edge."""
        ignored = np.zeros(stop - start, np.bool_)
        mask = self._masks[number]
        if mask is not None:
            np.logical_not(mask[start + 1 : stop], out=ignored[:-1])
        return ignored

    def _placed(self, counts: NDArray[np.int64]) -> list[PlacedPack]:
        """The packs, of which each has the next `counts` pieces."""
        targets = self._seq_lens - (self._edge_labels == IGNORE_INDEX)
        if self._has_masks:
            for piece, where in enumerate(zip(self._arrays, self._starts, self._stops, strict=True)):
                targets[piece] -= np.count_nonzero(self._ignored(*where))
        stops = counts.cumsum()
        starts = stops - counts
        sums = [np.add.reduceat(each, starts).tolist() if len(starts) else [] for each in (self._seq_lens, targets)]
        return [
            PlacedPack(slice(start, stop), num_rows, num_targets)
            for start, stop, num_rows, num_targets in zip(starts.tolist(), stops.tolist(), *sums, strict=True)
        ]


def changed_since(given: int, num_packs: int) -> StateError:
    """The error for a window that has fewer packs than are out."""
    return StateError(
        f"{given} packs of a packing window are said to be out, and its documents make {num_packs}; the data or the "
        "tokenizer have changed since."
    )
