"""Starts the ranks of a job as torchrun does, all out of one process that has imported what they need.

    python launch.py RANKS PROGRAM ARGUMENTS...

An import of torch takes seconds, and torchrun makes one for itself and one for each rank; here it is made once. What a
rank finds in its environment and who keeps the store is as under torchrun. A rank that fails ends all the others.
"""

import gc
import os
import runpy
import signal
import socket
import sys
import time
from pathlib import Path

import torch.distributed as dist

GRACE_S = 10


def main() -> None:
    num_ranks, sys.argv = int(sys.argv[1]), sys.argv[2:]
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
    main()
