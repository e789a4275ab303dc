"""What a loader has handed out: the committed rows of its lanes, and what each of the last batches added to them.

In:    batches, each when it is handed out or skipped; the end of a pass; the rows of a state.
Out:   the committed rows as they are now or were some batches ago; their counts and digest.
Never: a row of what workers have made ahead; a record that is altered after it was committed.

    base rows  <-  batch  <-  batch  <- ... <-  batch        all of it hangs on one reference
      ^ rows before the oldest batch              ^ handed out last

A change makes new records beside the old ones and then moves the reference, in one assignment. So an exception of a
signal handler finds the state from before a batch or from after it, and so does another thread that asks for the
state meanwhile. The oldest batches are added to a copy of the base some at a time, so that a batch costs no copy of all
rows.
"""

from collections.abc import Sequence, Sized
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streampack.errors import LoaderError, StateError
from streampack.lanes.position import NUM_CURSOR, LaneEnd, SkippedRange
from streampack.loader.messages import COLUMNS
from streampack.loader.passes import LastWords
from streampack.loader.rounds import PackBatch
from streampack.records import Cursor
from streampack.state.checkpoint import DIGEST, FIELDS, NUM_SKIPPED, PACKS, Committed

BATCHES_BACK = 8
"""How many batches back a state can be asked for."""
_KEPT = 16
"""Batches that are not added to the base yet: those back, and what a trainer has taken ahead."""
_MOST_KEPT = 32

_COLUMN_OF = np.array([COLUMNS.index(name) if name in COLUMNS else 0 for name in FIELDS])
"""For each column of a checkpoint, the column of a message; what they do not have is filled in."""
_DOCUMENTS = FIELDS.index("documents")
_SKIPPED_PACKS = FIELDS.index("skipped_packs")


class Change(NamedTuple):
    """What one batch, or some, change in the rows of its rank's lanes, once it is committed."""

    row_indexes: NDArray[np.intp]
    """[n]: the row of each pack, and of each source that was found without one in a lane."""
    rows: NDArray[np.int64]
    """int64 [n, len(FIELDS)]: what each of them changes, as `advance_rows` takes it."""
    fillers: NDArray[np.intp]
    """The index of the lane of each filler that has a global number."""
    skipped_ranges: Sequence[tuple[int, SkippedRange]]
    """(row, what was skipped for the first time there while a pack was made)."""
    global_pack: int
    waiting_round: int | None = None
    """The round of the first filler of a lane that waits for a later stage, if there is one."""

    @classmethod
    def of(
        cls, batch: PackBatch, end_epochs: Sequence[int | None], *, num_sources: int, skipped: bool = False
    ) -> "Change":
        """Of a batch that is handed out, or `skipped`: then it is in no digest and counts as skipped packs only.

        Its documents count in any case: a fraction `max_bad` is of all documents that were met.

        Args:
            batch: some of whose packs and fillers may come with sources that have ended in their lanes.
            end_epochs: of each source of the run, where it goes on when it has ended.
            num_sources: for each lane there are so many rows.
            skipped: whether the trainer does not get the batch.
        """
        row_indexes: list[int] = []
        changes: list[NDArray[np.int64] | list[int]] = []
        fillers: list[int] = []
        skipped_ranges: list[tuple[int, SkippedRange]] = []
        ended: list[tuple[int, LaneEnd]] = []
        waiting_round: int | None = None
        for item in batch.items:
            if item is None:
                continue
            number_of_round, lane_index, pack, ends, _, waits = item
            for end in ends:
                ended.append((len(changes), end))
                row_indexes.append(lane_index * num_sources + end.source)
                changes.append([*Cursor(epoch=end_epochs[end.source] or 0), 0, *end.counts])
            if pack is None:
                fillers.append(lane_index)
                if waits and waiting_round is None:
                    waiting_round = number_of_round
                continue
            message, number, _ = pack
            row_indexes.append(lane_index if num_sources == 1 else lane_index * num_sources + pack.source)
            changes.append(message.changes[number])
            if message.skipped_ranges:
                skipped_ranges += [(len(changes) - 1, skipped_range) for skipped_range in pack.skipped_ranges]
        rows = to_checkpoint(np.array(changes, dtype=np.int64).reshape(len(changes), len(COLUMNS)))
        for index, _ in skipped_ranges:
            rows[index, NUM_SKIPPED] += 1
        left = _only_skipped(rows) if skipped else rows
        for index, end in ended:
            left[index] = rows[index]
            left[index, PACKS], left[index, NUM_SKIPPED] = 0, len(end.skipped_ranges)
        return cls(
            row_indexes=np.array(row_indexes, dtype=np.intp),
            rows=left,
            fillers=np.array(fillers, dtype=np.intp),
            skipped_ranges=[(row_indexes[index], skipped_range) for index, skipped_range in skipped_ranges],
            global_pack=batch.global_pack,
            waiting_round=waiting_round,
        )

    @classmethod
    def joined(cls, changes: "Sequence[Change]") -> "Change":
        """What some batches change, one after the other."""
        row_indexes, rows, fillers, skipped_ranges, global_packs, waiting = zip(*changes, strict=True)
        return cls(
            np.concatenate(row_indexes),
            np.concatenate(rows),
            np.concatenate(fillers),
            [each for of_batch in skipped_ranges for each in of_batch],
            global_packs[-1],
            next((number for number in waiting if number is not None), None),
        )

    def apply(self, committed: Committed) -> None:
        if len(self.row_indexes):
            committed.add(self.row_indexes, self.rows)
        if len(self.fillers):
            committed.add_fillers(self.fillers)
        for row, skipped_range in self.skipped_ranges:
            committed.skipped_ranges[row] += (skipped_range,)
        committed.global_pack = self.global_pack


