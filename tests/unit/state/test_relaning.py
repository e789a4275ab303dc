"""Another number of lanes: every row of every document comes once, in packs that depend on nothing but the state."""

import itertools
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.chats import dataset_of, shards_of
from support.relaning import Found, Lanes, assert_all_once, corpus, in_turn, total
from support.thorough import THOROUGH, nightly, some

from streampack import HoldOut, PackedDataset, Packing, Shuffle, Source, Stage
from streampack.errors import StateError
from streampack.state.checkpoint import Committed
from streampack.state.joining import merge_state_dicts
from streampack.testing import ByteTokenizer


def members_of(url: str) -> list[tarfile.TarInfo]:
    with tarfile.open(url) as tar:
        return tar.getmembers()


BLOCKS = Shuffle(block_bytes=4096, window=2)
STEPS = [(40, 5), (17, 7), (3, 24)]
PACKINGS = {
    "wrap": Packing("wrap"),
    "wrap, drop": Packing("wrap", tail="drop"),
    "next_fit": Packing("next_fit", overflow="split"),
    "best_fit": Packing("best_fit", window=4),
    "best_fit, truncate": Packing("best_fit", window=2, tail="drop", overflow="truncate"),
}


def dataset(urls: list[str], **changes: Any) -> PackedDataset:
    return PackedDataset(urls, ByteTokenizer(), **{"seq_len": 64, "num_lanes": 12, "epochs": 1, **changes})


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return corpus(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return corpus(tmp_path_factory.mktemp("lines"), field="jsonl:text")


@pytest.mark.parametrize(
    ("packing", "shuffle"), some(list(itertools.product(PACKINGS, [BLOCKS, "shards", False])), 4), ids=str
)
def test_each_row_comes_once_through_several_numbers_of_lanes(texts: list[str], packing: str, shuffle: Any) -> None:
    assert_all_once(dataset(texts, shuffle=shuffle, packing=PACKINGS[packing]), STEPS)


@pytest.mark.parametrize(
    ("packing", "shuffle"),
    [("best_fit", BLOCKS), ("wrap", "shards"), *nightly([("best_fit", "shards"), ("wrap", BLOCKS)])],
    ids=str,
)
def test_lines_of_members_and_what_was_skipped_come_once(lines: list[str], packing: str, shuffle: Any) -> None:
    data = dataset(lines, field="jsonl:text", on_error="skip", shuffle=shuffle, packing=PACKINGS[packing], max_bad=1000)
    found = assert_all_once(data, STEPS)
    assert found.all_counts.bad_records > 3


@pytest.mark.parametrize("shuffle", [BLOCKS, "shards"], ids=str)
def test_compressed_shards_come_once(tmp_path: Path, shuffle: Any) -> None:
    urls = corpus(tmp_path, shards=9, compressed=True)
    assert_all_once(dataset(urls, shuffle=shuffle, num_lanes=4), [(25, 3), (8, 9), (20, 2)])


@pytest.mark.parametrize("packing", ["wrap", "best_fit"])
def test_the_packs_after_it_are_the_same_wherever_the_run_is_resumed(texts: list[str], packing: str) -> None:
    data = dataset(texts, shuffle=BLOCKS, packing=PACKINGS[packing])
    straight, broken = Found(), Found()
    before = in_turn(Lanes.of(data), [(60, 7)], Found())
    before.again().take(10**6, straight)
    lanes = before
    while not lanes.is_over:
        lanes = lanes.again().take(11, broken)
    assert broken.packs == straight.packs
    assert broken.all_counts == straight.all_counts


def test_an_endless_run_has_each_epoch_whole(texts: list[str]) -> None:
    data = dataset(texts, epochs=None, shuffle=BLOCKS)
    whole, found = Found(), Found()
    Lanes.of(data).take(1200, whole)
    lanes = in_turn(Lanes.of(data), [(130, 5), (77, 9), (200, 9)], found).take(793, found)
    assert not lanes.committed.continued.left
    epochs = 1 + min(int(row[0]) for row in lanes.committed.rows) - 1
    assert epochs >= 3
    for epoch in range(epochs):
        rows = [{row for row in each.rows if row[1] == epoch} for each in (whole, found)]
        lost = whole.all_counts.targetless_tokens + found.all_counts.targetless_tokens
        assert len(rows[0] ^ rows[1]) <= lost
    assert max(found.rows.values()) == 1


def test_what_was_counted_stays(lines: list[str]) -> None:
    data = dataset(lines, field="jsonl:text", on_error="skip", max_bad=1000)
    found = Found()
    lanes = Lanes.of(data).take(101, found)
    after = lanes.again(7).committed
    before = lanes.committed
    assert after.counts() == before.counts()
    assert after.num_skipped() == before.num_skipped()
    assert after.global_pack == after.since == 101
    assert [after.packs(lane) for lane in range(7)] == [15, 15, 15, 14, 14, 14, 14]


@settings(max_examples=300 if THOROUGH else 4)
@given(
    kind=st.sampled_from(["texts", "lines"]),
    packing=st.sampled_from(sorted(PACKINGS)),
    shuffle=st.sampled_from([BLOCKS, "shards", False]),
    boundary=st.sampled_from(["mask", "trim"]),
    seq_len=st.sampled_from([16, 64, 100]),
    num_lanes=st.sampled_from([1, 2, 4, 12]),
    steps=st.lists(st.tuples(st.integers(0, 150), st.integers(1, 24)), min_size=1, max_size=4),
)
def test_any_numbers_of_lanes_after_any_packs(
    texts: list[str],
    lines: list[str],
    kind: str,
    packing: str,
    shuffle: Any,
    boundary: str,
    seq_len: int,
    num_lanes: int,
    steps: list[tuple[int, int]],
) -> None:
    arguments: dict[str, Any] = {"packing": PACKINGS[packing], "shuffle": shuffle, "boundary": boundary}
    if kind == "lines":
        arguments |= {"field": "jsonl:text", "on_error": "skip", "max_bad": 1000}
    data = dataset({"texts": texts, "lines": lines}[kind], seq_len=seq_len, num_lanes=num_lanes, **arguments)
    assert_all_once(data, steps)


@pytest.mark.parametrize("packing", ["wrap", "best_fit"])
def test_sources_end_and_a_stage_cuts_in_another_way_after_it(
    texts: list[str], tmp_path: Path, packing: str
) -> None:
    """The windows that are half out in leftovers are placed as they were, also by the packer of a later stage."""
    sources = {"web": Source(texts, max_epochs=2), "code": Source(corpus(tmp_path, shards=1, seed=4), max_epochs=3)}
    stages = [
        Stage(weights={"web": 2, "code": 1}, seq_len=64, packing=PACKINGS[packing]),
        Stage(at_packs=130, weights={"web": 1, "code": 1}, seq_len=16, packing=Packing("wrap")),
    ]
    data = PackedDataset(sources, ByteTokenizer(), num_lanes=12, shuffle=BLOCKS, stages=stages)
    whole, found = Found(), Found()
    Lanes.of(data).take(10**6, whole)
    lanes = in_turn(Lanes.of(data), [(100, 5), (17, 7)], found)
    assert lanes.run.schedule.stages[1].first_pack == 133  # a round of the lanes that the run has then
    in_turn(lanes, [(90, 10)], found).take(10**6, found)
    assert total(found)[:2] == total(whole)[:2]
    assert max(found.rows.values()) == 1


@pytest.mark.parametrize("steps", [[(10, 1), (0, 12)], [(10, 3), (1, 5), (0, 12)], [(8, 3), (0, 1), (2, 12)]], ids=str)
def test_leftovers_that_no_lane_has_opened_yet_are_divided_again(
    texts: list[str], tmp_path: Path, steps: list[tuple[int, int]]
) -> None:
    """Of a source that comes rarely: the lanes after a relane begin it, and are given up before they do."""
    sources = {"web": Source(texts, max_epochs=1), "rare": Source(corpus(tmp_path, shards=2, seed=4), max_epochs=1)}
    data = PackedDataset(
        sources,
        ByteTokenizer(),
        seq_len=256,
        num_lanes=12,
        shuffle="shards",
        packing="next_fit",
        stages=[Stage(weights={"web": 6, "rare": 1})],
    )
    whole, found = Found(), Found()
    Lanes.of(data).take(10**6, whole)
    in_turn(Lanes.of(data), steps, found).take(10**6, found)
    assert max(found.rows.values()) == 1
    assert total(found)[:2] == total(whole)[:2]


def test_an_epoch_of_which_something_is_left_has_begun(texts: list[str]) -> None:
    lanes = Lanes.of(dataset(texts, shuffle="shards", packing="next_fit")).take(60, Found()).again(5)
    for again in (lanes, lanes.again(3), lanes.again(3).again(40)):
        committed = again.committed
        assert committed.left["default"].epoch == 0
        assert committed.epochs_begun(0).tolist() == [1] * committed.num_lanes
        committed.check_max_epochs({"default": 1})
        with pytest.raises(StateError, match="max_epochs=1 ends it after that epoch"):
            committed.check_max_epochs({"default": 0})


def test_leftovers_are_dropped_once_all_lanes_are_past_them(texts: list[str]) -> None:
    """By whoever sees all lanes: a rank of several keeps them, and reads none that its own lanes are past."""
    data = dataset(texts, epochs=None, shuffle=BLOCKS)
    lanes = Lanes.of(data).take(30, Found()).again(6)
    fingerprint = data.fingerprint(6)
    halfway = 0
    for _ in range(400):
        state = lanes.take(3, Found()).committed.to_state(fingerprint, {})
        parts = [Committed.from_state(state, range(rank, 6, 2), 6) for rank in range(2)]
        epochs = lanes.committed.rows[:, 0]
        for rank, part in enumerate(parts):
            assert bool(part.continued.left) == (epochs[rank::2].min() == 0)
        merged = merge_state_dicts(part.to_state(fingerprint, {}) for part in parts)
        assert merged["leftovers"] == state["leftovers"]
        halfway += {bool(part.continued.left) for part in parts} == {True, False}
        if epochs.min():
            break
    assert json.loads(state["leftovers"]) == {}
    assert halfway
    kept = [replace(part, left=lanes.committed.left).to_state(fingerprint, {}) for part in parts]
    assert json.loads(kept[0]["leftovers"])
    assert json.loads(merge_state_dicts(kept)["leftovers"]) == {}


@pytest.mark.parametrize("begin", [None, 24])
def test_what_a_stage_excludes_stays_out_and_all_else_comes_once(
    lines: list[str], tmp_path: Path, begin: int | None
) -> None:
    """From the start of the run, or from a stage that begins between two relanes."""
    excluded = {(shard, str(key)) for shard in (0, 2) for key in range(0, 40, 3)}
    given = [{"source": "lines", "shard": f"{shard}.tar", "key": key} for shard, key in sorted(excluded)]
    path = tmp_path / "bad.jsonl"
    path.write_text("".join(f"{json.dumps(each)}\n" for each in given), "utf-8")
    key_of = {(number, m.offset): m.name.partition(".")[0] for number, url in enumerate(lines) for m in members_of(url)}
    stages = [Stage(exclude=str(path))] if begin is None else [Stage(), Stage(at_packs=begin, exclude=str(path))]

    def run(stages: list[Stage]) -> PackedDataset:
        source = Source(lines, field="jsonl:text", max_epochs=1)
        return PackedDataset(
            {"lines": source},
            ByteTokenizer(),
            seq_len=256,
            num_lanes=12,
            shuffle="shards",
            packing="next_fit",
            stages=stages,
            on_error="skip",
            max_bad=1000,
        )

    whole, before, after = Found(), Found(), Found()
    Lanes.of(run([Stage()])).take(10**6, whole)
    lanes = in_turn(Lanes.of(run(stages)), [(20, 5), (16, 7)], before)
    assert begin is None or lanes.committed.global_pack > lanes.run.schedule.stages[1].first_pack
    in_turn(lanes, [(15, 9), (15, 3)], after).take(10**6, after)
    assert max((before.rows + after.rows).values()) == 1
    gone = whole.rows.keys() - before.rows.keys() - after.rows.keys()
    documents = {row[1:5] for row in gone}
    assert documents
    keys = {(shard, key_of[shard, sample]) for _, shard, sample, _ in documents}
    assert keys <= excluded
    assert not {(row[2], key_of[row[2], row[3]]) for row in after.rows} & excluded
    if begin is None:
        assert keys == excluded & {(shard, key) for (shard, _), key in key_of.items()}


@pytest.mark.parametrize("packing", ["wrap", "best_fit"])
def test_conversations_come_once(tmp_path: Path, packing: str) -> None:
    choose = Random(5)
    talks = [
        [
            {"role": role, "content": "x" * choose.randint(1, 60)}
            for _ in range(choose.randint(1, 3))
            for role in ("user", "assistant")
        ]
        for _ in range(150)
    ]
    data = dataset_of(
        shards_of(tmp_path, talks),
        seq_len=400,
        num_lanes=6,
        shuffle=BLOCKS,
        packing=PACKINGS[packing],
    )
    found = assert_all_once(data, [(25, 4), (11, 7)])
    assert found.all_counts.documents == len(talks)


def test_cells_that_are_held_out_stay_out(tmp_path: Path) -> None:
    urls = corpus(tmp_path, shards=1, longest=120_000)
    data = dataset(
        urls, seq_len=8192, num_lanes=4, shuffle="shards", hold_out=HoldOut("train", fraction=0.4, by="block")
    )
    assert_all_once(data, [(30, 3), (25, 5)])


def test_a_damaged_leftover_is_told(texts: list[str]) -> None:
    lanes = Lanes.of(dataset(texts)).take(30, Found()).again(5)
    state = lanes.committed.to_state(lanes.dataset.fingerprint(5), {})
    for value in ("{", '{"default": [0, "AAAA"]}', '{"default": 3}'):
        with pytest.raises(StateError, match="leftovers is .* the state is damaged"):
            Committed.from_state({**state, "leftovers": value}, range(5), 5)
