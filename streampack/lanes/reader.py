"""The documents of one lane from a cursor on, over its pieces and epochs.

In:    the lane's sections of each epoch.
Out:   what the lane meets, in order: the beginning of an epoch or a leftover, batches of documents, read errors.
Never: a decision about what cannot be read. The caller decides whether a bad record or a broken shard ends the run,
       when the record's or the shard's turn comes; so it makes no difference how far ahead the lane reads.

    LaneReader        sections of all epochs, piece by piece
      PieceReader       -> samples of one piece, read again where its shard breaks
      PieceRecords      -> batches of their records
      windows           -> the same in the order of their window
      RecordDocuments   -> batches of their documents
"""

import functools
from collections.abc import Generator, Iterator
from typing import NamedTuple, TypeAlias

from streampack.corpus.epochs import Corpus
from streampack.corpus.sections import Section
from streampack.lanes.batches import DocumentBatch, RecordDocuments
from streampack.lanes.fetching import Fetched
from streampack.lanes.pieces import HELD_LINE_BYTES, HELD_SAMPLE_BYTES, Demand, PieceReader, by_shard, rest_of
from streampack.lanes.pipeline import Pipeline
from streampack.lanes.position import SkippedRange
from streampack.lanes.records import ListedShard, PieceRecords, RecordBatch
from streampack.lanes.skipping import ReadError
from streampack.lanes.windows import windows
from streampack.metrics import clock
from streampack.records import Cursor
from streampack.storage.digests import block_bytes_of
from streampack.tar.codecs import is_compressed

_KEPT_SHARDS = 16


class EpochStart(NamedTuple):
    """An epoch begins."""

    epoch: int
    num_pieces: int


class SectionStart(NamedTuple):
    """Another of the leftovers that the lane reads begins."""

    cursor: Cursor


Event: TypeAlias = DocumentBatch | ReadError | EpochStart | SectionStart


