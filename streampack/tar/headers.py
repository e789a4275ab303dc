"""Single blocks of a tar's metadata in, what they say out: a header, the records of a PAX header, a name.

PAX, GNU, USTAR and V7 headers are understood as far as names, sizes and kinds go.
Never: a header with a wrong checksum, or with an invalid number; those are a ValueError.
"""

from collections.abc import Mapping
from typing import NamedTuple
from zlib import adler32

BLOCK = 512
MAX_ENTRY_BYTES = 1 << 50
"""Bytes; no storage holds a member of a pebibyte, so a larger number is damage."""

PREFIX_KINDS = frozenset(b"xXgLK")
PAX_KINDS = frozenset(b"xXg")  # X: Solaris' name for x
GLOBAL_KIND = ord("g")
LONG_NAME_KIND = ord("L")
SPARSE_KIND = ord("S")
FILE_KINDS = frozenset(b"07S\0")  # file, contiguous file, GNU sparse file, V7 file
PLAIN_KINDS = frozenset(b"07\0")
"""Of FILE_KINDS those that a reader needs nothing but the header for."""
BARE_KINDS = frozenset(b"123456")  # links, devices, directories, pipes: no payload, whatever the size field says
OTHER_KINDS = frozenset(b"5DVAEI")  # directories, the label of a volume, Solaris' attributes: never a member
KNOWN_KINDS = PREFIX_KINDS | FILE_KINDS | BARE_KINDS | frozenset(b"ABCDEFGHIJMNOPQRTUVWYZ")
_SPARSE_RECORDS = (b"GNU.sparse.major", b"GNU.sparse.map", b"GNU.sparse.size")
HARD_LINK_KIND = ord("1")
LONG_LINK_KIND = ord("K")
_SHOWN = 200
"""Characters of a name that an error shows."""
_NO_FILES: Mapping[int, str] = {
    HARD_LINK_KIND: "a hard link to {link!r}, without bytes of its own; write the shard with tar --hard-dereference",
    ord("2"): "a symbolic link to {link!r}, without bytes of its own; write the shard with tar --dereference",
    ord("3"): "a device and not a file",
    ord("4"): "a device and not a file",
    ord("6"): "a pipe and not a file",
    ord("M"): "the rest of a file that begins in another volume; write the shard without --multi-volume",
}
"""What stands in the place of a file, by its kind, and what to do."""


class Header(NamedTuple):
    """One header block, parsed."""

    kind: int
    """The type flag's byte."""
    name: str
    size: int
    """Payload bytes after the header, without padding."""


class PaxFields(NamedTuple):
    """What a PAX header changes about the next entry; None where it says nothing."""

    name: str | None
    link: str | None
    """What a link leads to."""
    size: int | None
    is_sparse: bool
    flaw: str
    """Why a field may be missing here although the header gives it; "": none is."""


def parse_header(block: bytes) -> Header:
    """The header in a block of 512 bytes, or a ValueError that says why it is not one."""
    stored = parse_number(block[148:156])
    # adler32's low half is 1 + the sum of the bytes modulo 65521: exact for 256 bytes, and a fifth of sum()'s time.
    # The checksum counts its own field as eight blanks (256).
    blanks = 256 - sum(block[148:156])
    actual = (adler32(block[:256]) & 0xFFFF) + (adler32(block[256:]) & 0xFFFF) - 2 + blanks
    if stored != actual and stored != sum(byte - (byte >> 7 << 8) for byte in block) + blanks:  # old Suns: signed bytes
        raise ValueError(f"a header's checksum is wrong: it says {stored}, its bytes give {actual}")
    kind = block[156]
    size = parse_number(block[124:136])
    if not 0 <= size <= MAX_ENTRY_BYTES:
        raise ValueError(f"a header gives an absurd size: {size} bytes")
    name = parse_text(block[:100])
    if block[345] and block[257:263] == b"ustar\0":  # GNU and V7 headers keep other things there
        name = f"{parse_text(block[345:500])}/{name}"
    if kind in BARE_KINDS or (kind == 0 and name.endswith("/")):  # V7 marks a directory by a slash at the end
        return Header(kind or ord("5"), name, 0)
    return Header(kind, name, size)


