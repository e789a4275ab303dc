"""What is read from a tar: names, groups and payloads as WebDataset has them, and an error for every damage."""

import gzip
import io
import itertools
import tarfile
from collections.abc import Callable
from random import Random

import pytest
import webdataset
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from support.tars import (
    END,
    FORMATS,
    LIMIT,
    URL,
    Member,
    body,
    entry,
    header,
    pax,
    random_members,
    read,
    with_checksum,
    write_tar,
    write_webdataset,
)
from webdataset.tariterators import base_plus_ext, group_by_keys, tar_file_iterator

from streampack.errors import CorruptShardError, ShardError, TruncatedShardError
from streampack.records import WHOLE_SAMPLE, Sample
from streampack.tar.codecs import decompress
from streampack.tar.format import MAX_PREFIX_BYTES, split_name
from streampack.tar.headers import parse_number
from streampack.tar.reader import read_samples, read_shard

PLAIN: list[Member] = [("a.txt", b"one"), ("a.json", b"{}"), ("b/c.txt", b""), ("b/d.txt", b"x" * 700)]


def read_by_webdataset(data: bytes) -> list[tuple[str, dict[str, bytes]]]:
    files = ({**file, "__url__": URL} for file in tar_file_iterator(io.BytesIO(data)))
    samples = group_by_keys(files)
    return [(s["__key__"], {k: v for k, v in s.items() if not k.startswith("__")}) for s in samples]


def contents(samples: list[Sample]) -> list[tuple[str, dict[str, bytes]]]:
    return [(sample.key, sample.members) for sample in samples]


# --- as WebDataset reads it


def test_members_are_grouped_by_key() -> None:
    samples = read(write_tar(PLAIN))
    assert contents(samples) == [
        ("a", {"txt": b"one", "json": b"{}"}),
        ("b/c", {"txt": b""}),
        ("b/d", {"txt": b"x" * 700}),
    ]
    assert [sample.sizes for sample in samples] == [{"txt": 3, "json": 2}, {"txt": 0}, {"txt": 700}]
    assert [sample.position for sample in samples] == [0, 2048, 2560]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("seed", range(8))
def test_shards_of_tarfile_read_as_webdataset_reads_them(form: str, seed: int) -> None:
    data = write_tar(random_members(Random(seed), 40, form), form, always_prefixed=seed % 2 == 0)
    samples = read(data)
    assert contents(samples) == read_by_webdataset(data)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        offsets = {info.offset for info in tar}
    assert {sample.position for sample in samples} <= offsets  # tarfile counts prefix headers in, too


@pytest.mark.parametrize("form", [None, *FORMATS])
def test_shards_of_webdatasets_shard_writer_read_as_webdataset_reads_them(
    form: str | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    random = Random(7)
    options = {} if form is None else {"format": f"{form.upper()}_FORMAT"}
    with webdataset.ShardWriter(f"{folder}/%06d.tar", maxcount=30, verbose=0, **options) as writer:
        for index in range(70):
            long = "n" * 90 + "/" if form != "ustar" or index % 2 else ""
            text = random.randbytes(random.randrange(300)).hex()
            writer.write({"__key__": f"{long}é{index:05d}", "txt": text, "json": {"n": index}, "Cls": b"7"})
    shards = sorted(folder.iterdir())
    assert len(shards) == 3
    for shard in shards:
        samples = read(shard.read_bytes())
        assert contents(samples) == read_by_webdataset(shard.read_bytes())
        assert {frozenset(sample.members) for sample in samples} == {frozenset({"txt", "json", "cls"})}


def test_names_split_as_webdatasets_do() -> None:
    for length in range(7):
        for letters in itertools.product("a./_", repeat=length):
            for front in ("", "__", "__a__/"):
                name = front + "".join(letters)
                key, extension = base_plus_ext(name)
                is_hidden = name.rpartition("/")[2].startswith(".")  # which webdataset takes for a member of its folder
                skipped = key is None or is_hidden or name.partition("/")[0] in meta_names(name)
                assert split_name(name) == (None if skipped else (key, extension.lower())), name


def meta_names(name: str) -> set[str]:
    top = name.partition("/")[0]
    return {top} if len(top) >= 4 and top[:2] == top[-2:] == "__" else set()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("__meta__/a.txt", None),  # webdataset skips what is in folders of this form
        ("__a.b__", None),  # and such files
        ("__meta__.json", ("__meta__", "json")),  # but not this one
        ("a/__b__/c.txt", ("a/__b__/c", "txt")),
        ("v1.0/a.TXT.gz", ("v1.0/a", "txt.gz")),
        ("./a.txt", ("./a", "txt")),
        ("a.", ("a", "")),
    ],
)
def test_a_name_gives_key_and_extension(name: str, expected: tuple[str, str] | None) -> None:
    assert split_name(name) == expected
    data = write_tar([(name, b"1")])
    assert (
        contents(read(data))
        == read_by_webdataset(data)
        == ([] if expected is None else [(expected[0], {expected[1]: b"1"})])
    )


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("chunk", [1, 3, 511, 512, 513, 1000, 1 << 20])
def test_how_the_bytes_are_chunked_makes_no_difference(form: str, chunk: int) -> None:
    data = write_tar(random_members(Random(3), 12, form), form)
    assert read(data, chunk=chunk) == read(data)
    assert read(data, chunk=chunk, wanted=lambda _: False) == read(data, wanted=lambda _: False)


