"""Two ranks under Accelerate: what `prepare` makes of a PackedDataLoader, and of a DataLoader over a PackedDataset."""

import json
import sys
from typing import Any

import accelerate
import torch
import torch.distributed as dist
from accelerate.utils import DataLoaderConfiguration
from torch.utils.data import DataLoader

import streampack
from streampack.errors import TopologyError
from streampack.testing import ByteTokenizer


def packs_of(loader: Any) -> list[list[int]]:
    return [row for batch in loader for row in batch["tokens"].tolist()]


def main(folder: str) -> None:
    results: dict[str, Any] = {}
    for dispatches in (False, True):
        config = DataLoaderConfiguration(dispatch_batches=dispatches)
        accelerator = accelerate.Accelerator(cpu=True, dataloader_config=config)
        arguments: dict[str, Any] = {"num_lanes": 2, "epochs": 1, "shuffle": False}

        with streampack.PackedDataLoader(
            streampack.PackedDataset(f"{folder}/*.tar", ByteTokenizer(), 16, **arguments), 2, num_workers=0
        ) as loader:
            prepared = accelerator.prepare(loader)
            results[f"left as it is {dispatches}"] = prepared is loader
            results[f"own {dispatches}"] = packs_of(prepared)

        for workers in (0, 1):
            dataset = streampack.PackedDataset(f"{folder}/*.tar", ByteTokenizer(), 16, **arguments)
            dataset.list_shards()
            wrapped = accelerator.prepare(DataLoader(dataset, batch_size=2, num_workers=workers))
            if dispatches and accelerator.process_index:
                continue  # the dispatcher of rank 0 fails, and this rank would wait for its batch for ever
            try:
                next(iter(wrapped))
                refused = False
            except TopologyError as error:
                refused = "deals out the packs" in str(error)
            results[f"refused {dispatches} {workers}"] = refused

        if not dispatches:
            dataset = streampack.PackedDataset(f"{folder}/*.tar", ByteTokenizer(), 16, **arguments).for_rank(0, 1)
            results["dealt by accelerate"] = packs_of(accelerator.prepare(DataLoader(dataset, batch_size=2)))
    gathered: list[Any] = [None, None]
    dist.all_gather_object(gathered, results)
    if dist.get_rank() == 0:
        sys.stdout.write(f"RESULT {json.dumps(gathered)}\n")
        sys.stdout.flush()
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1])
