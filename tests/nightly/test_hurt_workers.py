"""A run whose workers and their server are killed, stopped and starved at random, for `STREAMPACK_SOAK_S` seconds."""

import json
import os
import statistics
from pathlib import Path
from typing import Any

import pytest
from support.arguments import packed_dataset
from support.processes import needs_proc, run_program
from support.reference import prose

from streampack import PackedDataLoader
from streampack.testing import write_shards

SECONDS = float(os.environ.get("STREAMPACK_SOAK_S", "120"))
RANKS, WORKERS, BATCH = 2, 3, 4
DATASET = {"seq_len": 512, "num_lanes": 12, "buffer_bytes": 2**22, "document_bytes": 2**18}


@needs_proc
@pytest.mark.timeout(4 * SECONDS + 300)
def test_a_run_through_deaths_and_shortages_gives_the_packs_of_a_quiet_one_and_leaves_nothing(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", prose(1, 900), documents_per_shard=60)
    dataset = {"data": str(tmp_path / "shards"), **DATASET}
    loader = {"batch_size": BATCH, "num_workers": WORKERS, "worker_timeout_s": 2.0, "prefetch_bytes": 2**17}
    job = {"dataset": dataset, "loader": loader, "seconds": SECONDS, "pause_s": 0.02, "seed": 0}
    (tmp_path / "job.json").write_text(json.dumps(job))
    log = tmp_path / "log"
    arguments = (tmp_path / "job.json", tmp_path)
    run_program("hurting.py", *arguments, ranks=RANKS, log=log, deadline_s=SECONDS + 130)
    for rank in range(RANKS):
        found: dict[str, Any] = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert found["digest"] == quiet_digest(dataset, rank, found["batches"])
        assert found["left"] == []
        assert found["files"][1] <= found["files"][0]
        assert found["stats"]["worker_restarts"] >= SECONDS / 30
        early = [each for each in found["curve"] if SECONDS / 4 <= each[0] < SECONDS / 2]
        late = [each for each in found["curve"] if each[0] >= SECONDS * 3 / 4]
        if not (early and late):  # a short run that waited for a server that was stopped as it started
            continue
        memory = [statistics.median(megabytes for _, megabytes, _ in some) for some in (early, late)]
        assert memory[1] <= memory[0] * 1.1 + 12
        assert max(files for *_, files in late) <= max(files for *_, files in early) + 8


def quiet_digest(dataset: dict[str, Any], rank: int, batches: int) -> int:
    with PackedDataLoader(packed_dataset(**dataset), BATCH, num_workers=0, dp_rank=rank, dp_size=RANKS) as loader:
        for number, _ in enumerate(loader, 1):
            if number == batches:
                break
        return loader.digest()