def test_a_key_that_comes_back_later_is_another_sample() -> None:
    samples = read(write_tar([("a.txt", b"1"), ("b.txt", b"2"), ("a.txt", b"3")]))
    assert [sample.key for sample in samples] == ["a", "b", "a"]


def test_what_has_no_key_does_not_part_a_sample() -> None:
    samples = read(write_tar([("a.txt", b"1"), ("folder", None), ("README", b"2"), ("a.json", b"3")]))
    assert contents(samples) == [("a", {"txt": b"1", "json": b"3"})]


# --- what is passed over


def test_members_that_are_not_wanted_stand_in_sizes_only() -> None:
    samples = read(write_tar(PLAIN), wanted=lambda extension: extension == "json")
    assert contents(samples) == [("a", {"json": b"{}"}), ("b/c", {}), ("b/d", {})]
    assert [sample.sizes for sample in samples] == [{"txt": 3, "json": 2}, {"txt": 0}, {"txt": 700}]


def test_a_member_above_the_limit_stands_in_sizes_only() -> None:
    data = write_tar([("a.txt", b"x" * 101), ("b.txt", b"x" * 100)])
    samples = list(read_samples([data], url=URL, wanted=lambda _: True, max_member_bytes=100))
    assert [(set(sample.members), sample.sizes) for sample in samples] == [
        (set(), {"txt": 101}),
        ({"txt"}, {"txt": 100}),
    ]


def test_positions_in_a_plain_tar_count_from_its_beginning_wherever_reading_begins() -> None:
    data = write_tar(PLAIN)
    rest = read_samples([data[2048:]], url=URL, wanted=lambda _: True, max_member_bytes=LIMIT, start=2048)
    assert list(rest) == read(data)[1:]


@pytest.mark.parametrize(
    ("url", "pack"), [("a.tar", bytes), ("a.tar.gz", gzip.compress), ("a.tar.zst", zstandard.compress)]
)
def test_a_position_is_an_offset_in_a_plain_tar_and_an_ordinal_in_a_compressed_one(
    url: str, pack: Callable[[bytes], bytes]
) -> None:
    data = write_tar(PLAIN)
    plain = read(data)
    found = list(read_shard([pack(data)], url=url, wanted=lambda _: True, max_member_bytes=LIMIT))
    assert [sample.position for sample in found] == ([0, 2048, 2560] if url == "a.tar" else [0, 1, 2])
    assert [sample._replace(position=0) for sample in found] == [sample._replace(position=0) for sample in plain]


@pytest.mark.parametrize("name", ["._a.txt", "d/._a.txt", "d/.txt", "./.a.txt", "d.e/.hidden", "d/.a.b.txt"])
def test_a_file_whose_name_begins_with_a_dot_is_no_member_at_any_depth(name: str) -> None:
    """AppleDouble files, which macOS puts beside each file with attributes, are the most frequent ones."""
    data = write_tar([("d/a.txt", b"1"), (name, b"\0\5\x16\7"), ("d/a.json", b"{}"), (".git/c.txt", b"2")])
    assert contents(read(data)) == [("d/a", {"txt": b"1", "json": b"{}"}), (".git/c", {"txt": b"2"})]


