"""The rest of a packing window whose first packs are out, where rows are cut in another way from now on.

In:  the documents of the window from where it began, then those after it; how many of its packs are out, and how much
     of the rest is.
Out: packs of the new cutting, each with the place where the next one begins: inside the rest that is where the window
     began, with both numbers.
Invariants: the window is placed in the old way, so that what its packs hold is known. What they do not hold, a stretch
of a document at a time, comes in the order of the documents, and then the documents after the window. What `overflow`
has taken from the window's documents stays taken; they count with the first pack after which nothing of the rest is
left.
Never: a new window in the rest; where one would need two windows placed again, and then three.

    documents of the window      0: 5 rows   1: 3   2: 6   3: 2       packs (2, 3) and (0, 1), of which one is out
    the rest                     0, 1, and then document 4
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streampack.errors import DocumentTooLongError, StateError
from streampack.packing.best_fit import BestFitPacker, changed_since
from streampack.packing.counting import OverflowLosses, PackCounter
from streampack.packing.options import Overflow, Packing
from streampack.packing.packer import Packer
from streampack.packing.packs import PackRows
from streampack.packing.policies import BoundaryPolicy, ReplaceBoundary
from streampack.packing.window import PackingWindow
from streampack.records import Counts, Mask, Tokens


class HalfOut(NamedTuple):
    """A window of which some packs are out: how it was cut, and how much of it is out."""

    seq_len: int
    boundary: BoundaryPolicy | ReplaceBoundary
    packing: Packing
    given: int
    """Its packs that are out, in their order."""
    rest: int
    """Tokens of the rest that packs of later cuttings hold."""


class _Stretch(NamedTuple):
    """Rows of a document that no pack of the window holds and that follow each other."""

    document: int
    row: int
    """Of the document."""
    ids: NDArray[np.integer]
    """Its tokens, and one more where a token of the document follows that is a label here."""
    mask: Mask | None
    begin: int
    """Tokens of the rest before it."""
    ends_document: bool
    is_whole: bool
    """Whether it is all rows of the document."""

    @property
    def span(self) -> int:
        """Tokens of the rest that it has, under all boundary policies."""
        return self.ids.size - (not self.ends_document)

    def after(self, count: int) -> "_Stretch":
        """Without its first tokens."""
        return self._replace(
            row=self.row + count,
            ids=self.ids[count:],
            mask=None if self.mask is None else self.mask[count:],
            begin=self.begin + count,
            is_whole=False,
        )


class _Rest(NamedTuple):
    """What is left of a window, and what comes after it."""

    stretches: list[_Stretch]
    next_document: int
    """With `next_row`: the first row after the rest."""
    next_row: int
    own: Counts
    """Of the window's documents before it."""


