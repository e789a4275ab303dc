"""One piece of work for each shard, in this process or side by side in several: whole shards, the largest first.

In: a function of (index, shard, tell) that can be pickled; it calls `tell` now and then with how many more of the
shard's bytes are done. Out: (index, what it gave) for each shard, in any order.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from streampack.corpus.processes import Advance, each_item, num_cores
from streampack.corpus.table import ShardTable
from streampack.records import Shard

_Result = TypeVar("_Result")
_Result_co = TypeVar("_Result_co", covariant=True)


class Work(Protocol[_Result_co]):
    """What is done with one shard; `tell` may raise to stop it."""

    def __call__(self, index: int, shard: Shard, *, tell: Callable[[int], None]) -> _Result_co: ...


class Added:
    """Adds up the progress of sources that are read one after the other."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance
        self._bytes_before = self._shards_before = 0

    def advance(self, bytes_done: int, shards_done: int) -> None:
        """So many bytes and shards of the present source are done."""
        self._advance(self._bytes_before + bytes_done, self._shards_before + shards_done)

    def next_source(self, num_bytes: int, num_shards: int) -> None:
        """The present source, of this size, is done: from here on `advance` is about the next one."""
        self._bytes_before += num_bytes
        self._shards_before += num_shards


class _OfItem(NamedTuple, Generic[_Result]):
    """The work of an (index, shard)."""

    work: Work[_Result]

    def __call__(self, item: tuple[int, Shard], *, tell: Callable[[int], None]) -> _Result:
        return self.work(*item, tell=tell)


def num_processes(asked: int | None, table: ShardTable) -> int:
    """As many as asked for, else one per core that this process may use; never more than shards."""
    return min(asked or num_cores(), len(table))


def each_shard(
    work: Work[_Result], table: ShardTable, indexes: Sequence[int], *, workers: int, advance: Advance
) -> Iterator[tuple[int, _Result]]:
    """What `work` gives for each of the shards with these indexes."""
    order = list(indexes)
    if workers > 1:
        chosen = np.asarray(indexes, dtype=np.int64)
        order = chosen[np.argsort(-table.sizes[chosen], kind="stable")].tolist()  # none large is left
    items = ((index, table[index]) for index in order)
    for (index, _), result in each_item(_OfItem(work), items, workers=workers, advance=advance):
        yield index, result
