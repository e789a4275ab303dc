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

from streampack.corpus.schedule import Schedule
from streampack.corpus.shares import Shares
from streampack.errors import ShardError
from streampack.lanes.pool import LanePool
from streampack.lanes.position import LaneFiller, LanePack, LanePosition, SkippedRange
from streampack.lanes.run import LaneStart, Run
from streampack.loader.messages import Made, Message, Part, failed, message_of, messages_of
from streampack.metrics import heartbeat
from streampack.records import Cursor, StorageUse
from streampack.storage import pacing

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

    @classmethod
    def of(cls, counted: CountedLane, run: Run) -> "Counts":
        """Without a slot."""
        seq_len = run.schedule.stages[0].seq_len
        nothing = message_of([], run, seq_len=seq_len, with_provenance=False, storage=StorageUse())
        values: dict[str, Any] = {each.name: getattr(nothing, each.name) for each in fields(nothing)}
        return cls(**values, counted=counted)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counting:
    """Lanes to be counted by the workers of a rank, each in its turn."""

    run: Run
    """Of each source the lanes that `corpus.num_lanes` says."""
    num_ranks: int
    lanes: Sequence[ValidationLane]
    step: int
    budget_bytes: int
    """Of each worker."""
    sent: Sequence[int] = ()
    """Messages that each worker has sent already. Empty: none."""

    def messages(self, worker: int = 0, num_workers: int = 1) -> Iterator[Message]:
        """The messages of one worker, one for each of its lanes."""
        _prepare(self, num_workers)
        for lane in self.lanes[worker::num_workers][self.sent[worker] if self.sent else 0 :]:
            message: Message
            try:
                message = Counts.of(self._count(lane), self.run)
            except Exception as error:  # noqa: BLE001 (it is raised in the trainer)
                message = failed(error, self.run)
            yield message
            if message.error is not None:
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
    num_ranks: int
    stretches: Sequence[Stretch]
    budget_bytes: int
    """Of each worker."""
    with_provenance: bool
    sent: Sequence[int] = ()
    """Messages that each worker has sent already. Empty: none."""

    def messages(self, worker: int = 0, num_workers: int = 1) -> Iterator[Message]:
        """The messages of one worker."""
        _prepare(self, num_workers)
        reader, seq_len = StretchReader(self), self.run.schedule.stages[0].seq_len
        mine = self.stretches[worker::num_workers][self.sent[worker] if self.sent else 0 :]
        parts = (Part(seq_len, reader.packs(stretch)) for stretch in mine)
        return messages_of(parts, self.run, with_provenance=self.with_provenance)


class StretchReader:
    """Reads stretches; where one follows the one before in its lane, it goes on."""

    def __init__(self, work: Stretches) -> None:
        self._work = work
        self._pool: LanePool | None = None
        self._next: tuple[ValidationLane, int] | None = None
        """Which lane the pool is of, and the number of its next pack."""

    def packs(self, stretch: Stretch) -> Iterator[Made]:
        """Those of a stretch."""
        work, (source, lane) = self._work, stretch.lane
        if self._pool is None or self._next != (stretch.lane, stretch.number):
            self._pool = LanePool(
                only(work.run, source),
                {lane: stretch.start},
                budget_bytes=work.budget_bytes,
                with_provenance=work.with_provenance,
            )
            for _ in range(stretch.passed_over):
                self._take(self._pool, lane)
        for number in range(stretch.number, stretch.number + stretch.packs):
            yield Made(number, self._take(self._pool, lane))
        self._next = stretch.lane, stretch.number + stretch.packs

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
    stage = run.schedule.stages[0]._replace(shares=shares)
    return Run(run.sources, Schedule(num_lanes=run.sources[source].corpus.num_lanes, stages=(stage,)))


def _start(run: Run, source: int, position: LanePosition) -> LaneStart:
    """Where a lane continues that has read one of the sources up to a position."""
    positions = [LanePosition()] * len(run.sources)
    positions[source] = position
    return LaneStart(position.packs, tuple(positions))


def _prepare(work: Counting | Stretches, num_workers: int) -> None:
    """Tell the storage that other processes begin with this one, and whether they have been answered before."""
    pacing.begin_among(work.num_ranks * num_workers)
    if any(work.sent):
        for storage in work.run.storages:
            storage.expect_answers()
