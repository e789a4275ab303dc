"""The samples of one piece of a shard; where the shard breaks, it is read again.

In:    a piece, and the position in it at which the lane continues.
Out:   samples in order, some at a time; a `ReadError` for the rest of the piece where it cannot be read.
Never: a sample that comes twice or is left out when the shard is read again from where it broke; a skip of a sample
       of which earlier packs hold the beginning.

    reading 1   s0 s1 s2 x                   the bytes break after s2: read again from s2 on
    reading 2         s2 s3 x                s3 is new, so readings are counted again from here
    reading 3, 4         s3 x, s3 x          as often as `_READINGS` at the same place: the rest is a `SkippedRange`
"""

import logging
from collections.abc import Collection, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from streampack.corpus.partition import Piece
from streampack.errors import CorruptShardError, StreampackError, TruncatedShardError, WrongCutError
from streampack.lanes.fetching import Fetched
from streampack.lanes.pipeline import Pipeline
from streampack.lanes.position import REST_OF_PIECE, SkippedRange
from streampack.lanes.skipping import ReadError
from streampack.records import Sample, Shard

_log = logging.getLogger(__name__)

SAMPLE_BYTES = 64
"""Bytes counted for a sample or a line besides its content: an empty one takes time, too."""
HELD_SAMPLE_BYTES, HELD_LINE_BYTES = 640, 340
"""What they take in memory besides their content, which counts where many are held."""
_NO_POSITION = 2**62  # no sample has so high a position
_READINGS = 3  # of the place where a shard breaks: bytes that were altered on their way are right the next time


@dataclass(slots=True)
class Demand:
    """How much a lane's reader reads before it gives a batch; its caller may change this before each one."""

    num_bytes: int = 1
    """About how many bytes of members or records a batch has; its last sample or record comes whole."""
    record_bytes: int = SAMPLE_BYTES
    """Counted for each sample or record besides its content."""


class SampleBatch(NamedTuple):
    """Samples of one piece that follow each other."""

    samples: list[Sample]
    num_bytes: int


def size_of(sample: Sample, record_bytes: int) -> int:
    """The bytes that a sample counts."""
    return record_bytes + sum(map(len, sample.members.values()))


def by_shard(skipped_ranges: Iterable[SkippedRange]) -> dict[tuple[int, int], set[SkippedRange]]:
    """Skipped ranges by epoch and shard."""
    found: dict[tuple[int, int], set[SkippedRange]] = {}
    for each in skipped_ranges:
        found.setdefault((each.epoch, each.shard), set()).add(each)
    return found


def rest_of(piece: Piece, last_piece: int, skipped_ranges: Collection[SkippedRange]) -> SkippedRange | None:
    """The rest of a piece, where a lane has skipped it.

    `last_piece`: as in the `SkippedRange`; `skipped_ranges`: of the piece's epoch and shard.
    """
    rest = last_piece, REST_OF_PIECE, piece.end
    return next((each for each in skipped_ranges if (each.last_piece, each.record, each.part) == rest), None)


class PieceReader:
    """Reads one piece from a position on."""

    def __init__(
        self,
        pipeline: Pipeline,
        shard: Shard,
        piece: Piece,
        *,
        epoch: int,
        last_piece: int,
        resume: int,
        broken: SkippedRange | None,
        demand: Demand,
        max_range_bytes: int,
        fetched: Fetched | None = None,
    ) -> None:
        """Begin to read.

        Args:
            pipeline: how samples are read.
            shard: the shard of the piece.
            piece: what to read.
            epoch: in which it is read.
            last_piece: of a `SkippedRange` in the piece.
            resume: position of the first wanted sample, -1: all.
            broken: the rest of the piece if it was skipped.
            demand: how many bytes a batch has.
            max_range_bytes: bytes that are asked for at once.
            fetched: holds the bytes of the piece, perhaps.
        """
        self._pipeline = pipeline
        self._shard = shard
        self._piece = piece
        self._place = epoch, last_piece
        self._resume = resume
        self._broken = broken
        self._end = _NO_POSITION if broken is None else broken.first
        self._demand = demand
        self._max_range_bytes = max_range_bytes
        self._fetched = fetched
        self._begin = self._last = max(resume, 0 if piece.whole else piece.begin) - 1
        """Position of the last sample that was given; before the first one, the position before it."""
        self._errors: list[StreampackError] = []
        """The errors of the readings since the last sample."""

    def read(self) -> Iterator[SampleBatch | ReadError]:
        """The samples, up to the end of the piece or to where the shard breaks."""
        while self._last + 1 < self._end:
            error = yield from self._read_once()
            if error is None:
                return
            self._errors.append(error)
            if len(self._errors) >= _READINGS:
                yield ReadError(self._rest(error), self._errors[0])
                return
            _log.warning("reading again from where a shard broke: %s", error)
        yield from self._skipped_before()

    def _skipped_before(self) -> Iterator[ReadError]:
        """The rest of the piece, where the lane skipped it before."""
        if self._broken is not None:
            yield ReadError(self._broken, None)

    def _read_once(self) -> Generator[SampleBatch | ReadError, None, StreampackError | None]:
        """The samples after the last one; returns what broke the shard, or None where there is no more to read."""
        demand, record_bytes = self._demand, self._demand.record_bytes
        some: list[Sample] = []
        num_bytes, is_cut, failure = 0, False, None
        try:
            for sample in self._pipeline.samples(
                self._shard,
                self._piece,
                resume=self._resume if self._last == self._begin else self._last,
                max_range_bytes=self._max_range_bytes,
                fetched=self._fetched,
            ):
                position = sample.position
                if position >= self._end:
                    is_cut = True
                    break
                if position <= self._last:
                    continue
                self._last = position
                some.append(sample)
                num_bytes += record_bytes
                for member in sample.members.values():
                    num_bytes += len(member)
                if num_bytes >= demand.num_bytes:
                    self._errors.clear()
                    yield SampleBatch(some, num_bytes)
                    some, num_bytes = [], 0
        except Exception as error:  # noqa: BLE001 - raised or returned below: what was read before it comes first
            failure = error
        if some:
            self._errors.clear()
            yield SampleBatch(some, num_bytes)
        if is_cut:
            yield from self._skipped_before()
        if failure is None or isinstance(failure, CorruptShardError | TruncatedShardError):
            return failure
        raise failure

    def _rest(self, error: StreampackError) -> SkippedRange:
        """What is left out if the rest of the piece is skipped.

        Raises:
            StreampackError: the rest cannot be skipped, whatever `on_error` says.
        """
        if isinstance(error, WrongCutError) or (self._last == self._begin and self._resume >= 0):
            # Where a run was resumed, earlier packs may hold the beginning of what cannot be read now.
            raise self._errors[0] from None
        first = end = self._last + 1
        if self._pipeline.on_error == "skip":
            end = self._pipeline.next_range(
                self._shard, self._piece, damaged_at=error.offset or 0, max_range_bytes=self._max_range_bytes
            )
        return SkippedRange(*self._place, self._piece.shard, first, end, REST_OF_PIECE, self._piece.end)
