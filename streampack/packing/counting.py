"""The counts of each pack: documents, tokens and targets, and everything that was left out.

In:  packs in order, and the documents that `overflow` shortened.
Out: `Counts` of each pack. They depend on where in the stream the pack is, not on how far the packer has been fed.
Invariant: a row that was fed is in a pack, or is counted as left out.
"""

from collections import deque
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streampack.errors import DocumentTooLongError
from streampack.packing.options import Overflow
from streampack.records import Counts

_NOTHING = Counts()


class _Loss(NamedTuple):
    """Rows that overflow took from a document."""

    document: int
    rows: int
    is_dropped: bool


class OverflowLosses:
    """Shortens documents that are longer than a pack, and holds what it took until packing has passed them."""

    def __init__(self, overflow: Overflow | str | None, seq_len: int) -> None:
        self._overflow = overflow
        self._seq_len = seq_len
        self.losses: deque[_Loss] = deque()
        """The losses of documents that packs have not passed yet, in order."""

    def shorten(
        self, ids: NDArray[np.integer], document: int, *, row: int, rows: int
    ) -> tuple[NDArray[np.integer], int]:
        """Return the tokens and the number of rows that are left of a document.

        Args:
            ids: Its tokens, [n].
            document: Its number.
            row: Rows of it that earlier packs hold.
            rows: All its rows, of which more than seq_len come after `row`.

        Raises:
            DocumentTooLongError: overflow="error".
        """
        if self._overflow is Overflow.ERROR:
            raise DocumentTooLongError(
                f"document {document} has {rows} rows ({ids.size} tokens), a pack has {self._seq_len}; raise "
                'seq_len, or choose overflow="split", "truncate" or "drop".'
            )
        if self._overflow is Overflow.SPLIT:
            return ids, rows
        kept = row + self._seq_len if self._overflow is Overflow.TRUNCATE else row
        self.losses.append(_Loss(document, rows - kept, kept == row))
        # One token more than rows: the last row's label. A copy, so that the rest can be freed.
        return ids[: kept + 1].copy(), kept

    def before(self, document: int) -> Counts:
        """What was taken from the documents before number `document`; each is given once."""
        counts = _NOTHING
        while self.losses and self.losses[0].document < document:
            loss = self.losses.popleft()
            if loss.is_dropped:
                counts = counts.plus(Counts(dropped_documents=1, dropped_tokens=loss.rows))
            else:
                counts = counts.plus(Counts(truncated_documents=1, truncated_tokens=loss.rows))
        return counts


class PackCounter:
    """Counts packs as they are made, and keeps the sum over those that were given."""

    def __init__(self, seq_len: int, losses: OverflowLosses) -> None:
        self.given = _NOTHING
        """The counts of the packs that were given, added up."""
        self.since = _NOTHING
        """What came after the last pack that was made, and before the next one begins."""
        self._seq_len = seq_len
        self._losses = losses
        self._num_passed = 0  # documents before the place where the next pack begins

    def count(self, next_document: int, rows: int, num_targets: int, *, is_split: bool) -> Counts:
        """Return the counts of a pack of `rows` rows, with those of what was left out between the pack before and it.

        A pack without a target is never given: its counts are added to those of the next one.

        Args:
            next_document: Number of the document with which the next pack begins.
            rows: Its rows that are not padding.
            num_targets: Rows that have a label.
            is_split: Whether the pack cuts a document, and no earlier pack did so.
        """
        passed, self._num_passed = next_document - self._num_passed, next_document
        if num_targets:
            counts = Counts(passed, rows, num_targets, self._seq_len - rows, split_documents=int(is_split))
        else:  # its loss would be 0/0
            counts = Counts(passed, split_documents=int(is_split), targetless_packs=1, targetless_tokens=rows)
        if self._losses.losses:
            counts = counts.plus(self._losses.before(next_document))
        if self.since is not _NOTHING:
            counts = self.since.plus(counts)
        self.since = _NOTHING if num_targets else counts
        return counts

    def end(self, num_documents: int, tail_rows: int) -> None:
        """No pack follows: `tail_rows` were left out, and all documents are passed."""
        passed = Counts(documents=num_documents - self._num_passed, tail_tokens=tail_rows)
        self._num_passed = num_documents
        self.since = self.since.plus(passed).plus(self._losses.before(num_documents))
