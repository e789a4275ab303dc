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

    window of 3 packs     (0 3) (2) (1 4)      one is out: 1, 2 and 4 are left
    cut again             1 2 4, then 5 6 ...  as documents that come in this order
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from streampack.errors import DocumentTooLongError, StateError
from streampack.packing.counting import OverflowLosses, PackCounter
from streampack.packing.half_out import HalfOut, Rest, Stretch, WindowHalfOut
from streampack.packing.options import Overflow, Packing
from streampack.packing.packer import Packer
from streampack.packing.packs import PackRows
from streampack.packing.policies import BoundaryPolicy, ReplaceBoundary
from streampack.records import Counts, Mask, Tokens


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
        super().__init__(
            seq_len=seq_len,
            boundary=boundary,
            packing=packing,
            pad_id=pad_id,
            bos_id=bos_id,
            eos_id=eos_id,
            at_once=at_once,
        )
        self._half_out = half_out
        self.given = half_out.given
        """Packs of the window that are out, until its last document has come."""
        self._window: WindowHalfOut | None = WindowHalfOut(
            seq_len=half_out.seq_len, boundary=half_out.boundary, packing=half_out.packing, bos_id=bos_id, eos_id=eos_id
        )
        """None: its last document has come."""
        overflow = Overflow.DROP if drops and packing.overflow is Overflow.ERROR else packing.overflow
        self._losses_of_rest = OverflowLosses(overflow, seq_len)
        self._losses_of_rest.losses = self._losses.losses
        self._rest = Rest([], 0, 0, Counts())
        self._first_row = 0
        self.refused = 0
        """The document of which `pop` says that it is too long."""
        self._refusal: DocumentTooLongError | None = None
        self.left_out: set[int] = set()
        """Documents of the window that are left out of what is left of it."""

    @property
    def in_window(self) -> bool:
        """Whether the next document that is fed belongs to the window."""
        return self._window is not None

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

    def end_window(self) -> None:
        """Say that the window ended here, where no document followed then; what is fed from here on comes after it."""
        self._leave_window(np.empty(0, np.int32), None)

    def finish(self, *, pads: bool = False) -> None:
        """Say that no document follows; `pop` then gives what is left. `pads`: as of `Packer`."""
        if self._window is not None:
            self.end_window()
        super().finish(pads=pads)

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
        window, self._window, self.given = self._window, None, 0
        assert window is not None, "a window is left once"
        stretches, after, after_row, own = window.rest(self._half_out.given)
        done = self._half_out.rest
        if done > (there := sum(each.span for each in stretches)):
            raise StateError(
                f"{done} tokens of the rest of a packing window are said to be out, and it has {there}; the data or "
                "the tokenizer have changed since."
            )
        left = [
            each.after(done - each.begin) if each.begin < done else each
            for each in stretches
            if each.begin + each.span > done
        ]
        left = [each for each in left if self._num_rows(each) and each.document not in self.left_out]
        own = own._replace(documents=own.documents - sum(number < after for number in self.left_out))
        self._rest = Rest(left, after, after_row, own)
        cut = {number for number, each in enumerate(left) if not each.is_whole} | ({len(left)} if after_row else set())
        self._counter = _RestCounter(self.seq_len, self._losses, len(left), after, own, cut)
        for stretch in left:
            if not self._feed_stretch(stretch):
                return
        if after in self.left_out:
            super().feed(last_ids[:0])
        elif window.is_cut:
            try:
                super().feed(last_ids[after_row:], None if last_mask is None else last_mask[after_row:])
            except DocumentTooLongError as error:
                self.refused, self._refusal = after, error

    def _num_rows(self, stretch: Stretch) -> int:
        return stretch.ids.size - (self._trims or not stretch.ends_document)

    def _feed_stretch(self, stretch: Stretch) -> bool:
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
