"""Workers that are forked while the ranks' exchange has only just ended, many times."""

from pathlib import Path

from support.processes import run_program
from support.reference import prose

from streampack.testing import write_shards


def test_workers_that_are_forked_right_after_the_ranks_spoke_come_to_life(tmp_path: Path) -> None:
    """What gloo's threads do after an exchange must not be under way in Python then: Python 3.11 hands its lock on.

    Without the wait in `Exchange` one loader in about 200 waits for ever for its workers on a busy machine.
    """
    write_shards(tmp_path / "shards", prose(1, 70), documents_per_shard=19)
    run_program("forking.py", tmp_path / "shards", tmp_path, "400", ranks=2, log=tmp_path / "log")
    assert [(tmp_path / f"rank{rank}.txt").read_text() for rank in range(2)] == ["400", "400"]
