"""Makes loaders and closes them, on ranks that have just spoken with each other and whose threads are busy.

In: arguments SHARDS (a folder), OUT (a folder), LOADERS (how many) and THREADS (busy ones).
Out: OUT/rank0.txt, ...: how many loaders gave their first batch, and how many open files and processes came with them.
"""

import gc
import sys
import threading
from pathlib import Path

import numpy as np
import torch.distributed as dist
from support.workers import children

import streampack
from streampack.testing import ByteTokenizer


def busy() -> None:
    while True:  # takes and gives locks: of Python, of the allocator, of a library
        np.sort(np.random.default_rng(0).random(3000))
        sys.stdout.write("")


def main() -> None:
    dist.init_process_group("gloo")
    dataset = streampack.PackedDataset(sys.argv[1], ByteTokenizer(), 32, num_lanes=4)
    for _ in range(int(sys.argv[4])):
        threading.Thread(target=busy, daemon=True).start()
    begun, files = 0, []
    for _ in range(int(sys.argv[3])):
        with streampack.PackedDataLoader(dataset, num_workers=2) as loader:
            begun += next(iter(loader))["tokens"].shape == (1, 32)
        del loader
        gc.collect()
        files.append(sum(1 for _ in Path("/proc/self/fd").iterdir()))
    more_files = files[-1] - files[0]
    (Path(sys.argv[2]) / f"rank{dist.get_rank()}.txt").write_text(f"{begun} {more_files} {len(children())}")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
