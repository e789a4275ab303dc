"""The state of a loader: the committed positions of its lanes as plain values, and back.

In:    what each pack that is handed out changes for its lane and source; a state of any ranks and sources.
Out:   the rows of a rank's lanes; a state, fresh at each call.
Never: a state of another run that is accepted: `StateError` names what differs.

    "rows"              int64 table: for each lane and source the cursor, packs given, running digest and counts
    "skipped_ranges"    int64 table: the bad records and broken shards that were skipped there and may be met again
    and, equal on all ranks: "version", "order_version", "fingerprint" (JSON), "libraries" (JSON), "sources" (JSON: the
    names, in the order of the tables), "stages" (JSON: those that have begun), "global_pack", "first_epoch",
    "since" (the global pack since which there are these lanes), "leftovers" (JSON: what earlier lanes had left;
    a state of all lanes is without it once all are past it)

`forms.py` describes the tables; torch.distributed.checkpoint saves them from any ranks and loads them on any others.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from streampack.corpus.leftovers import Leftovers
from streampack.corpus.partition import packs_before
from streampack.corpus.schedule import StageOfRun
from streampack.corpus.shares import DEFAULT
from streampack.errors import StateError
from streampack.lanes.position import NUM_CURSOR, LaneEnd, LanePosition, SkippedRange, advance_rows
from streampack.lanes.run import Continued, LaneStart
from streampack.records import Counts, Cursor
from streampack.state.fingerprint import carrying, fingerprint_of
from streampack.state.forms import (
    COMMON,
    leftovers_from_json,
    leftovers_to_json,
    read_lanes,
    sources_of,
    still_left,
    to_tables,
)
from streampack.state.stages import begun, stages_from_json, stages_to_json

STATE_VERSION = 6
"""The layout of the state: its keys, and the columns of a lane's row."""
ORDER_VERSION = 2
"""The order of documents and packs for a seed; a release that changes the order raises this."""

