"""Batches of one pass, the same number on every rank.

In:    a rank's items in its order.
Out:   batches of them, each with the global pack that is reached after it.
Never: another number of batches on one rank than on the others.

In a finite run the ranks must end together though their lanes are of different length. They agree some rounds ahead:
each rank makes its packs of the next K rounds, and only then joins a small all-reduce of how many of those rounds are
still to be handed out ("pad": the most that any rank has packs for; "stop": those before the first lane's end).

    K = 2, pad      rank 0: A0 B0 | A1 -- | -- --        -- : the lane has ended, a filler stands there
                    rank 1: C0 D0 | C1 D1 | -- D2        window 0: 2 rounds; window 1 (rounds 2, 3): max(0, 1) = 1
                                                         the pass has M = 3 rounds on both ranks

An error has a place in the global order, too, and all ranks learn from the same all-reduce that no rank gets past it:
the rank that met it raises it when its turn has come, the others a `LoaderError` that names that rank. With "stop" what
comes first in the global order counts, an error or a lane's end, so that it is the same on every number of ranks:

    stop            rank 0: A0 B0 | A1 x                 x : an error at global pack 5 (round 1, lane 1 of 4)
                    rank 1: C0 D0 | -- D1                lane 2 ends at pack 6, which is after it
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from streampack.errors import LoaderError
from streampack.loader.dealing import Item
from streampack.loader.steps import Step, Steps

Waiter = Callable[[], int]
Agree = Callable[[int, int], Waiter]
"""(first round of the window, this rank's number) -> a function that waits for the ranks' highest or lowest number."""


class PackBatch(NamedTuple):
    """What is handed out at once."""

    items: Sequence[Item | None]
    """None: a filler without a global number, where a batch would have too few packs."""
    global_pack: int
    """All global packs below this one have been handed out with this batch, over all ranks."""
    seq_len: int
    """Of each of its packs."""


@dataclass(slots=True)
class LeftOut:
    """Packs that a pass made and did not hand out; known at its end. Lanes that were cut short may have held more."""

    packs: int = 0


def endless(items: Iterator[Item], steps: Steps, *, rank: int, global_pack: int) -> Iterator[PackBatch]:
    """Batch after batch, to the end of the schedule if it has one.

    Args:
        items: the rank's items from `global_pack` on, never ending.
        steps: how the run is cut into batches.
        rank: data-parallel rank.
        global_pack: where the run continues.
    """
    while (step := steps.at(global_pack)) is not None:
        batch: list[Item | None] = list(islice(items, steps.own(step, rank)))
        if batch and batch[-1] is not None:
            whole(batch[-1])  # an error is the last of all items
        yield _batch(batch, step)
        global_pack = step.end


def finite(
    items: Iterator[Item],
    steps: Steps,
    *,
    rank: int,
    global_pack: int,
    pad: bool,
    agree: Agree | None,
    left_out: LeftOut,
) -> Iterator[PackBatch]:
    """The batches of one finite pass, or of a run whose sources may end before it does.

    Args:
        items: the rank's items from `global_pack` on, never ending (a lane without a pack says in each round whether it
            waits for a later stage or is over).
        steps: how the run is cut into batches.
        rank: data-parallel rank.
        global_pack: where the pass continues.
        pad: whether the pass lasts as long as the longest lane, not as the shortest.
        agree: starts to find the ranks' highest (pad) or lowest number and gives a function that waits for it; None
            where there are no other ranks to ask.
        left_out: told what was made and not handed out.
    """
    num_ranks, num_lanes = steps.num_ranks, steps.schedule.num_lanes
    first_round, begun = divmod(global_pack, num_lanes)
    end = _End(
        pad=pad,
        rounds=max(1, 16 * num_ranks // num_lanes),
        whole_from=first_round + (begun > 0),
        rank=rank,
        num_ranks=num_ranks,
        num_lanes=num_lanes,
    )
    windows = _windows(items, end, agree, first_round=first_round)
    pending: deque[Item] = deque()
    agreed_packs, final = 0, False
    while True:
        step = steps.at(global_pack)
        while step is not None and not final and agreed_packs < step.end:
            window = next(windows)
            for item in window.items:
                if item.round < window.end_round:
                    pending.append(item)
                else:
                    left_out.packs += item.pack is not None
            agreed_packs, final = window.end_round * num_lanes, window.final
        if step is not None and final:
            step = steps.at(global_pack, agreed_packs)
        if step is None:
            left_out.packs += sum(whole(item).pack is not None for item in pending)
            return
        yield _batch([whole(pending.popleft()) for _ in range(steps.own(step, rank))], step)
        global_pack = step.end


def _batch(items: list[Item | None] | list[Item], step: Step) -> PackBatch:
    return PackBatch([*items, *[None] * (step.size - len(items))], step.end, step.seq_len)


def whole(item: Item) -> Item:
    """The item; raises the error that stands in its place, now that it is needed."""
    if item.error is not None:
        raise item.error
    return item


class _Window(NamedTuple):
    items: list[Item]
    """Those of rounds from `end_round` on are left out."""
    end_round: int
    final: bool


_AN_ERROR = 2**50
"""Above every number of rounds and packs; what a rank tells of an error is derived from it."""


class _Verdict(NamedTuple):
    """What the ranks have agreed on for a window."""

    end_round: int
    """The rounds of the window before it are handed out."""
    final: bool
    """Whether the pass ends there."""
    error_at: int | None = None
    """The global pack in whose place the first error stands, if that comes before the pass's end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _End:
    """How the end of a pass is found from what all ranks have in a window of rounds."""

    pad: bool
    """Whether the ranks' highest number counts, else the lowest."""
    rounds: int
    """Of a window."""
    whole_from: int
    """The rounds before it are handed out in any case: the one that was begun."""
    rank: int
    num_ranks: int
    num_lanes: int

    def number(self, window: Sequence[Item], start: int) -> int:
        """What this rank tells of a window: the global pack of the first event in it, and which kind that is.

        With "pad" the round after its last pack counts instead of the first lane's end. A lane that waits for a later
        stage counts as one that has a pack.
        """
        stop = start + self.rounds
        for item in window:
            if item.error is not None:
                place = self._place(item)
                return _AN_ERROR - place if self.pad else 2 * place + 1
            if item.pack is None and not item.waits and not self.pad and item.round >= self.whole_from:
                return 2 * self._place(item)
        if not self.pad:
            return 2 * stop * self.num_lanes
        given = max((item.round + 1 for item in window if item.pack is not None or item.waits), default=start)
        return max(given, min(self.whole_from, stop))

    def verdict(self, agreed: int, start: int) -> _Verdict:
        """What follows from the ranks' highest (pad) or lowest number."""
        if self.pad:
            error_at = None if agreed <= _AN_ERROR // 2 else _AN_ERROR - agreed
            end_round = agreed
        else:
            error_at = agreed // 2 if agreed % 2 else None
            end_round = agreed // 2 // self.num_lanes
        if error_at is None:
            return _Verdict(end_round, final=end_round < start + self.rounds)
        # The rank that has met the error takes its round, too, and raises it there.
        return _Verdict(error_at // self.num_lanes + self.is_mine(error_at), final=False, error_at=error_at)

    def is_mine(self, place: int) -> bool:
        """Whether a global pack is one of this rank."""
        return place % self.num_ranks == self.rank

    def _place(self, item: Item) -> int:
        return item.round * self.num_lanes + item.lane_index * self.num_ranks + self.rank


def _windows(items: Iterator[Item], end: _End, agree: Agree | None, *, first_round: int) -> Iterator[_Window]:
    """Windows of rounds that all ranks have agreed on; after the last one, which is final, or fails, there is none."""
    held: list[Item] = []

    def make(start: int) -> tuple[list[Item], Waiter]:
        window = list(held)
        held.clear()
        for item in items:
            if item.round >= start + end.rounds:
                held.append(item)
                break
            window.append(item)
        number = end.number(window, start)
        return window, (lambda: number) if agree is None else agree(start, number)

    start = first_round
    window, wait = make(start)
    while True:
        verdict = end.verdict(wait(), start)
        if verdict.final or verdict.error_at is not None:
            break
        # With other ranks, the next agreement is under way while this window is handed out.
        ahead = None if agree is None else make(start + end.rounds)
        yield _Window(window, verdict.end_round, final=False)
        start += end.rounds
        window, wait = make(start) if ahead is None else ahead
    yield _Window(window, verdict.end_round, final=verdict.final)
    if verdict.error_at is None:
        return
    error = window[-1].error if window else None
    if error is not None and end.is_mine(verdict.error_at):
        raise error
    raise LoaderError(
        f"data-parallel rank {verdict.error_at % end.num_ranks} has met an error at global pack {verdict.error_at}, "
        "and no rank gets past it; that rank's own error says what it is. The state of each rank is good."
    ) from error
