"""Finite passes end together: simulated ranks, each in a thread, that meet only in the exchange of their windows."""

import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from streampack.corpus.partition import fitting_ranks, packs_before, rank_lanes
from streampack.corpus.schedule import Schedule, StageOfRun
from streampack.corpus.shares import Shares
from streampack.errors import LoaderError
from streampack.loader.dealing import Item
from streampack.loader.rounds import Agree, LeftOut, PackBatch, Waiter, endless, finite
from streampack.loader.steps import Steps


@dataclass(frozen=True)
class Run:
    """A pass that begins at global pack `begin`; lane l is over from round `ends[l]` on."""

    begin: int
    ends: tuple[int, ...]
    pad: bool
    waits: range = range(0)
    """Rounds in which every second lane that is not over waits; in all others those have packs."""

    @property
    def num_lanes(self) -> int:
        return len(self.ends)

    @property
    def end(self) -> int:
        """The global pack behind the last round: whole rounds, the one that has been begun among them."""
        rounds = max(self.ends) if self.pad else min(self.ends)
        return max(rounds, -(-self.begin // self.num_lanes)) * self.num_lanes

    def is_real(self, number: int) -> bool:
        return number // self.num_lanes < self.ends[number % self.num_lanes] and not self.is_waiting(number)

    def is_waiting(self, number: int) -> bool:
        number, lane = divmod(number, self.num_lanes)
        return number in self.waits and number < self.ends[lane] and lane % 2 == 0

    def items(self, rank: int, num_ranks: int, begin: int) -> Iterator[Item]:
        """What a rank's workers send from `begin` on; the global number stands for the pack."""
        lanes = rank_lanes(rank, num_ranks, self.num_lanes)
        for number in itertools.count(begin // self.num_lanes):
            for place, lane in enumerate(lanes):
                if packs_before(begin, lane, self.num_lanes) <= number:
                    pack: Any = number * self.num_lanes + lane
                    yield Item(number, place, pack if self.is_real(pack) else None, waits=self.is_waiting(pack))


def steps_of(
    num_lanes: int,
    batch_size: int,
    num_ranks: int,
    *,
    drop_last: bool = False,
    longer_from: int | None = None,
    end: int | None = None,
) -> Steps:
    """Of a run in which packs are longer from a round on, and which has a budget of packs."""
    firsts = [0] if longer_from is None else [0, longer_from]
    stages = [StageOfRun(first * num_lanes, 0, 100 * (1 + bool(first)), Shares.of([1]), {}) for first in firsts]
    schedule = Schedule(num_lanes=num_lanes, stages=tuple(stages), end=end)
    return Steps(schedule=schedule, batch_size=batch_size, num_ranks=num_ranks, drop_last=drop_last)


class Exchange:
    """The all-reduce: each rank's n-th number meets the n-th of all others."""

    def __init__(self, num_ranks: int, *, highest: bool) -> None:
        self._told: list[list[int]] = [[] for _ in range(num_ranks)]
        self._changed = threading.Condition()
        self._choose = max if highest else min

    def agree(self, rank: int) -> Agree:
        def start(first_round: int, number: int) -> Waiter:
            with self._changed:
                self._told[rank].append(number)
                self._changed.notify_all()
                window = len(self._told[rank]) - 1

            def wait() -> int:
                with self._changed:
                    met = self._changed.wait_for(lambda: all(len(told) > window for told in self._told), timeout=20)
                    assert met, f"rank {rank} waits for ever in window {window}"
                    return self._choose(told[window] for told in self._told)

            return wait

        return start


@dataclass
class Part:
    """What the ranks gave in one stretch of a pass."""

    batches: list[list[PackBatch]]
    left_out: list[int]


def play(
    run: Run, *, ranks: int, batch_size: int, begin: int, steps: int | None, drop_last: bool = False, **schedule: Any
) -> Part:
    """`steps` batches of each rank from `begin` on; None: to the pass's end."""
    exchange = Exchange(ranks, highest=run.pad)

    def one(rank: int) -> tuple[list[PackBatch], int]:
        left_out = LeftOut()
        batches = finite(
            run.items(rank, ranks, begin),
            steps_of(run.num_lanes, batch_size, ranks, drop_last=drop_last, **schedule),
            rank=rank,
            global_pack=begin,
            pad=run.pad,
            agree=exchange.agree(rank),
            left_out=left_out,
        )
        return list(itertools.islice(batches, steps)), left_out.packs

    with ThreadPoolExecutor(ranks) as threads:
        results = list(threads.map(one, range(ranks)))
    return Part([batches for batches, _ in results], [left for _, left in results])


def numbers(run: Run, part: Part, ranks: int) -> list[int]:
    """The global numbers that were handed out, in order; checks order within each rank and where fillers stand."""
    given_out = []
    for rank, batches in enumerate(part.batches):
        items = [item for batch in batches for item in batch.items]
        own = [None if item is None else item.round * run.num_lanes + rank + item.lane_index * ranks for item in items]
        real = [number for number in own if number is not None]
        assert own == real + [None] * (len(own) - len(real)), "a filler without a number stands before a pack"
        assert real == sorted(real)
        for item, number in zip(items, own, strict=True):
            assert item is None or item.pack == (number if number is not None and run.is_real(number) else None)
        given_out += real
    return sorted(given_out)


@st.composite
def runs(draw: st.DrawFn) -> Run:
    num_lanes = draw(st.sampled_from([1, 2, 3, 4, 6, 12]))
    begin = draw(st.integers(0, 3 * num_lanes))
    lengths = draw(st.lists(st.integers(0, 40), min_size=num_lanes, max_size=num_lanes))
    ends = tuple(packs_before(begin, lane, num_lanes) + length for lane, length in enumerate(lengths))
    first = draw(st.integers(0, 20))
    return Run(begin, ends, draw(st.booleans()), range(first, first + draw(st.integers(0, 20))))


@given(runs(), st.integers(1, 9), st.booleans(), st.data())
def test_every_rank_gives_the_same_number_of_batches_and_none_is_lost(
    run: Run, batch_size: int, drop_last: bool, data: st.DataObject
) -> None:
    ranks = data.draw(st.sampled_from(fitting_ranks(run.num_lanes)))
    part = play(run, ranks=ranks, batch_size=batch_size, begin=run.begin, steps=None, drop_last=drop_last)
    left = run.end - run.begin
    wanted = left // ranks // batch_size if drop_last else ceil(ceil(left / ranks) / batch_size)
    assert [len(batches) for batches in part.batches] == [wanted] * ranks
    reached = min(run.begin + wanted * batch_size * ranks, run.end)
    assert numbers(run, part, ranks) == list(range(run.begin, reached))
    for batches in part.batches:
        assert all(len(batch.items) == batch_size for batch in batches)
        assert [batch.global_pack for batch in batches] == [
            min(run.begin + (step + 1) * batch_size * ranks, run.end) for step in range(wanted)
        ]
    if run.pad:  # the pass has made all that there is
        assert sum(part.left_out) == sum(map(run.is_real, range(reached, run.end)))


@given(runs(), st.integers(1, 5), st.data())
def test_a_finite_run_ends_at_its_budget_or_before_and_is_cut_where_packs_get_longer(
    run: Run, batch_size: int, data: st.DataObject
) -> None:
    ranks = data.draw(st.sampled_from(fitting_ranks(run.num_lanes)))
    longer_from, end = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 30 * run.num_lanes))
    schedule = {"longer_from": longer_from, "end": end}
    part = play(run, ranks=ranks, batch_size=batch_size, begin=run.begin, steps=None, **schedule)
    steps, expected = steps_of(run.num_lanes, batch_size, ranks, **schedule), []
    begin = run.begin
    while (step := steps.at(begin, run.end)) is not None:
        expected.append((step.size, step.end, step.seq_len))
        begin = step.end
    assert begin == max(min(run.end, end), run.begin)
    found = [[(len(batch.items), batch.global_pack, batch.seq_len) for batch in batches] for batches in part.batches]
    assert found == [expected] * ranks
    given_out = [
        item.round * run.num_lanes + rank + item.lane_index * ranks
        for rank, batches in enumerate(part.batches)
        for batch in batches
        for item in batch.items
        if item is not None
    ]
    assert sorted(given_out) == list(range(run.begin, begin))


@given(runs(), st.data())
def test_a_pass_resumed_on_other_ranks_gives_the_rest(run: Run, data: st.DataObject) -> None:
    begin, given_out = run.begin, []
    for _ in range(4):
        ranks = data.draw(st.sampled_from(fitting_ranks(run.num_lanes)))
        batch_size = data.draw(st.integers(1, 5))
        steps = data.draw(st.integers(0, 6))
        part = play(run, ranks=ranks, batch_size=batch_size, begin=begin, steps=steps)
        given_out += numbers(run, part, ranks)
        reached = {batches[-1].global_pack for batches in part.batches if batches} or {begin}
        assert len({len(batches) for batches in part.batches}) == len(reached) == 1
        begin = reached.pop()
    ranks = data.draw(st.sampled_from(fitting_ranks(run.num_lanes)))
    part = play(run, ranks=ranks, batch_size=3, begin=begin, steps=None)
    assert len(part.batches[0]) == ceil(ceil((run.end - begin) / ranks) / 3)
    assert sorted(given_out + numbers(run, part, ranks)) == list(range(run.begin, run.end))


@given(runs(), st.integers(1, 5), st.data())
def test_a_rank_on_its_own_ends_with_its_own_lanes(run: Run, batch_size: int, data: st.DataObject) -> None:
    ranks = data.draw(st.sampled_from(fitting_ranks(run.num_lanes)))
    for rank in range(ranks):
        own = [run.ends[lane] for lane in rank_lanes(rank, ranks, run.num_lanes)]
        rounds = max(max(own) if run.pad else min(own), -(-run.begin // run.num_lanes))
        batches = finite(
            run.items(rank, ranks, run.begin),
            steps_of(run.num_lanes, batch_size, ranks),
            rank=rank,
            global_pack=run.begin,
            pad=run.pad,
            agree=None,
            left_out=LeftOut(),
        )
        left = rounds * run.num_lanes - run.begin
        assert len(list(batches)) == ceil(ceil(left / ranks) / batch_size)


class BadRecordError(Exception):
    """What stands in the place of a pack."""


def failing(items: Iterator[Item], place: int, *, num_lanes: int, rank: int, num_ranks: int) -> Iterator[Item]:
    """The items up to a global pack, in whose place an error stands; with it they end."""
    for item in items:
        if item.round * num_lanes + rank + item.lane_index * num_ranks == place:
            yield item._replace(pack=None, error=BadRecordError(str(place)))
            return
        yield item


def outcome(run: Run, place: int, *, ranks: int, batch_size: int) -> list[tuple[list[int], type | None]]:
    """What each rank gets of a pass with an error at a global pack: the packs, and the class of the error if any."""
    exchange = Exchange(ranks, highest=run.pad)

    def one(rank: int) -> tuple[list[int], type | None]:
        shape = {"rank": rank, "num_ranks": ranks, "num_lanes": run.num_lanes}
        items = failing(run.items(rank, ranks, run.begin), place, **shape)
        batches = finite(
            items,
            steps_of(run.num_lanes, batch_size, ranks),
            rank=rank,
            global_pack=run.begin,
            pad=run.pad,
            agree=exchange.agree(rank),
            left_out=LeftOut(),
        )
        packs: list[int] = []
        try:
            for batch in batches:
                packs += [item.round * run.num_lanes + rank + item.lane_index * ranks for item in batch.items if item]
        except (BadRecordError, LoaderError) as error:
            return packs, type(error)
        return packs, None

    with ThreadPoolExecutor(ranks) as threads:
        return list(threads.map(one, range(ranks)))


@given(runs(), st.integers(1, 4), st.data())
def test_an_error_or_the_end_comes_at_the_same_global_pack_on_every_number_of_ranks(
    run: Run, batch_size: int, data: st.DataObject
) -> None:
    place = data.draw(st.integers(run.begin, run.begin + 12 * run.num_lanes))
    lane, number = place % run.num_lanes, place // run.num_lanes
    if run.ends[lane] < number:  # after the lane's end there is no record
        return
    whole_from = -(-run.begin // run.num_lanes)
    ends = (max(end, whole_from) * run.num_lanes + other for other, end in enumerate(run.ends) if other != lane)
    fails = run.pad or place < min(ends, default=place + 1)  # of the lane that fails the end is not known
    for ranks in fitting_ranks(run.num_lanes):
        for rank, (packs, error) in enumerate(outcome(run, place, ranks=ranks, batch_size=batch_size)):
            own = list(range(run.begin + (rank - run.begin) % ranks, place if fails else run.end, ranks))
            assert packs == own[: len(packs)]
            assert error is ((BadRecordError if place % ranks == rank else LoaderError) if fails else None)
            if fails:  # all global batches in the rounds before the error were handed out
                batches = (number * run.num_lanes - run.begin) // (batch_size * ranks)
                assert len(packs) >= batches * batch_size
            else:
                assert len(packs) == len(own)


def test_making_packs_never_waits_for_another_rank() -> None:
    """A rank makes and announces a window, and waits only when it is to hand out the first round of that window."""
    exchange = Exchange(2, highest=True)
    run = Run(0, (40,) * 16, pad=True)  # 8 lanes a rank: windows of 2 rounds, 16 packs of a rank
    events: list[str] = []

    def watched(start: Agree) -> Agree:
        def agree(first_round: int, number: int) -> Waiter:
            events.append("announced")
            wait = start(first_round, number)
            return lambda: events.append("waited") or wait()

        return agree

    other = exchange.agree(1)
    other(0, 2)  # of the other rank's windows, only the first is made so far
    batches = finite(
        run.items(0, 2, 0),
        steps_of(16, 16, 2),
        rank=0,
        global_pack=0,
        pad=True,
        agree=watched(exchange.agree(0)),
        left_out=LeftOut(),
    )
    next(batches)
    assert events == ["announced", "waited", "announced"]
    other(2, 4)
    next(batches)
    assert events == ["announced", "waited", "announced", "waited", "announced"]


def test_what_a_stopped_pass_made_and_left_is_counted() -> None:
    """Two lanes of 2 and 5 packs: two rounds are handed out, three packs of the longer lane are not."""
    part = play(Run(0, (2, 5), pad=False), ranks=1, batch_size=2, begin=0, steps=None)
    assert len(part.batches[0]) == 2
    assert part.left_out == [3]


def test_lanes_that_all_wait_for_a_stage_keep_the_pass_going() -> None:
    """For longer than ranks agree ahead; at the beginning as at the end of a window."""
    for waits in (range(2, 40), range(3, 41), range(30)):
        for pad in (True, False):
            run = Run(0, (45,), pad, waits)
            for ranks in (1, 2, 4):
                whole = replace(run, ends=run.ends * ranks)
                part = play(whole, ranks=ranks, batch_size=2, begin=0, steps=None)
                assert numbers(whole, part, ranks) == list(range(45 * ranks))


def test_a_pass_in_which_no_lane_has_a_pack_has_no_batch() -> None:
    part = play(Run(12, (3, 3, 3, 3), pad=True), ranks=2, batch_size=2, begin=12, steps=None)
    assert part.batches == [[], []]


def test_an_endless_run_has_full_batches_for_ever() -> None:
    run = Run(5, (10**9,) * 4, pad=True)
    for ranks in (1, 2, 4):
        for rank in range(ranks):
            batches = endless(run.items(rank, ranks, 5), steps_of(4, 3, ranks), rank=rank, global_pack=5)
            first = list(itertools.islice(batches, 50))
            assert [batch.global_pack for batch in first] == [5 + 3 * ranks * (step + 1) for step in range(50)]
            own: list[Any] = [item.pack for batch in first for item in batch.items if item is not None]
            assert own == [number for number in range(5, 5 + 150 * ranks) if number % ranks == rank]
