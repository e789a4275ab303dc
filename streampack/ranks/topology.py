"""The data-parallel rank of this process, how many data-parallel ranks there are, and which processes they are.

In:    arguments, a device mesh, `torch.distributed` or torchrun's environment, in this order.
Out:   a `Topology`.
Never: a call in a worker. A spawned worker sees neither the process group nor the mesh, a forked one must not use them;
       so ranks are resolved in the main process and passed to the workers.
"""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch.distributed as dist

from streampack.errors import TopologyError, as_integer

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

_DIVIDE_THE_DATA = (
    *("dp", "dp_replicate", "dp_shard", "data", "data_parallel"),
    *("ddp", "replicate", "shard", "batch"),
)
"""Names of a mesh's dimensions whose ranks have different packs. "batch" is torchtitan's dp_replicate x dp_shard."""
_SHARE_THE_DATA = (
    *("tp", "cp", "pp", "sp", "mp", "tensor", "context", "pipeline", "sequence", "model"),
    *("tensor_parallel", "context_parallel", "pipeline_parallel", "sequence_parallel", "model_parallel"),
)
"""Names of dimensions whose ranks have the same packs. Not "ep": expert-parallel ranks do the one or the other."""
_SHARDED = ("fsdp", "hsdp")
"""Names of dimensions along which a model is sharded: over data-parallel ranks, or, as torchtitan's "fsdp", over
dp_shard x cp, so that some of them have the same packs. Which of the two it is cannot be seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """A data-parallel rank, how many there are, and, where that is known, their global ranks."""

    rank: int = 0
    size: int = 1
    by_hand: bool = False
    """Whether rank and size were given as numbers; then there is no process group to ask."""
    peers: tuple[int, ...] | None = None
    """Global ranks of the data-parallel ranks, in their order; None: torch.distributed was not asked."""
    everyone: tuple[int, ...] | None = None
    """Global ranks of the whole mesh (without one, of the job), those that get the same packs as another included."""

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise TopologyError(f"dp_rank={self.rank} is not in 0..{self.size - 1} (dp_size={self.size})")

    def joined(self) -> "Topology":
        """The same with `peers`, if it came from torchrun's environment and torch.distributed has begun since.

        Raises:
            TopologyError: torch.distributed says another rank or size.
        """
        if self.by_hand or self.peers is not None or not has_process_group():
            return self
        now = resolve()
        if (now.rank, now.size) != (self.rank, self.size):
            raise TopologyError(
                f"the loader was made as rank {self.rank} of {self.size}, and torch.distributed now says rank "
                f"{now.rank} of {now.size}: make it after init_process_group, or give dp_rank and dp_size"
            )
        return now


def resolve(
    *, dp_rank: int | None = None, dp_size: int | None = None, device_mesh: "DeviceMesh | None" = None
) -> Topology:
    """The topology from arguments, else a mesh, else torch.distributed, else torchrun's environment, else 0 of 1.

    Raises:
        TopologyError: only one of `dp_rank` and `dp_size`, both and a mesh, or a mesh that does not tell which of its
            ranks have different packs.
        ConfigError: `dp_rank` or `dp_size` is not a whole number.
    """
    if (dp_rank is None) != (dp_size is None):
        raise TopologyError(f"dp_rank={dp_rank} and dp_size={dp_size}: give both or neither")
    if dp_rank is not None and dp_size is not None:
        if device_mesh is not None:
            raise TopologyError("give dp_rank and dp_size, or device_mesh, not both")
        return Topology(rank=as_integer(dp_rank, "dp_rank"), size=as_integer(dp_size, "dp_size"), by_hand=True)
    if device_mesh is not None:
        return _from_mesh(device_mesh)
    if dist.is_available() and dist.is_initialized():
        size = dist.get_world_size()
        return Topology(rank=dist.get_rank(), size=size, peers=tuple(range(size)), everyone=tuple(range(size)))
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return Topology(rank=int(os.environ["RANK"]), size=int(os.environ["WORLD_SIZE"]))
    return Topology()


def _from_mesh(mesh: "DeviceMesh") -> Topology:
    dims = _data_parallel_dims(mesh)
    coordinate = mesh.get_coordinate()
    if coordinate is None:
        raise TopologyError("this process is not part of the device mesh")
    index = tuple(slice(None) if dim in dims else coordinate[dim] for dim in range(mesh.ndim))
    peers = tuple(int(rank) for rank in mesh.mesh[index].flatten().tolist())
    everyone = tuple(sorted(int(rank) for rank in mesh.mesh.flatten().tolist()))
    if not dims and len(everyone) < dist.get_world_size():
        raise TopologyError(
            f"the device mesh {mesh.mesh_dim_names} has {len(everyone)} of the job's {dist.get_world_size()} ranks and "
            "no data-parallel dimension, so the other ranks would have the same packs: pass the mesh that has the "
            "data-parallel dimensions, too"
        )
    return Topology(rank=peers.index(dist.get_rank()), size=len(peers), peers=peers, everyone=everyone)


def _data_parallel_dims(mesh: "DeviceMesh") -> list[int]:
    """The dimensions whose ranks have different packs; a dimension of size 1 may have any name.

    Raises:
        TopologyError: it is not known of each dimension whether its ranks have different packs or the same.
    """
    names: tuple[str | None, ...] = mesh.mesh_dim_names or (None,) * mesh.ndim
    known = (*_DIVIDE_THE_DATA, *_SHARE_THE_DATA)
    unknown = [name for name, size in zip(names, mesh.mesh.shape, strict=True) if name not in known and size > 1]
    if unknown:
        what = (
            "has no names for its dimensions"
            if mesh.mesh_dim_names is None
            else f"{names} has {', '.join(map(repr, unknown))}"
        )
        sharded = [name for name in unknown if name in _SHARDED]
        with_cp = (
            f"{' and '.join(map(repr, sharded))} may hold context-parallel ranks, too, which have the same packs: "
            "where there are none, name the dimension 'dp_shard'. "
            if sharded
            else ""
        )
        raise TopologyError(
            f"the device mesh {what}, so it is not known which of its ranks have different packs. Understood are "
            f"{', '.join(_DIVIDE_THE_DATA)} (different packs) and {', '.join(_SHARE_THE_DATA)} (the same packs). "
            f"{with_cp}Pass the part of the mesh with these names, such as device_mesh=mesh['dp']; give dp_rank, "
            "dp_size and process_group; or, if all ranks of the job are data-parallel, leave device_mesh out."
        )
    return [dim for dim, name in enumerate(names) if name in _DIVIDE_THE_DATA]


def has_process_group() -> bool:
    """Whether torch.distributed is initialized in this process."""
    return bool(dist.is_available() and dist.is_initialized())


def may_be_distributed() -> bool:
    """Whether other ranks may exist, now or once torch.distributed is initialized."""
    return (has_process_group() and dist.get_world_size() > 1) or int(os.environ.get("WORLD_SIZE", "1")) > 1
