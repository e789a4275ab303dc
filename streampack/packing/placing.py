"""Best fit decreasing: which pack each of some pieces goes into.

In:  how many rows each piece has, at most seq_len.
Out: the number of its pack, for each piece.
Invariant: the result depends on the sizes and their order alone. Pieces are taken largest first, equal ones in their
order; each goes into the pack in which it leaves the fewest rows free, among equal ones into the last that came to
that number of free rows, and into a new pack if none has room.

    seq_len 8    pieces  5 3 6 2 4      largest first: 6 5 4 3 2
    pack 0       6 2                    6 opens it; 2 fills it
    pack 1       5 3                    5 opens it; 3 fills it
    pack 2       4
"""

import numpy as np
from numpy.typing import NDArray


def place(sizes: NDArray[np.int64], seq_len: int) -> tuple[NDArray[np.int64], int]:
    """Return the pack of each piece, int64 [n], and how many packs there are; sizes are [n], 1 to `seq_len`.

    O(n log n) for the sort; then the same few operations for each piece, however many packs are open.
    """
    order = np.argsort(-sizes, kind="stable")
    packs: list[int] = []
    room = _Room(seq_len)
    with_room: dict[int, list[int]] = {}  # free rows -> the packs that have so many
    num_packs = 0
    for size in sizes[order].tolist():
        free = room.smallest(size)
        if free:
            there = with_room[free]
            pack = there.pop()
            if not there:
                room.remove(free)
        else:
            free, pack = seq_len, num_packs
            num_packs += 1
        packs.append(pack)
        left = free - size
        if left:
            there = with_room.setdefault(left, [])
            if not there:
                room.add(left)
            there.append(pack)
    found = np.empty(len(sizes), np.int64)
    found[order] = packs
    return found, num_packs


class _Room:
    """A set of numbers from 1 to a largest one, as bits in words, with a bit for each word that has any.

    A search looks at two words whatever the set holds; each has as many bits as the root of the largest number.
    """

    def __init__(self, largest: int) -> None:
        self._shift = (largest.bit_length() + 1) // 2
        self._low = (1 << self._shift) - 1
        self._words = [0] * ((largest >> self._shift) + 1)
        self._used = 0

    def add(self, number: int) -> None:
        high = number >> self._shift
        self._words[high] |= 1 << (number & self._low)
        self._used |= 1 << high

    def remove(self, number: int) -> None:
        high = number >> self._shift
        self._words[high] ^= 1 << (number & self._low)
        if not self._words[high]:
            self._used ^= 1 << high

    def smallest(self, least: int) -> int:
        """The smallest number that is not below `least`; 0: none."""
        high = least >> self._shift
        low = least & self._low
        word = self._words[high] >> low
        if not word:
            used = self._used >> (high + 1)
            if not used:
                return 0
            high += (used & -used).bit_length()
            low, word = 0, self._words[high]
        return (high << self._shift) + low + (word & -word).bit_length() - 1
