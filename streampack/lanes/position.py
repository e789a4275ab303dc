"""Where a lane continues, and the one rule by which a pack moves it on.

In:    a lane's position, or rows of numbers for many lanes; the packs that the lanes have given.
Out:   the positions after those packs.
Never: the same rule written elsewhere. `LanePosition.after` states it for one pack, `advance_rows` for many packs at
       once; the stream of a lane, workers' restarts, the iterator of a dataset and the commits of a loader call them.

    position    cursor (0, 2, 5120, 0, 0, 0, 7, 0)    packs 41    documents 96    skipped ranges {a, of piece 1; b}
    pack        cursor (0, 2, 9728, 0, 0, 0, 0, 0)                documents  3    skipped ranges (c,)
    after it    cursor (0, 2, 9728, 0, 0, 0, 0, 0)    packs 42    documents 99    skipped ranges {b, c}
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from streampack.packing.packs import PackRows
from streampack.records import Counts, Cursor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from streampack.lanes.provenance import Provenance

NUM_CURSOR = len(Cursor._fields)
"""Integers of a cursor: the first columns of every row that `advance_rows` takes."""

WHOLE_MEMBER = -1
REST_OF_PIECE = -2


class SkippedRange(NamedTuple):
    """What a lane has skipped, a record or the rest of a broken shard; it stays out on every resume and topology."""

    epoch: int
    last_piece: int
    """The last piece of the lane that is read together with the one of the range, see `Corpus.last_together`: a resume
    may meet the range until the lane's cursor is past this piece."""
    shard: int
    first: int
    """The first `Sample.position` that is left out."""
    end: int
    """The positions [first, end) are left out."""
    record: int
    """-1: the member as a whole, and so all its records; -2: all samples of the piece from `first` on."""
    part: int = -1
    """Index in what the transform made of the record; -1: the record as a whole. Of the rest of a piece: `Piece.end`,
    which tells this piece from others of the shard."""


class LanePack(NamedTuple):
    """One pack of a lane and what is committed with it."""

    rows: PackRows
    cursor: Cursor
    """Where the lane's next pack begins."""
    counts: Counts
    skipped_ranges: tuple[SkippedRange, ...]
    """What was skipped for the first time while this pack was made."""
    provenance: "tuple[Provenance, ...]"
    """One per segment; empty unless asked for."""
    source: int = 0
    """Whose documents it holds: the index of the source in the run."""
    ends: "tuple[LaneEnd, ...]" = ()
    """Sources that were found without another pack in the lane as this pack was looked for; not those with whose last
    pack the lane was at the source's end already."""


class LaneEnd(NamedTuple):
    """A source has no more packs in a lane; this is what came after its last one there."""

    counts: Counts
    skipped_ranges: tuple[SkippedRange, ...]
    """What was skipped for the first time."""
    source: int = 0

    @property
    def adds(self) -> bool:
        """Whether anything came after the last pack."""
        return any(self.counts) or bool(self.skipped_ranges)


class LaneFiller(NamedTuple):
    """What a lane gives in the place of a pack when none of its sources has one."""

    ends: tuple[LaneEnd, ...] = ()
    """As those of a pack; each end is told once, here or with a pack."""
    waits: bool = False
    """Whether the lane has packs again in a later stage of the run; else it is over."""


class LanePosition(NamedTuple):
    """Where a lane continues in one source. A tuple, because a stream makes one for every pack."""

    cursor: Cursor = Cursor()
    packs: int = 0
    """How many packs the lane has given, of the source that this is the position in; without fillers."""
    documents: int = 0
    """How many documents these packs have passed."""
    num_skipped: int = 0
    """What the lane has skipped since the start of the run."""
    skipped_ranges: frozenset[SkippedRange] = frozenset()
    """What it has skipped and may meet again after a resume."""

    def after(self, pack: LanePack) -> "LanePosition":
        """The position after the lane's next pack."""
        new = pack.skipped_ranges
        return LanePosition(
            pack.cursor,
            self.packs + 1,
            self.documents + pack.counts.documents,
            self.num_skipped + len(new),
            self.skipped_ranges
            if not (new or self.skipped_ranges)
            else known_after(self.skipped_ranges, new, pack.cursor),
        )


def known_after(
    known: Iterable[SkippedRange], new: Iterable[SkippedRange], cursor: Sequence[int]
) -> frozenset[SkippedRange]:
    """The skipped ranges that a lane may still meet after a resume at `cursor`."""
    here = tuple(cursor[:2])
    return frozenset(each for each in (*known, *new) if each[:2] >= here)


def advance_rows(rows: "NDArray[np.int64]", lanes: "NDArray[np.intp]", changes: "NDArray[np.int64]") -> None:
    """Move lanes past n packs, in place: a lane's cursor becomes that of its last pack, all else is added up.

    Args:
        rows: int64 [L, C], one row for each lane: its cursor, then numbers such as packs, counts or a digest.
        lanes: [n], for each pack the row of its lane; packs of one lane come in its order.
        changes: int64 [n, C], for each pack the cursor after it, then what it adds to the numbers. Sums wrap around.
    """
    last = dict(zip(lanes.tolist(), range(len(lanes)), strict=True))  # the last pack of each lane
    if len(last) == len(lanes):
        after = rows.take(lanes, axis=0) + changes
        after[:, :NUM_CURSOR] = changes[:, :NUM_CURSOR]
        rows[lanes] = after
    else:
        np.add.at(rows[:, NUM_CURSOR:], lanes, changes[:, NUM_CURSOR:])
        rows[list(last), :NUM_CURSOR] = changes[list(last.values()), :NUM_CURSOR]
