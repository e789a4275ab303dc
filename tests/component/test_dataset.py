"""PackedDataset by itself: in torch's own DataLoader, and the errors of arguments and data, also out of workers."""

import functools
import gzip
import itertools
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.jobs import (
    LANES,
    NAMES,
    Array,
    Corpus,
    Job,
    dataset,
    documents_of,
    epoch_order,
    expected,
    lane_texts,
    npy,
    texts,
    uneven,
    write_corpus,
    write_lanes,
    write_tar,
)
from support.thorough import THOROUGH, nightly
from torch.utils.data import DataLoader

import streampack
from streampack.errors import (
    ConfigError,
    CorruptShardError,
    DocumentTooLongError,
    LoaderError,
    MissingFieldError,
    RecordError,
    ShardError,
    ShardNotFoundError,
    TokenizerError,
    TopologyError,
    TruncatedShardError,
)
from streampack.testing import ByteTokenizer


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return uneven(tmp_path_factory.mktemp("uneven"))


def packs_of(loader: Any, num_batches: int | None = None) -> list[Array]:
    """The packs of torch's own DataLoader, each int64 [4, seq_len]."""
    batches = itertools.islice(loader, num_batches)
    return [pack for batch in batches for pack in np.stack([batch[name].numpy() for name in NAMES], axis=1)]


def in_lanes(packs: list[Array], owners: list[int]) -> dict[int, Array]:
    """Packs as global numbers, if pack k comes from lane `owners[k]`."""
    given: Counter[int] = Counter()
    numbered = {}
    for pack, lane in zip(packs, owners, strict=True):
        numbered[lane + LANES * given[lane]] = pack
        given[lane] += 1
    return numbered


def as_multiset(packs: list[Array]) -> Counter[bytes]:
    return Counter(pack.tobytes() for pack in packs)


# --- torch's DataLoader


def test_without_workers_the_order_is_the_global_one(corpus: Corpus) -> None:
    wanted = expected(corpus, 120, seq_len=32)
    packs = packs_of(DataLoader(dataset(corpus), batch_size=8), 15)
    np.testing.assert_array_equal(packs, wanted)


def test_an_item_is_four_int64_tensors_of_one_pack(corpus: Corpus) -> None:
    item = next(iter(dataset(corpus)))
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in item.items()} == dict.fromkeys(
        NAMES, (torch.int64, (32,))
    )


def test_the_number_of_packs_is_not_known_beforehand(corpus: Corpus) -> None:
    data = dataset(corpus)
    assert not hasattr(data, "__len__")
    with pytest.raises(TypeError, match="has no len"):
        len(DataLoader(data, batch_size=2))


def finite_packs(corpus: Corpus, epoch: int = 0) -> Counter[bytes]:
    """All packs of an epoch, lane by lane, without a worker."""
    return _finite_packs(tuple(corpus.urls), epoch).copy()


@functools.cache
def _finite_packs(urls: tuple[str, ...], epoch: int) -> Counter[bytes]:
    data = dataset(list(urls), epochs=1)
    data.set_epoch(epoch)
    return as_multiset([np.stack([item[name].numpy() for name in NAMES]) for item in data])


@pytest.mark.parametrize(("workers", "batch_size"), [(2, 3), *nightly([(0, 4), (1, 8), (5, 8)])])
def test_every_document_comes_once_an_epoch(corpus: Corpus, workers: int, batch_size: int) -> None:
    loader = DataLoader(dataset(corpus, epochs=1), batch_size=batch_size, num_workers=workers)
    assert as_multiset(packs_of(loader)) == finite_packs(corpus)


def test_the_packs_of_an_epoch_hold_every_document_once(corpus: Corpus) -> None:
    """One lane a rank, so that the documents can be read off the packs."""
    numbered = {}
    for rank in range(LANES):
        data = dataset(corpus, epochs=1, rank=rank, size=LANES)
        packs = packs_of(DataLoader(data, batch_size=4, num_workers=int(rank == 5)))
        numbered |= in_lanes(packs, [rank] * len(packs))
    assert sorted(documents_of(numbered)) == sorted(corpus.texts)


