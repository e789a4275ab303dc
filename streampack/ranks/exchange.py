"""The small exchanges between the ranks of a job: a few integers or a few kilobytes, over gloo, in the main process.

In:    a topology; from each rank a number or a plain value.
Out:   the values of all ranks, those of rank 0, or the highest or lowest number.
Never: a collective on one of the trainer's groups: there the trainer's own collectives could come in another order.

    RankExchanges    what one loader exchanges, and with whom; the loader owns it
      Exchange       between some ranks, for one purpose
        ProcessGroups    the gloo groups of this process; all loaders share them
"""

import hashlib
from collections import deque
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
import torch
import torch.distributed as dist

from streampack.errors import ConfigError, TopologyError
from streampack.metrics import clock
from streampack.ranks.topology import Topology, has_process_group
from streampack.ranks.torch_private import new_gloo_group

_T = TypeVar("_T")
_N = TypeVar("_N", int, float)


class RankExchanges:
    """The exchanges of one loader with other ranks; all ranks of an exchange connect it when they first ask for it.

    Exchanges for different purposes are independent of each other: ranks may begin them in any order.
    """

    def __init__(self, topology: Topology, process_group: dist.ProcessGroup | None) -> None:
        """`process_group`: the data-parallel ranks; None takes them from the topology."""
        self.topology = topology
        self._process_group = process_group
        self._exchanges: dict[str, Exchange] = {}

    @property
    def is_alone(self) -> bool:
        """Whether this loader has nobody to exchange anything with, not even ranks that get the same packs."""
        topology = self.topology
        return topology.size == 1 and self._process_group is None and len(topology.everyone or ()) <= 1

    @property
    def are_unknown(self) -> bool:
        """Whether there are other data-parallel ranks, given by hand and without a group to reach them through."""
        return self.topology.by_hand and self.topology.size > 1 and self._process_group is None

    def check_known(self, argument: str) -> None:
        """Raise `ConfigError` where an argument needs ranks that, as far as is known now, cannot be reached."""
        if self.are_unknown:
            raise ConfigError(
                f"{argument} needs to reach the other ranks, which is impossible with dp_rank and dp_size alone: give "
                "process_group too, or device_mesh instead of dp_rank and dp_size"
            )

    def join(self) -> Topology:
        """The topology, with the ranks that can be reached by now; see `Topology.joined`."""
        self.topology = self.topology.joined()
        return self.topology

    def data_parallel(self) -> "Exchange":
        """Between the data-parallel ranks, for the start and the end of a pass."""
        return self._between_data_parallel_ranks("pass")

    def states(self) -> "Exchange":
        """Between the data-parallel ranks, for their states."""
        return self._between_data_parallel_ranks("state")

    def sums(self, numbers: Sequence[_N], what: str) -> list[_N]:
        """Each number added up over the data-parallel ranks; a collective.

        Raises:
            ConfigError: the others cannot be reached; it names `what`.
        """
        if self.join().size == 1:
            return list(numbers)
        self.check_known(what)
        return [sum(each) for each in zip(*self._between_data_parallel_ranks("sums").all_gather(numbers), strict=True)]

    def everyone(self) -> "Exchange":
        """Between all ranks of the mesh, those with the same packs too; for comparing them."""
        ranks = self.topology.everyone
        return self._connect("verify", self._ranks_of_group() if ranks is None else ranks)

    def _between_data_parallel_ranks(self, purpose: str) -> "Exchange":
        topology = self.topology
        ranks = topology.peers if self._process_group is None else self._ranks_of_group()
        if ranks is not None and len(ranks) != topology.size:
            raise TopologyError(
                f"process_group has {len(ranks)} ranks, the loader {topology.size} data-parallel ones: "
                "pass the group of the data-parallel ranks"
            )
        return self._connect(purpose, ranks)

    def _ranks_of_group(self) -> tuple[int, ...] | None:
        return None if self._process_group is None else tuple(dist.get_process_group_ranks(self._process_group))

    def _connect(self, purpose: str, ranks: tuple[int, ...] | None) -> "Exchange":
        if ranks is None or not has_process_group():
            raise TopologyError(
                f"this loader does not know how to reach the others of {self.topology.size} ranks: make it after "
                "torch.distributed.init_process_group, without dp_rank and dp_size or with process_group too"
            )
        exchange = self._exchanges.get(purpose)
        if exchange is None or exchange.is_out_of_step:
            exchange = self._exchanges[purpose] = Exchange(PROCESS_GROUPS.group_of(ranks, purpose))
        return exchange


