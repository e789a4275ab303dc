"""The storage itself is killed in the middle of a run, and comes back: the run goes on as if nothing had been."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import servers
from support.arguments import packed_dataset
from support.processes import Job, needs_proc
from support.proxy import Proxy
from support.reference import assert_batches, endless_batches, lane_packs, prose
from support.thorough import long
from support.training import await_checkpoint, complete, handed_out, write_job
from support.workers import worker_pids

import streampack
from streampack.testing import write_shards

AWAY_S = 3
COUNT = 30
RETRY = {"first_wait_s": 0.05, "max_wait_s": 1.0}
SMALL = {"buffer_bytes": 2**21, "document_bytes": 2**14, "shuffle": "shards"}
"""Lanes that hold little, so that the server is asked all the time."""


@pytest.fixture(scope="module")
def server() -> Iterator[servers.MortalS3]:
    running = servers.MortalS3()
    yield running
    running.close()


@pytest.fixture(scope="module")
def corpus(server: servers.MortalS3, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The same shards as files and as objects."""
    paths = write_shards(tmp_path_factory.mktemp("shards"), prose(5, 3000, most_words=150), documents_per_shard=250)
    client = servers.s3_client(server.server)
    for path in map(Path, paths):
        client.put_object(Bucket=servers.BUCKET, Key=f"kills/{path.name}", Body=path.read_bytes())
    return {"files": paths, "objects": [f"s3://{servers.BUCKET}/kills/{Path(path).name}" for path in paths]}


@long
def test_a_run_outlives_kills_of_the_server_with_the_packs_of_a_quiet_one(
    server: servers.MortalS3, corpus: dict[str, list[str]]
) -> None:
    arguments = {"seq_len": 512, "num_lanes": 4, "epochs": 1, **SMALL}
    arguments["shuffle"] = streampack.Shuffle(block_bytes=2**13, window=4)

    def digest(shards: list[str], kill_at: tuple[int, ...] = (), **options: Any) -> tuple[int, dict[str, float]]:
        dataset = packed_dataset(shards, **arguments, **options)
        back = []
        with streampack.PackedDataLoader(dataset, 8, num_workers=2, prefetch_bytes=2**16) as loader:
            for batches, _ in enumerate(loader, 1):
                if batches in kill_at:
                    server.kill()
                    back.append(server.start_later(AWAY_S))
                time.sleep(0.002)
            for started in back:
                started.result(60)
            return loader.digest(), loader.stats()

    quiet, _ = digest(corpus["files"])
    options = {"options": server.server.options, "retry": streampack.RetryPolicy(**RETRY)}
    found, stats = digest(corpus["objects"], (20,), **options)
    assert found == quiet
    assert stats["retries"] > 0
    assert stats["worker_restarts"] == stats["bad_records"] == 0
    assert stats["batches"] > 75


@needs_proc
def test_a_worker_that_is_restarted_while_the_server_is_away_waits_for_it_as_the_one_before_would(
    tmp_path: Path,
) -> None:
    """The sizes stand in a manifest, so no process but the worker that is killed has ever reached the server."""
    written = write_shards(tmp_path, prose(3, 400), documents_per_shard=100)
    objects = {f"/{Path(path).name}": Path(path).read_bytes() for path in written}
    running = Proxy(objects=dict(objects))
    rows = [json.dumps({"url": f"{running.url}{name}", "size": len(data)}) for name, data in objects.items()]
    (tmp_path / "manifest.jsonl").write_text("\n".join(rows))

    def digest(shards: Any, num_workers: int, hurt: Any = None) -> int:
        retry = streampack.RetryPolicy(first_wait_s=0.05, max_wait_s=0.2, start_s=0.1)
        dataset = packed_dataset(shards, seq_len=128, num_lanes=4, epochs=1, retry=retry, **SMALL)
        with streampack.PackedDataLoader(dataset, 4, num_workers=num_workers, prefetch_bytes=1) as loader:
            for batches, _ in enumerate(loader):
                if hurt is not None and batches == 3:
                    hurt(worker_pids(loader)[0])
            assert hurt is None or loader.stats()["worker_restarts"] == 1
            return loader.digest()

    back: list[Proxy] = []

    def restart(pid: int) -> None:
        running.silence()
        running.close()
        os.kill(pid, signal.SIGKILL)
        timer = threading.Timer(1.5, lambda: back.append(Proxy(objects=objects, port=running.server_port)))
        timer.start()

    assert digest(f"@{tmp_path}/manifest.jsonl", 1, restart) == digest(written, 0)
    back[0].close()


@long
@needs_proc
def test_ranks_and_the_server_are_killed_at_once_and_the_job_goes_on_exactly_elsewhere(
    server: servers.MortalS3, corpus: dict[str, list[str]], tmp_path: Path
) -> None:
    dataset = {"seq_len": 128, "num_lanes": 12, **SMALL}
    stored = {**dataset, "data": corpus["objects"], "options": server.server.options}

    def job(name: str, load: Path | None, batches: int | None, **loader: int) -> tuple[Path, Path]:
        folder = tmp_path / name
        folder.mkdir()
        write_job(folder, dataset=stored, loader=loader, load=load and str(load), batches=batches)
        return folder / "job.json", folder

    killed = job("killed", None, None, batch_size=2, num_workers=2)
    with Job("training.py", *killed, ranks=2, log=tmp_path / "killed.log") as running:
        await_checkpoint(running, killed[1])
        server.kill()
        time.sleep(0.5)  # some workers wait for it now
        left = running.kill_ranks()
        assert len(left) == 2 * (1 + 2), "of each rank a server and its workers"
        deadline = time.monotonic() + 20
        while orphans := running.processes():
            assert time.monotonic() < deadline, f"workers outlive their ranks while the storage is away: {orphans}"
            time.sleep(0.1)
    server.start()
    resumed = job("resumed", complete(killed[1])[-1], COUNT, batch_size=3, num_workers=1)
    with Job("training.py", *resumed, ranks=4, log=tmp_path / "resumed.log") as running:
        assert running.wait(150) == 0, running.output
        assert not running.processes()

    begin = int(complete(killed[1])[-1].name.removeprefix("step")) * 2 * 2
    lanes = lane_packs({**dataset, "data": corpus["files"]}, limit=-(-(begin + COUNT * 12 + 1000) // 12))
    for folder, ranks, batch_size, start in ((killed[1], 2, 2, 0), (resumed[1], 4, 3, begin)):
        for rank in range(ranks):
            first, batches, _ = handed_out(folder, rank)
            assert first == start
            split = {"rank": rank, "num_ranks": ranks, "batch_size": batch_size}
            expected = endless_batches(lanes, start, count=len(batches["tokens"]), **split)
            assert_batches(batches, expected, f"{folder.name}, rank {rank}")
    assert len(batches["tokens"]) == COUNT
