"""One source in one lane, from a position on: bytes -> samples -> documents -> tokens -> packs, each with its position.

In:    a lane's position in the source, and the source's pipeline and corpus.
Out:   the lane's packs of this source in order; their end, where there is one.
Never: state that the position does not hold. Dropping a stream and starting another one at the position after its last
       pack gives the same packs.

    pack k of a lane carries   rows      what labels, positions and segments are made of
                               cursor    where pack k + 1 begins, a `Cursor`
                               counts    of its rows; documents and bad records count once, when they are passed
"""

from collections.abc import Sequence

from streampack.corpus.epochs import Corpus
from streampack.corpus.shares import DEFAULT
from streampack.documents.excluded import Excluded
from streampack.errors import DocumentTooLongError, RecordError
from streampack.lanes.ahead import ReadAhead
from streampack.lanes.batches import DocumentBatch
from streampack.lanes.budget import STREAM_BYTES
from streampack.lanes.liveness import Liveness, dead_lane
from streampack.lanes.pipeline import Pipeline
from streampack.lanes.position import LaneEnd, LanePack, LanePosition
from streampack.lanes.reader import EpochStart, LaneReader, SectionStart
from streampack.lanes.recutting import as_begun, is_recut, packer_at
from streampack.lanes.run import named
from streampack.lanes.skipping import ReadError, SkipPolicy
from streampack.lanes.tokenizing import TokenizedBatch
from streampack.lanes.unpassed import Unpassed
from streampack.metrics import heartbeat
from streampack.packing.packs import PackRows
from streampack.packing.rest import RestPacker
from streampack.records import Counts, Cursor

_ROWS_AHEAD = 64 * 2**10  # read, tokenized and packed together at most: more gains nothing
_PACKS_AHEAD = 64
_UNTIL = Cursor._fields.index("until")
_NOTHING = Counts()


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
        stages: Sequence[Pipeline] = (),
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
            stages: the pipelines of all stages, by which packing windows that are half out were cut; empty: this one.
        """
        self._pipeline = pipeline
        self._stages = stages
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
        self._ahead = ReadAhead(pipeline, lane=lane)
        self.position = start
        """Where the lane continues after the last pack that was given."""
        name = named(lane, source_name)
        self._policy = SkipPolicy(name, start, on_error=pipeline.on_error, max_bad=pipeline.max_bad)
        self._since = _NOTHING
        """What came after the last pack and before the packer began."""
        self._start_at(start)

    def _start_at(self, start: LanePosition) -> None:
        """Read from a position on."""
        pipeline = self._pipeline
        before = self._stages[start.cursor.stage] if start.cursor.given and self._stages else pipeline
        self._begun_by = before
        """The pipeline by which the packing window was cut that the reading began in."""
        self._start = start
        self._num_documents = start.documents + self._since.documents
        """How many documents the lane has met; more than the position counts where packs have not passed them all."""
        self._ahead.items.clear()
        self._is_recut = is_recut(before, pipeline, start.cursor)
        """Whether the packs are made of what is left of a window that was cut in another way."""
        self._packer = packer_at(start.cursor, pipeline, before, at_once=self._most_ahead)
        self._unpassed = Unpassed(self._source_name)
        self._may_refuse = pipeline.packing.may_refuse or (self._is_recut and before.packing.may_refuse)
        reading = as_begun(before, pipeline) if self._is_recut else pipeline
        self._left_out = None if reading is pipeline else pipeline.excluded
        """What the packer is told to leave out of the rest of a window; else the reader leaves it out."""
        self._end: LaneEnd | None = None
        self._is_over = False
        """Whether the packer has got all documents."""
        self._goes_on_at: Cursor | None = None
        """Where the lane goes on with another packer, once it is over."""
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
        held = self._packer.buffered_bytes + self._ahead.num_bytes
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
        pipeline = self._begun_by if self._is_recut else self._pipeline
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
                    self._since = self._since.plus(counts)
                    if self._goes_on_at is not None:
                        self._go_on_at(self._goes_on_at)
                        continue
                    self._end = LaneEnd(self._since, self._policy.take_new(), self._source)
                return self._end
            if not self._ahead.items:
                self._read_ahead()
            item = self._ahead.items[0]
            if isinstance(item, Exception):
                raise item
            self._ahead.items.popleft()
            if isinstance(item, TokenizedBatch):
                self._feed(item)
            elif isinstance(item, ReadError):
                self._skip(item)
            elif isinstance(item, EpochStart):
                self._end_window_before(item.epoch, 0)
                self._check_alive(item)
            elif isinstance(item, SectionStart):
                self._end_window_before(*item.cursor[:2])
                if item.cursor.row or item.cursor.given:
                    self._is_over, self._goes_on_at = True, item.cursor
                    self._packer.finish(pads=True)
            else:
                self._is_over = True
                self._packer.finish()
        return self._lane_pack(rows)

    def _end_window_before(self, epoch: int, piece: int) -> None:
        """The reading has come to a piece: if the packing window ended before it when it was placed, it does now."""
        cursor = self._start.cursor
        if self._packer.given and (cursor.until - 1, cursor.last) < (epoch, piece):
            self._packer.end_window()

    def _go_on_at(self, cursor: Cursor) -> None:
        """Go on with another packer, inside a document or a packing window."""
        self.close()
        self._start_at(self.position._replace(cursor=cursor, skipped_ranges=self._policy.known))

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
        """Read for the next packs; the first ones are not kept waiting: as many packs are read for as were given."""
        packs = min(max(self.position.packs - self._start.packs, 1), self._most_ahead)
        self._ahead.fill(self._reader, self._packer.lacking_rows(packs))

    def _feed(self, batch: TokenizedBatch) -> None:
        """Give documents to the packer; where it might refuse one of them, one at a time."""
        documents, (tokens, lengths, mask), is_checked = batch
        in_bulk = not (documents.row or self._may_refuse or self._left_out)
        if len(lengths) > 1 and not in_bulk:
            self._ahead.items.extendleft(reversed(list(batch.singles())))
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
                self._skip(ReadError(documents.skipped_range(0), named))
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
                    stage, (until, *end) = self._start.cursor.stage, self._start.cursor[_UNTIL:]
                else:
                    stage, (epoch, *end) = self._stage, self._unpassed.sample(rows.last_document)
                    until = epoch + 1
                window = {"stage": stage, "until": until, "last": end[0], "last_sample": end[1]}
                cursor = cursor._replace(given=rows.given, rest=rows.rest, **window)
        elif self._goes_on_at is not None:
            cursor = self._goes_on_at
        else:
            assert self._is_over, "only a pack that waits for nothing is made before what follows it is known"
            assert self._end_epoch is not None, "an endless lane does not end"
            cursor = Cursor(epoch=self._end_epoch)
        if self._since is not _NOTHING:
            counts, self._since = self._since.plus(counts), _NOTHING
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
        """Raise a `ConfigError` where an endless run would loop for ever without a pack."""
        heartbeat.beat()
        if self._end_epoch is not None:
            return
        packs, rows = self.position.packs, self._packer.buffered_rows
        why = self._liveness.why_dead(packs=packs, rows=rows, num_pieces=start.num_pieces)
        if why is not None:
            raise dead_lane(
                why,
                lane=self._lane,
                num_lanes=self._corpus.num_lanes,
                source="" if self._source_name == DEFAULT else self._source_name,
                stage=self._stage,
                excluded=self._pipeline.excluded,
                hold_out=self._hold_out,
            )
