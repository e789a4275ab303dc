"""Two ranks under Accelerate: a registered loader is saved and goes on; one that saves its own lanes only is refused.

In:  arguments FOLDER (of shards) and PLACE. Out: PLACE/rank0.json, ...: what was handed out, by global numbers; under
     "wrapped" what became of other loaders that Accelerate prepared.
"""

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import accelerate
import datasets  # noqa: F401 - with the next two: what `prepare` imports, once for all ranks
import torch
import torch._dynamo
import torch.distributed as dist
import torch.distributed.tensor
from accelerate.utils import DataLoaderConfiguration
from torch.utils.data import DataLoader

import streampack
from streampack.errors import TopologyError
from streampack.integrations import register_for_checkpointing
from streampack.testing import ByteTokenizer


def take(loader: Any, count: int) -> list[list[int]]:
    return [batch["pack_numbers"].tolist() for batch in itertools.islice(loader, count)]


def packs_of(loader: Any) -> list[list[int]]:
    return [row for batch in loader for row in batch["tokens"].tolist()]


def prepared_loaders(folder: str) -> dict[str, Any]:
    """What `prepare` makes of a PackedDataLoader, and of a DataLoader over a PackedDataset."""
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
    return results


def main(folder: str, place: Path) -> None:
    accelerator = accelerate.Accelerator(cpu=True)

    def loader(**options: Any) -> streampack.PackedDataLoader:
        dataset = streampack.PackedDataset(f"{folder}/*.tar", ByteTokenizer(), 32, num_lanes=4)
        options |= {"num_workers": 1, "multiprocessing_context": "fork"}  # a server for each would take seconds
        return accelerator.prepare(streampack.PackedDataLoader(dataset, 2, provenance=True, **options))

    model, first = accelerator.prepare(torch.nn.Linear(2, 2)), loader(whole_state=True)
    register_for_checkpointing(accelerator, first)
    outcome: dict[str, Any] = {"first": take(first, 3)}
    accelerator.save_state(place / "saved")
    accelerator.wait_for_everyone()  # rank 0 writes what all of them will read
    with torch.no_grad():
        before = [parameter.clone() for parameter in model.parameters()]
        for parameter in model.parameters():
            parameter.zero_()
    outcome["lost"] = take(first, 2)
    accelerator.load_state(place / "saved")
    outcome["model"] = all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))
    outcome["second"] = take(first, 2)
    accelerator.save_state(place / "saved again")
    accelerator.wait_for_everyone()
    first.close()

    accelerator._custom_objects.clear()  # as in a new process
    with loader(whole_state=True) as second:
        register_for_checkpointing(accelerator, second)
        accelerator.load_state(place / "saved again")
        outcome["third"] = take(second, 2)

    accelerator._custom_objects.clear()
    with loader() as alone:
        try:
            register_for_checkpointing(accelerator, alone)
        except streampack.StreampackError as error:
            outcome["refused"] = f"{type(error).__name__}: {error}"
        accelerator.register_for_checkpointing(alone)
        take(alone, 1)
        try:
            accelerator.save_state(place / "never")
        except streampack.StreampackError as error:
            outcome["refused without the adapter"] = f"{type(error).__name__}: {error}"

    accelerator.dataloader_config.use_stateful_dataloader = True
    accelerator.dataloader_config.dispatch_batches = False
    for workers in (0, 1):
        dataset = streampack.PackedDataset(f"{folder}/*.tar", ByteTokenizer(), 32, num_lanes=4).for_rank(0, 1)
        wrapped = accelerator.prepare(DataLoader(dataset, batch_size=2, num_workers=workers))
        try:
            next(iter(wrapped))
        except streampack.StreampackError as error:
            outcome[f"stateful, {workers} workers"] = f"{type(error).__name__}: {error}"
    outcome["wrapped"] = prepared_loaders(folder)
    (place / f"rank{accelerator.process_index}.json").write_text(json.dumps(outcome))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], Path(sys.argv[2]))
