"""Jobs of several real processes, started as users start them, with torchrun, or as torchrun does, but faster.

A job writes into a file (a pipe would be held open by whoever is left over) and carries a mark in its environment,
which all processes that it starts inherit, whatever session or group they move to. By that mark a job is killed at its
deadline and at the end of the `with`, so that nothing of it outlives its test.
"""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

import pytest

from support.launching import LAUNCH, Forked

PROGRAMS = Path(__file__).parent / "programs"

needs_proc = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in /proc")


def launcher(ranks: int, *options: str) -> list[str | Path]:
    """`torchrun` as a command to put a program and its arguments behind; `options` instead of `--standalone`."""
    return [
        *(sys.executable, "-m", "torch.distributed.run"),
        *(options or ("--standalone",)),
        f"--nproc-per-node={ranks}",
    ]


class Job:
    """RANKS processes of `programs/PROGRAM ARGUMENTS`, running from the start of the `with`.

    They are started by `support/launch.py`; by torchrun itself where `options` for it are given, also empty ones, which
    may be `inside` a command that runs another one. `environment` comes on top of this process's.
    """

    def __init__(
        self,
        program: str,
        *arguments: str | Path,
        ranks: int,
        log: Path,
        options: Sequence[str] | None = None,
        inside: Sequence[str] = (),
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        started_by = [LAUNCH, str(ranks)] if options is None else [*inside, *launcher(ranks, *options)]
        command = [*started_by, PROGRAMS / program, *arguments]
        self._start(command, log=log, environment=environment)

    def _start(
        self,
        command: Sequence[str | Path],
        *,
        log: Path,
        stdout: int | None = None,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Run a command as a job; what it writes goes into the log, or its standard output elsewhere.

        `LAUNCH` is a command whose process is a fork of one that has imported what ranks need.
        """
        self._log = log
        self._mark = f"STREAMPACK_TEST_JOB={uuid.uuid4().hex}"
        name, value = self._mark.split("=")
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(PROGRAMS.parents[1]), os.environ.get("PYTHONPATH", "")]),
            **environment,
            "OMP_NUM_THREADS": "1",
            "PYTHONFAULTHANDLER": "1",
            name: value,
        }
        self._process: Forked | subprocess.Popen[bytes]
        with log.open("wb") as file:
            output = file.fileno() if stdout is None else stdout
            if command[0] == LAUNCH:
                self._process = Forked(
                    command[1:], stdout=output, stderr=file.fileno(), environment=environment, mark=name
                )
            else:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=file,
                    env=environment,
                    start_new_session=True,
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def output(self) -> str:
        return self._log.read_text(errors="replace")

    def wait(self, deadline_s: float) -> int:
        """The exit code; at the deadline the job is killed and the test fails with all that it said."""
        try:
            return self._process.wait(timeout=deadline_s)
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(f"the job was not over after {deadline_s} s; it said:\n{self.output}")

    def processes(self) -> dict[int, int]:
        """The parent of each of the job's living processes, by process id."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                # The environment of a process that has ended and was not waited for is empty.
                if self._mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                    found[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:  # gone meanwhile, or of another user
                continue
        return found

    def ranks(self) -> list[int]:
        """The process ids of the ranks; not of their workers."""
        return [pid for pid, parent in self.processes().items() if parent == self._process.pid]

    def kill_ranks(self) -> set[int]:
        """SIGKILL to the launcher and the ranks, as when the machine's memory is full; gives who was left behind."""
        family = self.processes()
        ranks = [pid for pid, parent in family.items() if parent == self._process.pid]
        for pid in (self._process.pid, *ranks):  # the launcher first: it would end the others in an orderly way
            os.kill(pid, signal.SIGKILL)
        self._process.wait()
        return set(family) - {self._process.pid, *ranks}

    def kill(self) -> None:
        """SIGKILL to all of the job."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        give_up = time.monotonic() + 10
        while processes := self.processes():
            for pid in processes:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            assert time.monotonic() < give_up, f"the processes {sorted(processes)} cannot be killed"
            time.sleep(0.05)


def run_program(
    program: str,
    *arguments: str | Path,
    ranks: int,
    log: Path,
    deadline_s: float = 250,
    options: Sequence[str] | None = None,
) -> str:
    """What a job said that must end well before its deadline."""
    with Job(program, *arguments, ranks=ranks, log=log, options=options) as job:
        code = job.wait(deadline_s)
        assert code == 0, f"the job ended with {code}; it said:\n{job.output}"
        return job.output
