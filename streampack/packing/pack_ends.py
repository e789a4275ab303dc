"""Where packs end, one class for each kind of packing.

In:  where each document that comes ends, as numbers of rows counted from the first one that was ever fed.
Out: the row after each of the next packs.
Never: a look at tokens or labels.
"""

from collections import deque
from collections.abc import Sequence
from typing import Protocol

from streampack.packing.options import PackingKind


class PackEnds(Protocol):
    """The interface of a kind of packing to the packer."""

    def add(self, begin: int, ends: Sequence[int]) -> None:
        """Documents have come: the first one has the rows from `begin` on, and each of them ends before its `ends`."""

    def take(self, begin: int, end: int, at_most: int) -> list[int]:
        """Return the row after each of the next full packs, the first of which begins with row `begin`.

        Rows before `end` have come, or may be used. Each pack is given once.
        """


class WrapEnds:
    """A pack every seq_len rows, wherever documents end."""

    def __init__(self, seq_len: int) -> None:
        self._seq_len = seq_len

    def add(self, begin: int, ends: Sequence[int]) -> None:
        """Nothing to note."""

    def take(self, begin: int, end: int, at_most: int) -> list[int]:
        size = self._seq_len
        return [begin + size * number for number in range(1, 1 + min((end - begin) // size, at_most))]


class NextFitEnds:
    """Whole documents in order of arrival; one that does not fit into the open pack begins the next one."""

    def __init__(self, seq_len: int) -> None:
        self._seq_len = seq_len
        self._closed: deque[int] = deque()  # the row after each pack that can take no other document
        self._open_rows = 0  # rows after the last of these

    def add(self, begin: int, ends: Sequence[int]) -> None:
        size = self._seq_len
        for end in ends:
            if self._open_rows + end - begin <= size:
                self._open_rows += end - begin
                if self._open_rows == size:
                    self._closed.append(end)
            else:  # it does not fit: a pack of its own, or several full ones and what is left
                if self._open_rows:
                    self._closed.append(begin)
                self._closed.extend(range(begin + size, end + 1, size))
                self._open_rows = end - begin
            self._open_rows %= size
            begin = end

    def take(self, begin: int, end: int, at_most: int) -> list[int]:
        return [self._closed.popleft() for _ in range(min(len(self._closed), at_most))]


def make_pack_ends(kind: PackingKind | str, seq_len: int) -> PackEnds:
    """Return the `PackEnds` of a kind of packing."""
    return WrapEnds(seq_len) if kind is PackingKind.WRAP else NextFitEnds(seq_len)
