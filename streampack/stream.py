"""One lane, from a cursor on: bytes -> samples -> documents -> tokens -> packs, each with the position after it.

A stream keeps no state that a
cursor does not hold: dropping it and starting another one from the cursor of its last pack gives the same packs.

    pack k of a lane carries   rows      what labels, positions and segments are made of
                               cursor    where pack k + 1 begins: (epoch, piece, sample, record, part, row)
                               counts    what it stands for; documents and bad records count once, when passed
                               digest    of its global number and its content
"""

import logging
import operator
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import xxhash

from streampack import progress
from streampack.corpus import Corpus
from streampack.decompression import is_compressed
from streampack.digests import block_bytes_of
from streampack.errors import (
    ConfigError,
    CorruptShardError,
    RecordError,
    ShardError,
    StreampackError,
    TruncatedShardError,
    WrongCutError,
)
from streampack.lanes import Piece
from streampack.recipe import Recipe
from streampack.records import BadRecord, Cursor, Document, PackRows, Sample, Shard
from streampack.stats import Counts

_log = logging.getLogger(__name__)


START = Cursor()
WHOLE_MEMBER = -1
REST_OF_PIECE = -2
_READINGS = 3  # of a shard at a place where it breaks: what was altered on its way is right the next time
_RATE_FLOOR = 10  # what a lane may pass over by a rate before it has read much


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


class Source(NamedTuple):
    """Where a segment of a pack comes from."""

    url: str
    key: str
    sample: int
    """Byte offset of the sample in a plain tar, ordinal in a compressed one."""
    record: int
    part: int
    row: int
    """The document's input row with which the segment begins."""
    length: int
    targets: int = 0
    """Of the whole document, over all its packs: its tokens that its own rows train."""


class LanePack(NamedTuple):
    """One pack of a lane and what is committed with it."""

    rows: PackRows
    cursor: Cursor
    counts: Counts
    digest: int
    holes: tuple[Hole, ...]
    """Bad records met for the first time while this pack was made."""
    sources: tuple[Source, ...]
    """One per segment; empty unless asked for."""


class LaneEnd(NamedTuple):
    """A lane of a finite run has no more packs; `counts` is what came after its last one."""

    counts: Counts


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneStart:
    """Where a lane goes on."""

    cursor: Cursor = START
    packs: int = 0
    """How many packs it has given before."""
    documents: int = 0
    """How many documents these packs have passed."""
    holes: frozenset[Hole] = frozenset()


class _Fed(NamedTuple):
    """A document in the packer, not yet passed."""

    cursor: Cursor
    skipped: int
    """Bad records passed over since the document before it."""
    shard: int
    url: str
    key: str
    targets: int = 0
    """As `Source.targets`; counted where sources are asked for."""