@pytest.mark.parametrize("workers", [2, *nightly([0])])
def test_ranks_by_hand_share_no_pack_and_miss_none(corpus: Corpus, workers: int) -> None:
    found: Counter[bytes] = Counter()
    for rank in range(3):
        data = dataset(corpus, epochs=1, rank=rank, size=3)
        found += as_multiset(packs_of(DataLoader(data, batch_size=4, num_workers=workers)))
    assert found == finite_packs(corpus)


def test_workers_above_the_lanes_give_nothing_twice(corpus: Corpus) -> None:
    few = dataset(corpus, epochs=1, num_lanes=2)
    alone = as_multiset(packs_of(DataLoader(few, batch_size=4)))
    assert as_multiset(packs_of(DataLoader(few, batch_size=4, num_workers=4))) == alone


@pytest.mark.parametrize("context", ["fork", *nightly(["spawn", "forkserver"])])
def test_packs_are_the_same_however_workers_are_started(corpus: Corpus, context: str) -> None:
    """Persistent ones, iterated twice and left half-way in between."""
    data = dataset(corpus, transform=shouted, epochs=1)
    alone = as_multiset(packs_of(DataLoader(data, batch_size=4)))
    loader = DataLoader(data, batch_size=4, num_workers=1, multiprocessing_context=context, persistent_workers=True)
    assert as_multiset(packs_of(loader)) == alone
    half = packs_of(loader, 5)
    again = packs_of(loader)
    assert as_multiset(again) == alone
    np.testing.assert_array_equal(half, again[:20])


def shouted(document: streampack.Document, rng: np.random.Generator) -> streampack.Document:
    """At module level, so that it can be pickled."""
    return streampack.Document(text=(document.text or "").upper() + "!" * int(rng.integers(3)))


@pytest.mark.parametrize("workers", [2, *nightly([0])])
def test_every_iteration_begins_anew_also_after_one_that_was_left(corpus: Corpus, workers: int) -> None:
    loader = DataLoader(dataset(corpus), batch_size=4, num_workers=workers)
    first = packs_of(loader, 10)
    packs_of(loader, 3)
    np.testing.assert_array_equal(packs_of(loader, 10), first)


@pytest.mark.parametrize("workers", [2, *nightly([0])])
def test_two_iterators_at_once_do_not_disturb_each_other(corpus: Corpus, workers: int) -> None:
    loader = DataLoader(dataset(corpus), batch_size=4, num_workers=workers)
    alone = packs_of(loader, 8)
    first, second = iter(loader), iter(loader)
    begun = packs_of(first, 4)
    np.testing.assert_array_equal(packs_of(second, 8), alone)
    np.testing.assert_array_equal(begun + packs_of(first, 4), alone)


@pytest.mark.parametrize(("workers", "persistent"), [(1, True), *nightly([(0, False), (2, False), (2, True)])])
def test_set_epoch_changes_the_order_and_not_the_documents(corpus: Corpus, workers: int, persistent: bool) -> None:
    data = dataset(corpus, epochs=1)
    loader = DataLoader(data, batch_size=4, num_workers=workers, persistent_workers=persistent)
    firsts = []
    for epoch in (0, 1, 0):
        data.set_epoch(epoch)
        packs = packs_of(loader)
        assert as_multiset(packs) == finite_packs(corpus, epoch)
        firsts.append(packs[0][0].tolist())
    assert firsts[0] == firsts[2] != firsts[1]
    assert epoch_order(corpus, 0) != epoch_order(corpus, 1)


