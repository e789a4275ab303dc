"""A training job in which a worker of the last rank meets a shard that is cut short; arguments: the shards."""

import faulthandler
import sys

import torch.distributed as dist

import streampack
from streampack.testing import ByteTokenizer


def main() -> None:
    faulthandler.dump_traceback_later(25, repeat=True)
    dist.init_process_group("gloo")
    dataset = streampack.PackedDataset(
        sys.argv[1:], ByteTokenizer(), seq_len=32, num_lanes=4, epochs=1, shuffle=False
    )
    for _ in streampack.PackedDataLoader(dataset, 2, num_workers=1):
        pass
    print("no error on this rank", flush=True)
    dist.barrier()


if __name__ == "__main__":
    main()
