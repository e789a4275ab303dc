"""One pass of a rank, from committed rows on: until it ends, or until it is abandoned.

In:    the committed rows, the dataset, and the settings by which the rank reads its lanes and cuts batches.
Out:   batches; what ended lanes, the storage and packs that were left out add to the counts.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from streampack.corpus.schedule import Schedule
from streampack.dataset.dataset import PackedDataset
from streampack.documents.draws import undisturbed
from streampack.documents.split import HoldOut
from streampack.errors import ConfigError, as_bool, as_number, warn
from streampack.lanes.budget import worker_bytes
from streampack.lanes.held_out import hold_out_of
from streampack.lanes.position import LaneEnd
from streampack.lanes.run import Run
from streampack.loader.dealing import Item, deal
from streampack.loader.differences import EngineDifferences
from streampack.loader.max_bad import MaxBad
from streampack.loader.messages import Assignment, Message, Work
from streampack.loader.processes import Forks, Launcher
from streampack.loader.restarts import LaneProgress, RestartingMessages, WorkerRestarts
from streampack.loader.rounds import Agree, LeftOut, PackBatch, endless, finite
from streampack.loader.serving import WorkerServer, check_can_start
from streampack.loader.steps import Steps
from streampack.loader.workers import AHEAD
from streampack.metrics import clock
from streampack.records import Cursor, StorageUse
from streampack.state.checkpoint import Committed

_MAX_MESSAGE_BYTES = 2 * 2**20
MAX_MESSAGE_PACKS = 256
_TOKENS_AHEAD = 256 * 2**10
"""In packs that are made together without workers, where documents are token ids: that takes about 10 ms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PassSettings:
    """How a rank reads its lanes and cuts batches; none of it changes what is in the lanes."""

    batch_size: int
    rank: int
    num_ranks: int
    num_workers: int
    prefetch_bytes: int
    multiprocessing_context: str | None
    worker_timeout_s: float
    with_provenance: bool
    drop_last: bool

    def __post_init__(self) -> None:
        object.__setattr__(self, "drop_last", as_bool(self.drop_last, "drop_last"))
        if self.multiprocessing_context not in (None, "fork"):
            raise ConfigError(
                f"multiprocessing_context={self.multiprocessing_context!r} must be None, which forks workers from a "
                'process of their own that has nothing of the trainer\'s, or "fork", which forks them from the trainer'
            )
        if self.num_workers and self.multiprocessing_context is None:
            check_can_start()
        if not as_number(self.worker_timeout_s, "worker_timeout_s") > 0:
            raise ConfigError(f"worker_timeout_s={self.worker_timeout_s!r} must be a number of seconds above 0")

    def steps(self, schedule: Schedule) -> Steps:
        """How the rank cuts a run into batches."""
        return Steps(
            schedule=schedule, batch_size=self.batch_size, num_ranks=self.num_ranks, drop_last=self.drop_last
        )

    def launcher(self) -> Launcher:
        """What starts the workers of a loader, for all of its passes."""
        return WorkerServer() if self.multiprocessing_context is None else Forks()


class LastWords(NamedTuple):
    """What came after a lane's last pack; of no meaning where the filler in whose place it came was handed out."""

    lane_index: int
    """Among the rank's lanes."""
    packs: int
    """How many it has given since the start of the run."""
    ends: tuple[LaneEnd, ...]
    """Of the sources that were found without one then."""


@dataclass(slots=True)
class Tally:
    """What is counted during a pass, by generators that must hold no reference to the pass itself."""

    last_words: list[LastWords] = field(default_factory=list)
    left_out: LeftOut = field(default_factory=LeftOut)
    storage: StorageUse = field(default_factory=StorageUse)
    """Of this pass's workers, up to the messages that have come."""

    def watch_items(self, items: Iterator[Item]) -> Iterator[Item]:
        for item in items:
            if item.ends and item.pack is None:
                self.last_words.append(LastWords(item.lane_index, item.round, item.ends))
            yield item

    def watch_messages(self, messages: Iterator[Message]) -> Iterator[Message]:
        for message in messages:
            self.storage = self.storage.plus(message.storage)
            yield message


