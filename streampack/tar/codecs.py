"""Suffixes of shards and their compression: the stored bytes of a shard in, the bytes of its tar out.

In:  a URL, and chunks of any size.
Out: chunks of at most 1 MiB, however well they were compressed; beside them a window of at most 128 MiB is held.
Never: a compression that is guessed from the bytes; a decompression bomb (a few bytes that become very many) that is
read to its end; a stream that is cut short, damaged, or has other bytes after it, and ends without an error. A stream
that is cut between two gzip members or two zstd frames is valid: the tar in it then lacks its end, which the reader of
the tar notices.
"""

import functools
import gzip
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, TypeAlias

from streampack.errors import ConfigError, CorruptShardError, TruncatedShardError
from streampack.records import FREE_BYTES, MAX_RATIO, MAX_WINDOW_BYTES
from streampack.tar.format import Chunks

Compression: TypeAlias = Literal["gz", "zst"]
SUFFIXES: Mapping[Compression | None, tuple[str, ...]] = {
    None: (".tar",),
    "gz": (".tar.gz", ".tgz"),
    "zst": (".tar.zst", ".tzst"),
}
"""Of shards, by their compression (None: a plain tar), the usual suffix first."""
COMPRESSED_SUFFIXES = (*SUFFIXES["gz"], *SUFFIXES["zst"])
ALL_SUFFIXES = (*SUFFIXES[None], *COMPRESSED_SUFFIXES)
_COMPRESSIONS = {suffix: compression for compression, suffixes in SUFFIXES.items() for suffix in suffixes}
_NOT_SUPPORTED = re.compile(
    r"\.tar\.(bz2?|bzip2|xz|lzma|lzip|lz|lz4|lzo|br|z|zz|gzip|zstd|sz|snappy|zip|7z|rar)$"
    r"|\.(tbz2?|tb2|tz2|txz|tlz|tlzma|tlz4|tbr|taz)$"
)
"""Suffixes of tars in a compression, or under a name for one, that is not read here; in lower case."""

GZIP_MAGIC, ZSTD_MAGIC = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_OTHER_FORMATS = {
    GZIP_MAGIC: "gzip data: name it .tar.gz",
    ZSTD_MAGIC: "zstd data: name it .tar.zst",
    b"BZh": "bzip2 data, which is not supported: store it as .tar.zst",
    b"\xfd7zXZ": "xz data, which is not supported: store it as .tar.zst",
    b"\x04\x22\x4d\x18": "lz4 data, which is not supported: store it as .tar.zst",
    b"PK\x03\x04": "a zip archive: write it again as a tar",
    b"<": "HTML or XML, perhaps a message of the storage, or the page of a folder (give it with a / at its end)",
    b"version https://git-lfs": "a Git LFS pointer, not the file it stands for: fetch that with `git lfs pull`",
    b"PAR1": "a Parquet file: `streampack write` makes shards of it",
}
"""The first bytes of another format -> its name, and what to do."""

_MARKS = re.compile("::|[?#]")
"""What a URL has that is more than a path."""

MAX_CHUNK_BYTES = 1 << 20
_INPUT_BYTES = 1 << 16
"""Bytes of a step: zlib copies what it has not consumed at each step, so it gets few at a time."""


def path_of(url: str) -> str:
    """The part of a URL in which a suffix is looked for, in lower case.

    Of a chain (`zip://a.tar::s3://b/c.zip`) the first URL with a path; without the query of a web URL, and without
    S3's `?versionId=`. Elsewhere a `?` is part of the name.
    """
    first = url
    if "::" in url:
        first = next((part for part in url.split("::") if "://" in part), url)
    if "?" not in first and "#" not in first:  # as most
        return first.lower()
    if first.startswith(("http://", "https://")):
        first = re.split(r"[?#]", first, maxsplit=1)[0]
    elif first.startswith(("s3://", "s3a://")):
        first = first.partition("?versionId=")[0]
    return first.lower()


