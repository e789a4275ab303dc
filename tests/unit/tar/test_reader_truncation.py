"""A shard cut at any byte, plain or compressed: an error, never a wrong sample and never fewer without one."""

import gzip
import sys
import zlib
from collections.abc import Callable, Iterator
from random import Random

import pytest
import zstandard
from support.tars import FORMATS, LIMIT, URL, Member, chunked, read, write_tar, write_webdataset
from support.thorough import nightly, some

from streampack.errors import ConfigError, CorruptShardError, ShardError, TruncatedShardError
from streampack.records import Sample
from streampack.tar.codecs import MAX_CHUNK_BYTES, decompress, is_compressed
from streampack.tar.reader import read_samples


def small(form: str) -> bytes:
    long = "long/" * (30 if form == "ustar" else 60)
    members: list[Member] = [("a.txt", b"x" * 600), ("a.json", b""), ("folder", None), (f"{long}b.npy", b"y" * 513)]
    return write_tar([*members, ("c.txt", b"z")], form, always_prefixed=form == "pax")


TARS = {
    **{form: small(form) for form in FORMATS},
    "webdataset": write_webdataset([{"__key__": f"k{i}", "txt": "x" * 600 * i, "json": {"n": i}} for i in range(3)]),
}
GZIP_URL, ZSTD_URL = URL + ".gz", "s3://corpus/shard-000000.tar.zst?versionId=7"


def in_halves(compress: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """Several gzip members or zstd frames, the cut between them inside the tar's second half."""
    return lambda data: compress(data[:1500]) + compress(data[1500:2048]) + compress(data[2048:])


def zstd_stream(data: bytes) -> bytes:
    """A frame of several blocks that does not tell its size, with a checksum; before it one to be skipped."""
    stream = zstandard.ZstdCompressor(write_checksum=True).compressobj()
    blocks = [stream.compress(piece) + stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK) for piece in chunked(data, 700)]
    return b"\x5a\x2a\x4d\x18\x05\0\0\0right" + b"".join(blocks) + stream.flush()


COMPRESSIONS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": (GZIP_URL, lambda data: gzip.compress(data, mtime=1)),
    "gzip, fast": (GZIP_URL, lambda data: gzip.compress(data, compresslevel=1)),
    "gzip, several members": (GZIP_URL, in_halves(gzip.compress)),
    "zstd": (ZSTD_URL, zstandard.ZstdCompressor().compress),
    "zstd, with a checksum": (ZSTD_URL, zstandard.ZstdCompressor(write_checksum=True).compress),
    "zstd, several frames": (ZSTD_URL, in_halves(zstandard.ZstdCompressor(level=1).compress)),
    "zstd, a stream": (ZSTD_URL, zstd_stream),
}


