"""The numbers that `loader.stats()` gives, from the records that have them; `metrics.stats` says what each of them is.

In:    the counts of this rank's lanes; what this loader, its workers and their clocks counted.
Out:   a dict of numbers, and in "stages" and "sources" one for each stage and source.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from streampack.lanes.run import Run
from streampack.loader.passes import Pass
from streampack.loader.progress import epochs_of, exhausted_lanes
from streampack.loader.restarts import WorkerRestarts
from streampack.loader.times import LoaderTimes
from streampack.metrics.clock import STAGES
from streampack.metrics.stats import SOURCE_STATS, STATS, Seconds, Stats
from streampack.ranks.exchange import RankExchanges
from streampack.records import Counts, StorageUse
from streampack.state.checkpoint import FIELDS, PACKS, Committed

_COUNTED = [stat.key for stat in SOURCE_STATS[:5]]
_ADDED_UP = [*_COUNTED, "exhausted_lanes", "epochs"]
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


_LOADER = {
    "batches": ("loader", "batches"),
    "left_out_packs": ("loader", "left_out_packs"),
    "worker_restarts": ("restarts", "number"),
    "seconds_waited": ("loader", "seconds_waited"),
    "engine_differences": ("loader", "engine_differences"),
    "seconds_waited_storage": ("storage", "seconds_waited"),
}
"""Which record has a number of the loader, and under which name; the others are the storage's, under their own."""


def numbers_of(
    counts: Counts, loader: LoaderCounts, current: Pass | None, restarts: WorkerRestarts
) -> dict[str, float]:
    """The numbers of `STATS`, in its order; `current`: the pass that is under way."""
    storage = loader.storage if current is None else loader.storage.plus(current.tally.storage)
    records = {"loader": loader, "restarts": restarts, "storage": storage}
    numbers: dict[str, float] = counts._asdict()
    for stat in STATS[len(counts) :]:
        record, name = _LOADER.get(stat.key, ("storage", stat.key))
        numbers[stat.key] = getattr(records[record], name)
    return numbers


def stats_of(
    numbers: Mapping[str, float], sources: Mapping[str, Mapping[str, float]], times: LoaderTimes, limited_by: str | None
) -> Stats:
    """All of it; `limited_by`: the name of a stage."""
    seconds = {
        "stages": _seconds(STAGES, times.by_stage().tolist()),
        "source_seconds": _seconds(sources, times.by_source().tolist()),
    }
    return cast("Stats", {**numbers, **seconds, "limited_by": limited_by, "sources": sources})


def _seconds(names: Iterable[str], seconds: Iterable[tuple[float, float]]) -> dict[str, Seconds]:
    """By name, of pairs in the same order."""
    return {name: {"busy": busy, "blocked": blocked} for name, (busy, blocked) in zip(names, seconds, strict=True)}


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


def no_stats(sources: Iterable[str]) -> Stats:
    """The keys of `stats()` before the run has begun."""
    flat: dict[str, float] = dict.fromkeys((stat.key for stat in STATS), 0)
    of_sources = {name: dict.fromkeys((stat.key for stat in SOURCE_STATS), 0) for name in sources}
    return stats_of(flat, of_sources, LoaderTimes(len(of_sources)), None)


def added_up(stats: Stats, exchanges: RankExchanges, what: str) -> Stats:
    """The stats of all ranks; a collective. `what`: is named where it cannot be.

    Counts and seconds are added up, epochs are the mean; what limits them is what limits most of those ranks that are
    not limited by the trainer.
    """
    of_sources: Any = stats["sources"]
    numbers: Any = stats
    limited_by = stats["limited_by"]
    tables: list[Mapping[str, float]] = [
        {stat.key: numbers[stat.key] for stat in STATS},
        {stage: stage == limited_by for stage in STAGES},
        *(cast("Mapping[str, float]", each) for each in stats["stages"].values()),
        *(cast("Mapping[str, float]", each) for each in stats["source_seconds"].values()),
        *({key: each[key] for key in _ADDED_UP} for each in of_sources.values()),
    ]
    totals = iter(exchanges.sums([number for table in tables for number in table.values()], what))
    flat, limits, *others = ({key: next(totals) for key in table} for table in tables)
    num_trainers = limits.pop("trainer")
    stage, num_limited = max(limits.items(), key=lambda each: each[1])
    limit = stage if num_limited else "trainer" if num_trainers else None
    stages, others = dict(zip(STAGES, others, strict=False)), others[len(STAGES) :]
    source_seconds, others = dict(zip(of_sources, others, strict=False)), others[len(of_sources) :]
    sources = dict(zip(of_sources, others, strict=True))
    for name, each in sources.items():
        each["epochs"] /= exchanges.topology.size
        each["share"] = of_sources[name]["share"]
    seconds = {"stages": stages, "source_seconds": source_seconds}
    return cast("Stats", {**flat, **seconds, "limited_by": limit, "sources": _with_shares(sources)})


def _with_shares(sources: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """The same with what each source has had of all packs; its keys in the order of `SOURCE_STATS`."""
    packs = sum(each["packs"] for each in sources.values())
    return {
        name: {
            stat.key: (each["packs"] / packs if packs else 0.0) if stat.key == "share_so_far" else each[stat.key]
            for stat in SOURCE_STATS
        }
        for name, each in sources.items()
    }
