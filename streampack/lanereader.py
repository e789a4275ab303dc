"""The documents of one lane from a cursor on, over its pieces and epochs, each with its place.

In: the lane's pieces of each epoch. Out: what it meets, in order: a document, a flaw, the beginning of an epoch.
Never: a choice about a flaw. Whether a bad record or a broken shard ends the run is the caller's to say, at its place
in the order; so it makes no difference how far ahead of its use something is read.
"""

import logging
from collections.abc import Generator, Iterator
from typing import NamedTuple, TypeAlias

from streampack import progress
from streampack.corpus import Corpus
from streampack.decompression import is_compressed
from streampack.digests import block_bytes_of
from streampack.errors import CorruptShardError, StreampackError, TruncatedShardError, WrongCutError
from streampack.lanes import Piece
from streampack.recipe import Recipe
from streampack.records import BadRecord, Cursor, Document, Sample, Shard

_log = logging.getLogger(__name__)

WHOLE_MEMBER = -1
REST_OF_PIECE = -2
_READINGS = 3  # of a shard at a place where it breaks: what was altered on its way is right the next time


class Hole(NamedTuple):
    """What was passed over, a record or the rest of a broken shard: it stays out on every resume and every topology."""

    epoch: int
    shard: int
    first: int
    """The first position that is out: byte offset in a plain tar, ordinal in a compressed one."""
    end: int
    """The positions [first, end) are out."""
    record: int
    """-1: the member as a whole, and so all its records; -2: all samples of the piece from `first` on."""
    part: int = -1
    """Of what the transform made of the record; -1: the record as a whole."""


class Found(NamedTuple):
    """A document of the lane."""

    cursor: Cursor
    """Where it begins; `row` is not 0 only in the document of the cursor that the reading began with."""
    shard: int
    """As listed."""
    url: str
    key: str
    document: Document


class Flaw(NamedTuple):
    """What cannot be read."""

    hole: Hole
    """The hole that it is if it is passed over."""
    error: StreampackError | None
    """None: it is not looked at again, since it was a hole before."""


class EpochStart(NamedTuple):
    """An epoch begins."""

    epoch: int
    num_pieces: int


Event: TypeAlias = Found | Flaw | EpochStart


