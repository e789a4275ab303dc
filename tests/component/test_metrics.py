"""A loader's numbers in what real dashboards read."""

import itertools
import threading
import urllib.request
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.parser import text_string_to_metric_families
from support.jobs import Corpus, dataset, uneven

import streampack
from streampack import metrics

TOKENS = "streampack_tokens_total{'rank': '0'}"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return uneven(tmp_path_factory.mktemp("metrics"))


def make(corpus: Corpus, num_workers: int) -> streampack.PackedDataLoader:
    return streampack.PackedDataLoader(
        dataset(corpus), 4, num_workers=num_workers, multiprocessing_context="fork" if num_workers else None
    )


@pytest.mark.parametrize("num_workers", [0, 2])
def test_scrapes_over_http_read_counters_that_never_fall_while_batches_are_taken(
    corpus: Corpus, num_workers: int
) -> None:
    registry = CollectorRegistry()
    with make(corpus, num_workers) as loader:
        metrics.prometheus(loader, registry=registry)
        server, serving = start_http_server(0, "127.0.0.1", registry)
        scrapes: list[dict[str, float]] = []
        is_over = threading.Event()

        def scrape() -> None:
            url = f"http://127.0.0.1:{server.server_port}/metrics"
            while len(scrapes) < 2 or not is_over.is_set():
                text = urllib.request.urlopen(url, timeout=30).read().decode()
                families = list(text_string_to_metric_families(text))
                counters = [family for family in families if family.type == "counter"]
                scrapes.append({f"{s.name}{s.labels}": s.value for each in counters for s in each.samples})

        thread = threading.Thread(target=scrape)
        thread.start()
        batches = iter(loader)
        while not (len(scrapes) > 2 and scrapes[-1][TOKENS]):
            next(batches)
        is_over.set()
        thread.join()
        stats = loader.stats()
        server.shutdown()
        server.server_close()
        serving.join()
    for before, after in itertools.pairwise(scrapes):
        assert [name for name in before if after[name] < before[name]] == []
    assert 0 < scrapes[-1][TOKENS] <= stats["tokens"]
    assert stats["stages"]["pack"]["busy"] > 0
    assert stats["stages"]["main"]["busy"] > 0
    assert (stats["stages"]["send"]["busy"] > 0) == (num_workers > 0)


def test_scalars_can_be_read_back_from_an_event_file(corpus: Corpus, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with make(corpus, 0) as loader, SummaryWriter(str(tmp_path)) as writer:
        for step, _ in zip(range(3), loader, strict=False):
            for name, value in metrics.scalars(loader.stats()).items():
                writer.add_scalar(name, value, step)
        last = metrics.scalars(loader.stats())
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert set(events.Tags()["scalars"]) == set(last)
    assert [event.value for event in events.Scalars("data/sources/default/packs")] == [4, 8, 12]
