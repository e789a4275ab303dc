"""What exchanges between N ranks cost on this machine: over a tree of small groups, a full mesh, lazy connections.

    python tests/benchmarks/scale/group.py tree|full|lazy N [PROCESSES]

Ranks are threads of so many processes (8 unless given), each with one store client; rank 0 is a process by
itself, and the store's server another one, as under torchrun. `lazy` is TORCH_GLOO_LAZY_INIT, where torch has it.

Out: one line of JSON: seconds until all ranks are connected, sockets of rank 0 and of another rank on average (without
     the store's), requests to the store in all (not counted for `lazy`, whose threads cannot call Python), and seconds
     of an all-gather of 24 bytes, of a broadcast of 1 MB (64 KB from 512 ranks on, as all share this machine) and of an
     agreement, each the least of three. Each step is told on stderr when it is over.

256 ranks over a tree take about 20 s on 2 busy cores, and 512, which are some 2,000 threads, 110 s: connect 3.5 s,
all-gather 16.7 s, broadcast 3.7 s, agreement 4.7 s; 24 sockets on rank 0, 9.1 on another; 9,928 requests to the store.
"""

import itertools
import json
import multiprocessing
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroupGloo

from streampack.ranks import groups
from streampack.ranks.exchange import Exchange

TIMEOUT = timedelta(seconds=600)
_this = threading.local()


class Counted(dist.Store):
    """A store that counts what it is asked."""

    asked = 0

    def __init__(self, store: dist.Store) -> None:
        super().__init__()
        self._store = store

    def set(self, key: str, value: str) -> None:
        Counted.asked += 1
        self._store.set(key, value)

    def get(self, key: str) -> bytes:
        Counted.asked += 1
        return self._store.get(key)

    def wait(self, keys: list[str], timeout: timedelta = TIMEOUT) -> None:  # type: ignore[override]
        Counted.asked += 1
        while not self._store.check(keys):  # one that waits would keep the other threads from this client
            time.sleep(0.005)

    def add(self, key: str, amount: int) -> int:
        Counted.asked += 1
        return self._store.add(key, amount)

    def has_extended_api(self) -> bool:
        return False

    def set_timeout(self, timeout: timedelta) -> None:
        self._store.set_timeout(timeout)

    @property
    def timeout(self) -> timedelta:
        return TIMEOUT


def new_gloo_group(name: str, *, rank: int, size: int) -> Any:
    return ProcessGroupGloo(dist.PrefixStore(name, _this.store), rank, size, TIMEOUT)


def num_sockets() -> int:
    count = 0
    for file in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # that of the listing itself
            count += str(file.readlink()).startswith("socket:")
    return count


def serve(port: int) -> None:
    store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, timeout=TIMEOUT)
    threading.Event().wait()
    del store


def run(ranks: range, size: int, way: str, port: int, barrier: Any, results: Any) -> None:
    """Those of the ranks that are threads of this process."""
    started = time.perf_counter()
    groups.new_gloo_group = new_gloo_group
    if way != "tree":
        groups.FAN = size  # one mesh
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=TIMEOUT)

    def connect(rank: int) -> groups.Group:
        _this.store = store if way == "lazy" else Counted(store)
        return groups._connect("g", rank=rank, size=size)

    with ThreadPoolExecutor(len(ranks)) as pool:
        before = num_sockets()
        barrier.wait()
        began = time.perf_counter()
        exchanges = [Exchange(group) for group in pool.map(connect, ranks)]
        barrier.wait()
        found = {"connect_s": time.perf_counter() - began}

        def tell(step: str) -> None:
            if ranks.start == 0:
                print(f"{step} {time.perf_counter() - started:.1f} s after the start", file=sys.stderr, flush=True)

        def least(work: Callable[[Exchange], object], step: str) -> float:
            took = []
            for _ in range(3):
                barrier.wait()
                began = time.perf_counter()
                list(pool.map(work, exchanges))
                barrier.wait()
                took.append(time.perf_counter() - began)
                tell(f"{step} {len(took)} of 3:")
            return min(took)

        tell("connected:")

        value = b"x" * (2**20 if size < 512 else 2**16)
        found["all_gather_s"] = least(lambda exchange: exchange.all_gather_ints([1, 2, 3]), "all-gather")
        found["broadcast_s"] = least(lambda exchange: exchange.broadcast(value), "broadcast")
        found["agreement_s"] = least(
            lambda exchange: exchange.start_agreeing(1, range(5), highest=True).wait(), "agreement"
        )
        found |= {"sockets": (num_sockets() - before) / len(ranks), "store_requests": Counted.asked}
        results.put(found)
        results.close()
        results.join_thread()
        barrier.wait()
        os._exit(0)


def main() -> None:
    way, size = sys.argv[1], int(sys.argv[2])
    num_processes = int(sys.argv[3]) if len(sys.argv) > 3 else 8
    if way == "lazy":
        os.environ["TORCH_GLOO_LAZY_INIT"] = "1"
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    server = context.Process(target=serve, args=(port,), daemon=True)
    server.start()
    cuts = [0, 1, *(1 + (size - 1) * number // num_processes for number in range(1, num_processes + 1))]
    shares = [range(start, stop) for start, stop in itertools.pairwise(cuts) if start < stop]
    barrier, results = context.Barrier(len(shares)), context.Queue()
    for ranks in shares:
        context.Process(target=run, args=(ranks, size, way, port, barrier, results), daemon=True).start()
    found = [results.get(timeout=600) for _ in shares]
    told = {name: round(max(each[name] for each in found), 4) for name in found[0] if name.endswith("_s")}
    first, *others = sorted((each["sockets"] for each in found), reverse=True)
    told |= {"sockets_of_rank_0": first, "sockets_of_another": round(max(others), 1)}
    if way != "lazy":
        told["store_requests"] = sum(each["store_requests"] for each in found)
    print(json.dumps({"way": way, "ranks": size, "torch": torch.__version__, **told}))
    server.kill()


if __name__ == "__main__":
    main()
