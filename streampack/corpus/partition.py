"""Who reads what: bytes to lanes, lanes to ranks and workers, packs to global numbers. Arithmetic on integers only.

In:    the size of every shard, and the order of the shards in an epoch.
Out:   the pieces of shards that a lane reads in the epoch, and who owns the lane.
Never: a lane whose content depends on ranks or workers; they only divide the lanes among themselves.

    the epoch's line of shards    |---- shard 7 ----|- 2 -|------ shard 4 ------|--- 0 ---|      T bytes
    lane l of L reads the bytes   [l*T//L, (l+1)*T//L)          (a shard that is not cut: the lane of its first byte)

    global pack i = pack i // L of lane i % L;   rank r of R hands out every i with i % R == r   (L % R == 0)
    so rank r owns the lanes r, r + R, ...;   worker w of W owns every W-th of those, from the w-th on
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from streampack.errors import TopologyError
from streampack.hashing import Purpose, permutation

_MB = 10**6
_AUTO = tuple((lanes, 8 * _MB) for lanes in (1, 2, 4, 6, 12, 24, 60, 120, 240, 480, 960, 1920, 3840, 7680)) + tuple(
    (lanes, 1000 * _MB) for lanes in (15360, 30720, 61440)
)


class Piece(NamedTuple):
    """The part of one shard that one lane reads: the samples of the bytes [begin, end), or the shard as a whole."""

    shard: int
    begin: int
    end: int
    whole: bool


class EpochLine:
    """The shards of one epoch laid end to end; finds the pieces of any lane in O(log shards + pieces)."""

    def __init__(self, sizes: NDArray[np.int64], whole: NDArray[np.bool_], order: NDArray[np.int64]) -> None:
        """`sizes` int64 [N] bytes and `whole` bool [N] by shard index; `order` int64 [N], a permutation of 0..N-1."""
        self._order = order
        self._whole = whole
        self._starts = np.zeros(len(order) + 1, dtype=np.int64)
        np.cumsum(sizes[order], out=self._starts[1:])

    @property
    def total_bytes(self) -> int:
        return int(self._starts[-1])

    def pieces(self, lane: int, num_lanes: int) -> list[Piece]:
        """The lane's pieces, in reading order."""
        return [piece for _, piece in self.between(*lane_share(lane, num_lanes, self.total_bytes))]

    def between(self, begin: int, end: int) -> list[tuple[int, Piece]]:
        """The pieces of the bytes [begin, end) of the line, in reading order, each with the byte where it begins."""
        if begin >= end:
            return []
        first = int(np.searchsorted(self._starts, begin, side="right")) - 1
        last = int(np.searchsorted(self._starts, end, side="left"))
        found = []
        for index in range(first, last):
            shard = int(self._order[index])
            start, stop = int(self._starts[index]), int(self._starts[index + 1])
            if not self._whole[shard]:
                piece = Piece(shard, max(begin - start, 0), min(end, stop) - start, whole=False)
                found.append((start + piece.begin, piece))
            elif begin <= start:
                found.append((start, Piece(shard, 0, stop - start, whole=True)))
        return found


_Lane = TypeVar("_Lane", int, "NDArray[np.int64]")


def lane_share(lane: _Lane, num_lanes: int, total: int) -> tuple[_Lane, _Lane]:
    """The range of so many bytes or blocks that a lane has, or each of many, as (the first, the one after the last)."""
    return lane * total // num_lanes, (lane + 1) * total // num_lanes


def shard_order(*, seed: int, epoch: int, num_shards: int, shuffle: bool) -> NDArray[np.int64]:
    """The order of the shards in an epoch: int64 [num_shards], shuffled by a counter-based hash or as listed."""
    if not shuffle:
        return np.arange(num_shards, dtype=np.int64)
    return permutation(Purpose.SHARD_ORDER, seed, epoch, count=num_shards)


AUTO_LANES = tuple(lanes for lanes, _ in _AUTO)
"""The numbers of lanes that `auto_num_lanes` chooses from, ascending."""


def auto_num_lanes(total_bytes: int) -> int:
    """The number of lanes for a corpus: the largest of a fixed ladder that leaves each lane enough bytes.

    It depends on the data alone, so that every topology comes to the same number; the ladder's numbers have many
    divisors, so that many numbers of ranks fit.
    """
    return max((lanes for lanes, share in _AUTO if lanes * share <= total_bytes), default=1)


def check_ranks(*, num_lanes: int, num_ranks: int) -> None:
    """Raise `TopologyError` unless every lane can belong to one rank, naming the nearest numbers that fit."""
    if num_lanes < 1 or num_ranks < 1:
        raise TopologyError(f"num_lanes={num_lanes} and dp_size={num_ranks} must both be at least 1")
    if num_lanes % num_ranks:
        below = max(ranks for ranks in fitting_ranks(num_lanes) if ranks < num_ranks)
        above = min((ranks for ranks in fitting_ranks(num_lanes) if ranks > num_ranks), default=None)
        fits = str(below) if above is None else f"{below} or {above}"
        multiple = num_lanes - num_lanes % num_ranks
        lanes = " or ".join(str(n) for n in (multiple, multiple + num_ranks) if n)
        raise TopologyError(
            f"{num_ranks} data-parallel ranks do not divide num_lanes={num_lanes}: each lane belongs to one rank. "
            f"Run on {fits} rank{'' if fits == '1' else 's'}, or with num_lanes={lanes}: a new run takes that as an "
            "argument, and the state of one that has begun gets it by streampack.relane or `streampack relane`."
        )


def fitting_ranks(num_lanes: int) -> list[int]:
    """Every number of data-parallel ranks that divides the lanes, ascending."""
    small = [n for n in range(1, int(num_lanes**0.5) + 1) if num_lanes % n == 0]
    return sorted({*small, *(num_lanes // n for n in small)})


def rank_lanes(rank: int, num_ranks: int, num_lanes: int) -> range:
    """The lanes that a rank owns, in the order in which it takes packs from them."""
    return range(rank, num_lanes, num_ranks)


def worker_lanes(lanes: Sequence[int], worker: int, num_workers: int) -> Sequence[int]:
    """Those of a rank's lanes that one of its workers reads."""
    return lanes[worker::num_workers]


def packs_before(global_pack: int, lane: int, num_lanes: int) -> int:
    """How many packs of a lane have global numbers below `global_pack`."""
    return max(0, -((lane - global_pack) // num_lanes))
