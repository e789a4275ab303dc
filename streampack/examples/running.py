"""Where an example runs: on a GPU for each process of the machine, where it has so many, else on the CPU.

Nothing in here is needed to use streampack: its batches are in pinned memory where there is a GPU, and go to the device
as any others do.
"""

import os
from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["backend_for", "has_gpus", "local_device", "on_device", "print_finished"]


def has_gpus() -> bool:
    """Whether each process that torchrun has started on this machine can have a GPU of its own."""
    return torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def local_device() -> torch.device:
    """The GPU of this process, or the CPU."""
    if not has_gpus():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def backend_for(device: torch.device) -> str:
    """What `init_process_group` is given: the state of a loader is in CPU tensors, wherever the model is."""
    return "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"


def on_device(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The batch, copied to the device while the CPU goes on."""
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}


def print_finished(run: object, steps: int, option: str) -> None:
    """What a run that has all of its steps says when it is started again.

    Args:
        run: its folder.
        steps: how many steps it has.
        option: what makes it go on, such as "--steps 40".
    """
    print(f"{run} is finished: it has {steps} steps. {option} goes on from there.", flush=True)
