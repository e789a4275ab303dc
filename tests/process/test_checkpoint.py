"""States beside FSDP2, saved by `async_save`: 2 processes, then 1, nightly 4 between; plain load and load_checkpoint.

One run has two sources. A state that 4 processes saved is loaded by one in test_mesh.py.
"""

import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from support.arguments import packed_dataset
from support.processes import run_program
from support.reference import Pass, assert_batches, endless_batches, lane_packs, prose
from support.thorough import THOROUGH

import streampack
from streampack.hashing import as_int64
from streampack.records import Counts
from streampack.testing import write_shards

Dataset = dict[str, Any]
NUM_RANKS = {"first": 2, "second": 4, "third": 1} if THOROUGH else {"first": 2, "second": 1}


@dataclass(frozen=True, kw_only=True)
class Job:
    """One job of the chain; outcomes by rank."""

    num_ranks: int
    loaders: dict[str, Any]
    outcomes: list[dict[str, Any]]

    def only(self, key: str, name: str) -> Any:
        """A value that must be the same on all ranks."""
        values = {outcome[key][name] for outcome in self.outcomes}
        assert len(values) == 1, (key, name, values)
        return values.pop()


@dataclass(frozen=True, kw_only=True)
class Chain:
    """The jobs, and what the same loaders hand out in one process."""

    datasets: dict[str, Dataset]
    lanes: dict[str, list[Any]]
    jobs: dict[str, Job]

    def finite(self, key: str) -> Pass:
        return Pass(lanes=self.lanes[key], seq_len=self.datasets[key]["seq_len"])


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    folder = tmp_path_factory.mktemp("chain")
    good = write_shards(folder / "good", prose(5, 60), documents_per_shard=17)
    broken = [b"\xff\xfe" if index % 5 == 2 else text for index, text in enumerate(prose(6, 60))]
    bad = write_shards(folder / "bad", broken, documents_per_shard=13)
    sizes = [14, 2, 3, 6, 1]
    uneven = write_shards(folder / "uneven", prose(7, sum(sizes)), shard_sizes=sizes)
    (folder / "whole.jsonl").write_text("".join(json.dumps({"url": url, "whole": True}) + "\n" for url in uneven))
    datasets = {
        "endless": {"data": good, "seq_len": 32, "num_lanes": 12},
        "skipping": {"data": {"good": good, "bad": bad}, "seq_len": 48, "num_lanes": 8, "on_error": "skip"},
        "finite": {"data": f"@{folder / 'whole.jsonl'}", "seq_len": 32, "num_lanes": 12, "epochs": 1},
    }
    lanes = {key: lane_packs(dataset, limit=40) for key, dataset in datasets.items() if key != "finite"}
    lanes["finite"] = lane_packs(datasets["finite"])
    last_round = Pass(lanes=lanes["finite"], seq_len=32).end - 12

    def plan(job: str, key: str) -> dict[str, Any]:
        """Batches of the loader in the job, and how it is split up."""
        batches: dict[str, tuple[int, int | None]] = {"first": (5, 3), "second": (4, 3), "third": (6, 2)}
        batch_size = {"first": 3, "second": 2, "third": 5}[job]
        if key == "finite":
            # To the start of the last round or just behind, by two ranks; 4 packs further, into its middle, by four.
            batch_size = {"first": 1, "second": 1, "third": 5}[job]
            batches = {"first": (last_round // 2 + 1, None), "second": (1, None), "third": (0, None)}
        before, after = batches[job]
        workers = {"first": 2, "second": 1, "third": 3}[job]
        loader: dict[str, Any] = {"batch_size": batch_size, "num_workers": workers}
        if not THOROUGH:
            loader["multiprocessing_context"] = "fork"  # a server for each rank of each loader takes seconds
        return {"before": before, "after": after, "loader": loader}

    jobs, loaded = {}, None
    for name, num_ranks in NUM_RANKS.items():
        place = folder / name
        place.mkdir()
        loaders = {
            key: {"dataset": dataset, "stateful": key != "endless", **plan(name, key)}
            for key, dataset in datasets.items()
        }
        saved = str(place / "checkpoint")
        (place / "job.json").write_text(json.dumps({"load": loaded, "save": saved, "loaders": loaders}))
        run_program("checkpoint.py", place / "job.json", place, ranks=num_ranks, log=place / "log")
        outcomes = [pickle.loads((place / f"rank{rank}.pickle").read_bytes()) for rank in range(num_ranks)]
        jobs[name] = Job(num_ranks=num_ranks, loaders=loaders, outcomes=outcomes)
        loaded = saved
    return Chain(datasets=datasets, lanes=lanes, jobs=jobs)


def each_job(test: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.parametrize("name", NUM_RANKS)(test)


@each_job
@pytest.mark.parametrize("key", ["endless", "skipping"])
def test_each_job_goes_on_with_the_global_packs_where_the_one_before_was_saved(
    chain: Chain, name: str, key: str
) -> None:
    job = chain.jobs[name]
    batch_size = job.loaders[key]["loader"]["batch_size"]
    counts = job.loaders[key]["before"], job.loaders[key]["after"]
    begin = job.only(key, "begin")
    assert begin == {"first": 0, "second": 5 * 3 * 2, "third": 5 * 3 * 2 + 4 * 2 * 4}[name]
    assert job.only(key, "middle") == begin + counts[0] * batch_size * job.num_ranks
    for rank, outcome in enumerate(job.outcomes):
        split = {"rank": rank, "num_ranks": job.num_ranks, "batch_size": batch_size}
        expected = endless_batches(chain.lanes[key], begin, count=sum(counts), **split)
        assert_batches(outcome[key]["before"], expected[: counts[0]], f"{name}, {key}, rank {rank}, before the save")
        assert_batches(outcome[key]["after"], expected[counts[0] :], f"{name}, {key}, rank {rank}, after the save")


@each_job
def test_a_finite_pass_is_taken_up_in_the_middle_of_its_last_round_and_ends_together(chain: Chain, name: str) -> None:
    job, whole = chain.jobs[name], chain.finite("finite")
    batch_size = job.loaders["finite"]["loader"]["batch_size"]
    begin, before = job.only("finite", "begin"), job.loaders["finite"]["before"]
    if name != "first":
        assert whole.end - 12 < begin < whole.end, "the middle of the last round"
        assert begin % job.num_ranks == 0 if name == "third" else begin % 4 == 2, "four ranks begin in another order"
    for rank, outcome in enumerate(job.outcomes):
        expected = whole.batches(begin, rank=rank, num_ranks=job.num_ranks, batch_size=batch_size)
        assert_batches(outcome["finite"]["before"], expected[:before], f"{name}, rank {rank}, before the save")
        assert_batches(outcome["finite"]["after"], expected[before:], f"{name}, rank {rank}, after the save")


@each_job
@pytest.mark.parametrize("key", ["endless", "skipping", "finite"])
def test_digests_and_counts_of_the_ranks_add_up_to_those_of_one_uninterrupted_process(
    chain: Chain, name: str, key: str
) -> None:
    job = chain.jobs[name]
    dataset = packed_dataset(**chain.datasets[key])
    with streampack.PackedDataLoader(dataset, 1, num_workers=0, dp_rank=0, dp_size=1) as alone:
        batches = iter(alone)
        for _ in range(job.only(key, "middle")):
            next(batches)
        assert as_int64(sum(outcome[key]["digests"][0] for outcome in job.outcomes)) == alone.digest()
        if key == "finite":
            assert sum(1 for _ in batches) == chain.finite(key).end - job.only(key, "middle")
        else:
            for _ in range(job.loaders[key]["after"] * job.loaders[key]["loader"]["batch_size"] * job.num_ranks):
                next(batches)
        assert as_int64(sum(outcome[key]["digests"][1] for outcome in job.outcomes)) == alone.digest()
        counted = {field: sum(outcome[key]["counts"][field] for outcome in job.outcomes) for field in Counts._fields}
        assert counted == {field: alone.stats()[field] for field in Counts._fields}
        assert (counted["bad_records"] > 0) == (key == "skipping")
        assert (counted["fillers"] > 0) == (key == "finite")


@each_job
def test_the_model_in_the_same_checkpoint_comes_back_with_the_loaders(chain: Chain, name: str) -> None:
    saves_before = list(NUM_RANKS).index(name)
    for outcome in chain.jobs[name].outcomes:
        assert outcome["model"] == [[2.0**saves_before] * 3] * 2
