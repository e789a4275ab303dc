"""One lane, from a cursor on: bytes -> samples -> documents -> tokens -> packs, each with the position after it.

A stream keeps no state that a cursor does not hold: dropping it and starting another one from the cursor of its last
pack gives the same packs.

    pack k of a lane carries   rows      what labels, positions and segments are made of
                               cursor    where pack k + 1 begins: (epoch, piece, sample, record, part, row)
                               counts    what it stands for; documents and bad records count once, when passed
                               digest    of its global number and its content
"""

import logging
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
import xxhash

from streampack import heartbeat
from streampack.corpus.epochs import Corpus
from streampack.errors import ConfigError, RecordError, ShardError
from streampack.lanes.pipeline import Pipeline
from streampack.lanes.reader import REST_OF_PIECE, EpochStart, LaneReader, ReadError, Run, SkippedRange
from streampack.packing.packs import PackRows
from streampack.records import Counts, Cursor, Joined

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from streampack.records import Tokens

_log = logging.getLogger(__name__)

START = Cursor()
_RATE_FLOOR = 10  # what a lane may pass over by a rate before it has read much
_TOKENS_PER_BYTE = 1.0  # of what documents are made of, at most; until the first ones are known
_MOST_BYTES_PER_TOKEN = 32  # of what is held at once, however few tokens others before it gave
_DIGEST_HEAD = Struct("<3q").pack
_IS_LITTLE_ENDIAN = sys.byteorder == "little"  # as digests are on every machine
_ROWS_AHEAD = 64 * 2**10  # what is read, tokenized and packed together at most: more gains nothing
_PACKS_AHEAD = 64


class Provenance(NamedTuple):
    """Where a segment of a pack comes from."""

    url: str
    key: str
    sample: int
    """`Sample.position`."""
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
    skipped_ranges: tuple[SkippedRange, ...]
    """Bad records met for the first time while this pack was made."""
    sources: tuple[Provenance, ...]
    """One per segment; empty unless asked for."""


class LaneEnd(NamedTuple):
    """A lane of a finite run has no more packs; `counts` is what came after its last one."""

    counts: Counts


@dataclass(frozen=True, slots=True, kw_only=True)
class LanePosition:
    """Where a lane goes on."""

    cursor: Cursor = START
    packs: int = 0
    """How many packs it has given before."""
    documents: int = 0
    """How many documents these packs have passed."""
    skipped_ranges: frozenset[SkippedRange] = frozenset()


class _Ready(NamedTuple):
    """Documents, read and tokenized, that the packer has not got yet."""

    run: Run
    """Without its contents."""
    joined: Joined
    is_checked: bool
    """Otherwise it is one document, and the packer must look at its ids."""

    def singles(self) -> "Iterator[_Ready]":
        """The same, document by document."""
        (tokens, lengths, mask), stop = self.joined, 0
        for index, length in enumerate(lengths):
            start, stop = stop, stop + length
            joined = Joined(tokens[start:stop], [length], None if mask is None else mask[start:stop])
            yield self._replace(run=self.run.part(index, index + 1), joined=joined)


class _Fed(NamedTuple):
    """Documents in the packer, of which the last one is not yet passed."""

    run: Run
    first: int
    """The number of the first one in the packer."""
    stop: int
    targets: list[int]
    """As `Provenance.targets`, of each; empty where sources are not asked for."""


