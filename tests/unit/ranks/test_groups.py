"""Collectives over a tree of meshes give what one mesh gives, on any number of ranks, over few connections."""

import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed import ProcessGroupGloo
from torch.distributed.distributed_c10d import PrefixStore

from streampack.ranks import carrier, groups
from streampack.ranks.carrier import Carrier
from streampack.ranks.exchange import Exchange, NotSame
from streampack.ranks.groups import Group, Mesh, meshes_of

Connect = Callable[[int], list[Group]]
SHORT_S = 10.0
"""The time limit of a collective."""


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Connect:
    """Makes the groups of so many ranks, which are threads of this process; two ranks a mesh."""
    store = dist.HashStore()
    made = iter(range(100))

    def new_gloo_group(name: str, *, rank: int, size: int) -> Any:
        return ProcessGroupGloo(PrefixStore(name, store), rank, size, timedelta(seconds=SHORT_S))

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


def test_the_error_of_a_connection_is_raised_where_its_exchange_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        size, apart, is_top = 2, 1, True
        num_closed = 0

        def close(self) -> None:
            self.num_closed += 1

        def all_reduce(self, *_: Any) -> dist.Work:
            raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(groups, "FAN", 2)
    for size in (2, 3):  # one mesh, and a tree
        mesh: Any = Broken()
        group = Group([mesh], rank=0, size=size)
        for _ in range(2):
            over = group.all_reduce(torch.zeros(1), dist.ReduceOp.MAX)
            with pytest.raises(RuntimeError, match="Connection closed by peer"):
                over()
        assert mesh.num_closed == 1


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


@pytest.mark.parametrize(("fan", "size", "dead"), [(2, 7, 3), (2, 7, 0), (2, 9, 8), (8, 5, 3)])
def test_ranks_that_stay_alive_all_have_the_error_of_one_that_has_died(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, fan: int, size: int, dead: int
) -> None:
    monkeypatch.setattr(groups, "FAN", fan)
    ranks = connect(size)
    waits = [ranks[rank].all_reduce(torch.zeros(1), dist.ReduceOp.MAX) for rank in range(size) if rank != dead]
    die(ranks[dead])
    with ThreadPoolExecutor(size) as pool:
        ended = [pool.submit(each) for each in waits]
        _, going_on = wait(ended, timeout=SHORT_S / 2)
    assert not going_on
    assert {type(each.exception()) for each in ended} == {RuntimeError}


def test_what_comes_after_an_error_fails_at_once(connect: Connect) -> None:
    for size in (2, 3):
        alive, *others = connect(size)
        for each in others:
            die(each)
        first, second = (alive.all_reduce(torch.zeros(1), dist.ReduceOp.MAX) for _ in range(2))
        for over in (first, second, alive.broadcast(torch.zeros(1))):
            with pytest.raises(RuntimeError, match=r"closed|reset"):
                over()


def test_a_thread_that_cannot_be_started_is_an_error_of_each_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    group = Group([], rank=0, size=9)
    with monkeypatch.context() as without_threads:
        without_threads.setattr(threading.Thread, "start", start)
        over = group.all_reduce(torch.zeros(1), dist.ReduceOp.MAX)
    for each in (over, group.all_reduce(torch.zeros(1), dist.ReduceOp.MAX)):
        with ThreadPoolExecutor(1) as pool, pytest.raises(RuntimeError, match="can't start new thread"):
            pool.submit(each).result(SHORT_S / 2)


def test_threads_that_ask_at_once_have_one_carrier(monkeypatch: pytest.MonkeyPatch) -> None:
    start, together = threading.Thread.start, threading.Barrier(4)

    def late(thread: threading.Thread) -> None:
        if thread.name == "streampack-ranks":
            time.sleep(0.01)  # in which the others ask
            started.append(thread)
        start(thread)

    started: list[threading.Thread] = []
    monkeypatch.setattr(threading.Thread, "start", late)
    group = Group([], rank=0, size=9)

    def ask(_: int) -> None:
        together.wait()
        group.all_reduce(torch.zeros(1), dist.ReduceOp.MAX)()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(4)))
    assert len(started) == 1


@pytest.mark.parametrize("size", [2, 3])
def test_a_forked_process_does_not_wait_for_what_only_its_parent_is_told(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    group = connect(size)[0]
    over = group.all_reduce(torch.zeros(1), dist.ReduceOp.MAX)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    for each in (over, group.broadcast(torch.zeros(1))):
        with ThreadPoolExecutor(1) as pool, pytest.raises(RuntimeError, match="forked from it, cannot use them"):
            pool.submit(each).result(SHORT_S / 2)


def test_an_exchange_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carrier, "TIMEOUT_S", 0.01)
    endless: Any = type("Endless", (), {"is_completed": lambda _: False})
    ours = Carrier(lambda _: None)
    with pytest.raises(RuntimeError, match="not over after 0 s"):
        ours.carry(iter([endless()]))()
    ours.end()
    assert ours._thread is not None
    assert not ours._thread.is_alive()


@pytest.mark.parametrize(("fan", "kind"), [(2, "agreement"), (2, "gather"), (8, "agreement")])
def test_a_program_ends_while_others_have_not_joined_its_exchange(fan: int, kind: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(fan), kind], timeout=20, check=False, capture_output=True, text=True
    )
    assert (ended.returncode, ended.stderr) == (3, "")


PROGRAM = """
import random, sys, threading
import torch, torch.distributed as dist
from concurrent.futures import ThreadPoolExecutor
from torch.distributed import ProcessGroupGloo
from streampack.ranks import groups
from streampack.ranks.exchange import Exchange

store, size = dist.HashStore(), 4
groups.FAN = int(sys.argv[1])
groups.new_gloo_group = lambda name, rank, size: ProcessGroupGloo(dist.PrefixStore(name, store), rank, size)
with ThreadPoolExecutor(size) as pool:
    made = list(pool.map(lambda rank: groups._connect("a", rank=rank, size=size), range(size)))
groups.PROCESS_GROUPS._groups["pass", (0, 1, 2, 3)] = [(None, group) for group in made]
if sys.argv[2] == "agreement":
    pending = [Exchange(group).start_agreeing(1, (), highest=True) for group in made[1:]]
else:
    pending = [group.all_gather(torch.zeros(size, 2_000_000)) for group in made for _ in range(5)]
    pending[0]()
del pool
raise SystemExit(3)
"""


def die(rank: Group) -> None:
    """Close its connections, as the end of its process does."""
    rank._meshes = ()
    gc.collect()
