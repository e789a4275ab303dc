"""Who am I: the data-parallel rank and size of this process, and the group it talks over.

The only module that asks `torch.distributed` or the environment. Ranks are resolved in the parent process and handed
on: a spawned worker sees neither the process group nor the mesh, a forked one must not use them.
"""

import hashlib
import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import torch
import torch.distributed as dist
from torch.distributed.constants import default_pg_timeout
from torch.distributed.distributed_c10d import PrefixStore, _get_default_store  # torch has no other way to its store

from streampack.errors import TopologyError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

_T = TypeVar("_T")

_DATA_PARALLEL_DIMS = ("dp", "dp_replicate", "dp_shard", "data", "data_parallel", "replicate", "shard", "fsdp", "batch")


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """A data-parallel rank, how many there are, and the global ranks that stand behind them (None: by hand)."""

    rank: int = 0
    size: int = 1
    by_hand: bool = False
    """Given as numbers: there is no process group to ask."""
    peers: tuple[int, ...] | None = None
    """Global ranks of the data-parallel peers, in data-parallel order, where torch.distributed knows them."""
    everyone: tuple[int, ...] | None = None
    """Global ranks of the whole mesh (without one, of the job): peers, and those that have the same packs as one."""

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise TopologyError(f"dp_rank={self.rank} is not in 0..{self.size - 1} (dp_size={self.size})")

    def is_alone(self, process_group: dist.ProcessGroup | None) -> bool:
        """Whether no other rank has to do with this loader."""
        return self.size == 1 and process_group is None and len(self.everyone or ()) <= 1

    def joined(self) -> "Topology":
        """The same, with the ranks that can be reached by now, where torchrun's environment told who this is."""
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
    """The topology from arguments, else a mesh, else torch.distributed, else torchrun's environment, else 0 of 1."""
    if (dp_rank is None) != (dp_size is None):
        raise TopologyError(f"dp_rank={dp_rank} and dp_size={dp_size}: give both or neither")
    if dp_rank is not None and dp_size is not None:
        if device_mesh is not None:
            raise TopologyError("give dp_rank and dp_size, or device_mesh, not both")
        return Topology(rank=dp_rank, size=dp_size, by_hand=True)
    if device_mesh is not None:
        return _from_mesh(device_mesh)
    if dist.is_available() and dist.is_initialized():
        size = dist.get_world_size()
        return Topology(rank=dist.get_rank(), size=size, peers=tuple(range(size)), everyone=tuple(range(size)))
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return Topology(rank=int(os.environ["RANK"]), size=int(os.environ["WORLD_SIZE"]))
    return Topology()


def _from_mesh(mesh: "DeviceMesh") -> Topology:
    names = mesh.mesh_dim_names
    if mesh.ndim == 1:
        dims = [0]
    elif names is None:
        raise TopologyError(f"a mesh of {mesh.ndim} dimensions without names does not tell which is data-parallel")
    else:
        dims = [index for index, name in enumerate(names) if name in _DATA_PARALLEL_DIMS]
        if not dims:
            raise TopologyError(
                f"no dimension of the device mesh {names} is data-parallel by name ({', '.join(_DATA_PARALLEL_DIMS)}): "
                "pass the sub-mesh, for example device_mesh=mesh['my_dp_dim']"
            )
    coordinate = mesh.get_coordinate()
    if coordinate is None:
        raise TopologyError("this process is not part of the device mesh")
    index = tuple(slice(None) if dim in dims else coordinate[dim] for dim in range(mesh.ndim))
    peers = tuple(int(rank) for rank in mesh.mesh[index].flatten().tolist())
    everyone = tuple(sorted(int(rank) for rank in mesh.mesh.flatten().tolist()))
    return Topology(rank=peers.index(dist.get_rank()), size=len(peers), peers=peers, everyone=everyone)


def has_process_group() -> bool:
    """Whether torch.distributed is initialized in this process."""
    return bool(dist.is_available() and dist.is_initialized())


def may_be_distributed() -> bool:
    """Whether other ranks may exist, now or once torch.distributed is initialized."""
    return (has_process_group() and dist.get_world_size() > 1) or int(os.environ.get("WORLD_SIZE", "1")) > 1


_UNREACHABLE = (
    "this loader does not know how to reach the others of {size} ranks: make it behind "
    "torch.distributed.init_process_group, without dp_rank and dp_size or with process_group too"
)


