"""Leftovers of earlier lanes: each offset goes to one new lane, cut between groups, and what is opened stays whole."""

from hypothesis import given
from hypothesis import strategies as st

from streampack.corpus.leftovers import Leftover, Leftovers, LeftoversOfLanes


def deal(leftovers: list[Leftover], num_lanes: int, *, window: int, unit: int = 1) -> LeftoversOfLanes:
    return Leftovers.of(5, leftovers).dealt(range(num_lanes), num_lanes, window=window, unit=lambda _: unit)


def test_two_lanes_become_three() -> None:
    """9 and 15 blocks are left, so cuts are at 8 and 16: the first one moves to the end of its window, and so out."""
    first = Leftover(2, 0, 5, 0, begin=3, head=4, stop=12, sample=700, place=2)
    second = Leftover(2, 1, 5, 0, begin=1, head=4, stop=16, sample=900, place=30, row=17)
    dealt = deal([first, second], 3, window=4)
    assert [dealt.of_lane(lane) for lane in range(3)] == [
        [(0, first)],
        [(1, second._replace(stop=8))],
        [(1, Leftover(2, 1, 5, 0, begin=8, head=8, stop=16))],
    ]
    assert dealt.lanes_of([1]) == [1, 2]


def test_a_leftover_goes_with_the_one_whose_packing_window_it_joins_as_far_as_that_reaches() -> None:
    other = Leftover(2, 0, 4, 0, begin=0, head=0, stop=10)
    first = Leftover(2, 1, 4, 0, begin=90, head=100, stop=100, sample=5, given=2)
    joined = Leftover(2, 1, 5, 1, begin=0, head=20, stop=100)  # by its offset in epoch 5 lane 0 would read it
    dealt = deal([other, first, joined], 2, window=0)
    rest = Leftover(2, 1, 5, 0, begin=20, head=20, stop=50)
    assert [dealt.of_lane(lane) for lane in range(2)] == [
        [(0, other), (2, rest)],
        [(1, first), (2, joined._replace(stop=20)), (2, rest._replace(begin=50, head=50, stop=100))],
    ]


def test_a_lane_begins_with_what_is_inside_a_document() -> None:
    plain = Leftover(2, 0, 5, 0, begin=0, head=0, stop=8)
    inside = Leftover(2, 1, 5, 0, begin=3, head=4, stop=8, sample=9, row=1)
    assert [part for _, part in deal([plain, inside], 1, window=4).of_lane(0)] == [inside, plain]


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 9), st.integers(1, 30), st.booleans()), max_size=8),
    st.integers(1, 12),
    st.integers(1, 4),
    st.integers(1, 9),
)
def test_each_offset_is_in_one_lane_and_cuts_are_between_groups(
    rows: list[tuple[int, int, int, bool]], num_lanes: int, window: int, unit: int
) -> None:
    leftovers = [
        Leftover(3, lane, 5, int(joins and lane > 0), begin, begin + min(opened, size), begin + size)
        for lane, (begin, opened, size, joins) in enumerate(rows)
    ]
    dealt = deal(leftovers, num_lanes, window=window, unit=unit)
    parts = [found for lane in range(num_lanes) for found in dealt.of_lane(lane)]
    for number, whole in enumerate(leftovers):
        of_it = sorted((part for row, part in parts if row == number), key=lambda part: part.begin)
        offsets = [offset for part in of_it for offset in range(part.begin, part.stop)]
        assert offsets == list(range(whole.begin, whole.stop))
        for part in of_it[1:]:
            assert part.begin >= whole.head and (part.begin % window == 0 or part.begin == whole.head)
