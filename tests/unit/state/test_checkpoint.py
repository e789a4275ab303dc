"""The committed rows of lanes with several sources: as a state, and back for other sources and ranks."""

import json
from typing import Any

import numpy as np
import pytest

from streampack.corpus.partition import packs_before
from streampack.corpus.schedule import StageOfRun
from streampack.corpus.shares import Shares
from streampack.errors import StateError
from streampack.lanes.position import LaneEnd, SkippedRange
from streampack.records import Counts, Cursor
from streampack.state.checkpoint import FIELDS, PACKS, Committed
from streampack.state.joining import from_json, merge_state_dicts, to_json

LANES = 12
FINGERPRINT = {"num_lanes": LANES}


def stage(first_pack: int, **weights: float) -> StageOfRun:
    described = {"at_packs": first_pack, "weights": weights, "seq_len": 16}
    return StageOfRun(first_pack, first_pack * 16, 16, Shares.of(list(weights.values())), described)


STAGES = (stage(0, web=2, code=1), stage(24, web=1, code=1), stage(48, web=1, code=3))


def committed(lanes: range = range(LANES), *, global_pack: int = 30) -> Committed:
    """Each row has its lane and source in some column, and packs as the lane has given."""
    made = Committed.fresh(lanes, LANES, ("web", "code"), STAGES)
    for lane_index, lane in enumerate(lanes):
        web, code = made.row(lane_index, 0), made.row(lane_index, 1)
        made.rows[web, :3] = lane, 0, lane + 100
        made.rows[code, :3] = lane, 1, lane + 200
        made.rows[web, PACKS] = packs_before(global_pack, lane, LANES) - 1
        made.rows[code, PACKS] = 1
        made.skipped_ranges[code] = tuple(SkippedRange(lane, 5, 0, at, at + 1, -1) for at in range(lane + 8))
    made.global_pack = global_pack
    return made


def plain(rows: Committed) -> dict[Any, Any]:
    """(lane, source) -> its position; of all that belongs to no lane, the values."""
    values: dict[Any, Any] = {"packs": rows.global_pack, "stages": [each.described for each in rows.stages]}
    for index, lane in enumerate(rows.lanes):
        for source, name in enumerate(rows.sources):
            values[lane, name] = rows.position(index, source)
    return values


def part(rank: int, ranks: int) -> dict[str, Any]:
    return committed(range(rank, LANES, ranks)).to_state(FINGERPRINT, {})


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 12])
@pytest.mark.parametrize("as_json", [True, False])
def test_a_state_of_two_sources_is_dealt_again(ranks: int, as_json: bool) -> None:
    state = merge_state_dicts(part(rank, ranks) for rank in range(ranks))
    if as_json:
        state = json.loads(to_json(from_json(to_json(state))))
    for others in (1, 4, 6):
        for rank in range(others):
            lanes = range(rank, LANES, others)
            found = Committed.from_state(state, lanes, LANES, ("web", "code"))
            expected = committed(lanes)
            expected.stages = STAGES[:2]
            assert plain(found) == plain(expected)


@pytest.mark.parametrize("as_json", [True, False])
def test_sources_are_found_by_name_and_others_are_carried(as_json: bool) -> None:
    state: Any = committed().to_state(FINGERPRINT, {})
    state = json.loads(to_json(state)) if as_json else state
    found = Committed.from_state(state, range(3, LANES, 4), LANES, ("books", "code"))
    assert found.sources == ("books", "code", "web")
    was = plain(committed())
    for index, lane in enumerate(found.lanes):
        assert found.position(index, 0).cursor == Cursor()
        assert [found.position(index, 1), found.position(index, 2)] == [was[lane, "code"], was[lane, "web"]]
        start = found.start(index, 2)
        assert start.packs == packs_before(30, lane, LANES), "those of a source that is not named count"
        assert start.positions == (found.position(index, 0), found.position(index, 1))
    again = Committed.from_state(found.to_state(FINGERPRINT, {}), found.lanes, LANES, ("web", "code", "books"))
    assert {at: value for at, value in plain(again).items() if at[-1] != "books"} == {
        at: was[at] for at in was if at[0] in found.lanes
    } | {"packs": 30, "stages": [each.described for each in STAGES[:2]]}


def test_only_stages_that_have_begun_are_in_a_state() -> None:
    for global_pack, number in ((0, 0), (1, 1), (24, 1), (25, 2), (48, 2), (1000, 3)):
        state = committed(global_pack=global_pack).to_state(FINGERPRINT, {})
        assert [each["described"] for each in json.loads(str(state["stages"]))] == [
            each.described for each in STAGES[:number]
        ]


def test_fillers_are_packs_of_the_lane_and_of_no_source() -> None:
    rows = committed()
    before = plain(rows)
    rows.add_fillers(np.array([2, 5]))
    assert plain(rows) == before
    assert [rows.packs(lane) - packs_before(30, lane, LANES) for lane in range(LANES)] == [0, 0, 1, 0, 0, 1, *[0] * 6]
    assert rows.counts().fillers == 2


def test_the_end_of_a_source_in_a_lane_counts_once() -> None:
    rows = committed()
    before = rows.copy()
    end = LaneEnd(Counts(*range(len(Counts._fields))), (SkippedRange(7, 1, 2, 3, 4, 5),), source=1)
    rows.end_source(7, end, end_epoch=9)
    row = rows.row(7, 1)
    assert rows.position(7, 1).cursor == Cursor(epoch=9) and rows.skipped_ranges[row] == ()
    assert (rows.rows[row, FIELDS.index("tokens")], rows.position(7, 1).num_skipped) == (1, 1)
    others = [at for at in range(2 * LANES) if at != row]
    assert (rows.rows[others] == before.rows[others]).all() and rows.packs(7) == before.packs(7)


def test_after_a_pass_all_lanes_are_at_one_pack() -> None:
    rows = committed()
    rows.global_pack = 41
    rows.end_pass(None)
    assert [rows.packs(lane) for lane in range(LANES)] == [packs_before(41, lane, LANES) for lane in range(LANES)]
    assert [rows.position(lane, 1) for lane in range(LANES)] == [committed().position(lane, 1) for lane in range(LANES)]


def test_states_of_other_sources_or_stages_do_not_join() -> None:
    states = [part(rank, 2) for rank in range(2)]
    for key in ("sources", "stages"):
        with pytest.raises(StateError, match=f"{key} differs between the ranks' states"):
            merge_state_dicts([states[0], {**states[1], key: json.dumps(json.loads(states[1][key])[::-1])}])