def test_two_epochs_are_this_one_and_the_next(tmp_path: Path) -> None:
    corpus = write_lanes(tmp_path, [["a" * 14], ["b" * 14], ["c" * 14]])
    data = dataset(corpus, epochs=2, num_lanes=1, seq_len=16)
    data.set_epoch(5)
    letters = [chr(int(item["tokens"][1]) - 3) for item in data]
    assert letters == [lane_texts(corpus, 0, epoch, num_lanes=1)[n][0] for epoch in (5, 6) for n in range(3)]


def test_a_negative_epoch_is_refused(corpus: Corpus) -> None:
    with pytest.raises(ConfigError, match="epoch=-1 must be a whole number of at least 0"):
        dataset(corpus).set_epoch(-1)


def test_workers_never_list_the_shards(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where other ranks may exist nothing is listed at the start; a forked worker must not list either."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    data = dataset(corpus)
    with pytest.raises(LoaderError, match="the shards were not listed before the workers were forked"):
        run_out(DataLoader(data, batch_size=4, num_workers=1))
    data.list_shards()
    packs = packs_of(DataLoader(data, batch_size=6, num_workers=1), 5)
    wanted = expected(corpus, 60, seq_len=32)
    np.testing.assert_array_equal(packs, wanted[1::2])


def test_ranks_of_the_dataset_and_of_the_loader_must_agree(corpus: Corpus) -> None:
    data = dataset(corpus, rank=0, size=2)
    message = r"the dataset was made by for_rank\(0, 2\), the loader is rank 1 of 2: give the loader the dataset itself"
    with pytest.raises(TopologyError, match=message):
        streampack.PackedDataLoader(data, dp_rank=1, dp_size=2)
    streampack.PackedDataLoader(data, dp_rank=0, dp_size=2)


def test_ranks_that_do_not_divide_the_lanes_are_refused(corpus: Corpus) -> None:
    data = dataset(corpus, rank=0, size=5)
    with pytest.raises(TopologyError, match="5 data-parallel ranks do not divide num_lanes=12"):
        next(iter(data))


# --- arguments


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"seq_len": 1}, ConfigError, "seq_len=1 must be a whole number from 2 to"),
        ({"seq_len": 2.5}, ConfigError, "seq_len=2.5 must be a whole number"),
        ({"boundary": "maks"}, ConfigError, "boundary='maks' is not known; did you mean \"mask\"?"),
        ({"packing": "best_fit", "boundary": "keep"}, ConfigError, "does not work with boundary="),
        ({"packing": "next_fit", "lookahead": False}, ConfigError, 'lookahead=False works with packing="wrap" only'),
        ({"overflow": "cut", "packing": "next_fit"}, ConfigError, "overflow='cut' is not known"),
        ({"tail": "keep"}, ConfigError, "tail='keep' is not known"),
        ({"field": "text"}, ConfigError, "field='text' is not known; did you mean \"txt\"? Choose one of txt, json"),
        ({"field": "json:"}, ConfigError, "field='json:' names no key"),
        ({"field": "json:messages"}, ConfigError, "messages need a chat template, chat= (--chat): one of phi3, llama2"),
        ({"chat": "phi3"}, ConfigError, "chat is for conversations, and field='txt' holds none"),
        ({"train_on": "all"}, ConfigError, "chat is for conversations"),
        ({"part": "test", "fraction": 0.1}, ConfigError, "part='test' is not known"),
        ({"part": "val", "fraction": 0}, ConfigError, "part='val' with fraction=0 holds nothing"),
        ({"part": "val", "fraction": 0.1, "epochs": 2}, ConfigError, 'hold_out: part="val" is always one epoch'),
        ({"part": "train", "fraction": 1.0}, ConfigError, "fraction=1.0 must be a number of at least 0"),
        ({"epochs": 0}, ConfigError, "epochs=0 must be a whole number of at least 1"),
        ({"num_lanes": 0}, ConfigError, "num_lanes=0 must be a whole number of at least 1"),
        ({"num_lanes": True}, ConfigError, "num_lanes=True must be a whole number of at least 1"),
        ({"seed": -1}, ConfigError, "seed=-1 must be a whole number of at least 0"),
        ({"max_bad": -1}, ConfigError, "max_bad=-1 must be a whole number of at least 0"),
        ({"max_bad": 1.0}, ConfigError, "max_bad=1.0 must be a whole number, or a fraction above 0"),
        ({"buffer_bytes": 0}, ConfigError, "limits.buffer_bytes=0 must be a whole number of at least 1"),
        ({"epoch_end": "wrap"}, ConfigError, "epoch_end='wrap' is not known; choose one of pad, stop"),
        ({"on_error": "ignore"}, ConfigError, "on_error='ignore' is not known; choose one of raise, skip"),
        ({"cache_dir": "s3://b/cache"}, ConfigError, "cache_dir='s3://b/cache' must be a folder on a disk"),
        ({"cache_bytes": 1000}, ConfigError, "cache_bytes=1000 must be a whole number of at least 16777216"),
        ({"engine": "rust"}, ConfigError, "engine='rust' is not known; did you mean"),
        ({"rank": 3, "size": 3}, TopologyError, "for_rank(3, 3): the rank must be at least 0 and below"),
        ({"shuffle": "blocks"}, ConfigError, "shuffle='blocks' must be True, \"shards\", False or a str"),
        ({"limits": 7}, ConfigError, "limits=7 must be a streampack.Limits"),
        ({"storage": "s3"}, ConfigError, "storage='s3' must be a streampack.Storage"),
        ({"hold_out": 0.1}, ConfigError, "hold_out=0.1 must be a streampack.HoldOut or None"),
        ({"tokenizer": None}, ConfigError, 'tokenizer=None works with field="npy", add_bos=False and add_eos=False'),
        ({"tokenizer": 5}, TokenizerError, "int cannot be used as a tokenizer: bos_id must be"),
    ],
    ids=str,
)
def test_an_argument_that_cannot_work_is_refused_at_once(
    corpus: Corpus, changes: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error) as caught:
        dataset(corpus, **changes)
    assert text in str(caught.value)
    assert isinstance(caught.value, ValueError)