@pytest.mark.parametrize("kind", [b"5", b"D", b"V", b"A"])
def test_directories_and_labels_are_no_members(kind: bytes) -> None:
    data = entry("a.txt", b"1") + entry("b.txt", b"" if kind == b"5" else b"x" * 600, kind) + entry("c.txt", b"2") + END
    assert contents(read(data)) == [("a", {"txt": b"1"}), ("c", {"txt": b"2"})] == read_by_webdataset(data)


# --- what cannot be read of a good archive


@pytest.mark.parametrize(
    ("kind", "flaw"),
    [
        (b"1", "a hard link to 'there.txt', without bytes of its own"),
        (b"2", "a symbolic link to 'there.txt', without bytes of its own"),
        (b"3", "a device and not a file"),
        (b"4", "a device and not a file"),
        (b"6", "a pipe and not a file"),
        (b"M", "the rest of a file that begins in another volume"),
        (b"Q", "of the unknown kind 'Q'"),
        (b"\xff", "of the unknown kind 'ÿ'"),
    ],
)
def test_what_stands_in_the_place_of_a_file_is_a_flaw_of_its_sample(kind: bytes, flaw: str) -> None:
    """Whatever size a link says it has, it has no payload."""
    block = bytearray(header("b.txt", 5000 if kind in b"12346" else 600, kind))
    block[157:166] = b"there.txt"
    data = entry("a.txt", b"1") + with_checksum(block) + (b"" if kind in b"12346" else body(b"x" * 600))
    data += entry("b.json", b"{}") + entry("c.txt", b"2") + END
    a, b, c = read(data)
    assert contents([a, c]) == [("a", {"txt": b"1"}), ("c", {"txt": b"2"})]
    assert (b.key, b.members, list(b.flaws), b.flaws["txt"].startswith(flaw)) == ("b", {"json": b"{}"}, ["txt"], True)
    assert not read(data, wanted=lambda extension: extension == "json")[1].flaws, "only where it is wanted"


def in_full(data: bytes, *, limit: int = LIMIT) -> list[Sample]:
    """As a shard is read where any range of it can be asked for."""
    return list(
        read_samples(
            [data],
            url=URL,
            wanted=lambda _: True,
            max_member_bytes=limit,
            open_range=lambda begin, end: iter([data[begin:end]]),
        )
    )


def hard_link(name: str, target: str) -> bytes:
    block = bytearray(header(name, 0, b"1"))
    block[157 : 157 + len(target)] = target.encode()
    return with_checksum(block)


def test_a_hard_link_gives_the_content_of_the_file_that_it_means() -> None:
    deep = "d" * 150 + "/a.txt"
    data = entry("a.txt", b"old") + entry("b.txt", b"other") + entry("x/a.txt", b"x" * 700) + entry("a.txt", b"new")
    data += pax(path=deep, mtime="1.5") + entry("short", b"deep") + hard_link("c.txt", "a.txt")
    data += hard_link("d.txt", "c.txt") + pax(linkpath=deep) + hard_link("e.txt", "short")
    data += entry("././@LongLink", deep.encode(), b"K") + hard_link("f.txt", "short") + hard_link("g.txt", "x/a.txt")
    data += hard_link("h.txt", "z.txt") + hard_link("i.txt", "README") + entry("z.txt", b"later") + END
    found = {sample.key: sample for sample in in_full(data)}
    assert {key: found[key].members.get("txt") for key in "cdefghi"} == {
        "c": b"new",
        "d": b"new",
        "e": b"deep",
        "f": b"deep",
        "g": b"x" * 700,
        "h": None,
        "i": None,
    }
    assert found["g"].sizes == {"txt": 700}
    assert "a hard link to 'z.txt'" in found["h"].flaws["txt"], "which comes after it"
    assert "txt" in {sample.key: sample for sample in in_full(data, limit=699)}["g"].flaws
    second = hard_link("j.txt", "b.txt") + END
    assert in_full(data + second)[-1].flaws, "in another archive"


LONG = "n" * 5000


