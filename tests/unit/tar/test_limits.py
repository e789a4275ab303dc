"""Untrusted shards: what is absurdly large, long, deep or many is an error in little memory and time."""

import gzip
import itertools
import json
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import zstandard
from support.tars import END, URL, entry, header, pax, read, with_checksum
from support.thorough import THOROUGH, nightly

import streampack
from streampack.documents.fields import parse_field
from streampack.documents.reader import DocumentReader
from streampack.errors import CorruptShardError, DocumentTooLongError, RecordError
from streampack.records import BadRecord, Sample
from streampack.tar.codecs import MAX_CHUNK_BYTES, decompress
from streampack.tar.cuts import find_sample
from streampack.tar.grouping import MAX_MEMBERS
from streampack.tar.reader import read_samples
from streampack.testing import ByteTokenizer

MIB = 2**20


@contextmanager
def at_most(*, mib: float, seconds: float) -> Iterator[None]:
    """What Python allocates inside, at its highest, and the time of this process."""
    began = time.process_time()
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < mib * MIB
    assert time.process_time() - began < seconds


def zeros(count: int) -> Iterator[bytes]:
    """So many MiB, of which one is there at a time."""
    return itertools.repeat(bytes(MIB), count)


# members


def test_a_member_that_is_one_document_is_refused_by_its_header_and_never_held() -> None:
    reader = DocumentReader(field=parse_field("txt"), max_document_bytes=1000)
    chunks = itertools.chain(
        [entry("a.txt", b"1") + header("b.txt", 300 * MIB)], zeros(300), [entry("c.txt", b"3") + END]
    )
    with at_most(mib=3, seconds=20):
        samples = list(read_samples(chunks, url=URL, wanted=reader.field.wanted, max_member_bytes=reader.member_bytes))
    assert [(sample.key, dict(sample.members)) for sample in samples] == [
        ("a", {"txt": b"1"}),
        ("b", {}),
        ("c", {"txt": b"3"}),
    ]
    (bad,) = documents(reader, samples[1])
    assert isinstance(bad, BadRecord)
    assert isinstance(bad.error, DocumentTooLongError)
    assert "member 'b.txt': a document of 314,572,800 bytes, above limits.document_bytes=1,000" in str(bad.error)


def documents(reader: DocumentReader, sample: Sample) -> list[object]:
    return list(reader.read(sample, url=URL, shard_name="s", shard_index=0, epoch=0))


@pytest.mark.parametrize("field", ["json:text", *nightly(["txt", "npy"])])
def test_a_document_too_long_by_its_header_is_a_bad_record_and_the_rest_stays(tmp_path: Path, field: str) -> None:
    def content(number: int) -> bytes:
        text = f"document {number} " * 10
        if field == "npy":
            return npy(np.frombuffer(text.encode(), np.uint8).astype(np.int32))
        return text.encode() if field == "txt" else json.dumps({"text": text}).encode()

    name = field.partition(":")[0]
    large = entry(f"large.{name}", bytes(80 * MIB))
    good = [entry(f"{number:04d}.{name}", content(number)) for number in range(20)]
    for file, parts in {"with": [*good[:7], large, *good[7:]], "without": good}.items():
        (tmp_path / f"{file}.tar").write_bytes(b"".join(parts) + END)

    def packs(file: str, **options: object) -> list[list[int]]:
        dataset = streampack.PackedDataset(
            str(tmp_path / f"{file}.tar"),
            None if field == "npy" else ByteTokenizer(),
            32,
            field=field,
            num_lanes=1,
            epochs=1,
            shuffle=False,  # else the bytes of the large member would change the order
            limits=streampack.Limits(document_bytes=4000),
            **({"add_bos": False, "add_eos": False} if field == "npy" else {}),
            **options,
        )
        return [pack["tokens"].tolist() for pack in dataset]

    assert packs("with", on_error="skip") == packs("without")
    with pytest.raises(DocumentTooLongError, match=f"with.tar, member 'large.{name}"):
        packs("with")


def npy(array: np.ndarray) -> bytes:
    head = f"{{'descr': '{array.dtype.str}', 'fortran_order': False, 'shape': ({len(array)},), }}".encode()
    head = head.ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + array.tobytes()