class Exchange:
    """An exchange between some ranks, for one purpose. All of them must make the same calls in the same order."""

    def __init__(self, group: "Group") -> None:
        self._group = group

    @property
    def rank(self) -> int:
        """The rank of this process among all ranks of the job."""
        return dist.get_rank()

    @property
    def is_out_of_step(self) -> bool:
        """Whether the ranks have found that their calls do not meet; then only another exchange is of use."""
        return self._group.is_out_of_step

    def all_gather_ints(self, numbers: Sequence[int]) -> list[list[int]]:
        """The numbers of every rank, in one exchange; each rank gives equally many that fit int64."""
        mine = torch.tensor(numbers, dtype=torch.int64)
        boxes = [torch.zeros_like(mine) for _ in range(self._group.size)]
        clock.waited(self._group.all_gather(boxes, mine).wait)
        return [box.tolist() for box in boxes]

    def broadcast(self, value: _T) -> _T:
        """Rank 0's value, on every rank. Values are what MessagePack knows; tuples come back as lists."""
        mine = _encode(value) if self._group.rank == 0 else torch.zeros(0, dtype=torch.uint8)
        size = torch.tensor([len(mine)])
        clock.waited(self._group.broadcast(size).wait)
        box = mine if len(mine) else torch.zeros(int(size), dtype=torch.uint8)
        clock.waited(self._group.broadcast(box).wait)
        received: _T = _decode(box)
        return received

    def all_gather(self, value: _T) -> list[_T]:
        """Every rank's value, by rank, on every rank; see `broadcast` for what values may be."""
        mine = _encode(value)
        sizes = [size for [size] in self.all_gather_ints([len(mine)])]
        boxes = [torch.zeros(max(sizes), dtype=torch.uint8) for _ in sizes]
        padded = torch.nn.functional.pad(mine, (0, max(sizes) - len(mine)))
        clock.waited(self._group.all_gather(boxes, padded).wait)
        return [_decode(box[:size]) for box, size in zip(boxes, sizes, strict=True)]

    def start_agreeing(self, number: int, same: Sequence[int], *, highest: bool) -> "Agreement":
        """Begin to find the highest (or lowest) of the ranks' numbers; does not wait.

        Args:
            number: this rank's; it fits int64.
            same: what must be equal on all ranks, or they are not agreeing on the same thing; each from 0 to below
                2**63 / ranks.
            highest: whether the highest number counts, else the lowest.
        """
        rank, size = self._group.rank, self._group.size
        # The reduced numbers tell the highest and the lowest of each, and a rank that has it.
        marked = [value * size + rank for value in same]
        tensor = torch.tensor([number, *marked, *(-each for each in marked)], dtype=torch.int64)
        work = self._group.all_reduce(tensor, dist.ReduceOp.MAX if highest else dist.ReduceOp.MIN)
        return Agreement(tensor, work, self._group)


class NotSame(NamedTuple):
    """A value that is not equal on all ranks: two of the ranks that differ, and what they have."""

    which: int
    """The index of the value in `same`."""
    ranks: tuple[int, int]
    values: tuple[int, int]