@pytest.mark.parametrize(
    ("second", "key", "flaw"),
    [
        (entry("b.txt") + entry("b.TXT", b"again"), "b", "the sample has two members with this extension"),
        (entry("b.txt") * 3, "b", "the sample has two members with this extension"),
        (pax(path=f"{LONG}.txt") + entry("b.txt", b"x"), LONG, "a name of 5004 characters, more than 4096"),
        (pax(path="") + entry("b.txt", b"x"), "", "a PAX header gives an empty name; in the header it is 'b.txt'"),
        (pax(path="/") + entry("b.txt", b"x"), "", "a PAX header gives an empty name"),
        (entry("L", b"\0", b"L") + entry("b.txt", b"x"), "", "a file without a name"),
        (entry("", b"x"), "", "a file without a name"),
        (entry("", b""), "", "a file without a name"),
        (entry("b.txt/", b"x"), "b.txt/", "a file without a name"),
        (entry("x", b"19 path=b.txt\n", b"x") + entry("b.txt"), "", "a PAX header holds a broken record: b'19 path="),
        (entry("x", b"0 path=b.txt\n", b"x") + entry("b.txt"), "", "a PAX header holds a broken record"),
        (entry("x", b"path=b.txt\n", b"x") + entry("b.txt"), "", "a PAX header holds a broken record"),
        (entry("x", b"8 =b.tx\n", b"x") + entry("b.txt"), "", "a PAX header holds a broken record"),
        (entry("x", b"9 comment\n", b"x") + entry("b.txt"), "", "a PAX header holds a broken record"),
        (pax(comment="c" * MAX_PREFIX_BYTES) + entry("b.txt"), "", "its prefix headers are too large to be read"),
        (pax(comment="c" * 30000) * 3 + entry("b.txt"), "", "its prefix headers are too large to be read"),
        (pax(path="b.txt") + pax(b"g", comment="c" * 70000) + entry("b"), "", "its prefix headers are too large"),
    ],
)
@pytest.mark.parametrize("chunk", [700, 1 << 20])
def test_one_bad_name_or_too_much_metadata_costs_its_own_sample_only(
    second: bytes, key: str, flaw: str, chunk: int
) -> None:
    a, b, c = read(entry("a.txt", b"1") + second + entry("c.txt", b"2") + END, chunk=chunk)
    assert contents([a, c]) == [("a", {"txt": b"1"}), ("c", {"txt": b"2"})]
    assert (b.key, b.members, b.position) == (key, {}, 1024)
    assert list(b.flaws) == (["txt"] if key in ("b", LONG) else [WHOLE_SAMPLE])
    assert [each.startswith(flaw) for each in b.flaws.values()] == [True]


def test_what_is_no_member_of_the_field_may_be_there_twice_or_be_a_link() -> None:
    data = entry("a.txt", b"1") + entry("a.jpg", b"2") + entry("a.JPG", b"3") + header("a.png", 0, b"2") + END
    (sample,) = read(data, wanted=lambda extension: extension == "txt")
    assert (sample.members, sample.flaws) == ({"txt": b"1"}, {})
    assert entry("d.d/", b"") and contents(read(entry("d.d/", b"") + data[:1024] + END)) == [("a", {"txt": b"1"})]


# --- archives that were joined


def damaged(entry: bytes) -> bytes:
    """The entry with a size in its header that is no number."""
    return entry[:124] + b"?" + entry[125:]


def archive(*names: str, zeros: int = 1024) -> bytes:
    return b"".join(entry(name, name.encode()) for name in names) + bytes(zeros)


@pytest.mark.parametrize("zeros", [1024, 1536, 10_240, 1 << 17])
@pytest.mark.parametrize("chunk", [512, 700, 1000, 1 << 20])
def test_joined_archives_are_read_to_the_last_and_each_seam_is_a_sample_that_is_bad(zeros: int, chunk: int) -> None:
    parts = [archive("a.txt", "b.txt", zeros=zeros), archive("b.txt", zeros=zeros), archive("c.txt", "d.txt")]
    data = b"".join(parts)
    samples = read(data, chunk=chunk)
    assert [sample.key for sample in samples] == ["a", "b", "", "b", "", "c", "d"]
    seams = [sample for sample in samples if not sample.key]
    assert [sample.position for sample in seams] == [2048, len(parts[0]) + 1024]
    assert all("two archives in one file" in sample.flaws[WHOLE_SAMPLE] for sample in seams)
    for index, sample in enumerate(samples):  # also from a seam on
        rest = read_samples(
            [data[sample.position :]], url=URL, wanted=lambda _: True, max_member_bytes=LIMIT, start=sample.position
        )
        assert list(rest) == samples[index:]