def parse_number(field: bytes) -> int:
    """A numeric header field: octal digits ended by NUL or blanks (none: 0), or base 256 where the top bit is set."""
    if field[0] & 0x80:
        number = int.from_bytes(field[1:], "big") + ((field[0] & 0x3F) << 8 * (len(field) - 1))
        return number - (1 << 8 * len(field) - 2) if field[0] & 0x40 else number
    digits = field.partition(b"\0")[0].strip() or b"0"
    try:
        if digits.isdigit():  # int() would also take signs and underscores
            return int(digits, 8)
    except ValueError:
        pass
    raise ValueError(f"a number in a header is not octal: {field!r}")


def parse_text(field: bytes) -> str:
    """The text up to the first NUL, as UTF-8; bytes that are not UTF-8 become lone surrogates, as in `os.fsdecode`."""
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def parse_pax(payload: bytes) -> PaxFields:
    r"""The fields of a PAX header's payload that a reader must obey; a ValueError where it gives an absurd size.

    >>> parse_pax(b"14 path=a.txt\n11 size=70\n")
    PaxFields(name='a.txt', link=None, size=70, is_sparse=False, flaw='')
    """
    records: dict[bytes, bytes] = {}
    position, flaw = 0, ""
    while position < len(payload) and payload[position]:  # some writers count padding in
        blank = payload.find(b" ", position, position + 20)
        digits = payload[position:blank] if blank > 0 else b""
        end = position + int(digits) if digits.isdigit() else 0
        keyword, equals, value = payload[blank + 1 : max(end - 1, 0)].partition(b"=")
        if not equals or not keyword or payload[end - 1 : end] != b"\n":
            flaw = f"a PAX header holds a broken record: {payload[position : position + 40]!r}"
            break
        records[keyword] = value
        position = end
    path = records.get(b"GNU.sparse.name", records.get(b"path"))
    name = None if path is None else path.decode("utf-8", "surrogateescape").rstrip("/")
    link = records.get(b"linkpath")
    size = None
    if b"size" in records:
        digits = records[b"size"]
        if not digits.isdigit() or len(digits) > 20 or int(digits) > MAX_ENTRY_BYTES:
            raise ValueError(f"a PAX header gives an absurd size: {digits[:40]!r}")
        size = int(digits)
    if not name and name is not None:
        flaw = flaw or "a PAX header gives an empty name"
    return PaxFields(
        name,
        None if link is None else link.decode("utf-8", "surrogateescape"),
        size,
        any(keyword in records for keyword in _SPARSE_RECORDS),
        flaw,
    )


def flaw_of(kind: int, link: str) -> str:
    """Why an entry of this kind, which leads to `link`, is no file with bytes of its own; "" where it is one."""
    if kind in FILE_KINDS:
        return ""
    unknown = f"of the unknown kind {chr(kind)!r}; write the shard with files only"
    return _NO_FILES[kind].format(link=link[:_SHOWN]) if kind in _NO_FILES else unknown


def is_header(block: bytes) -> bool:
    """Whether a block, where a header may be, is one: its checksum and its size are right."""
    try:
        return len(block) == BLOCK and parse_header(block) is not None
    except ValueError:
        return False


def with_right_checksum(block: bytes) -> bytes:
    """The block with the checksum that it would have as a header."""
    checksum = sum(block[:148]) + 8 * ord(" ") + sum(block[156:])
    return block[:148] + b"%06o\0 " % checksum + block[156:]


def looks_like_header(block: bytes) -> bool:
    """Whether a block found by chance is a header: magic, kind and numbers as they should be, the checksum right.

    Stricter than `parse_header`, which also takes V7 headers (no magic), because there a header must be.
    """
    if block[257:262] != b"ustar" or block[156] not in KNOWN_KINDS:
        return False
    try:
        parse_header(block)
        for field in (block[100:108], block[108:116], block[116:124], block[136:148]):  # mode, uid, gid, mtime
            parse_number(field)
    except ValueError:
        return False
    return True
