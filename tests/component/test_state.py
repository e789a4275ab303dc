"""The state: what it holds, what it refuses, and the iterators that move it."""

import functools
import io
import itertools
import json
import logging
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.jobs import (
    LANES,
    Array,
    Corpus,
    Job,
    assert_equal,
    dataset,
    expected,
    lane_texts,
    rows,
    tokens_of,
    uneven,
    write_corpus,
)
from support.jobs import texts as make_texts
from support.thorough import nightly, some
from support.workers import alive, worker_pids

import streampack
from streampack.errors import LoaderError, StateError, TopologyError
from streampack.records import Counts
from streampack.state.checkpoint import FIELDS, PACKS, STATE_VERSION
from streampack.state.forms import COMMON, SLOTS
from streampack.state.joining import to_json
from streampack.testing import ByteTokenizer


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return uneven(tmp_path_factory.mktemp("uneven"))


@pytest.fixture(scope="module")
def data(corpus: Corpus) -> streampack.PackedDataset:
    return dataset(corpus)


@pytest.fixture(scope="module")
def wanted(corpus: Corpus) -> list[Array]:
    return expected(corpus, 300, seq_len=32)


def loader_of(data: streampack.PackedDataset, batch_size: int = 4, **options: Any) -> streampack.PackedDataLoader:
    """Its workers are forked from this process, which takes less time than a server for each loader."""
    return streampack.PackedDataLoader(
        data, batch_size, **{"num_workers": 0, "multiprocessing_context": "fork", **options}
    )


def take(iterator: Any, batches: int) -> list[Array]:
    return [row for batch in itertools.islice(iterator, batches) for row in rows(batch)]


def same(state: dict[str, Any], other: dict[str, Any]) -> bool:
    return bool(json.loads(to_json(state)) == json.loads(to_json(other)))


def num_skipped(state: dict[str, Any]) -> int:
    """Over all lanes."""
    return int(state["rows"][..., FIELDS.index("num_skipped")].sum())


# --- what it holds


def test_a_state_has_two_tables_of_lanes_and_values_that_are_equal_on_all_ranks(data: streampack.PackedDataset) -> None:
    with Job(data, 3, 0, 4) as job:
        job.step(2)
        states = [loader.state_dict() for loader in job.loaders]
    for rank, state in enumerate(states):
        assert set(state) == {"rows", "skipped_ranges", *COMMON}
        assert all(state[key] == states[0][key] for key in COMMON)
        plain = json.loads(to_json(state))
        lanes = range(rank, LANES, 3)
        assert {key for key in plain if key not in COMMON} == {
            f"{kind}.{lane:06d}" for kind in ("skipped_ranges", "lanes") for lane in lanes
        }
        assert all([len(row) for row in plain[f"lanes.{lane:06d}"]] == [len(FIELDS)] for lane in lanes)
        assert all(plain[f"skipped_ranges.{lane:06d}"] == "[[]]" for lane in lanes)
        for table in (state["rows"], state["skipped_ranges"]):
            assert isinstance(table, torch.Tensor)
            assert table.dtype == torch.int64 and table.shape[:3] == (4, 3, 1), "the box of 12 lanes"
    assert states[0]["global_pack"] == 24


def test_the_layout_of_a_row_belongs_to_the_version() -> None:
    """Old states are read by position; a change here needs another `STATE_VERSION`."""
    assert STATE_VERSION == 6
    assert FIELDS[:8] == ("epoch", "piece", "sample", "record", "place", "part", "row", "given")
    assert FIELDS[8:13] == ("stage", "rest", "until", "last", "last_sample")
    assert FIELDS[13:16] == ("packs", "num_skipped", "digest")
    assert FIELDS[16:] == Counts._fields


def test_the_fingerprint_has_what_decides_on_the_packs_and_nothing_else(corpus: Corpus) -> None:
    fingerprint = dataset(corpus).fingerprint()
    assert sorted(fingerprint) == [
        "add_bos",
        "add_eos",
        "boundary",
        "field",
        "lookahead",
        "max_document_bytes",
        "num_lanes",
        "overflow",
        "packing",
        "pad_id",
        "seed",
        "seq_len",
        "shards",
        "shuffle",
        "split",
        "tail",
        "tokenizer",
        "transform",
        "val_fraction",
    ]
    assert json.loads(json.dumps(fingerprint)) == fingerprint
    assert str(corpus.shards[0].parent) not in json.dumps(fingerprint)


def test_a_state_goes_through_json_and_through_torchs_safe_loading(data: streampack.PackedDataset) -> None:
    with Job(data) as job:
        job.step(30)
        state = job.loaders[0].state_dict()
    stored = io.BytesIO()
    torch.save(state, stored)
    stored.seek(0)
    for copy in (torch.load(stored, weights_only=True), json.loads(to_json(state))):
        loader = loader_of(data)
        loader.load_state_dict(copy)
        assert same(loader.state_dict(), state)
        assert loader.digest() == job.digest()