@pytest.mark.parametrize(
    ("url", "pack"), [("a.tar.gz", gzip.compress), ("a.tar.zst", zstandard.compress)]
)
def test_compressed_archives_that_were_joined_are_read_alike(url: str, pack: Callable[[bytes], bytes]) -> None:
    parts = [archive("a.txt"), archive("b.txt"), archive("c.txt")]
    stored = b"".join(map(pack, parts))
    found = list(read_shard([stored], url=url, wanted=lambda _: True, max_member_bytes=LIMIT))
    assert [(sample.key, sample.position) for sample in found] == [("a", 0), ("", 1), ("b", 2), ("", 3), ("c", 4)]


@pytest.mark.parametrize(
    ("after", "message"),
    [
        (bytes(512) + entry("b.txt") + END, "there are other bytes after the end of the archive"),
        (bytes(1024) + b"rubbish" + END, "there are other bytes after the end of the archive"),
        (bytes(1024) + damaged(entry("b.txt")) + END, "two archives in one file, and the first header of the second"),
        (bytes(1024) + entry("b.txt", b"2"), "the bytes end before the archive does"),
    ],
)
def test_other_bytes_after_an_archive_are_an_error(after: bytes, message: str) -> None:
    """One block of zeros is no end that a writer makes: it may be a header that was lost, and with it a member of a."""
    reading = read_samples(
        [entry("a.txt", b"1") + after], url=URL, wanted=lambda _: True, max_member_bytes=LIMIT
    )
    found = []
    with pytest.raises(ShardError, match=message):
        found.extend(reading)
    assert [sample.key for sample in found if sample.key] == (["a"] if after.startswith(bytes(1024)) else [])


def test_a_sparse_file_is_a_flaw_and_stands_in_sizes() -> None:
    """Its stored bytes are not its content. GNU's old form has blocks with more of the map before the payload."""
    sparse = bytearray(header("b.txt", 600, b"S", magic=b"ustar  \0"))
    sparse[482] = 1
    more = bytearray(512)
    more[504] = 1
    old = with_checksum(sparse) + more + bytes(b"m" * 504 + bytes(8)) + body(b"p" * 600)
    new = pax(GNU_sparse_major="1", GNU_sparse_minor="0", GNU_sparse_name="c.txt") + entry(
        "GNUSparseFile.0/c.txt", b"q" * 9
    )
    samples = read(entry("a.txt", b"1") + old + new + entry("d.txt", b"2") + END)
    assert contents(samples) == [("a", {"txt": b"1"}), ("b", {}), ("c", {}), ("d", {"txt": b"2"})]
    assert [sample.sizes for sample in samples[1:3]] == [{"txt": 600}, {"txt": 9}]
    assert ["a sparse file" in sample.flaws.get("txt", "") for sample in samples] == [False, True, True, False]


# --- the forms of a header


def test_v7_headers_have_no_magic_and_mark_directories_by_a_slash() -> None:
    old = header("a.txt", 3, b"\0", magic=bytes(8)) + body(b"one") + header("d.d/", 900, b"\0", magic=bytes(8))
    assert contents(read(old + entry("b.txt", b"2", b"7") + END)) == [("a", {"txt": b"one"}), ("b", {"txt": b"2"})]


def test_the_ustar_prefix_is_the_front_of_a_name() -> None:
    data = (
        header("c.txt", 0, prefix=b"long/folder") + header("d.txt", 0, magic=b"ustar  \0", prefix=b"12345670123") + END
    )
    assert [sample.key for sample in read(data)] == ["long/folder/c", "d"]  # GNU keeps times there


def test_names_that_are_not_utf8_are_kept() -> None:
    data = header(b"caf\xe9.txt") + END
    assert [sample.key for sample in read(data)] == ["caf\udce9"] == [key for key, _ in read_by_webdataset(data)]


@pytest.mark.parametrize(
    "prefix",
    [
        pax(path="new.name/b.txt"),
        pax(b"X", path="new.name/b.txt"),
        pax(path="new.name/b.txt/", comment="ignored", mtime="1.5"),
        entry("PaxHeader", b"23 path=new.name/b.txt\n" + bytes(9), b"x"),  # padding counted in
        entry("././@LongLink", b"new.name/b.txt\0", b"L"),
        entry("././@LongLink", b"a link's target\0", b"K") + entry("././@LongLink", b"new.name/b.txt\0", b"L"),
        pax(path="new.name/b.txt") + entry("././@LongLink", b"loses.txt\0", b"L") + pax(path="loses.too"),
        pax(b"g", comment="of all") + pax(path="new.name/b.txt"),
        pax(path="new.name/b.txt") + pax(b"g", comment="of all"),
    ],
)
def test_prefix_headers_name_the_next_entry_and_belong_to_it(prefix: bytes) -> None:
    data = entry("a.txt", b"1") + prefix + entry("short.txt", b"2") + entry("c.txt", b"3") + END
    samples = read(data)
    assert contents(samples) == [("a", {"txt": b"1"}), ("new.name/b", {"txt": b"2"}), ("c", {"txt": b"3"})]
    assert contents(samples) == read_by_webdataset(data)
    assert [sample.position for sample in samples] == [0, 1024, 1024 + len(prefix) + 1024]


