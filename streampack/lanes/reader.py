"""The documents of one lane from a cursor on, over its pieces and epochs, each with its place.

In: the lane's pieces of each epoch. Out: what it meets, in order: documents, a read error, the beginning of an epoch.
Never: a choice about what cannot be read. Whether a bad record or a broken shard ends the run is the caller's to say,
at its place in the order; so it makes no difference how far ahead of its use something is read.
"""

import logging
from collections.abc import Generator, Iterator
from typing import NamedTuple, TypeAlias

from streampack import heartbeat
from streampack.corpus.epochs import Corpus
from streampack.corpus.partition import Piece
from streampack.errors import CorruptShardError, StreampackError, TruncatedShardError, WrongCutError
from streampack.lanes.pipeline import Pipeline
from streampack.records import BadRecord, Cursor, Document, Joined, Sample, Shard, join
from streampack.storage.digests import block_bytes_of
from streampack.tar.codecs import is_compressed

_log = logging.getLogger(__name__)

WHOLE_MEMBER = -1
REST_OF_PIECE = -2
_SAMPLE_BYTES = 64  # what one counts besides its members: an empty one takes memory, too
_NO_POSITION = 2**62
_READINGS = 3  # of a shard at a place where it breaks: what was altered on its way is right the next time


class SkippedRange(NamedTuple):
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


class Run(NamedTuple):
    """Documents of one piece that follow each other, as columns of n."""

    epoch: int
    piece: int
    """Index into the lane's pieces of the epoch."""
    shard: int
    """As listed."""
    url: str
    places: list[tuple[int, int, int]]
    """(sample, record, part) of each, as in `Cursor`."""
    keys: list[str]
    contents: list[str] | Joined
    num_bytes: int
    """Of the members, or of the records, that they were made of."""
    row: int = 0
    """Of the first document: the rows that earlier packs hold; not 0 only where the reading began."""

    def part(self, start: int, stop: int) -> "Run":
        """Where the documents `start` to `stop` are; without contents, whose bytes are not counted again."""
        return self._replace(
            places=self.places[start:stop],
            keys=self.keys[start:stop],
            contents=[],
            num_bytes=0,
            row=0 if start else self.row,
        )

    def cursor(self, index: int, row: int) -> Cursor:
        """Row `row` of a document."""
        return Cursor(self.epoch, self.piece, *self.places[index], row)

    def skipped_range(self, index: int) -> SkippedRange:
        """The skipped range that a document is if it is passed over; other parts of its record are not."""
        sample, record, part = self.places[index]
        return SkippedRange(self.epoch, self.shard, sample, sample + 1, record, part)


class ReadError(NamedTuple):
    """What cannot be read."""

    skipped_range: SkippedRange
    """The skipped range that it is if it is passed over."""
    error: StreampackError | None
    """None: it is not looked at again, since it was a skipped range before."""


class EpochStart(NamedTuple):
    """An epoch begins."""

    epoch: int
    num_pieces: int


Event: TypeAlias = Run | ReadError | EpochStart


