"""Who reads what, as arithmetic: for every number of lanes each byte is read once, and every pack has one owner."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streampack.corpus.partition import (
    EpochLine,
    Piece,
    auto_num_lanes,
    check_ranks,
    fitting_ranks,
    lane_share,
    packs_before,
    rank_lanes,
    shard_order,
    worker_lanes,
)
from streampack.errors import TopologyError

MB = 10**6
GB = 10**9


@st.composite
def lines(draw: st.DrawFn) -> tuple[list[int], list[bool], list[int]]:
    """Sizes and whole flags by shard, and an order of the shards."""
    sizes = draw(st.lists(st.integers(1, 3000), min_size=1, max_size=12))
    whole = draw(st.lists(st.booleans(), min_size=len(sizes), max_size=len(sizes)))
    return sizes, whole, draw(st.permutations(range(len(sizes))))


def line(sizes: list[int], whole: list[bool] | None = None, order: list[int] | None = None) -> EpochLine:
    return EpochLine(
        np.array(sizes, dtype=np.int64),
        np.array([False] * len(sizes) if whole is None else whole),
        np.array(range(len(sizes)) if order is None else order, dtype=np.int64),
    )


def test_three_shards_on_four_lanes() -> None:
    epoch = line([100, 50, 250], whole=[False, True, False], order=[2, 1, 0])
    assert epoch.total_bytes == 400
    assert [epoch.pieces(lane, 4) for lane in range(4)] == [
        [Piece(2, 0, 100, False)],
        [Piece(2, 100, 200, False)],
        [Piece(2, 200, 250, False), Piece(1, 0, 50, True)],  # it starts in this range, so it comes here as a whole
        [Piece(0, 0, 100, False)],
    ]


def test_a_lane_without_a_byte_or_a_whole_shards_start_has_no_piece() -> None:
    assert [line([2]).pieces(lane, 4) for lane in range(4)] == [
        [],
        [Piece(0, 0, 1, False)],
        [],
        [Piece(0, 1, 2, False)],
    ]
    whole = line([1000, 10], whole=[True, True])
    assert [len(whole.pieces(lane, 4)) for lane in range(4)] == [1, 0, 0, 1]


@given(lines(), st.integers(1, 40))
def test_for_every_number_of_lanes_the_pieces_are_the_line_in_order(
    shards: tuple[list[int], list[bool], list[int]], num_lanes: int
) -> None:
    sizes, whole, order = shards
    epoch = line(sizes, whole, order)
    pieces = [piece for lane in range(num_lanes) for piece in epoch.pieces(lane, num_lanes)]
    assert all(piece.begin < piece.end for piece in pieces)
    at = 0
    for shard in order:
        if whole[shard]:
            assert pieces[at] == Piece(shard, 0, sizes[shard], True)
            at += 1
            continue
        reached = 0
        while reached < sizes[shard]:
            assert pieces[at] == Piece(shard, reached, pieces[at].end, False)
            reached = pieces[at].end
            at += 1
        assert reached == sizes[shard]
    assert at == len(pieces)


@given(lines(), st.integers(1, 40))
def test_lanes_of_plain_shards_differ_by_one_byte_at_most(
    shards: tuple[list[int], list[bool], list[int]], num_lanes: int
) -> None:
    sizes, _, order = shards
    epoch = line(sizes, None, order)
    lengths = [sum(piece.end - piece.begin for piece in epoch.pieces(lane, num_lanes)) for lane in range(num_lanes)]
    assert max(lengths) - min(lengths) <= 1


@given(lines(), st.integers(1, 40))
def test_a_whole_shard_belongs_to_the_lane_in_whose_range_it_starts(
    shards: tuple[list[int], list[bool], list[int]], num_lanes: int
) -> None:
    sizes, _, order = shards
    epoch = line(sizes, [True] * len(sizes), order)
    start = 0
    for shard in order:
        owner = next(
            lane
            for lane in range(num_lanes)
            if lane_share(lane, num_lanes, sum(sizes))[0] <= start < lane_share(lane, num_lanes, sum(sizes))[1]
        )
        assert Piece(shard, 0, sizes[shard], True) in epoch.pieces(owner, num_lanes)
        start += sizes[shard]


def test_a_corpus_of_petabytes_does_not_overflow() -> None:
    epoch = line([2**50] * 4096)
    last = epoch.pieces(61439, 61440)
    assert last[-1].end == 2**50 and last[-1].shard == 4095
    assert lane_share(61439, 61440, epoch.total_bytes)[1] == epoch.total_bytes == 2**62


# --- the order of shards

# (seed, epoch) -> the order of eight shards, computed by another program.
GOLDEN = {
    (0, 0): [3, 1, 6, 2, 4, 7, 0, 5],
    (0, 1): [5, 1, 7, 0, 4, 3, 6, 2],
    (1, 0): [1, 7, 2, 6, 5, 4, 0, 3],
    (2**40, 10**6): [2, 1, 3, 5, 4, 0, 6, 7],
}


def test_the_order_that_a_seed_stands_for_never_changes() -> None:
    orders = {(seed, epoch): shard_order(seed=seed, epoch=epoch, num_shards=8, shuffle=True) for seed, epoch in GOLDEN}
    assert {where: order.tolist() for where, order in orders.items()} == GOLDEN


@given(st.integers(0, 2**63), st.integers(0, 1000), st.integers(1, 200))
def test_an_epoch_has_every_shard_once(seed: int, epoch: int, num_shards: int) -> None:
    order = shard_order(seed=seed, epoch=epoch, num_shards=num_shards, shuffle=True)
    assert sorted(order.tolist()) == list(range(num_shards))
    assert shard_order(seed=seed, epoch=epoch, num_shards=num_shards, shuffle=False).tolist() == list(range(num_shards))


def test_every_epoch_and_seed_has_an_order_of_its_own() -> None:
    orders = {
        tuple(shard_order(seed=seed, epoch=epoch, num_shards=20, shuffle=True).tolist())
        for seed in range(20)
        for epoch in range(20)
    }
    assert len(orders) == 400


# --- ranks and workers


@given(st.integers(1, 300), st.integers(1, 12))
def test_every_lane_has_one_worker_on_one_rank(num_lanes: int, num_workers: int) -> None:
    for num_ranks in fitting_ranks(num_lanes):
        owned = []
        for rank in range(num_ranks):
            lanes = rank_lanes(rank, num_ranks, num_lanes)
            assert len(lanes) == num_lanes // num_ranks
            assert all(lane % num_ranks == rank for lane in lanes)
            for worker in range(num_workers):
                own = worker_lanes(lanes, worker, num_workers)
                assert len(lanes) // num_workers <= len(own) <= -(-len(lanes) // num_workers)
                owned += own
        assert sorted(owned) == list(range(num_lanes))


@pytest.mark.parametrize("num_lanes", [1, 2, 5, 12])
def test_packs_before_counts_a_lanes_packs_below_a_global_number(num_lanes: int) -> None:
    for global_pack in range(5 * num_lanes):
        counted = [sum(i % num_lanes == lane for i in range(global_pack)) for lane in range(num_lanes)]
        assert [packs_before(global_pack, lane, num_lanes) for lane in range(num_lanes)] == counted


@given(st.integers(1, 2000))
def test_the_ranks_that_fit_are_the_divisors(num_lanes: int) -> None:
    assert fitting_ranks(num_lanes) == [n for n in range(1, num_lanes + 1) if num_lanes % n == 0]


@given(st.integers(1, 300), st.integers(1, 300))
def test_ranks_that_divide_the_lanes_and_no_others_are_accepted(num_lanes: int, num_ranks: int) -> None:
    if num_lanes % num_ranks == 0:
        check_ranks(num_lanes=num_lanes, num_ranks=num_ranks)
    else:
        with pytest.raises(TopologyError, match=f"{num_ranks} data-parallel ranks do not divide num_lanes={num_lanes}"):
            check_ranks(num_lanes=num_lanes, num_ranks=num_ranks)


@pytest.mark.parametrize(
    ("num_lanes", "num_ranks", "advice"),
    [
        (12, 5, "Run on 4 or 6 ranks, or with num_lanes=10 or 15: "),
        (12, 8, "Run on 6 or 12 ranks, or with num_lanes=8 or 16: "),
        (12, 24, "Run on 12 ranks, or with num_lanes=24: "),  # nothing above, no smaller multiple
        (7, 2, "Run on 1 or 7 ranks, or with num_lanes=6 or 8: "),
    ],
)
def test_the_error_names_the_nearest_numbers_that_fit(num_lanes: int, num_ranks: int, advice: str) -> None:
    with pytest.raises(TopologyError) as error:
        check_ranks(num_lanes=num_lanes, num_ranks=num_ranks)
    assert advice in str(error.value)


@pytest.mark.parametrize(("num_lanes", "num_ranks"), [(0, 1), (1, 0), (-4, 2)])
def test_lanes_and_ranks_are_at_least_one(num_lanes: int, num_ranks: int) -> None:
    with pytest.raises(TopologyError, match=f"num_lanes={num_lanes} and dp_size={num_ranks} must both be at least 1"):
        check_ranks(num_lanes=num_lanes, num_ranks=num_ranks)


# --- num_lanes="auto"


@pytest.mark.parametrize(
    ("total_bytes", "num_lanes"),
    [
        (0, 1),
        (1, 1),
        (16 * MB - 1, 1),
        (16 * MB, 2),  # 8 MB a lane
        (48 * MB - 1, 4),
        (48 * MB, 6),
        (96 * MB, 12),
        (192 * MB - 1, 12),
        (192 * MB, 24),
        (480 * MB, 60),
        (960 * MB, 120),
        (1920 * MB, 240),
        (3840 * MB, 480),
        (7680 * MB, 960),
        (15360 * MB, 1920),
        (30720 * MB, 3840),
        (61440 * MB, 7680),
        (15360 * GB - 1, 7680),  # beyond that a lane needs 1 GB
        (15360 * GB, 15360),
        (30720 * GB, 30720),
        (61440 * GB, 61440),
        (10**18, 61440),
    ],
)
def test_auto_is_a_ladder_of_the_corpus_bytes(total_bytes: int, num_lanes: int) -> None:
    assert auto_num_lanes(total_bytes) == num_lanes
