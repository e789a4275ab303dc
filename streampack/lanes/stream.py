"""One source in one lane, from a position on: bytes -> samples -> documents -> tokens -> packs, each with its position.

In:    a lane's position in the source, and the source's pipeline and corpus.
Out:   the lane's packs of this source in order; their end, where there is one.
Never: state that the position does not hold. Dropping a stream and starting another one at the position after its last
       pack gives the same packs.

    pack k of a lane carries   rows      what labels, positions and segments are made of
                               cursor    where pack k + 1 begins, a `Cursor`
                               counts    of its rows; documents and bad records count once, when they are passed
"""

from collections import deque
from collections.abc import Iterator

from streampack.corpus.epochs import Corpus
from streampack.corpus.shares import DEFAULT
from streampack.documents.excluded import Excluded
from streampack.errors import ConfigError, DocumentTooLongError, RecordError
from streampack.lanes.batches import DocumentBatch
from streampack.lanes.budget import STREAM_BYTES
from streampack.lanes.liveness import Liveness
from streampack.lanes.pipeline import Pipeline
from streampack.lanes.position import LaneEnd, LanePack, LanePosition
from streampack.lanes.reader import EpochStart, LaneReader
from streampack.lanes.recutting import as_begun, is_recut, packer_at
from streampack.lanes.run import named
from streampack.lanes.skipping import ReadError, SkipPolicy
from streampack.lanes.tokenizing import TokenizedBatch, tokenized
from streampack.lanes.unpassed import Unpassed
from streampack.metrics import clock, heartbeat
from streampack.packing.packs import PackRows
from streampack.packing.rest import RestPacker
from streampack.records import Counts, Cursor

_TOKENS_PER_BYTE = 1.0  # assumed until the first documents are tokenized; there are hardly ever more
_MOST_BYTES_PER_TOKEN = 32  # assumed at most, or a few documents with hardly any tokens would have too much read
_ROWS_AHEAD = 64 * 2**10  # read, tokenized and packed together at most: more gains nothing
_PACKS_AHEAD = 64


