"""Digests of a shard's stored bytes, as a manifest has them.

    sha256:9f86d081...            of the whole shard: checked where all of it passes by
    xxh3/1048576:4d0a6f...        of each block of 1048576 bytes, end to end: checked block by block, before use

In: such a text, or the bytes to make it of. Out: the digest that each block should have. No IO.
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import xxhash

from streampack.errors import ConfigError

BLOCK_BYTES = 2**15
"""Block size of the digests that `streampack manifest --digests` writes: 16 characters for each 32 KiB. A reader that
wants a part of a block reads all of it, and shuffled blocks end anywhere; larger ones would have more read twice."""
MAX_BLOCK_BYTES = 64 * 2**20
"""The largest block: it is held in memory before its first byte is used."""
PATTERN = r"^[a-z0-9]+(/[1-9][0-9]{0,8})?:([0-9a-f]{2})+$"

_ALGORITHMS: dict[str, tuple[Callable[[], Any], int]] = {  # maker, digest's bytes; Any: hashlib's objects and xxhash's
    "xxh3": (xxhash.xxh3_64, 8),
    "md5": (partial(hashlib.md5, usedforsecurity=False), 16),
    "sha1": (partial(hashlib.sha1, usedforsecurity=False), 20),
    "sha256": (hashlib.sha256, 32),
    "sha512": (hashlib.sha512, 64),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Digest:
    """One digest of the whole shard, or one of each of its blocks."""

    algorithm: str
    block_bytes: int | None
    """Bytes of a block; None: the digest is of the whole shard."""
    hexdigests: str

    def hasher(self) -> Any:
        """A new one: `update(bytes)` and `hexdigest()`."""
        return _ALGORITHMS[self.algorithm][0]()

    def expected(self, index: int) -> str:
        """What block number `index` hashes to (0: the whole shard, where there are no blocks)."""
        width = 2 * _ALGORITHMS[self.algorithm][1]
        return self.hexdigests[width * index : width * (index + 1)]


def parse_digest(text: str, *, size: int | None) -> Digest:
    """The digest that the text says, of a shard of `size` bytes.

    Raises:
        ConfigError: the algorithm is not known, or the number of digits does not fit the size.
    """
    head, colon, hexdigests = text.partition(":")
    algorithm, slash, block = head.partition("/")
    if not colon or algorithm not in _ALGORITHMS or re.fullmatch(PATTERN, text) is None:
        shown = text if len(text) <= 60 else f"{text[:57]}..."
        known = ", ".join(sorted(_ALGORITHMS))
        raise ConfigError(f"the digest {shown!r} is not ALGORITHM:HEX or ALGORITHM/BLOCK_BYTES:HEX with one of {known}")
    block_bytes = int(block) if slash else None
    if block_bytes is not None and block_bytes > MAX_BLOCK_BYTES:
        raise ConfigError(f"a digest of blocks of {block_bytes:,} bytes; a block may have at most {MAX_BLOCK_BYTES:,}")
    if block_bytes is not None and size is None:
        raise ConfigError("digests of blocks need the shard's size in the manifest")
    num_digests = 1 if block_bytes is None or size is None else -(-size // block_bytes)
    digits = 2 * _ALGORITHMS[algorithm][1] * num_digests
    if len(hexdigests) != digits:
        raise ConfigError(f"a {head} digest of {len(hexdigests)} hex digits; a shard of {size} bytes needs {digits}")
    return Digest(algorithm=algorithm, block_bytes=block_bytes, hexdigests=hexdigests)


def block_bytes_of(text: str | None) -> int:
    """Bytes of the blocks of a digest text that was checked before; 0 where it has none."""
    head = "" if text is None else text.partition(":")[0]
    return int(head.partition("/")[2] or 0)


class BlockDigester:
    """Makes the digest text of bytes that come in pieces of any size."""

    def __init__(self, algorithm: str = "xxh3", block_bytes: int = BLOCK_BYTES) -> None:
        self._head = f"{algorithm}/{block_bytes}:"
        self._make = _ALGORITHMS[algorithm][0]
        self._block_bytes = block_bytes
        self._done: list[str] = []
        self._hasher = self._make()
        self._in_block = 0

    def update(self, data: bytes) -> None:
        """Take the next bytes."""
        view = memoryview(data)
        while view:
            part = view[: self._block_bytes - self._in_block]
            self._hasher.update(part)
            self._in_block += len(part)
            view = view[len(part) :]
            if self._in_block == self._block_bytes:
                self._close()

    def text(self) -> str:
        """The digest of all bytes so far; nothing can follow."""
        if self._in_block:
            self._close()
        return self._head + "".join(self._done)

    def _close(self) -> None:
        self._done.append(self._hasher.hexdigest())
        self._hasher = self._make()
        self._in_block = 0
