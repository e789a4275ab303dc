"""Real jobs of 1, 2 and 4 processes: the same global packs, as many batches each, the same errors.

Starting processes costs seconds, so each number of ranks is one job of all cases; the tests look at what it wrote.
Meshes are in test_mesh.py.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.arguments import of_job, packed_dataset
from support.ranks import Finite, Ran, References, check_sum, run_job
from support.reference import assert_batches, endless_batches
from support.thorough import THOROUGH

import streampack
from streampack.errors import RecordError, ShardError
from streampack.records import Counts
from streampack.testing import write_shards

FORK = {"multiprocessing_context": "fork"}
CLEAN = {1: set[str](), 2: {"hurt", "watched"}, 4: set[str]()}
"""Number of ranks -> cases whose workers come from a server, as they do by default. A server for each rank in all cases
would take minutes, so only the nightly run has that."""


@dataclass(frozen=True, kw_only=True)
class Endless:
    corpus: str = "even"
    num_workers: int = 0
    batch_size: int = 2
    count: int = 12
    extra: dict[str, Any] = field(default_factory=dict)
    """More keys of the case; "loader" adds to the loader's arguments."""
    only: tuple[int, ...] = (1, 2, 4)
    """Numbers of ranks."""


ENDLESS = {
    "in this process": Endless(),
    "one worker": Endless(num_workers=1, batch_size=5),
    "two workers": Endless(num_workers=2, batch_size=1, count=40),
    "two workers, slow rank": Endless(num_workers=2, batch_size=3, extra={"slow_ranks": [0]}),
    "whole documents": Endless(corpus="next_fit", num_workers=2, batch_size=3),
    "over epochs": Endless(corpus="small", num_workers=1, batch_size=8, count=20),
    "without a process group": Endless(num_workers=1, extra={"without_group": True}),
    "left and gone on": Endless(num_workers=2, extra={"leave_after": [3, 7]}),
    "workers forked from the ranks": Endless(num_workers=1, count=4, extra={"loader": FORK}, only=(2,)),
}
FINITE = {
    "pad": Finite(),
    "pad, two workers": Finite(num_workers=2, batch_size=5),
    "pad, first rank slow": Finite(num_workers=1, batch_size=2, extra={"slow_ranks": [0]}),
    "pad, last rank slow": Finite(batch_size=2, extra={"slow_ranks": [1, 3]}),
    "pad, two epochs a pass": Finite(epochs=2, num_workers=1, batch_size=4),
    "pad, drop_last": Finite(drop_last=True, num_workers=1, batch_size=7),
    "pad, even lanes": Finite(corpus="even", num_workers=2, batch_size=7),
    "pad, whole documents": Finite(corpus="next_fit", num_workers=1, batch_size=5),
    "pad, empty ranks": Finite(corpus="few", num_workers=1),
    "pad, empty ranks, drop_last": Finite(corpus="few", drop_last=True),
    "pad, large batches": Finite(batch_size=1000),
    "pad, large batches, drop_last": Finite(batch_size=1000, drop_last=True),
    "pad, left and gone on": Finite(num_workers=1, batch_size=2, extra={"leave_after": [1, 4]}),
    "pad, group given by hand": Finite(extra={"given_group": True}),
    "stop": Finite(pad=False, corpus="small", num_workers=1, batch_size=2),
    "stop, even lanes": Finite(pad=False, corpus="even", num_workers=2, batch_size=5),
    "stop, drop_last": Finite(pad=False, corpus="even", drop_last=True, batch_size=7),
    "stop, slow rank": Finite(pad=False, corpus="even", batch_size=3, extra={"slow_ranks": [1]}),
    "pad, resumed": Finite(resume_part=(2, 3), num_workers=1),
    "pad, resumed in the last round": Finite(resume_part=(-1, 2), num_workers=2),
    "pad, resumed in the last round of the second pass": Finite(resume_pass=1, resume_part=(-1, 1), passes=1),
    "pad, resumed at the very end": Finite(resume_part=(0, 0), num_workers=1),
    "pad, even lanes, resumed": Finite(corpus="even", resume_part=(-1, 7), num_workers=2, batch_size=2),
    "pad, drop_last, resumed": Finite(resume_part=(3, 1), drop_last=True, batch_size=4),
    "stop, resumed": Finite(pad=False, corpus="even", resume_part=(1, 5), num_workers=1, batch_size=4),
    "stop, resumed in the last round": Finite(pad=False, corpus="even", resume_part=(-1, 3), num_workers=2),
}
SIBLINGS = {
    # Each differs in one argument from a case that the normal run has.
    *("pad, last rank slow", "pad, even lanes", "pad, empty ranks, drop_last", "pad, large batches", "pad, drop_last"),
    *("pad, resumed", "pad, even lanes, resumed", "stop, slow rank", "stop, resumed", "pad, whole documents"),
    *("one worker", "two workers, slow rank"),
}
RANKS = (1, 2, 4) if THOROUGH else (2,)
"""One rank alone is what the component tests have, four what test_mesh.py has."""
CASES_OF = {
    # Number of ranks -> its cases.
    1: {*ENDLESS, *FINITE},
    2: {*ENDLESS, *FINITE} - (set() if THOROUGH else SIBLINGS),
    4: {*ENDLESS, *FINITE},
}
DIFFER = {
    # What rank 1 alone is given, and what the error must name.
    "seed": ({"dataset": {"seed": 7}}, "seed: 0 on rank 0, 7 on rank 1"),
    "seq_len": ({"dataset": {"seq_len": 33}}, "seq_len: 32 on rank 0, 33 on rank 1"),
    "boundary": ({"dataset": {"boundary": "keep"}}, "boundary: 'mask'"),
    "num_lanes": ({"dataset": {"num_lanes": 8}}, "num_lanes: 4 on rank 0, 8 on rank 1"),
    "data": ({"dataset": {"data": "elsewhere/*.tar"}}, "data"),
}
DIFFER_IN_THE_RUN = {
    # In no state, as a resume may change them; but ranks that differ wait for each other for ever, or lose step.
    "epochs": {"dataset": {"epochs": 2}},
    "epoch_end": {"dataset": {"epoch_end": "stop"}},
    "batch_size": {"loader": {"batch_size": 3}},
    "drop_last": {"loader": {"drop_last": True}},
}


