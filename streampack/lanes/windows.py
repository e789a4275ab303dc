"""The records of a lane in windows: some blocks are read together, and a hash decides the order of their records.

In:    the records of a group of pieces, from where a window begins.
Out:   windows, one after the other; of each, batches of its records in its order, and first the errors that it met.
Never: an order or an end of a window that depends on anything but the data, the seed and the lane; a window in memory
       while the next one is read.

    pieces     p0  p1  p2 | p3  p4  p5 |        groups of 3 pieces on a fixed grid
    records    a b c  d  e f                    of the first group, in the order in which they are read
    windows    a b c d (bound met) , e f        the second one begins at record e
    order      c a d b , e f                    c has place 0, a has place 1, ...
"""

from collections.abc import Iterator
from typing import NamedTuple

from streampack.corpus.epochs import Corpus
from streampack.corpus.sections import Section
from streampack.documents.lines import Line
from streampack.documents.reader import Record
from streampack.errors import CorruptShardError, ShardError, TruncatedShardError, WrongCutError
from streampack.hashing import Purpose, permutation
from streampack.lanes.pieces import SAMPLE_BYTES, Demand
from streampack.lanes.records import ListedShard, RecordBatch
from streampack.lanes.skipping import ReadError, cannot_skip
from streampack.records import Cursor


class Window(NamedTuple):
    """Records that are read together, in the order in which they are read."""

    begin: Cursor
    """Epoch, piece, sample and record."""
    errors: list[ReadError]
    """What of its pieces cannot be read."""
    shards: list[ListedShard]
    records: list[Record]
    num_bytes: int
    record_bytes: int
    """Counted in them for each record besides its content."""
    is_last: bool
    """Whether all pieces of the group are read."""

    def batches(
        self, corpus: Corpus, section: Section, lane: int, demand: Demand, *, first_place: int
    ) -> Iterator[RecordBatch]:
        """The records in the window's order, from `first_place` on, about as many bytes at a time as demanded.

        `lane`: the lane's number, as errors say it; the order is that of the lane by which `section` was cut.

        Raises:
            ShardError: the window has fewer records, so the shards are not those of the position.
        """
        count = len(self.records)
        if first_place > count:
            raise ShardError(
                f"lane {lane} continues after {first_place} records of a window that has {count} now: the shards are "
                "not those that the state was saved with. Restore them, or begin a new run."
            )
        begin = self.begin
        place = section.as_cut(begin.piece), begin.sample, begin.record
        words = Purpose.WINDOW_ORDER, corpus.seed, corpus.order_epoch(section.epoch), section.lane, *place
        order = permutation(*words, count=count)[first_place:].tolist()
        records = [self.records[index] for index in order]
        shards = [self.shards[index] for index in order]
        mean = max(self.num_bytes // max(count, 1) - self.record_bytes + SAMPLE_BYTES, 1)
        at = 0
        while at < len(records):
            stop = min(at + max(demand.num_bytes // mean, 1), len(records))
            places = range(first_place + at, first_place + stop)
            yield RecordBatch(begin, places, shards[at:stop], records[at:stop], mean * len(places))
            at = stop


def windows(
    items: Iterator[RecordBatch | ReadError],
    begin: Cursor,
    *,
    lane: int,
    resumed: Cursor | None,
    demand: Demand,
    max_bytes: int,
) -> Iterator[Window]:
    """The windows of a group of pieces.

    Args:
        items: the records of the group; each batch ends with the record that meets `demand`.
        begin: where the first window begins: epoch, piece, sample and record.
        lane: the lane's number.
        resumed: what of the first window earlier packs hold, where the lane continues in it. What was skipped with it
            before is passed already.
        demand: what `items` looks at.
        max_bytes: a window ends with the record with which it has so many.

    Raises:
        ShardError: the rest of a piece, or a whole member of JSON lines, cannot be read, and earlier packs hold some
            of its window: without it, the order would be another one.
        Exception: what a piece raises, after the window's other errors.
    """
    named = f"lane {lane}"
    next_begin: Cursor | None = begin
    is_over = False
    while not is_over:
        errors: list[ReadError] = []
        shards: list[ListedShard] = []
        records: list[Record] = []
        num_bytes = 0
        failure: Exception | None = None
        while num_bytes < max_bytes:
            demand.num_bytes = max_bytes - num_bytes
            try:
                item = next(items, None)
            except Exception as error:  # noqa: BLE001 - raised below, after what was met before it
                failure = error
                break
            if item is None:
                is_over = True
                break
            if isinstance(item, RecordBatch):
                next_begin = next_begin or _begin_of(item)
                shards += item.shards
                records += item.records
                num_bytes += item.num_bytes
            elif resumed is None or (item.error is not None and not any(resumed[4:])):
                errors.append(item)
            elif item.error is not None:
                raise cannot_skip(named, f"{resumed.place} records of a shuffle window", item.error) from item.error
        if (
            resumed is not None
            and isinstance(failure, CorruptShardError | TruncatedShardError)
            and not isinstance(failure, WrongCutError)
        ):
            cause, failure = failure, cannot_skip(named, f"{resumed.place} records of a shuffle window", failure)
            failure.__cause__ = cause
        if failure is not None:
            if resumed is not None and any(resumed[4:]):
                raise failure
            records, shards = [], []
        yield Window(next_begin or begin, errors, shards, records, num_bytes, demand.record_bytes, is_over)
        if failure is not None:
            raise failure
        next_begin = resumed = None


def _begin_of(batch: RecordBatch) -> Cursor:
    first = batch.records[0]
    return batch.where._replace(sample=first.position, record=first.record if isinstance(first, Line) else 0)
