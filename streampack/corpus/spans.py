"""The bytes of each shard that are in one part of the corpus, where cells of the shards are held out.

In:    the table of shards, and which part is read.
Out:   spans of the shards, in listed order; lanes and blocks are cut out of them as if each were a shard.
Never: a choice that depends on the seed, the epoch, the order of the shards, folders, or ranks and workers.

    shard       |  0  |  1  |  2  |  3  |  4  | 5|      cells of 1 MiB, on a grid of their own; 2 and 3 are held out
    "val"                   |===========|               a span
    "train"     |===========|           |========|      two spans

Where a span ends inside a plain tar, its reader reads on to the end of the sample that the cut falls into, and the next
one begins with the sample after it: as between lanes, so each sample is in one part. A shard that cannot be cut is one
cell.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streampack.corpus.partition import Piece
from streampack.corpus.table import ShardTable
from streampack.documents.split import HoldOut
from streampack.errors import ConfigError
from streampack.hashing import hash_cells

CELL_BYTES = 2**20
"""Of a shard: what is held out together. It never changes, or another part of the corpus would be held out."""


class Spans(NamedTuple):
    """Parts of shards, in listed order."""

    shards: NDArray[np.int64]
    """int64 [n]: the index of each one's shard."""
    begins: NDArray[np.int64]
    """int64 [n]."""
    sizes: NDArray[np.int64]
    """int64 [n] bytes."""
    whole: NDArray[np.bool_]
    """bool [n]: the shard cannot be cut, and the span is all of it."""

    @classmethod
    def of(cls, table: ShardTable, hold_out: HoldOut) -> "Spans":
        """Those of one part of the corpus, `hold_out.part`; computed once for a table.

        Raises:
            ConfigError: the part is empty.
        """
        found: Spans | None = table.derived.get(hold_out)
        if found is None:
            found = table.derived[hold_out] = cls._of(table, hold_out)
        return found

    @classmethod
    def _of(cls, table: ShardTable, hold_out: HoldOut) -> "Spans":
        shards: list[int] = []
        edges: list[NDArray[np.int64]] = []
        for shard in range(len(table)):
            wanted = (_hashes(table, shard) < np.uint64(hold_out.limit)) == (hold_out.part == "val")
            found = np.flatnonzero(np.diff(wanted, prepend=False, append=False))  # where each run begins and ends
            shards += [shard] * (len(found) // 2)
            edges.append(found)
        if not shards:
            raise ConfigError(_empty(table, hold_out))
        indexes = np.array(shards, dtype=np.int64)
        ranges = np.concatenate(edges).reshape(-1, 2) * CELL_BYTES
        whole, ends = table.whole[indexes], table.sizes[indexes]
        begins = np.where(whole, 0, ranges[:, 0])
        return cls(indexes, begins, np.where(whole, ends, np.minimum(ranges[:, 1], ends)) - begins, whole)

    @classmethod
    def all(cls, table: ShardTable) -> "Spans":
        """All of each shard."""
        return cls(np.arange(len(table)), np.zeros(len(table), np.int64), table.sizes, table.whole)

    @property
    def total_bytes(self) -> int:
        """The sizes added up."""
        return int(self.sizes.sum())

    def in_order(self, order: NDArray[np.int64]) -> NDArray[np.int64]:
        """The indexes of the spans, int64 [n], where the shards come in an order: int64 [shards]."""
        places = np.empty_like(order)
        places[order] = np.arange(len(order))
        return np.argsort(places[self.shards], kind="stable")

    def placed(self, pieces: list[Piece]) -> list[Piece]:
        """Pieces of spans, with the span's index in the place of the shard's, as pieces of the shards."""
        found = []
        for span, begin, end, whole in pieces:
            first = int(self.begins[span])
            found.append(Piece(int(self.shards[span]), first + begin, first + end, whole))
        return found


def _hashes(table: ShardTable, shard: int) -> NDArray[np.uint64]:
    """The hash of each cell of a shard, of which one without bytes has one, too."""
    count = 1 if table.whole[shard] else max(-(-int(table.sizes[shard]) // CELL_BYTES), 1)
    return hash_cells(table.names[shard].rpartition("/")[2], count=count)


def _empty(table: ShardTable, hold_out: HoldOut) -> str:
    """Why a part has no cell, and which fraction would do."""
    hashes = np.concatenate([_hashes(table, shard) for shard in range(len(table))])
    cells = f"{len(hashes)} cells of 1 MiB (a shard that cannot be cut is one)"
    is_val = hold_out.part == "val"
    text = (
        f"hold_out: fraction={hold_out.fraction!r} by block holds out {'none' if is_val else 'all'} of the {cells} "
        f"that these shards have, so that there is nothing to {'validate' if is_val else 'train'} on. "
    )
    few = 'more or larger shards, or by="document"'
    if len(hashes) == 1:
        return f"{text}One cell is in one part: use {few}"
    # The digits that are shown must do: rounded away from the hash that decides.
    edge = int(hashes.min() if is_val else hashes.max()) / 2**64
    digits = 2 - math.floor(math.log10(edge)) if edge > 0 else 20
    wanted = (math.floor(edge * 10**digits) + 1) / 10**digits if is_val else math.floor(edge * 10**digits) / 10**digits
    return f"{text}A fraction of {'at least' if is_val else 'at most'} {wanted:g} would do; or use {few}"
