"""A shard's bytes as they are stored in, the bytes of its tar out. The URL's suffix says how: nothing is guessed.

Chunks may have any size; what goes out has at most 1 MiB a chunk, however well it was compressed, and what is held
beside it is a window of at most 128 MiB. Never true here: that a bomb, a few bytes that become very many, is read to
its end; that a stream cut short, damaged, or with other bytes behind it ends without an error. (Cut between two gzip
members or two zstd frames it is a right stream: then the tar in it lacks its end, which the reader sees.)
"""

import zlib
from collections.abc import Iterable, Iterator
from typing import Any

from streampack.errors import ConfigError, CorruptShardError, TruncatedShardError
from streampack.records import FREE_BYTES, MAX_RATIO, MAX_WINDOW_BYTES
from streampack.tar.format import Chunks

MAX_CHUNK_BYTES = 1 << 20
_INPUT_BYTES = 1 << 16
"""zlib copies what it has not consumed at each step; so it gets little."""
_GZIP = (".tar.gz", ".tgz")
_ZSTD = (".tar.zst", ".tzst")
_NOT_SUPPORTED = (".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.lz4", ".tlz4")


def is_compressed(url: str) -> bool:
    """Whether the shard must be decompressed, and so can only be read from its start; a ConfigError if it cannot be."""
    return _codec(url) is not None


def decompress(chunks: Iterable[bytes], *, url: str) -> Iterator[bytes]:
    """The bytes of the tar; `chunks` themselves where the URL names no compression.

    Raises:
        ConfigError: The suffix names a compression that is not supported.
        TruncatedShardError, CorruptShardError: With the offset in the compressed bytes.
    """
    codec = _codec(url)
    if codec is None:
        return iter(chunks)
    return (_gunzip if codec is _GZIP else _unzstd)(chunks, url)


def _codec(url: str) -> tuple[str, ...] | None:
    path = url.partition("?")[0].lower()
    for codec in (_GZIP, _ZSTD):
        if path.endswith(codec):
            return codec
    for suffix in _NOT_SUPPORTED:
        if path.endswith(suffix):
            raise ConfigError(f"{suffix} is not supported; store the shard as .tar, .tar.gz or .tar.zst", url=url)
    return None


def _gunzip(chunks: Iterable[bytes], url: str) -> Iterator[bytes]:
    codec: Any
    try:
        from isal import isal_zlib as codec  # zlib's interface at two to three times its speed
    except ImportError:
        codec = zlib
    member: Any = None  # the decompressor of the gzip member at hand, None between members
    first = True
    offset = given = 0
    source = Chunks(chunks)
    while data := source.take(_INPUT_BYTES):  # how much comes before a damage must not depend on how the bytes come
        offset += len(data)
        while data:
            if member is None:
                data = data if first else data.lstrip(b"\0")  # as gzip does: padding behind a member is no damage
                if not data:
                    break
                if data[:2] != b"\x1f\x8b"[: len(data)]:
                    raise _corrupt(f"no gzip member begins here, but {data[:4]!r}", url, offset - len(data))
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
    # A decompressor has no bound on what it gives for its input, and does not tell a cut stream from a whole one. A
    # block gives at most 128 KiB. So the frames are taken apart here (RFC 8878, section 3.1) and fed block by block.
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
        if magic != b"\x28\xb5\x2f\xfd"[: len(magic)]:
            raise _corrupt(f"no zstd frame begins here, but {magic!r}", url, source.offset - len(magic))
        descriptor = _exactly(source, 1, url)
        is_single = descriptor[0] >> 5 & 1
        size_bytes = (is_single, 2, 4, 8)[descriptor[0] >> 6]
        rest = _exactly(source, 1 - is_single + (0, 1, 2, 4)[descriptor[0] & 3] + size_bytes, url)
        if (window := _window(rest, size_bytes, is_single=bool(is_single))) > MAX_WINDOW_BYTES:
            what = f"the zstd frame needs a window of {window:,} bytes, more than {MAX_WINDOW_BYTES:,}"
            raise CorruptShardError(f"{what}; compress it again without --ultra --long", url=url, offset=source.offset)
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
    """What must be held of a frame, by what follows its descriptor; 0 where it does not matter."""
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


def _corrupt(what: str, url: str, offset: int) -> CorruptShardError:
    return CorruptShardError(f"{what}; copy or write the shard again", url=url, offset=offset)


def _truncated(where: str, url: str, offset: int) -> TruncatedShardError:
    what = f"the compressed bytes end inside {where}: the shard was cut short; copy or write it again"
    return TruncatedShardError(what, url=url, offset=offset)
