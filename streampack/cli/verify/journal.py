"""The journal of `streampack verify`: a line for each shard that is done.

In:  a file, and verdicts. Out: the verdicts on good shards that it has already.
Invariants: a line that was cut off costs that shard only: it is read again.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import msgspec

from streampack.cli.arguments import file_errors
from streampack.cli.console import plural, print_warning, to_json
from streampack.cli.verify.verdict import Verdict


class Journal:
    """A file that is read once, and then gets a line for each shard."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.known = _known(path)
        self._file: IO[bytes] | None = None

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Within it, shards are noted."""
        with file_errors("--journal", self._path):
            file = self._path.open("ab+")
        with file:
            if file.tell():
                file.seek(-1, 2)
                if file.read(1) != b"\n":  # a line that was cut off
                    file.write(b"\n")
            self._file = file
            yield

    def note(self, verdict: Verdict) -> None:
        """Add a line."""
        assert self._file is not None, "within opened()"
        with file_errors("--journal", self._path):
            self._file.write(to_json(msgspec.to_builtins(verdict)).encode() + b"\n")
            self._file.flush()


def _known(journal: Path) -> dict[tuple[object, ...], Verdict]:
    """The verdicts of the journal on good shards; those with problems are read again, since they may be repaired."""
    found: dict[tuple[object, ...], Verdict] = {}
    wrong = []
    if journal.exists():
        with file_errors("--journal", journal):
            lines = journal.read_bytes().splitlines()
        for number, line in enumerate(lines, 1):
            try:
                verdict = msgspec.convert(json.loads(line), Verdict)
            except (msgspec.ValidationError, ValueError):
                wrong.append(number)
                continue
            if not verdict.num_problems:
                found[verdict.subject] = verdict
    if wrong:
        more = f", nor are {plural(len(wrong) - 1, 'other')}" if len(wrong) > 1 else ""
        print_warning(
            f"{journal}, line {wrong[0]} is not a verdict{more} (cut off, or of another release?); what they are about "
            "is read again"
        )
    return found
