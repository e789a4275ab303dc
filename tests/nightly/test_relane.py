"""A job of thousands of lanes that is killed, given another number of them, and goes on on other ranks."""

import warnings
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

from support.arguments import packed_dataset
from support.jobs import BOS, EOS
from support.processes import Job, needs_proc, run_program
from support.training import await_checkpoint, complete, write_job, written
from torch.distributed.checkpoint import save

import streampack
from streampack.testing import write_shards

BEFORE, AFTER = 8192, 9198


@needs_proc
def test_8192_lanes_are_killed_and_go_on_as_9198_without_a_document_lost_or_twice(tmp_path: Path) -> None:
    choose = Random(0)
    texts = [f"<{number}>" + "x" * choose.randint(1, 180) for number in range(30_000)]
    shards = write_shards(tmp_path / "shards", texts, documents_per_shard=3000)

    def job(name: str, lanes: int, load: Path | None = None, **given: Any) -> tuple[Path, Path]:
        folder = tmp_path / name
        folder.mkdir()
        dataset = {
            "data": shards,
            "seq_len": 256,
            "num_lanes": lanes,
            "shuffle": "shards",
            "packing": "next_fit",
            "epochs": 1,
        }
        write_job(folder, dataset=dataset, load=load and str(load), **given)
        return folder / "job.json", folder

    killed = job("killed", BEFORE, loader={"batch_size": 2500, "num_workers": 1}, every=1, pause_after=2)
    with Job("training.py", *killed, ranks=2, log=tmp_path / "killed.log") as running:
        await_checkpoint(running, killed[1])
        running.kill_ranks()
    data = packed_dataset(data=shards, seq_len=256, shuffle="shards", packing="next_fit", epochs=1)
    relaned = tmp_path / "relaned"
    made = streampack.relane(complete(killed[1])[0], data, AFTER)
    with warnings.catch_warnings(action="ignore"):  # torch: that there are no other ranks
        save({"loader": made}, checkpoint_id=relaned, no_dist=True)
    resumed = job("resumed", AFTER, relaned, loader={"batch_size": 3066, "num_workers": 0}, every=10**6)
    run_program("training.py", *resumed, ranks=3, log=tmp_path / "resumed.log")

    found: Counter[str] = Counter()
    for folder, ranks, batches in ((killed[1], 2, 1), (resumed[1], 3, None)):
        for rank in range(ranks):
            begin, handed, _ = written(folder, rank)
            assert begin == (0 if folder == killed[1] else 5000)
            for batch in handed[:batches]:
                for row in batch["tokens"].tolist():
                    found.update(_documents(row))
    assert found == Counter(texts)


def _documents(row: list[int]) -> list[str]:
    """The texts of a pack, of which each is whole."""
    found: list[str] = []
    for token in row:
        if token == BOS:
            found.append("")
        elif token > EOS:
            found[-1] += chr(token - 3)
    return found
