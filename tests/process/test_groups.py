"""Loaders and groups that come and go in one job, and what that must not hinder."""

import pytest
from support.ranks import Finite, Ran, References, run_job
from support.reference import assert_batches, endless_batches


def uneven(given: References) -> dict:
    return {"dataset": {**given.corpora["uneven"], "epochs": 1}, "loader": {"batch_size": 2, "num_workers": 1}}


@pytest.fixture(scope="module")
def ran(references: References, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """Two ranks on which groups and loaders come and go."""
    even = {"dataset": references.corpora["even"], "loader": {"batch_size": 2, "num_workers": 0}, "batches": 2}
    again = {"name": "closed between passes", "passes": 3, "close_after_passes": [0, 1], "close": True}
    cases = [
        {**uneven(references), **again},
        *({**even, "name": f"loader {number}", "close": True} for number in range(8)),
        {**uneven(references), "name": "group of rank 0", "group_of": [0]},
    ]
    return run_job(cases, 2, tmp_path_factory.mktemp("ran"))


def test_a_loader_that_was_closed_between_passes_still_ends_on_all_ranks_at_once(
    ran: Ran,
    references: References,
) -> None:
    start = 0
    for number in range(3):
        current = references.one_pass(Finite(), number, start)
        for rank, outcome in enumerate(ran["closed between passes"]):
            expected = current.batches(start, rank=rank, num_ranks=2, batch_size=2)
            assert_batches(outcome["passes"][number], expected, f"pass {number}, rank {rank}")
        start = current.end


def test_loaders_can_be_closed_and_others_made_on_the_same_ranks(ran: Ran, references: References) -> None:
    lanes = references.lanes("even", 0, None, 2)
    for rank in range(2):
        expected = endless_batches(lanes, 0, rank=rank, num_ranks=2, batch_size=2, count=2)
        for number in range(8):
            assert_batches(ran[f"loader {number}"][rank]["passes"][0], expected, f"loader {number}")


def test_loaders_that_were_closed_leave_no_connections_between_the_ranks(ran: Ran) -> None:
    for rank in range(2):
        files = [ran[f"loader {number}"][rank]["open_files"] for number in range(8)]
        assert files[-1] <= files[1], files


def test_a_group_of_the_trainer_that_only_one_rank_belongs_to_does_not_hinder(
    ran: Ran,
    references: References,
) -> None:
    current = references.one_pass(Finite(), 0, 0)
    for rank, outcome in enumerate(ran["group of rank 0"]):
        expected = current.batches(0, rank=rank, num_ranks=2, batch_size=2)
        assert_batches(outcome["passes"][0], expected, f"rank {rank}")


@pytest.fixture(scope="module")
def mesh_job(references: References, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """Four ranks of a mesh on which groups and loaders come and go."""
    mesh = {"dp": 2, "tp": 2}
    even = {"dataset": references.corpora["even"], "loader": {"batch_size": 2, "num_workers": 1}, "batches": 2}
    cases = [
        *({**even, "name": f"mesh {number}", "mesh": mesh, "close": True} for number in range(3)),
        {**uneven(references), "name": "group of rank 0", "mesh": mesh, "group_of": [0]},
    ]
    return run_job(cases, 4, tmp_path_factory.mktemp("mesh"))


def test_loaders_of_a_mesh_can_be_closed_and_others_made(mesh_job: Ran, references: References) -> None:
    lanes = references.lanes("even", 0, None, 2)
    for number in range(3):
        for rank, outcome in enumerate(mesh_job[f"mesh {number}"]):
            expected = endless_batches(lanes, 0, rank=rank // 2, num_ranks=2, batch_size=2, count=2)
            assert_batches(outcome["passes"][0], expected, f"loader {number}, rank {rank}")


def test_a_group_of_the_trainer_that_only_one_rank_of_a_mesh_belongs_to_does_not_hinder(
    mesh_job: Ran, references: References
) -> None:
    current = references.one_pass(Finite(), 0, 0)
    for rank, outcome in enumerate(mesh_job["group of rank 0"]):
        expected = current.batches(0, rank=rank // 2, num_ranks=2, batch_size=2)
        assert_batches(outcome["passes"][0], expected, f"rank {rank}")