def suffix_of(url: str) -> str | None:
    """The suffix of `ALL_SUFFIXES` that the URL has, in lower case; None if it has none of them."""
    if url.endswith(".tar") and _MARKS.search(url) is None:  # as most of a hundred thousand
        return ".tar"
    path = path_of(url)
    if not path.endswith(ALL_SUFFIXES):
        return None
    return next(suffix for suffix in ALL_SUFFIXES if path.endswith(suffix))


def unsupported_suffix_of(url: str) -> str | None:
    """The suffix that the URL has of a tar in a compression that is not read; None if it has none."""
    found = _NOT_SUPPORTED.search(path_of(url))
    return None if found is None else found[0]


@functools.lru_cache(256)  # blocks of many shards are read in turn
def compression_of(url: str) -> Compression | None:
    """How the shard is compressed; None for any URL whose suffix names no compression.

    Raises:
        ConfigError: the suffix names a compression that is not supported.
    """
    suffix = suffix_of(url)
    if suffix is not None:
        return _COMPRESSIONS[suffix]
    suffix = unsupported_suffix_of(url)
    if suffix is not None:
        raise ConfigError(f"{suffix} is not supported; store the shard as .tar, .tar.gz or .tar.zst", url=url)
    return None


def is_compressed(url: str) -> bool:
    """Whether the shard can only be read from its start, as it must be decompressed; errors as in `compression_of`."""
    return compression_of(url) is not None


def other_format_of(head: bytes) -> str | None:
    """The format of bytes that are not a tar, by how they begin, and what to do; None if it is not known."""
    return next((text for magic, text in _OTHER_FORMATS.items() if head.startswith(magic)), None)


def compress(tar: bytes, *, url: str) -> bytes:
    """The bytes of a tar as they are stored under the URL, the same bytes every time."""
    compression = compression_of(url)
    if compression is None:
        return tar
    if compression == "gz":
        return gzip.compress(tar, mtime=0)
    import zstandard

    return zstandard.compress(tar)


def decompress(chunks: Iterable[bytes], *, url: str) -> Iterator[bytes]:
    """The bytes of the tar; `chunks` themselves where the URL names no compression.

    Raises:
        ConfigError: the suffix names a compression that is not supported.
        TruncatedShardError, CorruptShardError: with the offset in the compressed bytes.
    """
    compression = compression_of(url)
    return iter(chunks) if compression is None else inflate(chunks, compression, url=url)


def inflate(chunks: Iterable[bytes], compression: Compression, *, url: str) -> Iterator[bytes]:
    """The bytes that were compressed so; errors as in `decompress`, with the URL."""
    return _gunzip(chunks, url) if compression == "gz" else _unzstd(chunks, url)


def _gunzip(chunks: Iterable[bytes], url: str) -> Iterator[bytes]:
    codec: Any
    try:
        from isal import isal_zlib as codec  # zlib's interface at two to three times its speed
    except ImportError:
        codec = zlib
    member: Any = None  # the decompressor of the current gzip member, None between members
    first = True
    offset = given = 0
    source = Chunks(chunks)
    while data := source.take(_INPUT_BYTES):  # how much is read before the damage must not depend on the chunks
        offset += len(data)
        while data:
            if member is None:
                data = data if first else data.lstrip(b"\0")  # as gzip does: zeros after a member are padding
                if not data:
                    break
                if data[:2] != GZIP_MAGIC[: len(data)]:
                    raise _no_start("gzip member", data, url, offset - len(data))
                member = codec.decompressobj(wbits=31)
                first = False
            try:
                out = member.decompress(data, MAX_CHUNK_BYTES)
            except codec.error as error:
                raise _corrupt(f"damaged gzip data: {error}", url, offset - len(data)) from None
            if out:
                given += len(out)
                if given > FREE_BYTES and given > MAX_RATIO * offset:
                    raise _bomb(given, url, offset)
                yield out
            data = member.unused_data if member.eof else member.unconsumed_tail
            member = None if member.eof else member
    if member is not None:
        raise _truncated("a gzip member", url, offset)