class WithoutBos(ByteTokenizer):
    bos_id = None  # type: ignore[assignment]
    digest = "bytes:without bos"


def test_a_tokenizer_without_bos_needs_to_be_told(corpus: Corpus) -> None:
    with pytest.raises(
        TokenizerError, match="add_bos=True, but the tokenizer has no BOS token: pass add_bos=False"
    ):
        dataset(corpus, tokenizer=WithoutBos())
    item = next(iter(dataset(corpus, tokenizer=WithoutBos(), add_bos=False)))
    assert item["tokens"][0] == ord("<") + 3


def test_a_setting_without_effect_warns(corpus: Corpus) -> None:
    with pytest.warns(UserWarning, match='overflow="truncate" does nothing under packing="wrap"'):
        dataset(corpus, overflow="truncate")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "an empty file"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (bytes(range(256)) * 9, "tokenizer.json or tekken.json: 2,304 bytes that begin with"),
        (b'{"a": 1}', "not a tokenizer.json: "),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else value,
)
def test_a_model_that_is_not_one_is_refused_with_what_it_is(
    corpus: Corpus, tmp_path: Path, content: bytes, text: str
) -> None:
    model = tmp_path / "tokenizer.model"
    model.write_bytes(content)
    with pytest.raises(TokenizerError) as caught:
        dataset(corpus, tokenizer=str(model))
    assert text in str(caught.value) and str(model) in str(caught.value)


def test_a_model_that_is_missing_is_an_error_with_its_path(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="none.model: no such tokenizer: give the path or URL"):
        dataset(corpus, tokenizer=str(tmp_path / "none.model"))


