"""The documents in a packer that its packs have not passed yet: where they are, and what was skipped between them.

In:    documents in the order in which the packer gets them, bad records in their place; how far packs have got.
Out:   cursors and provenance of documents by their number in the packer; how many bad records were passed.
"""

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from streampack.lanes.batches import DocumentBatch
from streampack.lanes.provenance import Provenance
from streampack.packing.packs import PackRows
from streampack.records import Cursor


class _Fed(NamedTuple):
    """Documents in the packer, of which at least the last one is not passed."""

    documents: DocumentBatch
    first: int
    """The number of the first one in the packer."""
    stop: int
    targets: list[int]
    """`Provenance.targets` of each document; empty where provenance is not asked for."""


class Unpassed:
    """Documents by their number in the packer, from the first one that is not passed on."""

    def __init__(self, source: str) -> None:
        """`source`: the name of the documents' source."""
        self._source = source
        self.num_fed = 0
        """How many documents the packer has got."""
        self._fed: deque[_Fed] = deque()
        self._bad: deque[tuple[int, int]] = deque()
        """(document, how many bad records stood before it), for documents that are not passed."""
        self._num_bad = 0
        """Bad records after the last document."""

    def __bool__(self) -> bool:
        return bool(self._fed)

    def feed(self, documents: DocumentBatch, targets: list[int]) -> None:
        """The packer has got these documents."""
        if self._num_bad:
            self._bad.append((self.num_fed, self._num_bad))
            self._num_bad = 0
        first, self.num_fed = self.num_fed, self.num_fed + len(documents.keys)
        self._fed.append(_Fed(documents, first, self.num_fed, targets))

    def add_bad_record(self) -> None:
        """A record was skipped after the documents that the packer has got."""
        self._num_bad += 1

    def cursor(self, document: int, row: int) -> Cursor:
        """The cursor of row `row` of a document that is not passed."""
        for documents, first, stop, _ in self._fed:
            if document < stop:
                return documents.cursor(document - first, row)
        raise AssertionError(f"document {document} has not been fed")

    def sample(self, document: int) -> tuple[int, int, int]:
        """(epoch, piece, sample) of a document that is not passed; it takes little time for one of the last ones."""
        documents, first, *_ = next(fed for fed in reversed(self._fed) if fed.first <= document)
        return *documents.where[:2], documents.origins[document - first][0]

    def place(self, document: int) -> tuple[str, str]:
        """The URL of the shard and the key of a document that is not passed."""
        for documents, first, stop, *_ in self._fed:
            if document < stop:
                return documents.shards[document - first].url, documents.keys[document - first]
        raise AssertionError(f"document {document} has not been fed")

    def provenance(self, rows: PackRows) -> Iterator[Provenance]:
        """The provenance of each segment of a pack, before its documents are passed."""
        all_fed = iter(self._fed)
        documents, first, stop, targets = next(all_fed)
        for document, offset, length in rows.spans:
            while document >= stop:
                documents, first, stop, targets = next(all_fed)
            index = document - first
            yield Provenance(
                self._source,
                documents.shards[index].url,
                documents.keys[index],
                *documents.origins[index],
                offset,
                length,
                targets[index],
                documents.section.epoch,
                documents.shards[index].number,
            )

    def pass_to(self, document: int, *, is_over: bool) -> int:
        """Packs have passed all documents before this one; returns how many bad records they have passed with them.

        `is_over`: the packer gets no more, so that the last document takes along what was skipped after it.
        """
        while self._fed and self._fed[0].stop <= document:
            self._fed.popleft()
        bad_records = 0
        while self._bad and self._bad[0][0] <= document:
            bad_records += self._bad.popleft()[1]
        if is_over and not self._fed:
            bad_records += self._num_bad
            self._num_bad = 0
        return bad_records
