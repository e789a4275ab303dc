"""Which bytes come when: the shards of every epoch in its order, divided into lanes.

In:    the table of shards, the number of lanes and the seed.
Out:   the pieces that a lane reads in an epoch.
Never: a choice that depends on what is in the shards, or on ranks, workers or batches.
"""

from dataclasses import dataclass, field

from streampack.corpus.partition import EpochLine, Piece, shard_order
from streampack.corpus.table import ShardTable

_KEPT_EPOCHS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """The shards of a run and how they are divided."""

    table: ShardTable
    num_lanes: int
    seed: int
    shuffle: bool
    one_epoch: bool = False
    """Every epoch has the order of the first one: for validation."""
    _lines: dict[int, EpochLine] = field(default_factory=dict, init=False, compare=False, repr=False)

    def pieces(self, epoch: int, lane: int) -> list[Piece]:
        """What the lane reads in an epoch, in order."""
        epoch = self.order_epoch(epoch)
        if epoch not in self._lines:
            if len(self._lines) >= _KEPT_EPOCHS:  # the lanes of one worker are in neighbouring epochs
                self._lines.pop(next(iter(self._lines)))
            order = shard_order(seed=self.seed, epoch=epoch, num_shards=len(self.table), shuffle=self.shuffle)
            self._lines[epoch] = EpochLine(self.table.sizes, self.table.whole, order)
        return self._lines[epoch].pieces(lane, self.num_lanes)

    def order_epoch(self, epoch: int) -> int:
        """The epoch whose order `epoch` has; it also seeds the `rng` of transforms."""
        return 0 if self.one_epoch else epoch
