"""Stages and the end of a run on its line of global packs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streampack.corpus.schedule import Schedule, StageOfRun
from streampack.corpus.shares import Shares

LANES = 24
ONE = Shares.of([1])


def schedule(*stages: tuple[int, int], end: int | None = None) -> Schedule:
    """Stages as (first round, seq_len)."""
    made: list[StageOfRun] = []
    for first_round, seq_len in stages:
        first = first_round * LANES
        tokens = made[-1].tokens_at(first) if made else 0
        made.append(StageOfRun(first, tokens, seq_len, ONE, {}))
    return Schedule(num_lanes=LANES, stages=tuple(made), end=end)


def test_a_stage_has_the_packs_from_its_first_one_on() -> None:
    run = schedule((0, 100), (2, 100), (5, 400))
    assert [run.index_of(pack) for pack in (0, 47, 48, 119, 120, 10**12)] == [0, 0, 1, 1, 2, 2]
    assert run.stage_of(119) is run.stages[1]


def test_tokens_are_packs_of_the_length_of_their_stage() -> None:
    run = schedule((0, 100), (2, 100), (5, 400))
    assert [run.tokens_at(pack) for pack in (0, 1, 48, 120, 121)] == [0, 100, 4_800, 12_000, 12_400]


@given(st.integers(0, 10**7), st.integers(1, 10**5))
def test_the_pack_at_some_tokens_is_the_first_one_at_or_after_them(tokens: int, seq_len: int) -> None:
    stage = StageOfRun(LANES, 1234, seq_len, ONE, {})
    pack = stage.pack_at(tokens)
    assert pack >= LANES
    assert stage.tokens_at(pack) >= tokens
    assert pack == LANES or stage.tokens_at(pack - 1) < tokens


@pytest.mark.parametrize(
    ("pack", "expected"),
    [
        (0, 120),  # the stage from round 2 on is cut as the first one
        (119, 120),
        (120, 192),
        (192, None),
        (10**9, None),
    ],
)
def test_where_packs_get_another_length(pack: int, expected: int | None) -> None:
    run = schedule((0, 100), (2, 100), (5, 400), (8, 100))
    assert run.next_length(pack) == expected
