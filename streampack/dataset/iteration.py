"""One pass over a `PackedDataset` in one process: its lanes in turn, pack after pack, with a state.

In:    a function that gives, at first use, what to read (`Reading`); later a state of the same rank and worker.
Out:   items, each a dict of int64 tensors [seq_len]; `state_dict` and `load_state_dict`, which torchdata's
       StatefulDataLoader looks for on a dataset's iterator and ships from its workers with every batch.
Never: another rank's or worker's packs: such a state is refused. States for any topology are the loader's.

Without a state StatefulDataLoader reads a dataset again from its start and drops what had been handed out; it counts
those packs once more (torchdata 0.11), so that its second resume would be at the wrong pack.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch

from streampack.documents.draws import own_draws
from streampack.errors import StateError
from streampack.lanes.held_out import check_parts
from streampack.lanes.pool import LanePool
from streampack.lanes.position import LaneFiller, LanePack, LanePosition
from streampack.lanes.run import LaneStart, Run
from streampack.packing.blocks import expand_block, stack
from streampack.records import Cursor
from streampack.state.checkpoint import ORDER_VERSION
from streampack.state.cursors import check_cursor
from streampack.state.fingerprint import check_fingerprint, fingerprint_of
from streampack.state.forms import ranges_from_json, ranges_to_json

_log = logging.getLogger(__name__)

VERSION = 6
"""The layout of an iterator's state."""

Item = dict[str, torch.Tensor]


class WorkerShare(NamedTuple):
    """Whose packs an iterator gives: those of one worker's share of one rank's lanes."""

    rank: int
    num_ranks: int
    worker: int
    num_workers: int

    def __str__(self) -> str:
        return f"worker {self.worker} of {self.num_workers} on rank {self.rank} of {self.num_ranks}"


class Reading(NamedTuple):
    """What an iterator reads."""

    run: Callable[[int], Run]
    """What the lanes have in common in a pass that begins with this epoch."""
    lanes: Sequence[int]
    share: WorkerShare
    epoch: int
    """The first epoch, unless a state says otherwise."""
    budget_bytes: int
    fingerprint: Callable[[], Mapping[str, Any]]