class RestPacker(Packer):
    """Packs the rest of a window, then what follows; the methods are those of `Packer`.

    It is for the packs up to the first one after which nothing of the rest is left (`PackRows.given` is 0).
    """

    def __init__(
        self,
        half_out: HalfOut,
        *,
        seq_len: int,
        boundary: BoundaryPolicy | ReplaceBoundary | str,
        packing: Packing,
        drops: bool,
        pad_id: int = 0,
        bos_id: int | None = None,
        eos_id: int | None = None,
        at_once: int = 16,
    ) -> None:
        """The arguments are those of `Packer`.

        `drops`: whether a document of the rest that `overflow="error"` refuses is dropped and counted, not an error.
        """
        ids = {"pad_id": pad_id, "bos_id": bos_id, "eos_id": eos_id}
        super().__init__(seq_len=seq_len, boundary=boundary, packing=packing, at_once=at_once, **ids)
        self._half_out = half_out
        self._window: _Window | None = _Window(
            seq_len=half_out.seq_len, boundary=half_out.boundary, packing=half_out.packing, **ids
        )
        """None: it is complete."""
        overflow = Overflow.DROP if drops and packing.overflow is Overflow.ERROR else packing.overflow
        self._losses_of_rest = OverflowLosses(overflow, seq_len)
        self._losses_of_rest.losses = self._losses.losses
        self._rest = _Rest([], 0, 0, Counts())
        self._first_row = 0
        self.refused = 0
        """The document of which `pop` says that it is too long."""
        self._refusal: DocumentTooLongError | None = None

    @property
    def given(self) -> int:
        """Packs of the window that are out, until its last document has come."""
        return 0 if self._window is None else self._half_out.given

    @property
    def buffered_bytes(self) -> int:
        """Bytes of the window, or of what is left of it, and of what comes after it."""
        return super().buffered_bytes if self._window is None else self._window.buffered_bytes

    @property
    def buffered_rows(self) -> int:
        """Input rows that are held for the packs to come."""
        return super().buffered_rows if self._window is None else self._window.buffered_rows

    def lacking_rows(self, num_packs: int) -> int:
        """How many rows more the window needs, or the next packs."""
        window = self._window
        return super().lacking_rows(num_packs) if window is None else window.lacking_rows(num_packs)

    def feed(
        self,
        tokens: NDArray[np.integer] | Sequence[int],
        loss_mask: NDArray[np.bool_] | Sequence[bool] | None = None,
        *,
        row: int = 0,
    ) -> None:
        """Take the next document, as `Packer.feed`."""
        if self._window is None:
            if self._refusal is None:
                super().feed(tokens, loss_mask)
            return
        self._window.feed(tokens, loss_mask, row=row)
        self._first_row = self._first_row or row
        if self._window.is_complete:
            self._leave_window(np.asarray(tokens), None if loss_mask is None else np.asarray(loss_mask, np.bool_))

    def feed_all(self, tokens: Tokens, lengths: Sequence[int], loss_mask: Mask | None = None) -> None:
        """Take documents that lie side by side, as `Packer.feed_all`; one by one until the window is complete."""
        stop = 0
        for index, length in enumerate(lengths):
            if self._window is None and self._refusal is None:
                super().feed_all(tokens[stop:], lengths[index:], None if loss_mask is None else loss_mask[stop:])
                return
            start, stop = stop, stop + length
            self.feed(tokens[start:stop], None if loss_mask is None else loss_mask[start:stop])

    def finish(self) -> None:
        """Say that no document follows; `pop` then gives what is left."""
        if self._window is not None:
            self._leave_window(np.empty(0, np.int32), None)
        super().finish()

    def pop(self) -> PackRows | None:
        """Return the next pack, or None, as `Packer.pop`.

        Raises:
            DocumentTooLongError: overflow="error", and the document `refused` of the rest is longer than a pack.
        """
        pack = super().pop()
        if pack is None:
            if self._refusal is not None:
                raise self._refusal
            return None
        stretches, after, after_row, _ = self._rest
        count = len(stretches)
        places = [
            stretches[number][:2] if number < count else (after + number - count, after_row if number == count else 0)
            for number in pack.documents
        ]
        offsets = [row for _, row in places]
        offsets[0] += sum(pack.offsets[:1])
        pack = pack._replace(documents=[document for document, _ in places], offsets=offsets)
        number, row = pack.next_document, pack.next_row
        if number < count:
            given, rest = self._half_out.given, stretches[number].begin + row
            return pack._replace(next_document=0, next_row=self._first_row, given=given, rest=rest, is_closed=False)
        row += after_row if number == count else 0
        return pack._replace(next_document=after + number - count, next_row=row, is_closed=pack.is_closed and not row)

    def _leave_window(self, last_ids: NDArray[np.integer], last_mask: Mask | None) -> None:
        """Feed what is left of the window, and of its last document what is not in the window."""
        window, self._window = self._window, None
        assert window is not None, "a window is left once"
        window_rest = window.rest(self._half_out.given)
        stretches, after, after_row, own = window_rest
        done = self._half_out.rest
        if done > (there := sum(each.span for each in stretches)):
            raise StateError(
                f"{done} tokens of the rest of a packing window are said to be out, and it has {there}; the data or "
                "the tokenizer have changed since."
            )
        left = [each.after(max(done - each.begin, 0)) for each in stretches if each.begin + each.span > done]
        left = [each for each in left if self._num_rows(each)]
        self._rest = _Rest(left, after, after_row, own)
        cut = {number for number, each in enumerate(left) if not each.is_whole} | ({len(left)} if after_row else set())
        self._counter = _RestCounter(self.seq_len, self._losses, len(left), after, own, cut)
        for stretch in left:
            if not self._feed_stretch(stretch):
                return
        if window.is_cut:
            try:
                super().feed(last_ids[after_row:], None if last_mask is None else last_mask[after_row:])
            except DocumentTooLongError as error:
                self.refused, self._refusal = after, error

    def _num_rows(self, stretch: _Stretch) -> int:
        return stretch.ids.size - (self._trims or not stretch.ends_document)

    def _feed_stretch(self, stretch: _Stretch) -> bool:
        """Feed a stretch as a document; whether it is not refused."""
        number, ids, rows = self._num_fed, stretch.ids, self._num_rows(stretch)
        if self._whole and rows > self.seq_len:
            try:
                ids, rows = self._losses_of_rest.shorten(ids, number, row=0, rows=rows)
            except DocumentTooLongError:
                message = (
                    f"a document has {rows} rows in what is left of a packing window, and from here on a pack has "
                    f'{self.seq_len}; raise seq_len, or choose overflow="split", "truncate" or "drop".'
                )
                self.refused, self._refusal = stretch.document, DocumentTooLongError(message)
                return False
        self._num_fed += 1
        if rows:
            mask = None if stretch.mask is None else stretch.mask[: ids.size]
            self._hold(ids, [ids.size], mask, number, last_is_label=rows < ids.size)
        return True


