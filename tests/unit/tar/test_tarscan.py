"""The common way through a tar: files of the commonest shape go it, and nothing comes out otherwise for it."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from random import Random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.fuzzing import drained
from support.tars import (
    END,
    URL,
    body,
    chunked,
    entry,
    header,
    pax,
    random_members,
    with_checksum,
    write_tar,
    write_webdataset,
)
from support.thorough import some

from streampack.tar.format import Chunks, Kind, read_entry
from streampack.tar.headers import BLOCK
from streampack.tar.reader import read_samples
from streampack.tar.scan import ELSEWHERE, Scanner

TIME = pax(mtime="1700000000.1234567")
COMMON = {
    "ustar": write_tar([(f"{number}/a.txt", b"x" * number) for number in range(0, 2000, 97)], "ustar"),
    "gnu": write_tar([(f"é{number}.txt", b"x" * number) for number in range(0, 2000, 97)], "gnu"),
    "pax": write_tar([(f"{number}.txt", b"x" * number) for number in range(0, 2000, 97)], "pax"),
    "times": write_tar([(f"{number}.txt", b"x" * number) for number in range(999)], "pax", always_prefixed=True),
    "webdataset": write_webdataset({"__key__": f"{number}", "txt": "t" * number, "json": [1]} for number in range(30)),
    "times of many lengths": b"".join(
        pax(mtime="1" * (1 + number % 80)) + entry(f"{number}.txt", b"1" * number) for number in range(200)
    )
    + END,
}


def one_by_one(data: bytes) -> list[tuple[str, int, int]]:
    """Name, offset and size of every file, by `read_entry`."""
    source, found = Chunks([data]), []
    while (one := read_entry(source)).kind in (Kind.FILE, Kind.OTHER):
        if one.kind is Kind.FILE:
            found.append((one.name, one.offset, one.size))
        source.skip_to(one.end)
    assert one.kind is Kind.ZERO_BLOCK
    return found


def at_first_chunk(source: Chunks) -> Chunks:
    """The source with its first chunk at hand, which it is when something of it was asked for."""
    source.skip_to(1)
    source.skip_to(0)
    return source


@pytest.mark.parametrize("form", COMMON)
def test_every_file_of_the_commonest_shape_is_found(form: str) -> None:
    data = COMMON[form]
    source, scanner, files = at_first_chunk(Chunks([data])), Scanner(), []
    while some := scanner.files(source)[0]:
        files += some
    assert [(name, begin, size) for name, begin, size, _ in files] == one_by_one(data)
    assert all(data[at - BLOCK : at].startswith(name.encode()) for name, _, _, at in files)


def altered(at: int, new: bytes, block: bytes | None = None) -> bytes:
    """The header of a file of 9 bytes with other bytes in it, the checksum right."""
    block = header("b.txt", 9) if block is None else block
    return with_checksum(block[:at] + new + block[at + len(new) :])


def of_its_front_only() -> bytes:
    """A header of no plain file whose checksum is that of its first bytes, which is wrong."""
    block = header("b.txt", 0, b"5")
    return block[:148] + b"%06o\0 " % (sum(block[:148]) + 1) + block[156:]


UNCOMMON = {
    "a checksum of a part": of_its_front_only(),
    "a directory": header("b.txt", 0, b"5"),
    "a V7 header": header("b.txt", 9, b"\0", magic=bytes(8)) + body(b"9" * 9),
    "a contiguous file": header("b.txt", 9, b"7") + body(b"9" * 9),
    "a prefix": header("b.txt", 9, prefix=b"long") + body(b"9" * 9),
    "another version": altered(263, b"01") + body(b"9" * 9),
    "a size in base 256": header("b.txt", b"\x80" + (9).to_bytes(11, "big")) + body(b"9" * 9),
    "a size of blanks and a digit": header("b.txt", b"         11\0") + body(b"9" * 9),
    "a size of twelve digits": header("b.txt", b"000000000011") + body(b"9" * 9),
    "no size": header("b.txt", bytes(12)),
    "a short size": header("b.txt", b"0000011\0\0\0\0\0") + body(b"9" * 9),
    "a path": pax(path="c.txt") + entry("b.txt"),
    "a size in PAX": pax(size="9") + header("b.txt") + body(b"9" * 9),
    "a time and a comment": pax(mtime="1.5", comment="c") + entry("b.txt"),
    "padding counted in": entry("x", b"13 mtime=1.5\n\0", b"x") + entry("b.txt"),
    "two PAX headers": TIME + TIME + entry("b.txt"),
    "a global PAX header": pax(b"g", mtime="1.5") + entry("b.txt"),
    "Solaris' PAX header": pax(b"X", mtime="1.5") + entry("b.txt"),
    "a time of a directory": TIME + header("b.txt", 0, b"5"),
    "a time of 100 bytes": pax(mtime="1" * 100) + entry("b.txt"),
    "the end": END,
}


@pytest.mark.parametrize("what", UNCOMMON)
@pytest.mark.parametrize("front", [b"", TIME])
def test_what_is_another_shape_is_left_to_read_entry(what: str, front: bytes) -> None:
    first = front + entry("a.txt", b"1")
    source = at_first_chunk(Chunks([first + UNCOMMON[what] + 3 * entry("c.txt")]))
    files, end = Scanner().files(source)
    assert [name for name, *_ in files] == ["a.txt"]
    assert end == source.offset == len(first)


def test_a_payload_that_goes_on_behind_the_chunk_is_the_last_and_the_source_stands_at_it() -> None:
    first, second = entry("a.txt", b"1"), TIME + entry("b.txt", b"2" * 1000)
    for size in range(len(first) + 1536, len(first + second)):
        source = at_first_chunk(Chunks([(first + second)[:size]]))
        files, end = Scanner().files(source)
        assert files == [("a.txt", 0, 1, 512), ("b.txt", len(first), 1000, ELSEWHERE)]
        assert (end, source.offset) == (len(first + second), len(first) + 1536)


# --- nothing comes out otherwise

PIECES: list[Callable[[str, bytes], bytes]] = [
    entry,
    lambda name, content: TIME + entry(name, content),
    lambda name, content: pax(mtime="1") + entry(name, content),
    lambda name, content: header(name, len(content), magic=b"ustar  \0") + body(content),
    lambda name, content: entry(f"{name[0]}.tar", write_tar([(name, content), ("x.y", b"2")], "pax")),
    lambda name, content: pax(path=f"deep/{name}", mtime="1.5") + entry("short", content),
    lambda name, content: write_tar([("l" * 120 + name, content)], "gnu")[:-10240] or entry(name, content),
    lambda name, content: altered(265, b"user", header(name, len(content))) + body(content),
    *(lambda name, content, piece=piece: piece for piece in UNCOMMON.values()),
]
NAMES = st.sampled_from(
    ["a.txt", "a.json", "a.TXT", "b.txt", "c.npy", "d/e.txt", "__m__/x.y", "caf\xe9.txt", "f", ".g"]
)
SIZES = st.sampled_from([0, 1, 511, 512, 513, 1024, 5000])


@st.composite
def tars(draw: st.DrawFn) -> bytes:
    """Entries of all shapes, most of them common; at times one byte is damaged or the end is cut off."""
    count = draw(st.integers(1, 12))
    data = b""
    for number in range(count):
        make = draw(st.sampled_from(PIECES[:4]) | st.sampled_from(PIECES))
        name = draw(NAMES | st.just(f"{number}.txt"))
        data += make(name, bytes([97 + number]) * draw(SIZES))
    data += draw(st.sampled_from([END, b"", bytes(512), END + b"x"]))
    change = draw(st.sampled_from(["none", "byte", "header", "cut"]))
    at = draw(st.integers(0, max(len(data) - 1, 0)))
    if change == "header":
        at = at // BLOCK * BLOCK + draw(st.sampled_from([0, 99, 100, 124, 134, 135, 148, 153, 154, 155, 156, 257, 345]))
    if change == "cut":
        return data[:at]
    if change != "none" and at < len(data):
        return data[:at] + draw(st.sampled_from([b"\0", b"0", b"8", b" ", b"x", b"\xff"])) + data[at + 1 :]
    return data


def outcome(chunks: Iterable[bytes], *, limit: int, is_whole: bool) -> tuple[object, ...]:
    samples, error = drained(
        read_samples(chunks, url=URL, wanted=lambda name: name != "json", max_member_bytes=limit, whole=is_whole)
    )
    place = None if error is None else (type(error), str(error), error.offset, error.member)
    return [sample._replace(sizes=dict(sample.sizes)) for sample in samples], place


def cut_at(data: bytes, cuts: Iterable[int]) -> Iterator[bytes]:
    for begin, end in itertools.pairwise([0, *sorted(cuts), len(data)]):
        yield data[begin:end]


@given(tars(), st.lists(st.integers(0, 20_000), max_size=3), st.sampled_from([600, 1 << 20]), st.booleans())
@example(COMMON["webdataset"], [5000], 1 << 20, True)
def test_samples_and_errors_are_those_of_read_entry_alone(
    data: bytes, cuts: list[int], limit: int, is_whole: bool
) -> None:
    """With chunks of two blocks no header is looked at but by `read_entry`."""
    expected = outcome(chunked(data, 2 * BLOCK), limit=limit, is_whole=is_whole)
    assert outcome([data], limit=limit, is_whole=is_whole) == expected
    assert outcome(cut_at(data, [min(cut, len(data)) for cut in cuts]), limit=limit, is_whole=is_whole) == expected


@pytest.mark.parametrize("form", ["ustar", "gnu", "pax"])
def test_any_members_in_any_chunks_are_the_same_samples(form: str) -> None:
    data = write_tar(random_members(Random(5), 60, form), form, always_prefixed=True)
    expected = outcome(chunked(data, 2 * BLOCK), limit=1 << 20, is_whole=True)
    for size in (1537, 3000, 4096, 10_000, 50_001, len(data)):
        assert outcome(chunked(data, size), limit=1 << 20, is_whole=True) == expected


def test_every_byte_of_two_common_headers_is_checked_as_read_entry_does() -> None:
    data = entry("a.txt", b"1") + TIME + entry("b.txt", b"2") + TIME + entry("c.txt", b"3") + END
    start = 1024 + 2048  # the second PAX header: by then all is known
    # A third of the pairs has each byte, with one or two of the values.
    for at, new in some([*itertools.product(range(start, start + 1536), (0x00, 0x20, 0x37, 0x39, 0xFF))], 3):
        damaged = data[:at] + bytes([new]) + data[at + 1 :]
        expected = outcome(chunked(damaged, 2 * BLOCK), limit=1 << 20, is_whole=True)
        assert outcome([damaged], limit=1 << 20, is_whole=True) == expected, (at, new)


def test_samples_that_are_complete_come_out_before_the_next_chunk_is_asked_for() -> None:
    first = b"".join(entry(f"{number}.txt", b"x" * 700) for number in range(10))

    def chunks() -> Iterator[bytes]:
        yield first
        raise OSError("the storage is gone")

    reading = read_samples(chunks(), url=URL, wanted=lambda _: True, max_member_bytes=1 << 20)
    assert [next(reading).key for _ in range(9)] == [str(number) for number in range(9)]
    with pytest.raises(OSError, match="the storage is gone"):
        next(reading)
