"""Starts the ranks of a job as torchrun does, all out of one process that has imported what they need.

    python launch.py RANKS PROGRAM ARGUMENTS...    one job
    python launch.py < SOCKET                      a job for each message of `launching.Forked`, until the socket ends

An import of torch takes seconds, and torchrun makes one for itself and one for each rank; here it is made once, for all
jobs of a socket. What a rank finds in its environment and who keeps the store is as under torchrun. A rank that fails
ends all the others.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import torch.distributed as dist

GRACE_S = 10
MOST_PROGRAMS_IMPORT = ("streampack", "torch.distributed.checkpoint", "torch.distributed.fsdp")


def serve() -> None:
    """Fork a job for each message on the standard input."""
    for name in MOST_PROGRAMS_IMPORT:
        importlib.import_module(name)
    gc.freeze()
    with socket.socket(fileno=os.dup(0)) as asked:
        while True:
            message, files, *_ = socket.recv_fds(asked, 2**20, 3)
            if not message:
                return
            if os.fork() == 0:
                keep(json.loads(message), *files)
                return
            for file in files:
                os.close(file)
            with contextlib.suppress(ChildProcessError):  # there is none
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass


def keep(job: dict[str, Any], stdout: int, stderr: int, told: int) -> None:
    """Tell the id of the job's process and how it ended. Returns in that process and in its ranks."""
    if pid := os.fork():
        os.write(told, f"{pid}\n".encode())
        for file in (stdout, stderr):
            os.close(file)
        ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.write(told, f"{ended}\n".encode())
        os._exit(0)
    os.close(told)
    os.setsid()
    stdin = os.open(os.devnull, os.O_RDONLY)
    for number, file in enumerate((stdin, stdout, stderr)):
        os.dup2(file, number)
        os.close(file)
    os.chdir(job["folder"])
    carry(*job["mark"])
    os.environ.clear()
    os.environ |= job["environment"]
    main(job["arguments"])


def carry(name: str, value: str) -> None:
    """Make /proc/PID/environ of this process, and of those that it forks, have a value as long as the one in it.

    It shows where the process's first environment lay in memory, which `os.environ` never changes.
    """
    library = ctypes.CDLL(None)
    library.getenv.restype = ctypes.c_void_p
    ctypes.memmove(library.getenv(name.encode()), value.encode(), len(value))


def main(arguments: list[str]) -> None:
    num_ranks, sys.argv = int(arguments[0]), arguments[1:]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name="imported")  # its imports; `main` is not called
    gc.freeze()  # no collection needs to look at the libraries, and ranks and workers share their pages
    listening = socket.create_server(("127.0.0.1", 0))
    here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(listening.getsockname()[1])}
    os.environ["USE_LIBUV"] = "0"
    elastic = {"RESTART_COUNT": "0", "RUN_ID": "none", "USE_AGENT_STORE": "True"}
    os.environ |= here | {f"TORCHELASTIC_{name}": value for name, value in elastic.items()} | {"GROUP_RANK": "0"}
    ranks = {}
    for rank in range(num_ranks):
        if (pid := os.fork()) == 0:
            listening.close()
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            os.environ |= {"WORLD_SIZE": str(num_ranks), "LOCAL_WORLD_SIZE": str(num_ranks)}
            runpy.run_path(sys.argv[0], run_name="__main__")
            return
        ranks[pid] = rank
    # Its thread begins only now: no rank is a fork of a process with threads.
    store = dist.TCPStore(
        "127.0.0.1",
        listening.getsockname()[1],
        is_master=True,
        wait_for_workers=False,
        use_libuv=False,  # with it torch 2.6 takes no socket that is there already
        master_listen_fd=listening.detach(),
    )
    failed = wait(ranks)
    del store
    if failed is not None:
        sys.exit(f"rank {failed} failed")


def wait(ranks: dict[int, int]) -> int | None:
    """Wait for all; the first one that fails."""
    while ranks:
        pid, status = os.wait()
        failed = ranks.pop(pid, None)
        if status and failed is not None:
            for other in ranks:
                os.kill(other, signal.SIGTERM)
            give_up = time.monotonic() + GRACE_S
            while ranks:
                pid, _ = os.waitpid(-1, os.WNOHANG)
                ranks.pop(pid, None)
                if time.monotonic() > give_up:
                    for other in ranks:
                        os.kill(other, signal.SIGKILL)
                time.sleep(0.02)
            return failed
    return None


if __name__ == "__main__":
    main(sys.argv[1:]) if sys.argv[1:] else serve()
