"""Finite runs: every document once an epoch, ends in step, fillers that count for nothing, and the next pass."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.jobs import (
    LANES,
    Array,
    Corpus,
    Job,
    dataset,
    documents_of,
    lane_packs,
    lane_texts,
    texts,
    tokens_of,
    uneven,
    write_corpus,
    write_lanes,
    write_tar,
)
from support.thorough import THOROUGH, nightly

import streampack
from streampack.errors import ConfigError, StateError, TopologyError
from streampack.records import Cursor
from streampack.state.checkpoint import FIELDS, PACKS

SEQ_LEN = 16


def one_pack(letter: str) -> str:
    """A text that fills a pack, BOS and EOS included."""
    return letter * (SEQ_LEN - 2)


def lanes_of_packs(folder: Path, *lengths: int) -> Corpus:
    """Lane l has `lengths[l]` packs, each of one document."""
    letters = iter(range(97, 97 + 26))
    return write_lanes(folder, [[one_pack(chr(next(letters))) for _ in range(length)] for length in lengths])


def finite(corpus: Corpus, **changes: Any) -> streampack.PackedDataset:
    arguments = {"seq_len": SEQ_LEN, "num_lanes": len(corpus.shards), "shuffle": False, "epochs": 1}
    return dataset(corpus, **{**arguments, **changes})


def pack_of(letter: str) -> Array:
    tokens = np.array(tokens_of(one_pack(letter)))
    return np.stack([tokens, [*tokens[1:], -100], np.arange(SEQ_LEN), np.ones(SEQ_LEN, dtype=np.int64)])


def is_filler(pack: Array) -> bool:
    tokens, labels, positions, segments = pack
    return bool(
        (tokens == 0).all()
        and (labels == -100).all()
        and (segments == 0).all()
        and (positions == np.arange(SEQ_LEN)).all()
    )


def letters_of(packs: dict[int, Array]) -> str:
    """One letter for each pack in global order, `.` for a filler."""
    found = ""
    for number in sorted(packs):
        letter = "." if is_filler(packs[number]) else chr(packs[number][0][1] - 3)
        assert letter == "." or np.array_equal(packs[number], pack_of(letter))
        found += letter
    return found


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return uneven(tmp_path_factory.mktemp("uneven"))


# --- every document once


@pytest.mark.parametrize(("ranks", "workers"), [(3, 0), *nightly([(1, 0), (1, 4), (2, 2), (12, 0)])])
def test_an_epoch_has_every_document_once(corpus: Corpus, ranks: int, workers: int) -> None:
    with Job(dataset(corpus, epochs=1), ranks, workers, 3) as job:
        for _ in range(2):
            packs, _ = job.run_out()
            assert sorted(documents_of(packs)) == sorted(corpus.texts)


def test_the_packs_are_those_of_each_lane_and_then_fillers(corpus: Corpus) -> None:
    data = dataset(corpus, epochs=2)
    lanes = [[*lane_packs(corpus, lane, seq_len=32, epochs=2)] for lane in range(LANES)]
    for workers, batch_size in ((0, 5), (3, 8)):
        with Job(data, 1, workers, batch_size) as job:
            packs, counts = job.run_out()
        longest = max(map(len, lanes))
        assert counts == [-(-longest * LANES // batch_size)]
        for number, pack in packs.items():
            own, place = lanes[number % LANES], number // LANES
            if place < len(own):
                np.testing.assert_array_equal(pack, own[place])
            else:
                assert (pack[0] == 0).all() and (pack[1] == -100).all() and (pack[3] == 0).all()
        assert job.stats()["fillers"] == longest * LANES - sum(map(len, lanes))


def test_a_pass_of_two_epochs_has_every_document_twice(corpus: Corpus) -> None:
    with Job(dataset(corpus, epochs=2), 1, 0, 3) as job:
        packs, _ = job.run_out()
        assert job.state()["first_epoch"] == 2
    assert sorted(documents_of(packs)) == sorted(corpus.texts * 2)


def test_the_next_pass_is_the_next_epoch_in_another_order(corpus: Corpus) -> None:
    with Job(dataset(corpus, epochs=1), 1, 0, 6) as job:
        passes = [list(job.run_out()[0].values()) for _ in range(3)]
    orders = [[tuple(pack[0]) for pack in each if pack[3].any()] for each in passes]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    for epoch in range(3):
        begin = [text for lane in range(LANES) for text in lane_texts(corpus, lane, epoch)]
        assert sorted(begin) == sorted(corpus.texts)
        first = tokens_of(lane_texts(corpus, 0, epoch)[0])[:32]
        assert passes[epoch][0][0][: len(first)].tolist() == first


def test_listed_order_is_the_same_at_every_pass(tmp_path: Path) -> None:
    with Job(finite(lanes_of_packs(tmp_path, 2, 3))) as job:
        assert [letters_of(job.run_out()[0]) for _ in range(3)] == ["acbd.e"] * 3


# --- where it ends


@pytest.mark.parametrize(
    ("batch_size", "drop_last", "given", "batches"),
    [
        (1, False, "adfb.gc.h..i..j", 15),
        (4, False, "adfb.gc.h..i..j.", 4),  # one filler more, to make up the number
        (15, False, "adfb.gc.h..i..j", 1),
        (20, False, "adfb.gc.h..i..j.....", 1),
        (4, True, "adfb.gc.h..i", 3),
        (15, True, "adfb.gc.h..i..j", 1),
        (16, True, "", 0),
    ],
)
@pytest.mark.parametrize("workers", [0, *nightly([2])])
def test_one_rank_ends_with_its_longest_lane(
    tmp_path: Path, batch_size: int, drop_last: bool, given: str, batches: int, workers: int
) -> None:
    corpus = lanes_of_packs(tmp_path, 3, 2, 5)
    letters = "adfbegc.h..i..j"
    given = letters[: len(given)] + "." * (len(given) - len(letters))
    with Job(finite(corpus), 1, workers, batch_size, drop_last=drop_last) as job:
        packs, counts = job.run_out()
        assert (letters_of(packs), counts) == (given, [batches])
        reached = min(len(given), 15)
        assert job.state()["global_pack"] == reached
        left = letters[reached:].replace(".", "")
        assert job.loaders[0].stats()["left_out_packs"] == len(left)


def test_fillers_that_keep_lanes_in_step_are_counted_and_in_no_digest(tmp_path: Path) -> None:
    corpus = lanes_of_packs(tmp_path, 1, 3)
    with Job(finite(corpus), 1, 0, 4) as job:
        packs, _ = job.run_out()
        assert letters_of(packs) == "ab.c.d.."
        stats = job.stats()
        assert stats["fillers"] == 2  # the two at the end stand for no global pack
        assert (stats["padding"], stats["tokens"], stats["documents"]) == (0, 4 * SEQ_LEN, 4)
        digest = job.digest()
    with Job(finite(corpus), 1, 0, 1) as job:
        job.step(4)
        before = job.digest()
        job.step(1)
        assert job.digest() == before
        job.run_out()
        assert job.digest() == digest


def test_the_number_of_targets_of_a_filler_is_zero(tmp_path: Path) -> None:
    with streampack.PackedDataLoader(finite(lanes_of_packs(tmp_path, 1, 2)), 4, num_workers=0) as loader:
        (batch,) = loader
    assert batch["num_targets"].tolist() == [SEQ_LEN - 1, SEQ_LEN - 1, 0, SEQ_LEN - 1]


def test_provenance_numbers_every_pack_but_what_fills_the_last_batch(tmp_path: Path) -> None:
    data = finite(lanes_of_packs(tmp_path, 1, 2))
    with streampack.PackedDataLoader(data, 5, num_workers=0, provenance=True) as loader:
        (batch,) = loader
    assert batch["pack_numbers"].tolist() == [0, 1, 2, 3, -1]
    assert [[source.key for source in sources] for sources in batch["provenance"]] == [
        ["s0-000"],
        ["s1-000"],
        [],
        ["s1-001"],
        [],
    ]


def test_ranks_by_hand_with_lanes_of_one_length_give_the_same_number_of_batches(tmp_path: Path) -> None:
    corpus = lanes_of_packs(tmp_path, 3, 3, 3, 3)
    for ranks, batch_size, batches in [(1, 1, 12), (2, 1, 6), (2, 4, 2), (4, 1, 3), (4, 2, 2)]:
        with Job(finite(corpus), ranks, 0, batch_size) as job:
            packs, counts = job.run_out()
            assert counts == [batches] * ranks
            assert letters_of({n: pack for n, pack in packs.items() if n < 12}) == "adgjbehkcfil"
            assert job.state()["global_pack"] == 12


def test_a_rank_by_hand_pads_to_its_own_longest_lane(tmp_path: Path) -> None:
    corpus = lanes_of_packs(tmp_path, 1, 4, 2, 0)
    with Job(finite(corpus), 2, 0, 1) as job:
        packs, counts = job.run_out()
    assert counts == [4, 8]  # lanes 0 and 2, lanes 1 and 3
    assert letters_of({n: pack for n, pack in packs.items() if n % 2 == 0}) == "af.g"
    assert letters_of({n: pack for n, pack in packs.items() if n % 2 == 1}) == "b.c.d.e."


def test_a_finite_run_of_several_ranks_needs_a_group_or_ranks_by_hand(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    loader = streampack.PackedDataLoader(dataset(corpus, epochs=1), num_workers=0)
    with pytest.raises(TopologyError, match=r"a finite run \(epochs=1\) on 2 ranks must agree on its end: call torch"):
        iter(loader)


# --- stop


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stopping_run_ends_with_the_round_in_which_the_first_lane_ends(tmp_path: Path, workers: int) -> None:
    corpus = lanes_of_packs(tmp_path, 3, 2, 5)
    with Job(finite(corpus, epoch_end="stop"), 1, workers, 4) as job:
        packs, counts = job.run_out()
        assert (letters_of(packs), counts) == ("adfbeg..", [2])
        assert job.state()["global_pack"] == 6
        assert job.stats()["fillers"] == 0


def test_what_a_stopping_run_leaves_is_counted(tmp_path: Path) -> None:
    corpus = lanes_of_packs(tmp_path, 3, 2, 5)
    with Job(finite(corpus, epoch_end="stop"), 1, 0, 3) as job:
        job.run_out()
        assert job.loaders[0].stats()["left_out_packs"] == 4


def test_a_stopping_run_counts_no_document_that_it_has_not_given(tmp_path: Path) -> None:
    """The longer lane has been read to its end ahead of time; what stands there has not been given."""
    lanes = [[one_pack("a")] * 2, [one_pack("b")] * 4 + ["tail"]]
    with Job(finite(write_lanes(tmp_path, lanes), epoch_end="stop", tail="drop"), 1, 0, 2) as job:
        packs, _ = job.run_out()
        assert letters_of(packs) == "abab"
        stats = job.stats()
    assert (stats["documents"], stats["tokens"], stats["tail_tokens"]) == (4, 4 * SEQ_LEN, 0)


def test_a_stopping_run_goes_on_with_the_next_epoch(tmp_path: Path) -> None:
    corpus = lanes_of_packs(tmp_path, 3, 2, 5)
    with Job(finite(corpus, epoch_end="stop"), 1, 0, 3) as job:
        assert [letters_of(job.run_out()[0]) for _ in range(2)] == ["adfbeg"] * 2
        assert job.state()["global_pack"] == 12


def test_a_stopping_run_with_an_empty_lane_is_an_error_and_not_an_empty_pass(tmp_path: Path) -> None:
    corpus = lanes_of_packs(tmp_path, 3, 0, 5)
    with Job(finite(corpus, epoch_end="stop"), 1, 0, 3) as job, pytest.raises(ConfigError, match="lane 1"):
        job.run_out()


# --- another number of epochs on a resume

ONE_EPOCH = 3 * 5  # packs of `three_lanes` in an epoch, fillers included


@pytest.fixture
def three_lanes(tmp_path: Path) -> Corpus:
    """An epoch is a, b, c, ... of each lane: 4, 5 and 3 packs."""
    return lanes_of_packs(tmp_path, 4, 5, 3)


def state_at(corpus: Corpus, epochs: int | None, packs: int, *, passes: int = 0) -> dict[str, Any]:
    """The state of a run with `epochs` after so many whole passes and then so many packs."""
    with Job(finite(corpus, epochs=epochs), 1, 0, 1) as job:
        for _ in range(passes):
            job.run_out()
        job.step(packs)
        return job.state()


def rest(corpus: Corpus, epochs: int | None, state: dict[str, Any]) -> tuple[str, int]:
    """The letters of the first iteration from a state on, and the epoch with which the next one begins."""
    with Job(finite(corpus, epochs=epochs), 1, 0, 1, state=state) as job:
        return letters_of(job.run_out()[0]), job.state()["first_epoch"]


@pytest.mark.parametrize("packs", [0, 4, 14, 16])
@pytest.mark.parametrize("before", [None, 2, 5])
def test_epochs_counts_from_the_epoch_in_which_the_pass_began_whatever_it_was_before(
    three_lanes: Corpus, before: int | None, packs: int
) -> None:
    """The whole of two epochs, and of it what is left from any state on."""
    with Job(finite(three_lanes, epochs=2), 1, 0, 1) as job:
        whole = letters_of(job.run_out()[0])
    assert whole.replace(".", "").count("a") == 2
    assert rest(three_lanes, 2, state_at(three_lanes, before, packs)) == (whole[packs:], 2)


def test_epochs_counts_from_the_present_pass_of_a_run_that_has_had_others(three_lanes: Corpus) -> None:
    state = state_at(three_lanes, 1, 4, passes=3)
    assert rest(three_lanes, 1, state)[1] == 4
    assert rest(three_lanes, 3, state)[1] == 6
    assert rest(three_lanes, 1, state_at(three_lanes, 2, 0, passes=2))[1] == 5  # the pass of epoch 4


@pytest.mark.parametrize(
    ("before", "packs", "epochs", "told"),
    [
        (None, 40, 1, "lane 2 is in epoch 4 already. epochs=5 ends it after that epoch, epochs=None never"),
        (None, 12, 1, "lane 2 is in epoch 1 already. epochs=2 ends it"),  # one lane alone has gone on
        (3, 35, 2, "is in epoch 2 already. epochs=3 ends it"),
    ],
)
def test_a_state_past_the_end_that_epochs_sets_is_refused_and_not_an_empty_pass(
    three_lanes: Corpus, before: int | None, packs: int, epochs: int, told: str
) -> None:
    state = state_at(three_lanes, before, packs)
    with Job(finite(three_lanes, epochs=epochs), 1, 0, 1) as job:
        with pytest.raises(StateError, match=f"epochs={epochs} ends the pass, which began with epoch 0") as caught:
            job.loaders[0].load_state_dict(state)
        assert told in str(caught.value)
    enough = int(re.findall(r"epochs=(\d+) ends it", str(caught.value))[0])
    letters, after = rest(three_lanes, enough, state)
    assert letters
    assert after == enough


def test_what_is_left_of_a_pass_that_was_handed_out_to_its_end_is_nothing_and_is_logged(
    three_lanes: Corpus, caplog: pytest.LogCaptureFixture
) -> None:
    state = state_at(three_lanes, 1, ONE_EPOCH)
    assert not caplog.records
    assert rest(three_lanes, 1, state) == ("", 1)
    assert "no batch is left of the pass that began with epoch 0; the next iteration begins with epoch 1" in caplog.text


# --- lanes without data


def test_an_empty_lane_gives_fillers_only(tmp_path: Path) -> None:
    corpus = lanes_of_packs(tmp_path, 2, 0, 1, 0)
    with Job(finite(corpus), 1, 0, 4) as job:
        packs, counts = job.run_out()
        assert (letters_of(packs), counts) == ("a.c.b...", [2])
        assert job.stats()["fillers"] == 5


def test_a_corpus_without_a_document_has_passes_without_a_batch(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "empty.tar", [])
    with Job(dataset([str(path)], epochs=1, num_lanes=2), 1, 0, 4) as job:
        assert job.run_out() == ({}, [0])
        assert job.state()["first_epoch"] == 1
        assert job.run_out() == ({}, [0])


@pytest.mark.parametrize("workers", [0, 1])
def test_an_endless_run_refuses_a_lane_that_no_shard_can_reach(tmp_path: Path, workers: int) -> None:
    corpus = write_corpus(tmp_path, [(".tar.gz", texts(5)), (".tar.gz", texts(5))])
    data = dataset(corpus, num_lanes=4, shuffle=False)
    message = r"lane [123] of 4 gives no pack \(no shard falls into its range\), and an endless run would wait for it"
    with Job(data, 1, workers) as job, pytest.raises(ConfigError, match=message):
        job.step(40)


def test_an_endless_run_refuses_a_lane_whose_shards_give_nothing(tmp_path: Path) -> None:
    with Job(finite(lanes_of_packs(tmp_path, 2, 2, 0), epochs=None)) as job:
        assert letters_of(job.step(2)) == "ac"
        with pytest.raises(ConfigError, match=r"lane 2 of 3 gives no pack \(an epoch brings it no .*Use fewer lanes"):
            job.step(1)


def test_an_endless_run_with_less_than_a_pack_in_an_epoch_gives_packs_of_several_epochs(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "small.tar", [("a.txt", b"x" * 28)])
    with Job(dataset([str(path)], num_lanes=1, seq_len=300)) as job:
        packs = job.step(2)
    segments = [int(pack[3].max()) for pack in packs.values()]
    assert segments == [10, 10], "of 30 tokens an epoch"


def test_a_lane_may_have_nothing_in_one_epoch_of_an_endless_run(tmp_path: Path) -> None:
    """Three shards that cannot be cut on four lanes: in each epoch one lane at least has none."""
    corpus = write_corpus(tmp_path, [(".tar.gz", texts(n, seed=n, first=100 * n)) for n in (12, 13, 50)])
    seed = 3  # with which each lane has some in the first two epochs
    order: dict[str, Any] = {"num_lanes": 4, "seed": seed, "shuffle": "shards"}
    counts = [[len(lane_texts(corpus, lane, epoch, **order)) for lane in range(4)] for epoch in (0, 1)]
    assert counts == [[50, 0, 12, 13], [25, 50, 0, 0]]
    lanes = [lane_packs(corpus, lane, seq_len=32, **order) for lane in range(4)]
    with Job(dataset(corpus, **order), 2, 0, 2) as job:
        packs = job.step(20)
    for number in sorted(packs):
        np.testing.assert_array_equal(packs[number], next(lanes[number % 4]))


# --- counts and state at the end


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"packing": "best_fit", "window": 3, "tail": "drop"},
        *nightly([{"packing": "next_fit"}, {"lookahead": False, "boundary": "keep"}]),
        *nightly([{"tail": "drop"}, {"boundary": "trim"}, {"packing": "best_fit", "window": 4}]),
    ],
    ids=str,
)
def test_the_counts_of_a_pass_add_up_to_the_corpus(corpus: Corpus, changes: dict[str, Any]) -> None:
    found = []
    for ranks, workers in ((1, 0), (4, 0), *([(1, 3)] if THOROUGH or not changes else [])):
        with Job(dataset(corpus, epochs=1, **changes), ranks, workers, 1) as job:
            packs, _ = job.run_out()
            stats = job.stats()
            given = [pack for pack in packs.values() if pack[3].any()]
            assert stats["documents"] == len(corpus.texts)
            assert stats["tokens"] == sum(int((pack[3] > 0).sum()) for pack in given)
            assert stats["targets"] == sum(int((pack[1] != -100).sum()) for pack in given)
            assert stats["padding"] == 32 * len(given) - stats["tokens"]
            assert stats["fillers"] == len(packs) - len(given)
            cut = int(changes.get("boundary") == "trim")
            total = sum(len(tokens_of(text)) - cut for text in corpus.texts)
            assert stats["tokens"] + stats["tail_tokens"] + stats["targetless_tokens"] == total
            found.append({name: value for name, value in stats.items() if name != "fillers"})  # by hand: of each rank
    assert all(each == found[0] for each in found)
    assert found[0]["tail_tokens"] > 0 or changes.get("tail") != "drop"


@pytest.mark.parametrize("tail", ["pad", "drop"])
def test_the_counts_of_a_pass_are_the_same_when_it_is_resumed_anywhere(tmp_path: Path, tail: str) -> None:
    lanes = [["a" * n for n in (3, 40, 0)], ["b" * n for n in (0, 0, 9, 21)], ["", ""]]
    data = finite(write_lanes(tmp_path, lanes), tail=tail)
    with Job(data) as job:
        _, (batches,) = job.run_out()
        end = job.stats(), job.digest(), job.state()
    assert end[0]["documents"] == 9
    for stop in range(batches + 1):
        with Job(data) as job:
            job.step(stop)
            state = job.state()
        with Job(data, state=state) as job:
            job.run_out()
            assert (job.stats(), job.digest(), job.state()) == end


def test_a_pass_ends_with_every_lane_at_the_start_of_the_next_epoch(corpus: Corpus) -> None:
    with Job(dataset(corpus, epochs=3), 1, 0, 7) as job:
        job.run_out()
        state = job.state()
    assert (state["first_epoch"], state["global_pack"] % LANES) == (3, 0)
    for lane in range(LANES):
        row = dict(zip(FIELDS, state[f"lanes.{lane:06d}"][0], strict=True))
        assert [row[name] for name in Cursor._fields] == [*Cursor(epoch=3)]
        assert row["packs"] == state["global_pack"] // LANES
        assert json.loads(state[f"skipped_ranges.{lane:06d}"]) == [[]]


def test_a_pass_that_dropped_its_last_packs_goes_on_at_the_same_global_number(tmp_path: Path) -> None:
    corpus = lanes_of_packs(tmp_path, 3, 3, 3)
    with Job(finite(corpus), 1, 0, 4, drop_last=True) as job:
        assert letters_of(job.run_out()[0]) == "adgbehcf"
        state = job.state()
        assert state["global_pack"] == 8
        assert [state[f"lanes.{lane:06d}"][0][PACKS] for lane in range(3)] == [3, 3, 2]
        second, _ = job.run_out()
    assert min(second) == 8
    # Lane 2 has given a pack less, so it is its turn: from there each lane begins anew.
    assert letters_of(second) == "gadhbeic"


def test_an_iteration_is_a_pass_and_ends_for_good(tmp_path: Path) -> None:
    with streampack.PackedDataLoader(finite(lanes_of_packs(tmp_path, 2)), 1, num_workers=0) as loader:
        iterator = iter(loader)
        assert len(list(iterator)) == 2
        assert list(iterator) == [] and next(iterator, None) is None
        assert loader.state_dict()["first_epoch"] == 1
        assert [len(list(loader)) for _ in range(3)] == [2, 2, 2]
        assert loader.state_dict()["first_epoch"] == 4
        assert loader.stats()["batches"] == 8
