"""Whether 4,096 ranks have together exactly the packs of one process: real loaders, in turns on this machine.

    python tests/benchmarks/scale/fleet.py [LANES RANKS PROCESSES BATCH_SIZE]    8192 4096 512 1 unless given

So many processes, two at a time, make the loaders of their ranks (dp_rank=, dp_size=) and take two batches of each with
`ulimit -n 1024`. Then one process takes the same packs as rank 0 of 1. The shards are made up, 8 KiB for each lane.

Out: one line of JSON: packs, whether all are equal, seconds, and of the fleet's processes the most memory, open files
     and milliseconds to make a loader.
"""

import hashlib
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from streampack import Limits, PackedDataLoader, PackedDataset
from streampack.testing import ByteTokenizer, write_shards

BATCHES = 2
FILES = 1024


def dataset(folder: str, num_lanes: int) -> PackedDataset:
    limits = Limits(buffer_bytes=2**18 * num_lanes)  # one process has all of them
    return PackedDataset(f"{folder}/*.tar", ByteTokenizer(), 64, num_lanes=num_lanes, limits=limits)


def packs_of(folder: str, num_lanes: int, rank: int, num_ranks: int, batch_size: int, batches: int) -> dict[int, bytes]:
    """The digests of a rank's packs by their global numbers."""
    found: dict[int, bytes] = {}
    with PackedDataLoader(
        dataset(folder, num_lanes), batch_size, num_workers=0, dp_rank=rank, dp_size=num_ranks
    ) as loader:
        for _, batch in zip(range(batches), loader, strict=False):
            stacked = torch.stack([batch[name] for name in ("tokens", "labels", "position_ids", "segment_ids")], dim=1)
            for pack in stacked.numpy():
                found[rank + num_ranks * len(found)] = hashlib.blake2b(pack.tobytes(), digest_size=16).digest()
    return found


def work(job: tuple[str, int, range, int, int]) -> dict[str, Any]:
    folder, num_lanes, ranks, num_ranks, batch_size = job
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES))
    packs: dict[int, bytes] = {}
    slowest = 0.0
    for rank in ranks:
        began = time.perf_counter()
        packs |= packs_of(folder, num_lanes, rank, num_ranks, batch_size, BATCHES)
        slowest = max(slowest, time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {"packs": packs, "s": slowest, "peak_MB": peak, "files": len(os.listdir("/proc/self/fd"))}  # noqa: PTH208


def main() -> None:
    num_lanes, num_ranks, num_processes, batch_size = (int(each) for each in sys.argv[1:] or (8192, 4096, 512, 1))
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        texts = [f"document {number} " * (10 + number % 40) for number in range(8 * num_lanes)]
        shards = write_shards(folder, texts, documents_per_shard=len(texts) // 8)
        num_bytes = sum(Path(shard).stat().st_size for shard in shards)
        began = time.perf_counter()
        jobs = [
            (folder, num_lanes, range(number, num_ranks, num_processes), num_ranks, batch_size)
            for number in range(num_processes)
        ]
        fleet: dict[int, bytes] = {}
        told: list[dict[str, Any]] = []
        with multiprocessing.get_context("fork").Pool(2, maxtasksperchild=1) as pool:  # a process for each job
            for found in pool.imap_unordered(work, jobs):
                fleet |= found.pop("packs")
                told.append(found)
        fleet_s = time.perf_counter() - began
        began = time.perf_counter()
        alone = packs_of(folder, num_lanes, 0, 1, num_ranks * batch_size, BATCHES)
        alone_s = time.perf_counter() - began
    outcome = {
        "lanes": num_lanes,
        "ranks": num_ranks,
        "processes": num_processes,
        "shards_MB": num_bytes // 2**20,
        "packs": len(fleet),
        "equal": fleet == alone,
        "fleet_s": round(fleet_s),
        "one_process_s": round(alone_s),
        "most_s_of_a_rank": round(max(each["s"] for each in told), 2),
        "peak_MB": max(each["peak_MB"] for each in told),
        "open_files": max(each["files"] for each in told),
    }
    print(json.dumps(outcome))
    sys.exit(fleet != alone)


if __name__ == "__main__":
    main()