def test_a_size_may_stand_in_a_pax_header_or_in_base_256() -> None:
    large = (700).to_bytes(12, "big")
    data = pax(size="700") + header("a.txt", 0) + body(b"x" * 700)
    data += header("b.txt", b"\x80" + large[1:]) + body(b"y" * 700) + END
    assert contents(read(data)) == [("a", {"txt": b"x" * 700}), ("b", {"txt": b"y" * 700})]


@pytest.mark.parametrize("chunk", [512, 1 << 20])
def test_a_number_may_fill_its_field_however_the_bytes_are_chunked(chunk: int) -> None:
    data = header("a.txt", b"000000001274") + body(b"x" * 700) + entry("b.txt", b"2") + END
    assert contents(read(data, chunk=chunk)) == [("a", {"txt": b"x" * 700}), ("b", {"txt": b"2"})]
    block = bytearray(header("a.txt", 1))
    block[154] = 5
    with pytest.raises(CorruptShardError, match=r"a number in a header is not octal: b'00\d+\\x05 '"):
        read(entry("0.txt") + bytes(block) + body(b"1") + END, chunk=chunk)


@given(st.integers(-(2**60), 2**60))
def test_base_256_numbers_are_what_tarfile_writes(number: int) -> None:
    assert parse_number(tarfile.itn(number, 12, tarfile.GNU_FORMAT)) == number


def test_a_checksum_over_signed_bytes_is_right_too() -> None:
    block = bytearray(header(b"\xe9\xe8.txt"))
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + sum(block[156:]) + 256 - 2 * 256)
    assert [sample.key for sample in read(bytes(block) + END)] == ["\udce9\udce8"]


# --- damage


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (b"\1" + entry("b.txt")[1:], r"a header's checksum is wrong: it says \d+, its bytes give \d+.*"),
        (b"no header".ljust(512, b"."), r"a number in a header is not octal: b'\.+'.*"),
        (header("b.txt", b"00000000009\0"), r"a number in a header is not octal: b'00000000009.*"),
        (header("b.txt", b"+0000000001\0"), r"a number in a header is not octal: b'\+0.*"),
        (header("b.txt", b"\xff" * 11 + b"\xfe"), r"a header gives an absurd size: -2 bytes.*"),
        (header("b.txt", b"\x80\1" + bytes(10)), r"a header gives an absurd size: \d{25} bytes.*"),
        (pax(size="9" * 19), r"a PAX header gives an absurd size: b'9+'.*"),
        (pax(size="-1"), r"a PAX header gives an absurd size: b'-1'.*"),
        (pax(b"g", path="all.txt"), r"a global PAX header gives one path or size to all entries.*"),
        (header("L", 1 << 40, b"L"), r"the prefix headers of an entry are too large: above 16777216 bytes.*"),
        (pax(path="b.txt") + END, r"the archive ends between a prefix header and the entry that it describes.*"),
    ],
)
def test_damage_is_an_error_that_names_the_place(second: bytes, message: str) -> None:
    reading = read_samples(
        [entry("a.txt", b"1") + second + END], url=URL, wanted=lambda _: True, max_member_bytes=LIMIT
    )
    with pytest.raises(CorruptShardError, match=rf"^{URL}.*byte \d+: {message}") as caught:
        list(reading)
    assert caught.value.offset is not None
    assert caught.value.offset >= 1024


def test_every_byte_of_a_header_is_covered_by_its_checksum() -> None:
    first, second = entry("a.txt", b"1"), entry("b.txt", b"2")
    for position in range(512):
        if position not in range(148, 156):  # the checksum itself may be written in several ways
            flipped = bytearray(second)
            flipped[position] ^= 0x10
            with pytest.raises(CorruptShardError):
                read(first + flipped + END)


