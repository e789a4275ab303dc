"""Validation sets: the same packs on any number of ranks and workers, counted once; training does not notice."""

import os
import signal
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from support.tars import write_webdataset
from support.thorough import nightly
from support.workers import worker_pids

from streampack import HoldOut, PackedDataLoader, PackedDataset, Source
from streampack.errors import ConfigError, LoaderError, StateError
from streampack.loader import counting
from streampack.testing import ByteTokenizer

SEQ_LEN = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    for name, shards in (("web", 5), ("code", 2)):
        for shard in range(shards):
            samples = (
                {"__key__": f"{index:04d}", "txt": f"{name}{shard}-{index}" + "x" * (index * 37 % 90)}
                for index in range(60)
            )
            (folder / f"{name}-{shard}.tar").write_bytes(write_webdataset(samples))
    return folder


@pytest.fixture(autouse=True, scope="module")
def small() -> Iterator[None]:
    """Many lanes, and a position every 3 packs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting, "_LANE_BYTES", 4000)
        patch.setattr(counting, "step_of", lambda _: 3)
        patch.setattr("streampack.loader.validation.step_of", lambda _: 3)
        yield


@pytest.fixture(scope="module")
def alone(folder: Path, small: None) -> tuple[dict[int, tuple[int, ...]], int]:
    """The packs of a validation set in one process, and their digest."""
    with loader(dataset(folder)) as mine:
        return packs_of(mine), mine.digest()


def dataset(folder: Path, part: str = "val", **changes: Any) -> PackedDataset:
    data = {"web": str(folder / "web-*.tar"), "code": str(folder / "code-*.tar")}
    arguments = {"hold_out": HoldOut(part, 0.4), "num_lanes": 12, "data": data, **changes}
    return PackedDataset(tokenizer=ByteTokenizer(), seq_len=SEQ_LEN, **arguments)


def loader(data: PackedDataset, rank: int = 0, size: int = 1, **changes: Any) -> PackedDataLoader:
    return PackedDataLoader(data, dp_rank=rank, dp_size=size, **{"num_workers": 0, "provenance": True, **changes})


def packs_of(batches: Iterator[Any] | PackedDataLoader) -> dict[int, tuple[int, ...]]:
    """By number."""
    found = {}
    for batch in batches:
        for number, tokens in zip(batch["pack_numbers"].tolist(), batch["tokens"].tolist(), strict=True):
            if number >= 0:
                assert number not in found
                found[number] = tuple(tokens)
    return found


@pytest.mark.parametrize(
    ("size", "workers", "batch_size"), [(2, 1, 7), (5, 0, 64), *nightly([(2, 1, 1), (1, 2, 5), (3, 0, 4), (7, 0, 64)])]
)
def test_the_packs_are_the_same_on_any_number_of_ranks_and_workers(
    folder: Path, alone: tuple[dict[int, tuple[int, ...]], int], size: int, workers: int, batch_size: int
) -> None:
    all_packs, whole_digest = alone
    assert list(all_packs) == list(range(len(all_packs)))
    assert len(all_packs) > 100
    found: dict[int, tuple[int, ...]] = {}
    digest = fillers = 0
    lengths = set()
    for rank in range(size):
        with loader(dataset(folder), rank, size, num_workers=workers, batch_size=batch_size) as mine:
            with pytest.raises(TypeError, match="known once its first iteration has begun"):
                len(mine)
            batches = list(mine)
            assert len(mine) == len(batches)
            lengths.add(len(batches))
            packs = packs_of(batches)
            assert not packs.keys() & found.keys()
            assert len(all_packs) // size <= len(packs) <= -(-len(all_packs) // size)
            found |= packs
            fillers += len(batches) * batch_size - len(packs)
            digest += mine.digest()
    assert len(lengths) == 1, "equally many on all ranks"
    assert found == all_packs
    assert fillers < size * batch_size
    assert digest % 2**64 == whole_digest % 2**64


def test_every_iteration_has_all_of_it_and_counts_no_more(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = loader(dataset(folder), batch_size=4)
    first = packs_of(mine)
    monkeypatch.setattr("streampack.loader.validation.count", None)  # it is not called again
    for _ in range(2):
        next(iter(mine))  # broken off
        assert packs_of(mine) == first
    assert mine.stats()["tokens"] == sum(int((batch["segment_ids"] > 0).sum()) for batch in mine)
    iterator = iter(mine)
    next(iterator)
    mine.load_state_dict(mine.state_dict())
    assert packs_of(mine) == first, "a state has no position"
    with pytest.raises(LoaderError, match=r"skip\(2\): each iteration of a validation set begins"):
        mine.skip(2)
    assert packs_of(mine) == first


def test_sources_come_one_after_the_other(folder: Path) -> None:
    batches = list(loader(dataset(folder)))
    names = [pack[0].source for batch in batches for pack in batch["provenance"]]
    assert names == sorted(names, reverse=True)
    assert set(names) == {"web", "code"}


def test_a_source_that_an_iteration_has_read_is_not_exhausted(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = {name: Source(str(folder / f"{name}-*.tar"), max_epochs=1) for name in ("web", "code")}
    with loader(dataset(folder, data=data)) as mine:
        for _ in range(2):
            assert list(mine)
            assert [each["exhausted_lanes"] for each in mine.stats()["sources"].values()] == [0, 0]
    assert "exhausted" not in caplog.text


def test_num_packs_takes_the_first_ones(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "_COUNTED_TOGETHER", 1)
    counted, count = [], counting._counted
    monkeypatch.setattr(counting, "_counted", lambda *args: counted.append(1) or count(*args))
    web = str(folder / "web-*.tar")
    all_packs = packs_of(loader(dataset(folder, data=web)))
    counted.clear()
    bounded = dataset(folder, data=web, num_packs=20)
    assert packs_of(loader(bounded, batch_size=3)) == {number: all_packs[number] for number in range(20)}
    assert len(counted) < 10, "lanes after the last pack are not read"


def test_num_packs_takes_the_first_ones_of_each_source_in_proportion(
    folder: Path, alone: tuple[dict[int, tuple[int, ...]], int]
) -> None:
    data: dict[str, str | Source] = {name: str(folder / f"{name}-*.tar") for name in ("web", "code")}
    all_packs, _ = alone
    num_web = len(packs_of(loader(dataset(folder, data=data["web"]))))
    bounded = dataset(folder, num_packs=21)
    tables = [source.corpus.table.total_bytes for source in bounded.run().sources]
    of_web = 1 + 19 * tables[0] // sum(tables)
    wanted = [*range(of_web), *range(num_web, num_web + 21 - of_web)]
    for workers, size, batch_size in ((1, 2, 3), *nightly([(0, 1, 5)])):
        found = {}
        for rank in range(size):
            with loader(bounded, rank, size, num_workers=workers, batch_size=batch_size) as mine:
                found |= packs_of(mine)
        assert [found[number] for number in range(21)] == [all_packs[number] for number in wanted]
    assert len(packs_of(loader(dataset(folder, num_packs=10**6)))) == len(all_packs)
    assert len(packs_of(loader(dataset(folder, num_tokens=2 * SEQ_LEN)))) == 2
    for budget in ({"num_packs": 1}, {"num_tokens": SEQ_LEN}):
        with pytest.raises(ConfigError, match="is 1 packs, fewer than its 2 sources"):
            dataset(folder, **budget)
    data["code"] = Source(data["code"], weight=0)
    assert len(packs_of(loader(dataset(folder, num_packs=1, data=data)))) == 1


def test_drop_last_leaves_no_filler(folder: Path) -> None:
    found: dict[int, tuple[int, ...]] = {}
    for rank in range(3):
        batches = list(loader(dataset(folder), rank, 3, batch_size=8, drop_last=True))
        packs = packs_of(batches)
        assert len(packs) == 8 * len(batches)
        found |= packs
    assert sorted(found) == list(range(len(found)))


def test_an_error_comes_when_the_packs_are_counted(folder: Path) -> None:
    mine = loader(dataset(folder, data=str(folder / "web-*.tar"), field="json:text"))
    with pytest.raises(ValueError, match=r"web-0\.tar"):
        iter(mine)


def test_a_worker_that_is_killed_in_mid_evaluation_costs_no_pack(folder: Path) -> None:
    data = dataset(folder, num_packs=60)
    wanted = packs_of(loader(data))
    with loader(data, num_workers=2, prefetch_bytes=4000) as mine:  # messages of 3 packs
        iterator = iter(mine)
        found = packs_of(islice(iterator, 5))
        os.kill(worker_pids(mine)[0], signal.SIGKILL)
        found |= packs_of(iterator)
        assert mine.stats()["worker_restarts"] == 1
    assert found == wanted


def test_num_packs_does_not_hide_an_empty_part_of_a_source(folder: Path, tmp_path: Path) -> None:
    few = tmp_path / "few.tar"
    few.write_bytes(write_webdataset([{"__key__": "0", "txt": "one"}]))
    data = {"web": str(folder / "web-*.tar"), "few": str(few)}
    assert not HoldOut("val", 0.4).has("few.tar", "0", 0)
    with pytest.raises(ConfigError, match="none of the 1 documents of source 'few'.* Use more documents"):
        iter(loader(dataset(folder, data=data, num_packs=2)))


@pytest.mark.parametrize(
    ("hold_out", "text"),
    [
        (HoldOut("val", 1e-9), r"holds out none of the 120 documents of source 'code'.* fraction=0\.08 holds out"),
        (HoldOut("val", 1e-9, by="block"), r"holds out none of the .* A fraction of at least"),
    ],
)
def test_an_empty_part_is_an_error_that_says_what_would_do(folder: Path, hold_out: HoldOut, text: str) -> None:
    data = {"code": str(folder / "code-*.tar")}
    with pytest.raises(ConfigError, match=text):
        iter(loader(dataset(folder, data=data, hold_out=hold_out)))


def test_training_has_the_same_packs_with_and_without_evaluations(folder: Path) -> None:
    """Also where an evaluation is broken off; and its state is the same."""

    def train(evaluate: bool) -> tuple[list[Any], str]:
        with loader(dataset(folder, "train", data=str(folder / "web-*.tar")), batch_size=2) as training:
            held_out = loader(dataset(folder, data=str(folder / "web-*.tar")), batch_size=3)
            seen = []
            for step, batch in zip(range(12), training, strict=False):
                seen.append(batch["tokens"].tolist())
                if evaluate and step % 4 == 3:
                    for number, _ in enumerate(held_out):
                        if step == 7 and number == 1:
                            break
            return seen, repr(sorted(training.state_dict().items()))

    assert train(evaluate=True) == train(evaluate=False)


def test_states_of_training_and_validation_are_not_confused(folder: Path) -> None:
    val, train = loader(dataset(folder)), loader(dataset(folder, "train"))
    with pytest.raises(StateError, match="this is that of a training run"):
        val.load_state_dict(train.state_dict())
    for junk in ({}, {"junk": 1}, {**val.state_dict(), "more": 1}):
        with pytest.raises(StateError, match="this is something else"):
            val.load_state_dict(junk)
    with pytest.raises(StateError, match="state of a validation set"):
        train.load_state_dict(val.state_dict())


@pytest.mark.parametrize("drop_last", [False, True])
def test_epochs_are_those_of_each_source_over_all_ranks(folder: Path, drop_last: bool) -> None:
    data = dataset(folder, num_packs=31)
    mine = [loader(data, rank, 3, batch_size=2, drop_last=drop_last) for rank in range(3)]
    iterators, given = [iter(each) for each in mine], dict.fromkeys(data.sources, 0)
    while batches := [batch for each in iterators if (batch := next(each, None)) is not None]:
        for batch in batches:
            for pack in filter(None, batch["provenance"]):  # a filler has none
                given[pack[0].source] += 1
        for each in mine:
            of_sources = each.stats()["sources"]
            wanted = {name: packs / (31 * of_sources[name]["share"]) for name, packs in given.items()}
            assert each.progress()["epochs"] == pytest.approx(wanted)
            assert {name: of_source["epochs"] for name, of_source in of_sources.items()} == pytest.approx(wanted)
    assert sum(given.values()) == 31 - drop_last


def test_length_and_share_are_of_the_packs_that_there_are(folder: Path) -> None:
    mine = loader(dataset(folder, num_packs=10**6), batch_size=4)
    assert len(list(mine)) == len(mine)
    assert mine.progress()["share"] == 1.0


def test_a_training_part_without_a_document_names_the_fraction(folder: Path) -> None:
    hold_out = HoldOut("train", 0.999999, by="document")
    data = dataset(folder, data=str(folder / "web-0.tar"), hold_out=hold_out, num_lanes=1)
    with pytest.raises(ConfigError, match=r"gives no pack .*fraction=0.999999.*or a smaller fraction\. The"):
        next(iter(loader(data)))


@pytest.mark.parametrize(
    ("hold_out", "changes", "text"),
    [
        (HoldOut("train", 1 - 1e-9), {}, r"all of the 300 documents of the shards.* on\. fraction=0\.97 leaves about"),
        (HoldOut("train", 1 - 1e-9), {"epoch_end": "stop"}, "or a smaller fraction than that of HoldOut"),
        (HoldOut("train", 0.9, by="block"), {}, "leaves only blocks of .* no document begins.* use a smaller fraction"),
    ],
)
def test_a_finite_training_part_without_a_document_is_an_error_on_all_ranks(
    folder: Path, monkeypatch: pytest.MonkeyPatch, hold_out: HoldOut, changes: dict[str, Any], text: str
) -> None:
    names, size = str(folder / "web-*.tar"), 2
    if hold_out.by == "block":
        names, size = str(folder.parent / "long.tar"), 1
        Path(names).write_bytes(write_webdataset([{"__key__": "0", "txt": "x" * 20_000}]))
        monkeypatch.setattr("streampack.corpus.spans.CELL_BYTES", 2048)
    data = dataset(folder, data=names, hold_out=hold_out, num_lanes=2, epochs=1, **changes)
    for rank in range(size):
        with loader(data, rank, size) as mine:
            for _ in range(2):  # it stays so
                with pytest.raises(ConfigError, match=text):
                    list(mine)
    if not changes:
        with pytest.raises(ConfigError, match=text):
            list(data)


def test_a_finite_run_without_a_pack_for_another_reason_is_none_of_hold_out(folder: Path) -> None:
    few = dataset(folder, "train", data=str(folder / "web-*.tar"), epochs=1, num_lanes=1)
    assert list(loader(few, batch_size=10**4, drop_last=True)) == []
    (folder.parent / "empty.tar").write_bytes(write_webdataset([]))
    assert list(loader(dataset(folder, "train", data=str(folder.parent / "empty.tar"), epochs=1, num_lanes=1))) == []
