"""The Python code and the commands of the pages in docs run, and what they print is what the pages say.

A block that is not run has a line `<!-- not run: the reason -->` above it.
"""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

import pytest
from typer.testing import CliRunner

from streampack.cli import app

ROOT = Path(__file__).parents[2]
PAGES = [path.name for path in sorted((ROOT / "docs").glob("*.md")) if re.search("```(python|bash)", path.read_text())]
BLOCK = re.compile(r"(?:<!-- not run: (?P<reason>[^\n]+) -->\n)?```(?P<language>\w+)\n(?P<text>.*?)```\n", re.DOTALL)
VARIES = ("time ", "shards in ", "state ")
"""How lines begin that are other ones on each machine; a state has the versions of libraries in it."""


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    text: str
    reason: str | None
    """Why it is not run."""


def blocks(page: str) -> list[Block]:
    text = (ROOT / "docs" / page).read_text("utf-8")
    return [Block(found["language"], found["text"], found["reason"]) for found in BLOCK.finditer(text)]


def output_of(command: str) -> str:
    """What a command prints in a terminal of 100 columns, without colours."""
    program, *arguments = shlex.split(command)
    assert program == "streampack"
    result = CliRunner(env={"COLUMNS": "100"}).invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return result.output


def comparable(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip("\n").splitlines() if not line.startswith(VARIES)]


@pytest.mark.filterwarnings("ignore:1 compressed shard")
@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs_from_top_to_bottom_and_prints_what_the_page_says(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    printed: str | None = None  # by the commands of the block before
    for block in blocks(page):
        if block.language == "python" and block.reason is None:
            exec(block.text, names)
        if block.language == "text" and printed is not None:
            assert comparable(block.text) == comparable(printed)
        printed = None
        if block.language == "bash" and block.reason is None:
            printed = "".join(output_of(line) for line in block.text.splitlines())


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_code_that_runs(page: str) -> None:
    assert [block for block in blocks(page) if block.language in {"python", "bash"} and block.reason is None]