class LaneReader:
    """What a lane meets from `cursor` on; `holes` are those known before."""

    def __init__(
        self,
        recipe: Recipe,
        corpus: Corpus,
        lane: int,
        cursor: Cursor,
        holes: frozenset[Hole],
        *,
        end_epoch: int | None,
        max_range_bytes: int,
    ) -> None:
        """`end_epoch`: the first epoch that is not read (None: endless)."""
        self._recipe = recipe
        self._corpus = corpus
        self._lane = lane
        self._holes = holes
        self._end_epoch = end_epoch
        self._max_range_bytes = max_range_bytes
        self.in_compressed = False
        """Whether the shard can only be read from its start."""
        self.block_bytes = 0
        """Of the shard's digest: so much is read and checked before it is used."""
        self._events = self._read(cursor)

    def __iter__(self) -> Iterator[Event]:
        return self._events

    def close(self) -> None:
        """Let go of the shard."""
        self._events.close()

    def _read(self, cursor: Cursor) -> Generator[Event, None, None]:
        corpus = self._corpus
        epoch, piece_index, resume = cursor.epoch, cursor.piece, cursor.sample
        while self._end_epoch is None or epoch < self._end_epoch:
            pieces = corpus.pieces(epoch, self._lane)
            yield EpochStart(epoch, len(pieces))
            for index in range(piece_index, len(pieces)):
                piece = pieces[index]
                shard = corpus.table[piece.shard]
                self.in_compressed = is_compressed(shard.url)
                self.block_bytes = block_bytes_of(shard.digest)
                for item in self._samples(shard, piece, epoch=epoch, resume=resume):
                    if isinstance(item, Flaw):
                        yield item
                        continue
                    position, sample = item
                    progress.begin_sample(self._lane, piece.shard, position)
                    here = Cursor(epoch, index, position)
                    if position == cursor.sample and index == cursor.piece and epoch == cursor.epoch:
                        here = cursor
                    yield from self._documents(sample, shard, piece.shard, here)
                resume = -1
            epoch, piece_index = epoch + 1, 0

    def _samples(
        self, shard: Shard, piece: Piece, *, epoch: int, resume: int
    ) -> Iterator[tuple[int, Sample] | Flaw]:
        """The samples of a piece with their positions, up to its end or to where the shard breaks."""
        broken_before = next((hole for hole in self._holes if _is_rest_of(hole, epoch, piece.shard)), None)
        end = None if broken_before is None else broken_before.first
        begin = last = max(resume, 0 if piece.whole else piece.begin) - 1
        errors: list[StreampackError] = []  # what the readings met since the last sample
        while end is None or last + 1 < end:
            try:
                for item in self._recipe.samples(
                    shard, piece, resume=resume if last == begin else last, max_range_bytes=self._max_range_bytes
                ):
                    position = item[0]
                    if end is not None and position >= end:
                        break
                    if position > last:
                        last = position
                        errors.clear()
                        yield item
                else:
                    return
                break
            except (CorruptShardError, TruncatedShardError) as error:
                errors.append(error)
                if len(errors) < _READINGS:
                    _log.warning("reading again from where a shard broke: %s", error)
                    continue
                if isinstance(error, WrongCutError) or (last == begin and resume >= 0):
                    # Behind a resume earlier packs hold the beginning of what cannot be read now.
                    raise errors[0] from None
                hole = Hole(epoch, piece.shard, last + 1, last + 1, REST_OF_PIECE)
                if self._recipe.on_error == "skip":
                    behind = self._recipe.next_range(
                        shard, piece, damaged_at=error.offset or 0, max_range_bytes=self._max_range_bytes
                    )
                    hole = hole._replace(end=behind)
                yield Flaw(hole, errors[0])
                return
        if broken_before is not None:
            yield Flaw(broken_before, None)

    def _documents(
        self, sample: Sample, shard: Shard, shard_index: int, here: Cursor
    ) -> Iterator[Found | Flaw]:
        holes = self._holes
        if holes and (hole := _hole_at(here, shard_index, WHOLE_MEMBER)) in holes:
            yield Flaw(hole, None)
            return
        url, first_record, first_part = shard.url, here.record, here.part
        for item in self._recipe.documents.read(
            sample,
            url=url,
            shard_name=shard.name,
            shard_index=shard_index,
            epoch=self._corpus.order_epoch(here.epoch),
            position=here.sample,
            first_record=first_record,
            first_part=first_part,
        ):
            record = item.record
            if isinstance(item, BadRecord):
                yield Flaw(_hole_at(here, shard_index, record, item.part), item.error)
                continue
            if holes:
                if (hole := _hole_at(here, shard_index, record)) in holes:
                    if item.part == 0:
                        yield Flaw(hole, None)
                    continue
                if (hole := _hole_at(here, shard_index, record, item.part)) in holes:
                    yield Flaw(hole, None)
                    continue
            if record == first_record and item.part == first_part:
                yield Found(here, shard_index, url, sample.key, item)
            else:
                cursor = Cursor(here.epoch, here.piece, here.sample, record, item.part)
                yield Found(cursor, shard_index, url, sample.key, item)


def _is_rest_of(hole: Hole, epoch: int, shard: int) -> bool:
    return hole.record == REST_OF_PIECE and hole.epoch == epoch and hole.shard == shard


def _hole_at(cursor: Cursor, shard: int, record: int, part: int = -1) -> Hole:
    return Hole(cursor.epoch, shard, cursor.sample, cursor.sample + 1, record, part)


def hole_of(found: Found) -> Hole:
    """The hole that a document is if it is passed over; other parts of its record are not."""
    return _hole_at(found.cursor, found.shard, found.document.record, found.document.part)
