"""One lane, from a cursor on: bytes -> samples -> documents -> tokens -> packs, each with the position after it.

A stream keeps no state that a cursor does not hold: dropping it and starting another one from the cursor of its last
pack gives the same packs.

    pack k of a lane carries   rows      what labels, positions and segments are made of
                               cursor    where pack k + 1 begins: (epoch, piece, sample, record, part, row)
                               counts    what it stands for; documents and bad records count once, when passed
                               digest    of its global number and its content
"""

import logging
import operator
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from streampack import progress
from streampack.corpus import Corpus
from streampack.errors import ConfigError, RecordError, ShardError
from streampack.lanereader import REST_OF_PIECE, EpochStart, Event, Flaw, Found, Hole, LaneReader, hole_of
from streampack.recipe import Recipe
from streampack.records import Cursor, Mask, PackRows
from streampack.stats import Counts

_log = logging.getLogger(__name__)

START = Cursor()
_RATE_FLOOR = 10  # what a lane may pass over by a rate before it has read much
_TOKENS_PER_CHARACTER = 0.25  # of a text, before the first ones are tokenized
_MOST_CHARACTERS_PER_TOKEN = 32  # of texts that are held at once, however few tokens others before them gave


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
    """Flaws passed over since the document before it."""
    url: str
    key: str
    targets: int = 0
    """As `Source.targets`; counted where sources are asked for."""


class _Ready(NamedTuple):
    """A document, read and tokenized, that the packer has not got yet."""

    found: Found
    tokens: NDArray[np.integer]
    mask: Mask | None


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
        self._ahead: deque[_Ready | Flaw | EpochStart | Exception | None] = deque()
        """What was read and not yet used; the last one is an exception where reading failed, None at the lane's end."""
        self._fed: deque[_Fed] = deque()
        self._first_fed = 0
        self._counted = Counts()
        self._ended = False
        self._last_pack_epoch = cursor.epoch
        self._characters, self._tokens = 1.0, _TOKENS_PER_CHARACTER
        self._reader = LaneReader(
            recipe, corpus, lane, cursor, start.holes, end_epoch=end_epoch, max_range_bytes=max_range_bytes
        )

    @property
    def buffered_bytes(self) -> int:
        """About how much memory the stream holds: a range of the shard, and tokens that no pack has taken yet."""
        ahead = [item for item in self._ahead if isinstance(item, _Ready)]
        held = sum(item.tokens.nbytes + len(item.found.document.text or "") for item in ahead)
        return self._max_range_bytes + self._reader.block_bytes + held + self._packer.buffered_bytes

    @property
    def replays(self) -> bool:
        """Whether going on from the cursor would decompress a shard from its start again."""
        return self._reader.in_compressed

    def position(self) -> LaneStart:
        """Where another stream goes on after the last pack of this one."""
        return LaneStart(
            cursor=self._cursor, packs=self._packs, documents=self._passed, holes=frozenset(self._holes)
        )

    def close(self) -> None:
        """Let go of the shard; the stream gives nothing more."""
        self._reader.close()

    def next(self) -> LanePack | LaneEnd:
        """The lane's next pack; in a finite run its end, once and for all."""
        while (rows := self._packer.pop()) is None:
            if self._ended:
                return LaneEnd(self._counts_until(len(self._fed) + self._first_fed))
            if not self._ahead:
                self._read_ahead()
            item = self._ahead[0]
            if isinstance(item, Exception):
                raise item
            self._ahead.popleft()
            if isinstance(item, _Ready):
                self._feed(item)
            elif isinstance(item, Flaw):
                self._skip(item)
            elif isinstance(item, EpochStart):
                self._check_alive(item)
            else:
                self._ended = True
                self._packer.finish()
        return self._dress(rows)

    def _read_ahead(self) -> None:
        """Read about as many documents as the next pack lacks, then tokenize them: a stage at a time.

        A tokenizer empties the processor's caches, so that going from stage to stage for every document would cost
        each of them as much as a stage takes. What fails is kept for when its turn comes.
        """
        ahead, reader, recipe, lane = self._ahead, self._reader, self._recipe, self._lane
        lacking = float(recipe.seq_len + 1 - self._packer.buffered_rows)
        per_character = max(self._tokens / self._characters, 1 / _MOST_CHARACTERS_PER_TOKEN)
        events: list[Event | Exception | None] = []
        try:
            for event in reader:
                events.append(event)
                lacking -= 1  # an empty document, too, takes its place among what is held
                if isinstance(event, EpochStart):
                    break  # a lane without documents would be read for ever
                if isinstance(event, Found):
                    document = event.document
                    if document.tokens is not None:
                        lacking -= len(document.tokens)
                    elif document.text is not None:
                        lacking -= len(document.text) * per_character
                if lacking <= 0:
                    break
            else:
                events.append(None)
        except Exception as error:  # noqa: BLE001 - raised when its turn comes
            events.append(error)
        for item in events:
            if not isinstance(item, Found):
                ahead.append(item)
                continue
            progress.begin_sample(lane, item.shard, item.cursor.sample)
            try:
                tokens, mask = recipe.encode(item.document)
            except Exception as error:  # noqa: BLE001 - raised when its turn comes
                ahead.append(error)
                return
            ahead.append(_Ready(item, tokens, mask))
            if item.document.text is not None:
                self._characters += len(item.document.text)
                self._tokens += len(tokens)

    def _feed(self, ready: _Ready) -> None:
        found, tokens, mask = ready
        skipped, self._skipped = self._skipped, 0
        try:
            checked = mask is None and found.document.tokens is not None
            self._packer.feed(tokens, mask, row=found.cursor.row, checked=checked)
        except RecordError as error:
            named = type(error)(error.message, url=found.url, member=found.key)
            if found.cursor.row:  # earlier packs hold a part of it: to pass over the rest would lose it
                raise named from error
            self._skipped = skipped
            self._skip(Flaw(hole_of(found), named))
            return
        self._met += 1
        targets = self._recipe.targets(tokens, mask) if self._with_sources else 0
        self._fed.append(_Fed(found.cursor, skipped, found.url, found.key, targets))

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

    def _skip(self, flaw: Flaw) -> None:
        self._skipped += 1
        hole, error = flaw
        if error is None or hole in self._holes:
            return
        if self._recipe.on_error == "raise":
            raise error
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
