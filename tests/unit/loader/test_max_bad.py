"""The bound on what a whole run skips: one rank, several ranks that add up, and ranks that cannot."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from streampack.errors import ShardError
from streampack.lanes.position import REST_OF_PIECE, LaneEnd, SkippedRange
from streampack.loader.adding import SharedCount
from streampack.loader.dealing import Item, PackRef
from streampack.loader.max_bad import MaxBad
from streampack.loader.messages import COLUMNS
from streampack.records import Counts
from streampack.state.checkpoint import Committed

LAST = SkippedRange(0, 7, 7, 5120, 5121, 3)


class Store:
    """The number that the ranks share."""

    def __init__(self) -> None:
        self.total = 0

    def add(self, amount: int) -> int:
        self.total += amount
        return self.total


def bound(max_bad: float, store: Store | None = None, *, num_ranks: int = 1) -> MaxBad:
    add_up = None if store is None else store.add
    return MaxBad(max_bad, num_ranks=num_ranks, shared=SharedCount(add_up), url_of=lambda shard: f"s3://b/{shard}.tar")


def check(of: MaxBad, num_bad: int, num_documents: int = 1000, last: Any = LAST) -> None:
    of.check(num_bad=num_bad, num_documents=num_documents, lane=4, last=last)


def test_what_is_too_much_is_an_error_that_says_where_the_last_one_is() -> None:
    one = bound(3)
    check(one, 3)
    with pytest.raises(ShardError) as caught:
        check(one, 4)
    assert str(caught.value).startswith(
        "s3://b/7.tar: the run has skipped 4 bad records or shards, more than max_bad=3; the last of them is in lane "
        "4: record 3 of the sample at 5120. The batch with it is not handed out."
    )
    with pytest.raises(ShardError, match="the rest of a broken shard"):
        check(one, 4, last=LAST._replace(record=REST_OF_PIECE))


def test_ranks_add_up_and_a_batch_that_comes_again_counts_once() -> None:
    store = Store()
    first, second = bound(5, store, num_ranks=2), bound(5, store, num_ranks=2)
    check(first, 2)
    check(first, 3)
    check(first, 2)  # the batch was taken back
    check(first, 3)
    check(second, 2)
    assert store.total == 5
    with pytest.raises(ShardError, match="the run has skipped 6 bad"):
        check(second, 3)
    with pytest.raises(ShardError, match="the run has skipped 6 bad"):  # it is met again
        check(second, 3)


def test_what_a_state_brings_is_told_before_anything_new_is_skipped() -> None:
    store = Store()
    first, second = bound(5, store, num_ranks=2), bound(5, store, num_ranks=2)
    assert first._shared.tell(4) == 4
    with pytest.raises(ShardError, match="the run has skipped 6 bad"):
        check(second, 2)


def test_a_fraction_is_of_the_documents_of_all_ranks_and_allows_ten_in_any_case() -> None:
    one = bound(0.01)
    check(one, 10, 11)
    check(one, 20, 2000)
    with pytest.raises(ShardError, match="skipped 21 bad records or shards of about 2000 documents"):
        check(one, 21, 2000)
    store = Store()
    first = bound(0.01, store, num_ranks=4)
    check(first, 40, 1000)
    with pytest.raises(ShardError, match="of about 4000 documents"):
        check(first, 41, 1000)


def test_a_rank_whose_store_is_gone_counts_by_itself() -> None:
    def gone(_: int) -> int:
        raise RuntimeError("connection closed")

    alone = MaxBad(3, num_ranks=2, shared=SharedCount(gone), url_of=str)
    check(alone, 3)
    with pytest.raises(ShardError, match="the run has skipped 4"):
        check(alone, 4)


def test_the_pack_that_is_too_much_is_an_error_in_its_place_and_what_was_not_handed_out_is_taken_back() -> None:
    store = Store()
    one = bound(2, store)
    committed = Committed.fresh(range(1), 1)

    def items(bad: list[int]) -> Iterator[Item]:
        changes = np.zeros((6, len(COLUMNS)), np.int64)
        message: Any = SimpleNamespace(changes=changes, skipped_ranges=[(number, LAST) for number in bad])
        for number in range(6):
            yield Item(number, 0, PackRef(message, number, slice(0)))

    given = list(one.watch(items([1, 3, 3, 5]), committed))
    assert [item.round for item in given] == [0, 1, 2, 3]
    assert given[3].pack is None
    assert isinstance(given[3].error, ShardError)
    assert all(item.error is None for item in given[:3])
    assert store.total == 3
    assert len(list(one.watch(items([4]), committed))) == 6
    assert store.total == 1


def test_what_a_lane_skips_after_its_last_pack_counts_once() -> None:
    end = LaneEnd(Counts(documents=5, bad_records=2), (LAST, LAST))
    items = [Item(0, 0, None, (end,)), Item(1, 0, None)]
    committed = Committed.fresh(range(1), 1)
    assert list(bound(2).watch(iter(items), committed)) == items
    first, *rest = bound(1).watch(iter(items), committed)
    assert not rest
    assert isinstance(first.error, ShardError)
    assert (first.pack, first.ends) == (None, ())
