"""Plain PyTorch: FSDP2 and torch.distributed.checkpoint.

    torchrun --standalone --nproc-per-node 2 -m streampack.examples.pytorch_fsdp2 RUN
    python -m streampack.examples.pytorch_fsdp2 RUN

In:  the folder RUN. Out: a line a step, and in RUN a checkpoint every few steps: model, optimizer and loader in one.
Killed and started again, also with another number of processes, it continues from the newest checkpoint with the same
global batches.
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed import HashStore  # type: ignore[attr-defined]  # torch's types leave it out
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from streampack import PackedDataLoader, PackedDataset
from streampack.examples.devil import SEQ_LEN, SHARDS, TOKENIZER, VOCAB_SIZE, digest_of, print_step
from streampack.examples.running import backend_for, local_device, on_device, print_finished
from streampack.examples.train import Transformer

GLOBAL_BATCH = 8
"""Packs of a step, over all ranks: held fixed, the batches do not depend on how many there are."""
NUM_LANES = 24
"""1, 2, 3, 4, 6, 8, 12 or 24 ranks can divide it."""


class TrainState:
    """The model's part of a checkpoint. It is `Stateful`: dcp asks it for its state, and hands it what was loaded."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.optimizer = model, optimizer
        self.step = 0

    def state_dict(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"step": self.step, "model": model, "optimizer": optimizer}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        set_state_dict(
            self.model, self.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
        )


def save(run: Path, state: TrainState, loader: PackedDataLoader) -> None:
    """A checkpoint gets its name when all ranks have written: a kill in the middle leaves none that is half."""
    unfinished = run / f"unfinished-{state.step:06d}"
    # The loader's state has tables of this rank's lanes, sharded as the parameters are. Equal values of all ranks
    # ("step", ...) are stored once.
    parts = {"train": state, "loader": loader.state_dict()}
    dcp.save(parts, checkpoint_id=unfinished)  # type: ignore[attr-defined]  # as above
    if dist.get_rank() == 0:
        unfinished.rename(run / f"step-{state.step:06d}")


def load_newest(run: Path, state: TrainState, loader: PackedDataLoader) -> None:
    """Continue from the newest checkpoint, of any number of ranks, if there is one."""
    if checkpoints := sorted(run.glob("step-*")):
        dcp.load({"train": state}, checkpoint_id=checkpoints[-1])  # type: ignore[attr-defined]  # as above
        loader.load_checkpoint(checkpoints[-1])


def total(value: Tensor) -> Tensor:
    """The sum over all ranks."""
    dist.all_reduce(value)
    return value


def train(run: Path, device: torch.device, *, num_steps: int, checkpoint_every: int, num_workers: int) -> None:
    """Train up to `num_steps` on this rank; needs a process group."""
    torch.manual_seed(0)  # the same weights on every rank, before they are sharded
    model = Transformer(VOCAB_SIZE, SEQ_LEN).to(device)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

    # The loader takes its rank from torch.distributed; with tensor or context parallelism, give it `device_mesh=`.
    dataset = PackedDataset(SHARDS, TOKENIZER, SEQ_LEN, num_lanes=NUM_LANES)
    with PackedDataLoader(dataset, GLOBAL_BATCH // dist.get_world_size(), num_workers=num_workers) as loader:
        state = TrainState(model, optimizer)
        load_newest(run, state, loader)
        if state.step >= num_steps and dist.get_rank() == 0:
            print_finished(run, state.step, f"--steps {state.step + checkpoint_every}")
        # The range comes first, so that no batch is taken after the last step.
        for step, taken in zip(range(state.step + 1, num_steps + 1), loader):
            batch = on_device(taken, device)
            num_targets = total(batch["num_targets"].sum())
            logits = model(batch)
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), reduction="sum")
            # Ranks hold different numbers of targets, so divide by all of them; FSDP averages gradients over the
            # ranks, so multiply by those: then each target weighs the same on any number of ranks.
            (loss / num_targets * dist.get_world_size()).backward()  # type: ignore[no-untyped-call]  # torch has no types there
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            state.step = step

            mean_loss = total(loss.detach()) / num_targets
            digest = total(torch.tensor(digest_of(taken["tokens"], taken["labels"]), device=device))
            if dist.get_rank() == 0:
                print_step(step, mean_loss.item(), int(digest))
            if step % checkpoint_every == 0 or step == num_steps:
                save(run, state, loader)


def main() -> None:
    """Take the arguments and join the process group that torchrun describes, or be a group of one."""
    parser = argparse.ArgumentParser(description="Train with FSDP2; the same command continues after a kill.")
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the checkpoints")
    parser.add_argument("--steps", type=int, default=20, help="steps of the whole run (default: 20)")
    parser.add_argument("--checkpoint-every", type=int, default=5, metavar="STEPS", help="(default: 5)")
    parser.add_argument("--workers", type=int, default=2, help="loader processes of each rank (default: 2)")
    options = parser.parse_args()
    device = local_device()
    if dist.is_torchelastic_launched():
        dist.init_process_group(backend_for(device))
    else:
        dist.init_process_group(backend_for(device), store=HashStore(), rank=0, world_size=1)
    try:
        options.run.mkdir(parents=True, exist_ok=True)
        if dist.get_rank() == 0:
            for unfinished in options.run.glob("unfinished-*"):
                shutil.rmtree(unfinished)
        train(
            options.run,
            device,
            num_steps=options.steps,
            checkpoint_every=options.checkpoint_every,
            num_workers=options.workers,
        )
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
