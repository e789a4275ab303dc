"""The documents that records become, in batches: a step for many of them costs little more than for one.

In:    batches of records, and what the lane has skipped before.
Out:   `DocumentBatch`es and read errors, in the order of the records.
Never: an order or a number of documents that depends on what is batched together.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from streampack.corpus.epochs import Corpus
from streampack.corpus.sections import Section
from streampack.documents.excluded import Excluded
from streampack.documents.lines import Line
from streampack.documents.reader import Record
from streampack.lanes.pieces import SAMPLE_BYTES, Demand
from streampack.lanes.pipeline import Pipeline
from streampack.lanes.position import SkippedRange
from streampack.lanes.records import ListedShard, RecordBatch
from streampack.lanes.skipping import ReadError
from streampack.metrics import heartbeat
from streampack.records import BadRecord, Cursor, Document, Joined, join


class DocumentBatch(NamedTuple):
    """Documents of one piece, or of one window, that follow each other, as columns of n."""

    where: Cursor
    """Epoch and piece; or where their window begins."""
    places: Sequence[int] | None
    """Of the record of each in the window; None: there is no window."""
    shards: Sequence[ListedShard]
    origins: list[tuple[int, int, int]]
    """(sample, record, part) of each, as in `Cursor`."""
    keys: list[str]
    contents: list[str] | Joined
    num_bytes: int
    """Bytes of the members, or of the records, that they were made of."""
    section: Section
    """The section of the lane that they are in."""
    row: int = 0
    """Rows of the first document that earlier packs hold; 0 except in the batch with which a section began."""

    def without_contents(self, start: int = 0, stop: int | None = None) -> "DocumentBatch":
        """The documents from `start` to before `stop` without their contents; their bytes are not counted again."""
        return self._replace(
            places=None if self.places is None else self.places[start:stop],
            shards=self.shards[start:stop],
            origins=self.origins[start:stop],
            keys=self.keys[start:stop],
            contents=[],
            num_bytes=0,
            row=0 if start else self.row,
        )

    def cursor(self, index: int, row: int) -> Cursor:
        """The cursor of row `row` of a document."""
        sample, record, part = self.origins[index]
        if self.places is None:
            return self.where._replace(sample=sample, record=record, part=part, row=row)
        return self.where._replace(place=self.places[index], part=part, row=row)

    def skipped_range(self, index: int) -> SkippedRange:
        """What is left out if a document is skipped; other parts of its record are not."""
        return _range(self.section, self.where, self.shards[index], *self.origins[index])


class RecordDocuments:
    """Makes documents of the records of a section of a lane."""

    def __init__(
        self,
        pipeline: Pipeline,
        corpus: Corpus,
        section: Section,
        *,
        lane: int,
        start: Cursor,
        skipped: Mapping[tuple[int, int], Collection[SkippedRange]],
        demand: Demand,
    ) -> None:
        """`start`: where the lane begins in the section; `skipped`: the ranges known then, by epoch and shard."""
        self._documents = pipeline.documents
        self._excluded = pipeline.excluded
        self._section = section
        self._order_epoch = corpus.order_epoch(section.epoch)
        self._lane = lane
        self._start: Cursor | None = start
        self._skipped = skipped
        self._demand = demand

    def of(self, batch: RecordBatch) -> Iterator[DocumentBatch | ReadError]:
        """The documents of the records, which may be freed as soon as these are given."""
        where, _, shards, records, _ = batch
        heartbeat.begin_sample(self._lane, shards[0].number, records[0].position)
        part, row = self._begun(batch)
        if self._excluded is not None:
            batch, lost_first = _without(self._excluded, batch)
            where, _, shards, records, _ = batch
            if not records:
                return
            if lost_first:  # with the rest of it that earlier packs do not hold
                part, row = 0, 0
        if not part and not self._have_skips(where.epoch, shards):
            contents = self._documents.contents(records)
            if contents is not None:
                yield self._at_once(batch, contents, row)
                return
        yield from self._one_by_one(batch, part, row)

    def _begun(self, batch: RecordBatch) -> tuple[int, int]:
        """With which part, and which row of it, the first record begins: the reading may have begun inside it."""
        start, self._start = self._start, None  # only the first record of all can be the one
        if start is None:
            return 0, 0
        first, where = batch.records[0], batch.where
        if batch.places is None:
            here = where._replace(sample=first.position, record=first.record if isinstance(first, Line) else 0)
        else:
            here = where._replace(place=batch.places[0])
        return (start.part, start.row) if here[:5] == start[:5] else (0, 0)

    def _have_skips(self, epoch: int, shards: Sequence[ListedShard]) -> bool:
        """Whether something of one of the shards was skipped before."""
        if not self._skipped:
            return False
        return any((epoch, number) in self._skipped for number in {each.number for each in shards})

    def _at_once(self, batch: RecordBatch, contents: list[str] | Joined, row: int) -> DocumentBatch:
        """The documents of records that are one each."""
        where, places, shards, records, num_bytes = batch
        if self._documents.field.holds_many:
            origins = [(each.position, each.record, 0) for each in records if isinstance(each, Line)]
        else:
            origins = [(each.position, 0, 0) for each in records]
        keys = [each.key for each in records]
        records.clear()  # the reader of the piece holds them no longer than this
        return DocumentBatch(where, places, shards, origins, keys, contents, num_bytes, self._section, row)

    def _one_by_one(self, batch: RecordBatch, first_part: int, row: int) -> Iterator[DocumentBatch | ReadError]:
        found = _Collected(batch, self._section)
        try:
            for index, record in enumerate(batch.records):
                for item in self._parts(record, batch.shards[index], batch.where, first_part):
                    if isinstance(item, ReadError) or not found.fits(item) or found.num_bytes >= self._demand.num_bytes:
                        yield from found.take()
                    if isinstance(item, ReadError):
                        yield item
                    else:
                        found.add(item, index, row if index == 0 and item.part == first_part else 0)
                first_part = 0
        except Exception:  # what was found before it comes first
            yield from found.take()
            raise
        yield from found.take()

    def _parts(
        self, record: Record, shard: ListedShard, where: Cursor, first_part: int
    ) -> Iterator[Document | ReadError]:
        """The documents of one record, from a part of it on."""
        position = record.position
        heartbeat.begin_sample(self._lane, shard.number, position)
        known = self._skipped.get((where.epoch, shard.number), ()) if self._skipped else ()
        for item in self._documents.parts(
            self._documents.document(record, url=shard.url),
            shard_index=shard.number,
            epoch=self._order_epoch,
            first_part=first_part,
        ):
            if isinstance(item, BadRecord):
                if self._excluded is not None and self._excluded.excuses(shard.name, record.key, item.record):
                    continue
                yield ReadError(_range(self._section, where, shard, position, item.record, item.part), item.error)
            elif known and (skipped := _range(self._section, where, shard, position, item.record)) in known:
                if item.part == 0:
                    yield ReadError(skipped, None)
            elif known and (skipped := _range(self._section, where, shard, position, item.record, item.part)) in known:
                yield ReadError(skipped, None)
            else:
                yield item


def _without(excluded: Excluded, batch: RecordBatch) -> tuple[RecordBatch, bool]:
    """The batch without what is left out, and whether that is its first record."""
    _, places, shards, records, _ = batch
    if excluded.by_shard.keys().isdisjoint({shard.name for shard in shards}):
        return batch, False
    kept = [
        index
        for index, (shard, record) in enumerate(zip(shards, records, strict=True))
        if not excluded.has(shard.name, record.key, record.record if isinstance(record, Line) else 0)
    ]
    if len(kept) == len(records):
        return batch, False
    lost_first = kept[:1] != [0]
    records[:] = [records[index] for index in kept]
    shards = [shards[index] for index in kept]
    places = None if places is None else [places[index] for index in kept]
    return batch._replace(places=places, shards=shards), lost_first


def _range(
    section: Section, where: Cursor, shard: ListedShard, position: int, record: int, part: int = -1
) -> SkippedRange:
    """A record of the piece, or of the window, that `where` names."""
    last_piece = section.last_together(where.piece)
    return SkippedRange(where.epoch, last_piece, shard.number, position, position + 1, record, part)


class _Collected:
    """Documents of a batch of records that follow each other, until a batch is made of them."""

    def __init__(self, batch: RecordBatch, section: Section) -> None:
        self.num_bytes = 0
        self._batch = batch
        self._section = section
        self._found: list[Document] = []
        self._indexes: list[int] = []
        """Of their records in the batch."""
        self._row = 0

    def fits(self, document: Document) -> bool:
        """Whether with it all collected documents are texts, or all are tokens."""
        return not self._found or (self._found[0].text is None) == (document.text is None)

    def add(self, document: Document, index: int, row: int) -> None:
        """Take one more, with the index of its record, and the rows of it that earlier packs hold."""
        self._row = self._row or row
        self._found.append(document)
        self._indexes.append(index)
        size = 0 if document.tokens is None else document.tokens.nbytes
        self.num_bytes += size if document.text is None else len(document.text) + SAMPLE_BYTES

    def take(self) -> Iterator[DocumentBatch]:
        """All of them as a batch, if there are any."""
        if not self._found:
            return
        found, indexes, row, num_bytes = self._found, self._indexes, self._row, self.num_bytes
        self._found, self._indexes, self._row, self.num_bytes = [], [], 0, 0
        where, places, shards, _, _ = self._batch
        texts = [document.text for document in found if document.text is not None]
        tokens = [document.tokens for document in found if document.tokens is not None]
        yield DocumentBatch(
            where,
            None if places is None else [places[index] for index in indexes],
            [shards[index] for index in indexes],
            [(document.sample, document.record, document.part) for document in found],
            [document.key for document in found],
            texts or join(tokens, [document.loss_mask for document in found]),
            num_bytes,
            self._section,
            row,
        )