class Agreement:
    """A number that the ranks are agreeing on."""

    def __init__(self, tensor: torch.Tensor, work: dist.Work, group: "Group") -> None:
        self._tensor = tensor
        self._work = work
        self._group = group

    def wait(self) -> int | NotSame:
        """The number, when all ranks have given theirs, or the first value that should be equal on all and is not.

        In the latter case the ranks' collectives no longer meet in this group, so the next exchange gets another one.

        Raises:
            RuntimeError: as torch does, where a connection breaks or time is up.
        """
        clock.waited(self._work.wait)
        number, *rest = self._tensor.tolist()
        half = len(rest) // 2
        for index, (one, other) in enumerate(zip(rest[:half], rest[half:], strict=True)):
            (value, rank), (other_value, other_rank) = divmod(one, self._group.size), divmod(-other, self._group.size)
            if value != other_value:
                self._group.is_out_of_step = True
                return NotSame(index, (rank, other_rank), (value, other_value))
        return int(number)


def _encode(value: object) -> torch.Tensor:
    return torch.frombuffer(bytearray(msgspec.msgpack.encode(value)), dtype=torch.uint8)


def _decode(box: torch.Tensor) -> Any:
    return msgspec.msgpack.decode(box.numpy().tobytes())


class Group:
    """A gloo group with the collectives that are used, and the last of these collectives.

    The last 64 collectives are kept alive: the thread that frees a tensor last needs a Python thread state, and gloo's
    threads must not be the ones to do so. If a process forks its workers while another thread creates its thread state,
    the workers inherit the interpreter's lock in its locked state and wait for it for ever, before their first line
    (Python 3.11).
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self._recent: deque[dist.Work] = deque(maxlen=64)
        self.is_out_of_step = False
        self.rank: Final[int] = group.rank()
        self.size: Final[int] = group.size()

    def all_gather(self, boxes: list[torch.Tensor], mine: torch.Tensor) -> dist.Work:
        return self._hold(self._group.allgather([boxes], [mine]))

    def broadcast(self, box: torch.Tensor) -> dist.Work:
        return self._hold(self._group.broadcast(box, 0))

    def all_reduce(self, tensor: torch.Tensor, op: Any) -> dist.Work:
        return self._hold(self._group.allreduce(tensor, op))

    def _hold(self, work: dist.Work) -> dist.Work:
        self._recent.append(work)
        return work


class ProcessGroups:
    """The gloo groups of this process, by purpose and ranks; each is made on first use and kept until the process ends.

    They belong to the process and not to a loader:

    * A group's name must be the same on all its ranks without asking them, so it counts how often torch.distributed was
      initialized or all ranks found that they were out of step, and not the loaders, of which a rank may have made more
      than another.
    * A job that makes many loaders keeps the same connections.
    * The destructor of a group, and of a collective that gloo's threads may still hold, must not run in a forked worker
      or right before a fork: nothing is ever taken out.

    `torch.distributed.new_group` would not do: it must be called on every rank of the job, or names a group by how many
    groups the process has, and ranks that differ in that number would wait for each other for ever.
    """

    def __init__(self) -> None:
        self._groups: dict[tuple[str, tuple[int, ...]], list[tuple[dist.ProcessGroup, Group]]] = {}
        """(torch's default group of that time, ours); only the last one is in use."""

    def group_of(self, ranks: tuple[int, ...], purpose: str) -> Group:
        """The group of these global ranks for one purpose; a collective the first time."""
        world = dist.group.WORLD
        assert world is not None, "there are no other ranks without torch.distributed"
        made = self._groups.setdefault((purpose, ranks), [])
        if not made or made[-1][0] is not world or made[-1][1].is_out_of_step:
            name = f"streampack/{purpose}/{'-'.join(map(str, ranks))}/{len(made)}"
            name = hashlib.blake2b(name.encode(), digest_size=16).hexdigest()  # 4,096 ranks would make a long one
            group = new_gloo_group(name, rank=ranks.index(dist.get_rank()), size=len(ranks))
            made.append((world, Group(group)))
        return made[-1][1]


PROCESS_GROUPS: Final = ProcessGroups()
