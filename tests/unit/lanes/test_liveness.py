"""An endless lane is given up where no pack can come, and never while it gets nearer to one."""

import pytest

from streampack.lanes.liveness import Liveness


def epochs_until_dead(liveness: Liveness, rows: list[int], *, num_pieces: int = 1, at_most: int = 10_000) -> int | None:
    """The epoch at whose start the lane is given up; `rows`: those that wait as each begins, the last ones for ever."""
    for epoch in range(at_most):
        if liveness.why_dead(packs=0, rows=rows[min(epoch, len(rows) - 1)], num_pieces=num_pieces) is not None:
            return epoch
    return None


def made(num_lanes: int = 1, *, pieces: bool = True, documents: bool = True) -> Liveness:
    return Liveness(num_lanes=num_lanes, repeats_pieces=pieces, repeats_documents=documents)


def test_a_lane_that_gets_one_row_in_each_epoch_is_never_given_up() -> None:
    for liveness in (made(), made(4, documents=False), made(4, pieces=False)):
        assert epochs_until_dead(liveness, list(range(9000)), at_most=9000) is None


def test_a_lane_without_a_shard_in_any_epoch_is_given_up_at_once() -> None:
    assert epochs_until_dead(made(4), [0], num_pieces=0) == 0


@pytest.mark.parametrize("rows", [0, 1, 63])
def test_a_lane_whose_epochs_are_alike_and_add_nothing_is_given_up_after_whole_ones(rows: int) -> None:
    """The first epoch of a stream may be the rest of one."""
    assert epochs_until_dead(made(), [rows]) == (2 if rows == 0 else 3)


def test_where_epochs_differ_the_bound_is_far_away() -> None:
    assert epochs_until_dead(made(documents=False), [0]) == 101, "a transform that draws"
    assert epochs_until_dead(made(50, pieces=False), [0]) == 501, "ten times the corpus"
    assert epochs_until_dead(made(50, pieces=False), [0], num_pieces=0) == 5001, "a hundred turns of every lane"
    assert epochs_until_dead(made(), [0, 30, 60, 26, 56, 22]) == 7, "packs without a target, which are not given"


def test_a_pack_and_every_row_more_begin_the_count_again() -> None:
    liveness = made(documents=False)
    for rounds in range(5):
        for _ in range(99):
            assert liveness.why_dead(packs=rounds, rows=7, num_pieces=1) is None
        assert liveness.why_dead(packs=rounds, rows=8 + rounds, num_pieces=1) is None


def test_fewer_blocks_than_lanes_are_named() -> None:
    liveness = Liveness(num_lanes=12, repeats_pieces=True, repeats_documents=True, num_blocks=8)
    why = liveness.why_dead(packs=0, rows=0, num_pieces=0)
    assert why is not None
    assert why.startswith("8 blocks, of which a shard that is read whole is one, for 12 lanes: ")
    assert "num_lanes must be at most 8, or use more shards" in why
