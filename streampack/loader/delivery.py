"""A rank's batches, one after the other: a pass makes each, it is committed, and it is handed out.

In:    committed rows, and the dataset, settings and stages that a pass from there on needs.
Out:   batches, to one iterator and one thread at a time.
Never: a batch that is lost or comes twice because a step was interrupted, by a signal handler, its exception or another
       thread. A pass goes on only where it stands at the global pack that is committed; otherwise another is made from
       there.

Threads: one takes batches (`next`, `skip`), one call at a time. Any other, and a signal handler inside such a call, may
retire the pass meanwhile, as `close`, `load_state_dict` and a new iterator do. That does not wait for the call, which
comes back with a `LoaderError` and ends the workers.
"""

import dataclasses
import threading
from collections import deque
from collections.abc import Callable, Sized
from contextlib import suppress
from time import perf_counter
from typing import Any

from streampack.dataset.dataset import PackedDataset
from streampack.errors import LoaderError
from streampack.formats.consumers import Batch
from streampack.lanes.arrival import check_arrival
from streampack.lanes.held_out import check_parts
from streampack.loader.agreement import SharedRun
from streampack.loader.calls import Calls
from streampack.loader.commits import Change, Commits
from streampack.loader.consistency import Verifier
from streampack.loader.exhaustion import ExhaustionLog
from streampack.loader.formatting import BatchFormatter
from streampack.loader.limits import Limits
from streampack.loader.passes import Pass, PassSettings
from streampack.loader.processes import Launcher
from streampack.loader.progress import length, progress_of
from streampack.loader.restarts import WorkerRestarts
from streampack.loader.rounds import PackBatch
from streampack.loader.stats import LoaderCounts, numbers_of, stats_of, stats_of_sources
from streampack.loader.times import LoaderTimes
from streampack.loader.turns import BatchIterator, Running, Turn, tell_of_end
from streampack.metrics.stats import Stats
from streampack.state.checkpoint import Committed