class LaneStream:
    """The packs of one lane from a cursor on, in order."""

    def __init__(
        self,
        recipe: Recipe,
        corpus: Corpus,
        lane: int,
        start: LaneStart,
        *,
        end_epoch: int | None,
        max_range_bytes: int = 8 * 2**20,
        with_sources: bool = False,
    ) -> None:
        """`end_epoch`: the first epoch that is not read (None: endless)."""
        cursor = start.cursor
        self._cursor = cursor
        self._packs = start.packs
        self._passed = start.documents
        self._met = start.documents
        self._recipe = recipe
        self._corpus = corpus
        self._lane = lane
        self._end_epoch = end_epoch
        self._holes = set(start.holes)
        self._new_holes: list[Hole] = []
        self._skipped = 0
        self._max_range_bytes = max_range_bytes
        self._with_sources = with_sources
        self._packer = recipe.packer()
        self._fed: deque[_Fed] = deque()
        self._first_fed = 0
        self._counted = Counts()
        self._ended = False
        self._in_compressed = False
        self._block_bytes = 0  # of the shard's digest: so much is read and checked before it is used
        self._last_pack_epoch = cursor.epoch
        self._documents = self._read(cursor)

    @property
    def buffered_bytes(self) -> int:
        """About how much memory the stream holds: a range of the shard, and tokens that no pack has taken yet."""
        return self._max_range_bytes + self._block_bytes + self._packer.buffered_bytes

    @property
    def replays(self) -> bool:
        """Whether going on from the cursor would decompress a shard from its start again."""
        return self._in_compressed

    def position(self) -> LaneStart:
        """Where another stream goes on after the last pack of this one."""
        return LaneStart(
            cursor=self._cursor, packs=self._packs, documents=self._passed, holes=frozenset(self._holes)
        )

    def close(self) -> None:
        """Let go of the shard; the stream gives nothing more."""
        self._documents.close()

    def next(self) -> LanePack | LaneEnd:
        """The lane's next pack; in a finite run its end, once and for all."""
        while (rows := self._packer.pop()) is None:
            if self._ended:
                return LaneEnd(self._counts_until(len(self._fed) + self._first_fed))
            entry = next(self._documents, None)
            if entry is None:
                self._ended = True
                self._packer.finish()
                continue
            fed, document = entry
            self._feed(fed, document)
        return self._dress(rows)

    def _feed(self, fed: _Fed, document: Document) -> None:
        tokens, mask = self._recipe.encode(document)
        try:
            self._packer.feed(tokens, mask, row=fed.cursor.row, checked=mask is None and document.tokens is not None)
        except RecordError as error:
            named = type(error)(error.message, url=fed.url, member=fed.key)
            if fed.cursor.row:  # earlier packs hold a part of it: to pass over the rest would lose it
                raise named from error
            self._skipped += fed.skipped
            self._met -= 1
            hole = self._hole(fed.shard, fed.cursor, document.record)
            self._skip(named, hole)
        else:
            self._fed.append(fed._replace(targets=self._recipe.targets(tokens, mask)) if self._with_sources else fed)

    def _dress(self, rows: PackRows) -> LanePack:
        sources = tuple(self._sources(rows)) if self._with_sources else ()
        last = self._fed[-1].cursor
        counts = self._counts_until(rows.next_document)
        self._passed += counts.documents
        if self._fed:
            self._cursor = self._fed[0].cursor._replace(row=rows.next_row)
        elif self._ended:
            assert self._end_epoch is not None, "an endless lane does not end"
            self._cursor = Cursor(epoch=self._end_epoch)
        else:
            self._cursor = last._replace(part=last.part + 1, row=0)
        holes, self._new_holes = tuple(self._new_holes), []
        pack = LanePack(rows, self._cursor, counts, self._digest(rows), holes, sources)
        self._packs += 1
        self._last_pack_epoch = self._cursor.epoch
        return pack

    def _counts_until(self, document: int) -> Counts:
        """What came between the pack before and the point where `document` begins or goes on; drops what is passed."""
        skipped = 0
        while self._first_fed < document and self._fed:
            skipped += self._fed.popleft().skipped
            self._first_fed += 1
        if self._fed:
            skipped += self._fed[0].skipped
            self._fed[0] = self._fed[0]._replace(skipped=0)
        elif self._ended:
            skipped += self._skipped
            self._skipped = 0
        now, before = self._packer.counts, self._counted
        self._counted = now
        counts = Counts(*map(operator.sub, now, before))
        return counts._replace(skipped=skipped) if skipped else counts  # the packer knows of none

    def _sources(self, rows: PackRows) -> Iterator[Source]:
        for span in rows.spans:
            fed = self._fed[span.document - self._first_fed]
            cursor = fed.cursor
            place = (cursor.sample, cursor.record, cursor.part, span.offset, span.length)
            yield Source(fed.url, fed.key, *place, fed.targets)

    def _digest(self, rows: PackRows) -> int:
        number = self._lane + self._corpus.num_lanes * self._packs
        head = np.array([number, self._recipe.seq_len, self._recipe.pad_id], dtype="<i8")
        digest = xxhash.xxh3_64(head.tobytes())
        for array in (rows.tokens, rows.seq_lens, rows.edge_labels):
            digest.update(np.ascontiguousarray(array, dtype="<i4").data)
        if rows.ignored is not None:
            digest.update(np.packbits(rows.ignored).data)
        return digest.intdigest()

    def _read(self, cursor: Cursor) -> Generator[tuple[_Fed, Document], None, None]:
        """Every document of the lane from the cursor on, over pieces and epochs."""
        corpus = self._corpus
        epoch, piece_index, resume = cursor.epoch, cursor.piece, cursor.sample
        while self._end_epoch is None or epoch < self._end_epoch:
            pieces = corpus.pieces(epoch, self._lane)
            self._check_alive(epoch, pieces)
            for index in range(piece_index, len(pieces)):
                piece = pieces[index]
                shard = corpus.table[piece.shard]
                self._in_compressed = is_compressed(shard.url)
                self._block_bytes = block_bytes_of(shard.digest)
                for position, sample in self._samples(shard, piece, epoch=epoch, resume=resume):
                    progress.begin_sample(self._lane, piece.shard, position)
                    here = Cursor(epoch, index, position)
                    if position == cursor.sample and index == cursor.piece and epoch == cursor.epoch:
                        here = cursor
                    yield from self._read_sample(sample, shard, piece.shard, here)
                resume = -1
            epoch, piece_index = epoch + 1, 0

    def _samples(self, shard: Shard, piece: Piece, *, epoch: int, resume: int) -> Iterator[tuple[int, Sample]]:
        """The samples of a piece up to its end, or to where the shard breaks if that is passed over."""
        known = next(
            (
                hole.first
                for hole in self._holes
                if hole.record == REST_OF_PIECE and hole.epoch == epoch and hole.shard == piece.shard
            ),
            None,
        )
        begin = last = max(resume, 0 if piece.whole else piece.begin) - 1
        broken: list[StreampackError] = []  # what the readings met since the last sample
        while known is None or last + 1 < known:
            try:
                start = resume if last == begin else last
                for position, sample in self._recipe.samples(
                    shard, piece, resume=start, max_range_bytes=self._max_range_bytes
                ):
                    if known is not None and position >= known:
                        break
                    if position > last:
                        last, broken = position, []
                        yield position, sample
                else:
                    return
                break
            except (CorruptShardError, TruncatedShardError) as error:
                broken.append(error)
                if len(broken) < _READINGS:
                    _log.warning("reading again from where a shard broke: %s", error)
                    continue
                if isinstance(error, WrongCutError) or (last == begin and resume >= 0):
                    # Behind a resume earlier packs hold the beginning of what cannot be read now.
                    raise broken[0] from None
                hole = Hole(epoch, piece.shard, last + 1, last + 1, REST_OF_PIECE)
                if self._recipe.on_error == "skip":
                    end = self._recipe.next_range(
                        shard, piece, damaged_at=error.offset or 0, max_range_bytes=self._max_range_bytes
                    )
                    hole = hole._replace(end=end)
                self._skip(broken[0], hole)
                return
        self._skipped += 1

    def _read_sample(
        self, sample: Sample, shard: Shard, shard_index: int, cursor: Cursor
    ) -> Iterator[tuple[_Fed, Document]]:
        recipe = self._recipe
        if self._holes and self._hole(shard_index, cursor, WHOLE_MEMBER) in self._holes:
            self._skipped += 1
            return
        for item in recipe.documents.read(
            sample,
            url=shard.url,
            shard_name=shard.name,
            shard_index=shard_index,
            epoch=self._corpus.order_epoch(cursor.epoch),
            position=cursor.sample,
            first_record=cursor.record,
            first_part=cursor.part,
        ):
            if isinstance(item, BadRecord):
                self._skip(item.error, self._hole(shard_index, cursor, item.record))
                continue
            if self._holes and self._hole(shard_index, cursor, item.record) in self._holes:
                self._skipped += item.part == 0
                continue
            record, part = item.record, item.part
            row = cursor.row if record == cursor.record and part == cursor.part else 0
            here = Cursor(cursor.epoch, cursor.piece, cursor.sample, record, part, row)
            skipped, self._skipped = self._skipped, 0
            self._met += 1
            yield _Fed(here, skipped, shard_index, shard.url, sample.key), item

    @staticmethod
    def _hole(shard_index: int, cursor: Cursor, record: int) -> Hole:
        return Hole(cursor.epoch, shard_index, cursor.sample, cursor.sample + 1, record)

    def _skip(self, error: StreampackError, hole: Hole) -> None:
        if hole in self._holes:
            self._skipped += 1
            return
        if self._recipe.on_error == "raise":
            raise error
        self._skipped += 1
        most, allowed = self._recipe.max_skipped, self._recipe.max_skipped
        if isinstance(most, float):
            allowed = max(_RATE_FLOOR, int(most * self._met))
        if len(self._holes) >= allowed:
            of = f" of {self._met} documents" if isinstance(most, float) else ""
            raise ShardError(
                f"lane {self._lane} has passed over max_skipped={most} bad records or shards{of}; the next one "
                f"is: {error}. Repair the data or raise max_skipped."
            ) from error
        self._holes.add(hole)
        self._new_holes.append(hole)
        what = "the rest of a broken shard" if hole.record == REST_OF_PIECE else "a bad record"
        _log.warning("lane %d passes over %s: %s", self._lane, what, error)

    def _check_alive(self, epoch: int, pieces: list[Piece]) -> None:
        """Refuse an endless run that could loop for ever without a pack."""
        if self._end_epoch is not None:
            return
        never = not pieces and not self._corpus.shuffle
        if never or epoch - self._last_pack_epoch >= max(self._corpus.num_lanes, 2):
            why = "no shard falls into its range" if never else f"in {epoch - self._last_pack_epoch} epochs"
            raise ConfigError(
                f"lane {self._lane} of {self._corpus.num_lanes} gives no pack ({why}), and an endless run would wait "
                f"for it for ever. Use fewer lanes (num_lanes), more or larger shards, or a finite run (epochs=1)."
            )