def test_the_members_of_one_sample_have_a_number_at_most() -> None:
    def members(count: int) -> bytes:
        return b"".join(entry(f"doc.{number}.jpg") for number in range(count))

    (sample, other) = read(members(3 * MAX_MEMBERS) + entry("e.txt") + END)
    assert (len(sample.sizes), len(sample.members), other.key) == (MAX_MEMBERS, MAX_MEMBERS, "e")
    assert f"{MAX_MEMBERS}.jpg" in sample.flaws and len(sample.flaws) == MAX_MEMBERS + 1
    reader = DocumentReader(field=parse_field("txt"))
    data = members(2 * MAX_MEMBERS) + entry("doc.txt", b"1") + END
    (sample,) = read(data, wanted=reader.field.wanted)
    (bad,) = documents(reader, sample)
    assert isinstance(bad, BadRecord)
    assert "'doc.txt': the sample has more than 1024 members; its name goes up to the first dot" in str(bad.error)


def test_the_members_of_one_sample_have_bytes_at_most_and_the_rest_stands_in_sizes() -> None:
    reader = DocumentReader(field=parse_field("txt"), max_document_bytes=1000)
    data = b"".join(entry(f"a.{number}.txt", b"x" * 600) for number in range(1000)) + entry("b.txt", b"2") + END
    a, b = read_samples([data], url=URL, wanted=reader.field.wanted, max_member_bytes=reader.member_bytes)
    assert len(a.sizes) == 1000
    assert list(a.members) == ["0.txt", "1.txt", "2.txt"]
    assert dict(b.members) == {"txt": b"2"}
    exact = entry("c.0.txt", b"x" * 999) + entry("c.1.txt", b"x" * 999) + entry("c.txt", b"y" * 3) + END
    (c,) = read_samples([exact], url=URL, wanted=reader.field.wanted, max_member_bytes=reader.member_bytes)
    (bad,) = documents(reader, c)
    assert isinstance(bad, BadRecord)
    assert "member 'c': more than one member for field='txt': 0.txt, 1.txt, txt; keep one" in str(bad.error)


# headers


