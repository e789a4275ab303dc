"""Where the time of a loader's workers and of its own process went, and what its batches were waited for.

In:    the clocks of workers, in memory shared with them; the moments at which this process asks for a batch, has one,
       and waits for a worker.
Out:   seconds by source and stage, at any time and from any thread.
Never: a number that is smaller than it was; time of a worker that is counted again after the worker has ended.

    trainer   ---step---|            |---step---|     |---step---     its time is that between two batches
    this process        |--main--wait|          |main-|
    worker    ...tokenize--tokenize--|-pack-|send|        the wait counts for the stages that the worker was in
                                                          since its last message
"""

import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streampack.metrics import clock, heartbeat
from streampack.metrics.clock import IDLE, MAIN, SEND, STAGES, TRAINER, WAIT, Clock

Seconds = NDArray[np.float64]
_NS = 1e-9
_MAIN, _TRAINER = MAIN // 2, TRAINER // 2


class Spent(NamedTuple):
    """What the time of a rank has gone to so far, in seconds; [S, 9]: by source and stage."""

    waited: Seconds
    """[S, 9]: batches were waited for, as workers were in this stage; in "main" where a worker had not begun."""
    own: Seconds
    """[S, 9]: this process was in this stage; in "trainer": no batch was asked for, or other ranks were waited for."""
    workers: Seconds
    """[W, 9]: how long each of the workers that are alive has been in each stage."""


class WorkerTimes:
    """The time of all workers of a loader."""

    def __init__(self, num_sources: int = 1) -> None:
        self._lock = threading.Lock()
        self._living: list[WorkerClocks] = []
        self._ended = np.zeros((num_sources, clock.NUM_SLOTS), np.int64)
        self._most = self._ended
        """What was told last."""
        self._waited = np.zeros((num_sources, len(STAGES)))

    def begin(self, rows: Sequence[heartbeat.Row]) -> "WorkerClocks":
        """The clocks of workers that begin now, which count until their `end`."""
        begun = WorkerClocks(self, rows)
        with self._lock:
            self._living.append(begun)
        return begun

    def slots(self) -> NDArray[np.int64]:
        """int64 [S, NUM_SLOTS]: nanoseconds of all workers so far."""
        with self._lock:
            total = self._ended.copy()
            for each in self._living:
                total += each.total()
            self._most = np.maximum(self._most, total)
            return self._most.copy()

    def waited(self) -> Seconds:
        """[S, 9]: seconds for which workers were waited for, by what they did."""
        with self._lock:
            total = self._waited.copy()
            for each in self._living:
                total += each.waiting()
            return total

    def of_each(self) -> Seconds:
        """[W, 9]: seconds of each worker that is alive by stage."""
        with self._lock:
            found = [by_stage(slots).sum(axis=0) for each in self._living for slots in each.read()]
        return np.array(found).reshape(-1, len(STAGES))

    def note_wait(self, waited: Seconds) -> None:
        """A wait has ended."""
        with self._lock:
            self._waited = self._waited + waited

    def end(self, ended: "WorkerClocks") -> None:
        """Workers have ended; done twice, it is the same as once."""
        with self._lock:
            if ended in self._living:
                self._ended = self._ended + ended.total()
                self._living.remove(ended)


