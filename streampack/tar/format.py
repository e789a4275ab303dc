"""The tar format: bytes in, entries out. Nothing is kept except the current chunk.

An entry is a header block of 512 bytes and the blocks of its payload. Prefix headers may come before it: blocks of
their own whose payload only describes the entry (PAX `x`, GNU long name `L`, long link `K`, PAX global `g`)::

    byte 0        512             1024      1536                    2560
    [x header]    [path=d/a.txt]  [header]  [700 bytes of payload]  [next entry's header ...

PAX, GNU, USTAR and V7 headers are understood as far as names and sizes go; what must not be misread (sparse files,
links, devices) is recognised. An invalid entry is a BadEntryError, in functions on one block a ValueError; the reader
adds the URL. Never: a header with a wrong checksum, or with an invalid number, as an entry.
"""

import enum
from collections.abc import Iterable
from typing import NamedTuple, Protocol
from zlib import adler32

BLOCK = 512
ZERO_BLOCK = bytes(BLOCK)
MAX_PREFIX_BYTES = 1 << 16
"""The most that the prefix headers of one entry may take together; looking back this far finds where it begins."""
MAX_MAP_BYTES = 1 << 20
"""Bytes of the map of a sparse file's holes: room for 43,000 of them."""
MAX_NAME_LENGTH = 4096
"""Characters; no file system has a longer path."""
MAX_ENTRY_BYTES = 1 << 50
"""Bytes; no storage holds a member of a pebibyte, so a larger number is damage."""

PREFIX_KINDS = frozenset(b"xXgLK")
_PAX_KINDS = frozenset(b"xXg")  # X: Solaris' name for x
_GLOBAL_KIND = ord("g")
_LONG_NAME_KIND = ord("L")
_SPARSE_KIND = ord("S")
_FILE_KINDS = frozenset(b"07S\0")  # file, contiguous file, GNU sparse file, V7 file
_BARE_KINDS = frozenset(b"123456")  # links, devices, directories, pipes: no payload, whatever the size field says
KNOWN_KINDS = PREFIX_KINDS | _FILE_KINDS | _BARE_KINDS | frozenset(b"ABCDEFGHIJMNOPQRTUVWYZ")
_SPARSE_RECORDS = (b"GNU.sparse.major", b"GNU.sparse.map", b"GNU.sparse.size")


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
    size: int | None
    is_sparse: bool


class Kind(enum.Enum):
    """What `read_entry` met."""

    FILE = enum.auto()
    SPARSE = enum.auto()  # a file whose stored bytes are not its content
    OTHER = enum.auto()  # a directory, a link, a device, something unknown: passed over
    ZERO_BLOCK = enum.auto()  # the archive's end
    NO_BYTES = enum.auto()  # the end of the bytes, where an entry could have begun


class Entry(NamedTuple):
    """One entry, described by its header and its prefix headers."""

    kind: Kind
    offset: int
    """Offset of its first block, prefix headers included."""
    name: str
    size: int
    """Payload bytes, without padding."""
    end: int
    """Offset after the padded payload, where the next entry begins."""


class BadEntryError(Exception):
    """Bytes that are not a tar entry: damage if they should be one, a wrong guess in a search for a header."""

    def __init__(
        self, what: str, offset: int, *, member: str | None = None, is_short: bool = False, block: bytes = b""
    ) -> None:
        super().__init__(what)
        self.what = what
        self.offset = offset
        self.member = member
        self.is_short = is_short
        self.block = block  # where a header should be


class Source(Protocol):
    """Bytes that are read forward; `offset` is that of the next byte, from the shard's start."""

    offset: int

    def take(self, size: int) -> bytes:
        """The next `size` bytes, fewer only where the bytes end."""

    def skip_to(self, offset: int) -> None:
        """Pass over bytes; a BadEntryError that `is_short` where they end before `offset`."""


class Chunks:
    """A stream of chunks of any size as a Source. A payload is copied once, however it is chunked."""

    __slots__ = ("_chunk", "_chunks", "_position", "offset")

    def __init__(self, chunks: Iterable[bytes], offset: int = 0) -> None:
        self._chunks = iter(chunks)
        self._chunk = b""
        self._position = 0
        self.offset = offset

    def at_hand(self) -> tuple[bytes, int]:
        """The current chunk, and the index of the next byte in it."""
        return self._chunk, self._position

    def take(self, size: int) -> bytes:
        """The next `size` bytes, fewer only where the chunks end."""
        begin = self._position
        end = begin + size
        if end <= len(self._chunk):
            self._position = end
            self.offset += size
            return self._chunk[begin:end]
        parts = [memoryview(self._chunk)[begin:]]
        missing = end - len(self._chunk)
        self._position = len(self._chunk)
        while missing and (chunk := next(self._chunks, None)) is not None:
            self._chunk = chunk
            self._position = min(missing, len(chunk))
            parts.append(memoryview(chunk)[: self._position])
            missing -= self._position
        self.offset += size - missing
        return b"".join(parts)

    def skip_to(self, offset: int) -> None:
        """Pass over bytes without copying them."""
        self._position += offset - self.offset
        while self._position > len(self._chunk):
            chunk = next(self._chunks, None)
            if chunk is None:
                end = offset - self._position + len(self._chunk)
                raise BadEntryError("the bytes end inside a member", end, is_short=True)
            self._position -= len(self._chunk)
            self._chunk = chunk
        self.offset = offset

    def first_nonzero(self) -> int | None:
        """Read to the end; the offset of the first byte that is not zero, None if there is none."""
        rest: bytes | None = self._chunk[self._position :]
        while rest is not None:
            if rest.count(0) != len(rest):
                return self.offset + len(rest) - len(rest.lstrip(b"\0"))
            self.offset += len(rest)
            rest = next(self._chunks, None)
        return None


