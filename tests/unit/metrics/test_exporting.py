"""The numbers of a loader under the names of dashboards."""

import gc
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from streampack import metrics
from streampack.loader.stats import no_stats
from streampack.metrics.clock import STAGES
from streampack.metrics.stats import SOURCE_STATS, STATS


class Loader:
    """A loader of rank 3 with some numbers."""

    dp_rank = 3

    def stats(self) -> metrics.Stats:
        stats: Any = no_stats(["web", "code"])
        stats |= {"tokens": 7, "bytes_read": 9, "seconds_waited_storage": 1.5, "limited_by": "tar"}
        stats["stages"]["storage"] = {"busy": 2.5, "blocked": 4.0}
        stats["source_seconds"]["code"] = {"busy": 8.0, "blocked": 1.0}
        stats["sources"]["code"] |= {"documents": 5, "share": 0.25}
        return stats


def scraped(registry: CollectorRegistry) -> dict[str, dict[tuple[str, ...], float]]:
    """By name, the values by labels."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            labels = (sample.labels.get(name) for name in ("source", "stage", "state", "rank"))
            found.setdefault(sample.name, {})[*filter(None, labels)] = sample.value
    return found


def test_prometheus_gets_counters_in_base_units_and_gauges_by_source_stage_and_rank() -> None:
    registry, loader = CollectorRegistry(), Loader()
    metrics.prometheus(loader, registry=registry)
    found = scraped(registry)
    assert found["streampack_tokens_total"] == {("3",): 7.0}
    assert found["streampack_storage_read_bytes_total"] == {("3",): 9.0}
    assert found["streampack_storage_waited_seconds_total"] == {("3",): 1.5}
    assert found["streampack_stage_seconds_total"]["storage", "blocked", "3"] == 4.0
    assert len(found["streampack_stage_seconds_total"]) == 2 * len(STAGES)
    assert [stage for stage, _ in found["streampack_limited_by"]] == list(STAGES)
    assert found["streampack_limited_by"]["tar", "3"] == sum(found["streampack_limited_by"].values()) == 1
    assert found["streampack_source_documents_total"] == {("web", "3"): 0.0, ("code", "3"): 5.0}
    assert found["streampack_source_share_ratio"]["code", "3"] == 0.25
    assert found["streampack_source_seconds_total"]["code", "busy", "3"] == 8.0
    assert len(found) == len(STATS) + len(SOURCE_STATS) + 3
    assert not [name for name in found if "second" in name and not name.endswith("_seconds_total")]


def test_a_registry_refuses_a_second_loader_and_asks_none_to_know_that() -> None:
    registry, loader = CollectorRegistry(), Loader()
    metrics.prometheus(loader, registry=registry)
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        metrics.prometheus(Loader(), registry=registry)


def test_a_registry_keeps_no_loader_alive() -> None:
    registry, loader = CollectorRegistry(), Loader()
    metrics.prometheus(loader, registry=registry)
    del loader
    gc.collect()
    assert scraped(registry) == {}


def test_scalars_are_flat_and_floats() -> None:
    found = metrics.scalars(Loader().stats(), prefix="train/data/")
    assert len(found) == len(STATS) + 3 * len(STAGES) + 2 * 2 + 2 * len(SOURCE_STATS)
    assert all(type(value) is float for value in found.values())
    assert found["train/data/tokens"] == 7.0
    assert found["train/data/stages/storage/blocked"] == 4.0
    assert (found["train/data/limited_by/tar"], found["train/data/limited_by/main"]) == (1.0, 0.0)
    assert found["train/data/sources/code/documents"] == 5.0
    assert next(iter(metrics.scalars(Loader().stats()))) == "data/documents"
