"""The records of one piece, before a transform, a chat template or a tokenizer sees them; some at a time.

In:    samples of the piece.
Out:   `RecordBatch`es and read errors, in the order of the samples; a batch ends with the record that meets the demand.
Never: a number of bytes that depends on how far records are read together, or on what a run has skipped before.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple, cast

from streampack.documents.lines import Line
from streampack.documents.reader import Record
from streampack.lanes.pieces import Demand, PieceReader, SampleBatch, size_of
from streampack.lanes.pipeline import Pipeline
from streampack.lanes.position import WHOLE_MEMBER, SkippedRange
from streampack.lanes.skipping import ReadError
from streampack.metrics import heartbeat
from streampack.records import BadRecord, Cursor, Sample

_MEMBERS_BYTES = 256 * 2**10
"""Members of JSON lines that are read together at most: their records are taken one by one, so more gains nothing."""


class ListedShard(NamedTuple):
    """The shard of a record."""

    number: int
    """As listed."""
    url: str
    name: str


class RecordBatch(NamedTuple):
    """Records that follow each other in the order in which a lane takes them."""

    where: Cursor
    """Epoch and piece of all of them; or where their window begins."""
    places: Sequence[int] | None
    """The place of each in the window; None: they are in no window, and each is where it stands in its shard."""
    shards: Sequence[ListedShard]
    """Of each."""
    records: list[Record]
    """The user may empty it, to free what it holds."""
    num_bytes: int


class PieceRecords:
    """Makes records of a piece's samples."""

    def __init__(
        self,
        pipeline: Pipeline,
        samples: PieceReader,
        *,
        lane: int,
        shard: ListedShard,
        here: Cursor,
        last_piece: int,
        start: Cursor,
        skipped_ranges: Collection[SkippedRange],
        demand: Demand,
        sample_demand: Demand,
    ) -> None:
        """Begin to read.

        Args:
            pipeline: how samples are read.
            samples: the reader of the piece; it gives as many as `sample_demand` says.
            lane: the lane's number.
            shard: the shard of the piece.
            here: epoch and index of the piece.
            last_piece: of a `SkippedRange` in the piece.
            start: where the reading began, if that is in this piece; records before it are left out.
            skipped_ranges: of the piece's epoch and shard, known before.
            demand: about how many bytes a batch has, its last record counted as a whole.
            sample_demand: of `samples`.
        """
        self._documents = pipeline.documents
        self._excluded = pipeline.excluded
        self._samples = samples
        self._lane = lane
        self._shard = shard
        self._here = here
        self._last_piece = last_piece
        self._start = start
        self._skipped_ranges = skipped_ranges
        self._demand = demand
        self._sample_demand = sample_demand

    def read(self) -> Iterator[RecordBatch | ReadError]:
        """The records, up to the end of the piece or to where the shard breaks."""
        make = self._of_lines if self._documents.field.holds_many else self._of_samples
        samples = self._samples.read()
        while True:
            self._sample_demand.num_bytes = self._demand.num_bytes
            if self._documents.field.holds_many:
                self._sample_demand.num_bytes = min(self._demand.num_bytes, _MEMBERS_BYTES)
            item = next(samples, None)
            if item is None:
                return
            if isinstance(item, ReadError):
                yield item
            else:
                yield from make(item)

    def _of_samples(self, some: SampleBatch) -> Iterator[RecordBatch]:
        """Samples that are a record each."""
        samples, num_bytes = some
        heartbeat.begin_sample(self._lane, self._shard.number, samples[0].position)
        chosen = self._documents.chosen(samples, shard_name=self._shard.name)
        if chosen is not samples:
            num_bytes = sum(size_of(sample, self._demand.record_bytes) for sample in chosen)
        if chosen:
            yield self._batch(cast("list[Record]", chosen), num_bytes)

    def _of_lines(self, some: SampleBatch) -> Iterator[RecordBatch | ReadError]:
        """Samples with a member of JSON lines each; one that is bad as a whole is a read error."""
        found: list[Record] = []
        num_bytes, record_bytes = 0, self._demand.record_bytes
        for sample in some.samples:
            for record in self._lines(sample):
                if isinstance(record, Line):
                    found.append(record)
                    num_bytes += record_bytes + len(record.data)
                    if num_bytes < self._demand.num_bytes:
                        continue
                if found:
                    yield self._batch(found, num_bytes)
                    found, num_bytes = [], 0
                if isinstance(record, ReadError):
                    yield record
                elif isinstance(record, BadRecord) and not self._is_excluded(sample):
                    yield ReadError(self._whole(sample), record.error)
        if found:
            yield self._batch(found, num_bytes)

    def _lines(self, sample: Sample) -> Iterator[Record | BadRecord] | Iterator[ReadError]:
        heartbeat.begin_sample(self._lane, self._shard.number, sample.position)
        if self._skipped_ranges and self._whole(sample) in self._skipped_ranges:
            return iter((ReadError(self._whole(sample), None),))
        first = self._start.record if self._start.sample == sample.position else 0
        return self._documents.records(
            sample, url=self._shard.url, shard_name=self._shard.name, first_record=first
        )

    def _is_excluded(self, sample: Sample) -> bool:
        """Whether all records of a sample are left out."""
        excluded = self._excluded
        return excluded is not None and excluded.excuses(self._shard.name, sample.key, -1)

    def _whole(self, sample: Sample) -> SkippedRange:
        position = sample.position
        place = self._here.epoch, self._last_piece, self._shard.number
        return SkippedRange(*place, position, position + 1, WHOLE_MEMBER)

    def _batch(self, records: list[Record], num_bytes: int) -> RecordBatch:
        return RecordBatch(self._here, None, [self._shard] * len(records), records, num_bytes)
