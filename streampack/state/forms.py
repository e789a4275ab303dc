"""The lanes in a state, in either of its forms: tables as `state_dict` gives them, or plain JSON.

In:    rows and skipped ranges of lanes; a state.
Out:   keys of a state; the rows and skipped ranges again.
Never: a lane that is taken for one that has skipped nothing because a part of the state is missing.

    both    "sources"                     JSON: the names of the sources, in the order of the axis below
    tables  "rows"                        int64 [*box, sources, len(FIELDS)]
            "skipped_ranges"              int64 [*box, 1, 1 + SLOTS * 8]: of each lane, how many there are and the
                                          first SLOTS of them, each with its source; as large for any sources
            "skipped_ranges.000003-0008"  JSON: of the lanes 3, 11, 19, ... those that do not fit into the table, as
                                          {"11": [[source, ...], ...]}; only where there are such
    JSON    "lanes.000123"                the lane's rows, one for each source
            "skipped_ranges.000123"       JSON: all of the lane's, a list for each source
"""

import json
import math
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from streampack.corpus.leftovers import Leftovers
from streampack.errors import StateError
from streampack.lanes.position import SkippedRange
from streampack.state.sharded import from_table, to_table

COMMON = (
    *("version", "order_version", "fingerprint", "libraries"),
    *("sources", "stages", "global_pack", "first_epoch", "since", "leftovers"),
)
"""Keys whose values are equal on all ranks."""
SLOTS = 16
"""Skipped ranges of a lane that have room in the table. It must not depend on the data, as all ranks have one table."""
_WIDTH = 1 + len(SkippedRange._fields)
_KEY_OF_MORE = re.compile(r"skipped_ranges\.(\d+)-(\d+)")


class LaneRows(NamedTuple):
    """What a state says of some lanes."""

    lanes: range | list[int]
    rows: NDArray[np.int64]
    """int64 [len(lanes), sources, columns]."""
    skipped_ranges: "SkippedRanges"


_OfSource: TypeAlias = tuple[int, SkippedRange]
SkippedRanges: TypeAlias = Mapping[tuple[int, int], tuple[SkippedRange, ...]]
"""(lane, index of the source) -> what was skipped there; where nothing was skipped, there is no entry."""


