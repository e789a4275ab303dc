"""Which source a pack of a lane is of."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streampack.corpus.shares import SHIFT, STEP, Shares, point

WEIGHTS = st.lists(st.one_of(st.just(0.0), st.floats(1e-4, 1e6)), min_size=1, max_size=20).filter(any)


def test_step_and_shift_are_the_odd_numbers_beside_powers_of_the_plastic_number() -> None:
    def too_small(step: int, shift: int) -> tuple[bool, bool]:
        x, y = Fraction(step, 2**64), Fraction(shift, 2**64)
        return x**3 + x**2 < 1, (1 - y) ** 2 > y**3  # r**3 = r + 1 for x = 1/r and y = 1/r**2

    assert STEP % 2 == SHIFT % 2 == 1
    assert too_small(STEP - 1, SHIFT - 1) == (True, True)
    assert too_small(STEP + 1, SHIFT + 1) == (False, False)


@pytest.mark.parametrize(
    ("lane", "pack", "expected"),
    [
        (0, 0, 0),
        (0, 1, 0xC13FA9A902A6328F),
        (1, 0, 0x91E10DA5C79E7B1D),
        (1, 1, 0x5320B74ECA44ADAC),
        (7, 123, 0xD6BDE3BCBB2FA880),
        (61_439, 10**9, 0xAA119F374EB78AE3),
    ],
)
def test_the_points_are_fixed_for_ever(lane: int, pack: int, expected: int) -> None:
    assert point(lane, pack) == expected


def test_the_sources_of_a_small_mix_are_fixed_for_ever() -> None:
    shares = Shares.of([0.7, 0.25, 0.05])
    assert ["".join(str(shares.source(lane, pack)) for lane in range(12)) for pack in range(4)] == [
        "000101020000",
        "101000010100",
        "000010100001",
        "010200001020",
    ]


@given(WEIGHTS, st.integers(0, 2**40), st.integers(0, 2**17), st.integers(1, 50))
def test_many_at_once_are_the_same_as_one_by_one(weights: list[float], pack: int, lane: int, count: int) -> None:
    shares = Shares.of(weights)
    packs, lanes = np.arange(pack, pack + count), np.arange(lane, lane + count)
    found = shares.sources(lanes, packs)
    assert found.tolist() == [shares.source(lane + n, pack + n) for n in range(count)]
    table = shares.sources(lanes[None, :3], packs[:, None])
    assert table.shape == (count, min(count, 3))
    assert table[:, 0].tolist() == [shares.source(lane, pack + n) for n in range(count)]


@given(WEIGHTS, st.integers(0, 2**40), st.integers(0, 2**17), st.integers(0, 20))
def test_a_source_of_weight_0_changes_no_pack_of_the_others(
    weights: list[float], pack: int, lane: int, place: int
) -> None:
    place = min(place, len(weights))
    wider = Shares.of([*weights[:place], 0, *weights[place:]])
    found = Shares.of(weights).source(lane, pack)
    assert wider.source(lane, pack) == found + (found >= place)
    assert wider.share(place) == 0


@given(WEIGHTS, st.integers(1, 1000))
def test_only_the_proportions_of_weights_count(weights: list[float], factor: int) -> None:
    exact = [Fraction(weight) for weight in weights]
    assert Shares.of([weight * factor for weight in exact]).ends == Shares.of(exact).ends


def test_weights_as_people_write_them_give_the_whole_range() -> None:
    for weights in ([0.1] * 10, [1 / 3] * 3, [1e-4, 1e300], [5, 3, 2]):
        shares = Shares.of(weights)
        assert shares.ends[-1] == 2**64
        assert sum(map(shares.share, range(len(weights)))) == pytest.approx(1)


def test_others_of_an_exhausted_source_share_in_proportion() -> None:
    shares = Shares.of([4, 0, 3, 2, 1])
    left = shares.without({0})
    assert left is not None
    assert left.ends == Shares.of([0, 0, 3, 2, 1]).ends
    assert [left.share(source) for source in range(5)] == pytest.approx([0, 0, 1 / 2, 1 / 3, 1 / 6])
    # One after the other is the same as both at once, in either order.
    orders = [shares.without({0, 3}), left.without({3}), left.without({0, 3})]
    assert [live and live.weights for live in orders] == [((2, 3), (4, 1))] * 3
    assert shares.without({0, 2, 3, 4}) is None
