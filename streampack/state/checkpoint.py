"""The state of a loader: plain values, one key per lane, versioned, refused loudly where it does not fit.

    "lanes.000123"   int64 [len(FIELDS)]: the lane's cursor, packs given, running digest and counts
    "skipped_ranges.000123"   JSON string: the bad records and broken shards that the lane passed over
    and, equal on all ranks: "version", "order_version", "fingerprint" (JSON), "global_pack", "first_epoch"

One key per lane is what lets torch.distributed.checkpoint save the state from any ranks and load it on any others.
"""

import json
import operator
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from streampack.corpus.partition import packs_before
from streampack.corpus.table import differing_block
from streampack.errors import StateError
from streampack.lanes.reader import SkippedRange
from streampack.lanes.stream import LanePosition
from streampack.records import Counts, Cursor

STATE_VERSION = 2
"""The layout of the state."""
ORDER_VERSION = 1
"""The order of documents and packs that a seed stands for; a release that changes it counts this up."""

FIELDS = (*Cursor._fields, "packs", "digest", *Counts._fields)
PACKS = len(Cursor._fields)
"""Where the cursor of a row ends."""
DIGEST = PACKS + 1
COUNTS = DIGEST + 1

RECUTTABLE = frozenset({"seq_len", "boundary", "packing", "overflow", "tail", "lookahead", "pad_id"})
"""Fields that only decide how rows are cut into packs: a state can go on with other values, from the same row."""

State: TypeAlias = dict[str, torch.Tensor | str | int]


