"""What the lanes of a run read: its sources, each with its own division into lanes, and its stages.

In:    sources and stages, resolved.
Out:   one record that travels to the workers.
Never: a position; where a lane stands is in `LaneStart`.
"""

from typing import NamedTuple

from streampack.corpus.epochs import Corpus
from streampack.corpus.schedule import Schedule
from streampack.lanes.pipeline import Pipeline
from streampack.lanes.position import LanePosition


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

    @property
    def num_lanes(self) -> int:
        return self.schedule.num_lanes


class LaneStart(NamedTuple):
    """Where a lane continues."""

    packs: int
    """How many packs the lane has given, fillers and those of sources that this run does not name included."""
    positions: tuple[LanePosition, ...]
    """One for each source of the run, in its order."""
