"""Evaluates twice in the middle of a training, on any number of ranks.

In:  arguments SHARDS, FOLDER, WORKERS.
Out: FOLDER/rank0.json, ...: the packs of each evaluation by number, its batches, and the digest of the training.
"""

import faulthandler
import json
import sys
from pathlib import Path

import torch.distributed as dist

from streampack import HoldOut, PackedDataLoader, PackedDataset
from streampack.testing import ByteTokenizer


def main() -> None:
    faulthandler.dump_traceback_later(60, repeat=True)
    dist.init_process_group("gloo")
    shards, folder, workers = sys.argv[1:]
    train = PackedDataset(shards, ByteTokenizer(), 64, num_lanes=6, hold_out=HoldOut("train", 0.3))
    val = PackedDataset(shards, ByteTokenizer(), 64, hold_out=HoldOut("val", 0.3))
    evaluations = []
    with (
        PackedDataLoader(train, 1, num_workers=0) as training,
        PackedDataLoader(val, 3, num_workers=int(workers), provenance=True) as validation,
    ):
        for step, _ in zip(range(4), training, strict=False):
            if step % 2:
                batches = list(validation)
                packs = {
                    number: tokens
                    for batch in batches
                    for number, tokens in zip(batch["pack_numbers"].tolist(), batch["tokens"].tolist(), strict=True)
                    if number >= 0
                }
                evaluations.append({"packs": packs, "batches": len(batches)})
    Path(folder, f"rank{dist.get_rank()}.json").write_text(json.dumps(evaluations))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