@dataclass(slots=True)
class Committed:
    """The committed rows of the lanes of one rank: the only truth about where the run is."""

    lanes: range
    num_lanes: int
    """Over all ranks."""
    rows: NDArray[np.int64]
    """int64 [len(lanes), len(FIELDS)]."""
    skipped_ranges: list[list[SkippedRange]]
    global_pack: int = 0
    """All global packs below this one have been handed out, over all ranks."""
    first_epoch: int = 0
    """The epoch with which the current pass began."""

    @classmethod
    def fresh(cls, lanes: range, num_lanes: int) -> "Committed":
        """The start of a run."""
        rows = np.zeros((len(lanes), len(FIELDS)), dtype=np.int64)
        rows[:, :PACKS] = Cursor()
        return cls(lanes=lanes, num_lanes=num_lanes, rows=rows, skipped_ranges=[[] for _ in lanes])

    def copy(self) -> "Committed":
        return Committed(
            lanes=self.lanes,
            num_lanes=self.num_lanes,
            rows=self.rows.copy(),
            skipped_ranges=[list(skipped_ranges) for skipped_ranges in self.skipped_ranges],
            global_pack=self.global_pack,
            first_epoch=self.first_epoch,
        )

    def start(self, place: int) -> LanePosition:
        """Where the lane at a place in `lanes` goes on."""
        row = self.rows[place].tolist()
        return LanePosition(
            cursor=Cursor(*row[:PACKS]),
            packs=row[PACKS],
            documents=row[COUNTS + Counts._fields.index("documents")],
            skipped_ranges=frozenset(self.skipped_ranges[place]),
        )

    def add(self, places: NDArray[np.intp], changes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Commit what the lanes at `places` have given, none of them twice; returns their rows as they were before.

        `changes`, int64 [n, len(FIELDS)]: the cursor that a lane goes on from, and what is added to the other fields.
        """
        before = self.rows.take(places, axis=0)
        after = before + changes  # the digest is meant to wrap around
        after[:, :PACKS] = changes[:, :PACKS]
        self.rows[places] = after
        return before

    def packs(self, place: int) -> int:
        """How many packs the lane at a place has given, fillers included."""
        return int(self.rows[place, PACKS])

    def count(self, place: int, counts: Counts) -> None:
        """Add counts that belong to no pack: what came after a lane's last one."""
        self.rows[place, COUNTS:] += np.array(counts, dtype=np.int64)

    def end_pass(self, epoch: int) -> None:
        """Put every lane at the start of `epoch`, at the same global pack."""
        self.rows[:, :PACKS] = Cursor(epoch=epoch)
        self.rows[:, PACKS] = [packs_before(self.global_pack, lane, self.num_lanes) for lane in self.lanes]
        self.first_epoch = epoch

    def counts(self) -> Counts:
        """The lanes' counts added up."""
        return Counts(*self.rows[:, COUNTS:].sum(axis=0).tolist())

    def digest(self) -> int:
        """The lanes' digests added up modulo 2**64."""
        return int(self.rows[:, DIGEST].view(np.uint64).sum(dtype=np.uint64))

    def to_state(self, fingerprint: Mapping[str, Any]) -> State:
        """The state as plain values and fresh tensors, nothing shared with the running loader."""
        state: State = {
            "version": STATE_VERSION,
            "order_version": ORDER_VERSION,
            "fingerprint": json.dumps(fingerprint, sort_keys=True),
            "global_pack": self.global_pack,
            "first_epoch": self.first_epoch,
        }
        for place, lane in enumerate(self.lanes):
            state[f"lanes.{lane:06d}"] = torch.tensor(self.rows[place].tolist(), dtype=torch.int64)
            state[f"skipped_ranges.{lane:06d}"] = skipped_ranges_to_json(self.skipped_ranges[place])
        return state

    @classmethod
    def from_state(cls, state: Mapping[str, Any], lanes: range, num_lanes: int) -> "Committed":
        """The rows of `lanes` out of a state that may hold more; raises `StateError` where one is missing or odd."""
        committed = cls.fresh(lanes, num_lanes)
        committed.global_pack = int(state["global_pack"])
        committed.first_epoch = int(state["first_epoch"])
        for place, lane in enumerate(lanes):
            key = f"lanes.{lane:06d}"
            missing = [name for name in (key, f"skipped_ranges.{lane:06d}") if name not in state]
            if missing:
                held = sum(name.startswith("lanes.") for name in state)
                raise StateError(
                    f"the state has no {missing[0]}: it holds {held} of {num_lanes} lanes, and this rank owns "
                    f"{len(lanes)} of them. A rank's own state fits as many ranks only: join the states of all with "
                    "streampack.merge_state_dicts, or save and load them with torch.distributed.checkpoint."
                )
            committed.rows[place] = _row_of(state[key], key)
            committed.skipped_ranges[place] = skipped_ranges_from_json(
                state[f"skipped_ranges.{lane:06d}"], f"skipped_ranges.{lane:06d}"
            )
            packs, due = int(committed.rows[place, PACKS]), packs_before(committed.global_pack, lane, num_lanes)
            if packs != due:
                raise StateError(
                    f"{key} has given {packs} packs, and the state stands at global pack {committed.global_pack}, "
                    f"which makes {due}: parts of different steps were mixed"
                )
        return committed


def _row_of(value: Any, key: str) -> NDArray[np.int64]:
    """A lane's row from a tensor, an array or a list."""
    try:
        row = torch.as_tensor(value, dtype=torch.int64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise StateError(f"{key} is {value!r:.80}, not a row of integers: the state is damaged") from error
    if row.shape != (len(FIELDS),):
        raise StateError(f"{key} has shape {tuple(row.shape)}, not ({len(FIELDS)},): the state is damaged")
    return row.numpy()


def skipped_ranges_to_json(skipped_ranges: Iterable[SkippedRange]) -> str:
    """A row of integers for each skipped_range, of which one that is a record as a whole or more has no part."""
    return json.dumps(
        [skipped_range if skipped_range.part >= 0 else skipped_range[:-1] for skipped_range in skipped_ranges]
    )


def skipped_ranges_from_json(value: Any, key: str) -> list[SkippedRange]:
    """A lane's skipped_ranges; `key` is where they stand, for the `StateError` of what is none."""
    try:
        return [
            SkippedRange(*(operator.index(number) for number in skipped_range)) for skipped_range in json.loads(value)
        ]
    except (TypeError, ValueError) as error:
        raise StateError(f"{key} is {value!r:.80}, not a JSON list of skipped_ranges: the state is damaged") from error


def check_versions(state: Mapping[str, Any]) -> None:
    """Raise `StateError` unless this release can read the state."""
    missing = [
        key for key in ("version", "order_version", "fingerprint", "global_pack", "first_epoch") if key not in state
    ]
    if missing:
        raise StateError(f"not a state of a PackedDataLoader: no {', '.join(missing)} among its {len(state)} keys")
    for key, known in (("version", STATE_VERSION), ("order_version", ORDER_VERSION)):
        if state[key] != known:
            raise StateError(
                f"the state has {key} {state[key]}, this release of streampack reads {known}: "
                "go on with the release that wrote it, or start a new run"
            )


def fingerprint_of(state: Mapping[str, Any]) -> dict[str, Any]:
    """The fingerprint that a state was saved with."""
    try:
        fingerprint = json.loads(state["fingerprint"])
    except (TypeError, ValueError) as error:
        raise StateError(f"the state's fingerprint is not JSON: {state['fingerprint']!r:.80}") from error
    if not isinstance(fingerprint, dict):
        raise StateError(f"the state's fingerprint is not an object: {fingerprint!r:.80}")
    return fingerprint


def check_fingerprint(saved: Mapping[str, Any], now: Mapping[str, Any], *, allow: Collection[str] = ()) -> None:
    """Raise `StateError` that names every field that differs, both values, and what would work."""
    odd = set(allow) - RECUTTABLE
    if odd:
        raise StateError(
            f"allow={sorted(odd)} cannot be allowed: it changes which rows come. What only re-cuts rows can be: "
            f"{', '.join(sorted(RECUTTABLE))}."
        )
    differences = describe_differences(saved, now, skip=allow)
    if differences:
        raise StateError("the state is of another run:\n  " + "\n  ".join(differences))


def describe_differences(
    saved: Mapping[str, Any],
    now: Mapping[str, Any],
    *,
    skip: Collection[str] = (),
    saved_where: str = "in the checkpoint",
    now_where: str = "now",
    advise: bool = True,
) -> list[str]:
    """A line for each field of two fingerprints that differs: its name, both values, and what would work."""
    lines = []
    for name in sorted({*saved, *now} - set(skip)):
        before, after = saved.get(name), now.get(name)
        if before == after:
            continue
        if name == "shards" and isinstance(before, dict) and isinstance(after, dict):
            what = _describe_shards(before, after, saved_where, now_where)
            remedy = "point the dataset at the same shards in the same order, or start a new run"
        else:
            what = f"{before!r} {saved_where}, {after!r} {now_where}"
            remedy = f"set {name} back to the checkpoint's value, or start a new run"
        if name in RECUTTABLE:
            remedy = f'load_state_dict(state, allow={{"{name}"}}) goes on from the same row with the new value'
        lines.append(f"{name}: {what}" + (f"; {remedy}" if advise else ""))
    return lines


def _describe_shards(before: Mapping[str, Any], after: Mapping[str, Any], saved_where: str, now_where: str) -> str:
    for key in ("num_shards", "total_bytes"):
        if before.get(key) != after.get(key):
            return f"{key} is {before.get(key)} {saved_where}, {after.get(key)} {now_where}"
    where = differing_block(before.get("blocks", ()), after.get("blocks", ()), num_shards=int(after["num_shards"]))
    if where is None:
        return f"{dict(before)} {saved_where}, {dict(after)} {now_where}"
    return f"names or sizes differ among shards {where.start} to {where.stop - 1} of {after['num_shards']}"


def merge_state_dicts(states: Iterable[Mapping[str, Any]]) -> State:
    """One state of all lanes from the states of all ranks; refuses ranks that stand at different steps.

    Raises:
        StateError: where two states differ in anything but their lanes, or hold one lane in different positions.
    """
    merged: State = {}
    for rank, state in enumerate(states):
        check_versions(state)
        for key, value in state.items():
            if key not in merged:
                if rank and not key.startswith(("lanes.", "skipped_ranges.")):
                    raise StateError(f"state {rank} has {key!r}, which the ones before it have not")
                merged[key] = value.clone() if isinstance(value, torch.Tensor) else value
                continue
            held = merged[key]
            is_row = key.startswith("lanes.")
            same = torch.equal(torch.as_tensor(held), torch.as_tensor(value)) if is_row else held == value
            if not same and key == "global_pack":
                raise StateError(
                    f"the ranks stand at different steps: global_pack is {held} in state 0, {value} in state {rank}. "
                    "Take every rank's state after the same batch."
                )
            if not same:
                raise StateError(f"{key} differs between the ranks' states: {held!r}, and {value!r} in state {rank}")
    if not merged:
        raise StateError("no states to merge")
    return merged


def to_json(state: Mapping[str, Any]) -> str:
    """The state as one JSON text; `load_state_dict(json.loads(text))` takes it back."""
    plain = {key: value.tolist() if isinstance(value, torch.Tensor) else value for key, value in state.items()}
    return json.dumps(plain)


def from_json(text: str) -> State:
    """The state that `to_json` wrote."""
    plain: dict[str, Any] = json.loads(text)
    return {
        key: torch.tensor(value, dtype=torch.int64) if key.startswith("lanes.") else value
        for key, value in plain.items()
    }
