"""What cannot be read after a state was saved inside a window: an error in words, or the same packs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.damage import break_header, members
from support.jobs import Array, Corpus, Job, dataset, documents_of, write_corpus

import streampack
from streampack.errors import ShardError

COUNT = 60
SHUFFLE = streampack.Shuffle(block_bytes=4096, window=2)  # several windows to a shard of 60 documents


def make(folder: Path) -> Corpus:
    return write_corpus(folder, [(".tar", [f"<{index}>" + "x" * (5 + 37 * index % 53) for index in range(COUNT)])])


def data_of(corpus: Corpus, **options: Any) -> streampack.PackedDataset:
    return dataset(corpus, **{"num_lanes": 1, "epochs": 1, "seq_len": 64, "on_error": "skip", **options})


def spoil(corpus: Corpus, document: int) -> None:
    path, mark = corpus.shards[0], f"<{document}>".encode()
    path.write_bytes(path.read_bytes().replace(mark, b"\xff" + mark[1:]))


def saved_inside(data: streampack.PackedDataset, steps: int = 3) -> tuple[dict[int, Array], dict[str, Any]]:
    with Job(data) as job:
        return job.step(steps), job.state()


@pytest.mark.parametrize(
    ("shuffle", "document", "window"),
    [(False, 1, 8), (SHUFFLE, 1, 8), (False, 9, 8), (SHUFFLE, 50, 30)],
    ids=["a document that is out", "of a shuffle window", "one to come", "of a later shuffle window"],
)
def test_a_record_of_a_packing_window_that_is_half_out(
    tmp_path: Path, shuffle: Any, document: int, window: int
) -> None:
    corpus = make(tmp_path)
    data = data_of(corpus, shuffle=shuffle, packing="best_fit", window=window)
    _, state = saved_inside(data)
    spoil(corpus, document)
    with Job(data, state=state) as job, pytest.raises(
        ShardError, match="lane 0 continues after 3 packs of a packing window of which .*Restore the shard.* not UTF-8"
    ):
        job.run_out()


def test_a_record_after_the_packing_window_that_is_half_out_is_skipped(tmp_path: Path) -> None:
    corpus = make(tmp_path)
    data = data_of(corpus, shuffle=False, packing="best_fit", window=8)
    first, state = saved_inside(data)
    spoil(corpus, 50)
    with Job(data, state=state) as job:
        rest, _ = job.run_out()
        assert job.stats()["bad_records"] == 1
    assert sorted(documents_of({**first, **rest}, num_lanes=1)) == sorted(set(corpus.texts) - {corpus.texts[50]})


def test_a_record_that_was_skipped_before_stays_out_of_its_packing_window(tmp_path: Path) -> None:
    corpus = make(tmp_path)
    spoil(corpus, 1)
    data = data_of(corpus, shuffle=False, packing="best_fit", window=8)
    with Job(data) as job:
        wanted, _ = job.run_out()
    first, state = saved_inside(data)
    with Job(data, state=state) as job:
        rest, _ = job.run_out()
        assert job.stats()["bad_records"] == 1
    for number, pack in {**first, **rest}.items():
        np.testing.assert_array_equal(pack, wanted[number])


@pytest.mark.parametrize("shuffle", [False, SHUFFLE], ids=["in order", "windows"])
def test_a_shard_that_breaks_inside_a_packing_window_that_is_half_out(tmp_path: Path, shuffle: Any) -> None:
    corpus = make(tmp_path)
    data = data_of(corpus, shuffle=shuffle, packing="best_fit", window=8)
    _, state = saved_inside(data)
    break_header(corpus.shards[0], 4)
    with Job(data, state=state) as job, pytest.raises(ShardError, match="lane 0 continues after .* window of which"):
        job.run_out()


def test_a_shard_that_breaks_where_a_shuffle_window_begins_that_is_half_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streampack.corpus.epochs.MOST_TEXT", 0.5)  # so windows begin inside blocks
    corpus = make(tmp_path)
    data = data_of(corpus, shuffle=SHUFFLE)
    samples = {info.offset: index for index, info in enumerate(members(corpus.shards[0]))}
    with Job(data) as job:
        sample = place = -1
        while sample < 0 or place < 1:
            job.step()
            state = job.state()
            sample, place = (state["lanes.000000"][0][column] for column in (2, 4))
    break_header(corpus.shards[0], samples[sample])
    with Job(data, state=state) as job, pytest.raises(
        ShardError, match=f"lane 0 continues after {place} records of a shuffle window .* an earlier or a later"
    ):
        job.run_out()


@pytest.mark.parametrize("packing", ["wrap", "next_fit"])
def test_a_record_of_a_shuffle_window_that_is_half_out_takes_its_place_along(tmp_path: Path, packing: str) -> None:
    """Bad records have a place like others, so all that follows is as before."""
    corpus = make(tmp_path)
    data = data_of(corpus, shuffle=SHUFFLE, packing=packing)
    first, state = saved_inside(data)
    with Job(data, state=state) as job:
        rest, _ = job.run_out()
    order = documents_of({**first, **rest}, num_lanes=1)
    spoil(corpus, corpus.texts.index(order[12]))
    spoil(corpus, corpus.texts.index(order[0]))  # which is out: nobody looks at it
    with Job(data, state=state) as job:
        rest, _ = job.run_out()
        assert job.stats()["bad_records"] == 1
    assert documents_of({**first, **rest}, num_lanes=1) == [*order[:12], *order[13:]]


def make_lines(folder: Path) -> tuple[Corpus, streampack.PackedDataset, dict[int, Array], dict[str, Any]]:
    """Three records a member; what was given of the first window, and the state inside it."""
    texts = [f"<{index}>" + "x" * (5 + 37 * index % 53) for index in range(COUNT)]
    corpus = write_corpus(folder, [(".tar", texts)], field="jsonl:text", per_sample=3)
    data = data_of(corpus, shuffle=SHUFFLE, field="jsonl:text")
    first, state = saved_inside(data, 2)
    assert state["lanes.000000"][0][4] > 0
    return corpus, data, first, state


def spoil_member(corpus: Corpus, text: str) -> None:
    """Make the member that has a text one of UTF-16 by its mark, which is bad as a whole."""
    path, content = corpus.shards[0], corpus.shards[0].read_bytes()
    [sample] = [sample for sample in corpus.documents[0] if text in sample]
    at = content.rindex(b'{"id"', 0, content.index(sample[0].encode()))
    path.write_bytes(content[:at] + b"\xff\xfe" + content[at + 2 :])


def test_a_member_of_lines_that_becomes_bad_in_a_shuffle_window_that_is_half_out(tmp_path: Path) -> None:
    corpus, data, first, state = make_lines(tmp_path)
    spoil_member(corpus, documents_of(first, num_lanes=1)[0])
    with Job(data, state=state) as job, pytest.raises(
        ShardError, match="lane 0 continues after .* records of a shuffle window .* UTF-16"
    ):
        job.run_out()


def test_a_member_of_lines_that_was_bad_stays_out_of_its_shuffle_window(tmp_path: Path) -> None:
    corpus, data, first, _ = make_lines(tmp_path)
    good = corpus.shards[0].read_bytes()
    spoil_member(corpus, documents_of(first, num_lanes=1)[0])
    with Job(data) as job:
        wanted, _ = job.run_out()
        assert job.stats()["bad_records"] == 1
    first, state = saved_inside(data, 1)
    corpus.shards[0].write_bytes(good)
    with Job(data, state=state) as job:
        rest, _ = job.run_out()
        assert job.stats()["bad_records"] == 1
    assert {**first, **rest}.keys() == wanted.keys()
    for number, pack in {**first, **rest}.items():
        np.testing.assert_array_equal(pack, wanted[number])
