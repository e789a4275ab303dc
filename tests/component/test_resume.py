"""A run that is stopped anywhere and goes on on any topology gives the packs of the run that was never stopped."""

import dataclasses
import gzip
import itertools
import json
import random
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.jobs import (
    LANES,
    Array,
    Corpus,
    Job,
    assert_equal,
    dataset,
    documents_of,
    expected,
    lane_packs,
    texts,
    tokens_of,
    uneven,
    write_corpus,
)
from support.thorough import THOROUGH, long, nightly, some

import streampack
from streampack.corpus.partition import fitting_ranks
from streampack.errors import StateError
from streampack.state.checkpoint import FIELDS

PACKS = 500


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return uneven(tmp_path_factory.mktemp("uneven"))


@pytest.fixture(scope="module")
def data(corpus: Corpus) -> streampack.PackedDataset:
    return dataset(corpus)


@pytest.fixture(scope="module")
def wanted(corpus: Corpus) -> list[Array]:
    return expected(corpus, PACKS, seq_len=32)


class Leg(NamedTuple):
    """A stretch of a run on one topology."""

    ranks: int
    workers: int
    batch_size: int
    batches: int


def play(data: streampack.PackedDataset, legs: list[Leg], wanted: list[Array]) -> tuple[int, dict[str, int], int]:
    """Run the legs one after the other, each from the state of the one before; digest, counts and packs at the end."""
    state: dict[str, Any] | None = None
    reached = 0
    for leg in legs:
        with Job(data, leg.ranks, leg.workers, leg.batch_size, state=state) as job:
            assert job.global_pack == reached
            assert_equal(job.step(leg.batches), wanted, begin=reached)
            reached += leg.ranks * leg.batch_size * leg.batches
            state = job.state()
            result = job.digest(), job.stats(), reached
    return result


def straight(data: streampack.PackedDataset, num_packs: int) -> tuple[int, dict[str, int], int]:
    with Job(data) as job:
        job.step(num_packs)
        return job.digest(), job.stats(), num_packs


legs = st.builds(
    Leg,
    ranks=st.sampled_from(fitting_ranks(LANES)),
    workers=st.just(0),
    batch_size=st.integers(1, 5),
    batches=st.integers(0, 4),
)