class Peers:
    """The loader's own small exchanges between ranks (the data-parallel ones), over gloo, in the main process."""

    def __init__(self, topology: Topology, process_group: dist.ProcessGroup | None, *, purpose: str = "") -> None:
        """`purpose`: exchanges of one purpose are apart from those of others, in whatever order they come."""
        ranks = topology.peers if process_group is None else dist.get_process_group_ranks(process_group)
        if ranks is None:
            raise TopologyError(_UNREACHABLE.format(size=topology.size))
        if len(ranks) != topology.size:
            raise TopologyError(
                f"process_group has {len(ranks)} ranks, the loader {topology.size} data-parallel ones: "
                "pass the group of the data-parallel ranks"
            )
        self._group = _gloo_group(tuple(ranks), purpose)

    @classmethod
    def of_all(cls, topology: Topology, process_group: dist.ProcessGroup | None, *, purpose: str) -> "Peers":
        """Between all ranks of the mesh."""
        ranks = topology.everyone
        if ranks is None and process_group is not None:
            ranks = tuple(dist.get_process_group_ranks(process_group))
        if ranks is None:
            raise TopologyError(_UNREACHABLE.format(size=topology.size))
        peers = object.__new__(cls)
        peers._group = _gloo_group(ranks, purpose)
        return peers

    @property
    def rank(self) -> int:
        """Of this process, among all of the job."""
        return dist.get_rank()

    def all_gather_ints(self, numbers: Sequence[int]) -> list[list[int]]:
        """As many int64 of every rank, in one exchange."""
        mine = torch.tensor(numbers, dtype=torch.int64)
        boxes = [torch.zeros_like(mine) for _ in range(self._group.size())]
        _keep(self._group.allgather([boxes], [mine])).wait()
        return [box.tolist() for box in boxes]

    def broadcast(self, value: _T) -> _T:
        """Rank 0's value, on every rank; values are what MessagePack knows, and tuples come back as lists."""
        mine = _encode(value) if self._group.rank() == 0 else torch.zeros(0, dtype=torch.uint8)
        size = torch.tensor([len(mine)])
        _keep(self._group.broadcast(size, 0)).wait()
        box = mine if len(mine) else torch.zeros(int(size), dtype=torch.uint8)
        _keep(self._group.broadcast(box, 0)).wait()
        told: _T = _decode(box)
        return told

    def all_gather(self, value: _T) -> list[_T]:
        """Every rank's value, by data-parallel rank, on every rank; see `broadcast` for what values may be."""
        mine = _encode(value)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self._group.size())]
        _keep(self._group.allgather([sizes], [torch.tensor([len(mine)])])).wait()
        longest = max(int(size) for size in sizes)
        boxes = [torch.zeros(longest, dtype=torch.uint8) for _ in sizes]
        _keep(self._group.allgather([boxes], [torch.nn.functional.pad(mine, (0, longest - len(mine)))])).wait()
        return [_decode(box[: int(size)]) for box, size in zip(boxes, sizes, strict=True)]

    def start_agreeing(self, number: int, *, highest: bool) -> "Agreement":
        """Begin to find the highest (or lowest) of the ranks' numbers; does not wait."""
        tensor = torch.tensor([number], dtype=torch.int64)
        op = dist.ReduceOp.MAX if highest else dist.ReduceOp.MIN
        return Agreement(tensor, _keep(self._group.allreduce(tensor, op)))


def _encode(value: object) -> torch.Tensor:
    return torch.frombuffer(bytearray(msgspec.msgpack.encode(value)), dtype=torch.uint8)


def _decode(box: torch.Tensor) -> Any:
    return msgspec.msgpack.decode(box.numpy().tobytes())


_recent: deque[dist.Work] = deque(maxlen=64)


def _keep(work: dist.Work) -> dist.Work:
    """The work, held for some while after it is done.

    Whoever lets go of a tensor last needs Python's thread state. Gloo's threads must not be the ones: a process that
    forks its workers while another thread is making itself a thread state hands the interpreter's lock on as it is,
    taken, and the worker waits for it for ever, before its first line (Python 3.11).
    """
    _recent.append(work)
    return work


_groups: dict[tuple[str, tuple[int, ...]], list[tuple[dist.ProcessGroup, dist.ProcessGroup]]] = {}
"""By purpose and global ranks: (torch's default group of then, our group). Nothing is taken out: the destructor of a
group must not run in a forked worker."""


def _gloo_group(ranks: tuple[int, ...], purpose: str = "") -> dist.ProcessGroup:
    """This process's group of these ranks, made on first use and shared by all loaders.

    It is our own: collectives of the trainer on a common group could come in another order. And it is made without
    `new_group`, which either must be called on every rank of the job, or names a group by how many groups the process
    has: then ranks that differ in that would wait for each other for ever.
    """
    world = dist.group.WORLD
    assert world is not None, "without torch.distributed there are no peers"
    made = _groups.setdefault((purpose, ranks), [])
    if not made or made[-1][0] is not world:
        name = f"streampack/{purpose}{'-'.join(map(str, ranks))}/{len(made)}"
        name = hashlib.blake2b(name.encode(), digest_size=16).hexdigest()  # 4,096 ranks would make a long one
        store = PrefixStore(name, _get_default_store())
        group = dist.ProcessGroupGloo(store, ranks.index(dist.get_rank()), len(ranks), default_pg_timeout)
        made.append((world, group))  # type: ignore[arg-type]  # torch's stubs hide that it is a ProcessGroup
    return made[-1][1]


class Agreement:
    """A number that the ranks are agreeing on."""

    def __init__(self, tensor: torch.Tensor, work: dist.Work) -> None:
        self._tensor = tensor
        self._work = work

    def wait(self) -> int:
        self._work.wait()
        return int(self._tensor.item())
