"""What ranks claim to have, compared; and what a loader that is to compare must be given. In one process."""

from pathlib import Path
from typing import Any

import pytest

import streampack
from streampack.errors import ConfigError, TopologyError
from streampack.loader.claims import Claim, differences, different_arguments
from streampack.testing import ByteTokenizer, write_shards


def claim(rank: int, dp_rank: int, dp_size: int, **changes: int) -> Claim:
    same = {"arguments": 4, "batches": 10, "global_pack": 88, "first_epoch": 0, "num_packs": 2}
    mine = {"first_pack": 80 + dp_rank, "packs": -5 - dp_rank, "history": 7 + dp_rank, "position": 8 + dp_rank}
    return Claim(**{**same, **mine, "rank": rank, "dp_rank": dp_rank, "dp_size": dp_size, **changes})


def test_claims_that_fit_together_are_no_difference() -> None:
    assert differences([claim(rank, rank // 2, 4) for rank in range(8)]) == []
    fillers = [claim(rank, rank, 2, num_packs=0, packs=0, first_pack=-1) for rank in range(2)]
    assert differences(fillers) == []


@pytest.mark.parametrize("field", ["dp_size", "batches", "global_pack", "first_epoch"])
def test_what_must_be_equal_everywhere_is_named_with_its_ranks(field: str) -> None:
    claims = [claim(rank, rank // 2, 2) for rank in range(4)]
    claims[1] = claims[1]._replace(**{field: 99})
    *lines, advice = differences(claims)
    assert len(lines) == 1
    assert lines[0].endswith(f": {getattr(claims[0], field)} on ranks 0, 2, 3, 99 on rank 1")
    assert advice.startswith("load the same state on all ranks")


def test_arguments_that_differ_are_named_once_with_all_their_ranks() -> None:
    arguments = [{"seed": seed, "seq_len": seq_len} for seed, seq_len in ((0, 8), (1, 8), (0, 8), (0, 9))]
    claims = [claim(rank, 0, 1, arguments=kind) for rank, kind in enumerate((5, 6, 5, 7))]
    assert different_arguments(claims, arguments) == [
        "seed: 0 on ranks 0, 2, 1 on rank 1",
        "seq_len: 8 on ranks 0, 2, 9 on rank 3",
        "give the loaders of all ranks the same arguments",
    ]


@pytest.mark.parametrize("field", ["first_pack", "num_packs", "packs", "history", "position"])
def test_what_must_be_equal_among_peers_is_named_with_its_ranks(field: str) -> None:
    claims = [claim(rank, rank % 2, 2) for rank in range(6)]
    claims[3] = claims[3]._replace(**{field: -1})
    *lines, _ = differences(claims)
    assert len(lines) == 1
    assert "of data-parallel rank 1: " in lines[0]
    assert " on ranks 1, 5, " in lines[0]
    assert lines[0].endswith("on rank 3")


def test_data_parallel_ranks_with_the_same_packs_are_named() -> None:
    claims = [claim(rank, rank, 3) for rank in range(3)]
    claims[2] = claims[2]._replace(packs=claims[0].packs)
    [line] = differences(claims)
    assert "ranks 0, 2 have the same packs" in line


def test_of_many_ranks_only_some_are_named() -> None:
    claims = [claim(rank, rank, 4096, global_pack=8 if rank < 3 else 9) for rank in range(4096)]
    line = differences(claims)[0]
    assert "8 on ranks 0, 1, 2, 9 on ranks 3, 4, 5, 6, 7, 8, 9, 10 and 4085 more" in line
    assert len(line) < 200


def test_the_message_in_the_docs_is_what_the_claims_give() -> None:
    claims = [claim(rank, rank, 4, global_pack=512 if rank < 2 else 64) for rank in range(4)]
    page = (Path(__file__).parents[3] / "docs" / "operations.md").read_text("utf-8")
    assert f"which is not handed out: {'; '.join(differences(claims))} * " in " ".join(page.split())


@pytest.fixture
def dataset(tmp_path: Path) -> streampack.PackedDataset:
    shards = write_shards(tmp_path / "shards", [f"document {i}" * 3 for i in range(20)], documents_per_shard=10)
    return streampack.PackedDataset(shards, ByteTokenizer(), 32, num_lanes=2)


def test_one_process_alone_has_nothing_to_compare(dataset: streampack.PackedDataset) -> None:
    with streampack.PackedDataLoader(dataset, num_workers=0, verify_every=1) as loader:
        assert next(iter(loader))["tokens"].shape == (1, 32)


def test_ranks_by_hand_that_cannot_be_reached_are_refused(dataset: streampack.PackedDataset) -> None:
    for name, value in (("verify_every", 5), ("whole_state", True)):
        with pytest.raises(ConfigError, match=f"{name} needs to reach the other ranks, .* give process_group too"):
            streampack.PackedDataLoader(dataset, num_workers=0, dp_rank=0, dp_size=2, **{name: value})


def test_ranks_of_the_environment_need_a_process_group(
    dataset: streampack.PackedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with (
        streampack.PackedDataLoader(dataset, num_workers=0, verify_every=5) as loader,
        pytest.raises(TopologyError, match="init_process_group"),
    ):
        next(iter(loader))


@pytest.mark.parametrize("value", [0, -1, 2.5, True])
def test_verify_every_is_a_whole_number_of_batches(dataset: streampack.PackedDataset, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"verify_every={value} must be a whole number of at least 1"):
        streampack.PackedDataLoader(dataset, verify_every=value)