@pytest.mark.filterwarnings("ignore:torch.distributed is (disabled|unavailable):UserWarning")  # as it is meant here
def test_a_state_is_saved_and_loaded_by_torchs_distributed_checkpoint(
    data: streampack.PackedDataset, wanted: list[Array], tmp_path: Path
) -> None:
    import torch.distributed.checkpoint as dcp

    with Job(data, 4, 0, 3) as job:
        job.step(3)
        state = streampack.merge_state_dicts(loader.state_dict() for loader in job.loaders)
    dcp.save({"data": state}, checkpoint_id=tmp_path)
    with Job(data, 2, 0, 1) as job:
        for loader in job.loaders:
            template = {"data": loader.state_dict()}
            dcp.load(template, checkpoint_id=tmp_path)
            loader.load_state_dict(template["data"])
        assert_equal(job.step(10), wanted, begin=36)


def test_a_state_shares_nothing_with_the_running_loader(data: streampack.PackedDataset, wanted: list[Array]) -> None:
    with loader_of(data) as loader:
        iterator = iter(loader)
        packs = take(iterator, 5)
        state = loader.state_dict()
        before = json.loads(to_json(state))
        packs += take(iterator, 5)
        assert json.loads(to_json(state)) == before  # the loader's progress does not show in it
        later = loader.state_dict()
        for value in [*state.values(), *later.values()]:
            if isinstance(value, torch.Tensor):
                value.fill_(-7)  # nor does this show in the loader
        packs += take(iterator, 5)
        assert json.loads(to_json(loader.state_dict()))["lanes.000000"][0][PACKS] == 5
        loader.load_state_dict(loader.state_dict())
        packs += take(iter(loader), 5)
    assert_equal(dict(enumerate(packs)), wanted)


def test_a_loaded_state_can_be_changed_afterwards(data: streampack.PackedDataset, wanted: list[Array]) -> None:
    with Job(data) as job:
        job.step(20)
        state = job.loaders[0].state_dict()
    with loader_of(data) as loader:
        loader.load_state_dict(state)
        for value in state.values():
            if isinstance(value, torch.Tensor):
                value.zero_()
        assert_equal({20 + n: pack for n, pack in enumerate(take(iter(loader), 5))}, wanted, begin=20)


def test_a_loader_that_has_given_nothing_has_a_state(data: streampack.PackedDataset, wanted: list[Array]) -> None:
    state = loader_of(data).state_dict()
    assert state["global_pack"] == 0
    with Job(data, 2, state=state) as job:
        assert_equal(job.step(12), wanted)


# --- batches back


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_back_is_the_state_of_so_many_batches_earlier(data: streampack.PackedDataset, workers: int) -> None:
    with loader_of(data, 5, num_workers=workers) as loader:
        states = [loader.state_dict()]
        digests = [loader.digest()]
        for _ in itertools.islice(loader, 12):
            states.append(loader.state_dict())
            digests.append(loader.digest())
            for back in range(min(len(states), 9)):
                assert same(loader.state_dict(batches_back=back), states[-1 - back])
    other = loader_of(data)
    for back in range(9):
        other.load_state_dict(loader.state_dict(batches_back=back))
        assert other.digest() == digests[-1 - back]


def test_batches_back_forgets_skipped_ranges_and_fillers(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path, [(".tar", make_texts(12, longest=60)), (".tar", make_texts(30, longest=60))])
    path = corpus.shards[1]
    path.write_bytes(path.read_bytes().replace(b"<1", b"\xff1"))
    data = dataset(corpus, num_lanes=2, seq_len=16, epochs=1, on_error="skip")
    with loader_of(data, 1) as loader:
        states = [loader.state_dict()]
        for _ in loader:
            states.append(loader.state_dict())
            for back in range(min(len(states), 9)):
                assert same(loader.state_dict(batches_back=back), states[-1 - back])
    assert num_skipped(states[-1]) > 3
    assert num_skipped(loader.state_dict()) == loader.stats()["bad_records"] == 11
    assert loader.stats()["fillers"] > 3


def test_more_skipped_ranges_than_the_table_has_room_for_are_warned_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    corpus = write_corpus(tmp_path, [(".tar", make_texts(200, longest=60))])
    path = corpus.shards[0]
    path.write_bytes(path.read_bytes().replace(b"<1", b"\xff1"))
    data = dataset(corpus, num_lanes=2, seq_len=16, on_error="skip", shuffle=streampack.Shuffle(window=1000))
    with loader_of(data, 1, dp_rank=0, dp_size=2) as loader:
        loader.state_dict()
        assert not caplog.messages
        batches = iter(loader)
        while loader.stats()["bad_records"] <= SLOTS:
            next(batches)
        for _ in range(2):
            loader.state_dict()
    assert caplog.text.count(f"a lane has more than {SLOTS} skipped ranges") == 1


@pytest.mark.parametrize(
    ("workers", "batch_size"),
    [
        *((0, 3), (0, 24), (1, 7), (2, 4)),
        *nightly([(0, 1), (0, 4), (0, 7), (1, 1), (1, 3), (1, 4), (1, 24), (2, 1), (2, 3), (2, 7), (2, 24)]),
    ],
)
def test_a_lane_that_comes_more_than_once_in_a_batch_is_committed_as_pack_by_pack(
    tmp_path: Path, batch_size: int, workers: int
) -> None:
    corpus = write_corpus(tmp_path, [(".tar", make_texts(9, longest=60)), (".tar", make_texts(31, longest=60))])
    path = corpus.shards[1]
    path.write_bytes(path.read_bytes().replace(b"<1", b"\xff1"))
    data = dataset(corpus, num_lanes=2, seq_len=16, epochs=1, on_error="skip", shuffle="shards")
    with loader_of(data, 1) as loader:
        singly = [loader.state_dict(), *(loader.state_dict() for _ in loader)]
    with loader_of(data, 1) as loader:
        past = [loader.state_dict(), *(loader.state_dict() for _ in range(len(singly) - 1) if loader.skip(1))]
    with loader_of(data, batch_size, num_workers=workers) as loader, loader_of(data, batch_size) as skipping:
        for batches, _ in enumerate(loader, start=1):
            assert skipping.skip(1) == 1
            for back in range(min(batches + 1, 9)):
                packs = min(batch_size * (batches - back), len(singly) - 1)
                assert same(loader.state_dict(batches_back=back), singly[packs])
                assert same(skipping.state_dict(batches_back=back), past[packs])
    assert num_skipped(singly[-1]) == num_skipped(loader.state_dict()) == 11  # with those after a lane's last pack
    assert loader.stats()["fillers"] > 3


