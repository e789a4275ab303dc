"""Whole documents by best fit: the documents of a window together, then the next window.

In:  token ids, one document after the other. A window is documents until their rows reach `window` packs, or until it
     has so many documents that what is known of each would take much memory. A document of more than a pack may end it
     after some of its pieces; the rest of it begins the next window.
Out: `PackRows`, each with the place where its window began and how many packs of the window are out: a new packer that
     is fed from there, and told that number, gives exactly the packs that follow.
Never: a window that depends on what follows it, or on how documents are fed; more than one window placed at once.

    seq_len 8, window 2      documents 0: 5 rows   1: 3   2: 6   3: 2, which makes 16: the window is complete
    largest first            2 opens a pack, 0 another one, 1 fills that of 0, 3 that of 2
    packs                    (2, 3) and (0, 1), in an order chosen by a hash (`window`)

What became of documents counts with the last pack of their window, since the next pack begins after them from there on
only; rows count with the pack that they are in.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streampack.errors import as_integer
from streampack.packing.buffer import checked_document
from streampack.packing.counting import OverflowLosses
from streampack.packing.options import Overflow, Packing, Tail, as_packing
from streampack.packing.packs import PackRows
from streampack.packing.policies import (
    INT32,
    BoundaryLabels,
    BoundaryPolicy,
    ReplaceBoundary,
    as_boundary,
    without_neighbours,
)
from streampack.packing.window import PackingWindow, PlacedPack, changed_since
from streampack.records import Counts, Mask, Tokens

_NOTHING = Counts()


class _Next(NamedTuple):
    """Where the pack after another one begins, as `PackRows` tells it."""

    document: int
    row: int
    given: int
    last_document: int
    is_closed: bool = False


class _Placed(NamedTuple):
    """A pack to give."""

    window: PackingWindow
    pack: PlacedPack
    documents_before: int
    """The window's first document has this number."""
    goes_on: _Next
    counts: Counts


class _Documents(NamedTuple):
    """Documents side by side."""

    ids: NDArray[np.integer]
    lengths: Sequence[int]
    rows: Sequence[int]
    mask: Mask | None

    @property
    def num_bytes(self) -> int:
        return self.ids.nbytes + (0 if self.mask is None else self.mask.nbytes)


