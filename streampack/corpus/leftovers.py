"""What the lanes of a run had left when it was given another number of lanes, and who of the new lanes reads it.

In:    for each lane that there was, what it had left of each epoch that any lane had begun.
Out:   the sections that each new lane reads, as one epoch: the last one of them. The epochs after it are cut as ever.
Never: a window, of the shuffle or of the packing, that two lanes share; a choice that depends on ranks or workers.

    old lane 0     |......####|====|====|          #: a window that is opened, which goes whole to one new lane
    old lane 1     |..####|====|====|====|         =: groups of blocks, or bytes, that nobody has begun
    cut in 3           |####|====|  |====|####|  |====|====|====|

Each epoch is cut into as many equal parts as there are new lanes. A new lane first reads what begins inside a document
or a packing window: where that comes later, the pack before it ends there, and is padded.
"""

import base64
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Leftover(NamedTuple):
    """What one lane had left of one epoch, or some of it that follows each other. Places are those of a `Section`."""

    num_lanes: int
    """Of the lanes by which it was cut."""
    lane: int
    """Which of them had it."""
    epoch: int
    joins: int
    """1: up to `head` it is read right after the leftover before it, by the same lane: their packing window is one."""
    begin: int
    head: int
    """What is before this place is read by one lane; `begin` where nothing of it was opened."""
    stop: int
    sample: int = -1
    """This and what follows: where its reading begins, as in a `Cursor`."""
    record: int = 0
    place: int = 0
    part: int = 0
    row: int = 0
    given: int = 0
    stage: int = 0
    rest: int = 0


_COLUMN = {name: index for index, name in enumerate(Leftover._fields)}


class Leftovers(NamedTuple):
    """All of one source."""

    epoch: int
    """The last epoch that any lane had begun; the new lanes read all that is left as this one."""
    text: str
    """What is left, packed: a table of some bytes for each row, as most columns differ little from row to row."""

    @classmethod
    def of(cls, epoch: int, leftovers: Iterable[Leftover]) -> "Leftovers":
        """`leftovers`: by epoch, then lane by lane."""
        rows = np.array(list(leftovers), dtype=np.int64).reshape(-1, len(Leftover._fields))
        steps = np.diff(rows, axis=0, prepend=np.zeros((1, rows.shape[1]), np.int64))
        return cls(epoch, base64.b64encode(zlib.compress(steps.T.astype("<i8").tobytes(), 6)).decode("ascii"))

    def rows(self) -> NDArray[np.int64]:
        """int64 [n, len(Leftover._fields)].

        Raises:
            ValueError: the text is not what `of` wrote.
        """
        try:
            steps = np.frombuffer(zlib.decompress(base64.b64decode(self.text, validate=True)), "<i8")
        except zlib.error as error:
            raise ValueError(str(error)) from error
        return np.cumsum(steps.reshape(len(Leftover._fields), -1).T, axis=0, dtype=np.int64)

    def dealt(
        self, lanes: Iterable[int], num_lanes: int, *, window: int, unit: Callable[[int], int]
    ) -> "LeftoversOfLanes":
        """What some of the run's lanes read of it.

        Args:
            lanes: which ones.
            num_lanes: of the run.
            window: blocks that are read together; 0: the pieces are no blocks.
            unit: number of lanes by which something was cut -> bytes of a place.
        """
        rows = self.rows()
        cut_by = np.unique(rows[:, _COLUMN["num_lanes"]]).tolist()
        dealt = _deal(rows, num_lanes, window or 1, {number: unit(number) for number in cut_by})
        wanted = np.isin(dealt[:, 0], np.fromiter(lanes, np.int64))
        return LeftoversOfLanes(self.epoch, tuple(cut_by), dealt[wanted])


@dataclass(frozen=True, slots=True, eq=False)
class LeftoversOfLanes:
    """Which of the leftovers of a source some lanes read."""

    epoch: int
    """As which they read it."""
    num_lanes: tuple[int, ...]
    """Numbers of lanes by which some of it was cut."""
    rows: NDArray[np.int64]
    """int64 [n, 2 + len(Leftover._fields)], by lane: the lane, its row in `Leftovers.rows()`, and what it has of it."""

    def of_lane(self, lane: int) -> list[tuple[int, Leftover]]:
        """What a lane reads, in order, each with the row of `Leftovers.rows()` that it is from."""
        first, stop = np.searchsorted(self.rows[:, 0], [lane, lane + 1]).tolist()
        return [(row[1], Leftover(*row[2:])) for row in self.rows[first:stop].tolist()]

    def lanes_of(self, numbers: Iterable[int]) -> list[int]:
        """The lanes that read something of these rows of `Leftovers.rows()`."""
        lanes: list[int] = np.unique(self.rows[np.isin(self.rows[:, 1], list(numbers)), 0]).tolist()
        return lanes


