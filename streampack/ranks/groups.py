"""Collectives between any number of ranks over few connections: a tree of small gloo groups.

In:    the global ranks of a group, and what each of them gives.
Out:   the same tensors on all of them.
Never: a connection of each rank to each other one: 4,096 ranks would connect for minutes and hold 4,099 sockets each.

Up to `FAN` ranks are one mesh, in which all are connected. More of them are meshes of `FAN` neighbours, whose first
ranks are meshes again, and so on. With FAN = 2 and six ranks:

    mesh of 4 apart        0 . . . . . . . 4
    of 2 apart             0 . . . 2       4                  rank 0 is in three meshes, rank 4 in two of them
    of 1 apart             0 . 1   2 . 3   4 . 5

What is exchanged goes up this tree, mesh by mesh, and its result comes down again. A rank has at most FAN - 1
connections a mesh: 28 with 4,096 ranks, and most ranks have 7.
"""

import atexit
import ctypes
import hashlib
import os
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Final

import torch
import torch.distributed as dist

from streampack.ranks.carrier import Carrier, Wait
from streampack.ranks.torch_private import new_gloo_group

FAN = 8
"""Most ranks of a mesh: the processes of a node, as a rule."""
_LARGE_BYTES = 2**20


class Mesh:
    """A gloo group in which all ranks are connected, with the collectives that are used.

    The last 64 collectives are kept alive: the thread that frees a tensor last needs a Python thread state, and gloo's
    threads must not be the ones to do so. If a process forks its workers while another thread creates its thread state,
    the workers inherit the interpreter's lock in its locked state and wait for it for ever, before their first line
    (Python 3.11). Of large ones, such as the states of 4,096 ranks, only the last 4 are kept: a thread lets go of one
    before it takes the next.
    """

    def __init__(self, group: dist.ProcessGroup, *, apart: int, is_top: bool) -> None:
        self._group = group
        self._recent: deque[dist.Work] = deque(maxlen=64)
        self._recent_large: deque[dist.Work] = deque(maxlen=4)
        self.size: Final[int] = group.size()
        self.apart: Final = apart
        """How far apart its ranks are in the whole group; each speaks for as many."""
        self.is_top: Final = is_top
        """Whether its ranks together speak for all."""

    def all_gather(self, boxes: list[torch.Tensor], mine: torch.Tensor) -> dist.Work:
        return self._hold(self._group.allgather([boxes], [mine]), len(boxes) * mine.nbytes)

    def broadcast(self, box: torch.Tensor) -> dist.Work:
        return self._hold(self._group.broadcast(box, 0), box.nbytes)

    def all_reduce(self, tensor: torch.Tensor, op: Any) -> dist.Work:
        return self._hold(self._group.allreduce(tensor, op), tensor.nbytes)

    def close(self) -> None:
        """Close the connections, once nobody else holds one of its collectives: no rank waits for this one any more."""
        self._recent.clear()
        self._recent_large.clear()
        self._group = None  # type: ignore[assignment]  # nothing is begun after it

    def keep_for_ever(self) -> None:
        """Leave the connections to the end of the process.

        The destructor of a gloo group waits for its collectives, and so for ranks that may never join them. Python
        would call it at the end of the program, which then would not end.
        """
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._group))

    def _hold(self, work: dist.Work, num_bytes: int) -> dist.Work:
        (self._recent if num_bytes < _LARGE_BYTES else self._recent_large).append(work)
        return work