class LaneStream:
    """The packs of one lane from a cursor on, in order."""

    def __init__(
        self,
        pipeline: Pipeline,
        corpus: Corpus,
        lane: int,
        start: LanePosition,
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
        self._pipeline = pipeline
        self._corpus = corpus
        self._lane = lane
        self._end_epoch = end_epoch
        self._skipped_ranges = set(start.skipped_ranges)
        self._new_skipped_ranges: list[SkippedRange] = []
        self._skipped = 0
        self._max_range_bytes = max_range_bytes
        self._with_sources = with_sources
        self._ahead: deque[_Ready | ReadError | EpochStart | Exception | None] = deque()
        """What was read and not yet used; the last one is an exception where reading failed, None at the lane's end."""
        self._packs_before = start.packs
        rows_ahead = min(_ROWS_AHEAD, max_range_bytes // 16)
        self._most_ahead = max(1, min(rows_ahead // pipeline.seq_len, _PACKS_AHEAD))
        self._packer = pipeline.packer(at_once=self._most_ahead)
        self._fed: deque[_Fed] = deque()
        self._num_fed = 0
        self._read_errors: list[tuple[int, int]] = []
        """(document, how many were passed over before it), for those that were fed and not passed."""
        self._may_refuse = pipeline.packing != "wrap" and pipeline.overflow == "error"
        self._end: LaneEnd | None = None
        self._ended = False
        self._last_pack_epoch = cursor.epoch
        self._bytes, self._tokens = 1.0, _TOKENS_PER_BYTE
        self._reader = LaneReader(
            pipeline, corpus, lane, cursor, start.skipped_ranges, end_epoch=end_epoch, max_range_bytes=max_range_bytes
        )

    @property
    def buffered_bytes(self) -> int:
        """About how much memory the stream holds: a range of the shard, and tokens that no pack has taken yet."""
        held = self._packer.buffered_bytes
        for item in self._ahead:
            if isinstance(item, _Ready):
                held += item.joined.tokens.nbytes
        made = 4 * self._pipeline.seq_len * self._most_ahead if self._most_ahead > 1 else 0
        return self._max_range_bytes + self._reader.block_bytes + held + made

    @property
    def has_pack(self) -> bool:
        """Whether the next pack is made already."""
        return self._packer.has_pack

    @property
    def replays(self) -> bool:
        """Whether going on from the cursor would decompress a shard from its start again."""
        return self._reader.in_compressed

    def position(self) -> LanePosition:
        """Where another stream goes on after the last pack of this one."""
        return LanePosition(
            cursor=self._cursor,
            packs=self._packs,
            documents=self._passed,
            skipped_ranges=frozenset(self._skipped_ranges),
        )

    def close(self) -> None:
        """Let go of the shard; the stream gives nothing more."""
        self._reader.close()

    def next(self) -> LanePack | LaneEnd:
        """The lane's next pack; in a finite run its end, every time from there on."""
        while (rows := self._packer.pop()) is None:
            if self._ended:
                if self._end is None:
                    self._end = LaneEnd(self._with_read_errors(self._packer.counts_behind, self._num_fed))
                return self._end
            if not self._ahead:
                self._read_ahead()
            item = self._ahead[0]
            if isinstance(item, Exception):
                raise item
            self._ahead.popleft()
            if isinstance(item, _Ready):
                self._feed(item)
            elif isinstance(item, ReadError):
                self._skip(item)
            elif isinstance(item, EpochStart):
                self._check_alive(item)
            else:
                self._ended = True
                self._packer.finish()
        return self._dress(rows)

    def _read_ahead(self) -> None:
        """Read about as many documents as the next packs lack, then tokenize them: a stage at a time.

        Python that runs after a tokenizer has emptied the processor's caches takes several times as long, and a step
        for many documents costs little more than for one. The first packs are not kept waiting for others: as many
        are read as were given. What fails is kept for when its turn comes.
        """
        per_byte = max(self._tokens / self._bytes, 1 / _MOST_BYTES_PER_TOKEN)
        packs = min(max(self._packs - self._packs_before, 1), self._most_ahead)
        lacking = self._pipeline.seq_len * packs + 1 - self._packer.buffered_rows
        self._reader.wanted_bytes = max(int(lacking / per_byte), 1)
        try:
            event = self._reader.next()
        except Exception as error:  # noqa: BLE001 - raised when its turn comes
            self._ahead.append(error)
            return
        if isinstance(event, Run):
            self._ahead.extend(self._tokenized(event))
        else:
            self._ahead.append(event)

    def _tokenized(self, run: Run) -> Iterator[_Ready | Exception]:
        """The documents as tokens, together where that can be; an exception in the place of one that fails."""
        pipeline, contents, where = self._pipeline, run.contents, run._replace(contents=[])
        self._bytes += run.num_bytes
        if isinstance(contents, Joined):
            self._tokens += len(contents.tokens)
            yield _Ready(where, pipeline.joined_with_ends(contents), True)
            return
        ids: list[NDArray[np.integer]] = []
        failure: Exception | None = None
        for text, key, (sample, record, _) in zip(contents, run.keys, run.places, strict=True):
            heartbeat.begin_sample(self._lane, run.shard, sample)
            try:
                ids.append(pipeline.tokenize(text, url=run.url, key=key, record=record))
            except Exception as error:  # noqa: BLE001 - raised when its turn comes
                failure = error
                break
        joined = pipeline.joined(ids)
        if joined is not None:
            self._tokens += len(joined.tokens)
            yield _Ready(where if failure is None else where.part(0, len(ids)), joined, True)
        else:
            for index, each in enumerate(ids):
                try:
                    tokens, _ = pipeline.with_ends(each, None)
                except Exception as error:  # noqa: BLE001 - raised when its turn comes
                    failure = error
                    break
                self._tokens += len(tokens)
                yield _Ready(where.part(index, index + 1), Joined(cast("Tokens", tokens), [len(tokens)]), False)
        if failure is not None:
            yield failure

    def _feed(self, ready: _Ready) -> None:
        run, (tokens, lengths, mask), is_checked = ready
        in_bulk = not (run.row or self._may_refuse)
        if len(lengths) > 1 and not in_bulk:
            self._ahead.extendleft(reversed(list(ready.singles())))
            return
        if is_checked and in_bulk:
            self._packer.feed_all(tokens, lengths, mask)
        else:
            try:
                self._packer.feed(tokens, mask, row=run.row)
            except RecordError as error:
                named = type(error)(error.message, url=run.url, member=run.keys[0])
                if run.row:  # earlier packs hold a part of it: to pass over the rest would lose it
                    raise named from error
                self._skip(ReadError(run.skipped_range(0), named))
                return
        if self._skipped:
            self._read_errors.append((self._num_fed, self._skipped))
            self._skipped = 0
        targets: list[int] = []
        if self._with_sources:
            targets = [self._pipeline.targets(each.joined.tokens, each.joined.loss_mask) for each in ready.singles()]
        first, self._num_fed = self._num_fed, self._num_fed + len(lengths)
        self._fed.append(_Fed(run, first, self._num_fed, targets))
        self._met += len(lengths)

    def _dress(self, rows: PackRows) -> LanePack:
        sources = tuple(self._sources(rows)) if self._with_sources else ()
        document = rows.next_document - (rows.next_row == 0)  # the last one with rows in the pack
        last = next(fed for fed in self._fed if document < fed.stop)
        counts = self._with_read_errors(rows.counts, rows.next_document)
        self._passed += counts.documents
        if rows.next_row == 0 and rows.tokens.size == self._pipeline.seq_len and not self._packer.waits:
            # The pack was full before the next document came, however many have come by now.
            cursor = last.run.cursor(document - last.first, 0)
            self._cursor = cursor._replace(part=cursor.part + 1)
        elif self._fed:
            first = self._fed[0]
            self._cursor = first.run.cursor(rows.next_document - first.first, rows.next_row)
        else:
            assert self._ended, "only a pack that waits for nothing is made before what follows it is known"
            assert self._end_epoch is not None, "an endless lane does not end"
            self._cursor = Cursor(epoch=self._end_epoch)
        skipped_ranges, self._new_skipped_ranges = tuple(self._new_skipped_ranges), []
        pack = LanePack(rows, self._cursor, counts, self._digest(rows), skipped_ranges, sources)
        self._packs += 1
        self._last_pack_epoch = self._cursor.epoch
        return pack

    def _with_read_errors(self, counts: Counts, document: int) -> Counts:
        """The counts, and what was passed over before `document`; drops what packing has passed."""
        while self._fed and self._fed[0].stop <= document:
            self._fed.popleft()
        bad_records = 0
        while self._read_errors and self._read_errors[0][0] <= document:
            bad_records += self._read_errors.pop(0)[1]
        if self._ended and not self._fed:
            bad_records += self._skipped
            self._skipped = 0
        return counts._replace(bad_records=bad_records) if bad_records else counts  # the packer knows of none

    def _sources(self, rows: PackRows) -> Iterator[Provenance]:
        all_fed = iter(self._fed)
        run, first, stop, targets = next(all_fed)
        for document, offset, length in rows.spans:
            while document >= stop:
                run, first, stop, targets = next(all_fed)
            index = document - first
            yield Provenance(run.url, run.keys[index], *run.places[index], offset, length, targets[index])

    def _digest(self, rows: PackRows) -> int:
        number = self._lane + self._corpus.num_lanes * self._packs
        digest = xxhash.xxh3_64(_DIGEST_HEAD(number, self._pipeline.seq_len, self._pipeline.pad_id))
        for array in (rows.tokens, rows.seq_lens, rows.edge_labels):
            digest.update((array if _IS_LITTLE_ENDIAN else array.byteswap()).data)
        if rows.ignored is not None:
            digest.update(np.packbits(rows.ignored).data)
        return digest.intdigest()

    def _skip(self, read_error: ReadError) -> None:
        self._skipped += 1
        skipped_range, error = read_error
        if error is None or skipped_range in self._skipped_ranges:
            return
        if self._pipeline.on_error == "raise":
            raise error
        most, allowed = self._pipeline.max_skipped, self._pipeline.max_skipped
        if isinstance(most, float):
            allowed = max(_RATE_FLOOR, int(most * self._met))
        if len(self._skipped_ranges) >= allowed:
            of = f" of {self._met} documents" if isinstance(most, float) else ""
            raise ShardError(
                f"lane {self._lane} has passed over max_skipped={most} bad records or shards{of}; the next one "
                f"is: {error}. Repair the data or raise max_skipped."
            ) from error
        self._skipped_ranges.add(skipped_range)
        self._new_skipped_ranges.append(skipped_range)
        what = "the rest of a broken shard" if skipped_range.record == REST_OF_PIECE else "a bad record"
        _log.warning("lane %d passes over %s: %s", self._lane, what, error)

    def _check_alive(self, start: EpochStart) -> None:
        """Refuse an endless run that could loop for ever without a pack."""
        if self._end_epoch is not None:
            return
        never = not start.num_pieces and not self._corpus.shuffle
        epochs = start.epoch - self._last_pack_epoch
        if never or epochs >= max(self._corpus.num_lanes, 2):
            why = "no shard falls into its range" if never else f"in {epochs} epochs"
            raise ConfigError(
                f"lane {self._lane} of {self._corpus.num_lanes} gives no pack ({why}), and an endless run would wait "
                f"for it for ever. Use fewer lanes (num_lanes), more or larger shards, or a finite run (epochs=1)."
            )