@pytest.mark.parametrize("back", [-1, 4, 9])
def test_batches_back_beyond_what_is_kept_is_refused(data: streampack.PackedDataset, back: int) -> None:
    with loader_of(data) as loader:
        take(iter(loader), 3)
        with pytest.raises(StateError, match=f"batches_back={back}: this loader can go back 3 batches now"):
            loader.state_dict(batches_back=back)
        take(iter(loader), 20)
        with pytest.raises(StateError, match="this loader can go back 8 batches now"):
            loader.state_dict(batches_back=9)
        loader.load_state_dict(loader.state_dict())
        with pytest.raises(StateError, match="this loader can go back 0 batches now"):
            loader.state_dict(batches_back=1)


# --- iterators


@pytest.mark.parametrize("workers", [0, 2])
def test_a_second_iterator_goes_on_and_the_older_one_raises(
    data: streampack.PackedDataset, wanted: list[Array], workers: int
) -> None:
    with loader_of(data, num_workers=workers) as loader:
        first = iter(loader)
        packs = take(first, 3)
        second = iter(loader)
        with pytest.raises(LoaderError, match="this iterator is over: a newer iter"):
            next(first)
        packs += take(second, 3)
        third = iter(loader)
        packs += take(third, 3)
        assert_equal(dict(enumerate(packs)), wanted)


def test_an_iterator_that_was_never_used_takes_nothing(data: streampack.PackedDataset, wanted: list[Array]) -> None:
    with loader_of(data) as loader:
        iter(loader)
        iter(loader)
        assert_equal(dict(enumerate(take(iter(loader), 3))), wanted)


@pytest.mark.parametrize("workers", [3, *nightly([0])])
def test_a_break_loses_nothing(data: streampack.PackedDataset, wanted: list[Array], workers: int) -> None:
    packs = []
    with loader_of(data, num_workers=workers) as loader:
        for stop in (1, 2, 5, 1):
            for count, batch in enumerate(loader, 1):
                packs += rows(batch)
                if count == stop:
                    break
        assert_equal(dict(enumerate(packs)), wanted)
        assert len(packs) == 36 and loader.stats()["batches"] == 9


@pytest.mark.parametrize("workers", [2, *nightly([0])])
def test_loading_a_state_retires_iterators_and_workers(
    data: streampack.PackedDataset, wanted: list[Array], workers: int
) -> None:
    with loader_of(data, num_workers=workers) as loader:
        iterator = iter(loader)
        take(iterator, 3)
        state = loader.state_dict()
        take(iterator, 4)
        pids = worker_pids(loader)
        assert len(pids) == workers
        loader.load_state_dict(state)
        with pytest.raises(LoaderError, match="this iterator is over"):
            next(iterator)
        assert alive(pids) == []
        packs = take(iter(loader), 5)
        assert_equal({12 + n: pack for n, pack in enumerate(packs)}, wanted, begin=12)
        assert loader.digest() == straight_digest(data, 32)


def straight_digest(data: streampack.PackedDataset, packs: int) -> int:
    with Job(data) as job:
        job.step(packs)
        return job.digest()


def test_a_closed_loader_has_no_process_and_goes_on_when_iterated(
    data: streampack.PackedDataset, wanted: list[Array]
) -> None:
    loader = loader_of(data, num_workers=2)
    iterator = iter(loader)
    packs = take(iterator, 3)
    pids = worker_pids(loader)
    assert len(pids) == 2
    loader.close()
    assert alive(pids) == []
    with pytest.raises(LoaderError, match="this iterator is over"):
        next(iterator)
    assert loader.state_dict()["global_pack"] == 12
    packs += take(iter(loader), 3)
    loader.close()
    loader.close()
    assert_equal(dict(enumerate(packs)), wanted)


def test_a_loader_that_is_dropped_ends_its_workers_at_once(data: streampack.PackedDataset) -> None:
    """As torch's own does; workers left to the garbage collector would be waited for in the middle of another run."""
    loader = loader_of(data, num_workers=1, multiprocessing_context=None)
    for _ in itertools.islice(loader, 3):
        pass
    pids = worker_pids(loader)
    del loader
    assert alive(pids) == []


def test_a_worker_that_is_killed_loses_nothing(data: streampack.PackedDataset, wanted: list[Array]) -> None:
    with loader_of(data, num_workers=2, prefetch_bytes=1, multiprocessing_context=None) as loader:
        iterator = iter(loader)
        packs = take(iterator, 5)
        os.kill(worker_pids(loader)[0], signal.SIGKILL)
        packs += take(iterator, 5)
        assert loader.state_dict()["global_pack"] == len(packs) == 40
        packs += take(iter(loader), 5)
        assert_equal(dict(enumerate(packs)), wanted)