def test_an_error_of_the_tokenizer_names_the_document(corpus: Corpus) -> None:
    class Failing(ByteTokenizer):
        def encode(self, text: str) -> np.ndarray:
            if len(text) > 16:  # not what a tokenizer is tried with before the run
                raise TokenizerError("no ids for that")
            return super().encode(text)

    with pytest.raises(TokenizerError, match=r"\.tar.*, member .*: no ids for that"):
        next(iter(dataset(corpus, tokenizer=Failing())))


# --- shards


def test_shards_that_are_not_there_are_an_error_at_once(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(ShardNotFoundError, match="nothing matches .*nothing-[*].tar"):
        dataset([f"{tmp_path}/nothing-*.tar"])
    with pytest.raises(ShardNotFoundError, match="absent.tar.*there is no such file"):
        dataset([*corpus.urls, f"{tmp_path}/absent.tar"])
    with pytest.raises(ShardNotFoundError, match="is empty, or not there"):
        dataset([f"{tmp_path}/folder/"])
    with pytest.raises(ConfigError, match="no shards"):
        dataset([])


def test_an_empty_shard_and_one_given_twice_are_errors_at_once(corpus: Corpus, tmp_path: Path) -> None:
    empty = tmp_path / "empty.tar"
    empty.touch()
    with pytest.raises(ShardError, match=r"empty.tar: the shard is empty \(0 bytes\)"):
        dataset([*corpus.urls, str(empty)])
    with pytest.raises(ConfigError, match="1 of 8 shards are given more than once, the first is"):
        dataset([*corpus.urls, corpus.urls[2]])


# --- bad data: the same error here and out of a worker


def explode(document: streampack.Document, rng: np.random.Generator) -> None:
    raise ZeroDivisionError("of the user's own")


def not_a_document(document: streampack.Document, rng: np.random.Generator) -> Any:
    return document.text


def member(name: str, content: bytes) -> Callable[[Path], Path]:
    """A shard of good samples with this one in the middle."""

    def build(folder: Path) -> Path:
        suffix = name.partition(".")[2]
        good = {"txt": b"good", "json": b'{"text": "good"}', "jsonl": b'{"text": "good"}', "npy": npy([5, 6])}
        around = [(f"{key}.{suffix}", good.get(suffix, b"good")) for key in ("a", "b", "x", "y")]
        return write_tar(folder / "shard.tar", [*around[:2], (name, content), *around[2:]])

    return build


def spoilt(spoil: Callable[[bytes], bytes], name: str = "shard.tar") -> Callable[[Path], Path]:
    """A shard whose bytes are changed after it was written."""

    def build(folder: Path) -> Path:
        path = write_tar(folder / name, [(f"{n}.txt", b"x" * 700) for n in range(12)])
        path.write_bytes(spoil(path.read_bytes()))
        return path

    return build


BAD: dict[str, tuple[Callable[[Path], Path], dict[str, Any], type[Exception], list[str]]] = {
    "cut inside a member": (
        spoilt(lambda data: data[: 5 * 1536 + 700]),
        {"shuffle": "shards"},  # a block that begins after the shard's begin may be in a tar inside the tar, too
        TruncatedShardError,
        ["the bytes end inside a member, after 188 of 700", "member '5.txt'", "copy or write it again"],
    ),
    "cut between members": (
        spoilt(lambda data: data[: 5 * 1536]),
        {},
        TruncatedShardError,
        ["the bytes end before the archive does", "byte 7680"],
    ),
    "cut compressed": (
        spoilt(lambda data: data[: len(data) // 2], "shard.tar.gz"),
        {},
        TruncatedShardError,
        ["shard.tar.gz"],
    ),
    "not a tar": (
        spoilt(lambda data: b"These are just words. " * 100),
        {},
        CorruptShardError,
        ["not a tar archive: it begins with b'These are just w'"],
    ),
    "gzip by another name": (
        spoilt(gzip.compress),
        {},
        CorruptShardError,
        ["gzip data: name it .tar.gz"],
    ),
    "a broken header": (
        spoilt(lambda data: data[:3072] + b"\x01" + data[3073:]),
        {},
        CorruptShardError,
        ["byte 3072"],
    ),
    "bytes behind the end": (
        spoilt(lambda data: data + b"more" * 128),
        {},
        CorruptShardError,
        ["there are other bytes after the end of the archive"],
    ),
    "one member twice": (
        lambda folder: write_tar(folder / "shard.tar", [("a.txt", b"1"), ("a.txt", b"2")]),
        {},
        RecordError,
        ["member 'a.txt'", "two members with this extension"],
    ),
    "no such field": (
        member("m.text", b"hello"),
        {"field": "json:text"},
        MissingFieldError,
        ["no member for field='json:text'", "the sample's extensions: text"],
    ),
    "not UTF-8": (member("m.txt", b"caf\xe9"), {}, RecordError, ["member 'm.txt', byte 3", "not UTF-8: byte 0xe9"]),
    "broken JSON": (
        member("m.json", b'{"text": "x'),
        {"field": "json:text"},
        RecordError,
        ["member 'm.json'", "broken JSON: "],
    ),
    "no such key": (
        member("m.json", b'{"body": "x"}'),
        {"field": "json:text"},
        MissingFieldError,
        ["the record has no key 'text'; the keys there: body"],
    ),
    "no string": (
        member("m.json", b'{"text": 5}'),
        {"field": "json:text"},
        RecordError,
        ["the value under 'text' is a number and not a string"],
    ),
    "a bad line": (
        member("m.jsonl", b'{"text": "x"}\n{"text"}\n'),
        {"field": "jsonl:text"},
        RecordError,
        ["member 'm.jsonl', byte 21", "line 2: broken JSON"],
    ),
    "floats": (
        member("m.npy", npy([1], "<f4")),
        {"field": "npy"},
        RecordError,
        ["a .npy of float32 [1]; token ids are a 1-D array of integers"],
    ),
    "too long": (
        member("m.txt", b"x" * 2000),
        {"document_bytes": 1000},
        DocumentTooLongError,
        ["member 'm.txt'", "a document of 2,000 bytes, above limits.document_bytes=1,000"],
    ),
    "longer than a pack": (
        member("m.txt", b"x" * 200),
        {"packing": "next_fit", "overflow": "error", "seq_len": 64},
        DocumentTooLongError,
        ["202 rows (202 tokens), a pack has 64", "shard.tar", "'m"],
    ),
    "the transform raises": (
        member("m.txt", b"x"),
        {"transform": explode},
        ZeroDivisionError,
        ["of the user's own"],
    ),
    "the transform returns a string": (
        member("m.txt", b"x"),
        {"transform": not_a_document},
        ConfigError,
        ["transform not_a_document, called with", "returned a str: return dataclasses.replace(document"],
    ),
}


def run_out(loader: Any) -> None:
    iterator = iter(loader)
    try:
        for _ in itertools.islice(iterator, 500):
            pass
    finally:  # torch's own, kept alive by the error's traceback, would wait for its workers at some later time
        getattr(iterator, "_shutdown_workers", list)()


@pytest.mark.parametrize("bad", BAD)
def test_bad_data_raise_the_same_error_here_and_out_of_a_worker(tmp_path: Path, bad: str) -> None:
    build, changes, error, wanted = BAD[bad]
    path = build(tmp_path)
    data = dataset([str(path)], **{"num_lanes": 1, "epochs": 1, **changes})
    loaders: dict[str, Any] = {
        "here": streampack.PackedDataLoader(data, 2, num_workers=0),
        "worker": streampack.PackedDataLoader(data, 2, num_workers=1, multiprocessing_context="fork"),
    }
    if THOROUGH or list(BAD).index(bad) % 3 == 0:
        loaders["torch's worker"] = DataLoader(data, batch_size=2, num_workers=1)
    for where, loader in loaders.items():
        with pytest.raises(error) as caught:
            run_out(loader)
        assert type(caught.value) is error, where
        for text in [*wanted, *([] if error is ZeroDivisionError else [str(path)])]:
            assert text in str(caught.value), where


def test_a_shard_that_vanished_or_shrank_since_it_was_listed_is_an_error(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path, [(".tar", texts(20)), (".tar", texts(20, first=20))])
    data = dataset(corpus, num_lanes=2, epochs=1)
    path = corpus.shards[1]
    good = path.read_bytes()
    path.unlink()
    with Job(data) as job, pytest.raises(ShardNotFoundError, match="001.tar.*there is no such file"):
        job.run_out()
    path.write_bytes(good[:8192])
    with Job(data) as job, pytest.raises(TruncatedShardError, match="001.tar"):
        job.run_out()
    path.write_bytes(good)
    with Job(data) as job:
        assert len(documents_of(job.run_out()[0], num_lanes=2)) == 40


@pytest.mark.parametrize("num_lanes", [1, 3, 7])
@pytest.mark.parametrize("end", [2000, 8192, 8200, 20_000])
def test_a_truncated_shard_is_an_error_for_any_number_of_lanes(tmp_path: Path, num_lanes: int, end: int) -> None:
    """Its size is as listed, so only the missing end of the archive shows it; no epoch may end without an error."""
    path = write_corpus(tmp_path, [(".tar", texts(40, longest=900))]).shards[0]
    data = path.read_bytes()
    assert len(data) > 30_000
    path.write_bytes(data[:end])
    with Job(dataset([str(path)], num_lanes=num_lanes, epochs=1)) as job, pytest.raises(ShardError, match="cut short"):
        job.run_out()


def test_a_tar_without_members_is_allowed(corpus: Corpus, tmp_path: Path) -> None:
    """It shifts the lanes' ranges, and that is all."""
    nothing = write_tar(tmp_path / "nothing.tar", [])
    with Job(dataset([*corpus.urls, str(nothing)], epochs=1)) as job:
        packs, _ = job.run_out()
    assert sorted(documents_of(packs)) == sorted(corpus.texts)


@pytest.mark.parametrize(
    ("bad", "documents"),
    [
        ("not UTF-8", 4),
        ("no such field", 0),
        ("no such key", 4),
        ("a bad line", 5),
        ("too long", 4),
        ("longer than a pack", 4),
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_bad_records_can_be_skipped_and_are_counted(tmp_path: Path, bad: str, documents: int, workers: int) -> None:
    build, changes, _, _ = BAD[bad]
    data = dataset([str(build(tmp_path))], **{"num_lanes": 1, "epochs": 1, "on_error": "skip", **changes})
    with Job(data, 1, workers) as job:
        job.run_out()
        stats = job.stats()
    assert (stats["documents"], stats["bad_records"]) == (documents, 5 if documents == 0 else 1)


def test_what_a_transform_raises_is_never_skipped(tmp_path: Path) -> None:
    build, changes, error, _ = BAD["the transform raises"]
    data = dataset([str(build(tmp_path))], **{"num_lanes": 1, "epochs": 1, "on_error": "skip", **changes})
    with Job(data) as job, pytest.raises(error):
        job.run_out()


def test_a_folder_and_a_glob_are_read_in_sorted_order(corpus: Corpus, tmp_path: Path) -> None:
    for path in reversed(corpus.shards):
        shutil.copy(path, tmp_path)
    found = []
    for shards in (f"{tmp_path}/", tmp_path, f"{tmp_path}/*.tar*", sorted(tmp_path.iterdir())):
        data = streampack.PackedDataset(shards, ByteTokenizer(), 32, num_lanes=LANES)
        found.append(packs_of(DataLoader(data, batch_size=6), 4))
    for packs in found:
        np.testing.assert_array_equal(packs, found[0])
    np.testing.assert_array_equal(found[0], expected(corpus, 24, seq_len=32))
