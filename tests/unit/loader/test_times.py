"""Where the time of workers and of the loader's process went, by a clock that the test sets."""

from typing import Any

import numpy as np
import pytest

from streampack.loader import times
from streampack.loader.times import LoaderTimes, WorkerTimes
from streampack.metrics import clock, heartbeat
from streampack.metrics.clock import IDLE, MAIN, NUM_SLOTS, PACK, SEND, STAGES, STORAGE, TAR, TOKENIZE, WAIT, Clock

S = 10**9


class Time:
    """The monotonic clock."""

    def __init__(self) -> None:
        self.ns = 10**12

    def monotonic_ns(self) -> int:
        return self.ns

    def monotonic(self) -> float:
        return self.ns / S


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Time:
    now = Time()
    monkeypatch.setattr(clock, "time", now)
    monkeypatch.setattr(times, "time", now)
    return now


class Crew:
    """Two workers that do what a test tells them."""

    def __init__(self, all_times: WorkerTimes, now: Time, num_sources: int = 2) -> None:
        size = 8 * (heartbeat.NUM_FIELDS + NUM_SLOTS * num_sources)
        rows = [memoryview(bytearray(size)).cast("q") for _ in range(2)]
        self.workers = [heartbeat.clock_of(row) for row in rows]
        self.clocks = all_times.begin(rows)
        self.now = now

    def do(self, worker: int, *parts: tuple[int, float]) -> None:
        """So many seconds in each slot."""
        for slot, seconds in parts:
            self.workers[worker].switch(slot)
            self.now.ns += int(seconds * S)


def named(seconds: Any) -> dict[str, float]:
    """Those of [S, 9] that are not 0, by stage."""
    return {stage: round(each, 6) for stage, each in zip(STAGES, seconds.sum(axis=0).tolist(), strict=True) if each}


@pytest.fixture
def all_times() -> WorkerTimes:
    return WorkerTimes(2)


def test_a_wait_counts_for_what_the_worker_did_since_its_last_message(all_times: WorkerTimes, now: Time) -> None:
    crew = Crew(all_times, now)
    crew.do(0, (TAR, 50), (SEND + WAIT, 70), (SEND, 1))
    crew.clocks.received(0)  # it was there when it was asked for
    assert named(all_times.waited()) == {}
    crew.do(0, (SEND + WAIT, 20), (STORAGE + WAIT, 3), (STORAGE, 1))
    crew.clocks.wait(0)
    crew.do(0, (TOKENIZE, 4))
    assert named(all_times.waited()) == {"storage": 2.0, "tokenize": 2.0}  # up to now
    crew.do(0, (SEND, 2))
    crew.clocks.received(0)
    waited = {"storage": 2.4, "tokenize": 2.4, "send": 1.2}
    assert named(all_times.waited()) == waited
    now.ns += 100 * S
    assert named(all_times.waited()) == waited


def test_a_wait_for_a_worker_that_has_not_begun_is_the_loaders_own(all_times: WorkerTimes, now: Time) -> None:
    crew = Crew(all_times, now)
    crew.clocks.wait(1)
    now.ns += 3 * S
    assert named(all_times.waited()) == {"main": 3.0}


def test_a_wait_counts_for_the_source_that_the_worker_read(all_times: WorkerTimes, now: Time) -> None:
    crew = Crew(all_times, now)
    crew.workers[1].begin_source(1)
    crew.clocks.wait(1)
    crew.do(1, (STORAGE + WAIT, 3))
    crew.workers[1].begin_source(0)
    crew.do(1, (STORAGE + WAIT, 1))
    assert all_times.waited()[:, 0].tolist() == [1.0, 3.0]


def test_workers_that_have_ended_count_once_and_no_longer(all_times: WorkerTimes, now: Time) -> None:
    first = Crew(all_times, now)
    first.do(0, (TAR, 2))
    second = Crew(all_times, now)
    second.do(1, (PACK, 4))
    assert (all_times.slots()[0, [TAR, PACK]] / S).tolist() == [6.0, 4.0]
    assert named(all_times.of_each()[None].sum(axis=1)) == {"tar": 6.0, "pack": 4.0}
    first.clocks.end()
    first.clocks.end()
    now.ns += 100 * S
    assert (all_times.slots()[0, [TAR, PACK]] / S).tolist() == [6.0, 104.0]
    second.clocks.end()
    assert all_times.of_each().shape == (0, len(STAGES))


def test_seconds_never_become_fewer(all_times: WorkerTimes, now: Time) -> None:
    """A dashboard takes a counter that falls for one that has begun again."""
    crew = Crew(all_times, now)
    crew.do(0, (TAR, 2))
    told = all_times.slots()
    now.ns -= 5  # a cell that is read as the worker writes
    assert (all_times.slots() >= told).all()


def test_between_two_batches_of_an_iterator_the_trainer_has_the_time(now: Time) -> None:
    of_loader, one, other = LoaderTimes(2), object(), object()
    for turn, main, step in ((one, 1, 10), (one, 2, 20), (other, 4, 40), (None, 8, 80), (other, 16, 160)):
        before = of_loader.enter(turn)
        now.ns += main * S
        of_loader.leave(turn, before)
        now.ns += step * S
    stages = dict(zip(STAGES, of_loader.by_stage().tolist(), strict=True))
    # What follows an iterator's last batch, or a skip, is not between two batches.
    assert stages["trainer"] == pytest.approx([10, 31])
    assert stages["main"] == pytest.approx([31, 0])


def test_without_workers_this_process_does_their_work(now: Time) -> None:
    of_loader, turn = LoaderTimes(2), object()
    outer = Clock.of_sources(1)
    clock.install(outer)
    outer.switch(PACK)
    before = of_loader.enter(turn)
    now.ns += S
    clock.begin_source(1)
    clock.timed(TAR, lambda: setattr(now, "ns", now.ns + 2 * S))
    of_loader.leave(turn, before)
    assert clock.install(None) is outer
    assert dict(zip(STAGES, of_loader.by_stage().tolist(), strict=True)) | {"tar": [2, 0], "main": [1, 0]} == {
        **{stage: [0.0, 0.0] for stage in STAGES}, "tar": [2.0, 0.0], "main": [1.0, 0.0], "trainer": [0.0, 3.0],
    }
    assert of_loader.by_source().tolist() == [[0.0, 0.0], [2.0, 0.0]]


def test_a_wait_for_other_ranks_is_spent_on_the_trainer(now: Time) -> None:
    of_loader, turn = LoaderTimes(2), object()
    crew = Crew(of_loader.workers, now)
    before = of_loader.enter(turn)
    clock.switch(MAIN + WAIT)
    now.ns += 5 * S  # for a rank
    crew.clocks.wait(0)
    crew.do(0, (TAR, 2))
    crew.clocks.received(0)
    clock.switch(IDLE)
    of_loader.leave(turn, before)
    spent = of_loader.spent()
    assert (named(spent.waited), named(spent.own)) == ({"tar": 2.0}, {"trainer": 5.0})
    assert np.allclose(spent.workers[:, 2], [2.0, 0.0])


def test_a_clock_that_an_interrupt_left_behind_is_gone_after_the_next_batch() -> None:
    clock.install(None)
    of_loader, turn = LoaderTimes(1), object()
    of_loader.enter(turn)  # and no `leave`
    of_loader.leave(turn, of_loader.enter(turn))
    assert clock.install(None) is None