class _Window(BestFitPacker):
    """The documents of one window, fed one by one; it gives no packs."""

    is_complete = False
    _next_row = 0

    def _close(self, *, is_complete: bool, next_row: int = 0) -> None:
        self.is_complete, self._next_row = is_complete, next_row

    @property
    def is_cut(self) -> bool:
        """Whether the last document goes on after the window."""
        return self._next_row > 0

    def rest(self, given: int) -> _Rest:
        """What the first `given` packs do not hold.

        Where the last document is cut at the end of the window, its last rows are left to what comes after.
        """
        rows, count = self._row_counts, len(self._row_counts)
        if not count:
            raise changed_since(given, 0)
        placed = PackingWindow(
            self._ids, self._masks, self._lengths, rows, first_row=self._first_row, seq_len=self.seq_len
        )
        if given > len(placed.packs):
            raise changed_since(given, len(placed.packs))
        shortened = {loss.document for loss in self._losses.losses}
        stretches: list[_Stretch] = []
        after, after_row = (count - 1, self._next_row) if self._next_row else (count, 0)
        begin = 0
        for document, start, stop in _joined(placed.pieces_after(given)):
            first_row = self._first_row if document == 0 else 0
            row, end = start - first_row, stop - first_row
            is_last = end == rows[document]
            if is_last and document == after:
                after_row = start
                break
            ends = is_last and document not in shortened
            ids, mask = self._ids[document], self._masks[document]
            token = ids.size if ends else end + 1
            found = _Stretch(
                document,
                start,
                ids[row:token],
                None if mask is None else mask[row:token],
                begin,
                ends,
                start == 0 and is_last,
            )
            stretches.append(found)
            begin += found.span
        whole = {each.document for each in stretches if each.is_whole}
        passed = range(self._first_row > 0, after)
        num_cut = sum(rows[document] > self.seq_len and document not in whole for document in passed)
        num_cut += after_row > 0 and not (after == 0 and self._first_row)
        own = Counts(documents=after, split_documents=int(num_cut)).plus(self._losses.before(after))
        return _Rest(stretches, after, after_row, own)


def _joined(pieces: Sequence[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """(document, row, row after it) of pieces, those that follow each other as one."""
    pieces = sorted(pieces)
    firsts = [index + 1 for index, (a, b) in enumerate(pairwise(pieces)) if a[0] != b[0] or a[2] != b[1]]
    stops = [*firsts, len(pieces)]
    return [(*pieces[first][:2], pieces[stop - 1][2]) for first, stop in zip([0, *firsts], stops, strict=True) if stop]


class _RestCounter(PackCounter):
    """Counts the window's documents once, with the pack after which nothing of the rest is left."""

    def __init__(
        self, seq_len: int, losses: OverflowLosses, num_stretches: int, after: int, own: Counts, cut: set[int]
    ) -> None:
        """`own`: of the `after` documents before the end of the rest; `cut`: what was cut before, by its number."""
        super().__init__(seq_len, losses)
        self._num_stretches = num_stretches
        self._after = after
        self._own: Counts | None = own
        self._cut = cut

    def count(self, next_document: int, rows: int, num_targets: int, *, is_split: bool) -> Counts:
        """As `PackCounter.count`; stretches of documents count as none."""
        passed = self._num_passed
        is_split = is_split and next_document not in self._cut
        counts = super().count(next_document, rows, num_targets, is_split=is_split)
        counts = counts.plus(self._correction(passed, next_document))
        if not num_targets:
            self.since = counts
        return counts

    def end(self, num_documents: int, tail_rows: int) -> None:
        """As `PackCounter.end`."""
        passed = self._num_passed
        super().end(num_documents, tail_rows)
        self.since = self.since.plus(self._correction(passed, num_documents))

    def _correction(self, passed: int, next_document: int) -> Counts:
        stretches = min(next_document, self._num_stretches) - min(passed, self._num_stretches)
        counts = Counts(documents=-stretches)
        if next_document >= self._num_stretches and self._own is not None:
            counts, self._own = counts.plus(self._own), None
        return counts
