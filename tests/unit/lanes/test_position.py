"""The position of a lane: one pack at a time, many at once, and as the rows of messages and checkpoints."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streampack.hashing import as_int64
from streampack.lanes.position import NUM_CURSOR, LanePack, LanePosition, SkippedRange, advance_rows
from streampack.loader.commits import to_checkpoint
from streampack.loader.messages import COLUMNS
from streampack.records import Counts, Cursor
from streampack.state.checkpoint import FIELDS, NUM_SKIPPED, Committed

NUM_LANES = 3
NO_ROWS: Any = None

cursors = st.builds(Cursor, *[st.integers(0, 9)] * len(Cursor._fields))
counts = st.builds(Counts, *[st.integers(0, 99)] * len(Counts._fields)).map(lambda each: each._replace(fillers=0))
ranges = st.builds(SkippedRange, *[st.integers(0, 2)] * 6)
packs = st.builds(
    LanePack, st.just(NO_ROWS), cursors, counts, st.lists(ranges, max_size=2).map(tuple), st.just(())
)
given_packs = st.lists(st.tuples(st.integers(0, NUM_LANES - 1), packs), max_size=12)


def message_rows(given_by: Iterable[tuple[int, LanePack]]) -> Any:
    rows = [[*pack.cursor, as_int64(hash(pack.cursor)), *pack.counts] for _, pack in given_by]
    return np.array(rows, np.int64).reshape(len(rows), len(COLUMNS))


def test_after_a_pack_a_lane_continues_at_its_cursor() -> None:
    a, b = SkippedRange(0, 2, 1, 512, 513, 0), SkippedRange(0, 3, 2, 0, 1, -1)
    position = LanePosition(Cursor(0, 2, 5120, row=7), 41, 96, 1, frozenset({a}))
    pack = LanePack(NO_ROWS, Cursor(0, 2, 9728), Counts(documents=3, tokens=64), (b,), ())
    assert position.after(pack) == LanePosition(Cursor(0, 2, 9728), 42, 99, 2, frozenset({a, b}))


@pytest.mark.parametrize(
    ("cursor", "kept"),
    [
        (Cursor(0, 0), "abc"),
        (Cursor(0, 7, 512, 3), "abc"),
        (Cursor(0, 8), "bc"),
        (Cursor(0, 16), "c"),
        (Cursor(1, 7), "c"),
        (Cursor(1, 8), ""),
        (Cursor(2, 0), ""),
    ],
)
def test_a_lane_forgets_what_it_has_skipped_once_no_resume_can_meet_it(cursor: Cursor, kept: str) -> None:
    ranges = {
        "a": SkippedRange(0, 7, 1, 512, 513, 0),
        "b": SkippedRange(0, 15, 0, 0, 1, -1),
        "c": SkippedRange(1, 7, 0, 0, 1, -1),
    }
    position = LanePosition(skipped_ranges=frozenset(ranges.values()))
    after = position.after(LanePack(NO_ROWS, cursor, Counts(), (), ()))
    assert after.skipped_ranges == {ranges[name] for name in kept}
    committed = Committed.fresh(range(1), 1)
    committed.rows[0, :NUM_CURSOR] = cursor
    committed.skipped_ranges = [tuple(ranges.values())]
    committed.prune()
    assert set(committed.skipped_ranges[0]) == after.skipped_ranges


@given(given_packs)
def test_rows_advance_as_positions_do(given_by: list[tuple[int, LanePack]]) -> None:
    positions = [LanePosition()] * NUM_LANES
    for lane, pack in given_by:
        positions[lane] = positions[lane].after(pack)
    committed = Committed.fresh(range(NUM_LANES), NUM_LANES)
    lanes = np.array([lane for lane, _ in given_by], np.intp)
    changes = to_checkpoint(message_rows(given_by))
    changes[:, NUM_SKIPPED] = [len(pack.skipped_ranges) for _, pack in given_by]
    committed.add(lanes, changes)
    for lane, pack in given_by:
        committed.skipped_ranges[lane] += pack.skipped_ranges
    nothing: frozenset[SkippedRange] = frozenset()
    for lane, position in enumerate(positions):
        assert committed.position(lane)._replace(skipped_ranges=nothing) == position._replace(skipped_ranges=nothing)
        assert position.skipped_ranges <= committed.position(lane).skipped_ranges
        assert all(each[:2] >= position.cursor[:2] for each in position.skipped_ranges)
    assert committed.digest() == as_int64(sum(as_int64(hash(pack.cursor)) for _, pack in given_by))
    total = Counts()
    for _, pack in given_by:
        total = total.plus(pack.counts)
    assert committed.counts() == total


@given(given_packs, st.integers(0, 12))
def test_rows_advance_by_all_packs_at_once_as_in_two_steps(given_by: list[tuple[int, LanePack]], cut: int) -> None:
    lanes, changes = np.array([lane for lane, _ in given_by], np.intp), message_rows(given_by)
    at_once, in_two = np.zeros((2, NUM_LANES, len(COLUMNS)), np.int64)
    advance_rows(at_once, lanes, changes)
    advance_rows(in_two, lanes[:cut], changes[:cut])
    advance_rows(in_two, lanes[cut:], changes[cut:])
    assert np.array_equal(at_once, in_two)


def test_a_row_of_a_checkpoint_begins_with_a_cursor_and_has_all_counts() -> None:
    assert FIELDS[:NUM_CURSOR] == Cursor._fields
    assert set(Counts._fields) < set(FIELDS)
    assert len(set(FIELDS)) == len(FIELDS)