@pytest.mark.parametrize("epochs", [None, 1])
def test_after_an_error_the_pass_is_not_taken_for_ended(tmp_path: Path, epochs: int | None) -> None:
    """A trainer that catches the error and asks for more must not be told that the data are over."""
    corpus = write_corpus(tmp_path, [(".tar", make_texts(30, longest=60))])
    path = corpus.shards[0]
    path.write_bytes(path.read_bytes().replace(b"<20>", b"\xff20>"))
    loader = loader_of(dataset(corpus, num_lanes=1, seq_len=16, epochs=epochs), 1)
    iterator = iter(loader)
    with pytest.raises(ValueError, match="not UTF-8"):
        for _ in iterator:
            pass
    state = loader.state_dict()
    assert loader.state_dict()["first_epoch"] == 0 and state["global_pack"] > 10
    for _ in range(2):
        with pytest.raises(ValueError, match="not UTF-8"):
            next(iter(loader))
    with pytest.raises(ValueError, match="not UTF-8"):
        loader.skip(1)
    assert same(loader.state_dict(), state)


# --- skip


@pytest.mark.parametrize("workers", [0, 2])
def test_skip_lands_where_so_many_batches_would(
    data: streampack.PackedDataset, wanted: list[Array], workers: int
) -> None:
    with loader_of(data, num_workers=workers) as loader, loader_of(data) as other:
        assert loader.skip(3) == 3
        iterator = iter(loader)
        packs = take(iterator, 2)
        assert loader.skip(5) == 5  # between two batches of a living iterator
        packs += take(iterator, 2)
        numbers = [*range(12, 20), *range(40, 48)]
        assert_equal(dict(enumerate(packs)), [wanted[number] for number in numbers])
        assert loader.stats()["skipped_packs"] == 32
        assert loader.stats()["batches"] == 4
        take(iter(other), 12)
        cursors, same = (one.state_dict()["rows"][..., : PACKS + 1] for one in (loader, other))
        assert torch.equal(cursors, same) and cursors.any()


