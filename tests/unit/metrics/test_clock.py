"""Where the time of a thread goes, by a clock that the test sets."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from streampack.metrics import clock, heartbeat
from streampack.metrics.clock import IDLE, NUM_SLOTS, PACK, STORAGE, TAR, TOKENIZE, WAIT, Clock


class Time:
    """The monotonic clock."""

    def __init__(self) -> None:
        self.ns = 1_000_000

    def monotonic_ns(self) -> int:
        return self.ns


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Time:
    now = Time()
    monkeypatch.setattr(clock, "time", now)
    return now


@pytest.fixture
def mine(now: Time) -> Iterator[Clock]:
    mine = Clock.of_sources(3)
    before = clock.install(mine)
    yield mine
    clock.install(before)


def spent(of: Clock, source: int = 0) -> dict[int, int]:
    """Nanoseconds by slot, but for those in which nothing is counted."""
    return {slot: ns for slot, ns in enumerate(of.read()[source].tolist()) if ns and slot != IDLE}


def test_time_is_that_of_the_slot_that_the_thread_is_in_up_to_now(mine: Clock, now: Time) -> None:
    now.ns += 5
    assert clock.switch(TAR) == IDLE
    now.ns += 10
    assert clock.switch(TOKENIZE) == TAR
    now.ns += 100
    assert spent(mine) == {TAR: 10, TOKENIZE: 100}
    now.ns += 100
    assert spent(mine) == {TAR: 10, TOKENIZE: 200}
    assert clock.switch(TAR) == TOKENIZE
    now.ns += 1
    assert spent(mine) == {TAR: 11, TOKENIZE: 200}


def test_time_is_that_of_the_source_that_is_being_read(mine: Clock, now: Time) -> None:
    clock.switch(PACK)
    now.ns += 3
    clock.begin_source(2)
    now.ns += 4
    clock.begin_source(2)
    clock.switch(TAR)
    now.ns += 5
    clock.begin_source(0)
    now.ns += 6
    assert (spent(mine), spent(mine, 1), spent(mine, 2)) == ({PACK: 3, TAR: 6}, {}, {PACK: 4, TAR: 5})


def test_items_are_made_in_one_stage_and_used_in_another(mine: Clock, now: Time) -> None:
    def made() -> Iterator[int]:
        for ns in (1, 20):
            now.ns += ns
            yield ns
        now.ns += 300
        clock.waited(pause, 4000)

    def pause(ns: int) -> None:
        now.ns += ns

    clock.switch(PACK)
    for ns in clock.within(STORAGE, made()):
        now.ns += 100_000 * ns
    clock.timed(TAR, pause, 7)
    assert spent(mine) == {STORAGE: 321, STORAGE + WAIT: 4000, PACK: 2_100_000, TAR: 7}
    assert clock.switch(IDLE) == PACK


def test_an_error_leaves_the_stage_that_it_was_raised_in(mine: Clock, now: Time) -> None:
    def fail() -> Iterator[int]:
        now.ns += 9
        raise ValueError("no")
        yield 1

    clock.switch(PACK)
    with pytest.raises(ValueError, match="no"):
        next(clock.within(TAR, fail()))
    with pytest.raises(StopIteration):
        clock.timed(TAR, next, iter(()))
    now.ns += 1
    assert spent(mine) == {TAR: 9, PACK: 1}


def test_an_interrupt_between_any_two_steps_of_a_switch_costs_that_time_only(now: Time) -> None:
    """Cells are written one after the other, and a signal handler may raise between two of them."""

    class Cells(list[int]):
        left = 10**9

        def __setitem__(self, at: int, value: int) -> None:  # type: ignore[override]
            super().__setitem__(at, value)
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt

    for steps in (1, 2):
        cells = Cells([0] * NUM_SLOTS)
        mine = Clock(cells)  # type: ignore[arg-type]
        mine.switch(TAR)
        now.ns += 10
        cells.left = steps
        with pytest.raises(KeyboardInterrupt):
            mine.switch(TOKENIZE)
        now.ns += 100
        mine.switch(PACK)
        now.ns += 1000
        found = clock.read(cells)[0]  # type: ignore[arg-type]
        assert found[[TAR, PACK]].tolist() == [10, 1000]
        assert found[TOKENIZE] <= 100


def test_the_calls_do_nothing_in_a_thread_without_a_clock(mine: Clock, now: Time) -> None:
    """Threads that read ahead go through the same code."""

    def elsewhere() -> None:
        clock.switch(TOKENIZE)
        clock.begin_source(1)
        found.append((clock.waited(int, "7"), list(clock.within(TAR, "ab"))))

    found: list[object] = []
    clock.switch(TAR)
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    now.ns += 2
    assert found == [(7, ["a", "b"])]
    assert spent(mine) == {TAR: 2}


def test_another_process_reads_the_clock_of_a_worker_in_its_row(now: Time) -> None:
    memory = memoryview(bytearray(8 * (heartbeat.NUM_FIELDS + 2 * NUM_SLOTS))).cast("q")
    worker = heartbeat.clock_of(memory)
    worker.begin_source(1)
    worker.switch(TAR)
    now.ns += 8
    found = clock.read(memory[heartbeat.NUM_FIELDS :])
    assert (found.shape, found.dtype, found[1, TAR]) == ((2, NUM_SLOTS), np.int64, 8)
    assert not any(memory[: heartbeat.NUM_FIELDS])


def test_a_source_that_the_clock_does_not_know_counts_for_the_first(now: Time) -> None:
    """A dataset of more sources may be read where a loader's clock is installed."""
    of_one = Clock.of_sources(1)
    of_one.begin_source(3)
    of_one.switch(PACK)
    now.ns += 5
    of_one.switch(IDLE)
    assert of_one.read()[0, PACK] == 5
