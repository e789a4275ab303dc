"""What `loader.stats()` tells: each key, whether it is of the run or of this loader, its unit and its meaning.

In:    the counts of this rank's lanes; what this loader and its workers counted.
Out:   a dict of numbers, and in "sources" one for each source. docs/stats.md has the same tables, and a test compares
       them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from streampack.lanes.run import Run
from streampack.loader.passes import Pass
from streampack.loader.progress import epochs_of, exhausted_lanes
from streampack.loader.restarts import WorkerRestarts
from streampack.ranks.exchange import RankExchanges
from streampack.records import Counts, StorageUse
from streampack.state.checkpoint import FIELDS, PACKS, Committed


class Stat(NamedTuple):
    """One key of `loader.stats()`."""

    key: str
    source: Literal["run", "loader", "restarts", "storage"]
    """Which record has the number. "run": of this rank's lanes since the start of the run: in the state, kept by a
    resume; the sum over the data-parallel ranks is the same on every topology. The others: of this loader object since
    it was made: in no state; they depend on the topology and on chance."""
    unit: str
    meaning: str
    field: str | None = None
    """Its name in that record, where it is not the key."""


STATS = (
    Stat("documents", "run", "documents", "documents whose last row was handed out or skipped, or without rows"),
    Stat("tokens", "run", "rows", "input rows that are not padding"),
    Stat("targets", "run", "rows", "rows with a label"),
    Stat("padding", "run", "rows", "padding of packs that are not fillers"),
    Stat("bad_records", "run", "records", 'bad records and broken shards that `on_error="skip"` skipped'),
    Stat("split_documents", "run", "documents", 'documents that `overflow="split"` cut'),
    Stat("truncated_documents", "run", "documents", 'documents that `overflow="truncate"` cut'),
    Stat("truncated_tokens", "run", "rows", "rows that were cut off them"),
    Stat("dropped_documents", "run", "documents", 'documents that `overflow="drop"` left out'),
    Stat("dropped_tokens", "run", "rows", "rows of the dropped documents"),
    Stat("targetless_packs", "run", "packs", "packs without a single target, which are never handed out"),
    Stat("targetless_tokens", "run", "rows", "rows of the targetless packs"),
    Stat("tail_tokens", "run", "rows", 'rows of unfinished packs that `tail="drop"` left out'),
    Stat("fillers", "run", "packs", "packs of nothing but padding, which keep the ranks in step"),
    Stat("skipped_packs", "run", "packs", "packs that `loader.skip` went past"),
    Stat("batches", "loader", "batches", "batches handed out"),
    Stat("left_out_packs", "loader", "packs", "packs that were made and left out at the ends of finite passes"),
    Stat(
        "worker_restarts", "restarts", "restarts", "how often the workers were restarted after one was lost", "number"
    ),
    Stat("seconds_waited", "loader", "seconds", "time that this process waited for batches"),
    Stat(
        "engine_differences",
        "loader",
        "documents",
        "documents for which an engine gave other ids than the tokenizer that it stands for, among those compared",
    ),
    Stat("retries", "storage", "requests", "requests to the storage that were tried again"),
    Stat("requests", "storage", "requests", "requests to the storage"),
    Stat("bytes_read", "storage", "bytes", "bytes of shards that came from the storage"),
    Stat(
        "seconds_waited_storage",
        "storage",
        "seconds",
        "time that workers only waited for the storage",
        "seconds_waited",
    ),
    Stat("cache_hits", "storage", "blocks", "blocks that were read from the cache"),
    Stat("cache_bytes", "storage", "bytes", "bytes of shards that came from the cache"),
)
"""The keys, in the order of `stats()`. What workers count is known up to the last message that came from them."""


SOURCE_STATS = (
    Stat("packs", "run", "packs", "packs of the source"),
    Stat("tokens", "run", "rows", "input rows that are not padding"),
    Stat("targets", "run", "rows", "rows with a label"),
    Stat("documents", "run", "documents", "documents whose last row was handed out or skipped, or without rows"),
    Stat("bad_records", "run", "records", 'bad records and broken shards that `on_error="skip"` skipped'),
    Stat("exhausted_lanes", "run", "lanes", "lanes that have read the source `max_epochs` times, and read it no more"),
    Stat("epochs", "run", "epochs", "how often the source was read, as a mean of the lanes"),
    Stat("share", "run", "of 1", "share of the packs that the present stage asks for"),
    Stat("share_so_far", "run", "of 1", "share of all packs so far"),
)
"""The keys for each source, in the order of `stats()["sources"][name]`."""
_COUNTED = [stat.key for stat in SOURCE_STATS[:5]]
_FILLERS = FIELDS.index("fillers")
_COLUMNS = [FIELDS.index(key) for key in _COUNTED]


@dataclass(slots=True)
class LoaderCounts:
    """What a loader counts itself, over all its passes."""

    batches: int = 0
    left_out_packs: int = 0
    seconds_waited: float = 0.0
    engine_differences: int = 0
    storage: StorageUse = field(default_factory=StorageUse)
    """Of the workers of passes that are over."""

    def end_pass(self, ended: Pass) -> None:
        """Add what the workers of a pass counted."""
        self.storage = self.storage.plus(ended.tally.storage)


def stats_of(counts: Counts, loader: LoaderCounts, current: Pass | None, restarts: WorkerRestarts) -> dict[str, float]:
    """The numbers of `STATS`, in its order; `current`: the pass that is under way."""
    storage = loader.storage if current is None else loader.storage.plus(current.tally.storage)
    records = {"run": counts, "loader": loader, "restarts": restarts, "storage": storage}
    return {stat.key: getattr(records[stat.source], stat.field or stat.key) for stat in STATS}


def stats_of_sources(
    committed: Committed, run: Run, max_epochs: Mapping[str, int | None]
) -> dict[str, dict[str, float]]:
    """Of each source of the run what this rank's lanes have had of it. `max_epochs`: by source."""
    by_source = committed.rows.reshape(len(committed.lanes), len(committed.sources), -1).sum(axis=0)
    by_source[0, PACKS] -= by_source[0, _FILLERS]  # the fillers of a lane count in the row of its first source
    shares = run.schedule.stage_of(committed.global_pack).shares
    found = {}
    for index, source in enumerate(run.sources):
        counts = dict(zip(_COUNTED, by_source[index, _COLUMNS].tolist(), strict=True))
        found[source.name] = {
            **counts,
            "exhausted_lanes": exhausted_lanes(committed, index, max_epochs[source.name]),
            "epochs": epochs_of(committed, index, source.corpus),
            "share": shares.share(index),
        }
    return _with_shares(found)


