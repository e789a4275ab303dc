"""A plain tar cut anywhere into ranges: every sample in exactly one of them, or an error; nothing in between."""

import io
import tarfile
import tracemalloc
from collections.abc import Iterable
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tars import (
    END,
    FORMATS,
    LIMIT,
    URL,
    Member,
    Shard,
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
from support.thorough import THOROUGH

from streampack.errors import CorruptShardError, ShardError, TruncatedShardError, WrongCutError
from streampack.records import WHOLE_SAMPLE, Sample
from streampack.tar.cuts import Boundary, boundary_in, find_sample, first_boundary
from streampack.tar.format import Part
from streampack.tar.reader import read_range


class InMemory:
    """`Held`, of some of a shard's bytes."""

    def __init__(self, data: bytes, start: int, stop: int) -> None:
        self._data, self._start = data[start:stop], start

    def at_hand(self) -> tuple[bytes, int]:
        return self._data, self._start

    def part(self, start: int, stop: int) -> Part | None:
        start, stop = start - self._start, stop - self._start
        return Part(self._data, start, stop) if 0 <= start <= stop <= len(self._data) else None


def range_of(
    shard: Shard | bytes, begin: int, end: int, *, resume: int | None = None, held: InMemory | None = None
) -> list[Sample]:
    shard = Shard(shard) if isinstance(shard, bytes) else shard
    return list(
        read_range(
            shard.open_range,
            shard.open_at,
            begin=begin,
            end=end,
            size=len(shard.data),
            url=URL,
            wanted=lambda _: True,
            max_member_bytes=LIMIT,
            resume=resume,
            held=held,
        )
    )


def in_ranges(data: bytes, cuts: Iterable[int]) -> list[Sample]:
    """The samples of all ranges between the cuts, one after the other."""
    ends = [0, *sorted(cuts), len(data)]
    return [sample for begin, end in pairwise(ends) for sample in range_of(data, begin, end)]


def boundary(data: bytes, cut: int, *, chunk: int = 1 << 16) -> Boundary:
    return find_sample(Shard(data, chunk).open_at, cut=cut, size=len(data), url=URL)


def webdataset_tar(seed: int, form: str | None = None) -> bytes:
    random = Random(seed)
    return write_webdataset(
        [
            {"__key__": f"{index:06d}", "txt": "x" * random.randrange(2000), "json": {"n": index}}
            for index in range(random.randrange(1, 20))
        ],
        form=form,
    )


def tar_of(seed: int) -> bytes:
    """One of many shapes of tar."""
    shape = seed % 8
    if shape >= 6:
        return webdataset_tar(seed, "pax" if shape == 7 else None)
    form = ["ustar", "gnu", "pax"][shape % 3]
    members = random_members(Random(seed), Random(seed).randrange(12), form)
    return write_tar(members, form, always_prefixed=shape >= 3)


@pytest.mark.parametrize("seed", range(8))
def test_a_cut_at_any_byte_parts_a_tar_between_two_samples(seed: int) -> None:
    data = tar_of(seed + 8)
    samples = read(data)
    offsets = {0: None} | {sample.position: sample.key for sample in samples}
    before = 0
    for cut in [*range(0, len(data), 97), *range(500, 530), *range(len(data) - 1100, len(data) + 2)]:
        right = boundary(data, cut)
        assert right.offset == len(data) or offsets[right.offset] == right.key or cut == 0
        assert right.offset >= cut or cut > len(data)
    for cut in range(0, len(data) + 1, 64):
        offset = boundary(data, cut).offset
        assert offset >= before, "boundaries are in the order of their cuts"
        before = offset


@pytest.mark.parametrize("seed", range(16))
def test_the_boundary_in_bytes_at_hand_is_the_one_that_a_search_finds(seed: int) -> None:
    data = tar_of(seed)
    data += write_tar([("in.bin", data + b"ustar" * 300)], "ustar")  # a tar inside the tar, magics without a header
    random = Random(seed)
    found = 0
    for cut in [*range(0, len(data), 353), len(data)]:
        start = max(cut - random.choice([0, 1, 700]), 0)
        held = data[start : cut + random.choice([0, 600, 3000, 5000, len(data)])]
        known = boundary_in(held, start=start, begin=cut, size=len(data))
        if known is not None:
            found += 1
            assert known == boundary(data, cut), cut
    assert found or seed % 8 < 6


@given(st.integers(0, 10**6), st.lists(st.floats(0, 1), max_size=12))
@settings(max_examples=150)
def test_the_ranges_between_any_cuts_hold_every_sample_once_and_in_order(seed: int, shares: list[float]) -> None:
    data = tar_of(seed)
    assert in_ranges(data, [int(share * len(data)) for share in shares]) == read(data)


@given(st.integers(0, 10**6), st.lists(st.floats(0, 1), max_size=6), st.integers(0, 6000))
@settings(max_examples=100)
def test_ranges_whose_bytes_are_in_memory_hold_the_same_samples(seed: int, shares: list[float], after: int) -> None:
    data = tar_of(seed)
    ends = [0, *sorted(int(share * len(data)) for share in shares), len(data)]
    for begin, end in pairwise(ends):
        held = InMemory(data, begin, min(end + after, len(data)))
        assert range_of(data, begin, end, held=held) == range_of(data, begin, end)


def test_a_range_in_memory_that_leads_past_the_next_one_is_a_wrong_cut() -> None:
    inner = write_tar([(f"{number}.txt", b"x" * 700) for number in range(9)], "ustar")
    data = write_tar([("a.txt", b"1"), ("b.tar", inner), ("c.txt", b"3")], "ustar")
    with pytest.raises(WrongCutError, match="end inside a member"):
        range_of(data, 0, 4096, held=InMemory(data, 0, len(data)))


@pytest.mark.parametrize("seed", range(8))
def test_many_lanes_share_a_tar_evenly_and_completely(seed: int) -> None:
    data = tar_of(seed)
    for num_lanes in (2, 3, 7, 24, 200):
        assert in_ranges(data, [lane * len(data) // num_lanes for lane in range(1, num_lanes)]) == read(
            data
        )


@pytest.mark.parametrize("form", FORMATS)
def test_cuts_beside_every_block_lose_nothing(form: str) -> None:
    """Inside headers, prefix headers, payloads, padding and the zeros at the end."""
    members: list[Member] = [
        ("a.txt", b"1" * 700),
        ("a.json", b"2"),
        ("d", None),
        ("e.txt", b""),
        ("l" * 99 + "/l.txt", b"3"),
    ]
    data = write_tar(members, form, always_prefixed=True)
    samples = read(data)
    for block in range(0, len(data), 512):
        for cut in (block - 1, block, block + 1, block + 300):
            assert in_ranges(data, [max(cut, 0)]) == samples
            assert in_ranges(data, [max(cut, 0), max(cut, 0) + 512]) == samples


@given(st.integers(0, 10**6), st.floats(0, 1), st.integers(1, 3000))
def test_a_boundary_does_not_depend_on_how_the_bytes_come(seed: int, share: float, chunk: int) -> None:
    data = tar_of(seed)
    cut = int(share * len(data))
    assert boundary(data, cut, chunk=chunk) == boundary(data, cut)


@pytest.mark.parametrize("seed", range(8))
def test_a_range_goes_on_from_any_of_its_samples(seed: int) -> None:
    data = tar_of(seed + 16)
    ends = [0, len(data) // 3, 2 * len(data) // 3, len(data)]
    for begin, end in pairwise(ends):
        samples = range_of(data, begin, end)
        for index, sample in enumerate(samples):
            assert range_of(data, begin, end, resume=sample.position) == samples[index:]


def test_going_on_where_no_entry_begins_is_an_error() -> None:
    data = write_tar([("a.txt", b"x" * 2000), ("b.txt", b"y")])
    with pytest.raises(CorruptShardError, match=r"byte 512: .* or it was replaced"):
        range_of(data, 0, len(data), resume=512)
    with pytest.raises(
        CorruptShardError, match=r"byte 2560: this range begins after byte 0, where the next one begins"
    ):
        range_of(data, 0, 0, resume=2560)


def test_the_ends_of_a_shard_are_boundaries_of_their_own() -> None:
    data = write_tar([("a.txt", b"1"), ("b.txt", b"2")])
    assert boundary(data, 0) == Boundary(0, None)
    assert boundary(data, 1) == Boundary(
        len(data), None
    )  # b holds the first header from there, so it is the left lane's
    for cut in (2048, len(data), len(data) + 1):
        assert boundary(data, cut) == Boundary(len(data), None)
    assert range_of(data, 0, 0) == []
    assert [sample.key for sample in range_of(data, 0, 1)] == ["a", "b"]


def test_the_worked_example_of_the_docstring() -> None:
    names = ("a.txt", "a.json", "b.txt", "c.txt", "d.txt")
    data = write_tar([(name, b".") for name in names], "pax", always_prefixed=True)
    step = 4 * 512  # prefix header, its payload, header, payload
    assert boundary(data, 600) == Boundary(2 * step, "b")  # a.txt's own header; a.json comes next
    assert boundary(data, step) == Boundary(3 * step, "c")  # the header of a.json's prefix
    assert boundary(data, step + 513) == Boundary(3 * step, "c")  # a.json's own header, its prefix lies before
    assert boundary(data, step + 1025) == Boundary(4 * step, "d")


def test_an_empty_archive_and_one_without_keys_can_be_cut() -> None:
    for data in (write_tar([]), write_tar([("README", b"1"), ("folder", None), ("LICENSE", b"2")])):
        assert in_ranges(data, range(100, len(data), 512)) == []


def test_headers_without_magic_are_never_guessed_but_read_by_the_lane_before() -> None:
    old = b"".join(header(f"{i}.txt", 3, b"\0", magic=bytes(8)) + body(b"one") for i in range(9)) + END
    assert in_ranges(old, [100, 3000]) == read(old)
    assert len(range_of(old, 0, 100)) == 9
    mixed = entry("a.txt") + entry("b.txt") + old
    assert in_ranges(mixed, range(0, len(mixed), 300)) == read(mixed)


def test_long_prefix_headers_belong_to_the_entry_after_them() -> None:
    """Cuts inside and behind a PAX header of nearly the allowed size: the member's name stands only in it."""
    data = b""
    for index, extension in enumerate(["txt", "json"] * 3):
        data += pax(path=f"sample{index // 2}.{extension}", comment="c" * 63_000) + entry("one.name", b"1")
    data += END
    cuts = [cut + step for cut in range(0, len(data) - 600, 64_512 // 2) for step in (0, 1, 511, 512)]
    for cut in cuts:
        assert in_ranges(data, [cut]) == read(data)


def test_ranges_of_archives_that_were_joined_hold_every_sample_and_every_seam_once() -> None:
    def part(letter: str, count: int, zeros: int) -> bytes:
        return b"".join(entry(f"{letter}{i}.txt", b"1" * (300 * i)) for i in range(count)) + bytes(zeros)

    data = part("a", 5, 1024) + part("b", 1, 10_240) + part("c", 8, 20_480) + part("d", 2, 1536) + part("e", 1, 1024)
    samples = read(data)
    assert sum(not sample.key for sample in samples) == 4
    assert len(samples) == 5 + 1 + 8 + 2 + 1 + 4
    for cut in range(0, len(data), 256 if THOROUGH else 768):
        assert in_ranges(data, [cut]) == samples
        assert in_ranges(data, [cut // 2, cut, (cut + len(data)) // 2]) == samples
    for index, sample in enumerate(samples):
        begin = len(data) // 3
        if sample.position > begin:
            assert range_of(data, begin, len(data), resume=sample.position) == samples[index:]


@pytest.mark.parametrize("damage", ["checksum", "number", "prefix", "no magic"])
def test_a_damaged_header_at_a_seam_costs_the_same_in_all_ranges(damage: str) -> None:
    """With only its checksum wrong nothing; else what comes before the next header, and what a prefix described."""
    random = Random(damage)
    spoil = {
        "checksum": lambda block: b"?" + block[1:],
        "number": lambda block: block[:124] + b"?" + block[125:],
        "prefix": lambda block: pax(path="b0.txt")[:8] + b"?" + pax(path="b0.txt")[9:] + block,
        "no magic": lambda block: block[:257] + b"?????" + block[262:],
    }[damage]
    for _ in range(6):
        link = header("l.txt", 0, b"1")
        parts = [entry(f"a{i}.txt", b"1" * random.randrange(2000)) for i in range(3)]
        parts += [bytes(512 * random.randrange(2, 9)), spoil(entry("b0.txt", b"2" * random.randrange(2000)))]
        parts += [entry("?0.json", b"3")] * random.randrange(2)
        parts += [with_checksum(link[:157] + b"?0.txt" + link[163:])] * random.randrange(2)
        parts += [entry(f"b{i}.txt", b"4" * random.randrange(2000)) for i in range(1, random.randrange(3, 6))]
        third = [bytes(1024), spoil(entry("c.txt", b"5")), entry("d.txt", b"6") * (damage != "checksum")]
        parts += third * random.randrange(2)
        data = b"".join([*parts, END])
        samples = in_ranges(data, [])
        keys = [sample.key for sample in samples]
        assert keys[:4] == ["a0", "a1", "a2", ""]
        assert ("?0" in keys[4:5]) == (damage == "checksum" or entry("?0.json", b"3") in parts)
        assert {"b1", "b2"} <= set(keys)
        assert "two archives" in samples[3].flaws[WHOLE_SAMPLE]
        for cut in [random.randrange(len(data)) for _ in range(16)]:
            assert in_ranges(data, [cut]) == samples
            assert in_ranges(data, [cut // 2, cut, (cut + len(data)) // 2]) == samples
        for index, sample in enumerate(samples):
            assert range_of(data, 0, len(data), resume=sample.position) == samples[index:]
            end = random.randrange(sample.position + 1, len(data))
            resumed = range_of(data, 0, end, resume=sample.position) + range_of(data, end, len(data))
            assert resumed == samples[index:]


def test_an_archive_of_headers_without_magic_may_follow_another_one() -> None:
    """Their checksums tell that they are headers; no cut falls among them."""
    old = b"".join(header(f"{name}.txt", 1, b"\0", magic=bytes(8)) + body(b"1") for name in "abc") + END
    samples = read(old + old + entry("d.txt") + entry("e.txt") + END)
    assert [sample.key for sample in samples] == ["a", "b", "c", "", "a", "b", "c", "", "d", "e"]
    for cut in range(0, 2 * len(old), 512):
        assert in_ranges(old + old + entry("d.txt") + entry("e.txt") + END, [cut]) == samples


def test_hard_links_count_as_the_bytes_that_they_mean() -> None:
    """A sample is held up to two members of the most bytes, be they links or files."""
    link = header("f.0.txt", 0, b"1")
    links = [with_checksum(b"f.%d" % i + link[3:157] + b"f.txt" + link[162:]) for i in range(5)]
    shard = Shard(entry("f.txt", b"1" * 900) + b"".join(links) + END)
    (sample,) = read_range(
        shard.open_range,
        shard.open_at,
        begin=0,
        end=len(shard.data),
        size=len(shard.data),
        url=URL,
        wanted=lambda _: True,
        max_member_bytes=1000,
    )
    assert list(sample.members) == ["txt", "0.txt"]
    assert set(sample.flaws) == {"1.txt", "2.txt", "3.txt", "4.txt"}
    assert "900 bytes, more than is read of the members of one sample" in sample.flaws["1.txt"]


def test_ranges_give_what_hard_links_mean_also_where_the_file_is_in_another_range() -> None:
    links = [header(f"l{i}.txt", 0, b"1") for i in range(6)]
    links = [with_checksum(link[:157] + f"f{i % 3}.txt".encode() + link[163:]) for i, link in enumerate(links)]
    data = b"".join(entry(f"f{i}.txt", b"%d" % i * 900) for i in range(3)) + b"".join(links) + END
    samples = in_ranges(data, [])
    assert [sample.members.get("txt") for sample in samples] == [b"%d" % (i % 3) * 900 for i in range(9)]
    for cut in range(0, len(data), 512):
        assert in_ranges(data, [cut]) == samples


def test_cuts_around_prefix_headers_that_are_not_read_lose_nothing() -> None:
    """A search that begins inside them finds the member by its header alone, and passes over it."""
    large = [pax(comment="c" * 70_000, path=f"long{i}.txt") + entry(f"{i}.txt", b"1") for i in range(3)]
    data = entry("a.txt", b"1") + large[0] + entry("b.txt", b"2") + large[1] + large[2] + entry("c.txt", b"3") + END
    samples = read(data)
    assert [sample.key for sample in samples] == ["a", "", "b", "", "", "c"]
    for cut in range(0, len(data), 3 * 512):
        assert in_ranges(data, [cut]) == samples
        assert in_ranges(data, [min(cut + step, len(data)) for step in (0, 600, 71_000)]) == samples


# --- damage


@pytest.mark.parametrize("num_lanes", [1, 2, 5])
def test_a_shard_that_ends_too_soon_is_an_error_in_one_of_its_ranges(num_lanes: int) -> None:
    data = write_tar(random_members(Random(4), 6, "pax", max_bytes=700), "pax")
    end = len(data.rstrip(b"\0")) // 512 * 512 + 1024
    samples = read(data)
    for cut in range(1, end, 61 if THOROUGH else 131):
        short = data[:cut]
        got: list[Sample] = []
        error: ShardError | None = None
        for begin, stop in pairwise([lane * cut // num_lanes for lane in range(num_lanes + 1)]):
            try:
                got += range_of(short, begin, stop)
            except ShardError as caught:  # its samples before are not looked at; test_reader_truncation does
                error = caught
        assert isinstance(error, TruncatedShardError)
        assert "cut short" in str(error)
        assert got == samples[: len(got)]


def test_a_shard_of_no_bytes_is_an_error() -> None:
    with pytest.raises(TruncatedShardError, match="empty shard"):
        range_of(b"", 0, 0)


@pytest.mark.parametrize("surplus", [-1024, 1024])
def test_a_range_that_is_not_given_as_asked_for_is_an_error(surplus: int) -> None:
    """Although what is given ends between two samples."""
    data = write_tar([(f"{i}.txt", b"1") for i in range(9)])
    shard = Shard(data)
    right = boundary(data, 3000).offset
    reading = read_range(
        lambda begin, end: shard.open_range(begin, end + surplus if end == right else end),
        shard.open_at,
        begin=0,
        end=3000,
        size=len(data),
        url=URL,
        wanted=lambda _: True,
        max_member_bytes=LIMIT,
    )
    with pytest.raises(CorruptShardError, match=rf"byte {right + surplus}: the range should go on to byte {right}"):
        list(reading)


def test_a_storage_that_gives_less_than_the_listed_size_is_an_error() -> None:
    data = write_tar([("a.txt", b"x" * 5000), ("b.txt", b"y")])
    shard = Shard(data[:3000])
    with pytest.raises(
        TruncatedShardError, match=rf"byte 3000: the bytes end, but the shard was listed with {len(data)}"
    ):
        find_sample(lambda offset: shard.open_range(offset, 10**9), cut=700, size=len(data), url=URL)


def test_a_broken_header_is_an_error_in_the_range_that_holds_it() -> None:
    good = write_tar([(f"{i}.txt", b"1") for i in range(20)])
    data = good[:10240] + b"?" + good[10241:]
    for num_lanes in (1, 2, 3, 20):
        with pytest.raises(CorruptShardError, match=r"checksum is wrong|do not|range should|inside a"):
            in_ranges(data, [lane * len(data) // num_lanes for lane in range(1, num_lanes)])


# --- a tar inside the tar


def nested(random: Random) -> bytes:
    """A tar whose members may hold tars: whole ones, ones without their end, pieces of the same form."""
    members: list[Member] = []
    for index in range(random.randrange(2, 7)):
        if random.random() < 0.6:
            form = random.choice(list(FORMATS))
            inner = write_tar(random_members(random, random.randrange(1, 6), form, max_bytes=900), form)
            tail = random.choice(
                [len(inner), len(inner.rstrip(b"\0")) // 512 * 512 + 512, random.randrange(len(inner))]
            )
            members.append((f"{index:03d}.tar", inner[:tail]))
        members.append((f"{index:03d}.txt", random.randbytes(random.randrange(1500))))
    return write_tar(members, random.choice(list(FORMATS)), always_prefixed=random.random() < 0.3)


def test_a_tar_inside_a_tar_is_read_rightly_or_refused_but_never_wrongly() -> None:
    num_right = num_refused = 0
    for seed in range(300):
        random = Random(seed)
        data = nested(random)
        samples = read(data)
        assert in_ranges(data, []) == samples  # whole shards are always right
        for _ in range(2):
            cuts = [random.randrange(len(data)) for _ in range(random.choice([1, 1, 2, 5]))]
            got: list[Sample] = []
            errors = []
            for begin, end in pairwise([0, *sorted(cuts), len(data)]):
                try:
                    got += range_of(data, begin, end)
                except CorruptShardError as error:
                    errors.append(str(error))
            if errors:
                num_refused += 1
                assert all(URL in text for text in errors)
                assert any('list the shard with "whole": true in a manifest' in text for text in errors)
            else:
                num_right += 1
                assert got == samples
    assert num_right > 100
    assert num_refused > 100
    print(f"\nof 600 sets of cuts {num_right} were right and {num_refused} were refused")  # noqa: T201


def test_a_range_that_begins_in_a_tar_inside_the_tar_is_refused_before_its_first_sample() -> None:
    """Where the inner one ends within the bytes that are looked at; else when its end is met."""
    for inner_bytes, is_near in ((100_000, True), (2 << 20, False)):
        inner = write_tar([(f"inner{i:05d}.txt", b"1" * 1500) for i in range(inner_bytes // 2048)])
        outer: list[Member] = [(f"{i:04d}.txt", b"2" * 1500) for i in range(400)]
        outer.insert(200, ("0199.tar", inner))
        data = write_tar(outer)
        cut = 200 * 2048 + len(inner) // 2 + 512
        found = []
        with pytest.raises(WrongCutError, match="a member looks like a tar inside the tar"):
            found.extend(
                read_range(
                    Shard(data).open_range,
                    Shard(data).open_at,
                    begin=cut,
                    end=len(data),
                    size=len(data),
                    url=URL,
                    wanted=lambda _: True,
                    max_member_bytes=LIMIT,
                )
            )
        assert (not found) == is_near
        assert all(sample.key.startswith("inner") for sample in found), "nothing after its end is given"


def test_the_left_lane_alone_refuses_a_boundary_inside_a_member() -> None:
    inner = write_tar([("w.txt", b"0"), ("x.txt", b"1"), ("y.txt", b"2"), ("z.txt", b"3")])
    data = write_tar([("a.tar", inner), ("b.txt", b"4")])
    assert boundary(data, 600).key == "z"  # x holds the first header from there, and y comes next
    with pytest.raises(
        CorruptShardError, match=rf"^{URL}, member 'a.tar', byte \d+: .* a member looks like a tar inside"
    ):
        range_of(data, 0, 600)


def test_a_guess_that_leads_nowhere_is_given_up() -> None:
    """Headers in a payload whose chain breaks before another key comes: the next real header is found."""
    lone = header("fake.txt", 100) + b"not a header".ljust(512, b".") * 3
    ended = entry("fake.txt", b"1") + bytes(1024) + b"more"
    unkeyed = b"".join(entry(f"README{i}", b"1") for i in range(50)) + b"end of the chain"
    for fake in (
        lone,
        ended,
        unkeyed,
        lone + ended + unkeyed,
        header("huge", 1 << 40),
        pax(path="x.txt"),
        header("x", 1, b"x"),
    ):
        data = write_tar([("a.bin", body(fake)), ("b.txt", b"1"), ("c.txt", b"2"), ("d.txt", b"3")])
        samples = read(data)
        for cut in range(512, 512 + len(fake), 512):
            assert boundary(data, cut) == Boundary(samples[3].position, "d"), cut
            assert in_ranges(data, [cut]) == samples


@given(st.integers(0, 10**6))
@settings(max_examples=60)
def test_what_a_header_leads_to_does_not_depend_on_where_the_search_began(seed: int) -> None:
    """Payloads hold headers of files, of prefixes and of sizes that lead to each other, or nowhere."""
    random = Random(seed)
    blocks: list[bytes] = []
    for _ in range(random.randrange(12)):
        name, size = random.choice(["same.txt", "same.json", "README", "x.txt"]), 512 * random.choice([0, 0, 1, 2, 5])
        prefix = random.choice([b"", b"", pax(path="x.txt"), pax(size="1024")])
        blocks.append(random.choice([prefix + header(name, size), b"." * 512, bytes(512), bytes(1024)]))
    members = [("a.bin", b"".join(blocks)), ("b.txt", b"1"), ("c.txt", b"2"), ("d.txt", b"3")]
    data = write_tar(members, random.choice(list(FORMATS)))
    alone = {cut: from_header(data, cut) for cut in range(0, len(data), 512)}
    for begin in range(512, len(data), 512):
        leads = [found for cut, found in alone.items() if cut >= begin and found is not None]
        assert boundary(data, begin) == (leads[0] if leads else Boundary(len(data), None))


def from_header(data: bytes, offset: int) -> Boundary | None:
    """What the header at the offset leads to by itself."""
    open_at = Shard(data).open_at
    return first_boundary(open_at, begin=offset, end=offset + 512, size=len(data), url=URL) if offset else None


# --- what it costs


def test_a_cut_reads_little_where_members_are_small() -> None:
    data = write_tar([(f"{i:05d}.txt", b"x" * 4000) for i in range(2000)])
    shard = Shard(data)
    for cut in range(100_000, len(data), 1_234_567):
        shard.num_bytes = 0
        find_sample(shard.open_at, cut=cut, size=len(data), url=URL)
        assert shard.num_bytes <= 3 * shard.chunk
    assert len(shard.requests) == len(range(100_000, len(data), 1_234_567)), "one request a cut"


def test_a_range_without_a_header_is_empty_and_reads_no_further_than_its_end() -> None:
    data = write_tar([("a.bin", bytes(range(256)) * 40_000), ("b.txt", b"1")])
    shard = Shard(data)
    assert range_of(shard, 1_000_000, 1_100_000) == []
    assert shard.num_bytes <= 100_000 + 4 * shard.chunk
    assert len(shard.requests) == 1


def test_a_large_member_is_jumped_over_and_never_held_in_memory() -> None:
    ends: list[Member] = [("c.txt", b"2"), ("d.txt", b"3"), ("e.txt", b"4")]
    data = write_tar([("a.txt", b"1"), ("b.bin", bytes(30 << 20)), *ends])
    shard = Shard(data)
    tracemalloc.start()
    jumped = find_sample(shard.open_at, cut=700, size=len(data), url=URL)
    num_jumped = shard.num_bytes
    scanned = find_sample(shard.open_at, cut=5000, size=len(data), url=URL)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert jumped.key == "d"
    assert num_jumped <= 10 * shard.chunk
    assert scanned.key == "e"
    assert peak < 8 << 20


@pytest.mark.parametrize("chunk", [1 << 16, 1 << 20, 8 << 20])
def test_a_header_far_from_the_cut_is_found_in_one_request(chunk: int) -> None:
    """It stands behind the first bytes of a chunk."""
    members: list[Member] = [("a.txt", b"1"), ("b.bin", bytes((24 << 20) - 1024)), ("c.txt", b"2"), ("d.txt", b"3")]
    data = write_tar([*members, ("e.bin", bytes(8 << 20))])
    assert read(data)[2].position == (24 << 20) + 512
    shard = Shard(data, chunk)
    assert find_sample(shard.open_at, cut=5000, size=len(data), url=URL).key == "e"
    assert shard.requests == [5000]


def test_a_payload_full_of_headers_is_walked_once() -> None:
    """Two chains of 3,000 entries without a key, one through the other; neither leads to a boundary."""
    pairs = b"".join(header(f"README{i}", 512) + header(f"LICENSE{i}", 512) for i in range(3000))
    data = write_tar([("a.bin", pairs + b"!" * 1024), ("b.txt", b"1"), ("c.txt", b"2"), ("d.txt", b"3")])
    for chunk in (1 << 12, 1 << 16, 1 << 23):
        shard = Shard(data, chunk)
        assert find_sample(shard.open_at, cut=700, size=len(data), url=URL).key == "d"
        assert shard.num_bytes <= 3 * len(data)
        assert len(shard.requests) <= 3


def test_a_payload_made_to_send_the_search_around_is_refused() -> None:
    """Headers side by side, each of a large member whose end is no header: a request there and one back for each."""
    fakes = b"".join(header(f"{i}.txt", 2 << 20) for i in range(500))
    data = write_tar([("a.bin", fakes + b"!" * (5 << 20)), ("b.txt", b"1"), ("c.txt", b"2")])
    shard = Shard(data)
    with pytest.raises(
        CorruptShardError, match=r'65 times what looked like a header .* led far and nowhere.*"whole": true'
    ):
        find_sample(shard.open_at, cut=700, size=len(data), url=URL)
    assert len(shard.requests) < 150
    assert range_of(data, 0, len(data)) == read(data)


def test_tars_that_tarfile_appended_to_are_cut_rightly() -> None:
    buffer = io.BytesIO(write_tar(random_members(Random(1), 4, "gnu"), "gnu"))
    with tarfile.open(fileobj=buffer, mode="a") as tar:
        info = tarfile.TarInfo("z.txt")
        info.size = 5
        tar.addfile(info, io.BytesIO(b"later"))
    data = buffer.getvalue()
    assert in_ranges(data, range(0, len(data), 1000)) == read(data)
    assert read(data)[-1].key == "z"
