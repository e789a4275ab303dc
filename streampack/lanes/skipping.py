"""What cannot be read, and the decision about it: an error that ends the run, or a range that the lane skips.

In:    read errors of one lane, each when its turn in the lane's order has come.
Out:   nothing, or an error; the ranges that were skipped for the first time.
Never: a decision that depends on how far ahead the lane reads.
"""

import logging
from typing import NamedTuple

from streampack.errors import ShardError, StreampackError
from streampack.lanes.position import REST_OF_PIECE, LanePosition, SkippedRange

_log = logging.getLogger(__name__)

_RATE_FLOOR = 10
"""Bad records that may be skipped in any case where `max_bad` is a fraction of the documents."""


def allowed_bad(max_bad: float, num_documents: int) -> float:
    """How many bad records and broken shards `max_bad` allows among so many documents."""
    return max(_RATE_FLOOR, int(max_bad * num_documents)) if isinstance(max_bad, float) else max_bad


class ReadError(NamedTuple):
    """Something that cannot be read, in its place among a lane's documents."""

    skipped_range: SkippedRange
    """What is left out if the lane skips it."""
    error: StreampackError | None
    """None: the lane skipped it before, so it was not read again."""


def cannot_skip(lane: str, what: str, error: StreampackError) -> ShardError:
    """The error for what cannot be read, though it could be when the lane gave `what`, a part of its window."""
    return ShardError(
        f"{lane} continues after {what} of which something cannot be read now that could be when the state was "
        f"saved. Earlier packs hold a part of this window, and without it the rest would be another one, with some "
        'documents twice and others never: on_error="skip" cannot skip it now. Restore the shard, or resume from an '
        f"earlier or a later state. What is wrong: {error}"
    )


class SkipPolicy:
    """The policy `on_error` with its bound `max_bad`, and what one lane has skipped so far."""

    def __init__(self, lane: str, start: LanePosition, *, on_error: str, max_bad: float) -> None:
        """`lane`: its name in errors; `start`: where it continues; `max_bad`: a number, or a fraction of documents."""
        self._lane = lane
        self._known = set(start.skipped_ranges)
        self._num_skipped = start.num_skipped
        self._new: list[SkippedRange] = []
        self._on_error = on_error
        self._max_bad = max_bad

    @property
    def known(self) -> frozenset[SkippedRange]:
        """What the lane has skipped and may meet again."""
        return frozenset(self._known)

    def skip(self, read_error: ReadError, *, num_documents: int, given: int = 0) -> None:
        """Skip what cannot be read, or raise.

        Args:
            read_error: What it is, in its turn.
            num_documents: How many documents the lane has met before it.
            given: How many packs are out of the packing window that it is in. They were made while it could be read:
                without it the window's other documents would be in other packs, some twice and some never.

        Raises:
            StreampackError: the error itself where `on_error` is "raise".
            ShardError: the lane has skipped as much as `max_bad` allows, or `given` is not 0.
        """
        skipped_range, error = read_error
        if error is None or skipped_range in self._known:
            return
        if self._on_error == "raise":
            raise error
        if given:
            raise cannot_skip(self._lane, f"{given} packs of a packing window", error) from error
        most = self._max_bad
        if self._num_skipped >= allowed_bad(most, num_documents):
            of = f" of {num_documents} documents" if isinstance(most, float) else ""
            raise ShardError(
                f"{self._lane} has skipped max_bad={most} bad records or shards{of}; the next one "
                f"is: {error}. Repair the data or raise max_bad."
            ) from error
        self._known.add(skipped_range)
        self._num_skipped += 1
        self._new.append(skipped_range)
        what = "the rest of a broken shard" if skipped_range.record == REST_OF_PIECE else "a bad record"
        _log.warning("%s skips %s: %s", self._lane, what, error)

    def take_new(self) -> tuple[SkippedRange, ...]:
        """What was skipped for the first time since the last call."""
        if not self._new:
            return ()
        new, self._new = tuple(self._new), []
        return new