FIELDS = (
    *("epoch", "piece", "sample", "record", "place", "part", "row", "given", "stage", "rest", "until"),
    *("last", "last_sample"),
    *("packs", "num_skipped", "digest"),
    *("documents", "tokens", "targets", "padding", "bad_records", "split_documents", "truncated_documents"),
    *("truncated_tokens", "dropped_documents", "dropped_tokens", "targetless_packs", "targetless_tokens"),
    *("tail_tokens", "fillers", "skipped_packs"),
)
"""The columns of a row in a state, of a lane and a source; the first ones are those of a `Cursor`.

They are written out because they are saved: a new column is a new STATE_VERSION."""
PACKS = FIELDS.index("packs")
NUM_SKIPPED = FIELDS.index("num_skipped")
"""What was skipped since the start of the run; the skipped ranges are those of the present epoch."""
DIGEST = FIELDS.index("digest")
COUNTS = [FIELDS.index(name) for name in Counts._fields]
_NEWER = ("sources", "stages", "since", "leftovers")
"""Keys that states of older releases do not have; what is wrong with those is their version."""
_UNTIL = FIELDS.index("until")
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
    """int64 [len(lanes) * S, len(FIELDS)]: of each lane one row for each of the S sources. The fillers of a lane count
    in the row of its first source."""
    skipped_ranges: list[tuple[SkippedRange, ...]]
    """Of each row."""
    sources: tuple[str, ...] = (DEFAULT,)
    """Names [S]: those of the run in its order, then those that only its state has, whose rows stay as they are."""
    stages: tuple[StageOfRun, ...] = ()
    """Of the run; a state has those of them that have begun."""
    saved_fingerprint: Mapping[str, Any] | None = None
    """Of the state that was loaded: it describes the sources that the run does not name."""
    global_pack: int = 0
    """All global packs below this one have been handed out, over all ranks."""
    first_epoch: int = 0
    """The epoch with which the current pass began."""
    since: int = 0
    """The global pack since which the run has these lanes; 0: it has had no others."""
    left: Mapping[str, Leftovers] = field(default_factory=dict)
    """By source, what lanes that the run had before have left; perhaps all of these lanes are past it, others not."""

    @classmethod
    def fresh(
        cls,
        lanes: range,
        num_lanes: int,
        sources: Sequence[str] = (DEFAULT,),
        stages: Sequence[StageOfRun] = (),
    ) -> "Committed":
        """The start of a run."""
        num_rows = len(lanes) * len(sources)
        rows = np.zeros((num_rows, len(FIELDS)), dtype=np.int64)
        rows[:, :NUM_CURSOR] = Cursor()
        return cls(
            lanes=lanes,
            num_lanes=num_lanes,
            rows=rows,
            skipped_ranges=[()] * num_rows,
            sources=tuple(sources),
            stages=tuple(stages),
        )

    @property
    def begun(self) -> tuple[StageOfRun, ...]:
        """The stages of which packs have been handed out."""
        return begun(self.stages, self.global_pack)

    @property
    def continued(self) -> Continued:
        """What a run that goes on from here needs to know."""
        left = tuple(still_left(self.left, self.sources, self._by_lane()).items())
        return Continued(self.begun, self.first_epoch, self.since, left, self.lanes if left else ())

    def copy(self) -> "Committed":
        return replace(self, rows=self.rows.copy(), skipped_ranges=list(self.skipped_ranges))

    # -- one lane: `lane_index` is its index in `lanes` ----------------------------------------------------------------

    def row(self, lane_index: int, source: int) -> int:
        """The index of the row of a lane and a source."""
        return lane_index * len(self.sources) + source

    def position(self, lane_index: int, source: int = 0) -> LanePosition:
        """Where a lane continues in a source."""
        index = self.row(lane_index, source)
        row = self.rows[index].tolist()
        return LanePosition(
            cursor=Cursor(*row[:NUM_CURSOR]),
            packs=row[PACKS] - row[_FILLERS],
            documents=row[_DOCUMENTS],
            num_skipped=row[NUM_SKIPPED],
            skipped_ranges=frozenset(self.skipped_ranges[index]),
        )

    def packs(self, lane_index: int) -> int:
        """How many packs the lane has given, of all sources, fillers included."""
        return int(self._by_lane()[lane_index, :, PACKS].sum())

    def start(self, lane_index: int, num_sources: int) -> LaneStart:
        """Where a lane continues; `num_sources`: of the run, which are the first ones of `sources`."""
        return LaneStart(
            self.packs(lane_index), tuple(self.position(lane_index, source) for source in range(num_sources))
        )

    def end_source(self, lane_index: int, end: LaneEnd, end_epoch: int) -> None:
        """A source has no more documents in a lane: count what came after its last pack, once.

        It continues with `end_epoch`, if ever: where that is raised, or in the next pass.
        """
        index = self.row(lane_index, end.source)
        self.rows[index, COUNTS] += np.array(end.counts, dtype=np.int64)
        self.rows[index, NUM_SKIPPED] += len(end.skipped_ranges)
        self.rows[index, :NUM_CURSOR] = Cursor(epoch=end_epoch)
        self.skipped_ranges[index] = ()

    # -- all lanes -----------------------------------------------------------------------------------------------------

    def _by_lane(self) -> NDArray[np.int64]:
        """The rows [len(lanes), S, len(FIELDS)], which share their memory with `rows`."""
        return self.rows.reshape(len(self.lanes), len(self.sources), len(FIELDS))

    def add(self, row_indexes: NDArray[np.intp], changes: NDArray[np.int64]) -> None:
        """Commit packs: [n], the row of each, and int64 [n, len(FIELDS)], as `advance_rows` takes them."""
        advance_rows(self.rows, row_indexes, changes)

    def prune(self) -> None:
        """Drop the skipped ranges that their lanes cannot meet again."""
        for lane_index, skipped in enumerate(self.skipped_ranges):
            if skipped:
                here = tuple(self.rows[lane_index, :2].tolist())
                self.skipped_ranges[lane_index] = tuple(each for each in skipped if each[:2] >= here)

    def add_fillers(self, lane_indexes: NDArray[np.intp]) -> None:
        """Commit fillers, each in place of a pack of a lane that has ended; its cursors stay."""
        numbers = np.bincount(lane_indexes, minlength=len(self.lanes))
        first = self._by_lane()[:, 0]
        first[:, PACKS] += numbers
        first[:, _FILLERS] += numbers

    def end_pass(self, epoch: int | None) -> None:
        """Put every lane at the same global pack, and all sources at the start of `epoch`; None: they stay."""
        if epoch is not None:
            self.rows[:, :NUM_CURSOR] = Cursor(epoch=epoch)
            self.first_epoch = epoch
            self.left = {}
        by_lane = self._by_lane()
        due = np.array([packs_before(self.global_pack, lane, self.num_lanes) for lane in self.lanes])
        by_lane[:, 0, PACKS] += due - by_lane[:, :, PACKS].sum(axis=1)

    def check_end(self, epochs: int) -> None:
        """Raise `StateError` where a lane is past the end of a pass of so many epochs, which would come to it again."""
        end = self.first_epoch + epochs
        begun = self.epochs_begun(0)  # such a run has one source
        lane, needed = self.lanes[int(begun.argmax())], int(begun.max())
        if needed <= end:
            return
        raise StateError(
            f"epochs={epochs} ends the pass, which began with epoch {self.first_epoch}, after epoch {end - 1}, and in "
            f"the state lane {lane} is in epoch {needed - 1} already. epochs={needed - self.first_epoch} ends it after "
            "that epoch, epochs=None never."
        )

    def epochs_begun(self, source: int) -> NDArray[np.int64]:
        """[len(lanes)]: how many epochs of a source each lane has begun.

        All of a packing window that is half out are, and those of leftovers: some lane had begun the last one of them.
        """
        cursors = self._by_lane()[:, source, :NUM_CURSOR]
        begun: NDArray[np.int64] = cursors[:, 0] + (cursors[:, 1:] != Cursor()[1:]).any(axis=1)
        if (left := self.left.get(self.sources[source])) is not None:
            begun = np.where(cursors[:, 0] <= left.epoch, left.epoch + 1, begun)
        return np.maximum(begun, cursors[:, _UNTIL])

    def check_max_epochs(self, limits: Mapping[str, int | None]) -> None:
        """Raise `StateError` where a lane is past the last epoch of a source. `limits`: `max_epochs` by source."""
        for index, (name, most) in enumerate(limits.items()):
            begun = self.epochs_begun(index)
            if most is None or not (begun > most).any():
                continue
            lane, needed = self.lanes[int(begun.argmax())], int(begun.max())
            raise StateError(
                f"max_epochs={most} of source {name!r} ends it before epoch {most}, counted from 0, and in the state "
                f"lane {lane} is in epoch {needed - 1} already. max_epochs={needed} ends it after that epoch, "
                "None never; a stage without a weight for it pauses it where it is."
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
        sees_all = len(self.lanes) == self.num_lanes
        left = still_left(self.left, self.sources, self._by_lane()) if sees_all else self.left
        num_sources = len(self.sources)
        described = fingerprint if self.saved_fingerprint is None else carrying(fingerprint, self.saved_fingerprint)
        skipped = {
            (self.lanes[row // num_sources], row % num_sources): each
            for row, each in enumerate(self.skipped_ranges)
            if each
        }
        return {
            "version": STATE_VERSION,
            "order_version": ORDER_VERSION,
            "fingerprint": json.dumps(described, sort_keys=True),
            "libraries": json.dumps(libraries, sort_keys=True),
            "sources": json.dumps(self.sources),
            "stages": stages_to_json(self.begun),
            "global_pack": self.global_pack,
            "first_epoch": self.first_epoch,
            "since": self.since,
            "leftovers": leftovers_to_json(left),
            **to_tables(self.lanes, self.num_lanes, self._by_lane(), skipped),
        }

    @classmethod
    def from_state(
        cls, state: Mapping[str, Any], lanes: range, num_lanes: int, sources: Sequence[str] = (DEFAULT,)
    ) -> "Committed":
        """The rows of `lanes` out of a state that may hold more lanes; `stages` are those that have begun.

        Args:
            state: of any sources.
            lanes: of this rank.
            num_lanes: over all ranks.
            sources: of the run. Those that the state does not have are at their start, and others that it has follow.

        Raises:
            StateError: a lane is missing, its rows or its skipped ranges are damaged, or it is at another step.
        """
        saved = sources_of(state)
        every = (*sources, *(name for name in saved if name not in sources))
        committed = cls.fresh(lanes, num_lanes, every, stages_from_json(state["stages"], saved))
        committed.global_pack = int(state["global_pack"])
        committed.first_epoch = int(state["first_epoch"])
        committed.since = int(state["since"])
        committed.left = leftovers_from_json(state["leftovers"])
        committed.saved_fingerprint = fingerprint_of(state)
        held = read_lanes(state, num_lanes, len(saved), len(FIELDS))
        index_of = {lane: index for index, lane in enumerate(held.lanes)}
        missing = [lane for lane in lanes if lane not in index_of]
        if missing:
            raise StateError(
                f"the state has no lane {missing[0]}: it holds {len(index_of)} of {num_lanes} lanes, and this rank "
                f"owns {len(lanes)} of them. A rank's own state fits as many ranks only: join the states of all with "
                "streampack.merge_state_dicts, or save and load them with torch.distributed.checkpoint."
            )
        at = [every.index(name) for name in saved]
        by_lane = committed.rows.reshape(len(lanes), len(every), len(FIELDS))
        by_lane[:, at] = held.rows[[index_of[lane] for lane in lanes]]
        for (lane, source), skipped in held.skipped_ranges.items():
            if lane in lanes:
                committed.skipped_ranges[committed.row(lanes.index(lane), at[source])] = skipped
        for lane_index, lane in enumerate(lanes):
            packs, due = committed.packs(lane_index), packs_before(committed.global_pack, lane, num_lanes)
            if packs != due:
                raise StateError(
                    f"lane {lane} has given {packs} packs, and the state is at global pack {committed.global_pack}, "
                    f"which makes {due}: parts of different steps were mixed"
                )
        return committed


def check_versions(state: Mapping[str, Any]) -> None:
    """Raise `StateError` unless this release can read the state."""
    missing = [key for key in COMMON if key not in state and key not in ("libraries", *_NEWER)]
    if missing:
        raise StateError(f"not a state of a PackedDataLoader: no {', '.join(missing)} among its {len(state)} keys")
    for key, known in (("version", STATE_VERSION), ("order_version", ORDER_VERSION)):
        if state[key] != known:
            raise StateError(
                f"the state has {key} {state[key]}, this release of streampack reads {known} (another "
                f"{'layout' if key == 'version' else 'order of documents'}): "
                "continue with the release that wrote it, or start a new run"
            )
    if lacking := [key for key in _NEWER if key not in state]:
        raise StateError(f"the state has no {' and no '.join(lacking)}: the state is damaged")
