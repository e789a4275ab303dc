"""Laws over more examples: hypothesis with thirty times as many, other ones each night; all of what else is long."""

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


LONG = sorted(
    path.relative_to(TESTS).as_posix()
    for folder in ("unit", "component", "integrations", "process")
    for path in (TESTS / folder).rglob("test_*.py")
    if "from support.thorough import" in path.read_text("utf-8")
)


def run(*arguments: str | Path, **environment: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "--timeout=800", *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", FILES)
def test_more_examples_find_nothing(name: str) -> None:
    run("-m", "hypothesis", TESTS / name, HYPOTHESIS_PROFILE="nightly")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", LONG)
def test_all_of_what_is_tried_in_part_holds(name: str) -> None:
    run(TESTS / name, STREAMPACK_TESTS="thorough")
