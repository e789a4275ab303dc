"""Many loaders, one after the other, in processes that a fork could take locks from that nobody gives back."""

import os
from pathlib import Path

import pytest
from support.processes import needs_proc, run_program
from support.reference import prose

from streampack.testing import write_shards

LOADERS = int(os.environ.get("STREAMPACK_LOADERS", "500"))


@needs_proc
@pytest.mark.timeout(3600)
def test_loaders_come_to_life_and_go_beside_busy_threads_and_a_living_group(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", prose(1, 70), documents_per_shard=19)
    arguments = (tmp_path / "shards", tmp_path, str(LOADERS), "8")
    run_program("forking.py", *arguments, ranks=2, log=tmp_path / "log", deadline_s=3500)
    assert [(tmp_path / f"rank{rank}.txt").read_text() for rank in range(2)] == [f"{LOADERS} 0 0"] * 2
