"""Loads loaders from a checkpoint, runs them, saves them into another, runs them on; torch.distributed.checkpoint.

In:  arguments JOB and FOLDER. JOB: {"load": path or null, "save": path or null, "loaders": {key: {"dataset", "loader",
     "stateful": whether the loader object itself is given to the checkpoint; else its
     state_dict is saved and `load_checkpoint` reads it,
     "before": batches before the save, "after": batches after it, null for all that are left of the pass}}}.
Out: FOLDER/rank0.pickle, ...: {key: {"begin", "middle": global packs, "before", "after": arrays, "digests": [2]}}, and
     under "model" what the weights were before the save.
"""

import faulthandler
import json
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # what FSDP imports, once for all ranks
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from cases import _stack, _take
from support.arguments import packed_dataset
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import streampack


def parts(loaders: dict[str, Any], job: dict[str, Any], model: torch.nn.Module) -> dict[str, Any]:
    """What is saved or loaded: nested, as trainers have it."""
    states: dict[str, Any] = {"model": model.state_dict(), "data": {}}
    for key, loader in loaders.items():
        if job["loaders"][key]["stateful"]:
            states[key] = loader
        else:
            states["data"][key] = {"loader": loader.state_dict()}
    return states


def main() -> None:
    faulthandler.dump_traceback_later(60, repeat=True)
    dist.init_process_group("gloo")
    job = json.loads(Path(sys.argv[1]).read_text())
    loaders = {
        key: streampack.PackedDataLoader(packed_dataset(**given["dataset"]), **given["loader"])
        for key, given in job["loaders"].items()
    }
    model = torch.nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.fill_(1.0)
    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    if job["load"]:
        states = parts(loaders, job, model)
        del states["data"]
        dcp.load(states, checkpoint_id=job["load"])
        model.load_state_dict(states["model"])
        for key, loader in loaders.items():
            if not job["loaders"][key]["stateful"]:
                loader.load_checkpoint(job["load"], key=f"data.{key}.loader")
    outcome: dict[str, Any] = {"model": model.weight.full_tensor().tolist()}
    for key, loader in loaders.items():
        begin = loader.state_dict()["global_pack"]
        batches = list(_take(loader, job["loaders"][key]["before"]))
        outcome[key] = {"begin": begin, "before": _stack(batches), "digests": [loader.digest()]}
        outcome[key]["middle"] = loader.state_dict()["global_pack"]
    if job["save"]:
        with torch.no_grad():
            model.weight.mul_(2.0)
        dcp.async_save(parts(loaders, job, model), checkpoint_id=job["save"]).result()
    for key, loader in loaders.items():
        batches = list(_take(loader, job["loaders"][key]["after"]))
        outcome[key]["after"] = _stack(batches)
        outcome[key]["digests"].append(loader.digest())
        outcome[key]["counts"] = loader.stats()
        loader.close()
    dist.barrier()
    dist.destroy_process_group()
    (Path(sys.argv[2]) / f"rank{os.environ['RANK']}.pickle").write_bytes(pickle.dumps(outcome))


if __name__ == "__main__":
    main()
