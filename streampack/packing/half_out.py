"""A packing window of which some packs are out: what these packs do not hold.

In:  the documents of the window, from where it began; how it was cut, and how many of its packs are out.
Out: stretches of its documents, in their order, and the row with which what comes after the window begins.
Invariant: the window is placed as it was, so a row is in one of its packs that are out, or in one stretch.

    documents of the window      0: 5 rows   1: 3   2: 6   3: 2       packs (2, 3) and (0, 1), of which one is out
    stretches                    0, 1                                 and document 4 comes after them
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streampack.packing.best_fit import BestFitPacker
from streampack.packing.options import Packing
from streampack.packing.policies import BoundaryPolicy, ReplaceBoundary
from streampack.packing.window import PackingWindow, changed_since
from streampack.records import Counts, Mask


class HalfOut(NamedTuple):
    """A window of which some packs are out: how it was cut, and how much of it is out."""

    seq_len: int
    boundary: BoundaryPolicy | ReplaceBoundary
    packing: Packing
    given: int
    """Its packs that are out, in their order."""
    rest: int
    """Tokens of the rest that packs of later cuttings hold."""


class Stretch(NamedTuple):
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

    def after(self, count: int) -> "Stretch":
        """Without its first tokens."""
        return self._replace(
            row=self.row + count,
            ids=self.ids[count:],
            mask=None if self.mask is None else self.mask[count:],
            begin=self.begin + count,
            is_whole=False,
        )


class Rest(NamedTuple):
    """What is left of a window, and what comes after it."""

    stretches: list[Stretch]
    next_document: int
    """With `next_row`: the first row after the rest."""
    next_row: int
    own: Counts
    """Of the window's documents before it."""


class WindowHalfOut(BestFitPacker):
    """The documents of one window, fed one by one; it gives no packs."""

    is_complete = False
    _next_row = 0

    def _close(self, *, is_complete: bool, next_row: int = 0) -> None:
        self.is_complete, self._next_row = is_complete, next_row

    @property
    def is_cut(self) -> bool:
        """Whether the last document goes on after the window."""
        return self._next_row > 0

    def rest(self, given: int) -> Rest:
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
        stretches: list[Stretch] = []
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
            found = Stretch(
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
        return Rest(stretches, after, after_row, own)


def _joined(pieces: Sequence[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """(document, row, row after it) of pieces, those that follow each other as one."""
    pieces = sorted(pieces)
    firsts = [index + 1 for index, (a, b) in enumerate(pairwise(pieces)) if a[0] != b[0] or a[2] != b[1]]
    stops = [*firsts, len(pieces)]
    return [(*pieces[first][:2], pieces[stop - 1][2]) for first, stop in zip([0, *firsts], stops, strict=True) if stop]
