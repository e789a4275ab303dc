"""One pass over a `PackedDataset` in one process: its lanes in turn, pack after pack, with a state.

In:    a function that gives, at first use, what to read (`Reading`); later a state of the same rank and worker.
Out:   items, each a dict of int64 tensors [seq_len]; `state_dict` and `load_state_dict`, which torchdata's
       StatefulDataLoader looks for on a dataset's iterator and ships from its workers with every batch.
Never: another rank's or worker's packs: such a state is refused. States for any topology are the loader's.

Without a state StatefulDataLoader reads a dataset again from its start and drops what had been handed out; it counts
those packs once more (torchdata 0.11), so that its second resume would be at the wrong pack.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch

from streampack.corpus.epochs import Corpus
from streampack.documents.draws import own_draws
from streampack.errors import StateError
from streampack.lanes.pipeline import Pipeline
from streampack.lanes.pool import LanePool
from streampack.lanes.position import LaneEnd, LanePack, LanePosition
from streampack.packing.blocks import expand_block, stack
from streampack.records import Cursor
from streampack.state.checkpoint import ORDER_VERSION, check_cursor
from streampack.state.fingerprint import check_fingerprint, fingerprint_of
from streampack.state.forms import ranges_from_json, ranges_to_json

VERSION = 3
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

    pipeline: Pipeline
    corpus: Corpus
    lanes: Sequence[int]
    share: WorkerShare
    epoch: int
    """The first epoch, unless a state says otherwise."""
    epochs: int | None
    budget_bytes: int
    fingerprint: Callable[[], Mapping[str, Any]]


class PackIterator(Iterator[Item]):
    """The packs of some lanes, a pack of each lane in turn, as long as the lane has any."""

    def __init__(self, begin: Callable[[], Reading]) -> None:
        self._begin = begin
        self._reading: Reading | None = None
        self._pool: LanePool | None = None
        self._positions: dict[int, LanePosition] = {}
        """Where each lane continues after the packs that were given."""
        self._ended: set[int] = set()
        self._has_raised = False
        self._epoch = 0
        self._turn = 0
        self._given: tuple[int, LanePosition] | None = None
        """The turn of the pack that was given last, and its lane's position after it, until both are written down."""
        self._is_taking = False
        """Whether the pool may have gone on without a pack being given: an exception of a signal handler came."""

    def __next__(self) -> Item:
        reading = self._read()
        self._write_down(reading)
        try:
            return self._next(reading)
        except BaseException:
            if self._given is not None:  # the caller does not get that pack
                self._is_taking = True
                self._given = None
            raise

    def _next(self, reading: Reading) -> Item:
        while not self._has_raised and len(self._ended) < len(reading.lanes):
            lane = reading.lanes[self._turn]
            if lane in self._ended:
                self._turn = (self._turn + 1) % len(reading.lanes)
                continue
            if self._is_taking:
                self._pool = None
            self._is_taking = True
            try:
                pack = self._take(reading, lane)
            except Exception:
                self._has_raised = True  # an iterator that has raised is over; its state is that of before
                raise
            if isinstance(pack, LaneEnd):
                self._ended.add(lane)
                self._is_taking = False
                continue
            block = stack([pack.rows], seq_len=reading.pipeline.seq_len, pad_id=reading.pipeline.pad_id)
            item = {name: torch.from_numpy(array[0]) for name, array in expand_block(block).items()}
            self._given = self._turn, self._positions[lane].after(pack)
            self._is_taking = False
            return item
        raise StopIteration

    def _write_down(self, reading: Reading) -> None:
        """Move on past the pack that was given last; done twice, it is the same as once."""
        if self._given is not None:
            turn, position = self._given
            self._positions[reading.lanes[turn]] = position
            self._turn = (turn + 1) % len(reading.lanes)
            self._given = None

    def _read(self) -> Reading:
        if self._reading is None:
            self._reading = reading = self._begin()
            self._epoch = reading.epoch
            self._positions = {lane: LanePosition(cursor=Cursor(epoch=reading.epoch)) for lane in reading.lanes}
        return self._reading

    def _take(self, reading: Reading, lane: int) -> LanePack | LaneEnd:
        if self._pool is None:
            self._pool = LanePool(
                reading.pipeline,
                reading.corpus,
                {lane: position for lane, position in self._positions.items() if lane not in self._ended},
                budget_bytes=reading.budget_bytes,
                end_epoch=None if reading.epochs is None else self._epoch + reading.epochs,
            )
        # The trainer may be in this process.
        with own_draws() if reading.pipeline.documents.may_draw else nullcontext():
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
            "ended": sorted(self._ended),
            # A key for each lane: torchdata sends those that have changed.
            "lanes": {
                f"{lane:06d}": [*position.cursor, position.packs, position.documents, position.num_skipped]
                for lane, position in self._positions.items()
            },
            "skipped_ranges": {
                f"{lane:06d}": ranges_to_json(sorted(position.skipped_ranges))
                for lane, position in self._positions.items()
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
        positions, has_windows = {}, reading.pipeline.packing.has_windows
        for lane in reading.lanes:
            *row, packs, documents, num_skipped = state["lanes"][f"{lane:06d}"]
            cursor = Cursor(*row)
            check_cursor(cursor, reading.corpus, lane, has_packing_windows=has_windows)
            skipped_ranges = frozenset(
                ranges_from_json(state["skipped_ranges"][f"{lane:06d}"], f"skipped_ranges.{lane:06d}")
            )
            positions[lane] = LanePosition(cursor, packs, documents, num_skipped, skipped_ranges)
        self._positions = positions
        self._ended, self._has_raised, self._given = set(state["ended"]), False, None
        self._epoch, self._turn = state["epoch"], state["turn"]
        self._pool = None
