"""The numbers of a loader for dashboards.

In:    what `loader.stats()` gives.
Out:   a collector for Prometheus, which asks the loader at each scrape; a flat dict for W&B and TensorBoard.
Never: a loader that lives on because a registry has its collector.
"""

import weakref
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from streampack.errors import ConfigError
from streampack.metrics.clock import STAGES
from streampack.metrics.stats import SOURCE_STATS, STATS, Stat, Stats

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

_GAUGES = {"exhausted_lanes", "epochs", "share", "share_so_far"}
"""What is no count that only grows."""
_NAMES = {
    "seconds_waited": "waited_seconds",
    "seconds_waited_storage": "storage_waited_seconds",
    "retries": "storage_retries",
    "requests": "storage_requests",
    "bytes_read": "storage_read_bytes",
    "share": "share_ratio",
    "share_so_far": "share_so_far_ratio",
}
"""For Prometheus, where a name ends in its unit; the others are the keys."""


class Loader(Protocol):
    """A `PackedDataLoader`."""

    @property
    def dp_rank(self) -> int:
        """Which of the data-parallel ranks it is."""

    def stats(self) -> Stats:
        """Its numbers."""


def prometheus(loader: Loader, *, registry: "CollectorRegistry | None" = None) -> "Collector":
    """Give the numbers of a loader to Prometheus: they are those of the moment in which they are scraped.

    Counters are `streampack_<key>_total{rank}`, `streampack_source_<key>_total{source, rank}` and
    `streampack_stage_seconds_total{stage, state, rank}`, where state is "busy" or "blocked"; docs/stats.md has the keys
    and their units. `streampack_limited_by{stage, rank}` is 1 for the stage that limits the loader, else 0. Where a
    state is loaded, the counters of the run are those of the state.

    Args:
        loader: of this rank.
        registry: where the collector is registered; None: that of prometheus-client, which `start_http_server` serves.

    Raises:
        ConfigError: prometheus-client is not installed.
        ValueError: the registry has a loader already; give each loader a registry of its own.
    """
    try:
        from prometheus_client import REGISTRY
    except ImportError as error:
        raise ConfigError(
            "streampack.metrics.prometheus needs prometheus-client: pip install 'streampack[metrics]'"
        ) from error
    collector = Collector(loader)
    (REGISTRY if registry is None else registry).register(collector)
    return collector


class Collector:
    """What a registry of prometheus-client asks at each scrape; without a metric once the loader is gone."""

    def __init__(self, loader: Loader) -> None:
        self._loader = weakref.ref(loader)

    def describe(self) -> "list[Metric]":
        """The names of all metrics, with which the registry refuses a second loader; no loader is asked."""
        return [family for family, _ in _families()]

    def collect(self) -> "Iterator[Metric]":
        """The numbers of this moment; may be called from any thread."""
        loader = self._loader()
        if loader is None:
            return
        rank, stats = str(loader.dp_rank), loader.stats()
        for family, samples in _families():
            for labels, value in samples(stats):
                family.add_metric([*labels, rank], value)
            yield family


def _families() -> Iterator[tuple[Any, Any]]:
    """Each metric family, and what gives its samples: labels but the rank, and a value."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    def family(stat: Stat, prefix: str, labels: list[str]) -> Any:
        kind = GaugeMetricFamily if stat.key in _GAUGES else CounterMetricFamily
        name = f"{prefix}{_NAMES.get(stat.key, stat.key)}"
        return kind(name, stat.meaning.replace("`", ""), labels=[*labels, "rank"])

    for stat in STATS:
        yield family(stat, "streampack_", []), lambda stats, key=stat.key: [([], stats[key])]
    seconds = Stat("stage_seconds", "loader", "seconds", "work and waits of each stage, of all workers of the rank")
    yield family(seconds, "streampack_", ["stage", "state"]), partial(_seconds, key="stages")
    yield (
        GaugeMetricFamily("streampack_limited_by", "1 for the stage that limits the loader", labels=["stage", "rank"]),
        lambda stats: [([stage], stage == stats["limited_by"]) for stage in STAGES],
    )
    for stat in SOURCE_STATS:
        yield family(stat, "streampack_source_", ["source"]), lambda stats, key=stat.key: [
            ([name], each[key]) for name, each in stats["sources"].items()
        ]
    what = "work and waits for each source, from its storage to its packs"
    seconds = Stat("source_seconds", "loader", "seconds", what)
    yield family(seconds, "streampack_", ["source", "state"]), partial(_seconds, key="source_seconds")


def _seconds(stats: Mapping[str, Any], key: str) -> list[tuple[list[str], float]]:
    return [([name, state], value) for name, each in stats[key].items() for state, value in each.items()]


def scalars(stats: Stats, *, prefix: str = "data/") -> dict[str, float]:
    """The numbers of `loader.stats()` as a flat dict, for `wandb.log` and TensorBoard's `add_scalar`.

    "data/tokens", "data/stages/storage/blocked", "data/limited_by/storage" (1.0 or 0.0), "data/sources/web/tokens".
    """
    found: dict[str, float] = {}

    def add(values: Mapping[str, Any], name: str) -> None:
        for key, value in values.items():
            if isinstance(value, Mapping):
                add(value, f"{name}{key}/")
            elif key == "limited_by":
                add({stage: stage == value for stage in STAGES}, f"{name}{key}/")
            else:
                found[f"{name}{key}"] = float(value)

    add(stats, prefix)
    return found
