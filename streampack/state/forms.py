"""The lanes in a state, in either of its forms: tables as `state_dict` gives them, or plain JSON.

In:    rows and skipped ranges of lanes; a state.
Out:   keys of a state; the rows and skipped ranges again.
Never: a lane that is taken for one that has skipped nothing because a part of the state is missing.

    tables  "rows"                        int64 [*box, sources, len(FIELDS)]
            "skipped_ranges"              int64 [*box, sources, 1 + SLOTS * 7]: of each lane, how many there are and
                                          the first SLOTS of them
            "skipped_ranges.000003-0008"  JSON: of the lanes 3, 11, 19, ... those that do not fit into the table, as
                                          {"11": [[...], ...]}; only where there are such
    JSON    "lanes.000123"                the lane's row
            "skipped_ranges.000123"       JSON: all of the lane's
"""

import json
import math
import operator
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from streampack.errors import StateError
from streampack.lanes.position import SkippedRange
from streampack.state.sharded import from_table, to_table

COMMON = ("version", "order_version", "fingerprint", "libraries", "global_pack", "first_epoch")
"""Keys whose values are equal on all ranks."""
SLOTS = 16
"""Skipped ranges of a lane that have room in the table. It must not depend on the data, as all ranks have one table."""
_WIDTH = len(SkippedRange._fields)
_KEY_OF_MORE = re.compile(r"skipped_ranges\.(\d+)-(\d+)")


class LaneRows(NamedTuple):
    """What a state says of some lanes."""

    lanes: range | list[int]
    rows: NDArray[np.int64]
    """int64 [len(lanes), columns]."""
    skipped_ranges: Mapping[int, tuple[SkippedRange, ...]]
    """Lane -> what it has skipped; lanes that have skipped nothing are left out."""


def to_tables(
    lanes: range, num_lanes: int, rows: NDArray[np.int64], skipped_ranges: Mapping[int, tuple[SkippedRange, ...]]
) -> dict[str, torch.Tensor | str]:
    """The keys of a state for the lanes of one rank, or for all lanes."""
    more: dict[int, list[SkippedRange]] = {}
    table = np.full((len(lanes), 1 + SLOTS * _WIDTH), -1, dtype=np.int64)
    table[:, 0] = 0
    for lane, skipped in skipped_ranges.items():
        row = table[lanes.index(lane)]
        row[0], first = len(skipped), np.array(skipped[:SLOTS], dtype=np.int64).ravel()
        row[1 : 1 + len(first)] = first
        if len(skipped) > SLOTS:
            more[lane] = list(skipped[SLOTS:])
    tables = {"rows": to_table(rows, lanes, num_lanes), "skipped_ranges": to_table(table, lanes, num_lanes)}
    return {**tables, key_of_more(lanes): json.dumps(more)} if more else {**tables}


def key_of_more(lanes: range) -> str:
    """The key of those skipped ranges of a rank's lanes that do not fit into the table."""
    return f"skipped_ranges.{lanes.start:06d}-{lanes.step:04d}"


def may_have_more(key: str, lanes: range) -> bool:
    """Whether it is the key of skipped ranges that do not fit into the table, of some of these lanes perhaps."""
    found = _KEY_OF_MORE.fullmatch(key)
    if found is None:
        return False
    first, step = map(int, found.groups())
    return (first - lanes.start) % math.gcd(step, lanes.step) == 0


def read_lanes(state: Mapping[str, Any], num_lanes: int, columns: int) -> LaneRows:
    """The lanes that a state has.

    Raises:
        StateError: their rows or skipped ranges are missing or damaged.
    """
    return _read_tables(state, num_lanes, columns) if "rows" in state else _read_json(state, columns)


