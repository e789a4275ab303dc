"""The bytes of a compressed member in, its decompressed bytes out.

Never: more than the limits allow, also of compressed bytes that turn out to be damaged.
"""

import io
import zlib
from typing import Any, Literal, TypeAlias

import zstandard

from streampack.documents.contents import BadContentError
from streampack.records import FREE_BYTES, MAX_RATIO, MAX_WINDOW_BYTES

Compression: TypeAlias = Literal["gz", "zst"]
SUFFIXES: tuple[Compression, ...] = ("gz", "zst")
"""The last part of the extension of a compressed member."""

# A step of decompression: 4 KiB of zstd can become 128 MiB, which is how far above its limit a bomb gets.
_CHUNK_BYTES = 4096
_MAX_STREAMS = 2**20
"""Streams in a row in one member: each costs a decompressor of its own, and may be empty."""


def decompressed(data: bytes, extension: str, limit: int) -> bytes:
    """All that a `.gz` or `.zst` member holds, of one stream or several in a row; any other member as it is."""
    suffix = extension.rpartition(".")[2]
    if suffix not in SUFFIXES:
        return data
    gzip = suffix == "gz"
    output, consumed, num_streams = io.BytesIO(), 0, 0
    zstd = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)
    stream: Any = None
    while consumed < len(data):
        if stream is None or stream.eof:
            if gzip and stream is not None and not data[consumed] and not data[consumed:].strip(b"\0"):
                break  # zeros may pad a .gz
            num_streams += 1
            if num_streams > _MAX_STREAMS:
                raise BadContentError(f"cannot be decompressed: more than {_MAX_STREAMS:,} streams in a row; join them")
            stream = zlib.decompressobj(31) if gzip else zstd.decompressobj()
        chunk = data[consumed : consumed + _CHUNK_BYTES]
        try:
            output.write(stream.decompress(chunk))
        except (zlib.error, zstandard.ZstdError) as error:
            raise BadContentError(f"cannot be decompressed ({error}); compressed byte {consumed:,} or later") from None
        consumed += len(chunk) - len(stream.unused_data)
        if output.tell() > limit:
            raise BadContentError(f"decompresses to more than {limit:,} bytes; split the member")
        if output.tell() > max(FREE_BYTES, MAX_RATIO * consumed):
            what = f"decompresses to {output.tell():,} bytes from {consumed:,}, more than {MAX_RATIO} times as many"
            raise BadContentError(f"{what}; if it is meant so, store it without compression")
    if stream is None or not stream.eof:
        raise BadContentError(f"cannot be decompressed: cut after {len(data):,} compressed bytes")
    return output.getvalue()
