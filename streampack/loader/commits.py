"""What a loader has handed out: its lanes' rows, batch by batch, and the way back behind the last batches.

In:    batches, each when it is handed out or gone past; the end of a pass; a state's rows.
Out:   the committed rows, as they are now or were some batches ago.
Never: a row of what workers have made ahead.
"""

from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streampack.errors import StateError
from streampack.loader.passes import LastWords
from streampack.loader.rounds import Batch
from streampack.state.checkpoint import FIELDS, PACKS, Committed

BATCHES_BACK = 8
"""How many batches back a state can be asked for."""

_DOCUMENTS = FIELDS.index("documents")
_FILLER = np.zeros(len(FIELDS), dtype=np.int64)
_FILLER[[PACKS, FIELDS.index("fillers")]] = 1
_SKIPPED = np.zeros_like(_FILLER)
_SKIPPED[[PACKS, FIELDS.index("skipped_packs")]] = 1


class Commits:
    """The committed rows of a rank's lanes, and what the last batches changed in them."""

    def __init__(self, rows: Committed) -> None:
        self.rows = rows
        self._undos: deque[_Undo] = deque(maxlen=BATCHES_BACK)

    def add(self, batch: Batch, *, skipped: bool = False) -> None:
        """Commit a batch that is handed out; `skipped`: gone past, in no digest and no other count.

        But documents count in any case: a rate of bad records (`max_skipped`) is one of all that a lane has met.
        """
        rows = self.rows
        changes: dict[int, NDArray[np.int64]] = {}
        num_skipped_ranges: dict[int, int] = {}
        for item in batch.items:
            if item is None:
                continue
            _, place, pack, *_ = item
            if pack is None:
                change = _FILLER.copy()
                change[:PACKS] = changes.get(place, rows.rows[place])[:PACKS]  # the lane stays where it is
            else:
                change = pack.message.changes[pack.number]
                if skipped:
                    change = _gone_past(change)
                if pack.message.skipped_ranges and (skipped_ranges := pack.skipped_ranges):
                    num_skipped_ranges.setdefault(place, len(rows.skipped_ranges[place]))
                    rows.skipped_ranges[place].extend(skipped_ranges)
            changes[place] = _both(changes[place], change) if place in changes else change
        places = np.array(list(changes), dtype=np.intp)
        before = rows.add(places, np.array(list(changes.values()), dtype=np.int64).reshape(len(places), len(FIELDS)))
        self._undos.append(_Undo(places, before, num_skipped_ranges, rows.global_pack))
        rows.global_pack = batch.global_pack

    def end_pass(self, last_words: Mapping[int, LastWords], *, epochs: int) -> None:
        """All ranks are at the end: what came after the lanes' last packs counts, and the next epoch begins."""
        rows = self.rows
        for place, (packs, counts) in last_words.items():
            if rows.packs(place) >= packs:  # else the lane was cut before its last pack
                rows.count(place, counts)
        rows.end_pass(rows.first_epoch + epochs)
        self._undos.clear()

    def before(self, num_batches: int, *, ahead: int) -> Committed:
        """The rows as they were `num_batches` before those `ahead` that a trainer holds unused; a copy if any.

        Raises:
            StateError: so far back, nothing is known.
        """
        if not num_batches and not ahead:
            return self.rows
        if not 0 <= num_batches <= len(self._undos) - ahead:
            raise StateError(
                f"batches_back={num_batches}: this loader can go back {len(self._undos) - ahead} batches "
                f"now (at most {BATCHES_BACK}, and none before the start, a load or the end of a pass)"
            )
        rows = self.rows.copy()
        for undo in list(self._undos)[::-1][: num_batches + ahead]:
            undo.apply(rows)
        return rows

    def take_back(self, num_batches: int) -> None:
        """Go back behind the last batches, as if they had not been handed out."""
        for _ in range(num_batches):
            self._undos.pop().apply(self.rows)


def _gone_past(change: NDArray[np.int64]) -> NDArray[np.int64]:
    """What is left of a pack's change where it is gone past."""
    left = _SKIPPED.copy()
    left[:PACKS] = change[:PACKS]
    left[_DOCUMENTS] = change[_DOCUMENTS]
    return left


def _both(first: NDArray[np.int64], then: NDArray[np.int64]) -> NDArray[np.int64]:
    """The changes of two packs of one lane."""
    both = first + then
    both[:PACKS] = then[:PACKS]
    return both


class _Undo(NamedTuple):
    """What a batch has changed, to go back behind it."""

    places: NDArray[np.intp]
    rows: NDArray[np.int64]
    """What stood at the places."""
    num_skipped_ranges: dict[int, int]
    """By place, where there are more now."""
    global_pack: int

    def apply(self, committed: Committed) -> None:
        committed.rows[self.places] = self.rows
        for place, count in self.num_skipped_ranges.items():
            del committed.skipped_ranges[place][count:]
        committed.global_pack = self.global_pack