def _cases(num_ranks: int, references: References, place: Path) -> Iterator[dict[str, Any]]:
    yield from _endless(num_ranks, references)
    yield from _finite(num_ranks, references)
    corpora = references.corpora
    even = {"dataset": corpora["even"], "loader": {"batch_size": 2, "num_workers": 1}, "batches": 2}
    uneven = {"dataset": {**corpora["uneven"], "epochs": 1}, "loader": {"batch_size": 2, "num_workers": 1}}
    folder = Path(corpora["even"]["data"][0]).parent
    watched = {**even, "dataset": {**corpora["even"], "data": f"watched://{folder}/*.tar"}}
    yield {**watched, "name": "watched", "watched": str(place / "watched")}
    missing = [*corpora["even"]["data"], str(folder / "99999.tar")]
    yield {**even, "name": "missing shard", "dataset": {**corpora["even"], "data": missing}}
    yield {**even, "name": "lanes that do not divide", "dataset": {**corpora["even"], "num_lanes": 9}}
    if num_ranks > 1:
        for name, (given, _) in DIFFER.items():
            tries = 3 if num_ranks == 2 else 1
            yield {**uneven, "name": f"other {name}", "per_rank": {"1": given}, "batches": 2, "tries": tries}
    if num_ranks == 2:
        yield from _coming_and_going(references)
        yield from _out_of_step(references, place)


