"""Which rank a process is in a mesh: by the names of its dimensions, or not at all."""

from typing import Any

import pytest
import torch
import torch.distributed as dist

from streampack.errors import TopologyError
from streampack.ranks.topology import resolve


class Mesh:
    """What is asked of torch's DeviceMesh, as rank `rank` of a job sees it."""

    def __init__(self, names: tuple[str, ...] | None, *shape: int, rank: int = 0, first: int = 0) -> None:
        self.mesh = torch.arange(torch.Size(shape).numel()).reshape(shape) + first
        self.ndim = len(shape)
        self.mesh_dim_names = names
        self._rank = rank

    def get_coordinate(self) -> list[int] | None:
        found = (self.mesh == self._rank).nonzero()
        return found[0].tolist() if len(found) else None


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Any:
    def of(rank: int, size: int) -> None:
        monkeypatch.setattr(dist, "get_rank", lambda: rank)
        monkeypatch.setattr(dist, "get_world_size", lambda: size)

    return of


def rank_and_size(job: Any, names: tuple[str, ...] | None, *shape: int, rank: int = 0) -> tuple[int, int]:
    job(rank, torch.Size(shape).numel())
    mesh: Any = Mesh(names, *shape, rank=rank)
    here = resolve(device_mesh=mesh)
    return here.rank, here.size


@pytest.mark.parametrize("name", ["tp", "cp", "pp", "sp", "tensor_parallel", "context", "model"])
def test_peers_along_a_dimension_that_is_not_data_parallel_have_the_same_packs(job: Any, name: str) -> None:
    assert [rank_and_size(job, (name,), 4, rank=rank) for rank in range(4)] == [(0, 1)] * 4


@pytest.mark.parametrize("name", ["dp", "ddp", "dp_shard", "replicate", "shard", "data", "batch"])
def test_ranks_along_a_data_parallel_dimension_have_different_packs(job: Any, name: str) -> None:
    assert [rank_and_size(job, (name,), 4, rank=rank) for rank in range(4)] == [(rank, 4) for rank in range(4)]


@pytest.mark.parametrize(
    ("names", "shape", "dp_ranks"),
    [
        (("replicate", "shard"), (2, 2), [0, 1, 2, 3]),
        (("ddp", "tp"), (2, 2), [0, 0, 1, 1]),
        (("cp", "tp"), (2, 2), [0, 0, 0, 0]),
        (("pp", "dp", "tp"), (2, 2, 1), [0, 1, 0, 1]),
        (("pp", "batch", "cp", "tp"), (1, 2, 2, 1), [0, 0, 1, 1]),  # torchtitan's mesh for loading data
        (("fsdp", "dp"), (1, 4), [0, 1, 2, 3]),
        (("what", "dp"), (1, 4), [0, 1, 2, 3]),  # a dimension of one rank may have any name
    ],
)
def test_meshes_of_several_dimensions(
    job: Any, names: tuple[str, ...], shape: tuple[int, ...], dp_ranks: list[int]
) -> None:
    assert [rank_and_size(job, names, *shape, rank=rank)[0] for rank in range(4)] == dp_ranks


@pytest.mark.parametrize(
    ("names", "shape", "told"),
    [
        (("ep",), (4,), "('ep',) has 'ep'"),
        (("dp", "ep"), (2, 2), "has 'ep'"),
        (("dp_cp",), (4,), "has 'dp_cp'"),  # torchtitan's: data-parallel and context-parallel ranks in one
        (("dp_shard_cp",), (4,), "has 'dp_shard_cp'"),
        (("fsdp",), (4,), "'fsdp' may hold context-parallel ranks, too"),  # torchtitan's: dp_shard x cp
        (("dp_replicate", "fsdp", "tp"), (1, 4, 1), "where there are none, name the dimension 'dp_shard'"),
        (("hsdp", "cp"), (2, 2), "'hsdp' may hold context-parallel ranks, too"),
        (("mine", "tp"), (2, 2), "has 'mine'"),
        (None, (4,), "has no names for its dimensions"),
        (None, (2, 2), "has no names for its dimensions"),
    ],
)
def test_what_is_not_known_is_not_guessed(
    job: Any, names: tuple[str, ...] | None, shape: tuple[int, ...], told: str
) -> None:
    with pytest.raises(TopologyError, match="Understood are dp, dp_replicate, .* leave device_mesh out") as caught:
        rank_and_size(job, names, *shape)
    assert told in str(caught.value)


def test_a_mesh_without_a_data_parallel_dimension_must_have_the_whole_job(job: Any) -> None:
    job(0, 8)
    mesh: Any = Mesh(("tp",), 2)
    with pytest.raises(TopologyError, match="2 of the job's 8 ranks and no data-parallel dimension"):
        resolve(device_mesh=mesh)


def test_a_process_outside_the_mesh_is_told_so(job: Any) -> None:
    job(5, 8)
    mesh: Any = Mesh(("dp",), 4, rank=5)
    with pytest.raises(TopologyError, match="not part of the device mesh"):
        resolve(device_mesh=mesh)
