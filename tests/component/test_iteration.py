"""The state of a dataset's iterator, by hand and in torchdata's StatefulDataLoader: exact, each time, or refused."""

import copy
import importlib
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.jobs import NAMES, Array, Corpus, dataset, uneven, write_corpus
from support.jobs import texts as make_texts
from support.thorough import nightly

import streampack
from streampack.dataset.iteration import VERSION
from streampack.errors import StateError
from streampack.state.checkpoint import ORDER_VERSION


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return uneven(tmp_path_factory.mktemp("uneven"))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Some lanes end long before others, and each tenth text or so is a bad record."""
    shards = [(".tar", make_texts(12, seed=1)), (".tar.gz", make_texts(5, seed=2)), (".tar", make_texts(9, seed=3))]
    corpus = write_corpus(tmp_path_factory.mktemp("small"), shards)
    for path in (path for path in corpus.shards if path.suffix == ".tar"):
        path.write_bytes(path.read_bytes().replace("é".encode(), b"\xff\xff", 2))
    return corpus


def item(pack: dict[str, Any]) -> Array:
    return np.stack([pack[name].numpy() for name in NAMES])


def take(iterator: Iterator[dict[str, Any]], count: int) -> list[Array]:
    return [item(pack) for pack in itertools.islice(iterator, count)]


def assert_same(got: list[Array], wanted: list[Array]) -> None:
    assert len(got) == len(wanted)
    for number, (pack, other) in enumerate(zip(got, wanted, strict=True)):
        np.testing.assert_array_equal(pack, other, err_msg=f"pack {number}")


CASES: dict[str, dict[str, Any]] = {
    "endless": {"seed": 3, "num_lanes": 4, "on_error": "skip"},
    "finite": {"epochs": 1, "num_lanes": 4, "on_error": "skip"},
    "two epochs": {"epochs": 2, "num_lanes": 3, "packing": "next_fit", "on_error": "skip"},
    "one rank of two": {"epochs": 1, "num_lanes": 4, "on_error": "skip", "rank": 1, "size": 2},
}


@pytest.mark.parametrize("name", CASES)
def test_an_iterator_goes_on_from_its_state_at_every_pack(small: Corpus, name: str) -> None:
    data = dataset(small, **CASES[name])
    straight = iter(data)
    whole = take(straight, 40)
    iterator, got = iter(data), []
    for _ in range(len(whole)):
        got += take(iterator, 1)
        state = json.loads(json.dumps(iterator.state_dict()))
        iterator = iter(dataset(small, **CASES[name]))
        iterator.load_state_dict(state)
    assert_same(got, whole)
    if name != "endless":
        assert next(iterator, None) is None
    assert iterator.state_dict() == straight.state_dict()


def test_a_state_has_the_bad_records_that_a_lane_may_meet_again(small: Corpus) -> None:
    iterator = iter(dataset(small, **CASES["finite"], shuffle="shards"))  # no lane has them in its last pack only
    most = 0
    for _ in iterator:
        state = iterator.state_dict()
        most = max(most, sum(len(json.loads(skipped)) for (skipped,) in state["skipped_ranges"].values()))
    assert most > 0
    assert sum(row[-1] for _, row in iterator.state_dict()["lanes"].values()) >= most, "so many in the whole run"


def test_a_state_shares_nothing_with_the_running_iterator(corpus: Corpus) -> None:
    iterator = iter(dataset(corpus))
    take(iterator, 5)
    state = iterator.state_dict()
    before = copy.deepcopy(state)
    take(iterator, 5)
    assert state == before != iterator.state_dict()


def test_a_state_remembers_the_epoch_that_was_set(corpus: Corpus) -> None:
    data = dataset(corpus, epochs=1)
    data.set_epoch(3)
    whole = take(iter(data), 12)
    iterator = iter(data)
    got = take(iterator, 5)
    other = iter(dataset(corpus, epochs=1))
    other.load_state_dict(iterator.state_dict())
    assert_same(got + take(other, 7), whole)


def test_a_state_of_another_run_place_or_release_is_refused(corpus: Corpus) -> None:
    iterator = iter(dataset(corpus, rank=0, size=2))
    take(iterator, 3)
    state = iterator.state_dict()
    with pytest.raises(StateError, match="seed: 0 in the checkpoint, 4 now"):
        iter(dataset(corpus, seed=4, rank=0, size=2)).load_state_dict(state)
    for rank, size in ((1, 2), (0, 1), (0, 3)):
        match = rf"worker 0 of 1 on rank 0 of 2, .* {rank} of {size}.*PackedDataLoader continue on"
        with pytest.raises(StateError, match=match):
            iter(dataset(corpus, rank=rank, size=size)).load_state_dict(state)
    for key, known in (("version", VERSION), ("order_version", ORDER_VERSION)):
        with pytest.raises(StateError, match=f"has {key} 99, this release reads {known}"):
            iter(dataset(corpus, rank=0, size=2)).load_state_dict({**state, key: 99})


def test_an_iterator_that_has_raised_is_over(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "bad", [(".tar", ["good " * 30, "bad é"])])
    corpus.shards[0].write_bytes(corpus.shards[0].read_bytes().replace("é".encode(), b"\xff\xff"))
    iterator = iter(dataset(corpus, num_lanes=1, epochs=1))
    with pytest.raises(streampack.StreampackError, match="UTF-8"):
        list(iterator)
    assert list(iterator) == []


def test_the_state_of_an_iterator_that_has_raised_is_that_of_before(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "bad", [(".tar", make_texts(30, seed=number)) for number in range(3)])
    spoilt = [path for path in corpus.shards if b"<20>" in path.read_bytes()]
    good = spoilt[1].read_bytes()
    data = dataset(corpus, num_lanes=3, epochs=1, shuffle=False)
    wanted = take(iter(data), 1000)
    spoilt[1].write_bytes(good.replace(b"<20>", b"\xff\xff\xff\xff"))
    iterator, got = iter(data), list[Array]()
    with pytest.raises(streampack.StreampackError, match="UTF-8"):
        got.extend(map(item, iterator))
    assert 0 < len(got) < len(wanted)
    state = iterator.state_dict()
    spoilt[1].write_bytes(good)
    other = iter(data)
    other.load_state_dict(state)
    assert_same(got + take(other, 1000), wanted)
    iterator.load_state_dict(state)
    assert_same(got + take(iterator, 1000), wanted)


# --- in torchdata's StatefulDataLoader


@pytest.mark.skipif("CI" not in os.environ, reason="elsewhere a loader that is not installed is passed over")
def test_ci_has_torchdata() -> None:
    importlib.import_module("torchdata.stateful_dataloader")


torchdatas = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")


def stateful(data: streampack.PackedDataset, batch_size: int, workers: int) -> Any:
    module = pytest.importorskip("torchdata.stateful_dataloader")
    return module.StatefulDataLoader(data, batch_size=batch_size, num_workers=workers)


@torchdatas
@pytest.mark.parametrize(
    ("name", "batch_size", "workers"),
    [
        *(("endless", 2, 2), ("finite", 3, 0)),
        *nightly([("endless", 2, 0), ("finite", 3, 2), ("one rank of two", 1, 0), ("one rank of two", 1, 2)]),
    ],
)
def test_torchdatas_stateful_dataloader_resumes_exactly_again_and_again(
    small: Corpus, name: str, batch_size: int, workers: int
) -> None:
    def batches(loader: Any, count: int) -> list[Array]:
        rows = itertools.islice(loader, count)
        return [np.stack([batch[key].numpy() for key in NAMES], axis=1) for batch in rows]

    whole = batches(stateful(dataset(small, **CASES[name]), batch_size, workers), 6)
    got: list[Array] = []
    state = None
    for leg in (1, 2, 2, 1):
        loader = stateful(dataset(small, **CASES[name]), batch_size, workers)
        if state is not None:
            loader.load_state_dict(state)
        got += batches(loader, leg)
        state = json.loads(json.dumps(loader.state_dict()))
    assert_same(got, whole)


@pytest.mark.parametrize(("column", "value"), [(0, -1), (1, 10**6), (7, 3)])
def test_a_state_with_a_damaged_cursor_is_refused(small: Corpus, column: int, value: int) -> None:
    iterator = iter(dataset(small, num_lanes=4))
    next(iterator)
    state = iterator.state_dict()
    state["lanes"]["000002"][1][column] = value
    with pytest.raises(StateError, match="lane 2 continues at Cursor.* which is no place in this run"):
        iter(dataset(small, num_lanes=4)).load_state_dict(state)


@torchdatas
def test_torchdatas_stateful_dataloader_refuses_the_state_of_another_rank(small: Corpus) -> None:
    loader = stateful(dataset(small, num_lanes=4, rank=0, size=2), 1, 0)
    next(iter(loader))
    other = stateful(dataset(small, num_lanes=4, rank=1, size=2), 1, 0)
    other.load_state_dict(loader.state_dict())
    with pytest.raises(StateError, match="PackedDataLoader continue on any number of ranks and workers"):
        iter(other)


@torchdatas
def test_torchdatas_stateful_dataloader_refuses_other_workers_itself(small: Corpus) -> None:
    loader = stateful(dataset(small, num_lanes=4), 1, 0)
    next(iter(loader))
    other = stateful(dataset(small, num_lanes=4), 1, 2)
    other.load_state_dict(loader.state_dict())
    with pytest.raises(AssertionError, match="State doesn't contain"):
        iter(other)
