"""A budget for all lanes: what is held stays inside it, and parking a lane changes no pack and costs little."""

import gc
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.jobs import Corpus, Job, assert_equal, texts, uneven, write_corpus, write_lanes
from support.jobs import dataset as any_dataset
from support.runs import begun, with_pipelines

import streampack
from streampack.cli.bench.clocks import own_memory_mb
from streampack.errors import ConfigError
from streampack.lanes.budget import STREAM_BYTES, LaneNeeds
from streampack.lanes.digest import pack_digest
from streampack.lanes.pool import LanePool
from streampack.lanes.position import LaneFiller, LanePack
from streampack.records import Document
from streampack.storage.access import StorageReader
from streampack.testing import ByteTokenizer

KB = 2**10
LANES = 6
SHARE = STREAM_BYTES + 64 * KB
"""The least that a lane may have."""
SEQ_LEN = 2048
LONGEST = 30_000


def dataset(corpus: Corpus, **changes: Any) -> streampack.PackedDataset:
    """One without windows of a shuffle, whose lanes may be parked."""
    return any_dataset(corpus, **{"shuffle": "shards", **changes})


class CountingTokenizer(ByteTokenizer):
    """Counts, in this process, how often each text is encoded."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def encode(self, text: str) -> Any:
        self.texts.append(text)
        return super().encode(text)


class CountingStorage(StorageReader):
    """Counts readings that were begun."""

    def __init__(self) -> None:
        super().__init__()
        self.readings = 0

    def chunks(self, *arguments: Any, **options: Any) -> Iterator[bytes]:
        self.readings += 1
        return super().chunks(*arguments, **options)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Documents between nothing and half a lane's share; as tokens they are four times as large."""
    sizes = [LONGEST, 0, 900, 20_000] * 15
    group = [text + "long " * (size // 5) for text, size in zip(texts(60, seed=4), sizes, strict=True)]
    return write_corpus(tmp_path_factory.mktemp("long"), [(".tar", group[:35]), (".tar", group[35:])])


class Run:
    """A pool over all lanes, and what it costs."""

    def __init__(self, corpus: Corpus, budget_bytes: int, **changes: Any) -> None:
        self.tokenizer, self.storage = CountingTokenizer(), CountingStorage()
        arguments = {"seq_len": SEQ_LEN, "num_lanes": LANES, "document_bytes": 5 * SHARE, **changes}
        data = dataset(corpus, tokenizer=self.tokenizer, **arguments)
        self.tokenizer.texts.clear()
        self.num_lanes = data.num_lanes
        self.pool = LanePool(
            with_pipelines(data.run(), storage=self.storage), begun(range(data.num_lanes)), budget_bytes=budget_bytes
        )

    def take(self, rounds: int) -> Iterator[LanePack]:
        for _ in range(rounds):
            for lane in range(self.num_lanes):
                pack = self.pool.take(lane)
                assert isinstance(pack, LanePack)
                yield pack


def test_parked_lanes_give_the_same_packs(corpus: Corpus) -> None:
    tight, wide = Run(corpus, LANES * SHARE), Run(corpus, 10**9)
    most_parked = 0
    for ours, theirs in zip(tight.take(150), wide.take(150), strict=True):
        most_parked = max(most_parked, tight.pool.parked)
        np.testing.assert_array_equal(ours.rows.tokens, theirs.rows.tokens)
        np.testing.assert_array_equal(ours.rows.edge_labels, theirs.rows.edge_labels)
        assert ours[1:] == theirs[1:]  # cursor, counts, skipped_ranges
    assert most_parked >= 2
    assert wide.pool.parked == 0


def test_waking_costs_neither_a_reading_nor_a_tokenization_a_pack(corpus: Corpus) -> None:
    tight, wide = Run(corpus, LANES * SHARE), Run(corpus, 10**9)
    rounds = 300
    for run in (tight, wide):
        assert sum(1 for _ in run.take(rounds)) == rounds * LANES
    packs_of_a_run = SHARE // (4 * SEQ_LEN + 1024)
    runs = rounds * LANES // packs_of_a_run
    assert len(tight.tokenizer.texts) <= len(wide.tokenizer.texts) + runs + LANES
    assert tight.storage.readings <= wide.storage.readings + 3 * (runs + LANES)  # a cut is looked for at either end
    assert len(tight.tokenizer.texts) > len(wide.tokenizer.texts)  # it has been parked in the middle of documents


def measured(run: Run, rounds: int, *, collect: bool) -> int:
    """The most bytes that Python's allocator held after a pack, above those at the start."""
    gc.collect()
    gc.disable()
    gc.freeze()  # so that collecting looks at new objects only
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        most = 0
        for _ in run.take(rounds):
            run.tokenizer.texts.clear()
            if collect:
                gc.collect()
            most = max(most, tracemalloc.get_traced_memory()[0] - before)
    finally:
        tracemalloc.stop()
        gc.unfreeze()
        gc.enable()
    return most


def allowed(budget_bytes: int, longest: int) -> int:
    """The budget, and besides one document (its bytes, its text, its tokens), one range, and small objects."""
    return budget_bytes + (4 + 1 + 1) * longest + SHARE + 120 * KB


def test_what_a_pool_holds_stays_inside_its_budget(corpus: Corpus) -> None:
    assert measured(Run(corpus, LANES * SHARE), 10, collect=True) <= allowed(LANES * SHARE, LONGEST)
    assert measured(Run(corpus, 10**9), 10, collect=True) > allowed(LANES * SHARE, LONGEST)


def test_a_parked_lane_lets_go_of_its_memory_at_once(corpus: Corpus) -> None:
    """And not when the garbage collector comes by, which may be after many lanes and long documents."""
    assert measured(Run(corpus, LANES * SHARE), 60, collect=False) <= allowed(LANES * SHARE, LONGEST)


def test_lanes_that_come_later_do_not_add_to_a_budget_that_is_spent(tmp_path: Path) -> None:
    """A few lanes hold all of it; the runs of the lanes that are parked after them would be as much again."""
    lanes, longest = 14, 70_000
    corpus = write_lanes(tmp_path, [["long " * (longest // 5)] * 2 for _ in range(lanes)])
    run = Run(corpus, lanes * SHARE, num_lanes=lanes, shuffle=False)
    assert measured(run, 2, collect=True) <= allowed(lanes * SHARE, longest)


def test_a_long_document_under_best_fit_is_parked_as_under_other_packings(tmp_path: Path) -> None:
    lanes, longest = 8, 300_000
    corpus = write_lanes(tmp_path, [["long " * (longest // 5)] * 2 for _ in range(lanes)])
    options: dict[str, Any] = {"num_lanes": lanes, "shuffle": False, "packing": "best_fit", "window": 2, "seq_len": 512}
    run = Run(corpus, 2 * lanes * SHARE, document_bytes=longest, **options)
    assert measured(run, 3, collect=True) <= allowed(2 * lanes * SHARE, longest)
    tight, wide = (Run(corpus, share * lanes, document_bytes=longest, **options) for share in (2 * SHARE, 2**24))
    for ours, theirs in zip(tight.take(60), wide.take(60), strict=True):
        assert ours[1:] == theirs[1:]  # cursor, counts, skipped_ranges
    assert tight.pool.parked


class FewTokens(ByteTokenizer):
    """A token for each text, however long it is."""

    def encode(self, text: str) -> Any:
        return np.full(1, 3 + len(text) % 7, dtype=np.int32)


def test_texts_of_few_tokens_do_not_pile_up_while_a_pack_is_made(tmp_path: Path) -> None:
    """What is read ahead is bounded in characters too; by tokens alone it would be 5 MB here."""
    corpus = write_corpus(tmp_path, [(".tar", ["long " * 2000] * 1200)], alike=True)
    arguments: dict[str, Any] = {"add_bos": False, "add_eos": False, "boundary": "keep", "document_bytes": SHARE}
    data = dataset(corpus, tokenizer=FewTokens(), seq_len=512, num_lanes=1, **arguments)
    pool = LanePool(data.run(), begun([0]), budget_bytes=4 * SHARE)
    pool.take(0)  # the first pack teaches what a character gives
    gc.collect()
    tracemalloc.start()
    try:
        pool.take(0)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 2**20


def test_a_finite_run_ends_the_same_when_lanes_are_parked(corpus: Corpus) -> None:
    ends = []
    for budget in (LANES * SHARE, 10**9):
        run = Run(corpus, budget, epochs=1)
        counts = []
        for lane in range(LANES):
            own = []
            while not isinstance(pack := run.pool.take(lane), LaneFiller):
                own.append(pack_digest(pack.rows, len(own), seq_len=SEQ_LEN, pad_id=0))
            assert run.pool.take(lane) == LaneFiller()  # and so for ever
            counts.append((own, pack))
        ends.append(counts)
    assert ends[0] == ends[1]


def test_a_lane_in_a_compressed_shard_is_not_parked(tmp_path: Path) -> None:
    """It would have to decompress the shard from its start to go on."""
    group = ["word " * (LONGEST // 5) for _ in range(8)]
    corpus = write_corpus(tmp_path, [(".tar.gz", group[:4]), (".tar.zst", group[4:])])
    data = dataset(corpus, seq_len=SEQ_LEN, num_lanes=1, document_bytes=2 * SHARE, epochs=3)
    storage = CountingStorage()
    pool = LanePool(
        with_pipelines(data.run(), storage=storage), begun([0]), budget_bytes=2 * SHARE
    )
    while not isinstance(pool.take(0), LaneFiller):
        assert pool.parked == 0
    assert storage.readings == 2 * 3  # each shard once an epoch


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return uneven(tmp_path_factory.mktemp("uneven"))


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (1, 2), (3, 0)])
def test_the_budget_of_a_loader_changes_no_pack(corpus: Corpus, ranks: int, workers: int) -> None:
    arguments = {"seq_len": SEQ_LEN, "num_lanes": LANES, "document_bytes": 3 * SHARE}
    with Job(dataset(corpus, **arguments)) as job:
        wanted = list(job.step(60).values())
    tight = dataset(corpus, **arguments, buffer_bytes=LANES * SHARE)
    with Job(tight, ranks, workers, 5) as job:
        assert_equal(job.step(60 // ranks // 5), wanted)
        state = job.state()
    with Job(dataset(corpus, **arguments), state=state) as job:  # nor is it in the state
        assert job.step(1)


@pytest.mark.parametrize(("ranks", "workers", "lanes"), [(1, 0, 12), (1, 1, 12), (1, 5, 3), (2, 1, 6)])
def test_a_budget_that_is_too_small_is_an_error_of_the_constructor(
    small: Corpus, ranks: int, workers: int, lanes: int
) -> None:
    """5 workers of 12 lanes: two of them have three lanes, and all have the same part."""
    least = max(workers, 1) * lanes * SHARE
    with pytest.raises(ConfigError) as caught:
        Job(dataset(small, buffer_bytes=least - 1), ranks, workers)
    assert f"{(least - 1) // max(workers, 1):,} bytes for {lanes} lanes, less than 112 KiB each" in str(caught.value)
    each = f" ({lanes * SHARE:,} for each of {workers} workers)" if workers > 1 else ""
    assert f"Set limits.buffer_bytes to at least {least:,}{each}, or use more ranks" in str(caught.value)
    with Job(dataset(small, buffer_bytes=least), ranks, workers) as job:
        assert workers or job.step(1)


def test_the_budget_must_have_the_packing_windows_of_best_fit(corpus: Corpus) -> None:
    window_bytes = streampack.Packing("best_fit", window=4).window_bytes(SEQ_LEN)
    least = LANES * (SHARE + window_bytes)
    options = {"seq_len": SEQ_LEN, "num_lanes": LANES, "packing": "best_fit", "window": 4}
    with pytest.raises(ConfigError) as caught:
        Job(dataset(corpus, **options, buffer_bytes=least - 1))
    assert f"less than 112 KiB each and {window_bytes:,} bytes for the packing window of each" in str(caught.value)
    remedies = "or use more ranks, or begin a new run with fewer lanes (num_lanes), a smaller Packing(window=...)"
    assert f"at least {least:,}, {remedies}." in str(caught.value)

    run = Run(corpus, least, packing="best_fit", window=4, epochs=1, shuffle=False)
    going = set(range(LANES))
    while going:
        going = {lane for lane in going if not isinstance(run.pool.take(lane), LaneFiller)}
        assert run.pool.parked == 0
    assert len(run.tokenizer.texts) == len(corpus.texts)  # each once: no window is tokenized again


@pytest.mark.parametrize("workers", [8, 9, 12, 100])
def test_the_defaults_work_with_any_number_of_workers(small: Corpus, workers: int) -> None:
    """512 MiB divided by 9 is less than the 64 MiB that a document may have, which hardly any has."""
    data = streampack.PackedDataset(small.urls, ByteTokenizer(), num_lanes=48)
    streampack.PackedDataLoader(data, num_workers=workers)


def test_a_document_that_is_larger_than_the_budget_is_held_besides_it(tmp_path: Path) -> None:
    """And no second one: the others of its worker wait in their shards."""
    longest = 3 * LANES * SHARE
    corpus = write_lanes(tmp_path, [["long " * (longest // 5), "short"] for _ in range(LANES)])
    tight, wide = (Run(corpus, budget, document_bytes=2 * longest) for budget in (LANES * SHARE, 10**9))
    for ours, theirs in zip(tight.take(2), wide.take(2), strict=True):
        assert (ours[1:], ours.rows.tokens.tolist()) == (theirs[1:], theirs.rows.tokens.tolist())
    run = Run(corpus, LANES * SHARE, document_bytes=2 * longest)
    assert measured(run, 1, collect=True) <= allowed(LANES * SHARE, longest)


def collecting(document: Document, _: np.random.Generator) -> Document:
    """A transform that lets the collector look at everything, as it does by itself every some minutes."""
    before = own_memory_mb(os.getpid())
    gc.collect()
    grown = own_memory_mb(os.getpid()) - before
    assert grown < 10, f"{grown:.1f} MB that were shared with the parent are the worker's own now"
    return document


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="reads the memory of a process")
def test_what_a_worker_shares_with_its_parent_stays_shared_when_the_collector_runs(small: Corpus) -> None:
    with Job(dataset(small, transform=collecting), 1, 2, multiprocessing_context=None) as job:
        assert job.step(1)


def test_many_sources_of_many_lanes_stay_inside_the_least_budget(tmp_path: Path) -> None:
    """What the readers themselves take is counted, too."""
    lanes, names = 8, [f"{number}" for number in range(6)]
    corpora = {name: write_corpus(tmp_path / name, [(".tar", texts(120, longest=1500))]) for name in names}
    data: dict[str, Any] = {name: streampack.Source(corpora[name].urls) for name in names}
    run = streampack.PackedDataset(data, ByteTokenizer(), SEQ_LEN, num_lanes=lanes, shuffle="shards").run()
    budget_bytes = lanes * LaneNeeds.of(run).bytes
    gc.collect()
    tracemalloc.start()
    try:
        pool = LanePool(run, begun(range(lanes), len(names)), budget_bytes=budget_bytes)
        for _ in range(3 * len(names)):
            for lane in range(lanes):
                pool.take(lane)
        gc.collect()
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert pool.parked == 0
    assert held <= budget_bytes
