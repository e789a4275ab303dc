"""The documents of one lane from a cursor on, over its pieces and epochs.

In:    the lane's pieces of each epoch.
Out:   what the lane meets, in order: the beginning of an epoch, batches of documents, read errors.
Never: a decision about what cannot be read. The caller decides whether a bad record or a broken shard ends the run,
       when the record's or the shard's turn comes; so it makes no difference how far ahead the lane reads.

    LaneReader        pieces of all epochs
      PieceReader       -> samples of one piece, read again where its shard breaks
      PieceRecords      -> batches of their records
      windows           -> the same in the order of their window
      RecordDocuments   -> batches of their documents
"""

import functools
from collections.abc import Generator, Iterator, Sequence
from typing import NamedTuple, TypeAlias

from streampack.corpus.epochs import Corpus
from streampack.corpus.partition import Piece
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


Event: TypeAlias = DocumentBatch | ReadError | EpochStart


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
        start = self._start
        documents = RecordDocuments(
            self._pipeline, self._corpus, lane=self._lane, start=start, skipped=self._skipped, demand=self.demand
        )
        epoch, first = start.epoch, start.piece
        while self._end_epoch is None or epoch < self._end_epoch:
            pieces = self._corpus.pieces(epoch, self._lane)
            yield EpochStart(epoch, len(pieces))
            records = self._windows if self._corpus.window else self._in_order
            for item in records(epoch, pieces, first):
                if isinstance(item, ReadError):
                    yield item
                elif self._pipeline.documents.keeps_records:
                    yield from documents.of(item)
                else:
                    yield from clock.within(clock.TRANSFORM, documents.of(item))
            epoch, first = epoch + 1, 0

    def _in_order(self, epoch: int, pieces: Sequence[Piece], first: int) -> Iterator[RecordBatch | ReadError]:
        """The records of an epoch as they stand in the pieces, from a piece on."""
        return self._records(epoch, pieces, range(first, len(pieces)), self.demand)

    def _windows(self, epoch: int, pieces: Sequence[Piece], first: int) -> Iterator[RecordBatch | ReadError]:
        """The records of an epoch in the order of their windows, from a window on."""
        field = self._pipeline.documents.field
        max_bytes = self._corpus.window_bytes(members_expand=field.may_be_compressed)
        record_bytes = HELD_LINE_BYTES if field.holds_many else HELD_SAMPLE_BYTES
        resumed = self._start if self._start[:2] == (epoch, first) else None
        begin = Cursor(*self._start[:4]) if resumed else Cursor(epoch, first)
        group = self._group(pieces, first)
        fetched, ahead = self._fetch(pieces, group, resume=begin.sample), None
        try:
            while group:
                after, demand = self._group(pieces, group.stop), Demand(record_bytes=record_bytes)
                items = self._records(epoch, pieces, group, demand, fetched)
                for window in windows(
                    items, begin, lane=self._lane, resumed=resumed, demand=demand, max_bytes=max_bytes
                ):
                    if window.is_last and not fetched.is_local:
                        ahead = self._fetch(pieces, after)
                    yield from window.errors
                    place = resumed.place if resumed else 0
                    yield from window.batches(self._corpus, self._lane, self.demand, first_place=place)
                    resumed = None
                    del window  # its memory, before the next one is read
                fetched.close()
                fetched, ahead = ahead or self._fetch(pieces, after), None
                begin, group = Cursor(epoch, after.start), after
        finally:
            for each in (fetched, ahead):
                if each is not None:
                    each.close()

    def _group(self, pieces: Sequence[Piece], first: int) -> range:
        """The pieces from `first` on to the end of its group."""
        return range(first, min(self._corpus.last_together(first) + 1, len(pieces)))

    def _fetch(self, pieces: Sequence[Piece], group: range, *, resume: int = -1) -> Fetched:
        """Ask for the bytes of a group; `resume`: where the reading of its first piece begins."""
        resumes = [resume, *[-1] * len(group)]
        parts = [(self._shard(pieces[index].shard), pieces[index]) for index in group]
        return self._pipeline.fetch([(*part, at) for part, at in zip(parts, resumes, strict=False)])

    def _records(
        self, epoch: int, pieces: Sequence[Piece], indexes: range, demand: Demand, fetched: Fetched | None = None
    ) -> Iterator[RecordBatch | ReadError]:
        """The records of some of the lane's pieces."""
        for index in indexes:
            piece = pieces[index]
            shard = self._shard(piece.shard)
            self.in_compressed = is_compressed(shard.url)
            self.block_bytes = block_bytes_of(shard.digest)
            here, last_piece = Cursor(epoch, index), self._corpus.last_together(index)
            start = self._start if self._start[:2] == here[:2] else here
            skipped_ranges = self._skipped.get((epoch, piece.shard), ())
            sample_demand = Demand(record_bytes=demand.record_bytes)
            samples = PieceReader(
                self._pipeline,
                shard,
                piece,
                epoch=epoch,
                last_piece=last_piece,
                resume=start.sample,
                broken=rest_of(piece, skipped_ranges),
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