class LaneReader:
    """What a lane meets from `cursor` on; `skipped_ranges` are those known before."""

    def __init__(
        self,
        pipeline: Pipeline,
        corpus: Corpus,
        lane: int,
        cursor: Cursor,
        skipped_ranges: frozenset[SkippedRange],
        *,
        end_epoch: int | None,
        max_range_bytes: int,
    ) -> None:
        """`end_epoch`: the first epoch that is not read (None: endless)."""
        self._pipeline = pipeline
        self._corpus = corpus
        self._shard = functools.lru_cache(_KEPT_SHARDS)(corpus.table.__getitem__)
        self._lane = lane
        self._skipped = by_shard(skipped_ranges)
        self._end_epoch = end_epoch
        self._max_range_bytes = max_range_bytes
        self.in_compressed = False
        """Whether the shard can only be read from its start."""
        self.block_bytes = 0
        """Bytes of a block of the shard's digest: so many are read and checked before one is used."""
        self.demand = Demand()
        """How many bytes of members or records make a batch."""
        self._start = cursor
        self._events = self._read()

    def next(self) -> Event | None:
        """What comes next; None at the end of the last epoch."""
        return next(self._events, None)

    def close(self) -> None:
        """Close the shard."""
        self._events.close()

    def _read(self) -> Generator[Event, None, None]:
        epoch, at = self._start.epoch, self._start
        while self._end_epoch is None or epoch < self._end_epoch:
            sections = self._corpus.sections(epoch, self._lane)
            is_left = self._corpus.is_left(epoch)
            if not is_left:
                yield EpochStart(epoch, sum(len(section.pieces) for section in sections))
            for section in sections:
                if at[:2] >= (epoch, section.end):
                    continue
                start = at if at[:2] >= (epoch, section.base) else section.begin
                if is_left and start is not at:
                    yield SectionStart(start)
                yield from self._read_section(section, start)
            epoch += 1

    def _read_section(self, section: Section, start: Cursor) -> Iterator[DocumentBatch | ReadError]:
        """What a section has from `start` on."""
        documents = RecordDocuments(
            self._pipeline,
            self._corpus,
            section,
            lane=self._lane,
            start=start,
            skipped=self._skipped,
            demand=self.demand,
        )
        records = self._windows if section.window else self._in_order
        for item in records(section, start):
            if isinstance(item, ReadError):
                yield item
            elif self._pipeline.documents.keeps_records:
                yield from documents.of(item)
            else:
                yield from clock.within(clock.TRANSFORM, documents.of(item))

    def _in_order(self, section: Section, start: Cursor) -> Iterator[RecordBatch | ReadError]:
        """The records of a section as they stand in the pieces."""
        return self._records(section, start, range(start.piece, section.end), self.demand)

    def _windows(self, section: Section, start: Cursor) -> Iterator[RecordBatch | ReadError]:
        """The records of a section in the order of their windows."""
        field = self._pipeline.documents.field
        max_bytes = self._corpus.of_lanes(section.num_lanes).window_bytes(members_expand=field.may_be_compressed)
        record_bytes = HELD_LINE_BYTES if field.holds_many else HELD_SAMPLE_BYTES
        resumed = start if start is self._start or start[2:] != Cursor()[2:] else None
        begin = Cursor(*start[:4])
        group = self._group(section, start.piece)
        fetched, ahead = self._fetch(section, group, resume=begin.sample), None
        try:
            while group:
                after, demand = self._group(section, group.stop), Demand(record_bytes=record_bytes)
                items = self._records(section, start, group, demand, fetched)
                for window in windows(
                    items, begin, lane=self._lane, resumed=resumed, demand=demand, max_bytes=max_bytes
                ):
                    if window.is_last and not fetched.is_local:
                        ahead = self._fetch(section, after)
                    yield from window.errors
                    place = resumed.place if resumed else 0
                    yield from window.batches(self._corpus, section, self._lane, self.demand, first_place=place)
                    resumed = None
                    del window  # its memory, before the next one is read
                fetched.close()
                fetched, ahead = ahead or self._fetch(section, after), None
                begin, group = Cursor(start.epoch, after.start), after
        finally:
            for each in (fetched, ahead):
                if each is not None:
                    each.close()

    def _group(self, section: Section, first: int) -> range:
        """The pieces from `first` on to the end of its group."""
        return range(first, section.last_together(first) + 1 if first < section.end else first)

    def _fetch(self, section: Section, group: range, *, resume: int = -1) -> Fetched:
        """Ask for the bytes of a group; `resume`: where the reading of its first piece begins."""
        resumes = [resume, *[-1] * len(group)]
        pieces = [section.pieces[index - section.base] for index in group]
        parts = [(self._shard(piece.shard), piece) for piece in pieces]
        return self._pipeline.fetch([(*part, at) for part, at in zip(parts, resumes, strict=False)])

    def _records(
        self, section: Section, begin: Cursor, indexes: range, demand: Demand, fetched: Fetched | None = None
    ) -> Iterator[RecordBatch | ReadError]:
        """The records of some of the lane's pieces; `begin`: where the reading of the section begins."""
        epoch = begin.epoch
        for index in indexes:
            piece = section.pieces[index - section.base]
            shard = self._shard(piece.shard)
            self.in_compressed = is_compressed(shard.url)
            self.block_bytes = block_bytes_of(shard.digest)
            here, last_piece = Cursor(epoch, index), section.last_together(index)
            start = begin if begin[:2] == here[:2] else here
            skipped_ranges = self._skipped.get((epoch, piece.shard), ())
            sample_demand = Demand(record_bytes=demand.record_bytes)
            samples = PieceReader(
                self._pipeline,
                shard,
                piece,
                epoch=epoch,
                last_piece=last_piece,
                resume=start.sample,
                broken=rest_of(piece, last_piece, skipped_ranges),
                demand=sample_demand,
                max_range_bytes=self._max_range_bytes,
                fetched=fetched,
            )
            yield from PieceRecords(
                self._pipeline,
                samples,
                lane=self._lane,
                shard=ListedShard(piece.shard, shard.url, shard.name),
                here=here,
                last_piece=last_piece,
                start=start,
                skipped_ranges=skipped_ranges,
                demand=demand,
                sample_demand=sample_demand,
            ).read()