class Standing(NamedTuple):
    """All that is committed; neither it nor what it holds is ever altered."""

    base: Committed
    """Before the oldest of `changes`."""
    changes: tuple[Change, ...] = ()
    num_batches: int = 0
    left_out_packs: int = 0
    ahead: Sized = ()
    """What a trainer has taken and not used yet: so many of the last changes. The trainer's, who may alter it."""

    @property
    def global_pack(self) -> int:
        return self.changes[-1].global_pack if self.changes else self.base.global_pack


class Commits:
    """The committed rows of a rank's lanes; may be read from any thread, and changed by one at a time."""

    def __init__(self, committed: Committed) -> None:
        """`committed`: the rows to begin with; they belong to this object from now on."""
        self._standing = Standing(committed)

    # -- reading: each reads the reference once ------------------------------------------------------------------------

    @property
    def standing(self) -> Standing:
        """All that is committed, to compare with later."""
        return self._standing

    @property
    def lanes(self) -> range:
        """The rank's lanes."""
        return self._standing.base.lanes

    @property
    def num_lanes(self) -> int:
        """Over all ranks."""
        return self._standing.base.num_lanes

    @property
    def num_sources(self) -> int:
        """For each lane there are so many rows."""
        return len(self._standing.base.sources)

    @property
    def first_epoch(self) -> int:
        """The epoch with which the current pass began."""
        return self._standing.base.first_epoch

    @property
    def global_pack(self) -> int:
        """All global packs below this one have been handed out, over all ranks."""
        return self._standing.global_pack

    @property
    def num_batches(self) -> int:
        """Batches handed out since this object was made; those skipped are not counted."""
        return self._standing.num_batches

    @property
    def left_out_packs(self) -> int:
        """Packs that the passes since this object was made have left out at their ends."""
        return self._standing.left_out_packs

    @property
    def num_ahead(self) -> int:
        """Batches that a trainer has taken and not used yet."""
        return len(self._standing.ahead)

    def digest(self) -> int:
        """The lanes' digests added up modulo 2**64, as an int64."""
        standing = self._standing
        digests = [np.array([standing.base.digest()]), *(change.rows[:, DIGEST] for change in standing.changes)]
        return int(np.concatenate(digests).sum(dtype=np.int64))

    def committed(self, batches_back: int = 0) -> Committed:
        """A copy of the rows as they were `batches_back` before those batches that a trainer holds unused.

        Raises:
            StateError: the loader cannot go back so many batches.
        """
        standing = self._standing
        ahead = len(standing.ahead)
        furthest = min(len(standing.changes) - ahead, BATCHES_BACK)
        if not 0 <= batches_back <= max(furthest, 0):
            raise StateError(
                f"batches_back={batches_back}: this loader can go back {max(furthest, 0)} batches "
                f"now (at most {BATCHES_BACK}, and not past the start, a load or the end of a pass)"
            )
        if ahead > len(standing.changes):
            raise StateError(
                f"the trainer holds {ahead} batches that it has taken ahead, and the loader can take back "
                f"{len(standing.changes)}: let it take fewer ahead (up to {BATCHES_BACK})"
            )
        return _applied(standing.base, standing.changes[: len(standing.changes) - ahead - batches_back])

    def latest(self) -> Committed:
        """A copy of the rows after all batches, also those that a trainer holds unused."""
        standing = self._standing
        return _applied(standing.base, standing.changes)

    # -- changing: each moves the reference once, as its last step -----------------------------------------------------

    def _move(self, before: Standing, after: Standing) -> None:
        # A signal handler may have changed them since `before` was read. It runs after a call or a jump back, so none
        # comes between this look and the move.
        if self._standing is not before:
            raise LoaderError(
                "the state was changed by another call, as a signal handler may do, while a batch was made: the batch "
                "is not handed out, and the state is good"
            )
        self._standing = after

    def commit(self, change: Change, *, after: Standing, skipped: bool = False) -> None:
        """Commit a batch that is handed out, or `skipped`.

        `after`: what was committed when it was made; a `LoaderError` where anything has changed since.
        """
        standing = after
        base, changes = standing.base, (*standing.changes, change)
        if len(changes) > _MOST_KEPT:
            base, changes = _applied(base, changes[:-_KEPT]), changes[-_KEPT:]
        num_batches = standing.num_batches + (not skipped)
        self._move(standing, standing._replace(base=base, changes=changes, num_batches=num_batches))

    def withdraw(self, change: Change) -> None:
        """Take the last batch back, if it is this one."""
        standing = self._standing
        if standing.changes and standing.changes[-1] is change:
            before = standing._replace(changes=standing.changes[:-1], num_batches=standing.num_batches - 1)
            if self._standing is standing:  # else other rows were loaded
                self._standing = before

    def end_pass(
        self,
        last_words: Sequence[LastWords],
        end_epochs: Sequence[int | None],
        *,
        after: Standing,
        next_epoch: int | None,
        left_out_packs: int,
    ) -> None:
        """All ranks have ended the pass: count what came after the lanes' last packs, and begin the next epoch.

        Args:
            last_words: of lanes that are over; those count whose last pack was handed out, and no filler after it.
            end_epochs: of each source of the run.
            after: as for `commit`.
            next_epoch: that of the next pass; None: each source stays where it is.
            left_out_packs: packs that the pass has made and not handed out.
        """
        standing = after
        committed = _applied(standing.base, standing.changes)
        for words in last_words:
            # Else the lane was cut before its last pack, or the words were committed with the filler after it.
            if committed.packs(words.lane_index) == words.packs:
                for end in words.ends:
                    committed.end_source(words.lane_index, end, end_epochs[end.source] or 0)
        committed.end_pass(next_epoch)
        left_out_packs += standing.left_out_packs
        self._move(standing, standing._replace(base=committed, changes=(), left_out_packs=left_out_packs))

    def load(self, committed: Committed) -> None:
        """Go to other rows; what this object has counted since it was made stays."""
        self._standing = self._standing._replace(base=committed, changes=(), ahead=())

    def hold(self, ahead: Sized) -> None:
        """From now on the batches in `ahead` do not count as handed out."""
        standing = self._standing
        self._move(standing, standing._replace(ahead=ahead))

    def take_back(self) -> None:
        """Let the batches that a trainer holds unused come again."""
        standing = self._standing
        changes = standing.changes[: max(len(standing.changes) - len(standing.ahead), 0)]
        self._move(standing, standing._replace(changes=changes, ahead=()))


def _applied(base: Committed, changes: Sequence[Change]) -> Committed:
    committed = base.copy()
    if changes:
        Change.joined(changes).apply(committed)
    committed.prune()
    return committed


def to_checkpoint(changes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows of messages, int64 [n, len(COLUMNS)], as rows of a checkpoint, int64 [n, len(FIELDS)]: one pack each."""
    rows: NDArray[np.int64] = changes.take(_COLUMN_OF, axis=1)
    rows[:, PACKS], rows[:, NUM_SKIPPED] = 1, 0
    return rows


def _only_skipped(changes: NDArray[np.int64]) -> NDArray[np.int64]:
    """What is left of the changes of packs that are skipped."""
    left = np.zeros_like(changes)
    left[:, :NUM_CURSOR] = changes[:, :NUM_CURSOR]
    left[:, [_DOCUMENTS, NUM_SKIPPED]] = changes[:, [_DOCUMENTS, NUM_SKIPPED]]
    left[:, [PACKS, _SKIPPED_PACKS]] = 1
    return left