def _unzstd(chunks: Iterable[bytes], url: str) -> Iterator[bytes]:
    # The library has no bound on what it gives for its input, and does not tell a cut stream from a whole
    # one. A block gives at most 128 KiB. So frames are split here (RFC 8878, section 3.1) and go to it block by block.
    import zstandard

    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)
    source = Chunks(chunks)
    given = 0
    while magic := source.take(4):
        if magic[0] >> 4 == 5 and magic[1:] == b"\x2a\x4d\x18"[: len(magic) - 1]:  # a frame to be skipped
            left = int.from_bytes(_exactly(source, 4, url), "little")
            while left:
                left -= len(_exactly(source, min(left, MAX_CHUNK_BYTES), url))
            continue
        if magic != ZSTD_MAGIC[: len(magic)]:
            at = source.offset - len(magic)
            raise _no_start("zstd frame", magic + source.take(_INPUT_BYTES), url, at)
        descriptor = _exactly(source, 1, url)
        is_single = descriptor[0] >> 5 & 1
        size_bytes = (is_single, 2, 4, 8)[descriptor[0] >> 6]
        rest = _exactly(source, 1 - is_single + (0, 1, 2, 4)[descriptor[0] & 3] + size_bytes, url)
        if (window := _window(rest, size_bytes, is_single=bool(is_single))) > MAX_WINDOW_BYTES:
            what = f"the zstd frame needs a window of {window:,} bytes, more than {MAX_WINDOW_BYTES:,}"
            raise CorruptShardError(f"{what}; compress it again with --long=27 or less", url=url, offset=source.offset)
        frame = decompressor.decompressobj()
        data = magic + descriptor + rest
        is_last = 0
        try:
            frame.decompress(data)
            while not is_last:
                head = _exactly(source, 3, url)
                word = int.from_bytes(head, "little")
                is_last = word & 1
                size = 1 if word >> 1 & 3 == 1 else word >> 3  # kind 1 is one byte, repeated
                check_bytes = 4 if is_last and descriptor[0] & 4 else 0
                if out := frame.decompress(head + _exactly(source, size + check_bytes, url)):
                    given += len(out)
                    if given > FREE_BYTES and given > MAX_RATIO * source.offset:
                        raise _bomb(given, url, source.offset)
                    yield out
        except zstandard.ZstdError as error:
            raise _corrupt(f"damaged zstd data: {error}", url, source.offset) from None
        assert frame.eof


def _window(rest: bytes, size_bytes: int, *, is_single: bool) -> int:
    """Bytes of a frame that must be held, from what follows its descriptor; 0 where that does not matter."""
    if is_single:  # all of it
        return int.from_bytes(rest[-size_bytes:], "little")
    base = 1 << 10 + (rest[0] >> 3)
    return base + (base >> 3) * (rest[0] & 7)


def _exactly(source: Chunks, size: int, url: str) -> bytes:
    data = source.take(size)
    if len(data) < size:
        raise _truncated("a zstd frame", url, source.offset)
    return data


def _bomb(given: int, url: str, offset: int) -> CorruptShardError:
    what = f"decompresses to {given:,} bytes so far, more than {MAX_RATIO} times those read"
    return CorruptShardError(f"{what}; if it is meant so, store it as a plain .tar", url=url, offset=offset)


def _no_start(of: str, head: bytes, url: str, offset: int) -> CorruptShardError:
    known = None if offset else "a plain tar: name it .tar" if head[257:262] == b"ustar" else other_format_of(head)
    begins = f"no {of} begins here, but {head[:4]!r}"
    return _corrupt(begins if known is None else f"{begins}: {known}", url, offset)


def _corrupt(what: str, url: str, offset: int) -> CorruptShardError:
    return CorruptShardError(f"{what}; copy or write the shard again", url=url, offset=offset)


def _truncated(where: str, url: str, offset: int) -> TruncatedShardError:
    what = f"the compressed bytes end inside {where}: the shard was cut short; copy or write it again"
    return TruncatedShardError(what, url=url, offset=offset)
