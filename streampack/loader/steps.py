"""Where each batch of a run begins and ends: arithmetic on global packs.

In:    the schedule of the run, the batch size and the ranks.
Out:   the batch that begins at a global pack; how many batches there are.
Never: a batch with packs of two lengths, or with packs after the end of the run; another number of batches on one rank
       than on the others.

    2 ranks, batch size 2               0 . . . 4 . . . 8 . 10 . . . 14 . . 17
    another length from pack 10 on      |-------|-------|---|--------|------|
    the run ends at 17                  2 + 2   2 + 2   1+1  2 + 2   2 + 1 and a filler
"""

from dataclasses import dataclass
from typing import NamedTuple

from streampack.corpus.partition import packs_before
from streampack.corpus.schedule import Schedule


class Step(NamedTuple):
    """One batch of each rank."""

    begin: int
    end: int
    """The global packs [begin, end) are handed out, over all ranks."""
    size: int
    """Of the batch of each rank; fillers without a number stand where a rank has fewer packs."""
    seq_len: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """How a run is cut into batches."""

    schedule: Schedule
    batch_size: int
    num_ranks: int
    drop_last: bool = False
    """Leave out what is left at the end of the run and does not fill a batch on every rank."""

    def at(self, begin: int, pass_end: int | None = None) -> Step | None:
        """The batch that begins at a global pack; None: the run is over.

        `pass_end`: where the lanes have no more packs, if that is known.
        """
        whole_end = begin + self.batch_size * self.num_ranks
        seq_len, run_end = self.schedule.stage_of(begin).seq_len, _lower(self.schedule.end, pass_end)
        cut = self.schedule.next_length(begin)
        if cut is not None and cut < whole_end and (run_end is None or cut < run_end):
            return Step(begin, cut, -(-(cut - begin) // self.num_ranks), seq_len)
        if run_end is None or whole_end <= run_end:
            return Step(begin, whole_end, self.batch_size, seq_len)
        return None if begin >= run_end or self.drop_last else Step(begin, run_end, self.batch_size, seq_len)

    def numbered(self, number: int) -> Step | None:
        """The batch with this number, counted from 0 at the start of the run; None: the run is over before it."""
        whole, begin, left = self.batch_size * self.num_ranks, 0, number
        while (cut := self.schedule.next_length(begin)) is not None and left >= (here := -(-(cut - begin) // whole)):
            begin, left = cut, left - here
        return self.at(begin + left * whole)

    def has_begin(self, pack: int) -> bool:
        """Whether a batch of the run that is cut in this way from its start on begins with this global pack."""
        begin = 0
        while (cut := self.schedule.next_length(begin)) is not None and cut <= pack:
            begin = cut
        return (pack - begin) % (self.batch_size * self.num_ranks) == 0

    def own(self, step: Step, rank: int) -> int:
        """How many of its packs a rank has."""
        return packs_before(step.end, rank, self.num_ranks) - packs_before(step.begin, rank, self.num_ranks)

    def count(self, end: int) -> int:
        """Batches of the whole run, if it ends at a global pack."""
        whole, number, begin = self.batch_size * self.num_ranks, 0, 0
        while (cut := self.schedule.next_length(begin)) is not None and cut < end:
            number, begin = number - (begin - cut) // whole, cut
        rest = num_batches(end - begin, num_ranks=self.num_ranks, batch_size=self.batch_size, drop_last=self.drop_last)
        return number + rest


def num_batches(packs: int, *, num_ranks: int, batch_size: int, drop_last: bool) -> int:
    """Batches that every rank gives for so many global packs that are left."""
    whole = batch_size * num_ranks
    return packs // whole if drop_last else -(-packs // whole)


def _lower(one: int | None, other: int | None) -> int | None:
    return one if other is None else other if one is None else min(one, other)