@pytest.fixture(params=["isal", "zlib"])
def gzip_codec(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "zlib":
        monkeypatch.setitem(sys.modules, "isal", None)  # as if the extra were not installed
    else:
        pytest.importorskip("isal")


def unpack(data: bytes, url: str, chunk: int = 1 << 20) -> bytes:
    return b"".join(decompress(chunked(data, chunk), url=url))


def read_until_error(chunks: Iterator[bytes], url: str) -> tuple[list[Sample], ShardError | None]:
    samples: list[Sample] = []
    try:
        samples.extend(read_samples(chunks, url=url, wanted=lambda name: name != "npy", max_member_bytes=LIMIT))
    except ShardError as error:
        return samples, error
    return samples, None


@pytest.mark.parametrize("name", TARS)
def test_a_plain_tar_cut_at_any_byte_is_an_error_that_names_the_byte(name: str) -> None:
    data = TARS[name]
    whole, error = read_until_error(iter([data]), URL)
    assert error is None
    assert len(whole) >= 3
    last = len(data.rstrip(b"\0"))
    end = last + -last % 512 + 512  # the first zero block is there: the archive is whole
    num_short = 0
    cuts = some(range(1, end + 520), 3, first=list(TARS).index(name) % 3)
    for cut in cuts:
        samples, error = read_until_error(chunked(data[:cut], 4096), URL)
        assert samples == whole[: len(samples)], cut
        if error is None:
            assert cut >= end
            assert samples == whole
            continue
        num_short += 1
        assert cut < end
        assert isinstance(error, TruncatedShardError)
        assert error.offset == cut
        assert str(error).startswith(URL)
        assert "the shard is cut short or damaged; copy or write it again" in str(error)
    assert num_short == sum(cut < end for cut in cuts)


@pytest.mark.parametrize("name", COMPRESSIONS)
@pytest.mark.usefixtures("gzip_codec")
def test_a_compressed_tar_cut_at_any_byte_is_an_error(name: str) -> None:
    url, compress = COMPRESSIONS[name]
    packed = compress(TARS["ustar"])
    whole, error = read_until_error(decompress(iter([packed]), url=url), url)
    assert error is None
    assert whole == read_until_error(iter([TARS["ustar"]]), URL)[0]
    num_between = 0
    for cut in range(1, len(packed)):
        samples, error = read_until_error(decompress(iter([packed[:cut]]), url=url), url)
        assert samples == whole[: len(samples)]
        assert isinstance(error, TruncatedShardError), cut
        assert str(error).startswith(url)
        num_between += error.offset != cut
    # Between two members or frames nothing is wrong with the compression; the offset is then one in the tar.
    assert num_between == (2 if "several" in name else 1 if "stream" in name else 0)


@pytest.mark.parametrize("name", COMPRESSIONS)
@pytest.mark.parametrize("chunk", [7, 1 << 20, *nightly([1, 1000])])
@pytest.mark.usefixtures("gzip_codec")
def test_how_compressed_bytes_are_chunked_makes_no_difference(name: str, chunk: int) -> None:
    url, compress = COMPRESSIONS[name]
    for data in (TARS["pax"], b"", b"x", Random(1).randbytes(40_000), bytes(40_000)):
        assert unpack(compress(data), url, chunk) == data


@pytest.mark.parametrize("name", COMPRESSIONS)
@pytest.mark.usefixtures("gzip_codec")
def test_a_flipped_bit_in_a_compressed_tar_never_gives_a_wrong_sample(name: str) -> None:
    """But for zstd without its checksum, which has none to notice it by."""
    url, compress = COMPRESSIONS[name]
    packed = compress(TARS["webdataset"])
    whole = read(TARS["webdataset"])
    random = Random(3)
    num_errors = 0
    for _ in range(400):
        position = random.randrange(len(packed))
        flipped = bytearray(packed)
        flipped[position] ^= 1 << random.randrange(8)
        samples, error = read_until_error(decompress(iter([bytes(flipped)]), url=url), url)
        if error is not None:
            num_errors += 1
            assert str(error).startswith(url)
            assert error.offset is not None
        elif name not in {"zstd", "zstd, several frames"}:
            assert samples == whole
    assert num_errors > 200


@pytest.mark.usefixtures("gzip_codec")
@pytest.mark.usefixtures("gzip_codec")
@pytest.mark.parametrize("url", [GZIP_URL, ZSTD_URL])
def test_how_much_comes_before_a_damage_does_not_depend_on_how_the_bytes_come(url: str) -> None:
    """Ranges are as large as a lane's share of the memory; what is lost must be the same on every topology."""
    data = bytes(Random(7).choices(b"abcdefgh", k=700_000))
    stored = bytearray(gzip.compress(data) if url is GZIP_URL else zstandard.compress(data))
    stored[len(stored) // 2 : len(stored) // 2 + 60] = b"\xff" * 60
    found = []
    for size in (5000, 32_768, 100_001, len(stored)):
        came = []
        with pytest.raises(CorruptShardError) as caught:
            came.extend(decompress(chunked(bytes(stored), size), url=url))
        found.append((b"".join(came), caught.value.offset))
    assert 0 < len(found[0][0]) < len(data)
    assert all(each == found[0] for each in found)


def test_other_bytes_behind_a_compressed_stream_are_an_error() -> None:
    for name, (url, compress) in COMPRESSIONS.items():
        packed = compress(TARS["gnu"])
        with pytest.raises(CorruptShardError, match=rf"byte {len(packed)}: no (gzip member|zstd frame) begins here"):
            unpack(packed + b"rubbish", url)
        assert (
            name.startswith("zstd") or unpack(packed + bytes(70_000), url) == TARS["gnu"]
        )  # gzip tools pad with zeros


@pytest.mark.usefixtures("gzip_codec")
def test_bytes_that_are_not_compressed_under_a_compressed_name_are_an_error() -> None:
    with pytest.raises(CorruptShardError, match="byte 0: no gzip member begins here, but b'"):
        unpack(TARS["gnu"], GZIP_URL)
    with pytest.raises(CorruptShardError, match=r"byte 0: no zstd frame begins here, but b'"):
        unpack(TARS["gnu"], ZSTD_URL)
    with pytest.raises(CorruptShardError, match="byte 0: no gzip member begins here, but b'"):
        unpack(bytes(1000), GZIP_URL)


@pytest.mark.usefixtures("gzip_codec")
def test_a_decompression_bomb_comes_in_bounded_chunks() -> None:
    size = 40 << 20
    deflate = zlib.compressobj(9, zlib.DEFLATED, 31)
    for url, packed in (
        (GZIP_URL, deflate.compress(bytes(size)) + deflate.flush()),
        (ZSTD_URL, zstandard.ZstdCompressor(level=19).compress(bytes(size))),
    ):
        assert len(packed) < 50_000
        lengths = [len(chunk) for chunk in decompress(iter([packed]), url=url)]
        assert sum(lengths) == size
        assert max(lengths) <= MAX_CHUNK_BYTES


@pytest.mark.parametrize("surplus", [-1, 0, 1, 257, 258, 259, 5 << 20])
@pytest.mark.usefixtures("gzip_codec")
def test_a_large_shard_is_decompressed_as_it_was(surplus: int) -> None:
    """Also where it is about as long as the largest chunk, and its last bytes could wait in the decompressor."""
    data = (Random(2).randbytes(1000) * 7000)[: MAX_CHUNK_BYTES + surplus]
    for url, packed in ((GZIP_URL, gzip.compress(data, 1)), (ZSTD_URL, zstandard.compress(data))):
        assert unpack(packed, url, 100_003) == data


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://b/a.tar", False),
        ("s3://b/a.tar.gz", True),
        ("/data/A.TGZ", True),
        ("https://h/a.tar.zst?sig=x/y.tar", True),
        ("a.tzst", True),
        ("https://h/a.tar?name=.tar.gz", False),
        ("a.tar?name=.tar.gz", True),
        ("a.gz", False),
    ],
)
def test_the_suffix_says_whether_a_shard_is_compressed(url: str, expected: bool) -> None:
    assert is_compressed(url) is expected


@pytest.mark.parametrize("suffix", [".tar.bz2", ".tar.xz", ".tar.lz4", ".tbz2", ".txz"])
def test_other_compressions_are_refused_by_name(suffix: str) -> None:
    for check in (is_compressed, lambda url: decompress(iter([]), url=url)):
        with pytest.raises(ConfigError, match=rf"a{suffix}: {suffix} is not supported; store the shard as"):
            check(f"a{suffix}")
