"""A rank whose workers, and the server that they come from, are hurt at random while it takes batches.

In:  arguments JOB and FOLDER. JOB: {"dataset", "loader", "seconds", "pause_s": after each batch, "seed"}.
Out: FOLDER/rank0.json, ...: {"batches", "digest", "stats", "faults": how many of each kind, "curve": [[seconds, MB of
     its own, open files]], "files": [before the loader, after it was closed], "left": processes after that}.
"""

import contextlib
import faulthandler
import gc
import json
import logging
import os
import random
import resource
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch.distributed as dist
from support.arguments import packed_dataset
from support.workers import children, server_pid, worker_pids

import streampack
from streampack.cli.bench.clocks import own_memory_mb
from streampack.loader import restarts, workers

if TYPE_CHECKING:
    from collections.abc import Callable


def files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


class Hurting:
    """Does something to a worker, the server or this process, now and then, until it is told to stop."""

    def __init__(self, loader: streampack.PackedDataLoader, seed: int) -> None:
        self.faults: Counter[str] = Counter()
        self._loader = loader
        self._chance = random.Random(seed)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._kinds: dict[str, Callable[[], object]] = {
            "SIGKILL of a worker": lambda: os.kill(self._worker(), signal.SIGKILL),
            "SIGSTOP of a worker": lambda: os.kill(self._worker(), signal.SIGSTOP),
            "SIGKILL of the server": lambda: os.kill(self._server(), signal.SIGKILL),
            "SIGSTOP of the server": lambda: os.kill(self._server(), signal.SIGSTOP),
            "EMFILE in the trainer": lambda: self._limit(0, resource.RLIMIT_NOFILE, files() - 2),
            "EMFILE in a worker": lambda: self._limit(self._worker(), resource.RLIMIT_NOFILE, 6),
            "EMFILE in the server": lambda: self._limit(self._server(), resource.RLIMIT_NOFILE, 6),
            "ENOMEM in a worker": lambda: self._limit(self._worker(), resource.RLIMIT_AS, 2**20),
            "ENOMEM in the server": lambda: self._limit(self._server(), resource.RLIMIT_AS, 2**20),
        }

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(self._chance.uniform(0.1, 2.5)):
            kind = self._chance.choice(list(self._kinds))
            with contextlib.suppress(ProcessLookupError, IndexError, AssertionError):  # it is just being started
                self._kinds[kind]()
                self.faults[kind] += 1

    def _worker(self) -> int:
        return self._chance.choice(worker_pids(self._loader))

    def _server(self) -> int:
        pid = server_pid(self._loader)
        assert pid is not None
        return pid

    def _limit(self, pid: int, what: int, soft: int) -> None:
        before = resource.prlimit(pid, what)
        resource.prlimit(pid, what, (soft, before[1]))
        self._over.wait(self._chance.uniform(0.02, 0.5))
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, what, before)


def main() -> None:
    dist.init_process_group("gloo")
    logging.basicConfig(level=logging.WARNING)
    job, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    faulthandler.dump_traceback_later(job["seconds"] + 100, exit=True)
    rank = dist.get_rank()
    restarts.BUDGET = 10**9  # type: ignore[misc]
    workers.START_S = 15.0  # type: ignore[misc]  # a server that is stopped as it starts
    curve: list[tuple[float, float, int]] = []
    dataset = packed_dataset(**job["dataset"])
    with streampack.PackedDataLoader(dataset, **job["loader"]) as first:  # the ranks' own sockets stay
        next(iter(first))
    before = files()
    loader = streampack.PackedDataLoader(dataset, **job["loader"])
    iterator = iter(loader)
    next(iterator)
    batches, began = 1, time.monotonic()
    with Hurting(loader, job["seed"] + rank) as hurting:
        while (elapsed := time.monotonic() - began) < job["seconds"]:
            next(iterator)
            batches += 1
            time.sleep(job["pause_s"])
            if elapsed >= len(curve):
                curve.append((elapsed, own_memory_mb(os.getpid()), files()))
    found = {"batches": batches, "digest": loader.digest(), "stats": loader.stats(), "faults": hurting.faults}
    loader.close()
    del loader, iterator
    gc.collect()
    found |= {"curve": curve, "files": [before, files()], "left": sorted(children())}
    (folder / f"rank{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
