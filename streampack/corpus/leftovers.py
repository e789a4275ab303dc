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
    """What one lane had left of one epoch, or a stretch of it. Offsets are those of a `Section`."""

    num_lanes: int
    """Of the lanes by which it was cut."""
    lane: int
    """Which of them had it."""
    epoch: int
    joins: int
    """1: up to `head` it is read right after the leftover before it, by the same lane: their packing window is one."""
    begin: int
    head: int
    """What is before this offset is read by one lane; `begin` where nothing of it was opened."""
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
_NOT_BEGUN = {"joins": 0, **Leftover._field_defaults}
"""Of a leftover that begins with a group that nobody has begun."""


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
            unit: number of lanes by which something was cut -> bytes of an offset.
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
    """The epoch as which they read it."""
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
    """As `LeftoversOfLanes.rows`, of all lanes; `units`: bytes of an offset, by the number of lanes that cut it."""
    if not len(rows):
        return np.zeros((0, 2 + rows.shape[1]), np.int64)
    epochs = rows[:, _COLUMN["epoch"]]
    unit = np.vectorize(units.__getitem__, otypes=[np.int64])(rows[:, _COLUMN["num_lanes"]])
    begins = [
        _begins(rows, np.flatnonzero(epochs == epoch), unit, num_lanes=num_lanes, window=window)
        for epoch in np.unique(epochs)
    ]
    row, start, lane = _last_of_each(np.concatenate(begins)).T
    is_first = start == rows[row, _COLUMN["begin"]]
    leader = np.where(is_first, _leaders(rows)[row], row)
    lane_of_row = np.zeros(len(rows), np.int64)
    lane_of_row[row[is_first]] = lane[is_first]
    lane = np.where(is_first, lane_of_row[leader], lane)

    found = np.concatenate([lane[:, None], row[:, None], rows[row]], axis=1)
    columns = {name: found[:, 2 + index] for name, index in _COLUMN.items()}
    columns["begin"][:] = start
    is_next = np.append(row[1:] == row[:-1], False)
    columns["stop"][is_next] = start[1:][is_next[:-1]]
    columns["head"][:] = np.clip(columns["head"], start, columns["stop"])
    for name, value in _NOT_BEGUN.items():
        columns[name][~is_first] = value
    # A lane begins with what is inside a document or a packing window; a leftover comes right after the one it joins.
    breaks = is_first & ((rows[leader, _COLUMN["row"]] > 0) | (rows[leader, _COLUMN["given"]] > 0))
    dealt: NDArray[np.int64] = found[np.lexsort((start, row, leader, epochs[leader], ~breaks, lane))]
    return dealt


def _begins(
    rows: NDArray[np.int64], own: NDArray[np.int64], unit: NDArray[np.int64], *, num_lanes: int, window: int
) -> NDArray[np.int64]:
    """Where lanes begin to read the leftovers of one epoch, which are laid end to end and cut into equal parts.

    Args:
        rows: all leftovers.
        own: [n] the rows of this epoch.
        unit: [len(rows)] bytes of an offset of each.
        num_lanes: how many parts.
        window: blocks that are read together, at least 1.

    Returns:
        int64 [m, 3]: row, offset and lane. Of several at one offset the highest lane has it.
    """
    joins, begin, head, stop = (rows[own, _COLUMN[name]] for name in ("joins", "begin", "head", "stop"))
    unit = unit[own]
    ends = np.cumsum((stop - begin) * unit)
    before = ends - (stop - begin) * unit
    lanes, total = np.arange(num_lanes, dtype=np.int64), int(ends[-1])
    cuts = lanes * (total // num_lanes) + lanes * (total % num_lanes) // num_lanes

    whole = own, begin, np.searchsorted(cuts, before, side="right") - 1
    # A cut inside a leftover moves to the next group, and out of what is opened.
    which = np.searchsorted(before, cuts, side="right") - 1
    offset = begin[which] + -(-(cuts - before[which]) // unit[which])
    offset = np.maximum(-(-offset // window) * window, head[which])
    is_inside = (offset > begin[which]) & (offset < stop[which]) & (cuts > before[which])
    inside = own[which[is_inside]], offset[is_inside], lanes[is_inside]
    # What comes after a packing window that a leftover joins is cut like any other.
    has_rest = (joins == 1) & (head < stop)
    at = before + (head - begin) * unit
    rest = own[has_rest], head[has_rest], np.searchsorted(cuts, at[has_rest], side="right") - 1
    return np.concatenate([np.stack(each, axis=1) for each in (whole, inside, rest)])


def _last_of_each(begins: NDArray[np.int64]) -> NDArray[np.int64]:
    """As `_begins` gives them, in order, of several at one offset the last one."""
    row, offset, lane = begins.T
    begins = begins[np.lexsort((lane, offset, row))]
    is_last = np.append((begins[1:, :2] != begins[:-1, :2]).any(axis=1), True)
    last: NDArray[np.int64] = begins[is_last]
    return last


def _leaders(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64 [len(rows)]: whose lane reads the beginning of a row: that of the last row up to it that joins none."""
    is_joined = rows[:, _COLUMN["joins"]] == 1
    leaders: NDArray[np.int64] = np.maximum.accumulate(np.where(is_joined, 0, np.arange(len(rows))))
    return leaders