def _endless(num_ranks: int, references: References) -> Iterator[dict[str, Any]]:
    few = {"dataset": {**references.corpora["few"], "epochs": 1}, "loader": {"num_workers": 0}}
    yield {"name": "finite without a process group", "without_group": True, **few}
    for name, endless in sorted(ENDLESS.items(), key=lambda item: not item[1].extra.get("without_group")):
        if num_ranks in endless.only and name in CASES_OF[num_ranks]:
            loader = {"batch_size": endless.batch_size, "num_workers": endless.num_workers}
            extra = {**endless.extra, "loader": {**loader, **endless.extra.get("loader", {})}}
            yield {"name": name, "dataset": references.corpora[endless.corpus], "batches": endless.count, **extra}


def _finite(num_ranks: int, references: References) -> Iterator[dict[str, Any]]:
    for name, finite in FINITE.items():
        if name not in CASES_OF[num_ranks]:
            continue
        state = references.begin(finite)[2]
        yield {
            "name": name,
            "dataset": {
                **references.corpora[finite.corpus],
                "epochs": finite.epochs,
                "epoch_end": "pad" if finite.pad else "stop",
            },
            "loader": {
                "batch_size": finite.batch_size,
                "num_workers": finite.num_workers,
                "drop_last": finite.drop_last,
            },
            "passes": finite.passes,
            **({} if state is None else {"state": state}),
            **finite.extra,
        }


def _coming_and_going(references: References) -> Iterator[dict[str, Any]]:
    """Loaders and groups that come and go, and workers that die."""
    even = {"dataset": references.corpora["even"], "loader": {"batch_size": 2, "num_workers": 0}, "batches": 2}
    uneven = {"dataset": {**references.corpora["uneven"], "epochs": 1}, "loader": {"batch_size": 2, "num_workers": 1}}
    yield {**uneven, "name": "closed between passes", "passes": 3, "close_after_passes": [0, 1]}
    yield from ({**even, "name": f"loader {number}"} for number in range(8))
    yield {**uneven, "name": "group of rank 0", "group_of": [0]}
    small_messages = {"batch_size": 2, "num_workers": 2, "prefetch_bytes": 1}
    yield {**uneven, "loader": small_messages, "name": "hurt", "passes": 2, "kill_after": {"1": [1, 5, 9]}}


def _out_of_step(references: References, folder: Path) -> Iterator[dict[str, Any]]:
    """Ranks that are given different arguments or leave at different batches; and errors of one rank."""
    uneven = {"dataset": {**references.corpora["uneven"], "epochs": 1}, "loader": {"batch_size": 2, "num_workers": 0}}
    yield from ({**uneven, "name": name, "per_rank": {"1": given}} for name, given in DIFFER_IN_THE_RUN.items())
    yield {**uneven, "name": "another break", "leave_after": [2], "per_rank": {"1": {"leave_after": [3]}}}
    yield {**uneven, "name": "sums", "passes": 2, "sums": True}  # on the same ranks, after they were out of step
    yield {"name": "waits", "dataset": waiting(folder), "loader": {"batch_size": 5, "num_workers": 1}, "sums": True}
    yield {"name": "error and end", "dataset": error_beside_end(folder), "loader": {"num_workers": 0}, "passes": 2}
    yield {"name": "max_bad", "dataset": partly_bad(folder), "loader": {"num_workers": 0}, "batches": 150}
    even, small_messages = references.corpora["even"], {"num_workers": 1, "prefetch_bytes": 1}
    for end in ("pad", "stop"):
        yield {"name": f"max_bad, {end}", "dataset": bad_on_one_rank(folder, end), "loader": {"num_workers": 0}}
        killed = {"dataset": {**even, "epochs": 9, "epoch_end": end}, "kill_after": {"1": list(range(1, 500))}}
        yield {**killed, "name": f"killed for good, {end}", "loader": small_messages}


def _job_of(num_ranks: int) -> Any:
    """A fixture with the job of a number of ranks; pytest keeps it, or its failure, for all tests."""

    @pytest.fixture(scope="module")
    def job_of(references: References, tmp_path_factory: pytest.TempPathFactory) -> Ran:
        folder = tmp_path_factory.mktemp(f"ranks{num_ranks}")
        cases = [
            case if THOROUGH or case["name"] in CLEAN[num_ranks] else {**case, "loader": FORK | case["loader"]}
            for case in _cases(num_ranks, references, folder)
        ]
        how = {"options": ()} if THOROUGH and num_ranks == 2 else {}  # one of the three by torchrun itself
        return run_job(cases, num_ranks, folder, **how)

    return job_of