def read_entry(source: Source) -> Entry:
    """The next entry, with what its prefix headers say of it. The source is then at its payload."""
    offset = source.offset
    name: str | None = None
    size: int | None = None
    is_sparse = is_prefixed = False
    while True:
        at = source.offset
        block = source.take(BLOCK)
        if len(block) < BLOCK:
            if not block and not is_prefixed:
                return Entry(Kind.NO_BYTES, offset, "", 0, at)
            what = "the bytes end inside a header"
            raise BadEntryError(what, at + len(block), member=name, is_short=True, block=block)
        if block == ZERO_BLOCK:
            if is_prefixed:
                raise BadEntryError("the archive ends between a prefix header and the entry that it describes", at)
            return Entry(Kind.ZERO_BLOCK, offset, "", 0, at)
        try:
            header = parse_header(block)
            kind = header.kind
            if kind not in PREFIX_KINDS:
                break
            end = at + BLOCK + padded(header.size)
            if end - offset > MAX_PREFIX_BYTES:
                raise ValueError(f"the prefix headers of an entry are too large: above {MAX_PREFIX_BYTES} bytes")
            payload = source.take(header.size)
            source.skip_to(end)
            if kind in _PAX_KINDS:
                pax = parse_pax(payload)
                if kind == _GLOBAL_KIND:
                    if pax.name is not None or pax.size is not None:
                        raise ValueError("a global PAX header gives one path or size to all entries")
                    continue  # it may also stand before the archive's end
                # The first of several headers wins, as in Python's tarfile.
                name = pax.name if name is None else name
                size = pax.size if size is None else size
                is_sparse |= pax.is_sparse
            elif kind == _LONG_NAME_KIND and name is None:
                name = parse_text(payload)
            is_prefixed = True
        except ValueError as error:
            raise BadEntryError(str(error), at, member=name, block=block) from None
    if name is None:
        name = header.name
    elif len(name) > MAX_NAME_LENGTH:
        what = f"a name of {len(name)} characters, more than {MAX_NAME_LENGTH}"
        raise BadEntryError(what, offset, member=f"{name[:60]}...")
    if kind in _BARE_KINDS:
        return Entry(Kind.OTHER, offset, name, 0, at + BLOCK)
    if size is None:
        size = header.size
    if kind == _SPARSE_KIND:
        is_sparse = True
        is_extended = block[482]
        while is_extended:  # more of the map of holes, in blocks of its own
            if source.offset - at > MAX_MAP_BYTES:
                what = f"the map of a sparse file's holes is too large: above {MAX_MAP_BYTES} bytes"
                raise BadEntryError(what, at, member=name)
            block = source.take(BLOCK)
            is_extended = len(block) == BLOCK and block[504]
    file_kind = Kind.SPARSE if is_sparse else Kind.FILE
    known = file_kind if kind in _FILE_KINDS else Kind.OTHER
    return Entry(known, offset, name, size, source.offset + padded(size))


def padded(size: int) -> int:
    """Bytes that a payload of `size` bytes takes, in whole blocks."""
    return -(-size // BLOCK) * BLOCK


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
    if kind in _BARE_KINDS or (kind == 0 and name.endswith("/")):  # V7 marks a directory by a slash at the end
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
    r"""The fields of a PAX header's payload that a reader must obey, or a ValueError.

    >>> parse_pax(b"14 path=a.txt\n11 size=70\n")
    PaxFields(name='a.txt', size=70, is_sparse=False)
    """
    records: dict[bytes, bytes] = {}
    position = 0
    while position < len(payload) and payload[position]:  # some writers count padding in
        blank = payload.find(b" ", position, position + 20)
        digits = payload[position:blank] if blank > 0 else b""
        end = position + int(digits) if digits.isdigit() else 0
        keyword, equals, value = payload[blank + 1 : max(end - 1, 0)].partition(b"=")
        if not equals or not keyword or payload[end - 1 : end] != b"\n":
            raise ValueError(f"a PAX header holds a broken record: {payload[position : position + 40]!r}")
        records[keyword] = value
        position = end
    path = records.get(b"GNU.sparse.name", records.get(b"path"))
    name = None if path is None else path.decode("utf-8", "surrogateescape").rstrip("/")
    size = None
    if b"size" in records:
        digits = records[b"size"]
        if not digits.isdigit() or len(digits) > 20 or int(digits) > MAX_ENTRY_BYTES:
            raise ValueError(f"a PAX header gives an absurd size: {digits[:40]!r}")
        size = int(digits)
    return PaxFields(name, size, any(keyword in records for keyword in _SPARSE_RECORDS))


def split_name(name: str) -> tuple[str, str] | None:
    """(key, extension) of a member in WebDataset's sense, or None where WebDataset counts the member to no sample.

    The extension begins after the first dot of the base name and is lower-cased; folders stay in the key.

    >>> split_name("train/en/000017.meta.JSON")
    ('train/en/000017', 'meta.json')
    >>> split_name("README") is split_name("__index__/a.txt") is split_name(".hidden") is None
    True
    """
    if "/" not in name and "__" not in name:  # as most
        key, dot, extension = name.partition(".")
        return (key, extension.lower()) if key and dot else None
    if name.startswith("__"):
        top = name.partition("/")[0]
        if len(top) >= 4 and top.endswith("__"):
            return None
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    # ".txt" in a folder: WebDataset takes the folder for the key, unless the folder's own name has a dot.
    if not dot or (not stem and (not slash or "." in folder.rpartition("/")[2])):
        return None
    return folder + slash + stem, extension.lower()
