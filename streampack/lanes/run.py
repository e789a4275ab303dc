"""What the lanes of a run read: its sources, each with its own division into lanes, and its stages.

In:    sources and stages, resolved.
Out:   one record that travels to the workers.
Never: a position; where a lane stands is in `LaneStart`.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

from streampack.corpus.epochs import Corpus
from streampack.corpus.leftovers import Leftovers
from streampack.corpus.schedule import Schedule, StageOfRun
from streampack.corpus.shares import DEFAULT
from streampack.corpus.table import ShardTable
from streampack.lanes.pipeline import Pipeline
from streampack.lanes.position import LaneFiller, LanePack, LanePosition
from streampack.records import Cursor, StorageUse
from streampack.storage.access import StorageReader
from streampack.storage.redaction import redacted

_T = TypeVar("_T")


class RunSource(NamedTuple):
    """One source of a run."""

    name: str
    corpus: Corpus
    """Its shards in the run's lanes; its `seed` is the source's own."""
    pipelines: tuple[Pipeline, ...]
    """For each stage of the schedule how it is cut; the same object where nothing changes."""
    end_epoch: int | None
    """The first epoch that is not read (None: endless): of `max_epochs`, or of the pass in a run with `epochs`."""


class Run(NamedTuple):
    """All that the lanes of a run have in common."""

    sources: tuple[RunSource, ...]
    schedule: Schedule
    fails_exhausted: bool = False
    """Whether a source that has no more packs in a lane is an error; else the others take its place."""

    @property
    def num_lanes(self) -> int:
        return self.schedule.num_lanes

    @property
    def names(self) -> tuple[str, ...]:
        """Of the sources."""
        return tuple(source.name for source in self.sources)

    @property
    def is_finite(self) -> bool:
        """Whether lanes may be over: all sources of the last stage end. Before that lanes only wait for a stage."""
        ends = {index for index, source in enumerate(self.sources) if source.end_epoch is not None}
        return not self.fails_exhausted and ends.issuperset(dict(self.schedule.reached()[-1].shares.weights))

    @property
    def pipelines(self) -> list[Pipeline]:
        """Each object once."""
        return _once(pipeline for source in self.sources for pipeline in source.pipelines)

    @property
    def tables(self) -> list[ShardTable]:
        """The sources' shards; each object once."""
        return _once(source.corpus.table for source in self.sources)

    @property
    def storages(self) -> list[StorageReader]:
        """Each object once."""
        return _once(pipeline.storage for pipeline in self.pipelines)

    @property
    def pad_id(self) -> int:
        return self.sources[0].pipelines[0].pad_id

    @property
    def may_draw(self) -> bool:
        """Whether a transform or a chat template may draw from a global random generator."""
        return any(pipeline.documents.may_draw for pipeline in self.pipelines)

    def start_after(self, start: "LaneStart", pack: LanePack | LaneFiller) -> "LaneStart":
        """Where a lane continues after its next pack, or after what it gives in its place."""
        positions = list(start.positions)
        for end in pack.ends:
            before = positions[end.source]
            epoch = self.sources[end.source].end_epoch
            assert epoch is not None, "an endless source does not end"
            positions[end.source] = LanePosition(
                Cursor(epoch=epoch),
                before.packs,
                before.documents + end.counts.documents,
                before.num_skipped + len(end.skipped_ranges),
            )
        if isinstance(pack, LanePack):
            positions[pack.source] = positions[pack.source].after(pack)
        return LaneStart(start.packs + 1, tuple(positions))

    def engine_differences(self) -> tuple[tuple[int, str], ...]:
        """The first of the documents for which an engine has given other ids in this process since the last call.

        Each as a hash of its text, and what the log says of it.
        """
        found: dict[int, str] = {}
        for pipeline in self.pipelines:
            found |= pipeline.differences
            pipeline.differences.clear()
        return tuple(found.items())

    def place(self, source: int, of_storage: bool) -> str:
        """How the log names a source, or the folder of its shards; nothing where the only source has no name."""
        name, table = self.sources[source].name, self.sources[source].corpus.table
        if of_storage and len(table):
            shard = table[0]
            folder = redacted(shard.url.removesuffix(shard.name).rpartition("/")[0])
            return f"{folder}/" if folder else name
        return "" if name == DEFAULT else f"source {name!r}"

    def storage_use(self) -> StorageUse:
        """What this process has asked of the storage."""
        use = StorageUse()
        for storage in self.storages:
            use = use.plus(storage.use)
        return use


class Continued(NamedTuple):
    """What a run takes from the state that it goes on from."""

    begun: tuple[StageOfRun, ...] = ()
    """The first stages, as they have begun."""
    first_epoch: int = 0
    """With which the present pass began."""
    since: int = 0
    """The global pack since which the run has these lanes."""
    left: tuple[tuple[str, Leftovers], ...] = ()
    """(name of a source, its leftovers), where the run had other lanes before."""
    lanes: Sequence[int] = ()
    """The lanes for which it is computed what they read of `left`."""
    placed: tuple[tuple[int, int], ...] = ()
    """(first_pack, first_tokens) of stages that have begun, where all else of them is as this run has it."""


FRESH = Continued()


class LaneStart(NamedTuple):
    """Where a lane continues."""

    packs: int
    """How many packs the lane has given, fillers and those of sources that this run does not name included."""
    positions: tuple[LanePosition, ...]
    """One for each source of the run, in its order."""


def named(lane: int, source: str) -> str:
    """A lane of a source, as errors and the log say it."""
    return f"lane {lane}" if source == DEFAULT else f"lane {lane} of source {source!r}"


def _once(objects: Iterable[_T]) -> list[_T]:
    return list({id(each): each for each in objects}.values())