job_of_1, job_of_2, job_of_4 = _job_of(1), _job_of(2), _job_of(4)


@pytest.fixture
def job(request: pytest.FixtureRequest) -> Ran:
    return request.getfixturevalue(f"job_of_{request.param}")


def on(*num_ranks: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run the test on the job of each of these numbers of ranks, of those that there is a job of."""
    those = [ranks for ranks in num_ranks if ranks in RANKS]
    return pytest.mark.parametrize("job", those, indirect=True, ids=lambda ranks: f"{ranks} ranks")


@pytest.mark.parametrize(
    ("job", "name"),
    [
        (num_ranks, name)
        for num_ranks in RANKS
        for name, case in ENDLESS.items()
        if num_ranks in case.only and name in CASES_OF[num_ranks]
    ],
    indirect=["job"],
    ids=lambda value: value if isinstance(value, str) else f"{value} ranks",
)
def test_ranks_and_workers_do_not_change_the_global_packs(job: Ran, name: str, references: References) -> None:
    case = ENDLESS[name]
    packs = case.count * case.batch_size * job.num_ranks
    lanes = references.lanes(case.corpus, 0, None, -(-packs // references.corpora[case.corpus]["num_lanes"]))
    for rank, outcome in enumerate(job[name]):
        expected = endless_batches(
            lanes, 0, rank=rank, num_ranks=job.num_ranks, batch_size=case.batch_size, count=case.count
        )
        assert_batches(outcome["passes"][0], expected, f"{name}, rank {rank}")
    with references.loader(case.corpus, packs) as alone:
        next(iter(alone))
        check_sum([outcome["digests"][0] for outcome in job[name]], alone.digest())


@pytest.mark.parametrize(
    ("job", "name"),
    [(num_ranks, name) for num_ranks in RANKS for name in FINITE if name in CASES_OF[num_ranks]],
    indirect=["job"],
    ids=lambda value: value if isinstance(value, str) else f"{value} ranks",
)
def test_finite_passes_end_together_at_the_right_batch_with_the_right_packs(
    job: Ran, name: str, references: References
) -> None:
    case = FINITE[name]
    current, begin, state = references.begin(case)
    split = {"num_ranks": job.num_ranks, "batch_size": case.batch_size, "drop_last": case.drop_last}
    arguments = {"epochs": case.epochs, "epoch_end": "pad" if case.pad else "stop", "drop_last": case.drop_last}
    with references.loader(case.corpus, case.batch_size * job.num_ranks, **arguments) as alone:
        if state is not None:
            alone.load_state_dict(json.loads(state))
        for number in range(case.passes):
            for rank, outcome in enumerate(job[name]):
                expected = current.batches(begin, rank=rank, **split)
                assert_batches(outcome["passes"][number], expected, f"{name}, pass {number}, rank {rank}")
            assert sum(1 for _ in alone) == current.num_batches(begin, **split)
            check_sum([outcome["digests"][number] for outcome in job[name]], alone.digest())
            handed_out = current.num_batches(begin, **split) * case.batch_size * job.num_ranks
            begin = min(begin + handed_out, current.end)
            current = references.one_pass(case, case.resume_pass + number + 1, begin)
        assert json.loads(job[name][0]["state"])["global_pack"] == begin
        counted = {key: sum(outcome["stats"][key] for outcome in job[name]) for key in Counts._fields}
        assert counted == {key: alone.stats()[key] for key in Counts._fields}


@on(*RANKS)
def test_every_lane_that_is_shorter_leaves_packs_out_under_stop_and_they_are_counted(job: Ran) -> None:
    assert sum(outcome["stats"]["left_out_packs"] for outcome in job["stop"]) > 0
    assert sum(outcome["stats"]["left_out_packs"] for outcome in job["pad"]) == 0


@on(*RANKS)
def test_a_finite_run_of_many_ranks_without_a_process_group_is_refused(job: Ran) -> None:
    errors = job.errors("finite without a process group")
    if job.num_ranks == 1:
        assert errors == [[]]
        return
    for messages in errors:
        assert len(messages) == 1
        assert "TopologyError: a finite run (epochs=1) on" in messages[0]
        assert "torch.distributed.init_process_group" in messages[0]


@on(2, 4)
@pytest.mark.parametrize("name", DIFFER)
def test_ranks_with_other_arguments_are_told_so_on_every_rank(job: Ran, name: str) -> None:
    for messages in job.errors(f"other {name}"):
        assert messages[:1], "no error on this rank"
        assert messages[0].startswith("ConfigError: ")
        assert DIFFER[name][1] in messages[0]


@on(*RANKS)
def test_a_shard_that_is_missing_is_an_error_on_every_rank(job: Ran) -> None:
    for messages in job.errors("missing shard"):
        assert len(messages) == 1
        assert "1 of 5 shards are not there" in messages[0]
        assert "99999.tar" in messages[0]


@on(2, 4)
def test_lanes_that_the_ranks_do_not_divide_are_refused_with_what_would_fit(job: Ran) -> None:
    for messages in job.errors("lanes that do not divide"):
        assert len(messages) == 1
        assert f"TopologyError: {job.num_ranks} data-parallel ranks do not divide num_lanes=9" in messages[0]
        assert ("3 or 9 ranks" if job.num_ranks == 4 else "1 or 3 ranks") in messages[0]


@on(*RANKS)
def test_one_process_lists_for_all_and_workers_only_read(job: Ran, references: References) -> None:
    outcomes, seen = job["watched"], job.seen("watched")
    assert seen["list"] == {outcomes[0]["pid"]}
    assert len(seen["read"]) == job.num_ranks, "one worker of each rank"
    assert not seen["read"] & {outcome["pid"] for outcome in outcomes}
    lanes = references.lanes("even", 0, None, 2)
    for rank, outcome in enumerate(outcomes):
        expected = endless_batches(lanes, 0, rank=rank, num_ranks=job.num_ranks, batch_size=2, count=2)
        assert_batches(outcome["passes"][0], expected, f"rank {rank}")


@on(2)
def test_a_loader_that_was_closed_between_passes_still_ends_on_all_ranks_at_once(
    job: Ran, references: References
) -> None:
    assert_passes(job, "closed between passes", references, 3)


@on(2)
def test_loaders_can_be_closed_and_others_made_on_the_same_ranks(job: Ran, references: References) -> None:
    lanes = references.lanes("even", 0, None, 2)
    for rank in range(2):
        expected = endless_batches(lanes, 0, rank=rank, num_ranks=2, batch_size=2, count=2)
        for number in range(8):
            assert_batches(job[f"loader {number}"][rank]["passes"][0], expected, f"loader {number}")


@on(2)
def test_loaders_that_were_closed_leave_no_connections_between_the_ranks(job: Ran) -> None:
    for rank in range(2):
        files = [job[f"loader {number}"][rank]["open_files"] for number in range(8)]
        assert files[-1] <= files[1], files


@on(2)
def test_a_group_of_the_trainer_that_only_one_rank_belongs_to_does_not_hinder(job: Ran, references: References) -> None:
    assert_passes(job, "group of rank 0", references, 1)


@on(2)
def test_one_rank_restarts_its_workers_and_the_other_notices_nothing(job: Ran, references: References) -> None:
    """A finite run: the ranks agree on its end every few rounds, and none may ask once more or once less."""
    assert_passes(job, "hurt", references, 2)
    first, second = job["hurt"]
    assert first["stats"]["worker_restarts"] == 0
    assert 1 <= second["stats"]["worker_restarts"] <= 3
    with references.loader("uneven", 2, epochs=1) as alone:
        for _ in range(2):
            assert sum(1 for _ in alone) > 0
        check_sum([outcome["digests"][-1] for outcome in (first, second)], alone.digest())


def assert_passes(job: Ran, name: str, references: References, passes: int) -> None:
    """Each rank has its batches of two in so many passes over "uneven"."""
    start = 0
    for number in range(passes):
        current = references.one_pass(Finite(), number, start)
        for rank, outcome in enumerate(job[name]):
            expected = current.batches(start, rank=rank, num_ranks=2, batch_size=2)
            assert_batches(outcome["passes"][number], expected, f"{name}, pass {number}, rank {rank}")
        start = current.end


def error_beside_end(folder: Path) -> dict[str, Any]:
    """Lane 0 has a pack and then a bad record, lane 1 a pack and then its end."""
    good, bad = "x" * 30, b"\xff" * 30
    data = [
        write_shards(folder / f"beside{lane}", documents, documents_per_shard=9)[0]
        for lane, documents in enumerate(([good, bad, good], [good, "", ""]))
    ]
    places = {"num_lanes": 2, "seq_len": 32, "shuffle": False, "tail": "drop"}
    return {"data": data, "epochs": 1, "epoch_end": "stop", **places}


def partly_bad(folder: Path) -> dict[str, Any]:
    """Four lanes, each with five bad records among its documents."""
    documents = [b"\xff" * 40 if number % 10 == 5 else "x" * 40 for number in range(200)]
    data = write_shards(folder / "partly_bad", documents, documents_per_shard=50)
    return {"data": data, "num_lanes": 4, "seq_len": 32, "shuffle": False, "on_error": "skip", "max_bad": 9}


@on(2)
def test_ranks_that_leave_a_pass_at_different_batches_are_told_so_and_get_no_wrong_count(job: Ran) -> None:
    first, second = job.errors("another break")
    assert first == second
    assert len(first) == 1
    assert first[0].startswith("LoaderError: the data-parallel ranks are not in the same pass: ")
    assert "global pack with which the pass began is 12 on rank 1, 8 on rank 0" in first[0]


@on(2)
def test_counts_and_digests_are_added_up_over_the_ranks_where_that_is_asked_for(job: Ran) -> None:
    first, second = job["sums"]
    assert first["sums"] == second["sums"]
    stats, digest = first["sums"]
    assert stats["documents"] == first["stats"]["documents"] + second["stats"]["documents"] > 0
    check_sum([outcome["digests"][-1] for outcome in (first, second)], digest)
    assert -(2**63) <= digest < 2**63


def waiting(folder: Path) -> dict[str, Any]:
    """Lanes come to the end of books, some rounds apart, long before the stage that has web; then web ends, too."""
    books, web = (
        write_shards(folder / f"waiting{number}", ["x" * 9 * (at % 20) for at in range(count)], documents_per_shard=20)
        for number, count in enumerate((60, 90))
    )
    data = {"books": {"data": books, "max_epochs": 1}, "web": {"data": web, "max_epochs": 1}}
    stages = [{"weights": {"books": 1}}, {"at_packs": 400, "weights": {"web": 1}}]
    return {"data": data, "stages": stages, "num_lanes": 4, "seq_len": 32, "num_packs": 5000}


@on(2)
def test_lanes_wait_for_a_stage_on_all_ranks_and_the_run_ends_on_all_when_they_are_over(
    job: Ran, tmp_path: Path
) -> None:
    with streampack.PackedDataLoader(packed_dataset(**of_job(waiting(tmp_path))), 10, num_workers=0) as loader:
        tokens = np.stack([batch["tokens"] for batch in loader])
        stats, digest = loader.stats(), loader.digest()
    assert 400 < tokens.shape[0] * 10 < 1000
    for rank, outcome in enumerate(job["waits"]):
        [found] = outcome["passes"]
        np.testing.assert_array_equal(found["tokens"], tokens[:, rank::2])
        sums, sum_of_digests = outcome["sums"]
        assert sums["sources"] == stats["sources"]
        assert sums["fillers"] == stats["fillers"] > 200
        assert [each["exhausted_lanes"] for each in sums["sources"].values()] == [4, 4]
        check_sum([digest], sum_of_digests)


@on(2)
def test_an_error_before_the_first_end_ends_a_stopping_pass_on_any_number_of_ranks(job: Ran, tmp_path: Path) -> None:
    own, other = job.errors("error and end")
    assert len(own) == len(other) == 1
    assert own[0].startswith("RecordError: ")
    assert other[0].startswith("LoaderError: data-parallel rank 0 has met an error at global pack 2")
    with (
        streampack.PackedDataLoader(packed_dataset(**error_beside_end(tmp_path)), num_workers=0) as alone,
        pytest.raises(RecordError),
    ):
        for _ in alone:
            pass
    assert alone.state_dict()["global_pack"] == 2


@on(2)
def test_max_bad_bounds_what_all_ranks_skip_together(job: Ran) -> None:
    """Each rank alone has ten."""
    for messages in job.errors("max_bad"):
        assert len(messages) == 1
        assert re.search(r"ShardError: .*the run has skipped 1\d bad records or shards, .* max_bad=9", messages[0])
    assert sum(outcome["stats"]["bad_records"] for outcome in job.outcomes["max_bad"]) <= 9


def bad_on_one_rank(folder: Path, end: str) -> dict[str, Any]:
    """Four lanes, of which those of rank 1 have five bad records each."""
    documents = [b"\xff" * 40 if number % 10 == 5 and number // 50 % 2 else "x" * 40 for number in range(200)]
    data = write_shards(folder / f"bad_on_one_rank_{end}", documents, documents_per_shard=50)
    places = {"num_lanes": 4, "seq_len": 32, "shuffle": False, "on_error": "skip", "max_bad": 6}
    return {"data": data, "epochs": 1, "epoch_end": end, **places}


@on(2)
@pytest.mark.parametrize("end", ["pad", "stop"])
def test_a_finite_run_that_skips_too_much_on_one_rank_ends_on_all_at_the_pack_of_one_process(
    job: Ran, tmp_path: Path, end: str
) -> None:
    other, own = job.errors(f"max_bad, {end}")
    assert len(own) == len(other) == 1
    assert own[0].startswith("ShardError: ")
    assert "the run has skipped 7 bad records or shards, more than max_bad=6" in own[0]
    with (
        streampack.PackedDataLoader(packed_dataset(**bad_on_one_rank(tmp_path, end)), num_workers=0) as alone,
        pytest.raises(ShardError, match="the run has skipped 7"),
    ):
        for _ in alone:
            pass
    place = alone.state_dict()["global_pack"]
    assert other[0].startswith(f"LoaderError: data-parallel rank 1 has met an error at global pack {place}, ")


@on(2)
@pytest.mark.parametrize("end", ["pad", "stop"])
def test_a_finite_run_whose_workers_die_again_and_again_on_one_rank_ends_on_all(job: Ran, end: str) -> None:
    other, own = job.errors(f"killed for good, {end}")
    assert len(own) == len(other) == 1
    assert "SIGKILL" in own[0]
    assert "the workers were restarted 3 times within an hour" in own[0]
    assert other[0].startswith("LoaderError: data-parallel rank 1 has met an error at global pack ")
    assert all(outcome["seconds"] < 30 for outcome in job.outcomes[f"killed for good, {end}"])


@on(2)
@pytest.mark.parametrize("name", DIFFER_IN_THE_RUN)
def test_ranks_that_would_not_end_together_are_told_why_on_every_rank(job: Ran, name: str) -> None:
    for messages in job.errors(name):
        assert len(messages) == 1
        assert messages[0].startswith("ConfigError: ")
        assert name in messages[0]


@on(2)
@pytest.mark.parametrize("name", DIFFER)
def test_ranks_with_other_arguments_are_refused_at_each_try(job: Ran, name: str) -> None:
    for messages in job.errors(f"other {name}"):
        assert len(messages) == 3, "a rank that tries again must not get through"
        assert len(set(messages)) == 1
