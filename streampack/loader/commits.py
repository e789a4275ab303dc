"""What a loader has handed out: the committed rows of its lanes, batch by batch, and how to undo the last batches.

In:    batches, each when it is handed out or skipped; the end of a pass; the rows of a state.
Out:   the committed rows, as they are now or were some batches ago.
Never: a row of what workers have made ahead.
"""

from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streampack.errors import StateError
from streampack.lanes.position import NUM_CURSOR
from streampack.loader.messages import COLUMNS
from streampack.loader.passes import LastWords
from streampack.loader.rounds import PackBatch
from streampack.state.checkpoint import FIELDS, PACKS, Committed

BATCHES_BACK = 8
"""How many batches back a state can be asked for."""

_COLUMN_OF = np.array([0 if name == "packs" else COLUMNS.index(name) for name in FIELDS])
"""For each column of a checkpoint, the column of a message; messages have none for packs, whose 0 is not used."""
_DOCUMENTS = FIELDS.index("documents")
_SKIPPED_PACKS = FIELDS.index("skipped_packs")


class Commits:
    """The committed rows of a rank's lanes, and what the last batches changed in them."""

    def __init__(self, committed: Committed) -> None:
        self.committed = committed
        self._undos: deque[_Undo] = deque(maxlen=BATCHES_BACK)

    def commit(self, batch: PackBatch, *, skipped: bool = False) -> None:
        """Commit a batch that is handed out, or `skipped`: then it is in no digest and counts as skipped packs only.

        Its documents count in any case: a fraction `max_bad` is of all documents that a lane has met.
        """
        committed = self.committed
        lanes: list[int] = []
        changes: list[NDArray[np.int64]] = []
        fillers: list[int] = []
        num_skipped_ranges: dict[int, int] = {}
        for item in batch.items:
            if item is None:
                continue
            _, lane_index, pack, *_ = item
            if pack is None:
                fillers.append(lane_index)
                continue
            lanes.append(lane_index)
            changes.append(pack.message.changes[pack.number])
            if pack.message.skipped_ranges and (skipped_ranges := pack.skipped_ranges):
                num_skipped_ranges.setdefault(lane_index, len(committed.skipped_ranges[lane_index]))
                committed.skipped_ranges[lane_index].extend(skipped_ranges)
        touched = np.array(lanes + fillers, dtype=np.intp)
        before = committed.rows.take(touched, axis=0)
        self._undos.append(_Undo(touched, before, num_skipped_ranges, committed.global_pack))
        if lanes:
            advance = to_checkpoint(np.array(changes))
            committed.add(touched[: len(lanes)], _only_skipped(advance) if skipped else advance)
        if fillers:
            committed.add_fillers(touched[len(lanes) :])
        committed.global_pack = batch.global_pack

    def end_pass(self, last_words: Mapping[int, LastWords], *, epochs: int) -> None:
        """All ranks have ended the pass: count what came after the lanes' last packs, and begin the next epoch."""
        committed = self.committed
        for lane_index, (packs, counts) in last_words.items():
            if committed.packs(lane_index) >= packs:  # else the lane was cut before its last pack
                committed.count(lane_index, counts)
        committed.end_pass(committed.first_epoch + epochs)
        self._undos.clear()

    def before(self, num_batches: int, *, ahead: int) -> Committed:
        """The rows `num_batches` before the `ahead` batches that a trainer holds unused; a copy unless both are 0.

        Raises:
            StateError: the loader cannot go back so many batches.
        """
        if not num_batches and not ahead:
            return self.committed
        if not 0 <= num_batches <= len(self._undos) - ahead:
            raise StateError(
                f"batches_back={num_batches}: this loader can go back {len(self._undos) - ahead} batches "
                f"now (at most {BATCHES_BACK}, and not past the start, a load or the end of a pass)"
            )
        committed = self.committed.copy()
        for undo in list(self._undos)[::-1][: num_batches + ahead]:
            undo.apply(committed)
        return committed

    def take_back(self, num_batches: int) -> None:
        """Undo the last batches, as if they had not been handed out."""
        for _ in range(num_batches):
            self._undos.pop().apply(self.committed)


def to_checkpoint(changes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows of messages, int64 [n, len(COLUMNS)], as rows of a checkpoint, int64 [n, len(FIELDS)]: one pack each."""
    rows: NDArray[np.int64] = changes.take(_COLUMN_OF, axis=1)
    rows[:, PACKS] = 1
    return rows


def _only_skipped(changes: NDArray[np.int64]) -> NDArray[np.int64]:
    """What is left of the changes of packs that are skipped."""
    left = np.zeros_like(changes)
    left[:, :NUM_CURSOR] = changes[:, :NUM_CURSOR]
    left[:, _DOCUMENTS] = changes[:, _DOCUMENTS]
    left[:, [PACKS, _SKIPPED_PACKS]] = 1
    return left


class _Undo(NamedTuple):
    """What a batch has changed, to undo it."""

    lanes: NDArray[np.intp]
    """Indexes of the rows, once for each pack of the batch."""
    rows: NDArray[np.int64]
    """Those rows as they were before the batch."""
    num_skipped_ranges: dict[int, int]
    """How many there were before the batch, for each lane that has more now."""
    global_pack: int

    def apply(self, committed: Committed) -> None:
        committed.rows[self.lanes] = self.rows
        for lane_index, count in self.num_skipped_ranges.items():
            del committed.skipped_ranges[lane_index][count:]
        committed.global_pack = self.global_pack