def test_other_bytes_after_the_end_are_an_error() -> None:
    data = write_tar(PLAIN)
    with pytest.raises(
        CorruptShardError, match=rf"byte {len(data) + 3}: there are other bytes after the end of the archive"
    ):
        read(data + b"\0\0\0x")


def test_one_zero_block_is_an_end_and_any_number_more() -> None:
    data = entry("a.txt", b"1")
    for num_zeros in (512, 513, 1024, 10240, 1 << 17):
        assert contents(read(data + bytes(num_zeros), chunk=1000)) == [("a", {"txt": b"1"})]


def test_an_archive_without_members_yields_nothing() -> None:
    assert read(write_tar([])) == read(bytes(512)) == read(write_tar([("folder", None)])) == []
    assert read(pax(b"g", comment="git archive of nothing") + END) == []


def test_a_shard_of_no_bytes_is_an_error() -> None:
    with pytest.raises(TruncatedShardError, match=rf"^{URL}, byte 0: empty shard: it has 0 bytes"):
        read(b"")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x1f\x8b" + bytes(600), "which is gzip data: name it .tar.gz"),
        (b"\x1f\x8b\x08 short", "which is gzip data: name it .tar.gz"),
        (b"\x28\xb5\x2f\xfd" + bytes(600), "which is zstd data: name it .tar.zst"),
        (b"PK\x03\x04" + bytes(600), "which is a zip archive: write it again as a tar"),
        (b"<?xml version='1.0'?><Error><Code>SlowDown", "which is HTML or XML, perhaps a message of the storage"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "which is a Git LFS pointer"),
        (b"PAR1" + bytes(600), "which is a Parquet file"),
        (b'{"text": "JSON lines"}\n' * 50, r"it begins with b'{\"text\": \"JSON l'"),
    ],
)
def test_what_is_no_tar_at_all_is_named(data: bytes, message: str) -> None:
    with pytest.raises(CorruptShardError, match=r"byte 0: not a tar archive: it begins with") as caught:
        read(data)
    assert message.replace("\\", "") in str(caught.value)


@pytest.mark.parametrize("suffix", [".tar.gz", ".tgz", ".tar.zst"])
def test_what_is_no_compressed_tar_at_all_is_named(suffix: str) -> None:
    data = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    with pytest.raises(CorruptShardError, match=r"byte 0: no .* begins here, but b'vers': a Git LFS pointer"):
        list(decompress([data], url=f"a{suffix}"))


@given(st.binary(min_size=1, max_size=2000), st.integers(1, 700))
def test_no_bytes_whatever_lead_to_anything_but_samples_or_a_shard_error(data: bytes, chunk: int) -> None:
    for front in (b"", entry("a.txt", b"1"), pax(path="b.txt"), header("c", 100, b"x"), header("d", 9, b"S")):
        try:
            samples = read(front + data, chunk=chunk)
        except ShardError:
            continue
        assert not data.strip(b"\0") or samples


def test_a_range_that_ends_between_samples_is_read_to_its_end() -> None:
    data = write_tar(PLAIN)
    front = read_samples([data[:2048]], url=URL, wanted=lambda _: True, max_member_bytes=LIMIT, whole=False)
    assert list(front) == read(data)[:1]


def test_a_range_that_ends_behind_a_prefix_header_is_an_error() -> None:
    front = entry("a.txt", b"1") + pax(path="b.txt")
    with pytest.raises(CorruptShardError, match="byte 2048: the bytes end inside a header"):
        list(read_samples([front], url=URL, wanted=lambda _: True, max_member_bytes=LIMIT, whole=False))


@pytest.mark.parametrize("end", [1, 512, 600, 2048 + 300, len(write_tar(PLAIN))])
def test_a_range_that_ends_elsewhere_is_an_error_with_the_remedy(end: int) -> None:
    reading = read_samples(
        [write_tar(PLAIN)[:end]], url=URL, wanted=lambda _: True, max_member_bytes=LIMIT, whole=False
    )
    with pytest.raises(
        CorruptShardError, match='tar inside the tar .* list the shard with "whole": true in a manifest'
    ):
        list(reading)


def test_webdatasets_tar_writer_is_read() -> None:
    samples = read(write_webdataset([{"__key__": "s/1", "txt": "é", "json": {"a": 1}}, {"__key__": "s/2", "txt": ""}]))
    assert contents(samples) == [("s/1", {"json": b'{"a": 1}', "txt": "é".encode()}), ("s/2", {"txt": b""})]
