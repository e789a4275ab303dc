"""The packs of a validation set: how many there are, and any stretch of them without those before it.

In:    sources, each in lanes of its own that are read once, from their beginning.
Out:   messages of workers: first what lanes hold, then the packs of stretches.
Never: a pack that depends on ranks, workers or batches; a stretch that is longer than what one message may have.

    lanes       |== web 0 ==|== web 1 ==|= code 0 =|          one after the other: the packs are numbered through
    known       ^   ^   ^   ^   ^   ^   ^   ^   ^             a position every `step` packs, from which lanes are read
    rank 1 of 3             |---|---|---|                     an equal part of the numbers, in stretches
    its workers               0   1   0                       take them in turn
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from streampack import heartbeat
from streampack.corpus.schedule import Schedule, StageOfRun
from streampack.corpus.shares import Shares
from streampack.errors import ShardError
from streampack.lanes.pool import LanePool
from streampack.lanes.position import LaneFiller, LanePack, LanePosition, SkippedRange
from streampack.lanes.run import LaneStart, Run
from streampack.loader.messages import Made, Message, message_of
from streampack.records import Cursor, StorageUse

_STEP_ROWS = 2**16


def step_of(seq_len: int) -> int:
    """How many packs are between two known positions of a lane."""
    return max(1, min(_STEP_ROWS // seq_len, 256))


class ValidationLane(NamedTuple):
    """A lane of a source."""

    source: int
    lane: int


class CountedLane(NamedTuple):
    """What a lane holds."""

    lane: ValidationLane
    packs: int
    documents: int
    num_skipped: int
    """Bad records and broken shards."""
    starts: tuple[LanePosition, ...]
    """Where the lane's pack 0 begins, its pack `step`, 2 * `step`, ..."""

    def to_wire(self) -> list[Any]:
        """Plain values for the other ranks."""
        starts = [
            [list(each.cursor), *each[1:-1], [list(skipped) for skipped in sorted(each.skipped_ranges)]]
            for each in self.starts
        ]
        return [*self.lane, *self[1:4], starts]

    @classmethod
    def from_wire(cls, values: list[Any]) -> "CountedLane":
        """What `to_wire` has made."""
        source, lane, packs, documents, num_skipped, starts = values
        positions = (
            LanePosition(
                Cursor(*cursor), given, passed, bad, frozenset(SkippedRange(*each) for each in skipped)
            )
            for cursor, given, passed, bad, skipped in starts
        )
        return cls(ValidationLane(source, lane), packs, documents, num_skipped, tuple(positions))


class Stretch(NamedTuple):
    """Packs of one lane that follow each other."""

    lane: ValidationLane
    start: LaneStart
    """A known position, not after the first of them."""
    passed_over: int
    """Packs between the position and the first of them."""
    packs: int
    number: int
    """Of the first of them, among all packs."""


