"""What a loader has handed out: its lanes' rows, batch by batch, and the way back behind the last batches.

In:    batches, each when it is handed out or gone past; the end of a pass; a state's rows.
Out:   the committed rows, as they are now or were some batches ago.
Never: a row of what workers have made ahead.
"""

from collections import deque
from collections.abc import Mapping

import numpy as np

from streampack.errors import StateError
from streampack.passes import LastWords
from streampack.rounds import Batch
from streampack.state import Committed, Row
from streampack.stats import Counts

BATCHES_BACK = 8
"""How many batches back a state can be asked for."""

_FILLER = np.zeros(1 + len(Counts._fields), dtype=np.int64)
_FILLER[1 + Counts._fields.index("fillers")] = 1
_PASSED_OVER = np.zeros_like(_FILLER)
_PASSED_OVER[1 + Counts._fields.index("passed_over")] = 1
_DOCUMENTS = 1 + Counts._fields.index("documents")


class Commits:
    """The committed rows of a rank's lanes, and what the last batches changed in them."""

    def __init__(self, rows: Committed) -> None:
        self.rows = rows
        self._undos: deque[_Undo] = deque(maxlen=BATCHES_BACK)

    def add(self, batch: Batch, *, passed_over: bool = False) -> None:
        """Commit a batch that is handed out; `passed_over`: gone past, in no digest and no other count.

        But documents count in any case: a rate of bad records (`max_skipped`) is one of all that a lane has met.
        """
        rows = self.rows
        items = [item for item in batch.items if item is not None]
        self._undos.append(_Undo(rows, sorted({item.place for item in items})))
        for item in items:
            if item.pack is None:
                rows.add(item.place, Row(None, _FILLER))
                continue
            message, index, _ = item.pack
            counts = message.digest_and_counts[index]
            if passed_over:
                documents, counts = counts[_DOCUMENTS], _PASSED_OVER.copy()
                counts[_DOCUMENTS] = documents
            rows.add(item.place, Row(message.cursors[index], counts))
            if message.holes:
                rows.holes[item.place].extend(item.pack.holes)
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


class _Undo:
    """What a batch changed, to go back behind it."""

    def __init__(self, committed: Committed, places: list[int]) -> None:
        self._places = places
        self._rows = committed.rows[places].copy()
        self._num_holes = [len(committed.holes[place]) for place in places]
        self._global_pack = committed.global_pack

    def apply(self, committed: Committed) -> None:
        committed.rows[self._places] = self._rows
        for place, count in zip(self._places, self._num_holes, strict=True):
            del committed.holes[place][count:]
        committed.global_pack = self._global_pack