class PackIterator(Iterator[Item]):
    """The packs of some lanes, a pack of each lane in turn, as long as any lane has some."""

    def __init__(self, begin: Callable[[], Reading]) -> None:
        self._begin = begin
        self._reading: Reading | None = None
        self._run: Run | None = None
        self._pool: LanePool | None = None
        self._starts: dict[int, LaneStart] = {}
        """Where each lane continues after the packs that were given."""
        self._over: set[int] = set()
        """Turns since the last pack at which a lane had none."""
        self._has_raised = False
        self._has_warned = False
        """Of a document for which an engine has given other ids."""
        self._epoch = 0
        self._turn = 0
        self._given: tuple[int, LaneStart] | None = None
        """The turn of the pack that was given last, or at which there was none, and where its lane continues after it,
        until both are written down."""
        self._is_taking = False
        """Whether the pool may have gone on without a pack being given: an exception of a signal handler came."""

    def __next__(self) -> Item:
        reading = self._read()
        assert self._run is not None, "what is read belongs to a run"
        while True:
            self._write_down(reading)
            try:
                item = self._next(reading, self._run)
                if item is not None:
                    return item
            except BaseException:  # a signal handler's, maybe
                if self._given is not None:  # the caller does not get that pack
                    self._is_taking = True
                    self._given = None
                raise

    def _next(self, reading: Reading, run: Run) -> Item | None:
        """The next pack; None where the lane whose turn it is has none."""
        if self._has_raised:
            raise StopIteration
        if len(self._over) == len(reading.lanes):
            if not any(position.packs for start in self._starts.values() for position in start.positions):
                check_parts(run)
            raise StopIteration
        lane = reading.lanes[self._turn]
        if self._is_taking:
            self._pool = None
        self._is_taking = True
        try:
            pack = self._take(reading, run, lane)
        except Exception:  # of whatever it reads with; raised again
            self._has_raised = True  # an iterator that has raised is over; its state is that of before
            raise
        if not self._has_warned and (differences := run.engine_differences()):
            self._has_warned = True
            _log.warning("%s", differences[0][1])
        start = self._starts[lane]
        item = None
        if isinstance(pack, LanePack):
            seq_len = run.schedule.stage_of(lane + start.packs * run.num_lanes).seq_len
            block = stack([pack.rows], seq_len=seq_len, pad_id=run.pad_id)
            item = {name: torch.from_numpy(array[0]) for name, array in expand_block(block).items()}
            self._over.clear()
        elif not pack.waits:
            self._over.add(self._turn)
        self._given = self._turn, run.start_after(start, pack)
        self._is_taking = False
        return item

    def _write_down(self, reading: Reading) -> None:
        """Move on past the pack that was given last; done twice, it is the same as once."""
        if self._given is not None:
            turn, start = self._given
            self._starts[reading.lanes[turn]] = start
            self._turn = (turn + 1) % len(reading.lanes)
            self._given = None

    def _read(self) -> Reading:
        if self._reading is None:
            self._reading = reading = self._begin()
            self._epoch = reading.epoch
            self._run = reading.run(reading.epoch)
            position = LanePosition(cursor=Cursor(epoch=reading.epoch))
            self._starts = dict.fromkeys(reading.lanes, LaneStart(0, (position,) * len(self._run.sources)))
        return self._reading

    def _take(self, reading: Reading, run: Run, lane: int) -> LanePack | LaneFiller:
        end = run.schedule.end
        if end is not None and lane + self._starts[lane].packs * run.num_lanes >= end:
            return LaneFiller()
        if self._pool is None:
            self._pool = LanePool(run, self._starts, budget_bytes=reading.budget_bytes)
        # The trainer may be in this process.
        with own_draws() if run.may_draw else nullcontext():
            return self._pool.take(lane)

    def state_dict(self) -> dict[str, Any]:
        """Where the lanes continue; plain values, nothing shared with the iterator."""
        reading = self._read()
        self._write_down(reading)
        return {
            "version": VERSION,
            "order_version": ORDER_VERSION,
            "fingerprint": json.dumps(reading.fingerprint(), sort_keys=True),
            "share": list(reading.share),
            "epoch": self._epoch,
            "turn": self._turn,
            # A key for each lane, as torchdata sends those that have changed: its packs, then a row for each source.
            "lanes": {
                f"{lane:06d}": [
                    [start.packs],
                    *(
                        [*position.cursor, position.packs, position.documents, position.num_skipped]
                        for position in start.positions
                    ),
                ]
                for lane, start in self._starts.items()
            },
            "skipped_ranges": {
                f"{lane:06d}": [ranges_to_json(sorted(position.skipped_ranges)) for position in start.positions]
                for lane, start in self._starts.items()
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state of the same rank and worker.

        Raises:
            StateError: the state is of another release, another run, or another rank or worker, or it is damaged.
        """
        reading = self._read()
        for key, known in (("version", VERSION), ("order_version", ORDER_VERSION)):
            if state.get(key) != known:
                raise StateError(
                    f"the state of the dataset's iterator has {key} {state.get(key)}, this release reads {known}: "
                    "continue with the release that wrote it, or start a new run"
                )
        check_fingerprint(fingerprint_of(state), reading.fingerprint())
        share = WorkerShare(*state["share"])
        if share != reading.share:
            raise StateError(
                f"the state is that of {share}, and this is {reading.share}: states of a dataset in a "
                "StatefulDataLoader fit the same ranks and workers only. Those of streampack.PackedDataLoader "
                "continue on any number of ranks and workers."
            )
        run = reading.run(state["epoch"])
        starts = {lane: _start_of(run, state, lane) for lane in reading.lanes}
        self._run, self._starts = run, starts
        self._over, self._has_raised, self._given = set(), False, None
        self._epoch, self._turn = state["epoch"], state["turn"]
        self._pool = None


def _start_of(run: Run, state: Mapping[str, Any], lane: int) -> LaneStart:
    """Where a lane continues by a state; raises a `StateError` where it cannot."""
    key = f"{lane:06d}"
    (packs,), *rows = state["lanes"][key]
    positions = []
    for source, row, skipped_ranges in zip(run.sources, rows, state["skipped_ranges"][key], strict=True):
        *cursor, packs_of_source, documents, num_skipped = row
        check_cursor(Cursor(*cursor), source, lane)
        known = frozenset(ranges_from_json(skipped_ranges, f"skipped_ranges.{key}"))
        positions.append(LanePosition(Cursor(*cursor), packs_of_source, documents, num_skipped, known))
    return LaneStart(packs, tuple(positions))