def test_what_was_skipped_is_in_no_digest_and_in_no_count_but_its_own_and_documents(
    data: streampack.PackedDataset,
) -> None:
    def run(ranks: int, batch_size: int, *, skip: int) -> Job:
        job = Job(data, ranks, 0, batch_size)
        job.step(24 // ranks // batch_size)
        if skip:
            batches = skip // ranks // batch_size
            assert [loader.skip(batches) for loader in job.loaders] == [batches] * ranks
        return job

    plain, skipped, elsewhere = run(1, 2, skip=0), run(1, 2, skip=48), run(4, 3, skip=48)
    assert plain.digest() == skipped.digest() == elsewhere.digest()
    whole = Job(data, 1, 0, 1)
    whole.step(72)
    wanted = {**plain.stats(), "skipped_packs": 48, "documents": whole.stats()["documents"]}
    assert wanted == skipped.stats() == elsewhere.stats()
    assert skipped.state() == elsewhere.state()
    skipped.step(24)
    elsewhere.step(4)
    assert skipped.digest() == elsewhere.digest() != plain.digest()


def test_skip_stops_at_the_end_of_a_pass(corpus: Corpus) -> None:
    data = dataset(corpus, epochs=1, num_lanes=2)
    with loader_of(data) as loader:
        batches = sum(1 for _ in loader)
    with loader_of(data) as loader:
        take(iter(loader), 3)
        assert loader.skip(10_000) == batches - 3
        assert list(loader) == []  # the rest of this pass
        assert loader.state_dict()["first_epoch"] == 1
        assert take(iter(loader), 1)


def test_a_skip_can_be_gone_back_behind(data: streampack.PackedDataset) -> None:
    with loader_of(data) as loader:
        take(iter(loader), 4)
        state = loader.state_dict()
        loader.skip(3)
        assert same(loader.state_dict(batches_back=3), state)


# --- counts


def test_every_document_is_counted_once_when_its_last_row_is_out(corpus: Corpus) -> None:
    """Batch by batch against the rules: documents, tokens and targets of the packs that are out."""

    @functools.cache
    def lengths(lane: int, epoch: int) -> list[int]:
        return [len(tokens_of(text)) for text in lane_texts(corpus, lane, epoch)]

    with Job(dataset(corpus), 2, 0, 3) as job:
        for _ in range(25):
            job.step(2)
            state = job.state()
            documents = tokens = 0
            for lane in range(LANES):
                row = state[f"lanes.{lane:06d}"][0]
                given = 32 * row[PACKS]
                tokens += given
                stream = (length for epoch in itertools.count() for length in lengths(lane, epoch))
                while (given := given - next(stream)) >= 0:
                    documents += 1
            stats = job.stats()
            assert (stats["documents"], stats["tokens"], stats["padding"]) == (documents, tokens, 0)
            assert stats["targets"] == tokens - documents


def test_counts_are_equal_on_every_topology_and_through_resumes(corpus: Corpus) -> None:
    kinds: list[dict[str, Any]] = [
        {},
        {"packing": "best_fit", "window": 4},
        *nightly([{"packing": "next_fit", "overflow": "truncate", "boundary": "keep"}]),
        *nightly([{"packing": "next_fit", "overflow": "drop"}, {"boundary": "trim"}]),
    ]
    for changes in kinds:
        data = dataset(corpus, **changes)
        found = []
        for plan in ([(1, 96, 2)], [(4, 12, 4)], [(1, 5, 6), (4, 3, 4), (3, 6, 6), (2, 3, 1)]):
            state: dict[str, Any] | None = None
            for ranks, batches, batch_size in plan:
                with Job(data, ranks, 0, batch_size, state=state) as job:
                    job.step(batches)
                    state = job.state()
                    stats = job.stats()
            assert state is not None and state["global_pack"] == 192
            found.append(stats)
        assert found[0] == found[1] == found[2]
        assert found[0]["documents"] > 50


# --- merging


def test_ranks_at_different_steps_are_not_merged(data: streampack.PackedDataset) -> None:
    with Job(data, 2, 0, 4) as job:
        job.step(2)
        take(iter(job.loaders[1]), 1)
        with pytest.raises(StateError, match="different steps: global_pack is 16 in state 0, 24 in state 1"):
            streampack.merge_state_dicts(loader.state_dict() for loader in job.loaders)


def test_states_of_different_runs_are_not_merged(corpus: Corpus) -> None:
    states = [loader_of(dataset(corpus, seed=rank), dp_rank=rank, dp_size=2).state_dict() for rank in range(2)]
    with pytest.raises(StateError, match="fingerprint differs between the ranks' states"):
        streampack.merge_state_dicts(states)


def test_one_lane_at_two_positions_is_not_merged(data: streampack.PackedDataset) -> None:
    state = loader_of(data).state_dict()
    plain = json.loads(to_json(state))
    other = {**plain, "lanes.000003": [[number + 1 for number in plain["lanes.000003"][0]]]}
    with pytest.raises(StateError, match="lane 3 differs between the ranks' states: state 1 has another row"):
        streampack.merge_state_dicts([state, other])
    assert same(streampack.merge_state_dicts([state, state]), state)  # peers with the same packs are no harm


def test_a_merged_state_shares_nothing_with_its_parts(data: streampack.PackedDataset) -> None:
    state = loader_of(data).state_dict()
    for value in streampack.merge_state_dicts([state]).values():
        if isinstance(value, torch.Tensor):
            value.fill_(-7)
    assert same(state, loader_of(data).state_dict())


def test_nothing_is_not_merged() -> None:
    with pytest.raises(StateError, match="was given no states"):
        streampack.merge_state_dicts([])
    with pytest.raises(StateError, match="not a state of a PackedDataLoader"):
        streampack.merge_state_dicts([{"model": 1}])


# --- refusals: the loader stays as it was


Spoil = Callable[[dict[str, Any]], dict[str, Any]]


@pytest.fixture(scope="module")
def after_six(data: streampack.PackedDataset) -> dict[str, Any]:
    """The state after 6 batches."""
    with loader_of(data) as loader:
        take(iter(loader), 6)
        return dict(loader.state_dict())


@functools.cache
def undisturbed(data: streampack.PackedDataset, **options: Any) -> tuple[dict[str, Any], list[Array], int]:
    """Of a run of 4 batches: the state 2 batches before, the packs of 3 more, and the digest after them."""
    with loader_of(data, 3, **options) as loader:
        iterator = iter(loader)
        take(iterator, 4)
        return loader.state_dict(batches_back=2), take(iterator, 3), loader.digest()


def assert_refused(
    data: streampack.PackedDataset, state: dict[str, Any], error: type[Exception], *texts: str, **options: Any
) -> None:
    """The state is refused in the middle of a run, which then goes on as if nothing had been."""
    behind, wanted, digest = undisturbed(data, **options)
    with loader_of(data, 3, **options) as loader:
        iterator = iter(loader)
        take(iterator, 4)
        before = loader.state_dict()
        with pytest.raises(error) as caught:
            loader.load_state_dict(state)
        for text in texts:
            assert text in str(caught.value)
        assert same(loader.state_dict(), before)
        assert same(loader.state_dict(batches_back=2), behind)
        np.testing.assert_array_equal(take(iterator, 3), wanted)
        assert loader.digest() == digest


@pytest.mark.parametrize(
    ("changes", "text"),
    some(
        [
            (
                {"seq_len": 40},
                'seq_len: 32 in the checkpoint, 40 now; load_state_dict(state, allow={"seq_len"}) continues',
            ),
            ({"boundary": "keep"}, "boundary: 'mask' in the checkpoint, 'keep' now; load_state_dict(state, allow="),
            ({"boundary": streampack.ReplaceBoundary(7)}, "boundary: 'mask' in the checkpoint, 'replace:7' now"),
            (
                {"packing": "next_fit"},
                "packing: 'wrap' in the checkpoint, 'next_fit' now; load_state_dict(state, allow=",
            ),
            ({"tail": "drop"}, "tail: 'pad' in the checkpoint, 'drop' now"),
            ({"lookahead": False}, "lookahead: True in the checkpoint, False now"),
            ({"pad_id": 9}, "pad_id: 0 in the checkpoint, 9 now"),
            (
                {"seed": 1},
                "seed: 0 in the checkpoint, 1 now; set seed back to the checkpoint's value, or start a new run",
            ),
            (
                {"shuffle": False},
                "shuffle: Shuffle(block_bytes=4096, window=8) in the checkpoint, False now; set shuffle",
            ),
            ({"num_lanes": 6}, "num_lanes: 12 in the checkpoint, 6 now; streampack.relane(state, dataset, 6)"),
            ({"add_bos": False}, "add_bos: True in the checkpoint, False now"),
            ({"add_eos": False}, "add_eos: True in the checkpoint, False now"),
            ({"part": "train", "fraction": 0.1}, "split: 'all' in the checkpoint, 'train' now"),
            ({"part": "train", "fraction": 0.1}, "val_fraction: 0.0 in the checkpoint, 0.1 now"),
            ({"document_bytes": 10**6}, "max_document_bytes: 67108864 in the checkpoint, 1000000 now"),
            ({"transform": lambda document, rng: document}, "transform: 'none' in the checkpoint, \"version ''\" now"),
        ],
        2,
        first=1,
    ),
    ids=lambda given: given if isinstance(given, str) else ",".join(given),
)
def test_a_state_of_other_arguments_is_refused_by_name(
    corpus: Corpus, data: streampack.PackedDataset, changes: dict[str, Any], text: str
) -> None:
    state = loader_of(data).state_dict()
    assert_refused(dataset(corpus, **changes), state, StateError, "the state is of another run:", text)


class OtherBytes(ByteTokenizer):
    digest = "bytes:other"


def test_a_state_of_another_tokenizer_is_refused(corpus: Corpus, data: streampack.PackedDataset) -> None:
    other = dataset(corpus, tokenizer=OtherBytes())
    state = loader_of(data).state_dict()
    assert_refused(other, state, StateError, "tokenizer: 'bytes:1' in the checkpoint, 'bytes:other' now")


def test_a_library_of_the_tokenizer_with_another_version_is_a_warning(
    data: streampack.PackedDataset, caplog: pytest.LogCaptureFixture
) -> None:
    state = loader_of(data).state_dict()
    with caplog.at_level(logging.WARNING, "streampack"):
        loader_of(data).load_state_dict(state)
        assert not caplog.messages
        loader_of(data).load_state_dict({**state, "libraries": '{"tokenizers": "0.1"}'})
    assert len(caplog.messages) == 1
    assert "tokenizers, which makes the token ids, is 0.1 in the state and not used now" in caplog.text


def test_a_state_of_another_transform_version_is_refused(corpus: Corpus) -> None:
    old, new = (dataset(corpus, transform=lambda d, r: d, transform_version=version) for version in ("1", "2"))
    text = "transform: \"version '1'\" in the checkpoint, \"version '2'\" now"
    assert_refused(new, loader_of(old).state_dict(), StateError, text)


def test_every_field_that_differs_is_named(corpus: Corpus, data: streampack.PackedDataset) -> None:
    other = dataset(corpus, seed=4, seq_len=48, add_bos=False)
    state = loader_of(data).state_dict()
    assert_refused(other, state, StateError, "seed: 0", "seq_len: 32", "add_bos: True")


def test_a_state_of_other_shards_is_refused(corpus: Corpus, data: streampack.PackedDataset, tmp_path: Path) -> None:
    state = loader_of(data).state_dict()
    fewer = dataset(corpus.urls[:-1])
    advice = "point the dataset at the same shards in the same order, or start a new run"
    assert_refused(fewer, state, StateError, "shards: num_shards is 7 in the checkpoint (", ", 6 now (", advice)
    swapped = dataset([*corpus.urls[:4], corpus.urls[5], corpus.urls[4], corpus.urls[6]])
    assert_refused(swapped, state, StateError, "shard 4 of 7 is ", "004.tar.zst in the checkpoint, 005.tar now", advice)
    for path in corpus.shards:
        shutil.copy(path, tmp_path)
    grown = tmp_path / corpus.shards[0].name
    grown.write_bytes(grown.read_bytes() + bytes(512))
    total = sum(path.stat().st_size for path in corpus.shards)
    assert_refused(
        dataset(sorted(map(str, tmp_path.iterdir()))),
        state,
        StateError,
        f"shards: shard 0 of 7, {grown.name}, has another size (total_bytes is {total} in the checkpoint",
    )


def test_names_of_shards_in_the_fingerprint_are_for_messages_only(data: streampack.PackedDataset) -> None:
    state = loader_of(data).state_dict()
    saved = json.loads(state["fingerprint"])
    del saved["shards"]["block_names"]
    loader_of(data).load_state_dict({**state, "fingerprint": json.dumps(saved)})
    saved["shards"]["num_estimated_sizes"] = 3
    text = "shards: num_estimated_sizes is 3 in the checkpoint, 0 now; point the dataset"
    assert_refused(data, {**state, "fingerprint": json.dumps(saved)}, StateError, text)


def test_a_mark_that_is_added_at_a_resume_is_refused_as_it_would_give_documents_twice(
    corpus: Corpus, data: streampack.PackedDataset, tmp_path: Path
) -> None:
    def marked(*indexes: int) -> streampack.PackedDataset:
        manifest = tmp_path / "manifest.jsonl"
        lines = [{"url": url, "size": Path(url).stat().st_size} for url in corpus.urls]
        for index in indexes:
            lines[index]["whole"] = True  # type: ignore[assignment]
        manifest.write_text("\n".join(map(json.dumps, lines)))
        return dataset([f"@{manifest}"])

    assert marked().fingerprint() == data.fingerprint()  # so the states of runs without marks are loaded
    state = loader_of(data).state_dict()
    advice = "would have documents twice and miss others. To go on, give the manifest the marks of the checkpoint"
    assert_refused(marked(0, 1), state, StateError, "(indexes from 0): none in the checkpoint, 0-1 now", advice)
    old = loader_of(marked(1)).state_dict()
    assert_refused(marked(0), old, StateError, "(indexes from 0): 1 in the checkpoint, 0 now", advice)
    assert_refused(data, old, StateError, "1 in the checkpoint, none now", advice)
    loader_of(marked(1)).load_state_dict(old)
    fewer = dataset(corpus.urls[:-1])
    assert_refused(fewer, old, StateError, "num_shards is 7 in the checkpoint (", "; point the dataset at the same")


def test_a_corpus_may_move_and_what_is_no_part_of_the_data_may_change(
    corpus: Corpus, data: streampack.PackedDataset, wanted: list[Array], tmp_path: Path
) -> None:
    with Job(data) as job:
        job.step(24)
        state = job.state()
    moved = [shutil.copy(path, tmp_path) for path in corpus.shards]
    other = dataset(moved, on_error="skip", epochs=30, buffer_bytes=10**8, max_bad=3)
    with Job(other, 3, 0, 2, state=state) as job:
        assert_equal(job.step(8), wanted, begin=24)


@pytest.mark.parametrize(
    ("spoil", "error", "text"),
    [
        (lambda s: {**s, "version": 99}, StateError, "version 99, this release of streampack reads 6 (another layout)"),
        (lambda s: {**s, "version": 2}, StateError, "continue with the release that wrote it, or start a new run"),
        (lambda s: {**s, "order_version": 0}, StateError, "the state has order_version 0, this release"),
        (lambda s: {}, StateError, "not a state of a PackedDataLoader: no version, order_version, fingerprint"),
        (lambda s: {"model": 1, "optimizer": 2}, StateError, "among its 2 keys"),
        (lambda s: {k: v for k, v in s.items() if k != "global_pack"}, StateError, "no global_pack among its 33 keys"),
        (lambda s: {**s, "fingerprint": "x"}, StateError, "the state's fingerprint is not JSON"),
        (lambda s: {**s, "fingerprint": "[]"}, StateError, "the state's fingerprint is not an object"),
        (lambda s: {**s, "lanes.000004": torch.zeros(3)}, StateError, "lanes.000004 has shape (3,)"),
        (lambda s: {**s, "lanes.000004": "here"}, StateError, "lanes.000004"),
        (lambda s: {**s, "skipped_ranges.000004": "["}, StateError, "skipped_ranges.000004"),
        (lambda s: {**s, "skipped_ranges.000004": "[[[1, 2]]]"}, StateError, "skipped_ranges.000004"),
        (lambda s: {**s, "skipped_ranges.000004": "[]"}, StateError, "000004 has 0 lists for 1 sources"),
        (lambda s: {**s, "sources": "here"}, StateError, "sources is 'here', not a JSON list"),
        (lambda s: {**s, "sources": "[]"}, StateError, "sources is [], not a list of different names"),
        (lambda s: {**s, "sources": '["a", "a"]'}, StateError, "not a list of different names"),
        (lambda s: {**s, "stages": "here"}, StateError, "stages is 'here', not a JSON list of stages"),
        (lambda s: {**s, "stages": '[{"first_pack": 0}]'}, StateError, "not a JSON list of stages"),
        (lambda s: {k: v for k, v in s.items() if k != "stages"}, StateError, "the state has no stages"),
        (lambda s: {**s, "global_pack": 13}, StateError, "parts of different steps were mixed"),
        (lambda s: {k: v for k, v in s.items() if k != "lanes.000007"}, StateError, "the state has no lane 7: "),
        (lambda s: {k: v for k, v in s.items() if k != "skipped_ranges.000007"}, StateError, "skipped_ranges.000007"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_damaged_state_is_refused(
    data: streampack.PackedDataset, after_six: dict[str, Any], spoil: Spoil, error: type[Exception], text: str
) -> None:
    assert_refused(data, spoil(json.loads(to_json(after_six))), error, text)


def with_column(rows: torch.Tensor, column: int, value: int) -> torch.Tensor:
    rows = rows.clone()
    rows[..., column] = value
    return rows


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda s: {**s, "rows": torch.zeros(3)}, "rows is torch.float32 of shape (3,), not int64 of (4, 3, 1,"),
        (lambda s: {**s, "rows": "here"}, "rows is 'here', not a table of lanes"),
        (lambda s: {**s, "rows": s["rows"][..., :-1]}, "rows is torch.int64 of shape (4, 3, 1,"),
        (lambda s: {key: value for key, value in s.items() if key != "rows"}, "the state has no lane 0: "),
        (lambda s: {key: value for key, value in s.items() if key != "skipped_ranges"}, "no skipped_ranges"),
        (lambda s: {**s, "skipped_ranges": s["skipped_ranges"] + 99}, "lane 0 has 99 "),
        (lambda s: {**s, "rows": with_column(s["rows"], 0, -1)}, "lane 0 continues at Cursor(epoch=-1, "),
        (lambda s: {**s, "rows": with_column(s["rows"], 1, 10**6)}, "piece=1000000, "),
        (lambda s: {**s, "rows": with_column(s["rows"], 7, 3)}, "given=3, stage=0, rest=0, until=0, last=0"),
        (lambda s: {**s, "rows": with_column(s["rows"], 9, 3)}, "stage=0, rest=3, until=0, last=0"),
        (lambda s: {**s, "rows": with_column(s["rows"], 10, 1)}, "rest=0, until=1, last=0, last_sample=0), which"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_damaged_table_is_refused(
    data: streampack.PackedDataset, after_six: dict[str, Any], spoil: Spoil, text: str
) -> None:
    assert_refused(data, spoil(dict(after_six)), StateError, text)


def test_the_state_of_one_rank_of_several_is_not_enough(data: streampack.PackedDataset) -> None:
    with Job(data, 3, 0, 4) as job:
        job.step(2)
        own = job.loaders[0].state_dict()
    assert_refused(
        data,
        own,
        StateError,
        "the state has no lane 1: it holds 4 of 12 lanes, and this rank owns 12 of them",
        "streampack.merge_state_dicts",
    )
    with loader_of(data, dp_rank=0, dp_size=3) as loader:  # the same rank of the same number needs no more
        loader.load_state_dict(own)
        assert loader.digest() == job.loaders[0].digest()


def test_ranks_that_do_not_divide_the_lanes_are_refused(corpus: Corpus, data: streampack.PackedDataset) -> None:
    with pytest.raises(TopologyError, match="5 data-parallel ranks do not divide num_lanes=12.*Run on 4 or 6 ranks"):
        iter(loader_of(data, dp_rank=0, dp_size=5))
    state = loader_of(data).state_dict()
    with pytest.raises(TopologyError, match="8 data-parallel ranks do not divide num_lanes=12"):
        loader_of(dataset(corpus), dp_rank=7, dp_size=8).load_state_dict(state)


@pytest.mark.parametrize("field", ["seed", "num_lanes", "tokenizer", "shards"])
def test_only_what_recuts_rows_can_be_allowed(data: streampack.PackedDataset, field: str) -> None:
    state = loader_of(data).state_dict()
    with pytest.raises(StateError, match=rf"allow=\['{field}'\] cannot be allowed.*boundary, lookahead"):
        loader_of(data).load_state_dict(state, allow={field, "seq_len"})


@pytest.mark.parametrize(
    ("name", "meant"), [("window", '; did you mean "packing_window"'), ("sequence_len", '; did you mean "seq_len"')]
)
def test_a_name_in_allow_that_is_no_field_is_called_unknown(
    data: streampack.PackedDataset, name: str, meant: str
) -> None:
    state = loader_of(data).state_dict()
    with pytest.raises(StateError, match=f'allow: "{name}" is unknown{meant}'):
        loader_of(data).load_state_dict(state, allow={name})


def test_another_kind_of_packing_needs_no_other_name_for_its_window(corpus: Corpus) -> None:
    state = loader_of(dataset(corpus)).state_dict()
    loader_of(dataset(corpus, packing="best_fit", window=8)).load_state_dict(state, allow={"packing"})
    state = loader_of(dataset(corpus, packing="best_fit", window=8)).state_dict()
    loader_of(dataset(corpus)).load_state_dict(state, allow={"packing"})
    with pytest.raises(StateError, match="packing_window: 8 in .*where no lane is inside a packing window"):
        loader_of(dataset(corpus, packing="best_fit", window=4)).load_state_dict(state, allow={"packing"})


def test_allowing_one_field_does_not_allow_another(corpus: Corpus, data: streampack.PackedDataset) -> None:
    state = loader_of(data).state_dict()
    other = loader_of(dataset(corpus, seq_len=40, boundary="keep"))
    with pytest.raises(StateError, match="boundary: 'mask' in the checkpoint") as error:
        other.load_state_dict(state, allow={"seq_len"})
    assert "seq_len" not in str(error.value)
    other.load_state_dict(state, allow={"seq_len", "boundary"})


def test_auto_lanes_are_those_of_the_state(corpus: Corpus, data: streampack.PackedDataset, wanted: list[Array]) -> None:
    automatic = dataset(corpus, num_lanes="auto")
    assert automatic.num_lanes == 1  # the corpus is small
    with Job(data, 2) as job:
        job.step(6)
        state = job.state()
    with Job(lambda: dataset(corpus, num_lanes="auto"), 3, 0, 2, state=state) as job:
        assert job.num_lanes == 12
        assert_equal(job.step(6), wanted, begin=12)
        state = job.state()
    with Job(data, state=state) as job:
        assert_equal(job.step(6), wanted, begin=48)


def test_a_state_in_one_loader_does_not_change_another_loader_of_the_same_dataset(
    corpus: Corpus, data: streampack.PackedDataset, wanted: list[Array]
) -> None:
    with Job(data) as job:
        job.step(24)
        state = job.state()
    automatic = dataset(corpus, num_lanes="auto")
    alone = expected(corpus, 172, seq_len=32, num_lanes=1)
    with loader_of(automatic) as loader, loader_of(automatic) as other:
        packs = take(iter(loader), 3)
        other.load_state_dict(state)
        assert_equal({24 + n: pack for n, pack in enumerate(take(iter(other), 3))}, wanted, begin=24)
        packs += take(iter(loader), 40)
        assert_equal(dict(enumerate(packs)), alone)
