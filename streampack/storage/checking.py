"""Bytes checked against the digests of a manifest.

In: a function that reads a range, and the digests of its bytes. Out: the same bytes.

    blocks      |----|----|----|----|--|          digests, one each
    asked for         ^start      ^stop
    read             |----|----|----|             whole blocks; each is checked before its first byte goes out

A wrong block is requested again, as it may have been altered on its way. A block that stays wrong is an error at its
first byte.
Never: a byte of a block that was not checked. (A digest of a whole shard can only be checked at its end, when most of
its bytes are given; the error comes before the last piece.)
"""

import logging
from collections.abc import Callable, Iterator

from streampack.errors import CorruptShardError
from streampack.storage import threads
from streampack.storage.clients import Clients
from streampack.storage.digests import Digest
from streampack.storage.redaction import named

_log = logging.getLogger(__name__)
_TRIES = 3
OpenRange = Callable[[int, int], Iterator[bytes]]
Forget = Callable[[int, int | None], None]


def check_blocks(
    open_range: OpenRange,
    forget: Forget,
    digest: Digest,
    *,
    start: int,
    stop: int,
    size: int,
    url: str,
    clients: Clients,
) -> Iterator[bytes]:
    """The bytes from `start` to `stop` of a shard of `size` bytes; a block and what `open_range` holds are in memory.

    `forget` removes a range from the cache, which keeps a wrong block as it came.

    Raises:
        CorruptShardError: a block is not what the digest says, however often it is asked for.
    """
    if start >= stop:
        return
    block_bytes = digest.block_bytes
    assert block_bytes is not None, "a digest of blocks"
    index = start // block_bytes
    last = min(-(-stop // block_bytes) * block_bytes, size)
    source = _Pieces(open_range(index * block_bytes, last))
    try:
        while index * block_bytes < stop:
            begin, end = index * block_bytes, min((index + 1) * block_bytes, size)
            for tries in range(1, _TRIES + 1):
                parts, found = source.take(end - begin, digest)
                if found == digest.expected(index):
                    break
                forget(begin, end)
                if tries == _TRIES:
                    raise _error(digest, index, found, url, begin, f"asked for {_TRIES} times")
                _log.warning(
                    "%s, byte %d: a block is not what the manifest's digest says; asking again", named(url), begin
                )
                clients.num_retries += 1
                threads.pause(clients.retry.wait_s(tries))
                source.close()
                source = _Pieces(open_range(begin, last))
            position = begin
            for part in parts:
                yield part[max(start - position, 0) : max(stop - position, 0)]
                position += len(part)
            index += 1
    finally:
        source.close()


def check_whole(chunks: Iterator[bytes], forget: Forget, digest: Digest, *, url: str) -> Iterator[bytes]:
    """All bytes of a shard; the last piece only if the digest is right."""
    hasher, held = digest.hasher(), b""
    for chunk in chunks:
        if held:
            yield held
        hasher.update(chunk)
        held = chunk
    if hasher.hexdigest() != digest.expected(0):
        forget(0, None)
        raise _error(digest, 0, hasher.hexdigest(), url, 0, "and nothing says where it differs")
    yield held


def _error(digest: Digest, index: int, found: str, url: str, offset: int, how: str) -> CorruptShardError:
    what = "the shard" if digest.block_bytes is None else f"the block of {digest.block_bytes} bytes from here on"
    return CorruptShardError(
        f"{what} is not what the manifest says ({digest.algorithm} {found}, expected {digest.expected(index)}; {how}); "
        "copy the shard again, or write the manifest again where the shard was meant to change",
        url=named(url),
        offset=offset,
    )


class _Pieces:
    """A stream of pieces of any size, taken in blocks."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def take(self, num_bytes: int, digest: Digest) -> tuple[list[bytes], str]:
        """The next `num_bytes` in parts, and what they hash to."""
        hasher, parts = digest.hasher(), []
        while num_bytes:
            piece = self._rest or next(self._pieces)  # which gives all bytes or raises
            part, self._rest = piece[:num_bytes], piece[num_bytes:]
            hasher.update(part)
            parts.append(part)
            num_bytes -= len(part)
        return parts, hasher.hexdigest()

    def close(self) -> None:
        """Drop the request that is under way."""
        close = getattr(self._pieces, "close", None)
        if close is not None:
            close()
