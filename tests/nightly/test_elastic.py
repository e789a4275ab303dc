"""A model sharded by FSDP2 and a loader in one distributed checkpoint: three jobs on 2, 4 and 1 real processes."""

import hashlib
import json
import math
import pickle
from dataclasses import dataclass
from typing import Any

import pytest
from support.arguments import packed_dataset
from support.processes import run_program
from support.reference import prose

import streampack
from streampack.testing import write_shards

GLOBAL_BATCH = 8
STEPS = 3
"""Steps before each save."""
LOST = 2
"""Steps after the save: the job ends without another save, so the next job takes them again."""


@dataclass(frozen=True, kw_only=True)
class Job:
    mesh: dict[str, int]
    num_workers: int
    is_async: bool = False

    @property
    def num_ranks(self) -> int:
        return math.prod(self.mesh.values())


JOBS = {
    "2 ranks": Job(mesh={"dp": 2}, num_workers=1, is_async=True),
    "4 ranks": Job(mesh={"dp_replicate": 2, "dp_shard": 2}, num_workers=2),
    "1 rank": Job(mesh={"dp": 1}, num_workers=1),
}

Outcomes = list[dict[str, Any]]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    shards = write_shards(tmp_path_factory.mktemp("shards"), prose(8, 80), documents_per_shard=19)
    return {"data": shards, "seq_len": 32, "num_lanes": 12}


@pytest.fixture(scope="module")
def jobs(dataset: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcomes]:
    folder = tmp_path_factory.mktemp("jobs")
    found: dict[str, Outcomes] = {}
    loaded = None
    for number, (name, job) in enumerate(JOBS.items()):
        place = folder / str(number)
        place.mkdir()
        saved = str(place / "checkpoint")
        given = {
            "mesh": job.mesh,
            "load": loaded,
            "save": saved,
            "async": job.is_async,
            "dataset": dataset,
            "loader": {"num_workers": job.num_workers},
            "global_batch": GLOBAL_BATCH,
            "before": STEPS,
            "after": LOST,
        }
        (place / "job.json").write_text(json.dumps(given))
        run_program("elastic.py", place / "job.json", place, ranks=job.num_ranks, log=place / "log")
        found[name] = [pickle.loads((place / f"rank{rank}.pickle").read_bytes()) for rank in range(job.num_ranks)]
        loaded = saved
    return found


@pytest.fixture(scope="module")
def uninterrupted(dataset: dict[str, Any]) -> dict[int, dict[int, str]]:
    """What each global batch holds in one process that is never stopped: by step, by global pack."""
    data = packed_dataset(**dataset)
    steps = {}
    with streampack.PackedDataLoader(data, GLOBAL_BATCH, num_workers=0, dp_rank=0, dp_size=1) as loader:
        for step, batch in zip(range(len(JOBS) * STEPS + LOST), loader, strict=False):
            steps[step] = {}
            for row in range(GLOBAL_BATCH):
                keys = ("tokens", "labels", "position_ids", "segment_ids")
                content = b"".join(batch[key][row].numpy().tobytes() for key in keys)
                steps[step][step * GLOBAL_BATCH + row] = hashlib.sha256(content).hexdigest()
    return steps


@pytest.mark.parametrize("name", JOBS)
def test_each_job_goes_on_with_the_global_batches_of_one_uninterrupted_run(
    jobs: dict[str, Outcomes], uninterrupted: dict[int, dict[int, str]], name: str
) -> None:
    begin = list(JOBS).index(name) * STEPS
    assert [outcome["step"] for outcome in jobs[name]] == [begin] * JOBS[name].num_ranks
    for outcome in jobs[name]:
        assert list(outcome["steps"]) == list(range(begin, begin + STEPS + LOST))
    for step in range(begin, begin + STEPS + LOST):
        packs: dict[int, str] = {}
        for outcome in jobs[name]:
            assert not packs.keys() & outcome["steps"][step].keys(), "no pack on two ranks"
            packs |= outcome["steps"][step]
        assert packs == uninterrupted[step], f"step {step}"


@pytest.mark.parametrize(("earlier", "later"), list(zip(JOBS, list(JOBS)[1:], strict=False)))
def test_model_and_optimizer_are_those_that_were_saved_to_the_bit(
    jobs: dict[str, Outcomes], earlier: str, later: str
) -> None:
    [saved] = {outcome["saved"] for outcome in jobs[earlier]}
    [loaded] = {outcome["loaded"] for outcome in jobs[later]}
    assert loaded == saved


def test_every_job_has_trained(jobs: dict[str, Outcomes]) -> None:
    assert len({outcomes[0]["saved"] for outcomes in jobs.values()}) == len(JOBS)


def test_the_digest_at_the_end_is_that_of_the_uninterrupted_run(
    jobs: dict[str, Outcomes], dataset: dict[str, Any]
) -> None:
    data = packed_dataset(**dataset)
    with streampack.PackedDataLoader(data, GLOBAL_BATCH, num_workers=0, dp_rank=0, dp_size=1) as loader:
        for _ in zip(range(len(JOBS) * STEPS + LOST), loader, strict=False):
            pass
        assert jobs["1 rank"][0]["digest"] == loader.digest()
