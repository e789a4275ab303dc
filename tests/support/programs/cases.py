"""Runs the loaders that a JSON file describes, one after the other, and writes what each of them did on this rank.

In:  arguments JOB and FOLDER. JOB holds a list of cases (the keys are those that `run` below looks for).
Out: FOLDER/rank0.pickle, ...: a list with an outcome per case: {"passes": [{"tokens": [batches, batch, seq_len], ...}],
     "errors": [...], "digests": [after each pass], "stats", "state", "open_files", "seconds"}.
"""

import dataclasses
import faulthandler
import gc
import json
import os
import pickle
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from fsspec.implementations.local import LocalFileSystem
from support.arguments import of_job, packed_dataset
from support.workers import worker_pids
from torch.distributed.device_mesh import init_device_mesh

import streampack
from streampack.formats.layout import context_parallel_slice
from streampack.ranks import groups
from streampack.state.joining import to_json

KEYS = ("tokens", "labels", "position_ids", "segment_ids", "num_targets")


class WatchedFileSystem(LocalFileSystem):
    """Local files as a remote storage that notes who asks for what, in the file $WATCHED."""

    protocol = "watched"
    cachable = False

    def _note(self, operation: str) -> None:
        with Path(os.environ["WATCHED"]).open("a") as file:
            file.write(f"{os.getpid()} {operation}\n")

    def info(self, path: str, **options: Any) -> Any:
        self._note("info")
        return super().info(path, **options)

    def ls(self, path: str, detail: bool = False, **options: Any) -> Any:  # noqa: FBT002 (fsspec's own signature)
        self._note("ls")
        return super().ls(path, detail=detail, **options)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        self._note("read")
        return super().cat_file(path, start=start, end=end, **options)


# At the top, so that spawned workers, which import this file, know it too.
fsspec.register_implementation("watched", WatchedFileSystem, clobber=True)


def restless(document: streampack.Document, rng: Any) -> streampack.Document:
    """A transform that is no pure function: what it does depends on the process."""
    return dataclasses.replace(document, text=f"{os.getpid()} {document.text}")


def _stack(batches: list[dict[str, torch.Tensor]]) -> dict[str, Any]:
    return {key: torch.stack([batch[key] for batch in batches]).numpy() for key in KEYS} if batches else {}


def run(case: dict[str, Any]) -> dict[str, Any]:
    rank = int(os.environ["RANK"])
    mine = case.get("per_rank", {}).get(str(rank), {})
    arguments = case["loader"] | mine.get("loader", {})
    if mesh := case.get("mesh"):
        device_mesh = init_device_mesh("cpu", tuple(mesh.values()), mesh_dim_names=tuple(mesh))
        arguments["device_mesh"] = device_mesh[tuple(given)] if (given := case.get("sub_mesh")) else device_mesh
    if case.get("given_group"):
        arguments |= {"dp_rank": rank, "dp_size": dist.get_world_size(), "process_group": dist.group.WORLD}
        arguments |= mine.get("loader", {})
    outcome: dict[str, Any] = {"passes": [], "errors": [], "digests": [], "pid": os.getpid()}
    begin = time.monotonic()
    loader = None
    for _ in range(case.get("tries", 1)):
        try:
            if loader is None:
                dataset = packed_dataset(
                    **of_job(case["dataset"] | mine.get("dataset", {})),
                    transform=restless if case.get("restless") else None,
                )
                loader = streampack.PackedDataLoader(dataset, **arguments)
            if state := mine.get("state", case.get("state")):
                loader.load_state_dict(json.loads(state))
            for number in range(case.get("passes", 1)):
                batches: list[dict[str, torch.Tensor]] = []
                # Where to leave off and begin a new iterator, and None: go on to the end (or to so many batches).
                if "skip" in mine:
                    loader.skip(mine["skip"])
                for leave in (*(case | mine).get("leave_after", ()), (case | mine).get("batches")):
                    for batch in _take(loader, None if leave is None else leave - len(batches)):
                        batches.append(batch)
                        if number == 0 and len(batches) in case.get("kill_after", {}).get(str(rank), ()):
                            with suppress(ProcessLookupError):  # dead since the last kill, and not missed yet
                                os.kill(worker_pids(loader)[0], signal.SIGKILL)
                        if rank in case.get("slow_ranks", ()) and len(batches) < 10:
                            time.sleep(0.03)
                outcome["passes"].append(_stack(batches))
                if case.get("slices"):
                    place = {"rank": device_mesh["cp"].get_local_rank(), "size": device_mesh["cp"].size()}
                    outcome["slices"] = _stack([context_parallel_slice(batch, **place) for batch in batches])
                outcome["digests"].append(loader.digest())
                outcome["stats"] = loader.stats()
                outcome["state"] = to_json(loader.state_dict())
                if case.get("sums"):
                    outcome["sums"] = loader.stats(all_ranks=True), loader.digest(all_ranks=True)
                if "save" in case:
                    dcp.save({"loader": loader.state_dict()}, checkpoint_id=case["save"])
                if number in case.get("close_after_passes", ()):
                    loader.close()
        except streampack.StreampackError as error:
            outcome["errors"].append(f"{type(error).__name__}: {error}")
            if loader is not None:
                outcome["stats"] = loader.stats()
    if loader is not None:
        loader.close()
    gc.collect()  # what is only waiting to be collected is no leak
    outcome["open_files"] = len(list(Path("/proc/self/fd").glob("*")))
    outcome["seconds"] = time.monotonic() - begin
    return outcome


def _take(loader: streampack.PackedDataLoader, limit: int | None) -> Iterator[dict[str, torch.Tensor]]:
    iterator = iter(loader)
    while limit is None or limit > 0:
        batch = next(iterator, None)
        if batch is None:
            return
        yield batch
        limit = None if limit is None else limit - 1


def main() -> None:
    faulthandler.dump_traceback_later(60, repeat=True)  # seen only when the job hangs
    gc.freeze()  # what `run` collects are its own objects, not also those of all libraries
    cases = json.loads(Path(sys.argv[1]).read_text())
    outcomes = []
    for case in cases:
        if not case.get("without_group") and not dist.is_initialized():
            dist.init_process_group("gloo")
            if dist.get_world_size() > 2:
                groups.FAN = 2  # two ranks are one mesh, four a tree of them
        if subset := case.get("group_of"):
            dist.new_group(subset)
        os.environ["WATCHED"] = case.get("watched", os.devnull)
        sys.stderr.write(f"rank {os.environ['RANK']}: {case['name']}\n")
        outcomes.append(run(case))
    if dist.is_initialized() and not cases[-1].get("leave_early"):
        dist.barrier()  # a rank that leaves early would break the connections of the others
        dist.destroy_process_group()
    (Path(sys.argv[2]) / f"rank{os.environ['RANK']}.pickle").write_bytes(pickle.dumps(outcomes))
    if cases[-1].get("leave_early"):
        os._exit(0)  # its connections break now, not at some time


if __name__ == "__main__":
    main()