class BestFitPacker:
    """Packs the documents of one window after the other; the methods are those of `Packer`.

    The arguments are those of `Packer`, and `given`: how many packs of the first window are out already, at a restart.
    """

    waits = False

    def __init__(
        self,
        *,
        seq_len: int,
        boundary: BoundaryPolicy | ReplaceBoundary | str,
        packing: Packing | str,
        pad_id: int = 0,
        bos_id: int | None = None,
        eos_id: int | None = None,
        given: int = 0,
    ) -> None:
        self.seq_len = as_integer(seq_len, "seq_len", low=2, high=INT32.max)
        self.pad_id = as_integer(pad_id, "pad_id", low=INT32.min, high=INT32.max)
        self.packing = as_packing(packing)
        self._labels = BoundaryLabels(without_neighbours(as_boundary(boundary)), bos_id, eos_id)
        self._trims = self._labels.trims
        self._window_rows = self.packing.window * self.seq_len
        self._most_documents = self.packing.window_documents(self.seq_len)
        self._losses = OverflowLosses(self.packing.overflow, self.seq_len)
        self.given = self._given = given
        """Packs of the first window, in their order, that are out already, until its last document has come."""
        self._rows = 0  # of the documents of the open window, which these lists hold
        self._ids: list[NDArray[np.integer]] = []
        self._masks: list[Mask | None] = []
        self._lengths: list[int] = []
        self._row_counts: list[int] = []
        self._bytes = 0
        self._num_fed = 0
        self._first, self._first_row = 0, 0  # where the open window begins
        self._held: deque[_Documents] = deque()  # for windows after the one whose packs are placed
        self._held_bytes = 0
        self._placed: deque[_Placed] = deque()  # the packs of a window that is complete
        self._placed_bytes = 0
        self._given_counts = _NOTHING
        self._since = _NOTHING  # what came after the last pack that was made
        self._finished = False
        self._drops_tail = False

    def __repr__(self) -> str:
        return f"<BestFitPacker, {self.buffered_rows} rows, {len(self._placed)} packs>"

    @property
    def buffered_bytes(self) -> int:
        """Bytes of what was fed and is held: the open window, one of which a pack is left, and what comes after it."""
        return self._bytes + self._placed_bytes + self._held_bytes

    @property
    def has_pack(self) -> bool:
        """Whether the next pack is made already."""
        return bool(self._placed)

    @property
    def buffered_rows(self) -> int:
        """Input rows that are held for the packs to come."""
        held = sum(sum(each.rows) for each in self._held)
        return self._rows + held + sum(placed.pack.num_rows for placed in self._placed)

    @property
    def counts(self) -> Counts:
        """What became of the documents up to where the next pack begins, as `Packer.counts`."""
        return self._given_counts.plus(self.counts_after)

    @property
    def counts_after(self) -> Counts:
        """The part of `counts` that came after the last pack; complete when `pop` has given None after `finish`."""
        return _NOTHING if self._placed else self._since

    def lacking_rows(self, num_packs: int) -> int:
        """How many rows more the open window needs, at most those of so many packs."""
        return min(self._window_rows - self._rows, num_packs * self.seq_len)

    def feed(
        self,
        tokens: NDArray[np.integer] | Sequence[int],
        loss_mask: NDArray[np.bool_] | Sequence[bool] | None = None,
        *,
        row: int = 0,
    ) -> None:
        """Take the next document, as `Packer.feed`."""
        assert not self._finished, "a document was fed after finish()"
        ordinal = self._num_fed
        ids, mask, rows = checked_document(tokens, loss_mask, ordinal, row=row, trims=self._trims)
        if rows - row > self.seq_len:
            ids, rows = self._losses.shorten(ids, ordinal, row=row, rows=rows)
            mask = None if mask is None else mask[: ids.size].copy()
        if row:
            self._first_row, ids, mask = row, ids[row:], None if mask is None else mask[row:]
        self._hold(ids, [ids.size], [rows - row], mask)

    def feed_all(self, tokens: Tokens, lengths: Sequence[int], loss_mask: Mask | None = None) -> None:
        """Take documents that lie side by side, as `Packer.feed_all`."""
        assert not self._finished, "a document was fed after finish()"
        if self.packing.overflow is not Overflow.SPLIT and max(lengths, default=0) > self.seq_len:
            stop = 0
            for length in lengths:
                start, stop = stop, stop + length
                self.feed(tokens[start:stop], None if loss_mask is None else loss_mask[start:stop])
            return
        rows = [max(length - 1, 0) for length in lengths] if self._trims else lengths
        self._hold(tokens, lengths, rows, loss_mask)

    def end_window(self) -> None:
        """Say that the first window, of which packs are out, ended here, where no document followed then.

        It is placed as it was when the next document comes, which begins a window.
        """
        self.given = 0

    def finish(self, *, pads: bool = False) -> None:
        """Say that no document follows; `pop` then gives what is left. `pads`: as of `Packer`."""
        self._finished = True
        self._drops_tail = self.packing.tail is Tail.DROP and not pads

    def pop(self) -> PackRows | None:
        """Return the next pack, or None: more documents are needed, or nothing is left after `finish`."""
        while not self._placed:
            if self._held:
                self._fill()
            elif self._finished and self._row_counts:
                self._close(is_complete=False)
            else:
                return None
        window, pack, documents_before, goes_on, counts = self._placed.popleft()
        self._given_counts = self._given_counts.plus(counts)
        if not goes_on.given:
            self._placed_bytes -= window.num_bytes
        arrays = window.arrays(pack)
        return PackRows(
            arrays.tokens,
            arrays.seq_lens,
            arrays.edge_labels,
            arrays.ignored,
            pack.num_targets,
            documents=[documents_before + document for document in arrays.documents],
            offsets=arrays.offsets,
            next_document=goes_on.document,
            next_row=goes_on.row,
            given=goes_on.given,
            last_document=goes_on.last_document,
            is_closed=goes_on.is_closed,
            counts=counts,
        )

    def _hold(
        self, ids: NDArray[np.integer], lengths: Sequence[int], rows: Sequence[int], mask: Mask | None
    ) -> None:
        """Keep documents until their windows are placed; the next one is, where packs are needed."""
        if self._given and not self.given:  # `end_window` was called
            self._close(is_complete=True)
        self._num_fed += len(rows)
        self._held.append(_Documents(ids, lengths, rows, mask))
        self._held_bytes += self._held[-1].num_bytes
        if not self._placed:
            self._fill()

    def _fill(self) -> None:
        """Move documents that are held to the open window, until it is complete or none is left."""
        while self._held:
            here = self._held.popleft()
            ids, lengths, rows, mask = here
            ends = list(accumulate(rows, initial=self._rows))
            room = self._most_documents - len(self._lengths)
            count = min(bisect_left(ends, self._window_rows, 1), room)  # with the last of these it is complete
            if count > len(rows):
                self._held_bytes -= here.num_bytes
                self._add(*here)
                continue
            last = count - 1
            # Its last piece is the one with which the window is complete, or it is in the window as a whole.
            kept = min(-(-(self._window_rows - ends[last]) // self.seq_len) * self.seq_len, rows[last])
            stop = after = sum(lengths[:count])
            next_row = 0
            if kept < rows[last]:
                next_row = kept + (self._first_row if last == len(self._lengths) == 0 else 0)
                after = stop - lengths[last] + kept
                stop = after + 1  # the label of its last row here is its first input in the next window
            head_mask, rest_mask = (None, None) if mask is None else (mask[:stop], mask[after:])
            rest_lengths, rest_rows = lengths[count:], rows[count:]
            head_ids, head_lengths, head_rows = ids[:stop], lengths[:count], rows[:count]
            if next_row:  # copies, so that a long document is not held because of a part of it
                head_ids, head_mask = head_ids.copy(), None if head_mask is None else head_mask.copy()
                head_lengths, head_rows = [*lengths[:last], kept + 1], [*rows[:last], kept]
                rest_lengths, rest_rows = [lengths[last] - kept, *rest_lengths], [rows[last] - kept, *rest_rows]
            self._held_bytes -= here.num_bytes
            if rest_rows:
                rest = _Documents(ids[after:], rest_lengths, rest_rows, rest_mask)
                if next_row and self._window_rows > sum(rest_rows):
                    rest = rest._replace(ids=rest.ids.copy(), mask=None if rest.mask is None else rest.mask.copy())
                self._held.appendleft(rest)
                self._held_bytes += rest.num_bytes
            self._add(head_ids, head_lengths, head_rows, head_mask)
            self._close(is_complete=True, next_row=next_row)
            return

    def _add(
        self,
        ids: NDArray[np.integer],
        lengths: Sequence[int],
        rows: Sequence[int],
        mask: Mask | None,
    ) -> None:
        self._ids.append(ids)
        self._masks.append(mask)
        self._lengths += lengths
        self._row_counts += rows
        self._rows += sum(rows)
        self._bytes += ids.nbytes + (0 if mask is None else mask.nbytes)

    def _close(self, *, is_complete: bool, next_row: int = 0) -> None:
        """Place the documents of the open window.

        `next_row`: the next window begins with that row of the last document; 0: with the next document.
        """
        first, first_row = self._first, self._first_row
        window = PackingWindow(
            self._ids, self._masks, self._lengths, self._row_counts, first_row=first_row, seq_len=self.seq_len
        )
        packs = window.packs
        if self._given > len(packs):
            raise changed_since(self._given, len(packs))
        sizes = [pack.num_rows for pack in packs]
        dropped = -1
        if not is_complete and self._drops_tail and min(sizes, default=self.seq_len) < self.seq_len:
            dropped = sizes.index(min(sizes))
        placed: list[_Placed] = []
        counts, self._since = self._since, _NOTHING
        last_document = first + len(self._row_counts) - 1
        for index in range(self._given, len(packs)):
            _, size, num_targets = pack = packs[index]
            if index == dropped:
                counts = counts.plus(Counts(tail_tokens=size))
            elif not num_targets:  # its loss would be 0/0
                counts = counts.plus(Counts(targetless_packs=1, targetless_tokens=size))
            else:
                own = Counts(tokens=size, targets=num_targets, padding=self.seq_len - size)
                own = own if counts is _NOTHING else counts.plus(own)
                placed.append(_Placed(window, pack, first, _Next(first, first_row, index + 1, last_document), own))
                counts = _NOTHING
        # The first document was cut before if a part of it is out.
        is_cut = [rows > self.seq_len for rows in self._row_counts]
        is_cut[-1] = is_cut[-1] or next_row > 0
        num_passed = len(self._row_counts) - (next_row > 0)
        counts = counts.plus(Counts(documents=num_passed, split_documents=sum(is_cut[bool(first_row) :])))
        following = first + num_passed
        counts = counts.plus(self._losses.before(following))
        if placed:
            last = placed[-1]
            goes_on = _Next(following, next_row, 0, 0, is_closed=is_complete and not next_row)
            placed[-1] = last._replace(goes_on=goes_on, counts=last.counts.plus(counts))
            self._placed_bytes += window.num_bytes
        else:
            self._since = counts
        self._placed.extend(placed)
        self._ids, self._masks, self._lengths, self._row_counts = [], [], [], []
        self._rows = self._bytes = self.given = self._given = 0
        self._first, self._first_row = following, next_row
