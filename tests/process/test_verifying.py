"""`verify_every`: ranks that have what they should go on; the others are told so, all of them, in real processes.

Each refused case also runs without it, where nobody notices: what data-parallel ranks compare before the start is in
test_torchrun.py, here is what only shows in the run.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.reference import assert_batches, endless_batches
from test_torchrun import Finite, Ran, References, corpora, references, run_job  # noqa: F401 (fixtures)

import streampack
from streampack.errors import ConfigError, TopologyError
from streampack.loader.consistency import Claim, differences, different_arguments
from streampack.state.checkpoint import to_json
from streampack.testing import ByteTokenizer, write_shards

pytestmark = pytest.mark.timeout(170)

COUNT = 5


def state_after(references: References, packs: int) -> str:  # noqa: F811
    with references.loader("even", 1) as loader:
        iterator = iter(loader)
        for _ in range(packs):
            next(iterator)
        return to_json(loader.state_dict())


def refused_by_two(references: References) -> dict[str, tuple[dict[str, Any], list[str]]]:  # noqa: F811
    """Name -> (what is added to the case, what the error says)."""
    at = [state_after(references, packs) for packs in (4, 8, 12)]
    tp = {"mesh": {"dp": 1, "tp": 2}}
    same = "of data-parallel rank 0: "
    return {
        "a state on one rank only": (
            {"per_rank": {"1": {"state": at[0]}}},
            [
                "at batch 0",
                "global packs behind the batch: 4 on rank 0, 8 on rank 1",
                "load the same state on all ranks",
            ],
        ),
        "states of different steps": (
            {"per_rank": {"0": {"state": at[1]}, "1": {"state": at[2]}}},
            ["global packs behind the batch: 12 on rank 0, 16 on rank 1", "load the same state"],
        ),
        "skip on one rank only": (
            {"per_rank": {"1": {"skip": 3}}},
            ["global packs behind the batch: 4 on rank 0, 16 on rank 1", "skip on all"],
        ),
        "one dp_rank twice": (
            {"given_group": True, "per_rank": {"1": {"loader": {"dp_rank": 0}}}},
            ["no rank is data-parallel rank 1 of 2", "dp_rank is 0 on ranks 0, 1", "give each rank its own dp_rank"],
        ),
        "peers with another seed": (
            {**tp, "per_rank": {"1": {"dataset": {"seed": 7}}}},
            [
                "at batch 0 of this loader (up to global pack 2 on rank 0)",
                "seed: 0 on rank 0, 7 on rank 1",
                "same arguments",
            ],
        ),
        "peers with another batch size": (
            {**tp, "per_rank": {"1": {"loader": {"batch_size": 3}}}},
            ["batch_size: 2 on rank 0, 3 on rank 1", "the same arguments"],
        ),
        "peers with other lanes": (
            {**tp, "per_rank": {"1": {"dataset": {"num_lanes": 6}}}},
            ["num_lanes: 12 on rank 0, 6 on rank 1", "the same arguments"],
        ),
        "peers with another label at boundaries": (
            {**tp, "per_rank": {"1": {"dataset": {"boundary": "keep"}}}},
            ["boundary: 'mask' on rank 0, 'keep' on rank 1", "the same arguments"],
        ),
        "peers with other bytes in shards of one name": (
            {**tp, "per_rank": {"1": {"dataset": {"shards": references.corpora["other bytes"]["shards"]}}}},
            [f"digest of the batch's packs {same}0x", "on rank 0, 0x", "shards with the same bytes"],
        ),
        "peers with a transform that is no pure function": (
            {**tp, "restless": True},
            [f"digest of the batch's packs {same}0x", "a transform that draws from its rng only"],
        ),
        "peers with histories that differ": (
            # Rank 1 comes to where rank 0 is by going past two batches, not by handing them out.
            {**tp, "per_rank": {"0": {"state": at[0]}, "1": {"skip": 2}}},
            [f"digest of all packs so far {same}0x", "call skip on all or on none"],
        ),
    }


@pytest.fixture(scope="module")
def other_bytes(references: References, tmp_path_factory: pytest.TempPathFactory) -> None:  # noqa: F811
    """A copy of the shards "even" in which one letter of the first document that has one is another."""
    folder = tmp_path_factory.mktemp("copy")
    urls = []
    for url in references.corpora["even"]["shards"]:
        copy = folder / Path(url).name
        copy.write_bytes(Path(url).read_bytes().replace(b"boundary", b"boundery").replace(b"tokens", b"tokans"))
        urls.append(str(copy))
    references.corpora["other bytes"] = {**references.corpora["even"], "shards": urls}


@pytest.fixture(scope="module")
def two(references: References, other_bytes: None, tmp_path_factory: pytest.TempPathFactory) -> Ran:  # noqa: F811
    def cases() -> Iterator[dict[str, Any]]:
        loader = {"batch_size": 2, "num_workers": 1, "verify_every": 2}
        even = {"dataset": references.corpora["even"], "loader": loader, "batches": COUNT, "close": True}
        uneven = {"dataset": {**references.corpora["uneven"], "epochs": 1}, "loader": loader, "passes": 2}
        yield {**even, "name": "agree"}
        yield {**even, "name": "agree, by hand", "given_group": True}
        yield {**even, "name": "agree, from a state", "state": state_after(references, 7)}
        yield {**uneven, "name": "agree, finite", "loader": {**loader, "batch_size": 3}}
        in_process = {**even, "loader": {**loader, "num_workers": 0}}
        for name, (extra, _) in refused_by_two(references).items():
            yield {**in_process, **extra, "name": name}
            yield {**in_process, **extra, "name": f"{name}, unseen", "loader": {"batch_size": 2, "num_workers": 0}}
        yield {**in_process, "name": "other verify_every", "per_rank": {"1": {"loader": {"verify_every": 3}}}}
        fewer = {"per_rank": {"1": {"batches": 2}}, "leave_early": True}
        yield {**in_process, **fewer, "name": "fewer batches"}

    return run_job(cases(), 2, tmp_path_factory.mktemp("two"), deadline_s=60)


@pytest.mark.parametrize("name", ["agree", "agree, by hand", "agree, from a state"])
def test_ranks_that_agree_get_the_packs_that_they_get_without_it(two: Ran, references: References, name: str) -> None:  # noqa: F811
    begin = 7 if "state" in name else 0
    lanes = references.lanes("even", 0, None, 4)
    for rank, outcome in enumerate(two[name]):
        expected = endless_batches(lanes, begin, rank=rank, num_ranks=2, batch_size=2, count=COUNT)
        assert_batches(outcome["passes"][0], expected, f"{name}, rank {rank}")


def test_ranks_that_agree_end_finite_passes_together(two: Ran, references: References) -> None:  # noqa: F811
    start = 0
    for number in range(2):
        current = references.one_pass(Finite(), number, start)
        for rank, outcome in enumerate(two["agree, finite"]):
            expected = current.batches(start, rank=rank, num_ranks=2, batch_size=3)
            assert_batches(outcome["passes"][number], expected, f"pass {number}, rank {rank}")
        start = current.end


NAMES = [
    "a state on one rank only",
    "states of different steps",
    "skip on one rank only",
    "one dp_rank twice",
    "peers with another seed",
    "peers with another batch size",
    "peers with other lanes",
    "peers with another label at boundaries",
    "peers with other bytes in shards of one name",
    "peers with a transform that is no pure function",
    "peers with histories that differ",
]


@pytest.mark.parametrize("name", NAMES)
def test_what_differs_is_one_error_on_every_rank_that_names_the_ranks_the_step_and_what_to_do(
    two: Ran,
    references: References,  # noqa: F811
    name: str,
) -> None:
    first, second = two.errors(name)
    assert len(first) == 1
    assert first == second
    assert first[0].startswith("LoaderError: verify_every=2: the ranks do not have what they should have at batch 0 ")
    for part in refused_by_two(references)[name][1]:
        assert part in first[0]
    assert not any(outcome["passes"] for outcome in two.outcomes[name]), "the batch must not be handed out"


@pytest.mark.parametrize("name", NAMES)
def test_nothing_else_sees_that_difference(two: Ran, name: str) -> None:
    assert two.errors(f"{name}, unseen") == [[], []]


def test_no_case_is_forgotten(references: References, other_bytes: None) -> None:  # noqa: F811
    assert list(refused_by_two(references)) == NAMES


def test_data_parallel_ranks_with_another_verify_every_are_refused_before_the_start(two: Ran) -> None:
    for messages in two.errors("other verify_every"):
        assert len(messages) == 1
        assert "ConfigError: the ranks were given different arguments: verify_every: 2 on rank 0, 3" in messages[0]


def test_a_rank_that_does_not_come_is_an_error_and_no_hang(two: Ran) -> None:
    """Rank 1 takes two of five batches and ends."""
    assert two.errors("fewer batches")[1] == []
    [message] = two.errors("fewer batches")[0]
    assert re.match(
        r"LoaderError: verify_every=2: the ranks could not be compared at batch [24] of this loader", message
    )
    assert "takes fewer batches than the others" in message


# --- without processes


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


@pytest.fixture
def dataset(tmp_path: Path) -> streampack.PackedDataset:
    shards = write_shards(tmp_path / "shards", [f"document {i}" * 3 for i in range(20)], documents_per_shard=10)
    return streampack.PackedDataset(shards, ByteTokenizer(), 32, num_lanes=2, dp_rank=None)


def test_one_process_alone_has_nothing_to_compare(dataset: streampack.PackedDataset) -> None:
    with streampack.PackedDataLoader(dataset, num_workers=0, verify_every=1) as loader:
        assert next(iter(loader))["tokens"].shape == (1, 32)


def test_ranks_by_hand_that_cannot_be_reached_are_refused(dataset: streampack.PackedDataset) -> None:
    for name, value in (("verify_every", 5), ("whole_state", True)):
        with pytest.raises(ConfigError, match=f"{name} asks the other ranks, .* give process_group too"):
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