@settings(max_examples=200 if THOROUGH else 4)
@given(plan=st.lists(legs, min_size=4, max_size=4))
def test_three_resumes_in_a_row_on_any_topologies(
    data: streampack.PackedDataset, wanted: list[Array], plan: list[Leg]
) -> None:
    reached = 0
    for at, leg in enumerate(plan):
        plan[at] = leg._replace(batches=min(leg.batches, (PACKS - reached) // leg.ranks // leg.batch_size))
        reached += plan[at].ranks * plan[at].batch_size * plan[at].batches
    assert play(data, plan, wanted) == straight(data, reached)


def random_legs(seed: int, num_legs: int = 4) -> list[Leg]:
    """Few processes a leg, many topologies."""
    choose = random.Random(seed)
    topologies = [(1, 1), (1, 2), (1, 3), (1, 5), (2, 1), (2, 2), (3, 1), (4, 1), (2, 0), (6, 0)]
    plan = []
    for ranks, workers in choose.sample(topologies, num_legs):
        batch_size = choose.randint(1, 4)
        plan.append(Leg(ranks, workers, batch_size, choose.randint(1, PACKS // num_legs // ranks // batch_size)))
    return plan


@pytest.mark.parametrize("seed", some(range(4), 4, first=2))
def test_three_resumes_with_packs_in_flight_in_workers(
    data: streampack.PackedDataset, wanted: list[Array], seed: int
) -> None:
    digest, stats, reached = play(data, random_legs(seed), wanted)
    assert (digest, stats, reached) == straight(data, reached)


@pytest.fixture
def busy_machine() -> Iterator[None]:
    """Two processes that compete for the CPU."""
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    yield
    for burner in burners:
        burner.kill()
        burner.wait()


@long
@pytest.mark.usefixtures("busy_machine")
@pytest.mark.parametrize("seed", range(10, 13))
def test_three_resumes_with_workers_on_a_busy_machine(
    data: streampack.PackedDataset, wanted: list[Array], seed: int
) -> None:
    digest, stats, reached = play(data, random_legs(seed), wanted)
    assert (digest, stats, reached) == straight(data, reached)


def test_a_state_taken_while_workers_run_ahead_is_that_of_the_last_batch(
    data: streampack.PackedDataset, wanted: list[Array]
) -> None:
    """Taken at each batch of one run, without a pause, and resumed from all of them."""
    states = []
    with Job(data, 1, 3, 4) as job:
        for _ in range(12):
            job.step()
            states.append(job.state())
    for step, state in enumerate(states):
        with Job(data, (1, 2, 3)[step % 3], 0, 2, state=state) as job:
            assert_equal(job.step(3), wanted, begin=4 * (step + 1))


# --- every position, of every kind of run


def in_pieces(document: streampack.Document, rng: np.random.Generator) -> Any:
    """A third of the documents goes, a third comes in pieces; some pieces are empty."""
    text = document.text or ""
    choice = int(rng.integers(3))
    if choice == 0:
        return None
    if choice == 1:
        return document
    size = int(rng.integers(1, 20))
    return [dataclasses.replace(document, text=text[at : at + size]) for at in range(0, len(text) + size, size)]


def with_mask(document: streampack.Document, rng: np.random.Generator) -> Any:
    """Tokens of its own, about half of which are no targets."""
    tokens = np.frombuffer((document.text or "").encode(), np.uint8).astype(np.int32) + 3
    return streampack.Document(tokens=tokens, loss_mask=rng.random(len(tokens)) < 0.5)


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "keep": {"boundary": "keep"},
    "trim": {"boundary": "trim"},
    "mask_bos_target": {"boundary": "mask_bos_target"},
    "mask_eos_input": {"boundary": "mask_eos_input"},
    "replace": {"boundary": streampack.ReplaceBoundary(99)},
    "no lookahead": {"boundary": "keep", "lookahead": False},
    "whole documents": {"packing": "next_fit"},
    "whole documents, keep": {"packing": "next_fit", "boundary": "keep"},
    "whole documents, truncate": {"packing": "next_fit", "overflow": "truncate"},
    "whole documents, drop": {"packing": "next_fit", "overflow": "drop", "boundary": "trim"},
    "best fit": {"packing": "best_fit", "window": 3},
    "best fit, truncate": {"packing": "best_fit", "window": 2, "overflow": "truncate", "boundary": "trim"},
    "best fit, transform": {"transform": in_pieces, "packing": "best_fit", "window": 4, "overflow": "drop"},
    "transform": {"transform": in_pieces},
    "transform, whole documents": {"transform": in_pieces, "packing": "next_fit", "boundary": "keep"},
    "loss mask": {"transform": with_mask, "boundary": "keep"},
    "train": {"part": "train", "fraction": 0.4},
    "json": {"field": "json:text"},
    "json lines": {"field": "jsonl:text"},
    "json lines, transform": {"field": "jsonl:text", "transform": in_pieces},
    "npy": {"field": "npy"},
    "listed order": {"shuffle": False},
    "two rows": {"seq_len": 2},
    "no BOS, no EOS": {"add_bos": False, "add_eos": False},
}
SMALL = 4
"""Lanes of these runs."""


def small_corpus(folder: Path, field: str) -> Corpus:
    """Three shards, one of them compressed, with documents of nothing and of ten packs."""
    group = texts(36, seed=5, longest=60)
    group[3] = group[14] = ""
    group[7] += "y" * 180
    group[25] += "z" * 180
    shards = [(".tar", group[:14]), (".tar.zst", group[14:20]), (".tar", group[20:])]
    return write_corpus(folder, shards, field=field, per_sample=3 if field.startswith("jsonl") else 1)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Corpus]:
    folder = tmp_path_factory.mktemp("small")
    fields = ("txt", "json:text", "jsonl:text", "npy")
    return {field: small_corpus(folder / field.replace(":", "_"), field) for field in fields}


@pytest.mark.parametrize("kind", some(list(KINDS), 4))
def test_a_run_can_be_resumed_at_every_position(small: dict[str, Corpus], kind: str) -> None:
    changes = {"seq_len": 16, "num_lanes": SMALL, **KINDS[kind]}
    num_packs = 100 if changes["seq_len"] == 2 else 56
    data = dataset(small[changes.get("field", "txt")], **changes)
    packs: dict[int, Array] = {}
    states, digests = [], []
    with Job(data) as job:
        for _ in range(num_packs + 3 * SMALL):
            states.append(job.state())
            packs |= job.step()
            digests.append(job.digest())
    last = max(row[0][0] for name, row in states[num_packs].items() if name.startswith("lanes."))
    assert last >= 1 or changes["seq_len"] == 2, "the run is too short to come to a second epoch"
    wanted = [packs[number] for number in range(len(packs))]
    choose = random.Random(kind)
    # Each position by some kinds in the normal run, so that every one comes.
    at = list(KINDS).index(kind)
    for begin in some(range(num_packs), 4) if at == 0 else some(range(num_packs), 6, first=at // 4 % 6):
        ranks, batch_size = choose.choice([1, 2, 4]), choose.randint(1, 2)
        with Job(data, ranks, 0, batch_size, state=states[begin]) as job:
            more = job.step(8 // ranks // batch_size)
            assert_equal(more, wanted, begin=begin)
            assert job.digest() == digests[begin + 7]


def test_documents_of_many_packs_are_resumed_in_the_middle(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path, [(".tar", [f"<{n}>" + "word " * (30 * n) for n in range(1, 13)])])
    data = dataset(corpus, num_lanes=2, seq_len=32)
    wanted = expected(corpus, 200, seq_len=32, num_lanes=2)
    rows = []
    for begin in some(range(0, 140, 5), 2):
        with Job(data, 1, 0, 5) as job:
            job.step(begin // 5)
            state = job.state()
        rows.append(state["lanes.000000"][0][FIELDS.index("row")])
        with Job(data, 2, 0, 3, state=state) as job:
            assert_equal(job.step(5), wanted, begin=begin)
    assert len(set(rows)) > 7 and max(rows) > 500


# --- finite runs


@pytest.fixture(scope="module")
def level(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Four shards that differ in nothing but the letters: lanes of equal length on any ranks."""
    folder = tmp_path_factory.mktemp("level")
    lengths = (5, 90, 0, 31, 16, 7)
    return write_corpus(folder, [(".tar", [letter * length for length in lengths]) for letter in "abcd"], alike=True)


def test_a_finite_run_can_be_resumed_at_every_position_and_at_its_end(level: Corpus) -> None:
    data = dataset(level, num_lanes=4, seq_len=16, epochs=2, shuffle="shards")  # two passes of equal length
    wanted: dict[int, Array] = {}
    states, ends = [], []
    with Job(data, 1, 0, 3) as job:
        for _ in range(2):  # passes of two epochs
            while packs := job.step():
                wanted |= packs
                states.append(job.state())  # the last one: behind the last batch, and the pass has not ended
            job.run_out()
            ends.append((job.state(), job.digest(), job.stats()))
    assert [end[0]["global_pack"] for end in ends] == [len(wanted) // 2, len(wanted)]
    assert states[-1]["global_pack"] == len(wanted) and states[-1] != ends[-1][0]
    for state in [*some(states[:-1], 2), states[-1], ends[0][0]]:
        begin = state["global_pack"]
        is_second = state["first_epoch"] == 2
        ranks, batch_size = random.Random(begin).choice([(1, 1), (1, 5), (2, 2), (2, 3), (4, 1), (4, 2)])
        with Job(data, ranks, 0, batch_size, state=state) as job:
            packs, counts = job.run_out()
            left = len(wanted) // (1 if is_second else 2) - begin
            assert counts == [ceil(ceil(left / ranks) / batch_size)] * ranks
            assert_equal({n: pack for n, pack in packs.items() if n < begin + left}, list(wanted.values()), begin=begin)
            assert all((pack[3] == 0).all() for n, pack in packs.items() if n >= begin + left)  # what fills a batch
            assert (job.state(), job.digest(), job.stats()) == ends[is_second]


def test_workers_do_not_change_where_a_finite_run_ends(corpus: Corpus) -> None:
    """One rank, so that the ends of its lanes are the run's: stopped anywhere, with any workers."""
    data = dataset(corpus, epochs=1)
    with Job(data, 1, 0, 4) as job:
        wanted, counts = job.run_out()
        end = job.digest(), job.stats(), job.state()
    stops = (2, counts[0] // 2), (5, counts[0])
    for workers, stop in (*stops, *nightly([(0, counts[0] - 1), (3, counts[0] - 2), (0, counts[0])])):
        with Job(data, 1, workers, 4) as job:
            job.step(stop)
            state = job.state()
        with Job(data, 1, workers, 7, state=state) as job:
            packs, _ = job.run_out()
            assert_equal({n: pack for n, pack in packs.items() if n in wanted}, list(wanted.values()), begin=4 * stop)
            assert (job.digest(), job.stats(), job.state()) == end


def test_a_run_resumed_at_the_end_of_a_pass_reads_the_next_epoch(corpus: Corpus) -> None:
    data = dataset(corpus, epochs=1)
    with Job(data, 1, 0, 4) as job:
        job.run_out()
        state = job.state()
        second, _ = job.run_out()
    with Job(data, 1, 0, 4, state=state) as job:
        resumed, _ = job.run_out()
    assert sorted(resumed) == sorted(second)
    assert_equal(dict(enumerate(resumed.values())), list(second.values()))


def test_plain_shards_that_a_manifest_wants_read_whole_are_resumed_inside(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path, [(".tar", texts(count, seed=count)) for count in (14, 5, 30, 9)])
    whole = (0, 2)
    manifest = tmp_path / "manifest.jsonl"
    lines = [{"url": path.name, "whole": shard in whole} for shard, path in enumerate(corpus.shards)]
    manifest.write_text("\n".join(map(json.dumps, lines)))
    data = dataset([f"@{manifest}"], num_lanes=3)
    wanted = expected(corpus, 130, seq_len=32, num_lanes=3, whole=whole)
    for begin in some(range(0, 100, 3), 3):
        with Job(data) as job:
            job.step(begin)
            state = job.state()
        with Job(data, 3, state=state) as job:
            assert_equal(job.step(8), wanted, begin=begin)


# --- bad records


def spoilt(folder: Path, field: str = "txt", *, per_sample: int = 1) -> Corpus:
    """Bad records in every shard, also first and last ones; `documents` has the good ones only."""
    folder.mkdir(exist_ok=True)
    group = texts(60, seed=8, longest=70)
    shards = [(".tar", group[:25]), (".tar.gz", group[25:35]), (".tar", group[35:])]
    corpus = write_corpus(folder, shards, field=field, per_sample=per_sample)
    for path, samples in zip(corpus.shards, corpus.documents, strict=True):
        bad = {sample[0] for sample in samples[::6]} | {samples[-1][-1]}
        _spoil(path, field, bad)
        for sample in samples:
            sample[:] = [text for text in sample if text not in bad]
    return corpus


def _spoil(path: Path, field: str, bad: set[str]) -> None:
    """Make the texts unreadable where they stand, without changing a size."""
    data = path.read_bytes()
    data = gzip.decompress(data) if path.suffix == ".gz" else data
    for text in bad:
        mark = f"{text.partition('>')[0]}>".encode()
        assert data.count(mark) == 1
        data = data.replace(mark, b"\xff" + mark[1:])
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


@pytest.mark.parametrize(("field", "per_sample"), [("txt", 1), ("jsonl:text", 4)])
def test_bad_records_are_left_out_and_the_rest_keeps_its_order(tmp_path: Path, field: str, per_sample: int) -> None:
    corpus = spoilt(tmp_path / "spoilt", field, per_sample=per_sample)
    data = dataset(corpus, field=field, on_error="skip", num_lanes=4, seq_len=16, shuffle="shards")
    wanted = expected(corpus, 300, num_lanes=4, seq_len=16, shuffle="shards")
    plan = [Leg(1, 2, 3, 14), Leg(2, 0, 2, 11), Leg(4, 0, 1, 13), Leg(1, 0, 5, 12)]
    digest, stats, reached = play(data, plan, wanted)
    assert stats["bad_records"] > 8
    assert (digest, stats, reached) == straight(data, reached)


def test_the_skipped_ranges_in_the_state_are_the_same_on_every_topology(tmp_path: Path) -> None:
    corpus = spoilt(tmp_path / "spoilt")
    data = dataset(corpus, on_error="skip", num_lanes=4, seq_len=16)
    found = []
    for plan in ([Leg(1, 0, 1, 160)], [Leg(4, 0, 2, 9), Leg(1, 3, 4, 12), Leg(2, 0, 5, 4)]):
        state = None
        for leg in plan:
            with Job(data, leg.ranks, leg.workers, leg.batch_size, state=state) as job:
                job.step(leg.batches)
                state = job.state()
        assert state is not None and state["global_pack"] == 160
        found.append({name: value for name, value in state.items() if name.startswith("skipped_ranges.")})
    assert found[0] == found[1]
    assert sorted(found[0]) == [f"skipped_ranges.{lane:06d}" for lane in range(4)]
    assert any(value != "[[]]" for value in found[0].values())


def last_is_bad(folder: Path) -> Corpus:
    """One shard on one lane; its last record cannot be read."""
    group = texts(8, seed=2, longest=40)
    corpus = write_corpus(folder, [(".tar", group)])
    _spoil(corpus.shards[0], "txt", {group[-1]})
    corpus.documents[0][-1] = []
    return corpus


def after_the_last_pack(data: streampack.PackedDataset) -> tuple[dict[str, Any], int]:
    """The state when all packs are out and the pass has not ended, and how many batches there were."""
    with Job(data) as job:
        _, counts = job.run_out()
    with Job(data) as job:
        job.step(counts[0])
        return job.state(), counts[0]


@pytest.mark.parametrize("field", ["txt", "jsonl:text"])
def test_a_part_of_a_record_that_is_passed_over_takes_no_other_part_along(tmp_path: Path, field: str) -> None:
    """The middle part of every third record is longer than a pack."""

    def in_parts(document: streampack.Document, rng: np.random.Generator) -> Any:
        number = int((document.text or "").partition(">")[0][1:])
        sizes = (5, 30 if number % 3 == 0 else 6, 1, 9)
        return [dataclasses.replace(document, text=f"{number:04d}"[:size].ljust(size, "x")) for size in sizes]

    corpus = write_corpus(tmp_path, [(".tar", texts(30)), (".tar.gz", texts(10, first=30))], field=field)
    data = dataset(
        corpus,
        field=field,
        transform=in_parts,
        transform_version="1",
        num_lanes=2,
        seq_len=16,
        packing="next_fit",
        overflow="error",
        on_error="skip",
        shuffle=False,
    )
    with Job(data) as job:
        wanted, states = [], []
        for _ in range(80):
            states.append((job.state(), job.stats(), job.digest()))
            wanted += job.step().values()
        assert job.stats()["bad_records"] > 10
    for begin, (state, _, _) in some(list(enumerate(states[:60])), 7):
        ranks, workers, batch_size = ((1, 0, 2), (2, 0, 3), (1, 2, 1) if begin % 10 == 0 else (1, 0, 1))[begin % 3]
        with Job(data, ranks, workers, batch_size, state=state) as job:
            assert_equal(job.step(3), wanted, begin=begin)
            reached = job.global_pack
            assert (job.state(), job.stats(), job.digest()) == states[reached]


def test_a_bad_record_after_the_last_pack_is_counted_once(tmp_path: Path) -> None:
    data = dataset(last_is_bad(tmp_path), num_lanes=1, seq_len=16, epochs=1, on_error="skip")
    with Job(data) as job:
        job.run_out()
        end = job.stats()
    state, _ = after_the_last_pack(data)
    with Job(data, state=state) as job:
        assert job.run_out()[1] == [0]
        assert job.stats() == end
    assert end["bad_records"] == 1


def test_a_known_skipped_range_raises_no_error_after_the_resume(tmp_path: Path) -> None:
    corpus = last_is_bad(tmp_path)
    state, _ = after_the_last_pack(dataset(corpus, num_lanes=1, seq_len=16, epochs=1, on_error="skip"))
    assert state["lanes.000000"][0][FIELDS.index("num_skipped")] == 1
    with Job(dataset(corpus, num_lanes=1, seq_len=16, epochs=1, on_error="raise"), state=state) as job:
        assert job.run_out()[1] == [0]


@pytest.mark.parametrize("field", ["txt", "jsonl:text"])
def test_a_skipped_range_stays_out_though_the_record_can_be_read_again(tmp_path: Path, field: str) -> None:
    group = [*texts(5, seed=3, longest=40), "<5>" + "x" * 60]
    corpus = write_corpus(tmp_path, [(".tar", group)], field=field, per_sample=6 if field != "txt" else 1)
    good = corpus.shards[0].read_bytes()
    _spoil(corpus.shards[0], field, {group[-1]})
    data = dataset(corpus, field=field, num_lanes=1, seq_len=16, epochs=1, on_error="skip")
    state, batches = after_the_last_pack(data)
    corpus.shards[0].write_bytes(good)
    with Job(data) as job:
        assert job.run_out()[1][0] > batches  # without the state the record gives packs
    with Job(data, state=state) as job:
        assert job.run_out()[1] == [0]


@pytest.mark.parametrize("spoilt", [False, True])
@pytest.mark.parametrize(("field", "record"), [("txt", 0), ("jsonl:text", 1), ("jsonl:text", -1)])
def test_a_skipped_range_ahead_of_a_lane_is_left_out(tmp_path: Path, field: str, record: int, spoilt: bool) -> None:
    """Written into the state by hand; the record may be good or bad, -1 is the member with all its records."""
    lanes = [[f"<{10 * lane + n}>" + "x" * 20 for n in range(9)] for lane in range(2)]
    per_sample = 1 if field == "txt" else 3
    each = [
        write_corpus(tmp_path / str(n), [(".tar", lane)], field=field, per_sample=per_sample)
        for n, lane in enumerate(lanes)
    ]
    corpus = Corpus([one.shards[0] for one in each], [one.documents[0] for one in each])
    sample = 4 if field == "txt" else 1
    with tarfile.open(corpus.shards[1]) as tar:
        offset = tar.getmembers()[sample].offset
    gone = corpus.documents[1][sample] if record < 0 else [corpus.documents[1][sample][record]]
    if spoilt:
        _spoil(corpus.shards[1], field, set(gone))
    corpus.documents[1][sample] = [text for text in corpus.documents[1][sample] if text not in gone]
    data = dataset(corpus, field=field, num_lanes=2, seq_len=16, shuffle=False, epochs=1)
    with Job(data) as job:
        state = job.state()
    state["skipped_ranges.000001"] = json.dumps([[[0, 0, 1, offset, offset + 1, record]]])
    for ranks in (1, 2):
        with Job(data, ranks, state=state) as job:
            packs, _ = job.run_out()
            assert job.stats()["bad_records"] == 1
        assert documents_of(packs, num_lanes=2) == corpus.texts


def test_more_bad_records_than_max_bad_are_an_error_that_names_the_next(tmp_path: Path) -> None:
    corpus = spoilt(tmp_path / "spoilt")
    data = dataset(corpus, on_error="skip", max_bad=3, num_lanes=1, seq_len=16)
    with Job(data) as job, pytest.raises(OSError, match="lane 0 has skipped max_bad=3 bad records") as error:
        job.step(200)
    assert "not UTF-8: byte 0xff" in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_max_bad_counts_through_a_resume(tmp_path: Path) -> None:
    corpus = spoilt(tmp_path / "spoilt")
    data = dataset(corpus, on_error="skip", max_bad=5, num_lanes=1, seq_len=16)
    with Job(data) as job:
        while job.stats()["bad_records"] < 3:
            job.step()
        state = job.state()
    with Job(data, state=state) as job, pytest.raises(OSError, match="max_bad=5"):
        job.step(200)


# --- re-cutting


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"seq_len": 45, "boundary": "keep"}),
        ({"boundary": "trim"}, {"seq_len": 23, "boundary": "trim"}),
        *nightly([({"boundary": "keep"}, {"seq_len": 16, "boundary": "mask"})]),
        *nightly([({}, {"seq_len": 20}), ({}, {"seq_len": 20, "boundary": "trim"})]),
        *nightly([({"boundary": "trim"}, {"seq_len": 32, "boundary": "mask"})]),
    ],
    ids=str,
)
def test_allowed_fields_recut_the_same_rows_from_the_cursor_on(
    corpus: Corpus, before: dict[str, Any], after: dict[str, Any]
) -> None:
    with Job(dataset(corpus, **before), 2, 0, 3) as job:
        job.step(17)
        state = job.state()
    packs_before = {lane: state[f"lanes.{lane:06d}"][0][FIELDS.index("packs")] for lane in range(LANES)}
    assert sum(packs_before.values()) == 102
    with Job(dataset(corpus, **after), 3, 0, 4, state=state, allow={"seq_len", "boundary"}) as job:
        assert job.global_pack == 102
        packs = job.step(16)
    found: dict[int, list[Array]] = {}
    for number in sorted(packs):
        found.setdefault(number % LANES, []).append(packs[number])
    for lane in range(LANES):
        # Law 6: rows do not depend on seq_len, so these are rows of a run that had the new arguments from the start.
        anew = lane_packs(corpus, lane, **{"seq_len": 32, **after})
        rows = np.concatenate([pack[:2] for pack in itertools.islice(anew, 80)], axis=1)
        cut = np.concatenate([pack[:2] for pack in found[lane]], axis=1)
        # Each document that was passed has one row more where it is not trimmed.
        documents = state[f"lanes.{lane:06d}"][0][FIELDS.index("documents")]
        trimmed = (after.get("boundary") == "trim") - (before.get("boundary") == "trim")
        begin = 32 * packs_before[lane] - trimmed * documents
        np.testing.assert_array_equal(cut, rows[:, begin : begin + cut.shape[1]])


def test_the_state_of_a_recut_run_is_one_of_the_new_arguments(corpus: Corpus) -> None:
    with Job(dataset(corpus)) as job:
        job.step(30)
        state = job.state()
    recut = dataset(corpus, seq_len=20)
    with Job(recut, 2, 0, 1, state=state, allow={"seq_len"}) as job:
        job.step(20)
        state = job.state()
        wanted = job.step(20)
    with Job(recut, 1, 0, 4, state=state) as job:
        assert_equal(job.step(10), [np.zeros(0)] * 70 + [wanted[n] for n in sorted(wanted)], begin=70)


@pytest.mark.parametrize("boundary", ["mask", "trim"])
def test_a_run_goes_on_with_best_fit_from_the_middle_of_a_document(tmp_path: Path, boundary: str) -> None:
    corpus = write_corpus(tmp_path, [(".tar", ["abc" * 30, *texts(40, seed=2, longest=50)])])
    options = {"num_lanes": 1, "epochs": 1, "shuffle": False, "boundary": boundary}
    with Job(dataset(corpus, **options)) as job:
        first = job.step(1)
        state = job.state()
    after = dataset(corpus, packing="best_fit", window=3, **options)
    rest = {}
    for _ in range(4):  # the state is saved in the middle of windows, and loaded again
        with Job(after, state=state, allow={"packing", "packing_window"}) as job:
            rest |= job.step(2)
            state = job.state()
    with Job(after, state=state) as job:
        last, _ = job.run_out()
        assert job.stats()["documents"] == len(corpus.texts)
        assert job.stats()["targets"] == sum(len(tokens_of(text)) - 1 for text in corpus.texts)
    rows = sorted(
        (int(row), int(label))
        for pack in [*first.values(), *rest.values(), *last.values()]
        for row, label, segment in zip(pack[0], pack[1], pack[3])
        if segment
    )
    tokens = [tokens_of(text) for text in corpus.texts]
    last_rows = [(each[-1], -100) for each in tokens if boundary == "mask"]
    assert rows == sorted([*(pair for each in tokens for pair in itertools.pairwise(each)), *last_rows])


IN_WINDOWS = {"num_lanes": 2, "packing": "best_fit", "window": 4, "epochs": 1}


@pytest.fixture(scope="module")
def inside_and_after(corpus: Corpus) -> tuple[Any, Any]:
    """A state inside a packing window, and one after the pass."""
    with Job(dataset(corpus, **IN_WINDOWS)) as job:
        job.step(3)
        inside = job.state()
        job.run_out()
        return inside, job.state()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seq_len": 20}, "seq_len"),
        ({"window": 5}, "packing_window"),
        ({"boundary": "trim"}, "boundary"),
        ({"overflow": "truncate"}, "overflow"),
        ({"packing": "wrap", "window": 64}, "packing, packing_window"),
    ],
)
def test_a_packing_window_that_is_half_out_is_not_cut_in_another_way(
    corpus: Corpus, inside_and_after: tuple[Any, Any], changes: dict[str, Any], named: str
) -> None:
    options, (inside, after) = IN_WINDOWS, inside_and_after
    allow = set(named.split(", "))
    other = dataset(corpus, **{**options, **changes})
    with pytest.raises(StateError, match=f"lane 0 is inside a packing window .* 2 packs .* are out, and {named} of"):
        Job(other, state=inside, allow=allow)
    Job(dataset(corpus, **options, pad_id=7), state=inside, allow={"pad_id"}).close()
    with Job(other, state=after, allow=allow) as job:  # no lane is inside a window
        assert job.run_out()[0]
