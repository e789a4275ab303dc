"""States of several ranks as one, and states as JSON text.

In:    states, in either form.
Out:   one state of all lanes; a text; a state.
Never: a state of some of the lanes that looks like one of all.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from streampack.errors import StateError
from streampack.state.checkpoint import FIELDS, State, check_versions
from streampack.state.fingerprint import fingerprint_of
from streampack.state.forms import (
    LaneRows,
    is_of_lanes,
    leftovers_from_json,
    leftovers_to_json,
    read_lanes,
    sources_of,
    still_left,
    to_plain,
    to_tables,
)


def merge_state_dicts(states: Iterable[Mapping[str, Any]]) -> State:
    """One state of all lanes from the states of all ranks; refuses ranks that are at different steps.

    Raises:
        StateError: two states differ in anything but their lanes, or have different positions of one lane; a lane is
            in none of them.
    """
    parts = [_part(state) for state in states]
    if not parts:
        raise StateError("merge_state_dicts was given no states")
    common, num_lanes, _ = parts[0]
    for number, (other, _, _) in enumerate(parts):
        _check_same(common, other, number)
    rows = np.zeros((num_lanes, len(sources_of(common)), len(FIELDS)), dtype=np.int64)
    is_there = np.zeros(num_lanes, dtype=np.bool_)
    skipped: dict[tuple[int, int], Any] = {}
    for number, (_, _, held) in enumerate(parts):
        lanes = np.array(held.lanes, dtype=np.intp)
        known = is_there[lanes]
        differs = known & (rows[lanes] != held.rows).any(axis=(1, 2))
        if differs.any():
            lane = int(lanes[differs][0])
            raise StateError(f"lane {lane} differs between the ranks' states: state {number} has another row of it")
        again = set(lanes[known].tolist())
        for at in (at for at in {*skipped, *held.skipped_ranges} if at[0] in again):
            if skipped.get(at, ()) != held.skipped_ranges.get(at, ()):
                raise StateError(f"the skipped ranges of lane {at[0]} differ between the ranks' states, as of {number}")
        rows[lanes], is_there[lanes] = held.rows, True
        skipped |= held.skipped_ranges
    if not is_there.all():
        raise StateError(
            f"the states have {int(is_there.sum())} of {num_lanes} lanes; lane {int(np.argmin(is_there))} is in none "
            "of them: merge_state_dicts needs the states of all ranks"
        )
    left = still_left(leftovers_from_json(common["leftovers"]), sources_of(common), rows)
    return {**common, "leftovers": leftovers_to_json(left), **to_tables(range(num_lanes), num_lanes, rows, skipped)}


def _part(state: Mapping[str, Any]) -> tuple[State, int, LaneRows]:
    """What of a state is equal on all ranks; how many lanes the run has; what it says of its own."""
    check_versions(state)
    common = {key: value for key, value in state.items() if not is_of_lanes(key)}
    num_lanes = int(fingerprint_of(state).get("num_lanes", 0))
    held = read_lanes(state, num_lanes, len(sources_of(state)), len(FIELDS))
    beyond = [lane for lane in held.lanes if not 0 <= lane < num_lanes]
    if beyond:
        raise StateError(f"the state has lane {beyond[0]}, and its run has num_lanes={num_lanes}: the state is damaged")
    return common, num_lanes, held


def _check_same(common: State, other: State, number: int) -> None:
    for key in sorted({*common, *other}):
        if key not in common or key not in other:
            which = (number, "the states before it do") if key in other else (0, f"state {number} does")
            raise StateError(f"state {which[0]} has {key!r}, which {which[1]} not have")
        value, its_value = common[key], other[key]
        if value == its_value or key == "libraries":  # each load warns of those
            continue
        if key == "global_pack":
            raise StateError(
                f"the ranks are at different steps: global_pack is {value} in state 0, {its_value} in state {number}. "
                "Take every rank's state after the same batch."
            )
        raise StateError(f"{key} differs between the ranks' states: {value!r}, and {its_value!r} in state {number}")


def to_json(state: Mapping[str, Any]) -> str:
    """The state as one JSON text, with a key for each lane; `load_state_dict(json.loads(text))` takes it back."""
    common, _, held = _part(state)
    return json.dumps({**common, **to_plain(held)})


def from_json(text: str) -> State:
    """The state that `to_json` wrote: with tables, where it has the lanes of a rank or all of them."""
    common, num_lanes, held = _part(json.loads(text))
    lanes = np.array(held.lanes)
    step = num_lanes // max(len(lanes), 1)
    own = range(int(lanes[0]) if len(lanes) else 0, num_lanes, step)
    if not len(lanes) or lanes.tolist() != list(own):
        raise StateError(f"the text has {len(lanes)} of {num_lanes} lanes, which are not those of a rank")
    return {**common, **to_tables(own, num_lanes, held.rows, held.skipped_ranges)}
