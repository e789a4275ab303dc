"""Loaders and groups that come and go in one job, and what that must not hinder."""

from pathlib import Path

import pytest
from support.processes import run_program
from support.ranks import Finite, Ran, References, run_job
from support.reference import assert_batches, endless_batches, prose

from streampack.testing import write_shards


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


def test_loaders_of_a_mesh_can_be_closed_and_others_made(references: References, tmp_path: Path) -> None:
    even = {"dataset": references.corpora["even"], "loader": {"batch_size": 2, "num_workers": 1}, "batches": 2}
    mesh = {**even, "mesh": {"dp": 2, "tp": 2}, "close": True}
    job = run_job([{**mesh, "name": f"mesh {number}"} for number in range(3)], 4, tmp_path)
    lanes = references.lanes("even", 0, None, 2)
    for number in range(3):
        for rank, outcome in enumerate(job[f"mesh {number}"]):
            expected = endless_batches(lanes, 0, rank=rank // 2, num_ranks=2, batch_size=2, count=2)
            assert_batches(outcome["passes"][0], expected, f"loader {number}, rank {rank}")


def test_a_group_of_the_trainer_that_only_one_rank_of_a_mesh_belongs_to_does_not_hinder(
    references: References, tmp_path: Path
) -> None:
    mesh = {**uneven(references), "name": "mesh", "mesh": {"dp": 2, "tp": 2}, "group_of": [0]}
    current = references.one_pass(Finite(), 0, 0)
    for rank, outcome in enumerate(run_job([mesh], 4, tmp_path)["mesh"]):
        expected = current.batches(0, rank=rank // 2, num_ranks=2, batch_size=2)
        assert_batches(outcome["passes"][0], expected, f"rank {rank}")


def test_workers_that_are_forked_right_after_the_ranks_spoke_come_to_life(tmp_path: Path) -> None:
    """What gloo's threads do behind an exchange must not be under way in Python then: Python 3.11 hands its lock on.

    Without `Group._hold` one loader in about 200 waits for ever for its workers on a busy machine.
    """
    write_shards(tmp_path / "shards", prose(1, 70), documents_per_shard=19)
    run_program("forking.py", tmp_path / "shards", tmp_path, "30", ranks=2, log=tmp_path / "log")
    assert [(tmp_path / f"rank{rank}.txt").read_text() for rank in range(2)] == ["30", "30"]
