"""A rank of a run that goes on for a given time, and watches the memory and the open files of itself and its workers.

In:  arguments JOB and FOLDER. JOB: {"dataset", "retry", "loader", "seconds", "pause_s": after each batch}.
Out: FOLDER/rank0.json, ...: {"batches", "digest", "stats", "curve": [[seconds, {pid: [MB of its own, open files]}]]}.
"""

import faulthandler
import json
import os
import sys
import time
from pathlib import Path

import torch.distributed as dist
from support.arguments import packed_dataset
from support.workers import worker_pids

import streampack
from streampack.cli.bench.clocks import own_memory_mb


def files(pid: int) -> int:
    """How many a process has open."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def main() -> None:
    dist.init_process_group("gloo")
    job, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    faulthandler.dump_traceback_later(job["seconds"] + 60, exit=True)
    dataset = packed_dataset(retry=job["retry"], **job["dataset"])
    curve: list[tuple[float, dict[int, tuple[float, int]]]] = []
    with streampack.PackedDataLoader(dataset, **job["loader"]) as loader:
        began = time.monotonic()
        batches = 0
        for _ in loader:
            batches += 1
            time.sleep(job["pause_s"])
            elapsed = time.monotonic() - began
            if elapsed >= len(curve):
                pids = [os.getpid(), *worker_pids(loader)]
                curve.append((elapsed, {pid: (own_memory_mb(pid), files(pid)) for pid in pids}))
            if elapsed >= job["seconds"]:
                break
        found = {"batches": batches, "digest": loader.digest(), "stats": loader.stats(), "curve": curve}
    (folder / f"rank{os.environ['RANK']}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
