"""What the state of many lanes costs through torch.distributed.checkpoint; no data are read.

    python tests/benchmarks/scale/checkpoint.py plan [LANES RANKS SOURCES]    planning on rank 0, without processes
    python tests/benchmarks/scale/checkpoint.py real [LANES RANKS SOURCES]    save and load, in both ways, on so many
                                                                              processes

In:  61440 lanes and 5 sources unless given; 4096 ranks to plan, 4 real ones. Out: one line of JSON.
"""

import json
import os
import pickle
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import Metadata

from streampack.lanes.position import SkippedRange
from streampack.state.checkpoint import FIELDS, Committed
from streampack.state.forms import SLOTS, read_lanes
from streampack.state.reading import read_checkpoint
from streampack.state.sharded import from_table


def state_of(rank: int, ranks: int, num_lanes: int, num_sources: int, *, filled: bool) -> dict[str, Any]:
    """A rank's state in which the epoch of a lane and a source is the lane's number, and the piece that of the source.

    Every 16th lane has skipped ranges in its last source: 1 to 17.
    """
    names = [f"source-{number}" for number in range(num_sources)]
    committed = Committed.fresh(range(rank, num_lanes, ranks), num_lanes, names)
    if filled:
        committed.rows[:, 0] = np.repeat(np.array(committed.lanes), num_sources)
        committed.rows[:, 1] = np.tile(np.arange(num_sources), len(committed.lanes))
        for index, lane in enumerate(committed.lanes):
            if index % 16 == 0:
                count = 1 + index // 16 % (SLOTS + 1)
                skipped = tuple(SkippedRange(lane, num_sources, 0, at, at + 1, 0) for at in range(count))
                committed.skipped_ranges[committed.row(index, num_sources - 1)] = skipped
    fingerprint = {"num_lanes": num_lanes, "sources": {name: {"shards": "x" * 2500} for name in names}}
    return {"loader": committed.to_state(fingerprint, {})}


def save_planner(rank: int, ranks: int, num_lanes: int, num_sources: int) -> DefaultSavePlanner:
    planner = DefaultSavePlanner()
    planner.set_up_planner(state_of(rank, ranks, num_lanes, num_sources, filled=True), None, rank == 0)
    return planner


def plan(num_lanes: int, ranks: int, num_sources: int) -> dict[str, float]:
    """What rank 0 does with the plans of all ranks, and how large the metadata are."""
    planners = (save_planner(rank, ranks, num_lanes, num_sources) for rank in range(ranks))
    sent = [pickle.dumps(planner.create_local_plan()) for planner in planners]
    first = save_planner(0, ranks, num_lanes, num_sources)
    first.create_local_plan()
    begin = time.process_time()
    plans = [pickle.loads(each) for each in sent]
    received = time.process_time()
    final, metadata = first.create_global_plan(plans)
    planned = time.process_time()
    places = {item.index: (f"__{rank}_0.distcp", 0, 1000) for rank, each in enumerate(final) for item in each.items}
    whole = Metadata(metadata.state_dict_metadata, metadata.planner_data, places)
    load = DefaultLoadPlanner()
    template = state_of(ranks - 1, ranks, num_lanes, num_sources, filled=False)
    load.set_up_planner(template, whole, False)
    begin_load = time.process_time()
    load.create_local_plan()
    return {
        "unpickle_s": received - begin,
        "plan_s": planned - received,
        "load_plan_s": time.process_time() - begin_load,
        "metadata_mb": len(pickle.dumps(whole)) / 1e6,
    }


def real(rank: int, ranks: int, num_lanes: int, num_sources: int, port: int, folder: str) -> None:
    """One rank: save, load, compare by value; rank 0 writes the seconds."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    state = state_of(rank, ranks, num_lanes, num_sources, filled=True)
    template = state_of(rank, ranks, num_lanes, num_sources, filled=False)
    dist.barrier()
    begin = time.perf_counter()
    dcp.save(state, checkpoint_id=f"{folder}/checkpoint")
    saved = time.perf_counter()
    dist.barrier()
    middle = time.perf_counter()
    dcp.load(template, checkpoint_id=f"{folder}/checkpoint")
    loaded = time.perf_counter()
    dist.barrier()
    again = time.perf_counter()
    found = read_checkpoint(f"{folder}/checkpoint", lambda lanes: range(rank, lanes, ranks), key=None)
    read = time.perf_counter()
    expected = read_lanes(state["loader"], num_lanes, num_sources, len(FIELDS)).skipped_ranges
    assert read_lanes(found, num_lanes, num_sources, len(FIELDS)).skipped_ranges == expected and expected
    _, loaded_rows = from_table(template["loader"]["rows"], num_lanes, num_sources, len(FIELDS), "rows")
    assert (loaded_rows[..., 0] == np.arange(rank, num_lanes, ranks)[:, None]).all()
    assert (loaded_rows[..., 1] == np.arange(num_sources)).all()
    if rank == 0:
        seconds = {"save_s": saved - begin, "load_s": loaded - middle, "load_checkpoint_s": read - again}
        Path(folder, "seconds").write_text(json.dumps(seconds))
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    warnings.simplefilter("ignore")
    what, *numbers = sys.argv[1:] or ["plan"]
    defaults = (61440, 4096 if what == "plan" else 4, 5)
    num_lanes, ranks, num_sources = (*map(int, numbers), *defaults[len(numbers) :])
    if what == "plan":
        figures = plan(num_lanes, ranks, num_sources)
    else:
        with tempfile.TemporaryDirectory() as folder:
            port = 20000 + os.getpid() % 20000
            arguments = (ranks, num_lanes, num_sources, port, folder)
            mp.start_processes(real, args=arguments, nprocs=ranks, start_method="fork")
            figures = json.loads(Path(folder, "seconds").read_text())
    shown = {name: round(value, 3) for name, value in figures.items()}
    print(json.dumps({"torch": torch.__version__, "lanes": num_lanes, "ranks": ranks, "sources": num_sources, **shown}))


if __name__ == "__main__":
    main()