class Pass:
    """The batches of one pass, and what is known at its end."""

    def __init__(
        self,
        dataset: PackedDataset,
        run: Run,
        committed: Committed,
        settings: PassSettings,
        agree: Agree | None,
        restarts: WorkerRestarts,
        max_bad: MaxBad,
        differences: EngineDifferences,
    ) -> None:
        """See `loader/passes.py`.

        Args:
            dataset: what is read.
            run: the same, as it continues from `committed`.
            committed: where the lanes continue.
            settings: of the loader.
            agree: how the ranks of a finite pass agree on its end; None where this rank ends by itself.
            restarts: of the loader's workers.
            max_bad: the bound on what may be skipped.
            differences: the bound on what an engine may give wrongly.
        """
        self.tally = Tally()
        self.steps = settings.steps(run.schedule)
        self.end_epochs = [source.end_epoch for source in run.sources]
        first_round = committed.global_pack // committed.num_lanes
        num_workers = _fitting_workers(settings.num_workers, len(committed.lanes))
        budget_bytes = worker_bytes(
            dataset.limits.buffer_bytes, run, num_lanes=len(committed.lanes), num_workers=num_workers
        )
        batch_slots = min(settings.batch_size, MAX_MESSAGE_PACKS)
        assignment = Assignment(
            run=run,
            lanes=committed.lanes,
            starts=[committed.start(lane_index, len(run.sources)) for lane_index in range(len(committed.lanes))],
            first_round=first_round,
            first_slots=1 if num_workers else batch_slots,  # without workers the first batch waits for all of it anyway
            max_slots=MAX_MESSAGE_PACKS if num_workers else max(batch_slots, _slots_ahead(run)),
            max_rows=max_rows(num_workers, settings),
            budget_bytes=budget_bytes,
            with_provenance=settings.with_provenance,
        )
        self._restarting = (
            RestartingMessages(
                assignment,
                num_workers,
                LaneProgress(assignment, num_workers),
                timeout_s=settings.worker_timeout_s,
                restarts=restarts,
            )
            if num_workers
            else None
        )
        items = deal(
            differences.look_through(self.tally.watch_messages(self._restarting or in_this_process(assignment))),
            num_lanes=len(committed.lanes),
            num_workers=max(num_workers, 1),
            first_round=first_round,
        )
        items = differences.watch(items)
        if dataset.pipeline.on_error == "skip":
            items = max_bad.watch(items, committed)
        is_finite, pad = run.is_finite, dataset.epoch_end == "pad"
        if is_finite:
            items = self.tally.watch_items(items)
        if is_finite and not pad:
            items = _refuse_empty_lanes(items, committed, hold_out_of(run.sources[0]))
        at = {"rank": settings.rank, "global_pack": committed.global_pack}
        self.batches: Iterator[PackBatch] = (
            finite(items, self.steps, **at, pad=pad, agree=agree, left_out=self.tally.left_out)
            if is_finite
            else endless(items, self.steps, **at)
        )

    def close(self) -> None:
        """End the workers; only while no thread waits for a batch."""
        if self._restarting is not None:
            self._restarting.close()

    def interrupt(self) -> None:
        """From another thread than the one that waits for a batch: let it come back, with an error where it must."""
        if self._restarting is not None:
            self._restarting.interrupt()


def in_this_process(work: Work) -> Iterator[Message]:
    """The messages of one worker, made here."""
    return clock.within(clock.PACK, undisturbed(work.messages()) if work.run.may_draw else work.messages())


def _refuse_empty_lanes(items: Iterator[Item], committed: Committed, hold_out: HoldOut | None) -> Iterator[Item]:
    """The items, unless a lane ends without a pack in this pass: a pass that stops with it would be empty.

    `hold_out`: which part of the corpus is read.
    """
    untouched = {
        lane_index
        for lane_index in range(len(committed.lanes))
        if all(
            committed.position(lane_index, source).cursor == Cursor(epoch=committed.first_epoch)
            for source in range(len(committed.sources))
        )
    }
    smaller = "" if hold_out is None else f", or a smaller fraction than that of {hold_out}"
    for item in items:
        if item.pack is None and item.error is None and not item.waits and item.lane_index in untouched:
            error = ConfigError(
                f'epoch_end="stop" ends the pass with its shortest lane, and lane {committed.lanes[item.lane_index]} '
                'gives no pack at all. Use epoch_end="pad", fewer lanes (num_lanes), or more or larger shards'
                f"{smaller}."
            )
            yield item._replace(ends=(), error=error)  # in its place, so that all ranks learn of it
            return
        untouched.discard(item.lane_index)
        yield item


def _fitting_workers(num_workers: int, num_lanes: int) -> int:
    if num_workers > num_lanes:
        warn(
            f"num_workers={num_workers} is more than the {num_lanes} lanes of this rank: {num_lanes} are started. "
            "A run with more lanes (num_lanes) would let more workers share the work.",
        )
    return min(num_workers, num_lanes)


def _slots_ahead(run: Run) -> int:
    """How many packs are made together without workers although a batch has fewer: a stage at a time they cost less.

    0 where text is tokenized, or a transform or a chat template runs: so many packs would take long, and while a
    trainer's device does a step, there is time for one batch and not for some.
    """
    if any(each.documents.field.kind != "npy" or not each.documents.keeps_records for each in run.pipelines):
        return 0
    return min(_TOKENS_AHEAD // max(stage.seq_len for stage in run.schedule.stages), MAX_MESSAGE_PACKS)


def max_rows(num_workers: int, settings: PassSettings) -> int:
    """Rows of one message: a message costs the main process about 1 ms whatever its size, so few and large ones."""
    if num_workers == 0:
        return 2**63
    return min(_MAX_MESSAGE_BYTES, settings.prefetch_bytes // (num_workers * (AHEAD + 1))) // 4
