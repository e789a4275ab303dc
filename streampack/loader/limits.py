"""Which stage limits a rank: over a moving window of its time, and in the log when that changes.

In:    what the time of the rank has gone to so far, about once a second.
Out:   the name of a stage, the seconds that it cost, and of which source; "trainer" where batches are ready in time.
Never: a data problem where the trainer is slow: batches that are hardly waited for limit nothing, however much time
       the workers spend.

    workers     batches were waited for in 5 % of the window or more: the stage that they were waited for most
    no workers  this process makes the packs itself, between the trainer's steps: what takes more than the trainer,
                and of that the stage with most; with workers this is "main"
"""

import logging
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from streampack.loader.times import Spent
from streampack.metrics.clock import STAGES

_log = logging.getLogger(__name__)

WINDOW_S = 30.0
_PARTS = 30
"""Of a window: how often what was spent is looked at, at most; where batches take longer, after each."""
_LEAST_WAIT = 0.05
_TRAINER = len(STAGES) - 1


class Limit(NamedTuple):
    """What limits a window."""

    stage: str
    seconds: float
    """Of the window that it cost."""
    of_seconds: float
    """The length of the window."""
    source: int | None = None
    """The index of the source that most of it is of."""
    workers: int = 0
    """How many workers were in the stage for half of the window or more."""
    num_workers: int = 0


def limit_of(before: Spent, after: Spent) -> Limit | None:
    """What limited the time between two moments; None where there was none."""
    waited, own = after.waited - before.waited, after.own - before.own
    total = float(waited.sum() + own.sum())
    if total <= 0:
        return None
    trainer = float(own[:, _TRAINER].sum())
    lost = waited
    if waited.sum() < _LEAST_WAIT * total:
        lost = own.copy()
        lost[:, _TRAINER] = 0
        if lost.sum() <= trainer:
            return Limit(STAGES[_TRAINER], trainer, total)
    stage = int(lost.sum(axis=0).argmax())
    seconds, source = float(lost[:, stage].sum()), int(lost[:, stage].argmax())
    in_stage = np.zeros(0)
    if before.workers.shape == after.workers.shape:  # else they are others
        in_stage = (after.workers - before.workers)[:, stage]
    return Limit(
        STAGES[stage],
        seconds,
        total,
        source if 2 * lost[source, stage] > seconds else None,
        int((2 * in_stage >= total).sum()),
        len(in_stage),
    )


class Limits:
    """What limits a rank, from `begin` on."""

    def __init__(
        self, spent: Callable[[], Spent], place: Callable[[int, bool], str], *, window_s: float = WINDOW_S
    ) -> None:
        """`spent`: asked for what was spent so far; `place`: how the log names a source, or its storage (True)."""
        self._spent = spent
        self._place = place
        self._window_s = window_s
        self._moments: deque[tuple[int, Spent]] = deque()
        """When it was looked at (ns), and what was spent until then; the first one begins the window."""
        self._told_ns = 0
        self._told: str | None = None

    def reset(self) -> None:
        """Begin a new window with the next batch: what starting workers and the first batch cost is no limit."""
        self._moments = deque()

    def tick(self, now_ns: int) -> None:
        """Look at what was spent, and tell the log what is new, if it is time for that; after each batch."""
        moments, window_ns = self._moments, 1e9 * self._window_s
        if moments and now_ns - moments[-1][0] < window_ns / _PARTS:
            return
        if not moments:
            self._told_ns = now_ns
        moments.append((now_ns, self._spent()))
        while len(moments) > 1 and now_ns - moments[1][0] >= window_ns:
            moments.popleft()
        if now_ns - self._told_ns >= window_ns:
            self._told_ns = now_ns
            self._tell()

    def now(self) -> Limit | None:
        """What limits the window that ends now; None before the second batch. From any thread."""
        moments = self._moments  # another one may be begun meanwhile
        return limit_of(moments[0][1], self._spent()) if moments else None

    def stage(self) -> str | None:
        """Its stage."""
        limit = self.now()
        return None if limit is None else limit.stage

    def _tell(self) -> None:
        limit = self.now()
        if limit is None or limit.stage == self._told:
            return
        before, self._told = self._told, limit.stage
        if limit.stage == STAGES[_TRAINER]:
            if before is not None:
                _log.info("limited by trainer: batches are ready before they are asked for")
            return
        _log.warning("%s", self.sentence(limit))

    def sentence(self, limit: Limit) -> str:
        """As the log tells it."""
        of_storage = limit.stage == "storage"
        where = "" if limit.source is None else self._place(limit.source, of_storage)
        cost = f"{limit.seconds:.1f} s of {limit.of_seconds:.0f}"
        told = f"limited by {limit.stage} ({', '.join(filter(None, (where, cost)))})"
        if limit.num_workers:
            does = "blocked" if of_storage else "busy with it"
            told += f", {limit.workers} of {limit.num_workers} workers {does}"
        return told