def no_stats(sources: Iterable[str]) -> dict[str, Any]:
    """The keys of `stats()` before the run has begun."""
    of_source = [stat.key for stat in SOURCE_STATS]
    flat = dict.fromkeys((stat.key for stat in STATS), 0.0)
    return {**flat, "sources": {name: dict.fromkeys(of_source, 0.0) for name in sources}}


def added_up(stats: Mapping[str, Any], exchanges: RankExchanges, what: str) -> dict[str, Any]:
    """The stats of all ranks: counts added up, epochs as a mean; a collective. `what`: is named where it cannot be."""
    sources: Mapping[str, Mapping[str, float]] = stats["sources"]
    keys, of_source = [key for key in stats if key != "sources"], [*_COUNTED, "exhausted_lanes", "epochs"]
    mine = [*(stats[key] for key in keys), *(each[key] for each in sources.values() for key in of_source)]
    totals = iter(exchanges.sums(mine, what))
    flat = {key: next(totals) for key in keys}
    found = {name: {key: next(totals) for key in of_source} for name in sources}
    for name, each in found.items():
        each["epochs"] /= exchanges.topology.size
        each["share"] = sources[name]["share"]
    return {**flat, "sources": _with_shares(found)}


def _with_shares(sources: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """The same with what each source has had of all packs."""
    packs = sum(each["packs"] for each in sources.values())
    return {name: {**each, "share_so_far": each["packs"] / packs if packs else 0.0} for name, each in sources.items()}
