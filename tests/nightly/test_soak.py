"""Five minutes of bad weather; `benchmarks/soak.py` alone goes on for as long as it is told to."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.processes import needs_proc

SOAK = Path(__file__).parents[1] / "benchmarks" / "soak.py"
SECONDS = 300


@needs_proc
@pytest.mark.timeout(SECONDS + 170)
def test_a_run_through_random_faults_gives_the_packs_of_a_quiet_one_in_flat_memory_and_files(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    command = [sys.executable, str(SOAK), "--seconds", str(SECONDS), "--json", str(results)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS + 150, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = json.loads(results.read_text())
    assert found["wrong"] == []
    assert len(found["faults"]) >= 8, "the weather was not that bad"
    assert sum(found["faults"].values()) > 50
    for rank in found["ranks"]:
        assert rank["batches"] > 100
        assert rank["stats"]["retries"] > 10
        assert rank["stats"]["worker_restarts"] == 0
