"""Makes loaders on ranks that have just spoken with each other, again and again: each forks its workers at once.

In: arguments SHARDS (a folder), OUT (a folder) and LOADERS (how many).
Out: OUT/rank0.txt, ...: how many loaders gave their first batch.
"""

import sys
from pathlib import Path

import torch.distributed as dist

import streampack
from streampack.testing import ByteTokenizer


def main() -> None:
    dist.init_process_group("gloo")
    dataset = streampack.PackedDataset(sys.argv[1], ByteTokenizer(), 32, num_lanes=4)
    begun = 0
    for _ in range(int(sys.argv[3])):
        with streampack.PackedDataLoader(dataset, num_workers=2) as loader:
            begun += next(iter(loader))["tokens"].shape == (1, 32)
    (Path(sys.argv[2]) / f"rank{dist.get_rank()}.txt").write_text(str(begun))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
