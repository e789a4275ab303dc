"""Shards that are broken at a place of our choice."""

import gzip
import io
import tarfile
from pathlib import Path

import zstandard


def plain(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".gz":
        return gzip.decompress(data)
    return zstandard.ZstdDecompressor().decompressobj().decompress(data) if path.suffix == ".zst" else data


def store(path: Path, data: bytes) -> None:
    if path.suffix == ".gz":
        data = gzip.compress(data, mtime=0)
    elif path.suffix == ".zst":
        data = zstandard.compress(data)
    path.write_bytes(data)


def members(path: Path) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(plain(path))) as tar:
        return tar.getmembers()


def break_header(path: Path, sample: int) -> None:
    """One byte of a member's header is another one."""
    data = bytearray(plain(path))
    data[members(path)[sample].offset_data - 512 + 150] ^= 1
    store(path, bytes(data))


def zero_block(path: Path, sample: int) -> None:
    data = bytearray(plain(path))
    at = members(path)[sample].offset_data - 512
    data[at : at + 512] = bytes(512)
    store(path, bytes(data))


def cut_short(path: Path, sample: int) -> None:
    """The archive ends inside a member; the size in the list is that of what is left."""
    store(path, plain(path)[: members(path)[sample].offset_data + 1])


DAMAGES = {"a broken header": break_header, "a block of zeros": zero_block, "cut short": cut_short}
