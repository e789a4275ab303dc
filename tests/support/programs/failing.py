"""A training job that does not catch the error of its loader; argument: the dataset's arguments as JSON."""

import faulthandler
import json
import sys
from pathlib import Path

import torch.distributed as dist
from support.arguments import packed_dataset

import streampack


def main() -> None:
    faulthandler.dump_traceback_later(60, repeat=True)
    dist.init_process_group("gloo")
    dataset = packed_dataset(**json.loads(Path(sys.argv[1]).read_text()))
    for _ in streampack.PackedDataLoader(dataset, 2, num_workers=1):
        pass
    sys.stderr.write("no error on this rank\n")
    dist.barrier()


if __name__ == "__main__":
    main()