def _read_tables(state: Mapping[str, Any], num_lanes: int, columns: int) -> LaneRows:
    lanes, rows = from_table(state["rows"], num_lanes, columns, "rows")
    if "skipped_ranges" not in state:
        raise StateError("the state has rows and no skipped_ranges: the state is damaged")
    others, table = from_table(state["skipped_ranges"], num_lanes, 1 + SLOTS * _WIDTH, "skipped_ranges")
    if others != lanes:
        raise StateError("rows and skipped_ranges are of other lanes: parts of different states were mixed")
    more: dict[str, list[SkippedRange]] = {}
    for key in state:
        if may_have_more(key, lanes):
            more |= _more_from_json(state[key], key)
    found = {}
    for index in np.flatnonzero(table[:, 0]).tolist():
        lane, (number, *slots) = lanes[index], table[index].tolist()
        first = [SkippedRange(*slots[at : at + _WIDTH]) for at in range(0, min(number, SLOTS) * _WIDTH, _WIDTH)]
        rest = more.get(str(lane), []) if number > SLOTS else []
        if number > SLOTS and not rest:
            raise StateError(
                f"lane {lane} has {number} skipped ranges, of which {SLOTS} have room in the table, and the state does "
                f"not have the others: plain torch.distributed.checkpoint.load takes only keys that the state which it "
                "is given has. loader.load_checkpoint(path) takes all"
            )
        if not 0 < number == len(first) + len(rest):
            raise StateError(
                f"lane {lane} has {number} skipped ranges, and the state {len(first) + len(rest)}: the state is damaged"
            )
        found[lane] = (*first, *rest)
    return LaneRows(lanes, rows, found)


def _more_from_json(value: Any, key: str) -> dict[str, list[SkippedRange]]:
    try:
        return {lane: _to_ranges(rows) for lane, rows in json.loads(value).items()}
    except (TypeError, ValueError, AttributeError) as error:
        raise StateError(f"{key} is {value!r:.80}, not skipped ranges of lanes: the state is damaged") from error


def _read_json(state: Mapping[str, Any], columns: int) -> LaneRows:
    keys = sorted(key for key in state if key.startswith("lanes."))
    lanes, rows, found = [], [], {}
    for key in keys:
        name = key.removeprefix("lanes.")
        if not name.isdecimal():
            raise StateError(f"the state has the key {key!r}, which is no lane's: the state is damaged")
        skipped_key = f"skipped_ranges.{name}"
        if skipped_key not in state:
            raise StateError(f"the state has no {skipped_key}: the state is damaged")
        lanes.append(int(name))
        rows.append(_row_of(state[key], key, columns))
        if skipped := ranges_from_json(state[skipped_key], skipped_key):
            found[lanes[-1]] = tuple(skipped)
    return LaneRows(lanes, np.array(rows, dtype=np.int64).reshape(len(rows), columns), found)


def _row_of(value: Any, key: str, columns: int) -> NDArray[np.int64]:
    """A lane's row from a list, a tensor or an array."""
    try:
        row = torch.as_tensor(value, dtype=torch.int64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise StateError(f"{key} is {value!r:.80}, not a row of integers: the state is damaged") from error
    if row.shape != (columns,):
        raise StateError(f"{key} has shape {tuple(row.shape)}, not ({columns},): the state is damaged")
    return row.numpy()


def to_plain(held: LaneRows) -> dict[str, list[int] | str]:
    """The keys of a state in plain JSON."""
    plain: dict[str, list[int] | str] = {}
    for lane, row in zip(held.lanes, held.rows.tolist(), strict=True):
        plain[f"lanes.{lane:06d}"] = row
        plain[f"skipped_ranges.{lane:06d}"] = ranges_to_json(held.skipped_ranges.get(lane, ()))
    return plain


def is_of_lanes(key: str) -> bool:
    """Whether a key of a state, in either form, is about lanes; all others are equal on all ranks."""
    return key in {"rows", "skipped_ranges"} or key.startswith(("lanes.", "skipped_ranges."))


def ranges_to_json(skipped_ranges: Iterable[SkippedRange]) -> str:
    """A JSON list with a row of integers for each skipped range; `part` is left out where it is -1."""
    return json.dumps([skipped if skipped.part >= 0 else skipped[:-1] for skipped in skipped_ranges])


def ranges_from_json(value: Any, key: str) -> list[SkippedRange]:
    """A lane's skipped ranges.

    Raises:
        StateError: the value is not what `ranges_to_json` wrote; the error names its `key`.
    """
    try:
        return _to_ranges(json.loads(value))
    except (TypeError, ValueError) as error:
        raise StateError(f"{key} is {value!r:.80}, not a JSON list of skipped ranges: the state is damaged") from error


def _to_ranges(rows: Iterable[Iterable[int]]) -> list[SkippedRange]:
    return [SkippedRange(*(operator.index(number) for number in row)) for row in rows]
