"""The blocks of all shards, and which of them a lane reads in an epoch. Arithmetic on integers only.

In:    the size of every shard, the size of a block, a seed.
Out:   the pieces of a lane in an epoch: blocks, in the epoch's own order.
Never: a number that is kept for each block, but where there are few: 100 TB have 400 million of them.

    listed order      |0 |1 |2 |3 |4 || 5 |6 |7 || 8      || 9 |10|    blocks, numbered shard by shard
                       shard 0          shard 1     whole    shard 3    (a shard that cannot be cut is one block)
    an epoch's order   the numbers 0 .. N-1 through a keyed bijection
    lane l of L        has those that come as number [l*N//L, (l+1)*N//L)
"""

import functools
from collections.abc import Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from streampack.corpus.partition import Piece, lane_share
from streampack.corpus.spans import Spans
from streampack.hashing import Bijection, Purpose

_AT_ONCE = 256
"""Pieces that are computed together: a step for many costs little more than for one."""
_FEW = 2**13
"""Of so few blocks the whole order is computed, once for all lanes: they have few blocks each."""


class BlockLine:
    """The blocks of all shards, numbered; the same in every epoch."""

    def __init__(
        self, sizes: NDArray[np.int64], whole: NDArray[np.bool_], block_bytes: int, spans: Spans | None = None
    ) -> None:
        """`sizes` int64 [shards] bytes, `whole` bool [shards]: those that are one block; or of spans of shards."""
        self._spans = spans
        self._sizes = sizes
        self._whole = whole
        self._block_bytes = block_bytes
        self._firsts = np.zeros(len(sizes) + 1, dtype=np.int64)
        np.cumsum(np.where(whole, 1, -(-sizes // block_bytes)), out=self._firsts[1:])

    @property
    def num_blocks(self) -> int:
        return int(self._firsts[-1])

    def pieces(
        self, lane: int, num_lanes: int, *, seed: int, epoch: int, within: slice = slice(None)
    ) -> "BlockPieces":
        """The lane's blocks of the epoch, in reading order, or those `within` of them."""
        share = range(*lane_share(lane, num_lanes, self.num_blocks))
        return BlockPieces(self, share[within], seed=seed, epoch=epoch)

    def blocks(self, numbers: NDArray[np.int64]) -> list[Piece]:
        """The blocks with these numbers."""
        shards = np.searchsorted(self._firsts, numbers, side="right") - 1
        whole, sizes = self._whole[shards], self._sizes[shards]
        begins = np.where(whole, 0, (numbers - self._firsts[shards]) * self._block_bytes)
        ends = np.where(whole, sizes, np.minimum(begins + self._block_bytes, sizes))
        pieces = list(map(Piece, shards.tolist(), begins.tolist(), ends.tolist(), whole.tolist()))
        return pieces if self._spans is None else self._spans.placed(pieces)


class BlockPieces(Sequence[Piece]):
    """The blocks that one lane reads in one epoch, computed as they are asked for."""

    def __init__(self, line: BlockLine, share: range, *, seed: int, epoch: int) -> None:
        """`share`: the places of the epoch's order that the lane has."""
        self._line = line
        self._share = share
        self._words = seed, epoch, max(line.num_blocks, 1)
        self._order = _order(*self._words)
        self._made: list[Piece] = []
        self._made_from = 0

    def __len__(self) -> int:
        return len(self._share)

    @overload
    def __getitem__(self, index: int) -> Piece: ...
    @overload
    def __getitem__(self, index: slice) -> list[Piece]: ...
    def __getitem__(self, index: int | slice) -> Piece | list[Piece]:
        if isinstance(index, slice):
            return [self[each] for each in range(len(self))[index]]
        index = range(len(self))[index]
        if not 0 <= index - self._made_from < len(self._made):
            self._made_from = index // _AT_ONCE * _AT_ONCE
            places = self._share[self._made_from : self._made_from + _AT_ONCE]
            if self._order.count <= _FEW:
                numbers = _whole_order(*self._words)[places.start : places.stop]
            else:
                numbers = self._order.of(np.arange(places.start, places.stop, dtype=np.int64))
            self._made = self._line.blocks(numbers)
        return self._made[index - self._made_from]


@functools.lru_cache(maxsize=64)
def _order(seed: int, epoch: int, count: int) -> Bijection:
    """Of some hundred bytes, and the same for all lanes."""
    return Bijection(Purpose.BLOCK_ORDER, seed, epoch, count=count)


@functools.lru_cache(maxsize=8)
def _whole_order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    return _order(seed, epoch, count).of(np.arange(count, dtype=np.int64))
