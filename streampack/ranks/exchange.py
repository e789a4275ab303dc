"""The small exchanges between the ranks of a job: a few integers or a few kilobytes, over gloo, in the main process.

In:    a topology; from each rank a number or a plain value.
Out:   the values of all ranks, those of rank 0, or the highest or lowest number.
Never: a collective on one of the trainer's groups: there the trainer's own collectives could come in another order.

    RankExchanges    what one loader exchanges, and with whom; the loader owns it
      Exchange       between some ranks, for one purpose
        ProcessGroups    the groups of this process (`groups`); all loaders share them
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec
import torch
import torch.distributed as dist

from streampack.errors import ConfigError, TopologyError
from streampack.metrics import clock
from streampack.ranks.carrier import Wait
from streampack.ranks.groups import PROCESS_GROUPS, Group
from streampack.ranks.topology import Topology, has_process_group

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

    def __init__(self, group: Group) -> None:
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
        gathered: list[list[int]] = self._gather(torch.tensor(numbers, dtype=torch.int64)).tolist()
        return gathered

    def broadcast(self, value: _T) -> _T:
        """Rank 0's value, on every rank. Values are what MessagePack knows; tuples come back as lists."""
        mine = _encode(value) if self._group.rank == 0 else torch.zeros(0, dtype=torch.uint8)
        size = torch.tensor([len(mine)])
        clock.waited(self._group.broadcast(size))
        box = mine if len(mine) else torch.zeros(int(size), dtype=torch.uint8)
        clock.waited(self._group.broadcast(box))
        received: _T = _decode(box)
        return received

    def all_gather(self, value: _T) -> list[_T]:
        """Every rank's value, by rank, on every rank; see `broadcast` for what values may be."""
        mine = _encode(value)
        sizes = [size for [size] in self.all_gather_ints([len(mine)])]
        boxes = self._gather(torch.nn.functional.pad(mine, (0, max(sizes) - len(mine))))
        return [_decode(box[:size]) for box, size in zip(boxes, sizes, strict=True)]

    def _gather(self, mine: torch.Tensor) -> torch.Tensor:
        """The tensors of all ranks, of equal shape, stacked by rank."""
        rows = mine.new_zeros((self._group.size, *mine.shape))
        rows[self._group.rank] = mine
        clock.waited(self._group.all_gather(rows))
        return rows

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
        wait = self._group.all_reduce(tensor, dist.ReduceOp.MAX if highest else dist.ReduceOp.MIN)
        return Agreement(tensor, wait, self._group)


class NotSame(NamedTuple):
    """A value that is not equal on all ranks: two of the ranks that differ, and what they have."""

    which: int
    """The index of the value in `same`."""
    ranks: tuple[int, int]
    values: tuple[int, int]


class Agreement:
    """A number that the ranks are agreeing on."""

    def __init__(self, tensor: torch.Tensor, wait: Wait, group: Group) -> None:
        self._tensor = tensor
        self._wait = wait
        self._group = group

    def wait(self) -> int | NotSame:
        """The number, when all ranks have given theirs, or the first value that should be equal on all and is not.

        In the latter case the ranks' collectives no longer meet in this group, so the next exchange gets another one.

        Raises:
            RuntimeError: as torch does, where a connection breaks or time is up.
        """
        clock.waited(self._wait)
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
