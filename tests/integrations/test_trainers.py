"""What trainers do with a loader, where the real ones are not needed to see it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

import streampack
from streampack.errors import StateError, TopologyError
from streampack.testing import ByteTokenizer, write_shards


@pytest.fixture
def dataset(tmp_path: Path) -> streampack.PackedDataset:
    shards = write_shards(tmp_path / "shards", [f"document {i}" * 3 for i in range(20)], documents_per_shard=10)
    return streampack.PackedDataset(shards, ByteTokenizer(), 32, num_lanes=2)


def test_a_state_that_is_asked_for_in_order_to_join_it_is_given(dataset: streampack.PackedDataset) -> None:
    """Only what saves one rank's state is refused, not what lies between it and the loader."""
    scope: dict[str, Any] = {"__name__": "accelerate.checkpointing"}
    exec("def save_custom_state(loader):\n    return loader.state_dict()", scope)
    save = scope["save_custom_state"]

    class Joined(streampack.PackedDataLoader):
        def state_dict(self, batches_back: int = 0) -> Any:
            return {**super().state_dict(batches_back), "joined": 1}

    with streampack.PackedDataLoader(dataset, num_workers=0, dp_rank=0, dp_size=2) as loader:
        with pytest.raises(StateError, match=r"saves the state of rank 0 only, .* one rank of 2"):
            save(loader)
        assert "joined" not in loader.state_dict()
    with Joined(dataset, num_workers=0, dp_rank=0, dp_size=2) as loader:
        assert "joined" in save(loader)
    with streampack.PackedDataLoader(dataset, num_workers=0) as loader:
        assert "rows" in save(loader), "one rank has all lanes"


@pytest.fixture
def group_of_one() -> Iterator[Any]:
    def start() -> None:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)

    yield start
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.parametrize(("rank", "size"), [(0, 2), (1, 2)])
def test_a_loader_that_was_made_as_another_rank_than_it_has_become_is_refused(
    dataset: streampack.PackedDataset, monkeypatch: pytest.MonkeyPatch, group_of_one: Any, rank: int, size: int
) -> None:
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(size))
    loader = streampack.PackedDataLoader(dataset, num_workers=0)
    group_of_one()
    with pytest.raises(TopologyError, match=rf"made as rank {rank} of 2, and torch.distributed now says rank 0 of 1"):
        next(iter(loader))


@pytest.mark.parametrize("in_environment", [False, True])
def test_a_loader_that_was_made_before_its_group_goes_with_it(
    dataset: streampack.PackedDataset, monkeypatch: pytest.MonkeyPatch, group_of_one: Any, in_environment: bool
) -> None:
    if in_environment:
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", "1")
    loader = streampack.PackedDataLoader(dataset, num_workers=0, verify_every=1, whole_state=True)
    group_of_one()
    with loader:
        assert next(iter(loader))["tokens"].shape == (1, 32)
        assert loader.state_dict()["global_pack"] == 1
