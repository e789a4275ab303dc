"""Runs whose number of lanes changes: lanes taken in turn, without a loader, and a count of every document's rows."""

import gzip
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import NamedTuple, Self

import numpy as np

from streampack import PackedDataset
from streampack.lanes.digest import pack_digest
from streampack.lanes.pool import LanePool
from streampack.lanes.position import NUM_CURSOR, LanePack, LanePosition
from streampack.lanes.run import LaneStart, Run
from streampack.records import Counts
from streampack.state.checkpoint import COUNTS, NUM_SKIPPED, PACKS, Committed
from streampack.state.relaning import relaned
from support.jobs import write_tar

Row = tuple[str, int, int, int, int, int, int]
"""Source, epoch, shard, sample, record, part and row."""


def corpus(
    folder: Path, *, shards: int = 4, field: str = "txt", compressed: bool = False, longest: int = 200, seed: int = 0
) -> list[str]:
    """Shards with documents of different lengths; of JSON lines some to a member, every tenth member of them bad."""
    folder.mkdir(exist_ok=True)
    choose = Random(seed)
    urls = []
    for shard in range(shards):
        members = []
        for number in range(choose.randint(15, 40)):
            texts = ["x" * choose.randint(1, longest) for _ in range(choose.randint(1, 4))]
            if field == "txt":
                members.append((f"{number}.txt", texts[0].encode()))
            else:
                lines = [json.dumps({"text": text}) for text in texts]
                members.append((f"{number}.jsonl", "\n".join(lines[: None if number % 10 else 1]).encode()))
                if number % 10 == 7:
                    members[-1] = (members[-1][0], members[-1][1] + b"\n{bad")
        path = write_tar(folder / f"{shard}.tar", members)
        if compressed:
            packed = folder / f"{shard}.tar.gz"
            packed.write_bytes(gzip.compress(path.read_bytes(), 1))
            path.unlink()
            path = packed
        urls.append(str(path))
    return urls


class Lanes:
    """All lanes of a run, from where `committed` says; each pack is committed when it is taken."""

    def __init__(self, dataset: PackedDataset, committed: Committed) -> None:
        self.dataset = dataset
        self.committed = committed
        self.run: Run = dataset.run(committed.num_lanes, committed.continued)
        num_sources = len(self.run.sources)
        self.starts = {lane: committed.start(lane, num_sources) for lane in committed.lanes}
        self.pool = LanePool(self.run, self.starts, budget_bytes=2**31, with_provenance=True)
        self.over: set[int] = set()

    @classmethod
    def of(cls, dataset: PackedDataset) -> Self:
        run = dataset.run()
        lanes = range(run.num_lanes)
        return cls(dataset, Committed.fresh(lanes, run.num_lanes, run.names, run.schedule.stages))

    @property
    def is_over(self) -> bool:
        """Whether a whole round has had no pack."""
        return len(self.over) == self.committed.num_lanes

    def take(self, packs: int, found: "Found") -> Self:
        """So many global packs more, or those up to the end."""
        committed = self.committed
        while packs and not self.is_over:
            packs -= 1
            number = committed.global_pack
            lane = number % committed.num_lanes
            pack = self.pool.take(lane)
            start = self.starts[lane] = self.run.start_after(self.starts[lane], pack)
            for end in pack.ends:
                self._commit(lane, end.source, start, end.counts)
                found.ends = found.ends.plus(end.counts)
            if isinstance(pack, LanePack):
                self._commit(lane, pack.source, start, pack.counts)
                committed.rows[committed.row(lane, pack.source), PACKS] += 1
                found.add(number, pack, self.run)
                self.over.clear()
            else:
                committed.add_fillers(np.array([lane]))
                if not pack.waits:
                    self.over.add(lane)
            committed.global_pack += 1
        return self

    def _commit(self, lane: int, source: int, start: LaneStart, counts: Counts) -> None:
        index = self.committed.row(lane, source)
        position: LanePosition = start.positions[source]
        row = self.committed.rows[index]
        row[:NUM_CURSOR] = position.cursor
        row[COUNTS] += np.array(counts)
        row[NUM_SKIPPED] = position.num_skipped
        self.committed.skipped_ranges[index] = tuple(position.skipped_ranges)

    def again(self, num_lanes: int | None = None, dataset: PackedDataset | None = None) -> "Lanes":
        """The same run after a journey through its state, in another number of lanes where one is given."""
        dataset = dataset or self.dataset
        committed = self.committed if num_lanes is None else relaned(self.committed, self.run, num_lanes)
        state = committed.to_state(dataset.fingerprint(committed.num_lanes), {})
        lanes = range(committed.num_lanes)
        again = Committed.from_state(state, lanes, committed.num_lanes, tuple(dataset.sources))
        again.stages = dataset.run(committed.num_lanes, again.continued).schedule.stages
        return Lanes(dataset, again)


class Found:
    """What packs held."""

    def __init__(self) -> None:
        self.rows: Counter[Row] = Counter()
        self.packs: dict[int, int] = {}
        self.counts = Counts()
        self.ends = Counts()
        self.lengths: dict[int, int] = {}

    def add(self, number: int, pack: LanePack, run: Run) -> None:
        seq_len = run.schedule.stage_of(number).seq_len
        self.packs[number] = pack_digest(pack.rows, number, seq_len=seq_len, pad_id=0)
        self.counts = self.counts.plus(pack.counts)
        self.lengths[number] = seq_len
        for each in pack.provenance:
            place = each.source, each.epoch, each.shard, each.sample, each.record, each.part
            self.rows.update((*place, each.row + row) for row in range(each.length))

    @property
    def all_counts(self) -> Counts:
        return self.counts.plus(self.ends)


class Total(NamedTuple):
    """What must be the same however a finite run goes: every row of every document, once."""

    documents: int
    bad_records: int
    rows: int


def total(found: Found) -> Total:
    assert max(found.rows.values(), default=1) == 1, "a row came twice"
    counts = found.all_counts
    left_out = counts.targetless_tokens + counts.tail_tokens + counts.truncated_tokens + counts.dropped_tokens
    assert counts.tokens == len(found.rows)
    return Total(counts.documents, counts.bad_records, len(found.rows) + left_out)


def in_turn(first: Lanes, steps: Iterable[tuple[int, int]], found: Found) -> Lanes:
    """`steps`: after so many packs, so many lanes."""
    lanes = first
    for packs, num_lanes in steps:
        lanes = lanes.take(packs, found).again(num_lanes)
    return lanes


def assert_all_once(dataset: PackedDataset, steps: Iterable[tuple[int, int]]) -> Found:
    """A finite run has the same rows with relanes on its way; gives what it found."""
    whole, found = Found(), Found()
    Lanes.of(dataset).take(10**6, whole)
    in_turn(Lanes.of(dataset), steps, found).take(10**6, found)
    assert total(found) == total(whole)
    return found
