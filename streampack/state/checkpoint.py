"""The state of a loader: the committed positions of its lanes as plain values, and back.

In:    what each pack that is handed out changes for its lane; a state of any number of ranks.
Out:   the rows of a rank's lanes; a state, fresh at each call.
Never: a state of another run that is accepted: `StateError` names what differs.

    "rows"              int64 table: each lane's cursor, packs given, running digest and counts
    "skipped_ranges"    int64 table: the bad records and broken shards that the lanes have skipped and may meet again
    and, equal on all ranks: "version", "order_version", "fingerprint" (JSON), "libraries" (JSON), "global_pack",
    "first_epoch"

`forms.py` describes the tables; torch.distributed.checkpoint saves them from any ranks and loads them on any others.
"""

import json
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from streampack.corpus.epochs import Corpus
from streampack.corpus.partition import packs_before
from streampack.errors import StateError
from streampack.lanes.position import NUM_CURSOR, LanePosition, SkippedRange, advance_rows
from streampack.lanes.run import LaneStart
from streampack.records import Counts, Cursor
from streampack.state.fingerprint import PLACING
from streampack.state.forms import read_lanes, to_tables

STATE_VERSION = 3
"""The layout of the state: its keys, and the columns of a lane's row."""
ORDER_VERSION = 2
"""The order of documents and packs for a seed; a release that changes the order raises this."""

FIELDS = (
    *("epoch", "piece", "sample", "record", "place", "part", "row", "given"),
    *("packs", "num_skipped", "digest"),
    *("documents", "tokens", "targets", "padding", "bad_records", "split_documents", "truncated_documents"),
    *("truncated_tokens", "dropped_documents", "dropped_tokens", "targetless_packs", "targetless_tokens"),
    *("tail_tokens", "fillers", "skipped_packs"),
)
"""The columns of a lane's row in a state; the first ones are those of a `Cursor`.

They are written out because they are saved: a new column is a new STATE_VERSION."""
PACKS = FIELDS.index("packs")
NUM_SKIPPED = FIELDS.index("num_skipped")
"""What the lane has skipped since the start of the run; its skipped ranges are those of its present epoch."""
DIGEST = FIELDS.index("digest")
COUNTS = [FIELDS.index(name) for name in Counts._fields]
_GIVEN = FIELDS.index("given")
_FILLERS = FIELDS.index("fillers")
_DOCUMENTS = FIELDS.index("documents")

State: TypeAlias = dict[str, torch.Tensor | str | int]


