"""What `loader.stats()` tells: each key, whether it is of the run or of this loader, its unit and its meaning.

In:    the counts of this rank's lanes; what this loader and its workers counted.
Out:   one flat dict of numbers. docs/stats.md has the same table, and a test compares the two.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from streampack.loader.passes import Pass
from streampack.records import Counts, StorageUse


class Scope(StrEnum):
    """Whose numbers they are."""

    RUN = "run"
    """Of this rank's lanes since the start of the run: in the state, kept by a resume. The sum over the data-parallel
    ranks is the same on every topology."""
    LOADER = "loader"
    """Of this loader object since it was made: in no state; depends on the topology and on chance."""


class Stat(NamedTuple):
    """One key of `loader.stats()`."""

    key: str
    scope: Scope
    unit: str
    meaning: str


STATS = (
    Stat("documents", Scope.RUN, "documents", "documents whose last row was handed out or skipped, or without rows"),
    Stat("tokens", Scope.RUN, "rows", "input rows that are not padding"),
    Stat("targets", Scope.RUN, "rows", "rows with a label"),
    Stat("padding", Scope.RUN, "rows", "padding of packs that are not fillers"),
    Stat("bad_records", Scope.RUN, "records", 'bad records and broken shards that `on_error="skip"` skipped'),
    Stat("split_documents", Scope.RUN, "documents", 'documents that `overflow="split"` cut'),
    Stat("truncated_documents", Scope.RUN, "documents", 'documents that `overflow="truncate"` cut'),
    Stat("truncated_tokens", Scope.RUN, "rows", "rows that were cut off them"),
    Stat("dropped_documents", Scope.RUN, "documents", 'documents that `overflow="drop"` left out'),
    Stat("dropped_tokens", Scope.RUN, "rows", "rows of the dropped documents"),
    Stat("targetless_packs", Scope.RUN, "packs", "packs without a single target, which are never handed out"),
    Stat("targetless_tokens", Scope.RUN, "rows", "rows of the targetless packs"),
    Stat("tail_tokens", Scope.RUN, "rows", 'rows of unfinished packs that `tail="drop"` left out'),
    Stat("fillers", Scope.RUN, "packs", "packs of nothing but padding, which keep the ranks of a finite run in step"),
    Stat("skipped_packs", Scope.RUN, "packs", "packs that `loader.skip` went past"),
    Stat("batches", Scope.LOADER, "batches", "batches handed out"),
    Stat("left_out_packs", Scope.LOADER, "packs", "packs that were made and left out at the ends of finite passes"),
    Stat("worker_restarts", Scope.LOADER, "restarts", "how often the workers were restarted after one was lost"),
    Stat("seconds_waited", Scope.LOADER, "seconds", "time that this process waited for batches"),
    Stat("retries", Scope.LOADER, "requests", "requests to the storage that were tried again"),
    Stat("requests", Scope.LOADER, "requests", "requests to the storage"),
    Stat("bytes_read", Scope.LOADER, "bytes", "bytes of shards that came from the storage"),
    Stat("seconds_waited_storage", Scope.LOADER, "seconds", "time that workers only waited for the storage"),
    Stat("cache_hits", Scope.LOADER, "blocks", "blocks that were read from the cache"),
    Stat("cache_bytes", Scope.LOADER, "bytes", "bytes of shards that came from the cache"),
)
"""The keys, in the order of `stats()`. What workers count is known up to the last message that came from them."""


@dataclass(slots=True)
class LoaderCounts:
    """What a loader counts itself, over all its passes."""

    batches: int = 0
    left_out_packs: int = 0
    seconds_waited: float = 0.0
    storage: StorageUse = field(default_factory=StorageUse)
    """Of the workers of passes that are over."""

    def end_pass(self, ended: Pass) -> None:
        """Add what a pass counted."""
        self.left_out_packs += ended.tally.left_out.packs
        self.storage = self.storage.plus(ended.tally.storage)


def stats_of(counts: Counts, loader: LoaderCounts, current: Pass | None, *, worker_restarts: int) -> dict[str, float]:
    """The numbers of `STATS`, in its order; `current`: the pass that is under way."""
    storage = loader.storage if current is None else loader.storage.plus(current.tally.storage)
    return {
        **counts._asdict(),
        "batches": loader.batches,
        "left_out_packs": loader.left_out_packs,
        "worker_restarts": worker_restarts,
        "seconds_waited": loader.seconds_waited,
        "retries": storage.retries,
        "requests": storage.requests,
        "bytes_read": storage.bytes_read,
        "seconds_waited_storage": storage.seconds_waited,
        "cache_hits": storage.cache_hits,
        "cache_bytes": storage.cache_bytes,
    }
