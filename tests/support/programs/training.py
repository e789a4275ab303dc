"""A training job that checkpoints and can be killed at any moment.

In:  arguments JOB and FOLDER. JOB: {"dataset" (its stages as mappings), "loader", "load": checkpoint or null, "every":
     batches between checkpoints, "batches": how many, null for no end, "pause_after": the batch with which it hangs,
     or null}.
Out: FOLDER/rank0.packs, ...: pickles one behind the other: the global pack that it began with, then a batch each.
     FOLDER/step00003, ...: checkpoints, each complete once it has a `.metadata`.
"""

import faulthandler
import itertools
import json
import os
import pickle
import sys
import time
from pathlib import Path

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from support.arguments import of_job, packed_dataset

import streampack


def main() -> None:
    faulthandler.dump_traceback_later(60, repeat=True)
    dist.init_process_group("gloo")
    job, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    dataset = packed_dataset(**of_job(job["dataset"]))
    loader = streampack.PackedDataLoader(dataset, **job["loader"])
    if job["load"]:
        dcp.load({"loader": loader}, checkpoint_id=job["load"])
    with (folder / f"rank{os.environ['RANK']}.packs").open("wb", buffering=0) as file:
        file.write(pickle.dumps(loader.state_dict()["global_pack"]))
        for step, batch in enumerate(itertools.islice(loader, job["batches"]), 1):
            file.write(pickle.dumps({key: batch[key].numpy() for key in batch if key != "provenance"}))
            if step % job["every"] == 0:
                dcp.save({"loader": loader}, checkpoint_id=folder / f"step{step:05d}")
            time.sleep(3600 if step == job["pause_after"] else 0.002)
        file.write(pickle.dumps(loader.digest()))
    loader.close()
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
