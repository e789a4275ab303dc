"""Every test of hypothesis again, with ten times as many examples, other ones each night."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
FILES = sorted(
    path.relative_to(TESTS).as_posix()
    for folder in ("unit", "component")
    for path in (TESTS / folder).rglob("test_*.py")
    if "from hypothesis import" in path.read_text("utf-8")
)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", FILES)
def test_more_examples_find_nothing(name: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-m", "hypothesis", "--timeout=800", TESTS / name]
    environment = {**os.environ, "HYPOTHESIS_PROFILE": "nightly"}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
