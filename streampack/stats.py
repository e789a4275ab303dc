"""What a lane counts. Every count travels with the pack that it belongs to and is committed with it.

`Counts` is a row of non-negative integers; a lane's committed counts are part of its state, so that a total is the
same on every topology and through every resume.
"""

import operator
from typing import NamedTuple


class Counts(NamedTuple):
    """What one pack, or one lane since the start of the run, stands for."""

    documents: int = 0
    """Documents whose last row has been given or passed over (or that left no row)."""
    tokens: int = 0
    """Input rows that are not padding."""
    targets: int = 0
    padding: int = 0
    """Padded rows of packs; fillers are not in it."""
    skipped: int = 0
    """Bad records passed over by `on_error="skip"`."""
    split_documents: int = 0
    truncated_documents: int = 0
    truncated_tokens: int = 0
    dropped_documents: int = 0
    dropped_tokens: int = 0
    targetless_packs: int = 0
    """Packs without a single target, which are never given."""
    targetless_tokens: int = 0
    """Rows of those."""
    tail_tokens: int = 0
    """Rows of unfinished packs dropped by `tail="drop"`."""
    fillers: int = 0
    """Packs of nothing but padding that keep finite runs in step."""
    passed_over: int = 0
    """Packs that `loader.skip` went past."""

    def plus(self, more: "Counts") -> "Counts":
        """Both together."""
        return Counts(*map(operator.add, self, more))


class StorageUse(NamedTuple):
    """What one process asked of the storage; never part of a state, as it depends on the topology and on chance."""

    retries: int = 0
    """Faults that passed."""
    requests: int = 0
    bytes_read: int = 0
    seconds_waited: float = 0.0
    """With nothing to do but wait for the storage."""
    cache_hits: int = 0
    """Readings of a block of the cache."""
    cache_bytes: int = 0
    """Bytes of shards that came from the cache, and not from the storage."""

    def since(self, before: "StorageUse") -> "StorageUse":
        """What came after `before`."""
        return StorageUse(*map(operator.sub, self, before))

    def plus(self, more: "StorageUse") -> "StorageUse":
        """Both together."""
        return StorageUse(*map(operator.add, self, more))
