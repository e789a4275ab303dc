"""What the log says of sources that lanes have read as often as they may, and of lanes that wait for a stage.

In:    the committed rows, at the start and after a load; then what each batch that is committed changes.
Out:   one warning for each source, and one for each stage in which lanes wait: of a rank, not of each worker.
"""

import logging
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from streampack.lanes.run import Run
from streampack.loader.commits import Change
from streampack.state.checkpoint import Committed

_log = logging.getLogger(__name__)

_NEVER = 2**62


class ExhaustionLog:
    """Tells of a rank's lanes from `committed` on."""

    def __init__(self, run: Run, committed: Committed, max_epochs: Mapping[str, int | None]) -> None:
        """`max_epochs`: by source."""
        self._run = run
        self._num_lanes = len(committed.lanes)
        self._num_sources = len(committed.sources)
        self._end_epochs = np.full(self._num_sources, _NEVER)
        if len(run.sources) > 1 and not run.fails_exhausted:  # else the run ends, and says so itself
            for index, name in enumerate(run.names):
                most = max_epochs[name]
                self._end_epochs[index] = _NEVER if most is None else most
        self._has_told_of_stage: set[int] = set()
        self._tell_of_sources(np.arange(len(committed.rows)), committed.rows[:, 0], committed.global_pack)

    def tell(self, change: Change) -> None:
        """Say what is new with a batch that was committed."""
        if self._end_epochs.min() < _NEVER:
            self._tell_of_sources(change.row_indexes, change.rows[:, 0], change.global_pack)
        if change.waiting_round is not None:
            self._tell_of_stage(self._run.schedule.begin_of(change.waiting_round))

    def _tell_of_sources(
        self, row_indexes: NDArray[np.intp], epochs: NDArray[np.int64], global_pack: int
    ) -> None:
        """`row_indexes` and `epochs`: [n], rows of lanes and sources, and where they continue."""
        exhausted = np.unique(row_indexes[epochs >= self._end_epochs[row_indexes % self._num_sources]])
        for source, lanes in zip(*np.unique(exhausted % self._num_sources, return_counts=True), strict=True):
            _log.warning(
                "source %r is exhausted in %d of the %d lanes of this rank, at global pack %d: max_epochs=%d is used "
                "up there, and the other sources of a lane share its part in proportion. A larger max_epochs may be "
                "given when the run is resumed.",
                self._run.sources[source].name,
                lanes,
                self._num_lanes,
                global_pack,
                self._end_epochs[source],
            )
            self._end_epochs[source] = _NEVER

    def _tell_of_stage(self, global_pack: int) -> None:
        """A lane has no source in the stage of a global pack, and waits for a later one."""
        stage = self._run.schedule.index_of(global_pack)
        if stage in self._has_told_of_stage:
            return
        self._has_told_of_stage.add(stage)
        later = self._run.schedule.stages[stage + 1].first_pack
        _log.warning(
            "all sources of stage %d are exhausted in a lane at global pack %d, as their max_epochs is used up: such a "
            "lane gives fillers until a later stage has a source for it, at least up to global pack %d (%d packs of "
            "each lane), with which stage %d begins. A larger max_epochs, or an earlier begin of that stage, avoids "
            "them.",
            stage,
            global_pack,
            later,
            (later - global_pack) // self._run.num_lanes,
            stage + 1,
        )