def _deal(rows: NDArray[np.int64], num_lanes: int, window: int, units: Mapping[int, int]) -> NDArray[np.int64]:
    """As `LeftoversOfLanes.rows`, of all lanes; `units`: bytes of a place, by the number of lanes that cut it."""
    if not len(rows):
        return np.zeros((0, 2 + rows.shape[1]), np.int64)
    epochs, joins, begin, head, stop = (rows[:, _COLUMN[name]] for name in ("epoch", "joins", "begin", "head", "stop"))
    unit = np.vectorize(units.__getitem__, otypes=[np.int64])(rows[:, _COLUMN["num_lanes"]])
    size = (stop - begin) * unit
    index = np.arange(len(rows))
    anchor = np.maximum.accumulate(np.where(joins == 0, index, 0))
    owners, parts, froms = [], [], []
    for epoch in np.unique(epochs):
        own = np.flatnonzero(epochs == epoch)
        ends = np.cumsum(size[own])
        before = ends - size[own]
        total, numbers = int(ends[-1]), np.arange(num_lanes, dtype=np.int64)
        cuts = numbers * (total // num_lanes) + numbers * (total % num_lanes) // num_lanes
        owners.append(np.searchsorted(cuts, before, side="right") - 1)
        parts.append(own)
        froms.append(begin[own])
        # Cuts inside a leftover move to the next group, and out of what is opened.
        which = np.searchsorted(before, cuts, side="right") - 1
        place = begin[own][which] + -(-(cuts - before[which]) // unit[own][which])
        place = np.maximum(-(-place // window) * window, head[own][which])
        is_inside = (place > begin[own][which]) & (place < stop[own][which]) & (cuts > before[which])
        owners.append(numbers[is_inside])
        parts.append(own[which[is_inside]])
        froms.append(place[is_inside])
        # What comes after a packing window that a leftover joins is cut like any other.
        joined = own[(joins[own] == 1) & (head[own] < stop[own])]
        at = before[np.searchsorted(own, joined)] + (head[joined] - begin[joined]) * unit[joined]
        owners.append(np.searchsorted(cuts, at, side="right") - 1)
        parts.append(joined)
        froms.append(head[joined])
    owner, part, start = map(np.concatenate, (owners, parts, froms))
    order = np.lexsort((owner, start, part))
    owner, part, start = owner[order], part[order], start[order]
    # Of several that begin at one place the last one has it.
    is_last = np.append((part[1:] != part[:-1]) | (start[1:] != start[:-1]), True)
    owner, part, start = owner[is_last], part[is_last], start[is_last]
    is_next = np.append(part[1:] == part[:-1], False)
    end = np.where(is_next, np.append(start[1:], 0), stop[part])
    is_first = start == begin[part]
    follows = is_first & (joins[part] == 1)  # goes where the leftover goes that it joins
    leads = np.where(follows, anchor[part], part)
    first_owner = np.zeros(len(rows), np.int64)
    first_owner[part[is_first]] = owner[is_first]
    owner = np.where(follows, first_owner[leads], owner)
    breaks = is_first & ((rows[leads, _COLUMN["row"]] > 0) | (rows[leads, _COLUMN["given"]] > 0))
    order = np.lexsort((start, part, leads, epochs[leads], ~breaks, owner))
    found = np.concatenate([owner[:, None], part[:, None], rows[part]], axis=1)
    at = 2 + _COLUMN["begin"]
    found[:, at], found[:, at + 2] = start, end
    found[:, at + 1] = np.clip(head[part], start, end)
    later = ~is_first  # it begins with a group that nobody has begun
    found[later, 2 + _COLUMN["sample"] :] = Leftover(*[0] * _COLUMN["sample"])[_COLUMN["sample"] :]
    found[later, 2 + _COLUMN["joins"]] = 0
    dealt: NDArray[np.int64] = found[order]
    return dealt