def sources_of(state: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the sources of a state, in the order in which its lanes have them."""
    try:
        names = json.loads(state["sources"])
    except (TypeError, ValueError) as error:
        raise StateError(f"sources is {state['sources']!r:.80}, not a JSON list: the state is damaged") from error
    is_names = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not is_names or not names or len(set(names)) < len(names):
        raise StateError(f"sources is {names!r:.80}, not a list of different names: the state is damaged")
    return tuple(names)


def to_tables(
    lanes: range, num_lanes: int, rows: NDArray[np.int64], skipped_ranges: SkippedRanges
) -> dict[str, torch.Tensor | str]:
    """The keys of a state for the lanes of one rank, or for all lanes; rows: int64 [len(lanes), sources, columns]."""
    of_lanes: dict[int, list[tuple[int, ...]]] = {}
    for lane, source in sorted(skipped_ranges):
        of_lanes.setdefault(lane, []).extend((source, *skipped) for skipped in skipped_ranges[lane, source])
    table = np.full((len(lanes), 1, 1 + SLOTS * _WIDTH), -1, dtype=np.int64)
    table[..., 0] = 0
    for lane, skipped in of_lanes.items():
        row, first = table[lanes.index(lane), 0], np.array(skipped[:SLOTS], dtype=np.int64).ravel()
        row[0] = len(skipped)
        row[1 : 1 + len(first)] = first
    more = {lane: skipped[SLOTS:] for lane, skipped in of_lanes.items() if len(skipped) > SLOTS}
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


def read_lanes(state: Mapping[str, Any], num_lanes: int, num_sources: int, columns: int) -> LaneRows:
    """The lanes that a state has.

    Raises:
        StateError: their rows or skipped ranges are missing or damaged.
    """
    if "rows" in state:
        return _read_tables(state, num_lanes, num_sources, columns)
    return _read_json(state, num_sources, columns)


def _read_tables(state: Mapping[str, Any], num_lanes: int, num_sources: int, columns: int) -> LaneRows:
    lanes, rows = from_table(state["rows"], num_lanes, num_sources, columns, "rows")
    if "skipped_ranges" not in state:
        raise StateError("the state has rows and no skipped_ranges: the state is damaged")
    others, table = from_table(state["skipped_ranges"], num_lanes, 1, 1 + SLOTS * _WIDTH, "skipped_ranges")
    if others != lanes:
        raise StateError("rows and skipped_ranges are of other lanes: parts of different states were mixed")
    more: dict[str, list[_OfSource]] = {}
    for key in state:
        if may_have_more(key, lanes):
            more |= _more_from_json(state[key], key)
    found: dict[tuple[int, int], list[SkippedRange]] = {}
    for index in np.flatnonzero(table[:, 0, 0]).tolist():
        lane, (number, *slots) = lanes[index], table[index, 0].tolist()
        first = [_of_source(slots[at : at + _WIDTH]) for at in range(0, min(number, SLOTS) * _WIDTH, _WIDTH)]
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
        for source, skipped in (*first, *rest):
            if not 0 <= source < num_sources:
                raise StateError(f"lane {lane} has skipped a range of source {source}: the state is damaged")
            found.setdefault((lane, source), []).append(skipped)
    return LaneRows(lanes, rows, {at: tuple(skipped) for at, skipped in found.items()})


def _of_source(row: Iterable[int]) -> "_OfSource":
    source, *skipped = map(operator.index, row)
    return source, SkippedRange(*skipped)


def _more_from_json(value: Any, key: str) -> "dict[str, list[_OfSource]]":
    try:
        return {lane: [_of_source(row) for row in rows] for lane, rows in json.loads(value).items()}
    except (TypeError, ValueError, AttributeError) as error:
        raise StateError(f"{key} is {value!r:.80}, not skipped ranges of lanes: the state is damaged") from error


def _read_json(state: Mapping[str, Any], num_sources: int, columns: int) -> LaneRows:
    lanes, rows, found = [], [], {}
    for key in sorted(key for key in state if key.startswith("lanes.")):
        name = key.removeprefix("lanes.")
        if not name.isdecimal():
            raise StateError(f"the state has the key {key!r}, which is no lane's: the state is damaged")
        skipped_key = f"skipped_ranges.{name}"
        if skipped_key not in state:
            raise StateError(f"the state has no {skipped_key}: the state is damaged")
        lanes.append(int(name))
        rows.append(_rows_of(state[key], key, (num_sources, columns)))
        for source, skipped in enumerate(_ranges_of_sources(state[skipped_key], skipped_key, num_sources)):
            if skipped:
                found[lanes[-1], source] = tuple(skipped)
    return LaneRows(lanes, np.array(rows, dtype=np.int64).reshape(len(rows), num_sources, columns), found)


def _rows_of(value: Any, key: str, shape: tuple[int, int]) -> NDArray[np.int64]:
    """A lane's rows from lists, a tensor or an array."""
    try:
        rows = torch.as_tensor(value, dtype=torch.int64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise StateError(f"{key} is {value!r:.80}, not rows of integers: the state is damaged") from error
    if rows.shape != shape:
        raise StateError(f"{key} has shape {tuple(rows.shape)}, not {shape}: the state is damaged")
    return rows.numpy()


def _ranges_of_sources(value: Any, key: str, num_sources: int) -> list[list[SkippedRange]]:
    try:
        lists = [_to_ranges(rows) for rows in json.loads(value)]
    except (TypeError, ValueError) as error:
        raise StateError(f"{key} is {value!r:.80}, not JSON lists of skipped ranges: the state is damaged") from error
    if len(lists) != num_sources:
        raise StateError(f"{key} has {len(lists)} lists for {num_sources} sources: the state is damaged")
    return lists


def to_plain(held: LaneRows) -> dict[str, list[list[int]] | str]:
    """The keys of a state in plain JSON."""
    plain: dict[str, list[list[int]] | str] = {}
    for lane, rows in zip(held.lanes, held.rows.tolist(), strict=True):
        skipped = [_to_rows(held.skipped_ranges.get((lane, source), ())) for source in range(len(rows))]
        plain[f"lanes.{lane:06d}"] = rows
        plain[f"skipped_ranges.{lane:06d}"] = json.dumps(skipped)
    return plain


def leftovers_to_json(left: Mapping[str, Leftovers]) -> str:
    """A JSON object with [epoch, text] for each source."""
    return json.dumps({name: list(each) for name, each in left.items()})


def leftovers_from_json(value: Any) -> dict[str, Leftovers]:
    """What `leftovers_to_json` wrote; a `StateError` where it did not."""
    try:
        left = {name: Leftovers(operator.index(epoch), text) for name, (epoch, text) in json.loads(value).items()}
        for each in left.values():
            each.rows()  # where it can be read
    except (TypeError, ValueError, AttributeError) as error:
        raise StateError(f"leftovers is {value!r:.80}, not a JSON object of leftovers: the state is damaged") from error
    return left


def still_left(
    left: Mapping[str, Leftovers], sources: Sequence[str], rows: NDArray[np.int64]
) -> dict[str, Leftovers]:
    """The leftovers of which a lane has something to read.

    Args:
        left: by source.
        sources: names [S].
        rows: int64 [lanes, S, columns], the first column being the epoch.
    """
    epochs = dict(zip(sources, rows[:, :, 0].min(axis=0).tolist(), strict=True)) if left else {}
    return {name: each for name, each in left.items() if epochs[name] <= each.epoch}


def is_of_lanes(key: str) -> bool:
    """Whether a key of a state, in either form, is about lanes; all others are equal on all ranks."""
    return key in {"rows", "skipped_ranges"} or key.startswith(("lanes.", "skipped_ranges."))


def ranges_to_json(skipped_ranges: Iterable[SkippedRange]) -> str:
    """A JSON list with a row of integers for each skipped range; `part` is left out where it is -1."""
    return json.dumps(_to_rows(skipped_ranges))


def _to_rows(skipped_ranges: Iterable[SkippedRange]) -> list[tuple[int, ...]]:
    return [skipped if skipped.part >= 0 else skipped[:-1] for skipped in skipped_ranges]


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
