"""A job killed at any moment leaves a checkpoint that goes on exactly, and no process behind; a failing one ends."""

import json
import random
import time
from pathlib import Path
from typing import Any

from support.arguments import packed_dataset
from support.jobs import texts, write_corpus
from support.mixtures import Mixture, Packs, assert_packs, packs_of
from support.processes import Job, needs_proc, run_program
from support.ranks import check_sum
from support.reference import assert_batches, endless_batches, lane_packs, prose
from support.thorough import THOROUGH, long
from support.training import await_checkpoint, complete, handed_out, write_job, written

import streampack
from streampack.testing import write_shards

BY_TORCHRUN: dict[str, Any] = {"options": ()} if THOROUGH else {}
WORKERS_NOTICE_S = 15
"""torch's workers look every 5 seconds whether their parent lives."""


@needs_proc
def test_workers_of_a_rank_that_was_killed_end_though_nobody_takes_what_they_made(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", prose(8, 80), documents_per_shard=21)
    dataset = {"data": shards, "seq_len": 32, "num_lanes": 12}
    # By the hundredth batch messages are so large that they fill the pipe to the rank while it computes.
    loader = {"batch_size": 2, "num_workers": 2}
    write_job(tmp_path, dataset=dataset, loader=loader, every=100, pause_after=101)
    with Job("training.py", tmp_path / "job.json", tmp_path, ranks=2, log=tmp_path / "log", **BY_TORCHRUN) as running:
        await_checkpoint(running, tmp_path)
        time.sleep(1)
        left = running.kill_ranks()
        assert len(left) == 6, "two workers of each rank and their server outlive the kill for a moment"
        deadline = time.monotonic() + WORKERS_NOTICE_S
        while orphans := running.processes():
            assert time.monotonic() < deadline, f"still there after {WORKERS_NOTICE_S} s: {orphans}"
            time.sleep(0.1)


@needs_proc
def test_a_job_killed_at_a_random_moment_goes_on_exactly_on_other_ranks_and_workers(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", prose(8, 80), documents_per_shard=21)
    dataset = {"data": shards, "seq_len": 32, "num_lanes": 12}

    def job(name: str, load: Path | None, batches: int | None, **loader: int) -> tuple[Path, Path]:
        folder = tmp_path / name
        folder.mkdir()
        write_job(folder, dataset=dataset, loader=loader, load=load and str(load), batches=batches)
        return folder / "job.json", folder

    killed = job("killed", None, None, batch_size=2, num_workers=2)
    with Job("training.py", *killed, ranks=2, log=tmp_path / "killed.log", **BY_TORCHRUN) as running:
        await_checkpoint(running, killed[1])
        moment_s = random.SystemRandom().uniform(0, 1.5)
        time.sleep(moment_s)
        running.kill_ranks()

    resumed = job("resumed", complete(killed[1])[-1], 8, batch_size=3, num_workers=1)
    run_program("training.py", *resumed, ranks=4, log=tmp_path / "resumed.log")
    folders = {killed[1]: (2, 2), resumed[1]: (4, 3)}
    if THOROUGH:
        last = job("last", complete(resumed[1])[-1], 8, batch_size=5, num_workers=3)
        run_program("training.py", *last, ranks=1, log=tmp_path / "last.log")
        folders[last[1]] = (1, 5)
    wrote = {
        (folder, rank): handed_out(folder, rank) for folder, (ranks, _) in folders.items() for rank in range(ranks)
    }
    begins = [wrote[folder, 0][0] for folder in folders]
    steps = int(complete(killed[1])[-1].name.removeprefix("step"))
    assert begins == [0, steps * 2 * 2, steps * 2 * 2 + 6 * 3 * 4][: len(folders)]
    end = begins[-1] + (8 * 5 if THOROUGH else 8 * 3 * 4)
    lanes = lane_packs(dataset, limit=-(-(end + 1000) // 12))
    for (folder, rank), (begin, batches, _) in wrote.items():
        num_ranks, batch_size = folders[folder]
        count = len(batches["tokens"])
        split = {"rank": rank, "num_ranks": num_ranks, "batch_size": batch_size}
        expected = endless_batches(lanes, begin, count=count, **split)
        assert_batches(batches, expected, f"{folder.name}, rank {rank}, killed after {moment_s:.2f} s")
    alone = packed_dataset(**dataset)
    with streampack.PackedDataLoader(alone, end, num_workers=0, dp_rank=0, dp_size=1) as loader:
        next(iter(loader))
        ran_last = list(folders)[-1]
        check_sum([wrote[ran_last, rank][2] for rank in range(folders[ran_last][0])], loader.digest())


@long
@needs_proc
def test_a_job_of_several_sources_killed_before_a_stage_begins_goes_on_into_it_on_other_ranks(tmp_path: Path) -> None:
    """Its workers had made packs of the next stage; the future has another stage more, with one more source."""
    counts = {"web": 90, "code": 50, "notes": 30}
    corpora = {
        name: write_corpus(tmp_path / name, [(".tar", texts(count, seed=count)), (".tar", texts(count, first=count))])
        for name, count in counts.items()
    }
    stages: list[dict[str, Any]] = [
        {"weights": {"web": 0.6, "code": 0.4}},
        {"at_packs": 40, "weights": {"web": 1, "code": 3}, "seq_len": 24},
        {"at_packs": 72, "weights": {"web": 1, "notes": 2}, "boundary": "keep"},
    ]

    def job(name: str, stages: list[dict[str, Any]], load: Path | None = None, **given: Any) -> tuple[Path, Path]:
        folder = tmp_path / name
        folder.mkdir()
        data = {name: corpora[name].urls for name in ("web", "code", "notes")}
        dataset = {
            "data": data,
            "seq_len": 32,
            "num_lanes": 12,
            "shuffle": "shards",
            "stages": stages,
            "num_packs": 121,
        }
        write_job(folder, dataset=dataset, load=load and str(load), **given)
        return folder / "job.json", folder

    loader = {"provenance": True, "multiprocessing_context": "fork"}
    killed = job("killed", stages[:2], pause_after=8, loader={**loader, "batch_size": 2, "num_workers": 2})
    with Job("training.py", *killed, ranks=2, log=tmp_path / "killed.log") as running:
        await_checkpoint(running, killed[1], 2)
        running.kill_ranks()
    resumed = job("resumed", stages, complete(killed[1])[1], loader={**loader, "batch_size": 3, "num_workers": 1})
    run_program("training.py", *resumed, ranks=4, log=tmp_path / "resumed.log")

    found = Packs()
    for rank in range(4):
        begin, batches, _ = written(resumed[1], rank)
        assert begin == 24
        for batch in batches:
            found |= packs_of(batch)
    wanted = Mixture(corpora=corpora, stages=[streampack.Stage(**stage) for stage in stages]).packs(121)
    assert_packs(found, {number: pack for number, pack in wanted.items() if number >= 24})
    for rank in range(2):
        for batch in written(killed[1], rank)[1]:
            assert_packs(given := packs_of(batch), {number: wanted[number] for number in given})


def test_a_bad_shard_in_one_worker_ends_the_job_with_what_is_wrong_with_it(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", prose(9, 40), documents_per_shard=10)
    whole = Path(shards[3]).read_bytes()
    Path(shards[3]).write_bytes(whole[: len(whole) * 2 // 3 // 512 * 512 + 100])
    said = failing(tmp_path, {"data": shards, "num_lanes": 4})
    assert "TruncatedShardError" in said
    assert shards[3] in said


@long
def test_stop_with_a_lane_that_has_nothing_ends_the_job_with_an_error_that_says_so(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", prose(3, 40), shard_sizes=[24, 16], compression="gz")
    said = failing(tmp_path, {"data": shards, "num_lanes": 4, "epoch_end": "stop"})
    assert "ConfigError" in said
    assert 'epoch_end="stop"' in said
    assert "lane 1" in said or "lane 3" in said


def failing(folder: Path, dataset: dict[str, Any]) -> str:
    """What a job of two ranks said that ended with an error of one of them, and left no process."""
    (folder / "job.json").write_text(json.dumps({"seq_len": 32, "epochs": 1, "shuffle": False, **dataset}))
    with Job("failing.py", folder / "job.json", ranks=2, log=folder / "log") as job:
        assert job.wait(150) != 0
        assert "no error on this rank" not in job.output
        assert not job.processes()
        return job.output