class WorkerClocks:
    """The clocks of workers that were started together."""

    def __init__(self, times: WorkerTimes, rows: Sequence[heartbeat.Row]) -> None:
        self._times = times
        self._cells = [row[heartbeat.NUM_FIELDS :] for row in rows]
        self._before = [np.zeros_like(each) for each in self.read()]
        """What each had done when its last message came."""
        self._waiting: tuple[int, float] | None = None
        """The worker that is waited for, and since when."""

    def read(self) -> list[NDArray[np.int64]]:
        """int64 [S, NUM_SLOTS] of each worker: nanoseconds so far."""
        return [clock.read(cells) for cells in self._cells]

    def total(self) -> NDArray[np.int64]:
        """int64 [S, NUM_SLOTS]: of all of them."""
        total: NDArray[np.int64] = np.sum(self.read(), axis=0)
        return total

    def wait(self, worker: int) -> None:
        """A worker is waited for, if it is not yet."""
        if self._waiting is None:
            self._waiting = worker, time.monotonic()

    def waiting(self) -> Seconds:
        """[S, 9]: the seconds of the wait that is under way, by what the worker did."""
        if (waiting := self._waiting) is None:
            return np.zeros(1)
        worker, since = waiting
        return divided(time.monotonic() - since, clock.read(self._cells[worker]) - self._before[worker])

    def received(self, worker: int) -> None:
        """A message of a worker has come."""
        now = clock.read(self._cells[worker])
        if (waiting := self._waiting) is not None:
            waited = divided(time.monotonic() - waiting[1], now - self._before[worker])
            self._waiting = None
            self._times.note_wait(waited)
        self._before[worker] = now

    def end(self) -> None:
        """The workers have ended."""
        self._waiting = None
        self._times.end(self)


class LoaderTimes:
    """The time of a loader: of its workers, of its own process, and of the trainer that takes its batches."""

    def __init__(self, num_sources: int) -> None:
        self.workers = WorkerTimes(num_sources)
        self._clock = Clock.of_sources(num_sources)
        self._trainer_ns = 0
        self._left: tuple[object, int] | None = None
        """Who has got the last batch, and when."""

    def enter(self, turn: object) -> Clock | None:
        """A batch is asked for; what this returns is given to `leave`. `turn`: who asks; None: not a trainer."""
        left = self._left
        if left is not None and left[0] is turn:
            self._left = None
            self._trainer_ns += time.monotonic_ns() - left[1]
        before = clock.install(self._clock)
        clock.switch(MAIN)
        return None if before is self._clock else before  # an interrupt has kept a `leave` from being called

    def leave(self, turn: object, before: Clock | None) -> int:
        """There is a batch, or none; returns the present nanosecond."""
        clock.switch(IDLE)
        clock.install(before)
        now = time.monotonic_ns()
        self._left = None if turn is None else (turn, now)
        return now

    def by_stage(self) -> NDArray[np.float64]:
        """[9, 2]: seconds of work and of wait in each stage."""
        own = self._clock.read()
        slots = (self.workers.slots() + own).sum(axis=0)
        slots[TRAINER : TRAINER + 2] = self._trainer_ns, own[:, :TRAINER].sum()
        seconds: Seconds = _NS * slots.reshape(-1, 2)
        return seconds

    def by_source(self) -> NDArray[np.float64]:
        """[S, 2]: seconds of work and of wait for each source, from its storage to its packs."""
        slots = self.workers.slots() + self._clock.read()
        seconds: Seconds = _NS * slots[:, :SEND].reshape(len(slots), -1, 2).sum(axis=1)
        return seconds

    def spent(self) -> Spent:
        """What the time has gone to."""
        own = self._clock.read()
        seconds, waited = by_stage(own), self.workers.waited()
        seconds[:, _MAIN] = _NS * own[:, MAIN]
        for_ranks = max(_NS * own[:, MAIN + WAIT].sum() - waited.sum(), 0.0)
        seconds[:, _TRAINER] = 0
        seconds[0, _TRAINER] = _NS * self._trainer_ns + for_ranks
        return Spent(waited, seconds, self.workers.of_each())


def by_stage(slots: NDArray[np.int64]) -> Seconds:
    """[S, 9]: seconds of each stage, its work and its waits, of nanoseconds [S, NUM_SLOTS]."""
    seconds: Seconds = _NS * slots.reshape(len(slots), -1, 2).sum(axis=2)
    return seconds


def divided(seconds: float, did: NDArray[np.int64]) -> Seconds:
    """[S, 9]: a wait for a worker by what it did meanwhile (int64 [S, NUM_SLOTS]), but for its own waits to send."""
    stages = by_stage(did)
    stages[:, SEND // 2] = _NS * did[:, SEND]
    stages[:, _MAIN:] = 0
    total = stages.sum()
    if total <= 0:  # it has not begun: this process is starting it
        stages[0, _MAIN] = total = 1.0
    waited: Seconds = seconds / total * stages
    return waited