@pytest.mark.parametrize(
    "prefix",
    [pax(comment="c"), entry("L", b"n\0", b"L"), *nightly([pax(b"g", comment="c"), entry("K", b"l\0", b"K")])],
)
def test_an_endless_chain_of_prefix_headers_is_an_error_in_little_memory(prefix: bytes) -> None:
    chunk = prefix * (MIB // len(prefix))
    with (
        at_most(mib=4, seconds=5),
        pytest.raises(CorruptShardError, match="the prefix headers of an entry are too large: above 16777216 bytes"),
    ):
        read_all(itertools.chain([entry("a.txt", b"1")], itertools.repeat(chunk)))


def test_an_endless_map_of_holes_is_an_error() -> None:
    def sparse(num_blocks: int) -> Iterator[bytes]:
        first = bytearray(header("hole.txt", 512, b"S", magic=b"ustar  \0"))
        first[482] = 1
        yield with_checksum(first)
        yield from itertools.repeat(bytes(504) + b"\1" + bytes(7), num_blocks - 1)
        yield bytes(512) + bytes(512) + entry("b.txt", b"2") + END

    read_all(sparse(2000))
    with pytest.raises(CorruptShardError, match="'hole.txt', byte 0: the map of a sparse file's holes is too large"):
        read_all(sparse(10**9))


def read_all(chunks: Iterator[bytes]) -> None:
    for _ in read_samples(chunks, url=URL, wanted=lambda _: True, max_member_bytes=MIB):
        pass


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K"])
@pytest.mark.parametrize("size", [2**24, 2**30, 2**33 - 1])
def test_a_prefix_header_of_any_size_is_an_error_before_it_is_read(kind: bytes, size: int) -> None:
    def chunks() -> Iterator[bytes]:
        yield entry("a.txt", b"1") + header("x", size, kind)
        raise AssertionError("nothing behind the header is asked for")

    with pytest.raises(CorruptShardError, match="the prefix headers of an entry are too large: above 16777216 bytes"):
        read_all(chunks())


@pytest.mark.parametrize("form", ["pax", "gnu"])
def test_a_name_longer_than_any_path_is_a_flaw(form: str) -> None:
    def named(name: str) -> bytes:
        prefix = pax(path=name) if form == "pax" else entry("././@LongLink", name.encode() + b"\0", b"L")
        return prefix + entry("short.txt", b"1") + END

    assert [sample.key for sample in read(named("n" * 4092 + ".txt"))] == ["n" * 4092]
    (sample,) = read(named("n" * 4093 + ".txt"))
    assert sample.flaws == {"txt": "a name of 4097 characters, more than 4096"}
    (bad,) = documents(DocumentReader(field=parse_field("txt")), sample)
    assert isinstance(bad, BadRecord)
    assert len(str(bad.error)) < 300


def test_a_search_for_a_sample_ends_whatever_the_headers_around_the_cut_say() -> None:
    """Each of the first third leads to one of the second, and that into the long chain of the third: nowhere."""
    third = 512
    firsts = header("same.txt", (third - 1) * 512) * third
    seconds = b"".join(header("same.txt", (third - number - 1) * 512) for number in range(third))
    data = firsts + seconds + header("same.txt") * third + b"\1" * 512
    data = entry("a.txt", bytes(512)) + entry("big.bin", data * 2) + END
    began = time.process_time()
    with pytest.raises(CorruptShardError, match=r"\d+ headers after the cut at byte 1536 were followed and led nowh"):
        find_sample(lambda offset: iter([data[offset:]]), cut=1536, size=len(data), url=URL)
    assert time.process_time() - began < 10


# compression


def bomb(name: str) -> bytes:
    tar = header("a.txt", 2**32)
    if name == "rle.zst":  # four bytes for 128 KiB each
        return b"\x28\xb5\x2f\xfd\x00\x58" + ((2**17 << 3 | 2).to_bytes(3, "little") + b"\0") * 1000
    compress: Callable[[bytes], bytes] = gzip.compress if name.endswith(".gz") else zstandard.compress
    if name.startswith("many"):
        return compress(tar) + compress(bytes(MIB)) * 200
    return compress(tar + bytes(100 * MIB))


@pytest.mark.parametrize("name", ["one.gz", "many.gz", "one.zst", "many.zst", "rle.zst"])
def test_a_bomb_is_an_error_with_its_place_in_little_memory(name: str) -> None:
    data = bomb(name)
    url = f"s3://b/bomb.tar.{name.rpartition('.')[2]}"
    sizes: list[int] = []
    with (
        at_most(mib=8, seconds=10),
        pytest.raises(CorruptShardError, match=rf"{url}, byte \d+: decompresses to 6[78],.* more than 200 times those"),
    ):
        sizes.extend(map(len, decompress([data], url=url)))
    assert sum(sizes) <= 64 * MIB
    assert max(sizes) <= MAX_CHUNK_BYTES


@pytest.mark.parametrize("kind", ["gz", "zst"])
def test_what_is_small_or_packed_as_text_is_no_bomb(kind: str) -> None:
    compress: Callable[[bytes], bytes] = gzip.compress if kind == "gz" else zstandard.compress
    tight = compress(bytes(60 * MIB))  # a thousandth, but no more than the free bytes
    loose = compress(np.random.default_rng(1).integers(0, 256, 2**21, np.uint8).tobytes() + bytes(70 * MIB))
    for data, size in ((tight, 60 * MIB), (loose, 72 * MIB)):
        assert sum(map(len, decompress([data], url=f"a.tar.{kind}"))) == size


def test_a_zstd_window_above_the_limit_is_an_error_and_not_memory() -> None:
    wide = b"\x28\xb5\x2f\xfd\x00" + bytes([18 << 3]) + b"\x01\x00\x00"  # 256 MiB, then an empty last block
    whole = b"\x28\xb5\x2f\xfd\xe0" + (2**28).to_bytes(8, "little") + b"\x01\x00\x00"
    for data in (wide, whole):
        with pytest.raises(
            CorruptShardError, match=r"byte \d+: the zstd frame needs a window of 268,435,456 bytes, mo"
        ):
            list(decompress([data], url="a.tar.zst"))
    right = b"\x28\xb5\x2f\xfd\x00" + bytes([17 << 3]) + b"\x01\x00\x00"
    assert list(decompress([right], url="a.tar.zst")) == []


@pytest.mark.parametrize("kind", ["gz", "zst"])
def test_a_member_that_is_a_bomb_is_a_bad_record(kind: str) -> None:
    bomb = zstandard.compress(bytes(300 * MIB)) if kind == "zst" else gzip.compress(bytes(300 * MIB), 1)
    reader = DocumentReader(field=parse_field("jsonl:text"))
    sample = Sample("k", 0, {f"jsonl.{kind}": bomb})
    with at_most(mib=300, seconds=10):
        (bad,) = documents(reader, sample)
    assert isinstance(bad, BadRecord)
    assert f"member 'k.jsonl.{kind}': decompresses to " in str(bad.error)
    assert "more than 200 times as many" in str(bad.error)


@pytest.mark.parametrize("kind", ["gz", "zst"])
def test_a_member_of_countless_empty_streams_is_a_bad_record_in_time(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 2**20 if THOROUGH else 2**16
    monkeypatch.setattr("streampack.documents.compression._MAX_STREAMS", most)
    compress: Callable[[bytes], bytes] = gzip.compress if kind == "gz" else zstandard.compress
    reader = DocumentReader(field=parse_field("jsonl:text"))

    def first(count: int) -> object:
        data = compress(b"") * count + compress(b'{"text": "t"}') + bytes(5 if kind == "gz" else 0)
        return documents(reader, Sample("k", 0, {f"jsonl.{kind}": data}))[0]

    began = time.process_time()
    assert not isinstance(first(50_000), BadRecord)
    bad = first(most)
    assert isinstance(bad, BadRecord)
    assert f"more than {most:,} streams in a row" in str(bad.error)
    assert time.process_time() - began < 30 * most / 2**20 + 1


# records


def deep(depth: int) -> str:
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    "record",
    [deep(10**5), f'{{"text": {deep(10**5)}}}', f'{{"beside": {deep(10**5)}, "text": "t"}}', '{"text":' * 10**5],
)
@pytest.mark.parametrize("field", ["json:text", "json:messages", "jsonl:text"])
def test_json_of_any_depth_is_a_bad_record(field: str, record: str) -> None:
    record = record.replace("text", field.partition(":")[2])
    reader = DocumentReader(field=parse_field(field), chat=lambda *_: (np.zeros(0, np.int32), np.zeros(0, bool)))
    (bad,) = documents(reader, Sample("k", 0, {field.partition(":")[0]: record.encode()}))
    assert isinstance(bad, BadRecord)
    assert type(bad.error) is RecordError


def test_of_a_large_record_no_objects_are_made_to_say_what_is_wrong() -> None:
    many = "[" + ",".join(["[]"] * 6 * 10**6) + "]"
    reader = DocumentReader(field=parse_field("json:text"))
    for record, message in (
        (f'{{"beside": {many}}}', "no key 'text'"),
        (f'{{"text": {many}}}', "the value under 'text' is not a string"),
        (f'{{"text": "a", "beside": {many}', "broken JSON"),
    ):
        sample = Sample("k", 0, {"json": record.encode()})
        with at_most(mib=64, seconds=10):
            (bad,) = documents(reader, sample)
        assert isinstance(bad, BadRecord)
        assert message in str(bad.error)


def test_a_conversation_has_json_at_most_of_three_times_a_document() -> None:
    messages = [{"role": "user", "content": "hello", "beside": "x" * 20 * MIB}]
    data = {"json": json.dumps({"messages": messages}).encode()}

    def first(limit: int) -> object:
        reader = DocumentReader(
            field=parse_field("json:messages"),
            max_document_bytes=limit,
            chat=lambda *_: (np.zeros(1, np.int32), np.ones(1, bool)),
        )
        return documents(reader, Sample("k", 0, data))[0]

    assert not isinstance(first(8 * MIB), BadRecord)
    bad = first(6 * MIB)
    assert isinstance(bad, BadRecord)
    assert isinstance(bad.error, DocumentTooLongError)
    assert "a conversation of 20,971,5" in str(bad.error)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ("(" + "9" * 5000 + ",)", "not a .npy array"),
        ("(0x" + "f" * 5000 + ",)", "a size in its shape is absurd"),
        ("(1152921504606846976,)", "a size in its shape is absurd"),
        ("(1152921504606846975,)", "promises 1,152,921,504,606,846,975"),
        ("(4294967296, 4294967296)", "a .npy of int32 [4294967296, 4294967296]"),
        ("(-1,)", "a size in its shape is absurd"),
        ("(" * 3000 + ")" * 3000, "not a .npy array"),
        (" " * 60000 + "(1,)", "not a .npy array"),
    ],
)
def test_a_npy_header_of_any_shape_is_a_bad_record_and_not_memory(shape: str, message: str) -> None:
    head = f"{{'descr': '<i4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    data = b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + bytes(4)
    reader = DocumentReader(field=parse_field("npy"))
    with at_most(mib=16, seconds=5):
        (bad,) = documents(reader, Sample("k", 0, {"npy": data}))
    assert isinstance(bad, BadRecord)
    assert message in str(bad.error)
