"""What the state of many lanes costs through torch.distributed.checkpoint; no data are read.

    python tests/benchmarks/scale/checkpoint.py plan [LANES RANKS]    planning on rank 0, without processes
    python tests/benchmarks/scale/checkpoint.py real [LANES RANKS]    save and load, in both ways, on so many processes

In:  61440 lanes unless given; 4096 ranks to plan, 4 real ones. Out: one line of JSON.
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


def state_of(rank: int, ranks: int, num_lanes: int, *, filled: bool) -> dict[str, Any]:
    """A rank's state in which each lane's epoch is its own number, and every 16th lane has skipped ranges: 1 to 33."""
    committed = Committed.fresh(range(rank, num_lanes, ranks), num_lanes)
    if filled:
        committed.rows[:, 0] = np.array(committed.lanes)
        for index, lane in enumerate(committed.lanes):
            if index % 16 == 0:
                count = 1 + index // 16 % (SLOTS + 1)
                committed.skipped_ranges[index] = tuple(SkippedRange(lane, 0, 0, at, at + 1, 0) for at in range(count))
    return {"loader": committed.to_state({"num_lanes": num_lanes, "shards": "x" * 2500}, {})}


def save_planner(rank: int, ranks: int, num_lanes: int) -> DefaultSavePlanner:
    planner = DefaultSavePlanner()
    planner.set_up_planner(state_of(rank, ranks, num_lanes, filled=True), None, rank == 0)
    return planner


def plan(num_lanes: int, ranks: int) -> dict[str, float]:
    """What rank 0 does with the plans of all ranks, and how large the metadata are."""
    sent = [pickle.dumps(save_planner(rank, ranks, num_lanes).create_local_plan()) for rank in range(ranks)]
    first = save_planner(0, ranks, num_lanes)
    first.create_local_plan()
    begin = time.process_time()
    plans = [pickle.loads(each) for each in sent]
    received = time.process_time()
    final, metadata = first.create_global_plan(plans)
    planned = time.process_time()
    places = {item.index: (f"__{rank}_0.distcp", 0, 1000) for rank, each in enumerate(final) for item in each.items}
    whole = Metadata(metadata.state_dict_metadata, metadata.planner_data, places)
    load = DefaultLoadPlanner()
    load.set_up_planner(state_of(ranks - 1, ranks, num_lanes, filled=False), whole, False)
    begin_load = time.process_time()
    load.create_local_plan()
    return {
        "unpickle_s": received - begin,
        "plan_s": planned - received,
        "load_plan_s": time.process_time() - begin_load,
        "metadata_mb": len(pickle.dumps(whole)) / 1e6,
    }


def real(rank: int, ranks: int, num_lanes: int, port: int, folder: str) -> None:
    """One rank: save, load, compare by value; rank 0 writes the seconds."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    state = state_of(rank, ranks, num_lanes, filled=True)
    template = state_of(rank, ranks, num_lanes, filled=False)
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
    expected = read_lanes(state["loader"], num_lanes, len(FIELDS)).skipped_ranges
    assert read_lanes(found, num_lanes, len(FIELDS)).skipped_ranges == expected and expected
    table = template["loader"]["rows"]
    lanes = table.local[..., 0].flatten().sort().values
    assert lanes.tolist() == list(range(rank, num_lanes, ranks)) and table.local.shape[-1] == len(FIELDS)
    if rank == 0:
        seconds = {"save_s": saved - begin, "load_s": loaded - middle, "load_checkpoint_s": read - again}
        Path(folder, "seconds").write_text(json.dumps(seconds))
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    warnings.simplefilter("ignore")
    what, *numbers = sys.argv[1:] or ["plan"]
    num_lanes, ranks = map(int, numbers or (61440, 4096 if what == "plan" else 4))
    if what == "plan":
        figures = plan(num_lanes, ranks)
    else:
        with tempfile.TemporaryDirectory() as folder:
            port = 20000 + os.getpid() % 20000
            mp.start_processes(real, args=(ranks, num_lanes, port, folder), nprocs=ranks, start_method="fork")
            figures = json.loads(Path(folder, "seconds").read_text())
    shown = {name: round(value, 3) for name, value in figures.items()}
    print(json.dumps({"torch": torch.__version__, "lanes": num_lanes, "ranks": ranks, **shown}))


if __name__ == "__main__":
    main()
