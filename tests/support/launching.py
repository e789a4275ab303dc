"""Jobs that launch.py forks: one process of it for all jobs of this one, started with the first of them."""

import atexit
import functools
import io
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

LAUNCH = Path(__file__).parent / "launch.py"


class Forked:
    """`LAUNCH RANKS PROGRAM ARGUMENTS...`, given as `arguments`, with as much of `subprocess.Popen` as jobs need.

    `mark` is the variable of the environment by which the job's processes are found in /proc.
    """

    def __init__(
        self, arguments: Sequence[str | Path], *, stdout: int, stderr: int, environment: Mapping[str, str], mark: str
    ) -> None:
        value = environment[mark]
        server = _server(mark, len(value))
        told_by_it, told = os.pipe()
        self._told = io.FileIO(told_by_it)
        job = {
            "arguments": list(map(str, arguments)),
            "environment": dict(environment),
            "mark": [mark, value],
            "folder": str(Path.cwd()),
        }
        socket.send_fds(server, [json.dumps(job).encode()], [stdout, stderr, told])
        os.close(told)
        self.pid = int(self._told.readline())
        self._returncode: int | None = None

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        try:
            return self.wait(timeout=0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        if self._returncode is None:
            if not select.select([self._told], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(LAUNCH), timeout or 0)
            self._returncode = int(self._told.readline())
            self._told.close()
        return self._returncode

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


@functools.cache
def _server(mark: str, length: int) -> socket.socket:
    """The socket that launch.py reads; `mark` has a value as long in its environment, which jobs overwrite."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONFAULTHANDLER": "1",
        "PYTHONPATH": os.pathsep.join([str(LAUNCH.parents[1]), os.environ.get("PYTHONPATH", "")]),
        mark: "-" * length,
    }
    with there:
        process = subprocess.Popen(
            [sys.executable, LAUNCH],
            stdin=there,
            stdout=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )

    def end() -> None:
        here.close()
        process.wait()

    atexit.register(end)
    return here
