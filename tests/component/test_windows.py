"""Windows of the shuffle on the real loader: how well they mix, what a resume reads again, what they need."""

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.jobs import Job, dataset, documents_of, texts, write_corpus
from support.runs import begun
from support.thorough import nightly

import streampack
from streampack.errors import ConfigError
from streampack.lanes.pool import LanePool
from streampack.testing import ByteTokenizer

LABELS, PER_SHARD, NUM_LANES, A_PACK, LETTERS, BLOCK, ROUNDS = 16, 1_400, 8, 8, 60, 2**16, 320


def labels_of(kind: str, shard: int) -> list[int]:
    """Of each document of a shard."""
    if kind == "a label a shard":
        return [shard] * PER_SHARD
    choose = np.random.default_rng(shard)
    return [label for _ in range(PER_SHARD // 100) for label in [int(choose.integers(LABELS))] * 100]


def labelled(folder: Path, kind: str) -> list[str]:
    """16 shards of documents of one length, each of one letter."""
    heads = []
    for index in range(PER_SHARD):
        info = tarfile.TarInfo(f"{index:05d}.txt")
        info.size = LETTERS
        heads.append(info.tobuf(tarfile.USTAR_FORMAT))
    bodies = [(bytes([65 + label]) * LETTERS).ljust(512, b"\0") for label in range(LABELS)]
    for shard in range(LABELS):
        members = zip(heads, labels_of(kind, shard), strict=True)
        data = b"".join(head + bodies[label] for head, label in members)
        (folder / f"{shard:02d}.tar").write_bytes(data + bytes(1024))
    return [str(path) for path in sorted(folder.glob("*.tar"))]


@pytest.mark.parametrize("kind", ["runs of 100 alike", *nightly(["a label a shard"])])
def test_batches_are_mixed_nearly_as_those_of_a_full_shuffle(tmp_path: Path, kind: str) -> None:
    data = streampack.PackedDataset(
        labelled(tmp_path, kind),
        ByteTokenizer(),
        A_PACK * (LETTERS + 2),
        num_lanes=NUM_LANES,
        epochs=1,
        shuffle=streampack.Shuffle(block_bytes=BLOCK),
    )
    corpus = data.corpus()
    assert len(corpus.pieces(0, 0)) >= 40
    pool = LanePool(
        data.run(), begun(range(NUM_LANES)), budget_bytes=2**29, with_provenance=True
    )
    shares, same = np.zeros((NUM_LANES, ROUNDS, LABELS)), []
    for number in range(ROUNDS):
        for lane in range(NUM_LANES):
            pack: Any = pool.take(lane)
            labels = pack.rows.tokens.reshape(A_PACK, -1)[:, 1] - ByteTokenizer().encode("A")[0]
            shares[lane, number] = np.bincount(labels, minlength=LABELS) / A_PACK
            places = np.array([hash((each.url, each.sample // BLOCK)) for each in pack.provenance])
            same.append(((places[:, None] == places).sum() - A_PACK) / A_PACK / (A_PACK - 1))
    share = shares.mean(axis=(0, 1))
    independent = share * (1 - share) / (A_PACK * NUM_LANES)
    ratio = (shares.mean(axis=0).var(axis=0) / independent).mean()
    centred = shares - share
    correlation = (centred[:, 1:] * centred[:, :-1]).sum() / (centred**2).sum()
    assert ratio <= 2.2, ratio
    assert correlation <= 0.6, correlation
    assert np.mean(same) <= 0.2, np.mean(same)


def test_a_resume_reads_at_most_one_window_a_lane_more(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path, [(".tar", texts(1500, seed=1, longest=600))])
    read: dict[Any, int] = {}
    window = 4 * 8192
    for shuffle in ("shards", streampack.Shuffle(block_bytes=8192, window=4)):
        data = dataset(corpus, num_lanes=2, seq_len=512, shuffle=shuffle)
        with Job(data) as job:
            job.step(41)
            state = job.state()
        before = data.pipeline.storage.use
        with Job(data, state=state) as job:
            job.step(2)
        read[shuffle] = data.pipeline.storage.use.since(before).bytes_read
    shards, windows = read.values()
    assert windows - shards <= 2 * window
    assert windows <= 2 * 2 * window  # a window a lane, and what comes after its blocks


def test_windows_that_do_not_fit_are_an_error_of_the_constructor(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path, [(".tar", texts(900, seed=1, longest=600))])
    data = dataset(corpus, num_lanes=2, shuffle=streampack.Shuffle(block_bytes=4096, window=100))
    with pytest.raises(ConfigError, match=r"bytes for the shuffle window of each. Set .* at least \d.*fewer lanes"):
        Job(dataset(corpus, num_lanes=2, shuffle=data.corpus().shuffle, buffer_bytes=2**19))
    with Job(dataset(corpus, num_lanes=2, shuffle=data.corpus().shuffle, buffer_bytes=2**21)) as job:
        assert job.step(1)


def test_a_member_of_many_records_is_permuted_by_record_and_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One member of many lines, and windows that end inside it: every record once, every start alike."""
    monkeypatch.setattr("streampack.corpus.epochs.MOST_TEXT", 0.1)
    group = [text or "x" for text in texts(120, seed=3, longest=200)]
    corpus = write_corpus(tmp_path, [(".tar", group), (".tar.gz", group)], field="jsonl:text", per_sample=120)
    data = dataset(
        corpus, field="jsonl:text", num_lanes=1, seq_len=64, epochs=1, shuffle=streampack.Shuffle(block_bytes=4096)
    )
    with Job(data) as job:
        wanted, states = [], []
        while packs := job.step():
            wanted += packs.values()
            states.append(json.loads(json.dumps(job.state())))
    assert len(wanted) > 100
    for begin in range(0, len(states), 9):
        with Job(data, state=states[begin]) as job:
            for number, pack in job.step(3).items():
                np.testing.assert_array_equal(pack, wanted[number])


def test_what_is_held_out_and_the_rest_make_up_the_corpus_with_windows_too(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path, [(".tar", texts(150, seed=1)), (".tar.gz", texts(60, seed=2, first=150))])
    order = streampack.Shuffle(block_bytes=4096, window=4)

    def documents(part: str, ranks: int, workers: int) -> list[str]:
        data = dataset(corpus, num_lanes=4, epochs=1, part=part, fraction=0.2, shuffle=order)
        with Job(data, ranks, workers, 2) as job:
            packs, _ = job.run_out()
            return sorted(documents_of(packs, job.num_lanes))

    train, val = documents("train", 1, 0), documents("val", 1, 0)
    assert sorted(train + val) == sorted(corpus.texts)
    assert 20 < len(val) < 70
    assert documents("train", 2, 2) == train
    assert documents("val", 1, 2) == val