def stretches(run: Run, lanes: Sequence[CountedLane], first: int, stop: int, *, step: int, size: int) -> list[Stretch]:
    """The packs `first` to `stop` of all lanes, in stretches of up to `size`."""
    found = []
    number = 0
    for counted in lanes:
        at, end = max(first - number, 0), min(stop - number, counted.packs)
        while at < end:
            until = min((at // size + 1) * size, end)
            known = at // step
            start = _start(run, counted.lane.source, counted.starts[known])
            found.append(Stretch(counted.lane, start, at - known * step, until - at, number + at))
            at = until
        number += counted.packs
    return found


@dataclass(frozen=True, slots=True)
class Counts(Message):
    """A message of a worker that counts lanes."""

    counted: CountedLane | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Counting:
    """Lanes to be counted by the workers of a rank, each in its turn."""

    run: Run
    """Of each source the lanes that `corpus.num_lanes` says."""
    lanes: Sequence[ValidationLane]
    step: int
    budget_bytes: int
    """Of each worker."""
    sent: Sequence[int] = ()
    """Messages that each worker has sent already. Empty: none."""

    def messages(self, worker: int = 0, num_workers: int = 1) -> Iterator[Message]:
        """The messages of one worker, one for each of its lanes."""
        mine = self.lanes[worker::num_workers][self.sent[worker] if self.sent else 0 :]
        _prepare(self.run, num_workers, has_sent=any(self.sent))
        nothing = message_of([], self.run, seq_len=_seq_len(self.run), with_provenance=False, storage=StorageUse())
        fields_of_nothing: dict[str, Any] = {each.name: getattr(nothing, each.name) for each in fields(nothing)}
        for lane in mine:
            counted, error = None, None
            try:
                counted = self._count(lane)
            except Exception as failure:  # noqa: BLE001 (it is raised in the trainer)
                error = failure
            yield Counts(**{**fields_of_nothing, "error": error}, counted=counted)
            if error is not None:
                return

    def _count(self, lane: ValidationLane) -> CountedLane:
        run = only(self.run, lane.source)
        start = _start(run, lane.source, LanePosition())
        pool = LanePool(run, {lane.lane: start}, budget_bytes=self.budget_bytes)
        starts: list[LanePosition] = []
        while True:
            pack = pool.take(lane.lane)
            heartbeat.beat()
            if not isinstance(pack, LaneFiller) and start.packs % self.step == 0:
                starts.append(start.positions[lane.source])
            after = run.start_after(start, pack)
            if isinstance(pack, LaneFiller):
                last = after.positions[lane.source]
                return CountedLane(lane, start.packs, last.documents, last.num_skipped, tuple(starts))
            start = after


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretches:
    """Stretches to be made by the workers of a rank, each in its turn: a message for each."""

    run: Run
    """As of `Counting`."""
    stretches: Sequence[Stretch]
    budget_bytes: int
    """Of each worker."""
    with_provenance: bool
    sent: Sequence[int] = ()
    """Messages that each worker has sent already. Empty: none."""

    def messages(self, worker: int = 0, num_workers: int = 1) -> Iterator[Message]:
        """The messages of one worker."""
        run, seq_len = self.run, _seq_len(self.run)
        mine = self.stretches[worker::num_workers][self.sent[worker] if self.sent else 0 :]
        _prepare(run, num_workers, has_sent=any(self.sent))
        pool: LanePool | None = None
        following: tuple[ValidationLane, int] | None = None
        """Which lane the pool is of, and the number of its next pack."""
        before = run.storage_use()
        for stretch in mine:
            source, lane = stretch.lane
            made: list[Made] = []
            error: Exception | None = None
            try:
                if pool is None or following != (stretch.lane, stretch.number):
                    pool = LanePool(
                        only(run, source),
                        {lane: stretch.start},
                        budget_bytes=self.budget_bytes,
                        with_provenance=self.with_provenance,
                    )
                    for _ in range(stretch.passed_over):
                        self._take(pool, lane)
                for number in range(stretch.number, stretch.number + stretch.packs):
                    pack = self._take(pool, lane)
                    made.append(Made(number, pack))  # some are sent before an error
            except Exception as failure:  # noqa: BLE001 (it is raised in its place)
                error = failure
            following = stretch.lane, stretch.number + stretch.packs
            use = run.storage_use()  # threads read ahead between two messages, too
            yield message_of(
                made,
                run,
                seq_len=seq_len,
                with_provenance=self.with_provenance,
                storage=use.since(before),
                error=error,
            )
            if error is not None:
                return
            before = use

    @staticmethod
    def _take(pool: LanePool, lane: int) -> LanePack:
        pack = pool.take(lane)
        heartbeat.beat()
        if isinstance(pack, LaneFiller):
            raise ShardError(
                f"lane {lane} of the validation set has fewer packs than when they were counted: its shards have "
                "changed since. Restore them, or make another loader, which counts again."
            )
        return pack


def only(run: Run, source: int) -> Run:
    """A run that reads one of the sources, in the lanes that this one has."""
    shares = Shares.of([index == source for index in range(len(run.sources))])
    stage = StageOfRun(0, 0, _seq_len(run), shares, {})
    return Run(run.sources, Schedule(num_lanes=run.sources[source].corpus.num_lanes, stages=(stage,)))


def _start(run: Run, source: int, position: LanePosition) -> LaneStart:
    """Where a lane continues that has read one of the sources up to a position."""
    positions = [LanePosition()] * len(run.sources)
    positions[source] = position
    return LaneStart(position.packs, tuple(positions))


def _seq_len(run: Run) -> int:
    return run.sources[0].pipelines[0].seq_len


def _prepare(run: Run, num_workers: int, *, has_sent: bool) -> None:
    """Tell the storages that other processes ask them too, or that they have answered before."""
    num_lanes = sum(source.corpus.num_lanes for source in run.sources)
    for storage in run.storages:
        if num_workers > 1:
            storage.spread_first_requests(num_lanes)
        if has_sent:
            storage.expect_answers()
