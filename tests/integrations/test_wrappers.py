"""Around a dataset that is one rank's of several nothing may deal out packs again. On two ranks: test_accelerate.py."""

from pathlib import Path
from typing import Any

import pytest
from support.thorough import nightly
from torch.utils.data import DataLoader, DistributedSampler

import streampack
from streampack.errors import TopologyError
from streampack.testing import ByteTokenizer, write_shards


@pytest.fixture
def shards(tmp_path: Path) -> list[str]:
    return write_shards(tmp_path / "shards", [f"document number {i} " * 2 for i in range(40)], documents_per_shard=20)


def dataset_of(shards: list[str], *, rank: int, size: int) -> streampack.PackedDataset:
    dataset = streampack.PackedDataset(shards, ByteTokenizer(), 16, num_lanes=2, epochs=1, shuffle=False)
    return dataset.for_rank(rank, size)


def tokens(batches: Any) -> list[list[int]]:
    return [batch["tokens"].tolist() for batch in batches]


def shard_of(dataset: streampack.PackedDataset, index: int) -> Any:
    module = pytest.importorskip("accelerate.data_loader")
    return module.IterableDatasetShard(dataset, batch_size=1, num_processes=2, process_index=index)


def test_a_wrapper_that_deals_a_ranks_packs_again_is_refused(shards: list[str]) -> None:
    with pytest.raises(TopologyError, match=r"IterableDatasetShard deals out the packs .* rank 1 of 2 already"):
        next(iter(shard_of(dataset_of(shards, rank=1, size=2), 1)))


@pytest.mark.parametrize("context", ["fork", *nightly(["spawn"])])
def test_workers_of_such_a_wrapper_are_refused_too(shards: list[str], context: str) -> None:
    loader = DataLoader(shard_of(dataset_of(shards, rank=0, size=2), 0), num_workers=1, multiprocessing_context=context)
    with pytest.raises(TopologyError, match="deals out the packs"):
        next(iter(loader))


def test_a_wrapper_may_deal_a_dataset_that_has_one_rank(shards: list[str]) -> None:
    everything = tokens(dataset_of(shards, rank=0, size=1))
    parts = [tokens(shard_of(dataset_of(shards, rank=0, size=1), index)) for index in (0, 1)]
    assert parts[0] == everything[::2]
    assert parts[1][: len(everything) // 2] == everything[1::2]


def test_torch_refuses_a_distributed_sampler(shards: list[str]) -> None:
    dataset: Any = dataset_of(shards, rank=0, size=2)
    with pytest.raises(TypeError, match="has no len"):
        DistributedSampler(dataset, num_replicas=2, rank=0)
    with pytest.raises(ValueError, match="unspecified sampler"):
        DataLoader(dataset, sampler=range(3))
