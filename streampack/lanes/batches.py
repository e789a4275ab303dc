"""The documents in the samples of one piece, in batches: a step for many of them costs little more than for one.

In:    samples of the piece, and what the lane has skipped in it before.
Out:   `DocumentBatch`es and read errors, in the order of the samples.
Never: an order or a number of documents that depends on what is batched together.
"""

from collections.abc import Collection, Iterator
from typing import NamedTuple

from streampack import heartbeat
from streampack.lanes.pieces import SAMPLE_BYTES, Demand, SampleBatch
from streampack.lanes.pipeline import Pipeline
from streampack.lanes.position import WHOLE_MEMBER, SkippedRange
from streampack.lanes.skipping import ReadError
from streampack.records import BadRecord, Cursor, Document, Joined, Sample, Shard, join


class DocumentBatch(NamedTuple):
    """Documents of one piece that follow each other, as columns of n."""

    epoch: int
    piece: int
    """Index into the lane's pieces of the epoch."""
    shard: int
    """As listed."""
    url: str
    origins: list[tuple[int, int, int]]
    """(sample, record, part) of each, as in `Cursor`."""
    keys: list[str]
    contents: list[str] | Joined
    num_bytes: int
    """Bytes of the members, or of the records, that they were made of."""
    row: int = 0
    """Rows of the first document that earlier packs hold; 0 except in the batch with which the reading began."""

    def without_contents(self, start: int = 0, stop: int | None = None) -> "DocumentBatch":
        """The documents from `start` to before `stop` without their contents; their bytes are not counted again."""
        return self._replace(
            origins=self.origins[start:stop],
            keys=self.keys[start:stop],
            contents=[],
            num_bytes=0,
            row=0 if start else self.row,
        )

    def cursor(self, index: int, row: int) -> Cursor:
        """The cursor of row `row` of a document."""
        sample, record, part = self.origins[index]
        return Cursor(self.epoch, self.piece, sample, record, part=part, row=row)

    def skipped_range(self, index: int) -> SkippedRange:
        """What is left out if a document is skipped; other parts of its record are not."""
        sample, record, part = self.origins[index]
        return SkippedRange(self.epoch, self.shard, sample, sample + 1, record, part)


class PieceDocuments:
    """Makes documents of a piece's samples."""

    def __init__(
        self,
        pipeline: Pipeline,
        shard: Shard,
        *,
        lane: int,
        here: Cursor,
        shard_index: int,
        order_epoch: int,
        start: Cursor,
        skipped_ranges: Collection[SkippedRange],
        demand: Demand,
    ) -> None:
        """`here`: epoch and index of the piece; `start`: where the lane continued; `skipped_ranges`: of this piece."""
        self._pipeline = pipeline
        self._shard = shard
        self._lane = lane
        self._here = here
        self._shard_index = shard_index
        self._order_epoch = order_epoch
        self._start = start
        self._skipped_ranges = skipped_ranges
        self._demand = demand

    def of(self, samples: SampleBatch) -> Iterator[DocumentBatch | ReadError]:
        """The documents in the samples; the samples may be freed as soon as these are given."""
        first = self._here._replace(sample=samples.samples[0].position)
        begun = self._start if self._start[:3] == first[:3] else first  # with a record, part and row
        if not (begun.record or begun.part or self._skipped_ranges):
            batch = self._at_once(samples, begun)
            if batch is not None:
                yield batch
                return
        yield from self._one_by_one(samples.samples, begun)

    def _at_once(self, some: SampleBatch, begun: Cursor) -> DocumentBatch | None:
        """All documents, where each sample is one document that needs no further look; else None."""
        samples, num_bytes = some
        heartbeat.begin_sample(self._lane, self._shard_index, samples[0].position)
        contents = self._pipeline.documents.contents(samples)
        if contents is None:
            return None
        origins = [(sample.position, 0, 0) for sample in samples]
        keys = [sample.key for sample in samples]
        samples.clear()  # the reader of the piece holds them no longer than this
        epoch, piece = self._here[:2]
        return DocumentBatch(
            epoch, piece, self._shard_index, self._shard.url, origins, keys, contents, num_bytes, begun.row
        )

    def _one_by_one(self, samples: list[Sample], begun: Cursor) -> Iterator[DocumentBatch | ReadError]:
        epoch, piece = self._here[:2]
        found = _Collected(epoch, piece, self._shard_index, self._shard.url)
        try:
            for sample in samples:
                here = self._here._replace(sample=sample.position)
                for item in self._documents(sample, begun if begun.sample == here.sample else here):
                    if isinstance(item, ReadError) or not found.fits(item) or found.num_bytes >= self._demand.num_bytes:
                        yield from found.take()
                    if isinstance(item, ReadError):
                        yield item
                    else:
                        found.add(item, begun)
        except Exception:  # what was found before it comes first
            yield from found.take()
            raise
        yield from found.take()

    def _documents(self, sample: Sample, here: Cursor) -> Iterator[Document | ReadError]:
        """The documents of one sample, from a record and part of it on."""
        heartbeat.begin_sample(self._lane, self._shard_index, here.sample)
        skipped_ranges = self._skipped_ranges
        if skipped_ranges and (skipped := self._range(here, WHOLE_MEMBER)) in skipped_ranges:
            yield ReadError(skipped, None)
            return
        for item in self._pipeline.documents.read(
            sample,
            url=self._shard.url,
            shard_name=self._shard.name,
            shard_index=self._shard_index,
            epoch=self._order_epoch,
            first_record=here.record,
            first_part=here.part,
        ):
            record = item.record
            if isinstance(item, BadRecord):
                yield ReadError(self._range(here, record, item.part), item.error)
            elif skipped_ranges and (skipped := self._range(here, record)) in skipped_ranges:
                if item.part == 0:
                    yield ReadError(skipped, None)
            elif skipped_ranges and (skipped := self._range(here, record, item.part)) in skipped_ranges:
                yield ReadError(skipped, None)
            else:
                yield item

    def _range(self, here: Cursor, record: int, part: int = -1) -> SkippedRange:
        return SkippedRange(here.epoch, self._shard_index, here.sample, here.sample + 1, record, part)


class _Collected:
    """Documents that follow each other, until a batch is made of them."""

    def __init__(self, epoch: int, piece: int, shard: int, url: str) -> None:
        self.num_bytes = 0
        self._head = epoch, piece, shard, url
        self._found: list[Document] = []
        self._row = 0

    def fits(self, document: Document) -> bool:
        """Whether with it all collected documents are texts, or all are tokens."""
        return not self._found or (self._found[0].text is None) == (document.text is None)

    def add(self, document: Document, start: Cursor) -> None:
        """Take one more; `start`: where the reading began."""
        if (start.sample, start.record, start.part) == (document.sample, document.record, document.part):
            self._row = start.row
        self._found.append(document)
        size = 0 if document.tokens is None else document.tokens.nbytes
        self.num_bytes += size if document.text is None else len(document.text) + SAMPLE_BYTES

    def take(self) -> Iterator[DocumentBatch]:
        """All of them as a batch, if there are any."""
        if not self._found:
            return
        found, row, num_bytes = self._found, self._row, self.num_bytes
        self._found, self._row, self.num_bytes = [], 0, 0
        origins = [(document.sample, document.record, document.part) for document in found]
        texts = [document.text for document in found if document.text is not None]
        tokens = [document.tokens for document in found if document.tokens is not None]
        contents = texts or join(tokens, [document.loss_mask for document in found])
        yield DocumentBatch(*self._head, origins, [document.key for document in found], contents, num_bytes, row)
