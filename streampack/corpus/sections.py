"""What a lane reads without a seam: its share of an epoch, or a leftover of lanes that it had before.

In:    pieces, the lane by which they were cut, and where the lane of the run has them.
Out:   where a piece of the lane stands among those of the lane by which it was cut; which pieces are read together.
Never: a byte of a shard.

    pieces of the lane     0  1  2  3 | 4  5  6 | 7 ...           as its cursor counts them, over all its sections
    section 1                           4  5  6                   base 4
    cut by lane 7 of 12              14 15 16                     first 14: in groups of 4, so 4 and 5 are read together
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from streampack.corpus.partition import Piece
from streampack.records import Cursor


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Pieces of one epoch that a lane reads one after the other.

    An **offset** is where something stands on the epoch's line: with blocks the index of a piece among those of the
    lane by which they were cut, else a byte of all shards laid end to end.
    """

    num_lanes: int
    """By which it was cut."""
    lane: int
    """Of these."""
    window: int
    """Blocks that are read together; 0: the pieces are no blocks."""
    epoch: int
    """Whose order it has; `begin.epoch` is that of the lane's cursor."""
    pieces: Sequence[Piece]
    offsets: Sequence[int]
    """[len(pieces)]: where each begins."""
    stop: int
    """The offset after the last piece."""
    begin: Cursor
    """Where the lane begins to read it: `piece` is the lane's index of its first piece."""
    head: int = 0
    """What is before this offset is read by one lane, whatever becomes of the rest."""
    number: int = -1
    """The row of `Leftovers` that it is from; -1: it is the share of an epoch."""
    joins: bool = False
    """Whether the packing window that is half out in the section before it reaches into this one."""

    @property
    def base(self) -> int:
        """The lane's index of the first piece."""
        return self.begin.piece

    @property
    def end(self) -> int:
        """The lane's index after the last piece."""
        return self.begin.piece + len(self.pieces)

    def as_cut(self, piece: int) -> int:
        """The index of a piece of the lane among those of the lane by which it was cut; with blocks only."""
        return piece - self.base + self.offsets[0]

    def last_together(self, piece: int) -> int:
        """The last piece of the lane that is read together with this one: of its window's group, if that is whole."""
        if not self.window:
            return piece
        return min(piece + self.window - 1 - self.as_cut(piece) % self.window, self.end - 1)

    def offset(self, piece: int, sample: int) -> int:
        """Where the lane begins to read, if that is with a sample of one of its pieces (-1: with the first one)."""
        index = piece - self.base
        if index == len(self.pieces):
            return self.stop
        at = self.offsets[index]
        if self.window or self.pieces[index].whole or sample < 0:
            return at
        # A piece has the whole sample that its end falls into, and perhaps one that begins right after its end.
        return at + min(max(sample - self.pieces[index].begin, 0), self._size(index) - 1)

    def after(self, piece: int, sample: int) -> int:
        """The offset after all that is read together with a sample (-1: a piece)."""
        index = piece - self.base
        if index >= len(self.pieces):
            return self.stop
        if self.window:
            return self.offsets[self.last_together(piece) - self.base] + 1
        whole = self.pieces[index].whole or sample < 0
        return self.offsets[index] + self._size(index) if whole else min(self.offset(piece, sample) + 1, self.stop)

    def _size(self, index: int) -> int:
        return self.pieces[index].end - self.pieces[index].begin

    def at(self, offset: int) -> tuple[int, int]:
        """The lane's piece that has an offset, and the byte of its shard (with blocks, and in shards read whole, 0)."""
        low, high = 0, len(self.pieces)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.offsets[middle] <= offset else (low, middle)
        is_byte = not (self.window or self.pieces[low].whole)
        return self.base + low, self.pieces[low].begin + offset - self.offsets[low] if is_byte else 0


def with_ends_of_windows(sections: Sequence[Section]) -> list[Section]:
    """Sections of a lane whose cursors tell where the packing windows end that are half out where they begin."""
    found = list(sections)
    for index, section in enumerate(found):
        if section.begin.given:
            last = [section, *takewhile(lambda each: each.joins, found[index + 1 :])][-1]
            piece, sample = last.at(last.head - 1)
            begin = section.begin._replace(until=section.begin.epoch + 1, last=piece, last_sample=sample)
            found[index] = replace(section, begin=begin)
    return found
