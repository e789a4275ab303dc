"""One job of a run: a sharded model and a loader in one distributed checkpoint, as PyTorch's documentation does it.

In:  arguments JOB and FOLDER. JOB: {"mesh": {name: size}, "load", "save": path or null, "async": whether the save goes
     on beside the training, "dataset", "loader", "global_batch", "before": steps before the save, "after": behind it}.
Out: FOLDER/rank0.pickle, ...: {"steps": {step: {global pack: digest of what was in it}}, "loaded", "saved": digests of
     the whole model and optimizer, "digests": the loader's before and behind the last step, "step": where it began}.
"""

import faulthandler
import hashlib
import json
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from support.arguments import packed_dataset
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.checkpoint.stateful import Stateful
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import streampack
from streampack.testing import ByteTokenizer


class AppState(Stateful):
    """All that a run has: model, optimizer, data, and how many steps it has made."""

    def __init__(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, loader: streampack.PackedDataLoader
    ) -> None:
        self.model, self.optimizer, self.loader = model, optimizer, loader
        self.step = 0

    def state_dict(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer, "loader": self.loader.state_dict(), "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        set_state_dict(self.model, self.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        self.loader.load_state_dict(state["loader"])
        self.step = state["step"]


def digest(app: AppState) -> str:
    """Of the whole model and its optimizer, wherever the parts are; a collective."""
    whole = get_state_dict(app.model, app.optimizer, options=StateDictOptions(full_state_dict=True))
    found = hashlib.sha256()

    def add(value: Any, name: str) -> None:
        if isinstance(value, dict):
            for key in sorted(value, key=str):
                add(value[key], f"{name}.{key}")
        elif isinstance(value, torch.Tensor):
            found.update(name.encode() + value.detach().numpy().tobytes())

    add(whole[0], "model")
    add(whole[1]["state"], "optimizer")
    return found.hexdigest()


def train(app: AppState, steps: int, seen: dict[int, dict[int, str]]) -> None:
    iterator = iter(app.loader)
    for _ in range(steps):
        batch = next(iterator)
        seen[app.step] = {}
        for row, number in enumerate(batch["pack_numbers"].tolist()):
            content = [batch[key][row].numpy().tobytes() for key in ("tokens", "labels", "position_ids", "segment_ids")]
            seen[app.step][number] = hashlib.sha256(b"".join(content)).hexdigest()
        logits = app.model(batch["tokens"])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
        loss.backward()
        app.optimizer.step()
        app.optimizer.zero_grad()
        app.step += 1


def main() -> None:
    faulthandler.dump_traceback_later(60, repeat=True)
    dist.init_process_group("gloo")
    job = json.loads(Path(sys.argv[1]).read_text())
    mesh = init_device_mesh("cpu", tuple(job["mesh"].values()), mesh_dim_names=tuple(job["mesh"]))
    names = tuple(name for name in job["mesh"] if name.startswith("dp"))
    torch.manual_seed(3)  # all ranks must begin alike; in a later job the checkpoint overwrites it all
    model = torch.nn.Sequential(torch.nn.Embedding(ByteTokenizer().vocab_size, 12), torch.nn.Linear(12, 20))
    model.append(torch.nn.Linear(20, ByteTokenizer().vocab_size))
    fully_shard(model[1], mesh=mesh[names])
    fully_shard(model, mesh=mesh[names])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    dataset = packed_dataset(**job["dataset"])
    batch_size = job["global_batch"] // mesh[names].size()
    loader = streampack.PackedDataLoader(
        dataset, batch_size, device_mesh=mesh, provenance=True, verify_every=2, **job["loader"]
    )
    app = AppState(model, optimizer, loader)
    outcome: dict[str, Any] = {"steps": {}}
    if job["load"]:
        dcp.load({"app": app}, checkpoint_id=job["load"])
        outcome["loaded"] = digest(app)
    outcome["step"] = app.step
    train(app, job["before"], outcome["steps"])
    if job["save"]:
        outcome["saved"] = digest(app)
        if job["async"]:
            # A group of its own: the collectives of the save must not come in between those of the training.
            group = dist.new_group(backend="gloo")
            future = dcp.async_save({"app": app}, checkpoint_id=job["save"], process_group=group)
            train(app, job["after"], outcome["steps"])
            future.result(timeout=60)
        else:
            dcp.save({"app": app}, checkpoint_id=job["save"])
            train(app, job["after"], outcome["steps"])
    outcome["digest"] = loader.digest()
    loader.close()
    dist.barrier()
    dist.destroy_process_group()
    (Path(sys.argv[2]) / f"rank{os.environ['RANK']}.pickle").write_bytes(pickle.dumps(outcome))


if __name__ == "__main__":
    main()
