"""The stages of a run on its line of global packs: where each begins, and where the run ends.

In:    stages in order, each with its first pack; the run's budget.
Out:   the stage of a pack; how many tokens the packs before it have; where packs get another length.
Never: a stage that begins inside a round: each lane gives as many packs in it as any other.

    global packs   0 ........ a*L ............ b*L .......... N
    stages         |--- 0 ----|------ 1 -------|----- 2 ------|
    seq_len             4096         4096           32768            batches end at b*L and at N
"""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from streampack.corpus.shares import Shares


class StageOfRun(NamedTuple):
    """One stage, resolved: all that is fixed once it has begun."""

    first_pack: int
    """The global pack with which it begins, a multiple of the number of lanes that the run had then."""
    first_tokens: int
    """Tokens of the run before it, each pack counted as its stage's seq_len. After a load with another seq_len it is
    what makes the tokens of the packs handed out so far right."""
    seq_len: int
    shares: Shares
    described: Mapping[str, Any]
    """What a state keeps of it and what is compared: plain JSON values. {"at_packs" or "at_tokens", "weights" (name ->
    number, without zeros), "seq_len", "boundary", "packing", ...}."""

    def tokens_at(self, global_pack: int) -> int:
        return self.first_tokens + (global_pack - self.first_pack) * self.seq_len

    def pack_at(self, tokens: int) -> int:
        """The first global pack at or after so many tokens."""
        return self.first_pack + max(-(-(tokens - self.first_tokens) // self.seq_len), 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Stages in order, the first one from global pack 0 on, and the end."""

    num_lanes: int
    stages: tuple[StageOfRun, ...]
    end: int | None = None
    """All global packs below it are handed out; None: there is no budget."""
    since: int = 0
    """The global pack since which the run has so many lanes: the round that it is in may have begun before it."""

    def index_of(self, global_pack: int) -> int:
        """The index of the stage that a global pack is in."""
        return bisect_right(self.stages, global_pack, key=lambda stage: stage.first_pack) - 1

    def reached(self, global_pack: int = 0) -> tuple[StageOfRun, ...]:
        """The stage that a global pack is in, and those after it that begin before the end."""
        here, *later = self.stages[self.index_of(global_pack) :]
        return (here, *(stage for stage in later if self.end is None or stage.first_pack < self.end))

    def stage_of(self, global_pack: int) -> StageOfRun:
        return self.stages[self.index_of(global_pack)]

    def begin_of(self, number: int) -> int:
        """The first global pack of a round that lanes give."""
        return max(number * self.num_lanes, self.since)

    def tokens_at(self, global_pack: int) -> int:
        """Tokens of the global packs below this one."""
        return self.stage_of(global_pack).tokens_at(global_pack)

    def next_length(self, global_pack: int) -> int | None:
        """The global pack with which packs get another length than this one has; None: there is none."""
        here = self.index_of(global_pack)
        seq_len = self.stages[here].seq_len
        return next((stage.first_pack for stage in self.stages[here + 1 :] if stage.seq_len != seq_len), None)
