"""Packs of a run by their global numbers, made in this process, from the start of the run or from a saved state.

In:  a dataset on one rank; perhaps the state of a loader (a folder of torch.distributed.checkpoint, a file of
torch.save, or JSON); for each lane the packs that are wanted, in its order.
Out: these packs, with the provenance of their segments.
Invariants: the packs are those of the run, made by its own lanes; only the lanes that are asked for are read.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streampack.dataset.dataset import PackedDataset
from streampack.errors import ConfigError
from streampack.lanes.budget import LaneNeeds
from streampack.lanes.pool import LanePool
from streampack.lanes.position import LaneFiller, LanePack, LanePosition
from streampack.lanes.run import LaneStart, Run
from streampack.loader.agreement import SharedRun
from streampack.loader.progress import progress_of
from streampack.loader.stats import stats_of_sources
from streampack.loader.steps import Steps
from streampack.ranks.exchange import RankExchanges
from streampack.ranks.topology import Topology
from streampack.state.checkpoint import Committed
from streampack.state.reading import read_state

_RANGE_BYTES = 2**20
"""The largest request for a part of a shard: a few packs need no more at a time."""


@dataclass(frozen=True, slots=True)
class Replay:
    """A run from some global pack on."""

    run: Run
    begin: int
    """The first global pack that can be made: 0, or where the state is."""
    _committed: Committed | None
    """None: the start of the run."""
    _state: Path | None
    """Where that is from."""

    @classmethod
    def of(cls, dataset: PackedDataset, state: Path | None = None) -> "Replay":
        """The run of a dataset, with a state as it continues from there.

        Raises:
            StateError: the state is of another run, or it is none.
        """
        if state is None:
            return cls(dataset.run(), 0, None, None)
        alone = SharedRun(dataset, RankExchanges(Topology(by_hand=True), None), {})
        committed = alone.load(read_state(state, "--state"))
        return cls(alone.run_of(committed), committed.global_pack, committed, state)

    def check(self, global_pack: int) -> None:
        """Refuse a global pack that had been handed out when the state was saved, or that comes after the run's end."""
        end = self.run.schedule.end
        if end is not None and global_pack >= end:
            raise ConfigError(f"there is no pack {global_pack:,}: the run has {end:,} packs, 0 to {end - 1:,}")
        if global_pack >= self.begin:
            return
        since = 0 if self._committed is None else self._committed.since
        what = (
            f"--state {self._state}: the state is at global pack {self.begin:,}, after pack {global_pack:,}, and "
            "lanes cannot go back. Give a checkpoint that was saved before that pack"
        )
        if global_pack < since:
            raise ConfigError(
                f"{what}, with the num_lanes that the config had then: up to pack {since:,} the run had another number "
                "of lanes, before `relane`, and only those make its packs"
            )
        if since:
            raise ConfigError(
                f"{what}, and from pack {since:,} on, since which the run has these {self.run.num_lanes:,} lanes"
            )
        raise ConfigError(f"{what}, or none: then the lane is made from its start")

    def batch(self, step: int, global_batch: int | None) -> range:
        """The global packs of a batch of the run, over all ranks; steps count from 0, with one global batch all along.

        Raises:
            ConfigError: no `global_batch` is given, the run has no such step, or the state is inside a batch.
        """
        if global_batch is None:
            raise ConfigError("--step needs --global-batch: the packs of a batch over all ranks, batch_size x ranks")
        steps = self._steps(global_batch)
        found = steps.numbered(step)
        if found is None:
            raise ConfigError(f"there is no step {step:,}: the run has {self.run.schedule.end:,} packs")
        if not steps.has_begin(self.begin):
            raise ConfigError(
                f"--state {self._state}: the state is at global pack {self.begin:,}, where no batch begins if all have "
                f"{global_batch:,} packs from pack 0 on, as --step counts them. So the run had batches of another size "
                "before, and its steps are others. Name the batch by its first pack, which is "
                'loader.progress()["packs"] after the batch before it: `streampack trace --pack PACK --global-batch '
                f"{global_batch}`, or `streampack peek --skip` with the packs between the state and it"
            )
        return range(found.begin, found.end)

    def batch_from(self, global_pack: int, global_batch: int) -> range:
        """The global packs of the batch that begins with one."""
        self.check(global_pack)
        found = self._steps(global_batch).at(global_pack)
        assert found is not None, "the run has the pack"
        return range(found.begin, found.end)

    def _steps(self, global_batch: int) -> Steps:
        return Steps(schedule=self.run.schedule, batch_size=global_batch, num_ranks=1)

    def progress(self) -> dict[str, Any] | None:
        """Where the state is, as `PackedDataLoader.progress` tells it; None: there is no state."""
        return None if self._committed is None else progress_of(self._committed, self.run)

    def tokens(self) -> dict[str, float]:
        """Tokens of each source that had been handed out where the replay begins."""
        names = [source.name for source in self.run.sources]
        if self._committed is None:
            return dict.fromkeys(names, 0)
        found = stats_of_sources(self._committed, self.run, dict.fromkeys(names))
        return {name: found[name]["tokens"] for name in names}

    def lane(self, lane: int) -> "LaneReplay":
        """One lane, of which nothing is read yet."""
        num_sources = len(self.run.sources)
        fresh = LaneStart(0, (LanePosition(),) * num_sources)
        start = fresh if self._committed is None else self._committed.start(lane, num_sources)
        return LaneReplay(self.run, lane, start)


class LaneReplay:
    """One lane from a start on; it holds memory for its windows and two requests."""

    def __init__(self, run: Run, lane: int, start: LaneStart) -> None:
        needs = LaneNeeds.of(run)
        budget_bytes = needs.bytes + 2 * needs.sources * _RANGE_BYTES
        self._lane = lane
        self._pool = LanePool(run, {lane: start}, budget_bytes=budget_bytes, with_provenance=True)
        self._last: LanePack | LaneFiller | None = None
        self.made = start.packs
        """How many packs the lane has given; not more than it has."""

    @property
    def is_over(self) -> bool:
        """Whether the lane was found to have no more packs."""
        return isinstance(self._last, LaneFiller) and not self._last.waits

    def take(self, number: int, passed: Callable[[], None] = lambda: None) -> LanePack | LaneFiller:
        """The lane's pack with this number in the lane, or the filler in its place; numbers come in ascending order.

        `passed` is called after each pack that is made on the way.
        """
        while self.made <= number and not self.is_over:
            self._last = self._pool.take(self._lane)
            self.made += not self.is_over
            passed()
        assert self._last is not None, "the pack is after where the lane started"
        return self._last
