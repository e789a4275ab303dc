"""Batches of one pass, the same number on every rank.

In:    a rank's items in its order.
Out:   batches of them, each with the global pack that is reached after it.
Never: another number of batches on one rank than on the others.

In a finite run the ranks must end together though their lanes are of different length. They agree some rounds ahead:
each rank makes its packs of the next K rounds, and only then joins a small all-reduce of how many of those rounds are
still to be handed out ("pad": the most that any rank has packs for; "stop": the fewest that all lanes have packs for).

    K = 2, pad      rank 0: A0 B0 | A1 -- | -- --        -- : the lane has ended, a filler stands there
                    rank 1: C0 D0 | C1 D1 | -- D2        window 0: 2 rounds; window 1 (rounds 2, 3): max(0, 1) = 1
                                                         the pass has M = 3 rounds on both ranks

An error is raised when its item's turn has come. A rank that has met one takes part in no agreement after it, so that
no other rank believes that the pass has ended.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import NamedTuple

from streampack.loader.dealing import Item

Waiter = Callable[[], int]


class PackBatch(NamedTuple):
    """What is handed out at once."""

    items: Sequence[Item | None]
    """None: a filler without a global number, where a batch would have too few packs."""
    global_pack: int
    """All global packs below this one have been handed out with this batch, over all ranks."""


@dataclass(slots=True)
class LeftOut:
    """Packs that a pass made and did not hand out; known at its end. Lanes that were cut short may have held more."""

    packs: int = 0


def endless(
    items: Iterator[Item], *, batch_size: int, num_ranks: int, global_pack: int
) -> Iterator[PackBatch]:
    """Batch after batch, for ever."""
    while True:
        global_pack += batch_size * num_ranks
        batch = list(islice(items, batch_size))
        _whole(batch[-1])  # an error is the last of all items
        yield PackBatch(batch, global_pack)


def finite(
    items: Iterator[Item],
    *,
    batch_size: int,
    num_ranks: int,
    num_lanes: int,
    global_pack: int,
    pad: bool,
    drop_last: bool,
    agree: Callable[[int], Waiter] | None,
    left_out: LeftOut,
) -> Iterator[PackBatch]:
    """The batches of one finite pass.

    Args:
        items: the rank's items from `global_pack` on, never ending (a lane that has ended says so in each round).
        batch_size: packs of a batch.
        num_ranks: data-parallel ranks.
        num_lanes: lanes over all ranks.
        global_pack: where the pass continues.
        pad: whether the pass lasts as long as the longest lane, not as the shortest.
        drop_last: leave out what does not fill a batch on every rank.
        agree: starts to find the ranks' highest (pad) or lowest number and gives a function that waits for it; None
            where there are no other ranks to ask.
        left_out: told what was made and not handed out.
    """
    windows = _windows(
        items,
        first_round=global_pack // num_lanes,
        begun=global_pack % num_lanes > 0,
        rounds=max(1, 16 * num_ranks // num_lanes),
        pad=pad,
        agree=agree,
    )
    pending: deque[Item] = deque()
    agreed_packs, final = 0, False
    start, batches = global_pack, 0
    while True:
        target = start + (batches + 1) * batch_size * num_ranks
        while not final and agreed_packs < target:
            window = next(windows)
            for item in window.items:
                if item.round < window.end_round:
                    pending.append(item)
                else:
                    left_out.packs += item.pack is not None
            agreed_packs, final = window.end_round * num_lanes, window.final
        if final and batches >= num_batches(
            agreed_packs - start, num_ranks=num_ranks, batch_size=batch_size, drop_last=drop_last
        ):
            left_out.packs += sum(_whole(item).pack is not None for item in pending)
            return
        global_pack = min(target, agreed_packs)
        batches += 1
        yield PackBatch([_whole(pending.popleft()) if pending else None for _ in range(batch_size)], global_pack)


def _whole(item: Item) -> Item:
    """The item; raises the error that stands in its place, now that it is needed."""
    if item.error is not None:
        raise item.error
    return item


def num_batches(packs: int, *, num_ranks: int, batch_size: int, drop_last: bool) -> int:
    """Batches that every rank gives for so many global packs that are left."""
    if drop_last:
        return packs // num_ranks // batch_size
    of_one_rank = (packs + num_ranks - 1) // num_ranks
    return (of_one_rank + batch_size - 1) // batch_size


class _Window(NamedTuple):
    items: list[Item]
    """Those of rounds from `end_round` on are left out."""
    end_round: int
    final: bool


def _windows(
    items: Iterator[Item],
    *,
    first_round: int,
    begun: bool,
    rounds: int,
    pad: bool,
    agree: Callable[[int], Waiter] | None,
) -> Iterator[_Window]:
    """Windows of rounds that all ranks have agreed on; the last one is final."""
    held: list[Item] = []
    failures: list[Exception] = []

    def make(start: int) -> tuple[list[Item], Waiter]:
        if failures:  # other ranks must not come to an end without this one: they wait for it until its job ends
            return [], partial(_fail, failures[0])
        window = list(held)
        held.clear()
        for item in items:
            if item.round >= start + rounds:
                held.append(item)
                break
            window.append(item)
        failures.extend(item.error for item in window[-1:] if item.error is not None)
        local = _rounds_to_give(window, start=start, rounds=rounds, pad=pad)
        if begun and start == first_round:
            local = max(local, 1)  # a round that has been begun is handed out to its end
        return window, (lambda: local) if agree is None else agree(local)

    start = first_round
    window, wait = make(start)
    while True:
        agreed = wait()
        if agreed < rounds:
            yield _Window(window, start + agreed, final=True)
            return
        # With other ranks, the next agreement is under way while this window is handed out.
        ahead = None if agree is None else make(start + rounds)
        yield _Window(window, start + rounds, final=False)
        start += rounds
        window, wait = make(start) if ahead is None else ahead


def _fail(error: Exception) -> int:
    raise error


def _rounds_to_give(window: list[Item], *, start: int, rounds: int, pad: bool) -> int:
    if window and window[-1].error is not None:  # what comes after it is not known, and no rank gets past it
        return min((item.round - start for item in window[:-1] if item.pack is None and not pad), default=rounds)
    if pad:
        return max((item.round + 1 - start for item in window if item.pack is not None), default=0)
    return min((item.round - start for item in window if item.pack is None), default=rounds)