class LaneStream:
    """The packs of one source in one lane from a position on, in order."""

    def __init__(
        self,
        pipeline: Pipeline,
        corpus: Corpus,
        lane: int,
        start: LanePosition,
        *,
        end_epoch: int | None,
        max_range_bytes: int = 8 * 2**20,
        with_provenance: bool = False,
        source: int = 0,
        source_name: str = DEFAULT,
        stage: int = 0,
        before: Pipeline | None = None,
    ) -> None:
        """Start at a position.

        Args:
            pipeline: how the source is read and cut now.
            corpus: its shards.
            lane: the lane's number.
            start: where the lane continues.
            end_epoch: the first epoch that is not read (None: endless).
            max_range_bytes: the largest range of a shard that is asked for at once.
            with_provenance: whether packs tell where their segments come from.
            source: the source's index in the run.
            source_name: its name.
            stage: `Cursor.stage` of windows that begin here.
            before: the pipeline of the stage `start.cursor.stage`; None: this one.
        """
        self._pipeline = pipeline
        self._before = before or pipeline
        self._stage = stage
        self._corpus = corpus
        self._lane = lane
        self._source = source
        self._source_name = source_name
        self._end_epoch = end_epoch
        self._max_range_bytes = max_range_bytes
        self._with_provenance = with_provenance
        rows_ahead = min(_ROWS_AHEAD, max_range_bytes // 16)
        self._most_ahead = max(1, min(rows_ahead // pipeline.seq_len, _PACKS_AHEAD))
        repeats = not corpus.shuffle or corpus.one_epoch or corpus.num_lanes == 1
        repeats = repeats or (len(corpus.table) == 1 and not corpus.window)
        self._hold_out = corpus.hold_out or pipeline.documents.hold_out
        self._liveness = Liveness(
            num_lanes=corpus.num_lanes,
            repeats_pieces=repeats or corpus.window > 0,  # of blocks, a lane has the same number in each epoch
            repeats_documents=repeats and pipeline.documents.transform is None,
            num_blocks=corpus.num_blocks,
        )
        self._bytes, self._tokens = 1.0, _TOKENS_PER_BYTE
        self._start_at(start)

    def _start_at(self, start: LanePosition) -> None:
        """Read from a position on."""
        pipeline, before = self._pipeline, self._before
        self.position = self._start = start
        """Where the lane continues after the last pack that was given."""
        self._num_documents = start.documents
        """How many documents the lane has met; more than the position counts where packs have not passed them all."""
        self._ahead: deque[TokenizedBatch | ReadError | EpochStart | Exception | None] = deque()
        """What was read and not yet used; the last one is an exception where reading failed, None at the lane's end."""
        self._is_recut = is_recut(before, pipeline, start.cursor)
        """Whether the packs are made of what is left of a window that was cut in another way."""
        self._packer = packer_at(start.cursor, pipeline, before, at_once=self._most_ahead)
        self._unpassed = Unpassed(self._source_name)
        name = named(self._lane, self._source_name)
        self._policy = SkipPolicy(name, start, on_error=pipeline.on_error, max_bad=pipeline.max_bad)
        self._may_refuse = pipeline.packing.may_refuse or (self._is_recut and before.packing.may_refuse)
        reading = as_begun(before, pipeline) if self._is_recut else pipeline
        self._left_out = None if reading is pipeline else pipeline.excluded
        """What the packer is told to leave out of the rest of a window; else the reader leaves it out."""
        self._end: LaneEnd | None = None
        self._is_over = False
        """Whether the packer has got all documents."""
        self._reader = LaneReader(
            reading,
            self._corpus,
            self._lane,
            start.cursor,
            start.skipped_ranges,
            end_epoch=self._end_epoch,
            max_range_bytes=self._max_range_bytes,
        )

    @property
    def buffered_bytes(self) -> int:
        """About how much memory the stream holds: its own, a range of the shard, and tokens that no pack has taken."""
        held = self._packer.buffered_bytes
        for item in self._ahead:
            if isinstance(item, TokenizedBatch):
                held += item.joined.tokens.nbytes
        made = 4 * self._pipeline.seq_len * self._most_ahead if self._most_ahead > 1 else 0
        return STREAM_BYTES + self._max_range_bytes + self._reader.block_bytes + held + made

    @property
    def has_pack(self) -> bool:
        """Whether the next pack is made already."""
        return self._packer.has_pack

    @property
    def replays(self) -> bool:
        """Whether a new stream at this position would decompress a shard, or tokenize a packing window, again.

        A packing window is no reason where a document of many windows is held, which is parked as under other packings.
        """
        pipeline = self._before if self._is_recut else self._pipeline
        return self._reader.in_compressed or (
            pipeline.packing.has_windows and self._packer.buffered_bytes <= pipeline.window_bytes
        )

    def close(self) -> None:
        """Close the shard; the stream gives nothing more."""
        self._reader.close()

    def next(self) -> LanePack | LaneEnd:
        """The lane's next pack; in a finite run its end, every time from there on.

        Raises:
            Exception: whatever a stage raises for what comes next, every time from there on.
        """
        while (rows := self._pop()) is None:
            if self._is_over:
                if self._end is None:
                    counts = self._with_bad_records(self._packer.counts_after, self._unpassed.num_fed)
                    self._end = LaneEnd(counts, self._policy.take_new(), self._source)
                return self._end
            if not self._ahead:
                self._read_ahead()
            item = self._ahead[0]
            if isinstance(item, Exception):
                raise item
            self._ahead.popleft()
            if isinstance(item, TokenizedBatch):
                self._feed(item)
            elif isinstance(item, ReadError):
                self._skip(item)
            elif isinstance(item, EpochStart):
                if self._packer.given and item.epoch >= self._start.cursor.until:
                    self._packer.end_window()  # the run ended here when the window was placed
                self._check_alive(item)
            else:
                self._is_over = True
                self._packer.finish()
        return self._lane_pack(rows)

    def _pop(self) -> PackRows | None:
        """The packer's next pack.

        Raises:
            DocumentTooLongError: a document of a window that was cut in another way, every time.
        """
        try:
            return self._packer.pop()
        except DocumentTooLongError as error:
            assert isinstance(self._packer, RestPacker), "other packers refuse a document when they get it"
            url, key = self._unpassed.place(self._packer.refused)
            raise DocumentTooLongError(error.message, url=url, member=key) from error

    def _read_ahead(self) -> None:
        """Read about as many documents as the next packs lack, then tokenize them: a stage at a time.

        Python that runs after a tokenizer has emptied the processor's caches takes several times as long, and a step
        for many documents costs little more than for one. The first packs are not kept waiting for others: as many
        are read as were given. What fails is kept for when its turn comes.
        """
        per_byte = max(self._tokens / self._bytes, 1 / _MOST_BYTES_PER_TOKEN)
        packs = min(max(self.position.packs - self._start.packs, 1), self._most_ahead)
        lacking = self._packer.lacking_rows(packs)
        self._reader.demand.num_bytes = max(int(lacking / per_byte), 1)
        before = clock.switch(clock.TAR)
        try:
            self._ahead += self._next_items()
        except Exception as error:  # noqa: BLE001 - raised when its turn comes
            self._ahead.append(error)
        finally:
            clock.switch(before)

    def _next_items(self) -> Iterator[TokenizedBatch | ReadError | EpochStart | Exception | None]:
        event = self._reader.next()
        if isinstance(event, DocumentBatch):
            self._bytes += event.num_bytes
            clock.switch(clock.TOKENIZE)
            for item in tokenized(self._pipeline, event, lane=self._lane):
                if isinstance(item, TokenizedBatch):
                    self._tokens += len(item.joined.tokens)
                yield item
        else:
            yield event

    def _feed(self, batch: TokenizedBatch) -> None:
        """Give documents to the packer; where it might refuse one of them, one at a time."""
        documents, (tokens, lengths, mask), is_checked = batch
        in_bulk = not (documents.row or self._may_refuse or self._left_out)
        if len(lengths) > 1 and not in_bulk:
            self._ahead.extendleft(reversed(list(batch.singles())))
            return
        if self._left_out is not None and not self._keeps(self._left_out, documents):
            return
        if is_checked and in_bulk:
            self._packer.feed_all(tokens, lengths, mask)
        else:
            try:
                if not is_checked:
                    self._pipeline.check_vocabulary(tokens)
                self._packer.feed(tokens, mask, row=documents.row)
            except RecordError as error:
                if isinstance(self._packer, RestPacker):
                    self._packer.left_out.discard(self._unpassed.num_fed)
                named = type(error)(error.message, url=documents.shards[0].url, member=documents.keys[0])
                if documents.row:  # earlier packs hold a part of it: to skip the rest would lose it
                    raise named from error
                self._skip(ReadError(documents.skipped_range(0, self._corpus), named))
                return
        targets: list[int] = []
        if self._with_provenance:
            targets = [self._pipeline.targets(each.joined.tokens, each.joined.loss_mask) for each in batch.singles()]
        self._unpassed.feed(documents, targets)
        self._num_documents += len(lengths)

    def _keeps(self, left_out: Excluded, documents: DocumentBatch) -> bool:
        """Whether a document goes to the packer, which is told where it is to be left out."""
        packer = self._packer
        assert isinstance(packer, RestPacker), "only there the reader does not leave it out"
        if not left_out.has(documents.shards[0].name, documents.keys[0], documents.origins[0][1]):
            return True
        if packer.in_window:
            packer.left_out.add(self._unpassed.num_fed)
            return True
        return False

    def _skip(self, read_error: ReadError) -> None:
        self._unpassed.add_bad_record()
        self._policy.skip(read_error, num_documents=self._num_documents, given=self._packer.given)

    def _lane_pack(self, rows: PackRows) -> LanePack:
        """A pack of the packer with all that belongs to it; the position moves past it."""
        provenance = tuple(self._unpassed.provenance(rows)) if self._with_provenance else ()
        # Such a pack does not wait for the next document, so its cursor must not tell which one that is.
        last = self._unpassed.cursor(rows.next_document - 1, 0) if rows.is_closed else None
        counts = self._with_bad_records(rows.counts, rows.next_document)
        if last is not None:
            cursor = last._replace(part=last.part + 1)
        elif self._unpassed:
            cursor = self._unpassed.cursor(rows.next_document, rows.next_row)
            if rows.given:
                if self._is_recut:
                    stage, until = self.position.cursor.stage, self.position.cursor.until
                else:
                    stage, until = self._stage, self._unpassed.epoch(rows.last_document) + 1
                cursor = cursor._replace(given=rows.given, stage=stage, rest=rows.rest, until=until)
        else:
            assert self._is_over, "only a pack that waits for nothing is made before what follows it is known"
            assert self._end_epoch is not None, "an endless lane does not end"
            cursor = Cursor(epoch=self._end_epoch)
        pack = LanePack(rows, cursor, counts, self._policy.take_new(), provenance, self._source)
        self.position = self.position.after(pack)
        if self._is_recut and not rows.given:  # the rest of the window is out
            self.close()
            self._start_at(self.position)
        return pack

    def _with_bad_records(self, counts: Counts, document: int) -> Counts:
        """The counts, with the bad records before `document`; what is before it is passed."""
        bad_records = self._unpassed.pass_to(document, is_over=self._is_over)
        return counts._replace(bad_records=bad_records) if bad_records else counts  # the packer counts none

    def _check_alive(self, start: EpochStart) -> None:
        """Raise where an endless run would loop for ever without a pack."""
        heartbeat.beat()
        if self._end_epoch is not None:
            return
        packs, rows = self.position.packs, self._packer.buffered_rows
        why = self._liveness.why_dead(packs=packs, rows=rows, num_pieces=start.num_pieces)
        if why is not None:
            which, remedy = "", "or a finite run (epochs=1)"
            if self._source_name != DEFAULT:
                which, remedy = f", source {self._source_name!r},", "max_epochs, or leave the source out (weight 0)"
            if (excluded := self._pipeline.excluded) is not None:
                stages = f"stages[{self._stage}]" if not self._stage else f"the stages up to stages[{self._stage}]"
                why += f"; exclude of {stages} leaves {excluded.num_entries:,} of its records out"
                remedy = f"fewer lines in exclude, {remedy}"
            if self._hold_out is not None:
                why += f"; {self._hold_out} decides which documents it has"
                remedy = f"a smaller fraction, {remedy}" if which else "or a smaller fraction"
            raise ConfigError(
                f"lane {self._lane} of {self._corpus.num_lanes}{which} gives no pack ({why}), and an endless run would "
                f"wait for it for ever. Use fewer lanes (num_lanes), more or larger shards, {remedy}. The log names "
                "shards that hold no sample."
            )
