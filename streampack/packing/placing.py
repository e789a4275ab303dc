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
    with_room: dict[int, list[int]] = {}  # free rows -> the packs that have so many
    # The numbers of free rows that some pack has, as bits in words, with a bit in `used` for each word that has any. So
    # a search looks at two words whatever there is; each has as many bits as the root of seq_len. It is spelled out
    # here because this loop is most of what best fit costs.
    shift = (seq_len.bit_length() + 1) // 2
    low = (1 << shift) - 1
    words = [0] * ((seq_len >> shift) + 1)
    used = 0
    num_packs = 0
    for size in sizes[order].tolist():
        high = size >> shift
        word = words[high] >> (size & low)
        if word:
            free = size + (word & -word).bit_length() - 1
        else:
            later = used >> high >> 1
            if later:
                high += (later & -later).bit_length()
                word = words[high]
                free = (high << shift) + (word & -word).bit_length() - 1
            else:
                free = 0
        if free:
            there = with_room[free]
            pack = there.pop()
            if not there:
                words[high] ^= 1 << (free & low)
                if not words[high]:
                    used ^= 1 << high
        else:
            free, pack = seq_len, num_packs
            num_packs += 1
        packs.append(pack)
        left = free - size
        if left:
            if left in with_room:
                with_room[left].append(pack)
            else:
                with_room[left] = [pack]
            high = left >> shift
            words[high] |= 1 << (left & low)
            used |= 1 << high
    found = np.empty(len(sizes), np.int64)
    found[order] = packs
    return found, num_packs
