"""Whole runs over the cache: the same bits on any workers, and no request for what is there."""

import contextlib
import hashlib
import json
import os
import pickle
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.arguments import packed_dataset
from support.caches import MIB, RETRY, held, num_bytes, storage
from support.proxy import Fault, Proxy, _Handler
from support.thorough import long, nightly
from support.workers import worker_pids

import streampack
from streampack.testing import write_shards


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("corpus")
    chooser = random.Random(5)
    texts = ["".join(chooser.choices("abcdefgh \n", k=chooser.randrange(20_000))) for _ in range(200)]
    shards = write_shards(folder, texts, documents_per_shard=90)
    return {f"/{Path(shard).name}": Path(shard).read_bytes() for shard in shards}


@pytest.fixture(scope="module")
def wanted(corpus: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> dict[int, int]:
    """What one epoch and two must give, from files."""
    folder = tmp_path_factory.mktemp("files")
    for path, data in corpus.items():
        (folder / path[1:]).write_bytes(data)
    return {epochs: digest_of(loader_of(str(folder / "*.tar"), epochs=epochs)) for epochs in (1, 2)}


@pytest.fixture
def server(corpus: dict[str, bytes]) -> Iterator[Proxy]:
    running = Proxy(objects=dict(corpus))
    yield running
    running.close()


def loader_of(
    shards: str | list[str], *, num_workers: int = 0, context: str | None = None, **arguments: Any
) -> streampack.PackedDataLoader:
    arguments = {"seq_len": 1024, "num_lanes": 6, "epochs": 2, "retry": RETRY, **arguments}
    dataset = packed_dataset(shards, **arguments)
    return streampack.PackedDataLoader(
        dataset, 16, num_workers=num_workers, multiprocessing_context=context, dp_rank=0, dp_size=1
    )


def one_in_eight(document: streampack.Document, rng: Any) -> streampack.Document | None:
    return document if len(document.text or "") % 8 == 0 else None


def digest_of(loader: streampack.PackedDataLoader) -> int:
    with loader:
        for _ in loader:
            pass
        return loader.digest()


class TestRuns:
    """Whole runs: the same bits, fewer requests."""

    @pytest.mark.parametrize(
        ("num_workers", "context"), [(2, "fork"), *nightly([(0, None), (3, None), (1, None)])], ids=str
    )
    def test_the_digest_is_the_same_and_each_byte_comes_once_in_all_epochs(
        self, server: Proxy, wanted: dict[int, int], cache_dir: Path, num_workers: int, context: str | None
    ) -> None:
        urls = [f"{server.url}{path}" for path in sorted(server.objects)]
        loader = loader_of(urls, num_workers=num_workers, context=context, cache_dir=cache_dir)
        assert digest_of(loader) == wanted[2]
        total = sum(map(len, server.objects.values()))
        assert num_bytes(server) == total
        stats = loader.stats()
        assert stats["bytes_read"] == total
        assert stats["cache_bytes"] > total
        assert stats["cache_hits"] > 0
        server.reset()
        assert digest_of(loader_of(urls, epochs=1, cache_dir=str(cache_dir))) == wanted[1]
        assert num_bytes(server) == 0

    @long
    def test_a_budget_below_the_corpus_changes_nothing(self, server: Proxy, cache_dir: Path) -> None:
        big = {f"/{number}.tar": data for number, data in enumerate(list(server.objects.values()) * 11)}
        server.objects = big
        assert sum(map(len, big.values())) > 20 * MIB
        urls = [f"{server.url}{path}" for path in big]
        some = {"epochs": 1, "transform": one_in_eight, "transform_version": "1"}  # all bytes are read all the same
        wanted = digest_of(loader_of(urls, **some))
        loader = loader_of(urls, **some, num_workers=2, context="fork", cache_dir=cache_dir, cache_bytes=16 * MIB)
        assert digest_of(loader) == wanted
        assert 8 * MIB < held(cache_dir) <= 16 * MIB

    def test_a_run_is_resumed_with_the_server_gone(self, server: Proxy, cache_dir: Path, tmp_path: Path) -> None:
        manifest = tmp_path / "m.jsonl"
        lines = []
        for path, data in sorted(server.objects.items()):
            line = {"url": f"{server.url}{path}", "size": len(data), "etag": f'"{hashlib.md5(data).hexdigest()}"'}
            lines.append(json.dumps(line) + "\n")
        manifest.write_text("".join(lines))
        with loader_of(f"@{manifest}", epochs=1, cache_dir=cache_dir) as loader:
            iterator = iter(loader)
            for _ in range(20):
                next(iterator)
            state = loader.state_dict()
            for _ in iterator:
                pass
            wanted = loader.digest()
        server.close()
        with loader_of(f"@{manifest}", epochs=1, num_workers=2, context="fork", cache_dir=cache_dir) as loader:
            loader.load_state_dict(state)
            for _ in loader:
                pass
            assert loader.digest() == wanted
            assert loader.stats()["requests"] == 0

    def test_a_header_altered_on_its_way_is_not_kept_either(
        self, server: Proxy, wanted: dict[int, int], cache_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        urls = [f"{server.url}{path}" for path in sorted(server.objects)]
        spoiled: list[str] = []
        real = _Handler._own

        def own(handler: _Handler) -> tuple[int, dict[str, str], bytes]:
            status, headers, body = real(handler)
            if "bytes 0-" in headers.get("Content-Range", "") and handler.path not in spoiled:
                spoiled.append(handler.path)  # once: in the name of the first member, so its checksum is wrong
                body = body[:20] + b"~" + body[21:]
            return status, headers, body

        monkeypatch.setattr(_Handler, "_own", own)
        assert digest_of(loader_of(urls, epochs=1, cache_dir=cache_dir)) == wanted[1]
        assert len(spoiled) == len(urls)

    def test_workers_killed_while_they_fetch_leave_nothing_behind(
        self, server: Proxy, wanted: dict[int, int], cache_dir: Path
    ) -> None:
        urls = [f"{server.url}{path}" for path in sorted(server.objects)]
        server.always = Fault("throttle", seconds=0.002)
        with loader_of(urls, epochs=1, num_workers=2, cache_dir=cache_dir) as loader:
            iterator = iter(loader)
            for _ in range(2):
                next(iterator)
                with contextlib.suppress(ProcessLookupError):  # dead since the last kill, and not missed yet
                    os.kill(worker_pids(loader)[0], signal.SIGKILL)
            server.always = None
            for _ in iterator:
                pass
            assert loader.stats()["worker_restarts"] >= 1
            assert loader.digest() == wanted[1]
        names = {path.name for path in (cache_dir / "streampack-1").rglob("*") if path.is_file()} - {"usage"}
        assert all(len(name) == 32 for name in names)

    def test_the_cache_is_no_part_of_the_state(self, server: Proxy, cache_dir: Path) -> None:
        urls = [f"{server.url}{path}" for path in sorted(server.objects)]
        with loader_of(urls) as one, loader_of(urls, cache_dir=cache_dir) as two:
            assert one.state_dict()["fingerprint"] == two.state_dict()["fingerprint"]

    def test_a_storage_with_a_cache_can_be_pickled(self, cache_dir: Path) -> None:
        again = pickle.loads(pickle.dumps(storage(cache_dir, cache_bytes=20 * MIB)))
        assert again._folder.max_bytes == 20 * MIB
        assert again._folder._root == cache_dir / "streampack-1"
