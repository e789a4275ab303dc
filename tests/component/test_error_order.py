"""An error has its place in the global order: all packs before it are given, on every topology, after any resume."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.jobs import (
    Corpus,
    Job,
    assert_equal,
    dataset,
    expected,
    lane_texts,
    texts,
    tokens_of,
    uneven,
    write_corpus,
    write_lanes,
)
from support.thorough import THOROUGH, nightly

import streampack
from streampack.errors import RecordError, ShardError, ShardNotFoundError, TokenizerError
from streampack.testing import ByteTokenizer

TOPOLOGIES = [(1, 0, 5), (3, 2, 1), *nightly([(1, 0, 1), (1, 1, 1), (1, 3, 2), (2, 0, 3)])]
PARKED = {"buffer_bytes": 12 * 112 * 2**10, "document_bytes": 64 * 2**10}


def run(data: streampack.PackedDataset, ranks: int, workers: int, batch_size: int, *, state: Any = None) -> Any:
    """The packs before the error, the error, and the state behind the last whole step."""
    packs: dict[int, Any] = {}
    with Job(data, ranks, workers, batch_size, state=state) as job:
        begun = job.global_pack
        try:
            while True:
                state = job.state()
                step = job.step()
                assert step, "the pass has ended without an error"
                packs |= step
        except Exception as error:  # noqa: BLE001 (the tests look at it)
            assert job.state() == state, "a batch that was not handed out is committed"
            return {number: pack for number, pack in packs.items() if number >= begun}, error, state


def refuse(text: str) -> Callable[..., Any]:
    def transform(document: streampack.Document, rng: Any) -> streampack.Document:
        if document.text == text:
            raise ArithmeticError(f"refused {text}")
        return document

    return transform


class Refusing(ByteTokenizer):
    """Cannot tokenize one text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def encode(self, text: str) -> Any:
        if text == self.text:
            raise TokenizerError("refused")
        return super().encode(text)


def early_text(corpus: Corpus, shuffle: Any) -> tuple[int, str]:
    """A seed, and a text of about the tenth pack that lane 0 has with it.

    That lane is the first rank's on any ranks, which is asked first: where it fails, no other rank has gone on.
    """
    for seed in range(100):
        lane = lane_texts(corpus, 0, 0, seed=seed, shuffle=shuffle)
        rows = itertools.accumulate(len(tokens_of(text)) for text in lane)
        for text, before in zip(lane[1:], rows, strict=False):
            if text and 5 * 32 < before < 15 * 32:
                return seed, text
    raise AssertionError("no seed has a short text there")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return uneven(tmp_path_factory.mktemp("failing"))


@pytest.mark.parametrize(
    ("kind", "budget", "epochs"),
    [
        # Each value comes once; the other six in the nightly run.
        *(("transform", {}, None), ("tokenizer", PARKED, 1)),
        *((("transform", PARKED, 1), ("tokenizer", {}, 1), ("tokenizer", PARKED, None)) if THOROUGH else ()),
        *((("transform", {}, 1), ("transform", PARKED, None), ("tokenizer", {}, None)) if THOROUGH else ()),
    ],
)
def test_all_packs_before_an_error_are_given_on_every_topology(
    corpus: Corpus, kind: str, epochs: int | None, budget: dict[str, int]
) -> None:
    changes: dict[str, Any] = {"epochs": epochs, **budget}
    if budget:
        changes["shuffle"] = "shards"  # lanes with windows are not parked
    changes["seed"], text = early_text(corpus, changes.get("shuffle", True))
    if kind == "transform":
        changes |= {"transform": refuse(text), "transform_version": "1"}
    else:
        changes |= {"tokenizer": Refusing(text)}
    data = dataset(corpus, **changes)
    first, raised, state = run(data, 1, 0, 1)
    wanted = list(first.values())
    if epochs is None:
        shuffle = changes.get("shuffle", True)
        assert_equal(first, expected(corpus, 200, seq_len=32, seed=changes["seed"], shuffle=shuffle))
    assert 20 < len(first) < 200
    for ranks, workers, batch_size in TOPOLOGIES:
        packs, error, reached = run(data, ranks, workers, batch_size)
        assert type(error) is type(raised)
        assert "refused" in str(error)
        of_step = ranks * batch_size
        assert reached["global_pack"] == len(first) // of_step * of_step  # the whole batches before the failing pack
        assert_equal({number: packs[number] for number in packs if number < reached["global_pack"]}, wanted)
        if reached["global_pack"] == len(first):
            assert reached == state
        again, error, _ = run(data, 1, 2, 1, state=reached)
        assert type(error) is type(raised)
        assert_equal(again, wanted, begin=reached["global_pack"])
        assert reached["global_pack"] + len(again) == len(first)


def test_a_missing_shard_costs_no_pack_before_it(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path, [(".tar", texts(40, seed=number)) for number in range(4)], alike=True)
    data = dataset(corpus, num_lanes=2, shuffle=False, retry=streampack.RetryPolicy.immediate())
    wanted = expected(corpus, 400, num_lanes=2, seq_len=32, shuffle=False)
    data.list_shards()
    corpus.shards[1].unlink()
    found = []
    for ranks, workers, batch_size in ((1, 0, 1), (1, 2, 1), (2, 1, 1)):
        packs, error, state = run(data, ranks, workers, batch_size)
        assert isinstance(error, ShardNotFoundError)
        whole = state["global_pack"]
        assert_equal({number: pack for number, pack in packs.items() if number < whole}, wanted)
        found.append(whole - whole % 2)
    assert 10 < found[0] < 400
    assert len(set(found)) == 1


def test_one_bad_record_too_many_costs_no_pack_before_it(tmp_path: Path) -> None:
    group = [f"{text} \ufffd" if number % 7 == 3 else text for number, text in enumerate(texts(120, seed=3))]
    corpus = write_corpus(tmp_path, [(".tar", group)], alike=True)
    for path in corpus.shards:
        path.write_bytes(path.read_bytes().replace("\ufffd".encode(), b"\xff\xff\xff"))
    for options, kind in (({"on_error": "raise"}, RecordError), ({"on_error": "skip", "max_bad": 3}, ShardError)):
        data = dataset(corpus, num_lanes=3, **options)
        places = []
        for ranks, workers in ((1, 0), (1, 3), (1, 2)):
            packs, error, state = run(data, ranks, workers, 1)
            assert isinstance(error, kind)
            places.append((len(packs), str(error).splitlines()[-1], state))
        assert places[0][2] == places[1][2] == places[2][2]
        assert places[0][0] == places[1][0] == places[2][0]


def test_an_error_behind_the_end_of_a_pass_that_stops_is_none(tmp_path: Path) -> None:
    """The shortest lane ends the pass, and what the others would meet later is not met."""
    long = texts(60, seed=1)
    corpus = write_lanes(tmp_path, [["short"] * 30, long])
    data = dataset(
        corpus,
        num_lanes=2,
        shuffle=False,
        epochs=1,
        epoch_end="stop",
        transform=refuse(long[50]),
        transform_version="1",
    )
    for workers in (0, 1, 2):
        with Job(data, 1, workers, 1) as job:
            packs, _ = job.run_out()
            assert len(packs) == 2 * 7  # no more of the long lane