@dataclass(slots=True)
class Committed:
    """The committed rows of the lanes of one rank; no other place says where the run is."""

    lanes: range
    num_lanes: int
    """Over all ranks."""
    rows: NDArray[np.int64]
    """int64 [len(lanes), len(FIELDS)]."""
    skipped_ranges: list[tuple[SkippedRange, ...]]
    """Of each lane."""
    global_pack: int = 0
    """All global packs below this one have been handed out, over all ranks."""
    first_epoch: int = 0
    """The epoch with which the current pass began."""

    @classmethod
    def fresh(cls, lanes: range, num_lanes: int) -> "Committed":
        """The start of a run."""
        rows = np.zeros((len(lanes), len(FIELDS)), dtype=np.int64)
        rows[:, :NUM_CURSOR] = Cursor()
        return cls(lanes=lanes, num_lanes=num_lanes, rows=rows, skipped_ranges=[() for _ in lanes])

    def copy(self) -> "Committed":
        return Committed(
            lanes=self.lanes,
            num_lanes=self.num_lanes,
            rows=self.rows.copy(),
            skipped_ranges=list(self.skipped_ranges),
            global_pack=self.global_pack,
            first_epoch=self.first_epoch,
        )

    def position(self, lane_index: int) -> LanePosition:
        """Where a lane continues; `lane_index`: its index in `lanes`, here and below."""
        row = self.rows[lane_index].tolist()
        return LanePosition(
            cursor=Cursor(*row[:NUM_CURSOR]),
            packs=row[PACKS] - row[_FILLERS],
            documents=row[_DOCUMENTS],
            num_skipped=row[NUM_SKIPPED],
            skipped_ranges=frozenset(self.skipped_ranges[lane_index]),
        )

    def start(self, lane_index: int, num_sources: int) -> LaneStart:
        """Where a lane continues in the sources of a run."""
        assert num_sources == 1, "a lane has one row"
        return LaneStart(self.packs(lane_index), (self.position(lane_index),))

    def add(self, lane_indexes: NDArray[np.intp], changes: NDArray[np.int64]) -> None:
        """Commit packs: [n], the lane of each, and int64 [n, len(FIELDS)], as `advance_rows` takes them."""
        advance_rows(self.rows, lane_indexes, changes)

    def prune(self) -> None:
        """Drop the skipped ranges that their lanes cannot meet again."""
        for lane_index, skipped in enumerate(self.skipped_ranges):
            if skipped:
                here = tuple(self.rows[lane_index, :2].tolist())
                self.skipped_ranges[lane_index] = tuple(each for each in skipped if each[:2] >= here)

    def add_fillers(self, lane_indexes: NDArray[np.intp]) -> None:
        """Commit fillers, each in place of a pack of a lane that has ended; its cursor stays."""
        numbers = np.bincount(lane_indexes, minlength=len(self.rows))
        self.rows[:, PACKS] += numbers
        self.rows[:, _FILLERS] += numbers

    def packs(self, lane_index: int) -> int:
        """How many packs the lane has given, fillers included."""
        return int(self.rows[lane_index, PACKS])

    def count(self, lane_index: int, counts: Counts, *, num_skipped: int) -> None:
        """Add what belongs to no pack: what came after a lane's last one."""
        self.rows[lane_index, COUNTS] += np.array(counts, dtype=np.int64)
        self.rows[lane_index, NUM_SKIPPED] += num_skipped

    def end_pass(self, epoch: int) -> None:
        """Put every lane at the start of `epoch`, at the same global pack."""
        self.rows[:, :NUM_CURSOR] = Cursor(epoch=epoch)
        self.rows[:, PACKS] = [packs_before(self.global_pack, lane, self.num_lanes) for lane in self.lanes]
        self.first_epoch = epoch

    def check_end(self, epochs: int) -> None:
        """Raise `StateError` where a lane is past the end of a pass of so many epochs, which would come to it again."""
        end = self.first_epoch + epochs
        begins = np.array(Cursor(epoch=end))
        cursors = self.rows[:, :NUM_CURSOR]
        past = (cursors[:, 0] > end) | ((cursors[:, 0] == end) & (cursors != begins).any(axis=1))
        if not past.any():
            return
        last = int(cursors[past, 0].max())
        lane = self.lanes[int(np.flatnonzero(past & (cursors[:, 0] == last))[0])]
        raise StateError(
            f"epochs={epochs} ends the pass, which began with epoch {self.first_epoch}, after epoch {end - 1}, and in "
            f"the state lane {lane} is in epoch {last} already. epochs={last + 1 - self.first_epoch} ends it after "
            "that epoch, epochs=None never."
        )

    def check_cursors(self, corpus: Corpus, *, has_packing_windows: bool) -> None:
        """Raise `StateError` where a lane cannot continue: the state is damaged."""
        for lane, cursor in zip(self.lanes, self.rows[:, :NUM_CURSOR].tolist(), strict=True):
            check_cursor(Cursor(*cursor), corpus, lane, has_packing_windows=has_packing_windows)

    def check_windows(self, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        """Raise `StateError` where a lane is inside a packing window whose packs would hold other documents now.

        Args:
            saved: the fingerprint of the state.
            now: that of this run, which may differ in what `load_state_dict` was told to allow.
        """
        changed = [name for name in PLACING if saved.get(name) != now.get(name)]
        given = self.rows[:, _GIVEN]
        if not (changed and given.any()):
            return
        lane_index = int(given.argmax())
        raise StateError(
            f"lane {self.lanes[lane_index]} is inside a packing window of best_fit, {given[lane_index]} packs of which "
            f"are out, and {', '.join(changed)} of this run would place the window's documents in other packs: some "
            "would come twice and others never. Continue with the checkpoint's values, or with a state in which no "
            "lane is inside a window, such as that after a finite pass."
        )

    def counts(self) -> Counts:
        """The lanes' counts added up."""
        return Counts(*self.rows[:, COUNTS].sum(axis=0).tolist())

    def digest(self) -> int:
        """The lanes' digests added up modulo 2**64, as an int64."""
        return int(self.rows[:, DIGEST].sum(dtype=np.int64))

    def num_skipped(self) -> int:
        """What the lanes have skipped since the start of the run."""
        return int(self.rows[:, NUM_SKIPPED].sum())

    def to_state(self, fingerprint: Mapping[str, Any], libraries: Mapping[str, str]) -> State:
        """The state as plain values and new tensors; it shares no memory with the running loader."""
        self.prune()
        skipped = {lane: each for lane, each in zip(self.lanes, self.skipped_ranges, strict=True) if each}
        return {
            "version": STATE_VERSION,
            "order_version": ORDER_VERSION,
            "fingerprint": json.dumps(fingerprint, sort_keys=True),
            "libraries": json.dumps(libraries, sort_keys=True),
            "global_pack": self.global_pack,
            "first_epoch": self.first_epoch,
            **to_tables(self.lanes, self.num_lanes, self.rows, skipped),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], lanes: range, num_lanes: int) -> "Committed":
        """The rows of `lanes` out of a state that may hold more lanes.

        Raises:
            StateError: a lane is missing, its row or its skipped ranges are damaged, or it is at another step.
        """
        committed = cls.fresh(lanes, num_lanes)
        committed.global_pack = int(state["global_pack"])
        committed.first_epoch = int(state["first_epoch"])
        held = read_lanes(state, num_lanes, len(FIELDS))
        index_of = {lane: index for index, lane in enumerate(held.lanes)}
        missing = [lane for lane in lanes if lane not in index_of]
        if missing:
            raise StateError(
                f"the state has no lane {missing[0]}: it holds {len(index_of)} of {num_lanes} lanes, and this rank "
                f"owns {len(lanes)} of them. A rank's own state fits as many ranks only: join the states of all with "
                "streampack.merge_state_dicts, or save and load them with torch.distributed.checkpoint."
            )
        committed.rows[:] = held.rows[[index_of[lane] for lane in lanes]]
        committed.skipped_ranges = [held.skipped_ranges.get(lane, ()) for lane in lanes]
        for lane_index, lane in enumerate(lanes):
            packs, due = committed.packs(lane_index), packs_before(committed.global_pack, lane, num_lanes)
            if packs != due:
                raise StateError(
                    f"lane {lane} has given {packs} packs, and the state is at global pack {committed.global_pack}, "
                    f"which makes {due}: parts of different steps were mixed"
                )
        return committed


def check_cursor(cursor: Cursor, corpus: Corpus, lane: int, *, has_packing_windows: bool) -> None:
    """Raise `StateError` where a lane of this run cannot continue at the cursor: the state is damaged."""
    is_wrong = any(map(operator.lt, cursor, Cursor())) or bool(cursor.given and not has_packing_windows)
    if not is_wrong and cursor.piece:
        is_wrong = cursor.piece > len(corpus.pieces(cursor.epoch, lane))
    if is_wrong:
        raise StateError(f"lane {lane} continues at {cursor}, which is no place in this run: the state is damaged")


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
                f"the state has {key} {state[key]}, this release of streampack reads {known} (another "
                f"{'layout' if key == 'version' else 'order of documents'}): "
                "continue with the release that wrote it, or start a new run"
            )
