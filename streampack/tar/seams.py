"""What follows the end of an archive: nothing, or another archive, as where two were joined by cat. No IO.

    [a.txt ..][zero][zero]...[b.txt ..][c.txt ..][zero][zero]
              ^the seam      ^the first header of the second archive

Nothing but the seam is lost where that header is right, or where only its checksum is wrong and its size leads to the
next header. From any other damage there, reading goes on at the next header, as with `tar --ignore-zeros`. What is done
depends on the shard's bytes alone; so do the ranges between cuts, none of which begins at a header with a wrong
checksum.
Never: bytes that are passed over and not named in the text for the user.
"""

from collections.abc import Callable, Iterator

from streampack.tar.format import ZERO_BLOCK, BadEntryError, Chunks, padded, read_entry
from streampack.tar.headers import (
    BLOCK,
    PLAIN_KINDS,
    PREFIX_KINDS,
    is_header,
    looks_like_header,
    parse_header,
    with_right_checksum,
)

END_BLOCKS = 2
"""Blocks of zeros with which every writer ends an archive; a single one may be damage."""
_MAX_AHEAD = 1 << 24
"""Bytes of the largest member with a wrong checksum behind which the next header is looked for."""
_JOINED = "two archives in one file: after the end of an archive another one begins, as where they were joined by cat"
_WHAT_TO_DO = 'on_error="skip" reads both and counts one bad record; tar --concatenate makes one of them'


class AfterEndError(BadEntryError):
    """Bytes without a header after what is the end of an archive as writers make it."""


def pass_seam(source: Chunks, zeros_at: int) -> str | None:
    """What is lost between the zeros from `zeros_at` on and the next entry, at which the source then is.

    None: only zeros follow.

    Raises:
        BadEntryError: the zeros are less than what ends an archive.
        AfterEndError: other bytes follow, and no header in them.
    """
    block = source.pass_zeros()
    if not block:
        return None
    at = source.offset
    if at - zeros_at < END_BLOCKS * BLOCK:
        raise BadEntryError("there are other bytes after the end of the archive", _first_byte(at, block))
    if is_header(block):
        return f"{_JOINED}, or bytes were lost here; {_WHAT_TO_DO} (byte {at} of the tar)"
    if _mend(source):
        what = "the checksum of the second one's first header is wrong, but its size leads to the next header"
        return f"{_JOINED}; {what}, so that its member is read; {_WHAT_TO_DO} (byte {at} of the tar)"
    is_prefix = block[257:262] == b"ustar" and block[156] in PREFIX_KINDS
    if not _find_header(source):
        what = "there are other bytes after the end of the archive"
        if block[257:262] == b"ustar":
            what = "two archives in one file, and the first header of the second one is damaged"
        raise AfterEndError(what, _first_byte(at, block))
    if is_prefix:  # it described the next entry, whose name and size are therefore not known
        source.skip_to(read_entry(source).end)
    what = f"but its begin is damaged: bytes {at} to {source.offset} are passed over, up to the next header"
    return f"{_JOINED}, {what}; {_WHAT_TO_DO}"


def mend_after_end(source: Chunks, open_range: Callable[[int, int], Iterator[bytes]]) -> None:
    """Where reading continues at a member after a seam, read its header as `pass_seam` let it be read."""
    at = source.offset
    block = source.take(BLOCK)
    source.put_back(block)
    begin = at - END_BLOCKS * BLOCK
    if begin < 0 or len(block) < BLOCK or block == ZERO_BLOCK or is_header(block):
        return
    if b"".join(open_range(begin, at)) == bytes(at - begin):
        _mend(source)


def _mend(source: Chunks) -> bool:
    """Correct the checksum of the next block, a header, if that alone is wrong; whether it is so."""
    block = source.take(BLOCK)
    ahead = b""
    is_sound = False
    if len(block) == BLOCK and block[156] in PLAIN_KINDS:
        right = with_right_checksum(block)
        if looks_like_header(right):
            size = padded(parse_header(right).size)
            if size <= _MAX_AHEAD:
                ahead = source.take(size + BLOCK)
                after = ahead[size:]  # none: the reading of this range ends there, or the shard does
                is_sound = len(ahead) >= size and (after in (b"", ZERO_BLOCK) or looks_like_header(after))
                block = right if is_sound else block
    source.put_back(block + ahead)
    return is_sound


def _find_header(source: Chunks) -> bool:
    """Pass over blocks up to the next that looks like a header; False where the bytes end before."""
    while len(block := source.take(BLOCK)) == BLOCK:
        if block[257:262] == b"ustar" and looks_like_header(block):
            source.put_back(block)
            return True
    return False


def _first_byte(at: int, block: bytes) -> int:
    """The offset of the first byte that is not zero in the block at `at`."""
    return at + len(block) - len(block.lstrip(b"\0"))
