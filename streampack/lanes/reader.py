"""The documents of one lane from a cursor on, over its pieces and epochs.

In:    the lane's pieces of each epoch.
Out:   what the lane meets, in order: the beginning of an epoch, batches of documents, read errors.
Never: a decision about what cannot be read. The caller decides whether a bad record or a broken shard ends the run,
       when the record's or the shard's turn comes; so it makes no difference how far ahead the lane reads.

    LaneReader       pieces of all epochs
      PieceReader      -> samples of one piece, read again where its shard breaks
      PieceDocuments   -> batches of their documents
"""

from collections.abc import Generator
from typing import NamedTuple, TypeAlias

from streampack.corpus.epochs import Corpus
from streampack.lanes.batches import DocumentBatch, PieceDocuments
from streampack.lanes.pieces import Demand, PieceReader
from streampack.lanes.pipeline import Pipeline
from streampack.lanes.position import REST_OF_PIECE, SkippedRange
from streampack.lanes.skipping import ReadError
from streampack.records import Cursor
from streampack.storage.digests import block_bytes_of
from streampack.tar.codecs import is_compressed


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
        self._lane = lane
        self._skipped: dict[tuple[int, int], set[SkippedRange]] = {}
        """The skipped ranges, by epoch and shard."""
        for skipped in skipped_ranges:
            self._skipped.setdefault((skipped.epoch, skipped.shard), set()).add(skipped)
        self._end_epoch = end_epoch
        self._max_range_bytes = max_range_bytes
        self.in_compressed = False
        """Whether the shard can only be read from its start."""
        self.block_bytes = 0
        """Bytes of a block of the shard's digest: so many are read and checked before one is used."""
        self.demand = Demand()
        """How many bytes of members or records make a batch."""
        self._events = self._read(cursor)

    def next(self) -> Event | None:
        """What comes next; None at the end of the last epoch."""
        return next(self._events, None)

    def close(self) -> None:
        """Close the shard."""
        self._events.close()

    def _read(self, cursor: Cursor) -> Generator[Event, None, None]:
        epoch, piece_index, resume = cursor.epoch, cursor.piece, cursor.sample
        while self._end_epoch is None or epoch < self._end_epoch:
            pieces = self._corpus.pieces(epoch, self._lane)
            yield EpochStart(epoch, len(pieces))
            for index in range(piece_index, len(pieces)):
                piece = pieces[index]
                shard = self._corpus.table[piece.shard]
                self.in_compressed = is_compressed(shard.url)
                self.block_bytes = block_bytes_of(shard.digest)
                skipped_ranges = self._skipped.get((epoch, piece.shard), set())
                samples = PieceReader(
                    self._pipeline,
                    shard,
                    piece,
                    epoch=epoch,
                    resume=resume,
                    broken=next((each for each in skipped_ranges if each.record == REST_OF_PIECE), None),
                    demand=self.demand,
                    max_range_bytes=self._max_range_bytes,
                )
                documents = PieceDocuments(
                    self._pipeline,
                    shard,
                    lane=self._lane,
                    here=Cursor(epoch, index),
                    shard_index=piece.shard,
                    order_epoch=self._corpus.order_epoch(epoch),
                    start=cursor,
                    skipped_ranges=skipped_ranges,
                    demand=self.demand,
                )
                for item in samples.read():
                    if isinstance(item, ReadError):
                        yield item
                    else:
                        yield from documents.of(item)
                resume = -1
            epoch, piece_index = epoch + 1, 0