class Group:
    """Some ranks, and the collectives between them; each begins at the call and is over when its `Wait` returns.

    When one fails, this rank closes its connections, and each later one fails at once. So the others have an error,
    too, one after the other, and none waits for a rank that has died or for one that knows of it.
    """

    def __init__(self, meshes: Sequence[Mesh], *, rank: int, size: int) -> None:
        """`meshes`: those that this rank is in, of neighbours first."""
        self.rank: Final = rank
        self.size: Final = size
        self.is_out_of_step = False
        self._meshes = meshes
        self._process = os.getpid()
        self._error: BaseException | None = None
        self._carrier = Carrier(self._close)
        self._begun: list[deque[dist.Work]] = []
        """Of each exchange that is not over, and not the carrier's, the collective that is not over."""

    def all_gather(self, rows: torch.Tensor) -> Wait:
        """Fill `rows`, one for each rank, in which this rank's own is given."""
        return self._begin(self._gathering(rows))

    def broadcast(self, box: torch.Tensor) -> Wait:
        """Fill `box` with that of rank 0."""
        return self._begin(mesh.broadcast(box) for mesh in reversed(self._meshes))

    def all_reduce(self, tensor: torch.Tensor, op: Any) -> Wait:
        """Make of `tensor` the reduction of all ranks' tensors."""
        return self._begin(self._reducing(tensor, op))

    def _gathering(self, rows: torch.Tensor) -> Iterator[dist.Work]:
        gathered = rows[self.rank : self.rank + 1]
        for mesh in self._meshes:
            # The last mesh of those that are equally far apart may speak for fewer ranks.
            padded = torch.cat((gathered, gathered.new_zeros(mesh.apart - len(gathered), *rows.shape[1:])))
            boxes = [torch.zeros_like(padded) for _ in range(mesh.size)]
            yield mesh.all_gather(boxes, padded)
            gathered = torch.cat(boxes)
        if self._is_at_top:
            rows.copy_(gathered[: self.size])
        yield from self._down(rows)

    def _reducing(self, tensor: torch.Tensor, op: Any) -> Iterator[dist.Work]:
        for mesh in self._meshes:
            yield mesh.all_reduce(tensor, op)
        yield from self._down(tensor)

    def _down(self, result: torch.Tensor) -> Iterator[dist.Work]:
        """Hand on what all ranks of the top mesh have."""
        return (mesh.broadcast(result) for mesh in reversed(self._meshes) if not mesh.is_top)

    @property
    def _is_at_top(self) -> bool:
        return not self._meshes or self._meshes[-1].is_top

    def _begin(self, works: Iterator[dist.Work]) -> Wait:
        """Begin the first of `works`; each of the others begins when the one before is over, whoever waits for it."""
        begin = self._begin_now if self.size <= FAN else self._carrier.carry
        over: Wait | None = None
        if self._error is None and os.getpid() == self._process:
            try:
                over = begin(works)
            except RuntimeError as error:
                self._close(error)

        def wait() -> None:
            if os.getpid() != self._process:
                raise RuntimeError(
                    f"the connections to the other ranks are those of process {self._process}, and process "
                    f"{os.getpid()}, which was forked from it, cannot use them"
                )
            if over is None:
                raise self._closed()
            try:
                over()
            except RuntimeError as error:
                self._close(error)
                raise

        return wait

    def _begin_now(self, works: Iterator[dist.Work]) -> Wait:
        """Begin an exchange of a single collective at most."""
        begun = deque(islice(works, 1))
        self._begun.append(begun)

        def wait() -> None:
            if self._error is not None:
                raise self._closed()
            while begun:
                begun.popleft().wait()
                begun.extend(islice(works, 1))
            self._begun = [each for each in self._begun if each is not begun]

        return wait

    def _close(self, error: BaseException) -> None:
        if self._error is None:
            self._error = error
            for begun in self._begun:
                begun.clear()
            for mesh in self._meshes:
                mesh.close()

    def _closed(self) -> RuntimeError:
        return RuntimeError(f"the connections to the other ranks are closed, since one has failed: {self._error}")

    def end(self) -> None:
        """Nothing is begun or waited for any more: the program ends."""
        self._carrier.end()
        for mesh in self._meshes:
            mesh.keep_for_ever()


def meshes_of(rank: int, size: int) -> list[range]:
    """The ranks of each mesh that a rank of a group is in, of neighbours first; none has one rank only."""
    meshes, apart = [], 1
    while apart < size and rank % apart == 0:
        first = rank - rank % (apart * FAN)
        mesh = range(first, min(first + apart * FAN, size), apart)
        if len(mesh) > 1:
            meshes.append(mesh)
        apart *= FAN
    return meshes


class ProcessGroups:
    """The groups of this process, by purpose and ranks; each is made on first use and kept until the process ends.

    They belong to the process and not to a loader:

    * A group's name must be the same on all its ranks without asking them, so it counts how often torch.distributed was
      initialized or all ranks found that they were out of step, and not the loaders, of which a rank may have made more
      than another.
    * A job that makes many loaders keeps the same connections.
    * The destructor of a gloo group, and of a collective that gloo's threads may still hold, must not run in a forked
      worker or right before a fork: nothing is ever taken out, and only what has failed is closed.

    `torch.distributed.new_group` would not do: it must be called on every rank of the job, or names a group by how many
    groups the process has, and ranks that differ in that number would wait for each other for ever.
    """

    def __init__(self) -> None:
        self._groups: dict[tuple[str, tuple[int, ...]], list[tuple[dist.ProcessGroup, Group]]] = {}
        """(torch's default group of that time, ours); only the last one is in use."""
        atexit.register(self.end)

    def end(self) -> None:
        """Let the program end, whatever the groups wait for."""
        for made in self._groups.values():
            for _, group in made:
                group.end()

    def group_of(self, ranks: tuple[int, ...], purpose: str) -> Group:
        """The group of these global ranks for one purpose; a collective the first time."""
        world = dist.group.WORLD
        assert world is not None, "there are no other ranks without torch.distributed"
        made = self._groups.setdefault((purpose, ranks), [])
        if not made or made[-1][0] is not world or made[-1][1].is_out_of_step:
            name = f"streampack/{purpose}/{'-'.join(map(str, ranks))}/{len(made)}"
            name = hashlib.blake2b(name.encode(), digest_size=16).hexdigest()  # 4,096 ranks would make a long one
            made.append((world, _connect(name, rank=ranks.index(dist.get_rank()), size=len(ranks))))
        return made[-1][1]


def _connect(name: str, *, rank: int, size: int) -> Group:
    meshes = []
    for mesh in meshes_of(rank, size):
        group = new_gloo_group(f"{name}/{mesh.step}/{mesh.start}", rank=mesh.index(rank), size=len(mesh))
        meshes.append(Mesh(group, apart=mesh.step, is_top=mesh.step * FAN >= size))
    return Group(meshes, rank=rank, size=size)


PROCESS_GROUPS: Final = ProcessGroups()
