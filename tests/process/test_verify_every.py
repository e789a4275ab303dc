"""`verify_every`: ranks that have what they should go on; the others are told so, all of them, in real processes.

Refused cases also run without it, where nobody notices (all of them nightly). What data-parallel ranks compare before
the start is in test_ranks.py, here is what only shows in the run.
"""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from support.ranks import Finite, Ran, References, run_job
from support.reference import assert_batches, endless_batches
from support.thorough import some

COUNT = 5


def refused_by_two(references: References) -> dict[str, tuple[dict[str, Any], list[str]]]:
    """Name -> (what is added to the case, what the error says)."""
    at = [references.state_after(packs) for packs in (4, 8, 12)]
    tp = {"mesh": {"dp": 1, "tp": 2}}
    same = "of data-parallel rank 0: "
    return {
        "a state on one rank only": (
            {"per_rank": {"1": {"state": at[0]}}},
            [
                "at batch 0",
                "global packs after the batch: 4 on rank 0, 8 on rank 1",
                "load the same state on all ranks",
            ],
        ),
        "states of different steps": (
            {"per_rank": {"0": {"state": at[1]}, "1": {"state": at[2]}}},
            ["global packs after the batch: 12 on rank 0, 16 on rank 1", "load the same state"],
        ),
        "skip on one rank only": (
            {"per_rank": {"1": {"skip": 3}}},
            ["global packs after the batch: 4 on rank 0, 16 on rank 1", "skip on all"],
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
            {**tp, "per_rank": {"1": {"dataset": {"data": references.corpora["other bytes"]["data"]}}}},
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
def two(references: References, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    def cases() -> Iterator[dict[str, Any]]:
        loader = {"batch_size": 2, "num_workers": 1, "verify_every": 2}
        even = {"dataset": references.corpora["even"], "loader": loader, "batches": COUNT, "close": True}
        uneven = {"dataset": {**references.corpora["uneven"], "epochs": 1}, "loader": loader, "passes": 2}
        yield {**even, "name": "agree"}
        yield {**even, "name": "agree, by hand", "given_group": True, "loader": {**loader, "num_workers": 0}}
        fork = {**loader, "multiprocessing_context": "fork"}
        yield {**even, "name": "agree, from a state", "state": references.state_after(7), "loader": fork}
        yield {**uneven, "name": "agree, finite", "loader": {**fork, "batch_size": 3}}
        in_process = {**even, "loader": {**loader, "num_workers": 0}}
        for name, (extra, _) in refused_by_two(references).items():
            yield {**in_process, **extra, "name": name}
            if name in UNSEEN:
                unseen = {"loader": {"batch_size": 2, "num_workers": 0}}
                yield {**in_process, **extra, "name": f"{name}, unseen", **unseen}
        twice = {"given_group": True, "per_rank": {"1": {"loader": {"dp_rank": 0}}}}
        yield {**in_process, **twice, "name": "one dp_rank twice"}
        yield {**in_process, "name": "other verify_every", "per_rank": {"1": {"loader": {"verify_every": 3}}}}
        fewer = {"per_rank": {"1": {"batches": 2}}, "leave_early": True}
        yield {**in_process, **fewer, "name": "fewer batches"}

    return run_job(cases(), 2, tmp_path_factory.mktemp("two"))


@pytest.mark.parametrize("name", ["agree", "agree, by hand", "agree, from a state"])
def test_ranks_that_agree_get_the_packs_that_they_get_without_it(two: Ran, references: References, name: str) -> None:
    begin = 7 if "state" in name else 0
    lanes = references.lanes("even", 0, None, 4)
    for rank, outcome in enumerate(two[name]):
        expected = endless_batches(lanes, begin, rank=rank, num_ranks=2, batch_size=2, count=COUNT)
        assert_batches(outcome["passes"][0], expected, f"{name}, rank {rank}")


def test_ranks_that_agree_end_finite_passes_together(two: Ran, references: References) -> None:
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
    "peers with another seed",
    "peers with another batch size",
    "peers with other lanes",
    "peers with another label at boundaries",
    "peers with other bytes in shards of one name",
    "peers with a transform that is no pure function",
    "peers with histories that differ",
]
UNSEEN = some(NAMES, 3)
"""Those that are tried without `verify_every`, too."""


@pytest.mark.parametrize("name", NAMES)
def test_what_differs_is_one_error_on_every_rank_that_names_the_ranks_the_step_and_what_to_do(
    two: Ran,
    references: References,
    name: str,
) -> None:
    first, second = two.errors(name)
    assert len(first) == 1
    assert first == second
    assert first[0].startswith("LoaderError: verify_every=2: the ranks do not match at batch 0 ")
    for part in refused_by_two(references)[name][1]:
        assert part in first[0]
    assert not any(outcome["passes"] for outcome in two.outcomes[name]), "the batch must not be handed out"


@pytest.mark.parametrize("name", UNSEEN)
def test_nothing_else_sees_that_difference(two: Ran, name: str) -> None:
    assert two.errors(f"{name}, unseen") == [[], []]


def test_no_case_is_forgotten(references: References) -> None:
    assert list(refused_by_two(references)) == NAMES


def test_a_dp_rank_that_is_not_the_rank_in_the_group_is_refused_on_every_rank(two: Ran) -> None:
    first, second = two.errors("one dp_rank twice")
    assert first == second
    assert len(first) == 1
    assert first[0].startswith("TopologyError: dp_rank must be the rank in the group of the 2 data-parallel ranks")
    assert "rank 1 of the group was given dp_rank=0, dp_size=2" in first[0]


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
