"""Collectives over a tree of meshes give what one mesh gives, on any number of ranks, over few connections."""

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed import ProcessGroupGloo
from torch.distributed.distributed_c10d import PrefixStore

from streampack.ranks import groups
from streampack.ranks.exchange import Exchange, NotSame
from streampack.ranks.groups import Group, Mesh, meshes_of

Connect = Callable[[int], list[Group]]


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Connect:
    """Makes the groups of so many ranks, which are threads of this process; two ranks a mesh."""
    store = dist.HashStore()
    made = iter(range(100))

    def new_gloo_group(name: str, *, rank: int, size: int) -> Any:
        return ProcessGroupGloo(PrefixStore(name, store), rank, size)

    def of(size: int) -> list[Group]:
        name = str(next(made))
        with ThreadPoolExecutor(size) as pool:
            return list(pool.map(lambda rank: groups._connect(name, rank=rank, size=size), range(size)))

    monkeypatch.setattr(groups, "new_gloo_group", new_gloo_group)
    monkeypatch.setattr(groups, "FAN", 2)
    return of


def side_by_side(work: Callable[[Exchange], Any], ranks: list[Group]) -> list[Any]:
    with ThreadPoolExecutor(len(ranks)) as pool:
        return list(pool.map(lambda group: work(Exchange(group)), ranks))


@pytest.mark.parametrize("size", [1, 2, 3, 6, 9])
def test_every_rank_gets_what_every_rank_gave(connect: Connect, size: int) -> None:
    def work(ranks: Exchange) -> Any:
        rank = ranks._group.rank
        agreements = [ranks.start_agreeing(rank * 7 % size, (5, 6), highest=highest) for highest in (True, False)]
        return (
            ranks.all_gather_ints([rank, -rank]),
            ranks.broadcast(["x" * 1000, rank]),
            ranks.all_gather("a" * rank),
            [agreement.wait() for agreement in agreements],
        )

    numbers = [rank * 7 % size for rank in range(size)]
    wanted = (
        [[rank, -rank] for rank in range(size)],
        ["x" * 1000, 0],
        ["a" * rank for rank in range(size)],
        [max(numbers), min(numbers)],
    )
    assert side_by_side(work, connect(size)) == [wanted] * size


def test_ranks_of_a_tree_that_do_not_agree_on_the_same_thing_all_learn_it(connect: Connect) -> None:
    ranks = connect(5)
    told = side_by_side(lambda ranks: ranks.start_agreeing(1, (7, ranks._group.rank == 3), highest=True).wait(), ranks)
    assert {(type(each), each.which, each.ranks, each.values) for each in told} == {(NotSame, 1, (3, 0), (1, 0))}
    assert all(group.is_out_of_step for group in ranks)


def test_an_agreement_is_reached_though_no_other_rank_waits_for_it(connect: Connect) -> None:
    ranks = [Exchange(group) for group in connect(7)]
    agreements = [each.start_agreeing(rank, (), highest=True) for rank, each in enumerate(ranks)]
    assert agreements[5].wait() == 6


def test_the_error_of_a_connection_is_raised_where_its_exchange_is_waited_for(connect: Connect) -> None:
    class Broken:
        size, apart, is_top = 2, 1, True

        def all_reduce(self, *_: Any) -> dist.Work:
            raise RuntimeError("Connection closed by peer")

    group: Any = Group([Broken()], rank=0, size=3)  # type: ignore[list-item]
    for _ in range(2):  # the thread outlives an error
        with pytest.raises(RuntimeError, match="Connection closed by peer"):
            group.all_reduce(torch.zeros(1), dist.ReduceOp.MAX)()


def test_few_large_collectives_are_kept_alive() -> None:
    class Gloo:
        def size(self) -> int:
            return 2

        def broadcast(self, box: torch.Tensor, root: int) -> Any:
            return box

    group: Any = Gloo()
    mesh = Mesh(group, apart=1, is_top=True)
    small, large = ([weakref.ref(mesh.broadcast(torch.zeros(size))) for _ in range(100)] for size in (8, 2**18))
    assert [sum(each() is not None for each in kept) for kept in (small, large)] == [64, 4]


def test_the_thread_of_a_tree_does_not_keep_a_program_from_ending(connect: Connect) -> None:
    Exchange(connect(3)[0]).start_agreeing(1, (), highest=True)
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "streampack-ranks")


def connections(size: int) -> Iterator[int]:
    for rank in range(size):
        yield sum(len(mesh) - 1 for mesh in meshes_of(rank, size))


@pytest.mark.parametrize(("size", "most"), [(1, 0), (2, 1), (8, 7), (9, 8), (64, 14), (4096, 28), (4104, 29)])
def test_a_rank_has_few_connections_and_every_rank_is_reached(size: int, most: int) -> None:
    assert max(connections(size)) == most
    reached = {0}
    for rank in range(size):  # a rank has a mesh whose first rank is lower, and so on down to rank 0
        for mesh in meshes_of(rank, size):
            if mesh[0] in reached:
                reached.update(mesh)
        assert rank in reached


def test_all_ranks_of_a_mesh_agree_on_who_is_in_it() -> None:
    for size in (5, 64, 65, 700):
        for rank in range(size):
            for mesh in meshes_of(rank, size):
                assert all(mesh in meshes_of(other, size) for other in mesh)


def test_ranks_that_end_with_the_error_of_one_that_has_died_end_all_others(connect: Connect) -> None:
    ranks = connect(5)
    numbers = [torch.zeros(1) for _ in ranks]
    die(ranks[3])
    alive = {rank: ranks[rank].all_reduce(numbers[rank], dist.ReduceOp.MAX) for rank in (0, 1, 2, 4)}
    for rank in (2, 0, 1, 4):  # 2 is in a mesh with 3, 0 with 2, and the others with 0
        with pytest.raises(RuntimeError):
            alive.pop(rank)()
        die(ranks[rank])


def die(rank: Group) -> None:
    """Close its connections, as the end of its process does."""
    rank._meshes = ()
    gc.collect()
