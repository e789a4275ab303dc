"""Examples as processes that are killed at a step and started again.

An example writes a line for each step into a pipe that holds one line (Linux's packet mode, and a single page), so it
is never more than one line ahead of its test: it is killed where the test says, on a machine of any speed.
"""

import fcntl
import os
import re
import select
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import streampack
from support.launching import LAUNCH
from support.processes import PROGRAMS, Job, launcher

EXAMPLES = Path(streampack.__file__).parent / "examples"

STEPS, CHECKPOINT_EVERY, KILL_AFTER = 15, 5, 7
"""Killed two steps behind a checkpoint, at least two before the next: the steps since the checkpoint come twice."""

Steps = dict[int, tuple[float, str]]
"""Step -> its loss and the digest of its batch."""


class Example(Job):
    """A process that is at most one line ahead of whoever reads its lines."""

    def __init__(self, command: list[str | Path], *, log: Path) -> None:
        self._lines, stdout = os.pipe2(os.O_DIRECT)  # each write is a packet of its own
        fcntl.fcntl(stdout, fcntl.F_SETPIPE_SZ, 4096)  # and there is room for one
        try:
            self._start(command, log=log, stdout=stdout)
        finally:
            os.close(stdout)

    def steps(self, *, until: int | None, deadline_s: float = 120) -> Steps:
        """The steps up to `until`, or all that there are before the process ends."""
        found: Steps = {}
        give_up, rest = time.monotonic() + deadline_s, b""
        while until not in found:
            if not select.select([self._lines], [], [], max(give_up - time.monotonic(), 0))[0]:
                pytest.fail(f"step {max(found, default=0)} was the last one in {deadline_s} s:\n{self.output}")
            data = os.read(self._lines, 4096)
            if not data:
                assert until is None, f"the example ended before step {until}:\n{self.output}"
                break
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                if step := re.fullmatch(r"step (\d+) loss (\S+) batch ([0-9a-f]{8})", line.decode()):
                    assert int(step[1]) not in found, f"step {step[1]} came twice in one run"
                    found[int(step[1])] = float(step[2]), step[3]
        return found

    def kill(self) -> None:
        super().kill()
        if self._lines >= 0:
            os.close(self._lines)
            self._lines = -1


class Runs:
    """Runs of examples, or of programs of the tests, in a folder.

    Two ranks are started by `support/launch.py`, or by torchrun if `by_torchrun`.
    """

    def __init__(self, folder: Path, *, by_torchrun: bool = False) -> None:
        self.folder = folder
        self._by_torchrun = by_torchrun
        self._count = 0

    def __call__(
        self, name: str, *arguments: str | Path, ranks: int | None = None, kill_after: int | None = None
    ) -> Steps:
        """Run one to its end; or kill it all when it has printed step `kill_after`."""
        self._count += 1
        program = PROGRAMS / name if name.endswith(".py") else EXAMPLES / f"{name}.py"
        if ranks is None and not name.endswith(".py"):
            command = [sys.executable, "-m", f"streampack.examples.{name}"]
        elif ranks is None:
            command = [sys.executable, program]
        elif self._by_torchrun:
            command = [*launcher(ranks), program]
        else:
            command = [LAUNCH, str(ranks), program]
        with Example([*command, *arguments], log=self.folder / f"log{self._count}") as example:
            found = example.steps(until=kill_after)
            if kill_after is None:
                code = example.wait(60)
                assert code == 0, f"the example ended with {code}; it said:\n{example.output}"
        return found


def assert_goes_on_exactly(
    run: Runs, name: str, whole: str | Path, killed: str | Path, *options: str, **how: Any
) -> None:
    """Two runs, one with a kill and a second start with the same command, have the same losses and batches."""
    expected = run(name, whole, *options, **how)
    assert list(expected) == list(range(1, STEPS + 1))
    assert len({digest for _, digest in expected.values()}) == STEPS, "each step has a batch of its own"
    first = run(name, killed, *options, **how, kill_after=KILL_AFTER)
    second = run(name, killed, *options, **how)
    assert first == {step: expected[step] for step in range(1, KILL_AFTER + 1)}
    assert second == {step: expected[step] for step in range(CHECKPOINT_EVERY + 1, STEPS + 1)}


COUNTS = (f"--steps={STEPS}", f"--checkpoint-every={CHECKPOINT_EVERY}")