class Delivery:
    """Takes batches from passes, commits them, and hands them out."""

    def __init__(
        self,
        committed: Committed,
        *,
        dataset: PackedDataset,
        run: SharedRun,
        formatter: BatchFormatter,
        verifier: Verifier | None,
        launcher: Launcher,
    ) -> None:
        """`committed`: the rows to begin with, which belong to this object from now on."""
        self.commits = Commits(committed)
        continued = run.run_of(committed)
        self.schedule = continued.schedule
        self._dataset = dataset
        self._max_epochs = {
            name: None if dataset.is_validation else source.max_epochs for name, source in dataset.sources.items()
        }
        self._exhaustion = ExhaustionLog(continued, committed, self._max_epochs)
        self._run = run
        self._formatter = formatter
        self._verifier = verifier
        self._counts = LoaderCounts()
        self._times = LoaderTimes(len(dataset.sources))
        self._restarts = WorkerRestarts(launcher, self._times.workers)
        self._limits = Limits(self._times.spent, continued.place)
        self._is_closing = False
        self._max_bad = run.bound_on_bad(committed)
        self._differences = run.engine_differences()
        self._running: Running | None = None
        self._retired: deque[Pass] = deque()
        """Passes whose workers are to be ended as soon as no other call is in one of them."""
        self._turn: object = None
        self._calls = Calls(
            take=(Delivery.next, Delivery.skip),
            use_workers=(Delivery._take, Delivery._make, Delivery._end_retired),
        )
        self._lock = threading.RLock()
        """For changes of `_turn`, `_running` and the commits; never held while a batch is made."""

    def __getstate__(self) -> object:
        raise LoaderError(
            "a loader that has begun cannot be copied or pickled: make another one and load the state of this one"
        )

    @property
    def current_pass(self) -> Pass | None:
        """The pass that is under way."""
        running = self._running
        return None if running is None else running.each

    @property
    def stage(self) -> int:
        """The index of the stage of the next batch."""
        return self.schedule.index_of(self.commits.global_pack)

    def length(self, settings: PassSettings) -> int:
        """Batches of the whole run; a `TypeError` where that is not known."""
        return length(self._dataset, settings, self.schedule)

    def progress(self) -> dict[str, Any]:
        """What `loader.progress()` gives."""
        committed = self.commits.latest()
        return progress_of(committed, self._run.run_of(committed))

    def stats(self) -> Stats:
        """What `loader.stats()` gives."""
        commits, committed = self.commits, self.commits.latest()
        loader = dataclasses.replace(
            self._counts,
            batches=commits.num_batches,
            left_out_packs=commits.left_out_packs,
            engine_differences=self._differences.number,
        )
        numbers = numbers_of(committed.counts(), loader, self.current_pass, self._restarts)
        sources = stats_of_sources(committed, self._run.run_of(committed), self._max_epochs)
        return stats_of(numbers, sources, self._times, self._limits.stage())

    # -- the thread that takes batches ---------------------------------------------------------------------------------

    def next(self, turn: Turn) -> Batch:
        """The next batch for the iterator that has the turn; StopIteration where its pass has ended."""
        committed: list[Change] = []
        self._calls.enter(self)
        before = self._times.enter(turn)
        try:
            try:
                return self._next(turn, committed)
            finally:
                self._leave()
                self._limits.tick(self._times.leave(turn, before))
        except StopIteration:
            raise
        except BaseException:  # a signal handler's, maybe: the caller does not get the batch that was just committed
            with self._lock:
                for change in committed:
                    self.commits.withdraw(change)
            raise

    def _next(self, turn: Turn, committed: list[Change]) -> Batch:
        """`committed`: told what is committed, right before it is."""
        commits = self.commits
        self._check(turn)
        if turn.is_over or commits.first_epoch != turn.first_epoch:
            raise StopIteration
        if turn.taken_ahead is not None:
            with self._lock:
                self._check(turn)
                commits.hold(turn.taken_ahead())
                turn.taken_ahead = None
        running = self._in_step(turn, turn.settings)
        batch = self._take(turn, running)
        if batch is None:
            self._end_pass(turn, running)
            raise StopIteration
        handed_out = self._formatter.format(batch, commits.lanes, commits.num_lanes)
        if self._verifier is not None and self._verifier.is_due(commits.num_batches):
            arguments = self._run.arguments(commits.num_lanes)
            self._verifier.check(batch, commits.latest(), commits.num_batches, arguments)
        change = self._change(running, batch)
        committed.append(change)
        self._commit(turn, running, change)
        return handed_out

    def skip(self, num_batches: int, settings: PassSettings) -> int:
        """Commit up to so many batches without handing them out; returns how many there were in the pass."""
        self._calls.enter(self)
        before = self._times.enter(None)
        try:
            if self.commits.num_ahead:
                raise LoaderError(
                    f"skip({num_batches}): the trainer holds batches that it has taken ahead "
                    f"({self.commits.num_ahead}), and would still train on them. Skip before the trainer begins to "
                    "iterate; after a fit, let the loader take them back first: "
                    "loader.load_state_dict(loader.state_dict())."
                )
            turn = self._turn
            if isinstance(turn, Turn) and turn.first_epoch == self.commits.first_epoch:
                settings = turn.settings
            for done in range(num_batches):
                running = self._in_step(turn, settings)
                batch = self._take(turn, running)
                if batch is None:
                    return done
                self._commit(turn, running, self._change(running, batch, skipped=True), skipped=True)
            return num_batches
        finally:
            self._leave()
            self._times.leave(None, before)

    def _take(self, turn: object, running: Running) -> PackBatch | None:
        running.taken_from, running.at = self.commits.standing, None
        begin = perf_counter()
        try:
            batch = next(running.each.batches, None)
        except Exception:  # what a worker's code raised, too
            self._check(turn)  # a pass that was retired meanwhile fails in ways of its own
            raise
        finally:
            self._counts.seconds_waited += perf_counter() - begin
        if batch is None:  # it was not cut off by an exception, so it has ended; asked again, it says so again
            running.at = running.taken_from.global_pack
        return batch

    def _change(self, running: Running, batch: PackBatch, *, skipped: bool = False) -> Change:
        return Change.of(batch, running.each.end_epochs, num_sources=self.commits.num_sources, skipped=skipped)

    def _commit(self, turn: object, running: Running, change: Change, *, skipped: bool = False) -> None:
        with self._lock:
            self._check(turn)
            running.at = change.global_pack
            self.commits.commit(change, after=running.taken_from, skipped=skipped)
        self._exhaustion.tell(change)

    def _end_pass(self, turn: Turn, running: Running) -> None:
        each, epochs = running.each, self._dataset.epochs
        next_epoch = None if epochs is None else turn.first_epoch + epochs
        end = running.taken_from.global_pack
        if not end:  # on all ranks
            check_parts(self._run.run_of(self.commits.latest()))
        is_spent = each.steps.at(end) is None
        if self.commits.num_batches == turn.begun_at or not (is_spent or next_epoch is not None):
            tell_of_end(turn, next_epoch, at=end, is_spent=is_spent)
        if next_epoch is not None and self._dataset.epoch_end == "stop":
            self._check_cuts(next_epoch)
        with self._lock:
            self._check(turn)
            if not is_spent:  # what comes after the end of the budget is of no pass
                self.commits.end_pass(
                    each.tally.last_words,
                    each.end_epochs,
                    after=running.taken_from,
                    next_epoch=next_epoch,
                    left_out_packs=each.tally.left_out.packs,
                )
            turn.is_over = True
        self._drop(running)

    def _check_cuts(self, end_epoch: int) -> None:
        """Raise where lanes that the pass leaves before their end would not have arrived where the next ones began."""
        committed = self.commits.latest()
        corpus = self._run.run_of(committed).sources[0].corpus
        for lane_index, lane in enumerate(committed.lanes):
            position = committed.position(lane_index)
            check_arrival(self._dataset.pipeline, corpus, lane, position, end_epoch=end_epoch)

    def _in_step(self, turn: object, settings: PassSettings) -> Running:
        """The pass that stands where the commits stand; it is made if there is none."""
        running = self._running
        if running is not None:
            if running.settings is settings and running.at == self.commits.global_pack:
                return running
            self._drop(running)
        running = self._make(settings)
        with self._lock:
            if self._turn is turn:
                self._running = running
            else:
                self._retired.append(running.each)
        if self._turn is not turn:  # also where a signal handler has come after that look
            self._drop(running)
        self._check(turn)
        return running

    def _make(self, settings: PassSettings) -> Running:
        committed = self.commits.latest()
        agree = self._run.agreement(committed, settings.batch_size)
        run = self._run.run_of(committed)
        self._limits.reset()
        each = Pass(self._dataset, run, committed, settings, agree, self._restarts, self._max_bad, self._differences)
        return Running(each, settings, committed.global_pack, self.commits.standing)

    def _check(self, turn: object) -> None:
        if self._turn is not turn:
            raise LoaderError(
                "this iterator is over: a newer iter(loader), load_state_dict or close has taken its place"
            )

    def _leave(self) -> None:
        running = self._running
        if running is not None and running.at is None:
            self._drop(running)  # an exception has cut it off
        self._calls.leave()
        self._end_retired()

    def _drop(self, running: Running) -> None:
        with self._lock:
            if self._running is running:
                self._running = None
                self._retired.append(running.each)
        self._end_retired()

    # -- from any thread -----------------------------------------------------------------------------------------------

    def begin(self, settings: PassSettings, taken_ahead: Callable[[], Sized]) -> BatchIterator:
        """A new iterator in the place of an older one; it begins with those batches that a trainer holds unused."""
        if isinstance(self._turn, Turn) or self.commits.num_ahead:
            self._retire()
        with self._lock:
            self.commits.take_back()
            turn = Turn(settings, self.commits.first_epoch, self.commits.num_batches, taken_ahead)
            self._turn = turn
        if not self._calls.uses_workers(self):  # else its first batch makes the pass
            self._in_step(turn, settings)
        return BatchIterator(self.next, turn)

    def load(self, committed: Committed) -> None:
        """Go on from other rows; every iterator is over."""
        max_bad, run = self._run.bound_on_bad(committed), self._run.run_of(committed)
        with self._lock:
            self._retire()
            self.schedule, self._exhaustion = run.schedule, ExhaustionLog(run, committed, self._max_epochs)
            self._max_bad = max_bad
            self.commits.load(committed)

    def _retire(self) -> None:
        """End the pass with its workers, and every iterator."""
        with self._lock:
            self._turn = object()
            running, self._running = self._running, None
            if running is not None:
                self._retired.append(running.each)
        if running is not None and self._calls.uses_workers(self):
            running.each.interrupt()
        self._end_retired()

    def close(self) -> None:
        """End the pass, every iterator, and what workers come from."""
        self._is_closing = True
        self._retire()

    def _end_retired(self) -> None:
        # Where another call is using workers, that one does it afterwards. No handler can come after the last look.
        while (self._retired or self._is_closing) and not self._calls.uses_workers(self, own=1):
            if not self._retired:
                self._is_closing = False
                self._restarts.launcher.close()
                continue
            with suppress(IndexError):  # another thread was faster
                ended = self._retired.popleft()
                ended.close()
                self._counts.end_pass(ended)