class _Some(NamedTuple):
    """Samples of one piece that follow each other."""

    samples: list[Sample]
    num_bytes: int


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
        self._skipped_ranges = skipped_ranges
        self._with_skipped_ranges = {(skipped_range.epoch, skipped_range.shard) for skipped_range in skipped_ranges}
        self._end_epoch = end_epoch
        self._max_range_bytes = max_range_bytes
        self.in_compressed = False
        """Whether the shard can only be read from its start."""
        self.wanted_bytes = 1
        """About so many bytes of members or records make a run; the last sample or record comes whole."""
        self.block_bytes = 0
        """Of the shard's digest: so much is read and checked before it is used."""
        self._events = self._read(cursor)

    def next(self) -> Event | None:
        """What comes next; None at the end of the last epoch."""
        return next(self._events, None)

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
                    if isinstance(item, ReadError):
                        yield item
                    else:
                        yield from self._runs(item, shard, Cursor(epoch, index), piece.shard, cursor)
                resume = -1
            epoch, piece_index = epoch + 1, 0

    def _samples(self, shard: Shard, piece: Piece, *, epoch: int, resume: int) -> Iterator[_Some | ReadError]:
        """The samples of a piece, some at a time, up to its end or to where the shard breaks."""
        broken_before = next(
            (skipped_range for skipped_range in self._skipped_ranges if _is_rest_of(skipped_range, epoch, piece.shard)),
            None,
        )
        end = _NO_POSITION if broken_before is None else broken_before.first
        begin = last = max(resume, 0 if piece.whole else piece.begin) - 1
        errors: list[StreampackError] = []  # what the readings met since the last sample
        while last + 1 < end:
            some: list[Sample] = []
            num_bytes, is_whole = 0, True
            try:
                for sample in self._pipeline.samples(
                    shard, piece, resume=resume if last == begin else last, max_range_bytes=self._max_range_bytes
                ):
                    position = sample.position
                    if position >= end:
                        is_whole = False
                        break
                    if position <= last:
                        continue
                    last = position
                    some.append(sample)
                    num_bytes += _SAMPLE_BYTES
                    for member in sample.members.values():
                        num_bytes += len(member)
                    if num_bytes >= self.wanted_bytes:
                        errors.clear()
                        yield _Some(some, num_bytes)
                        some, num_bytes = [], 0
                if some:
                    yield _Some(some, num_bytes)
                if is_whole:
                    return
                break
            except Exception as error:  # what was read before it comes first, then it goes on its way
                if some:
                    errors.clear()
                    yield _Some(some, num_bytes)
                if not isinstance(error, CorruptShardError | TruncatedShardError):
                    raise
                errors.append(error)
                if len(errors) < _READINGS:
                    _log.warning("reading again from where a shard broke: %s", error)
                    continue
                if isinstance(error, WrongCutError) or (last == begin and resume >= 0):
                    # Behind a resume earlier packs hold the beginning of what cannot be read now.
                    raise errors[0] from None
                skipped_range = SkippedRange(epoch, piece.shard, last + 1, last + 1, REST_OF_PIECE)
                if self._pipeline.on_error == "skip":
                    behind = self._pipeline.next_range(
                        shard, piece, damaged_at=error.offset or 0, max_range_bytes=self._max_range_bytes
                    )
                    skipped_range = skipped_range._replace(end=behind)
                yield ReadError(skipped_range, errors[0])
                return
        if broken_before is not None:
            yield ReadError(broken_before, None)

    def _runs(
        self, some: _Some, shard: Shard, place: Cursor, shard_index: int, start: Cursor
    ) -> Iterator[Run | ReadError]:
        """What is in the samples of a piece; `place`: its epoch and number; `start`: where the reading began."""
        samples, num_bytes = some
        here = place._replace(sample=samples[0].position)
        begun = start if start[:3] == here[:3] else here  # with a record, part and row
        if not (begun.record or begun.part or (place.epoch, shard_index) in self._with_skipped_ranges):
            heartbeat.begin_sample(self._lane, shard_index, here.sample)
            contents = self._pipeline.documents.contents(samples)
            if contents is not None:
                places = [(sample.position, 0, 0) for sample in samples]
                keys = [sample.key for sample in samples]
                head = place.epoch, place.piece, shard_index, shard.url
                samples.clear()  # whoever has given them holds them no longer than this
                yield Run(*head, places, keys, contents, num_bytes, begun.row)
                return
        found = _Documents(place, shard_index, shard.url)
        try:
            for sample in samples:
                here = here._replace(sample=sample.position)
                for item in self._documents(sample, shard, shard_index, begun if begun.sample == here.sample else here):
                    if isinstance(item, ReadError) or not found.fits(item) or found.num_bytes >= self.wanted_bytes:
                        yield from found.take()
                    if isinstance(item, ReadError):
                        yield item
                    else:
                        found.add(item, begun)
        except Exception:  # what was found before it comes first
            yield from found.take()
            raise
        yield from found.take()

    def _documents(
        self, sample: Sample, shard: Shard, shard_index: int, here: Cursor
    ) -> Iterator[Document | ReadError]:
        """The documents of one sample, from a record and part of it on."""
        heartbeat.begin_sample(self._lane, shard_index, here.sample)
        skipped_ranges = self._skipped_ranges
        if skipped_ranges and (skipped_range := _skipped_range_at(here, shard_index, WHOLE_MEMBER)) in skipped_ranges:
            yield ReadError(skipped_range, None)
            return
        for item in self._pipeline.documents.read(
            sample,
            url=shard.url,
            shard_name=shard.name,
            shard_index=shard_index,
            epoch=self._corpus.order_epoch(here.epoch),
            first_record=here.record,
            first_part=here.part,
        ):
            record = item.record
            if isinstance(item, BadRecord):
                yield ReadError(_skipped_range_at(here, shard_index, record, item.part), item.error)
            elif skipped_ranges and (skipped_range := _skipped_range_at(here, shard_index, record)) in skipped_ranges:
                if item.part == 0:
                    yield ReadError(skipped_range, None)
            elif (
                skipped_ranges
                and (skipped_range := _skipped_range_at(here, shard_index, record, item.part)) in skipped_ranges
            ):
                yield ReadError(skipped_range, None)
            else:
                yield item


class _Documents:
    """Documents of one piece that follow each other, until a run is made of them."""

    def __init__(self, place: Cursor, shard: int, url: str) -> None:
        self.num_bytes = 0
        self._head = place.epoch, place.piece, shard, url
        self._found: list[Document] = []
        self._row = 0

    def fits(self, document: Document) -> bool:
        """Whether they would all be texts, or all be tokens."""
        return not self._found or (self._found[0].text is None) == (document.text is None)

    def add(self, document: Document, start: Cursor) -> None:
        """Take one more; `start`: where the reading began."""
        if start[2:5] == (document.sample, document.record, document.part):
            self._row = start.row
        self._found.append(document)
        size = 0 if document.tokens is None else document.tokens.nbytes
        self.num_bytes += size if document.text is None else len(document.text) + _SAMPLE_BYTES

    def take(self) -> Iterator[Run]:
        """All of them as a run, if there are any."""
        if not self._found:
            return
        found, row, num_bytes = self._found, self._row, self.num_bytes
        self._found, self._row, self.num_bytes = [], 0, 0
        places = [(document.sample, document.record, document.part) for document in found]
        texts = [document.text for document in found if document.text is not None]
        tokens = [document.tokens for document in found if document.tokens is not None]
        contents = texts or join(tokens, [document.loss_mask for document in found])
        yield Run(*self._head, places, [document.key for document in found], contents, num_bytes, row)


def _is_rest_of(skipped_range: SkippedRange, epoch: int, shard: int) -> bool:
    return skipped_range.record == REST_OF_PIECE and skipped_range.epoch == epoch and skipped_range.shard == shard


def _skipped_range_at(cursor: Cursor, shard: int, record: int, part: int = -1) -> SkippedRange:
    return SkippedRange(cursor.epoch, shard, cursor.sample, cursor.sample + 1, record, part)
