"""The processes of a loader, for tests that hurt them or look for what is left."""

import contextlib
import os
import time
from pathlib import Path

import streampack
from streampack.loader.serving import WorkerServer


def worker_pids(loader: streampack.PackedDataLoader) -> list[int]:
    """Its workers, once they are there; none where it has no pass. One that has died may have been waited for."""
    current = None if loader._delivery is None else loader._delivery.current_pass
    if current is None or current._restarting is None:
        return []
    processes = [each.process for each in current._restarting._workers._workers]
    give_up = time.monotonic() + 60
    while not all(each.pid for each in processes):
        assert time.monotonic() < give_up, "the workers do not begin"
        time.sleep(0.01)
    return [each.pid or 0 for each in processes]


def server_pid(loader: streampack.PackedDataLoader) -> int | None:
    """The process that its workers come from, if there is one."""
    launcher = None if loader._delivery is None else loader._delivery._restarts.launcher
    running = launcher._running if isinstance(launcher, WorkerServer) else None
    return None if running is None else running.process.pid


def alive(pids: list[int]) -> list[int]:
    """Those of the processes that are there, also if they have died and nobody has waited for them."""
    return [pid for pid in pids if _is_there(pid)]


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def children() -> set[int]:
    """The processes that this one, or one of these, has started and that have not been waited for, dead ones too."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if b"resource_tracker" not in (folder / "cmdline").read_bytes():
                parents[int(folder.name)] = int(fields[1])
    found, wider = {os.getpid()}, set(parents)
    while wider:
        wider = {pid for pid, parent in parents.items() if parent in found} - found
        found |= wider
    return found - {os.getpid()}
