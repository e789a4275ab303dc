"""The tar format: bytes in, entries out. Nothing is kept except the current chunk.

An entry is a header block of 512 bytes and the blocks of its payload. Prefix headers may come before it: blocks of
their own whose payload only describes the entry (PAX `x`, GNU long name `L`, long link `K`, PAX global `g`)::

    byte 0        512             1024      1536                    2560
    [x header]    [path=d/a.txt]  [header]  [700 bytes of payload]  [next entry's header ...

What must not be misread (links, sparse files, devices), or whose name is not known, is an entry with a flaw: it costs
that member and nothing else. Bytes that are no entry are a BadEntryError; the reader adds the URL.
Never: a header with a wrong checksum, or with an invalid number, as an entry.
"""

import enum
from collections.abc import Iterable
from typing import NamedTuple, Protocol

from streampack.tar.headers import (
    BARE_KINDS,
    BLOCK,
    GLOBAL_KIND,
    HARD_LINK_KIND,
    LONG_LINK_KIND,
    LONG_NAME_KIND,
    OTHER_KINDS,
    PAX_KINDS,
    PREFIX_KINDS,
    SPARSE_KIND,
    flaw_of,
    parse_header,
    parse_pax,
    parse_text,
)

ZERO_BLOCK = bytes(BLOCK)
MAX_PREFIX_BYTES = 1 << 16
"""The most that is read of the prefix headers of one entry; looking back this far finds where it begins."""
MAX_PASSED_BYTES = 1 << 24
"""The most that prefix headers, or the map of a sparse file's holes, may take at all; they are passed over."""
MAX_NAME_LENGTH = 4096
"""Characters; no file system has a longer path."""


class Kind(enum.Enum):
    """What `read_entry` met."""

    FILE = enum.auto()  # or what stands in the place of one, with a flaw
    OTHER = enum.auto()  # a directory, or a label: nothing that could be a member
    ZERO_BLOCK = enum.auto()  # the archive's end
    NO_BYTES = enum.auto()  # the end of the bytes, where an entry could have begun


class Entry(NamedTuple):
    """One entry, described by its header and its prefix headers."""

    kind: Kind
    offset: int
    """Offset of its first block, prefix headers included."""
    name: str
    """That of its header where the name is not known."""
    size: int
    """Payload bytes, without padding."""
    end: int
    """Offset after the padded payload, where the next entry begins."""
    flaw: str = ""
    """Why the payload is not the content of a file of that name; "" where it is."""
    is_named: bool = True
    """Whether the name is known; else the flaw says why it is not."""
    link: str = ""
    """Of a hard link the name of the file that it means."""


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


class Part(NamedTuple):
    """Some bytes of a larger piece, which is not copied for them."""

    data: bytes
    begin: int
    end: int
    """Index of the byte after the last one; what follows in `data` is no part of it."""


class Chunks:
    """A stream of chunks of any size as a Source. A payload is copied once, however it is chunked."""

    __slots__ = ("_chunk", "_chunks", "_end", "_position", "offset")

    def __init__(self, chunks: Iterable[bytes], offset: int = 0, *, first: Part | None = None) -> None:
        """`first`: what comes before `chunks`."""
        self._chunks = iter(chunks)
        self._chunk, self._position, self._end = first or (b"", 0, 0)
        self.offset = offset

    def at_hand(self) -> Part:
        """The current chunk, from the next byte on."""
        return Part(self._chunk, self._position, self._end)

    def refill(self) -> Part:
        """`at_hand`, of the next chunk where the current one is used up."""
        if self._position == self._end and (chunk := next(self._chunks, None)) is not None:
            self._set(chunk, 0)
        return Part(self._chunk, self._position, self._end)

    def _set(self, chunk: bytes, position: int) -> None:
        self._chunk, self._position, self._end = chunk, position, len(chunk)

    def take(self, size: int) -> bytes:
        """The next `size` bytes, fewer only where the chunks end."""
        begin = self._position
        end = begin + size
        if end <= self._end:
            self._position = end
            self.offset += size
            return self._chunk[begin:end]
        parts = [memoryview(self._chunk)[begin : self._end]]
        missing = end - self._end
        self._position = self._end
        while missing and (chunk := next(self._chunks, None)) is not None:
            self._set(chunk, min(missing, len(chunk)))
            parts.append(memoryview(chunk)[: self._position])
            missing -= self._position
        self.offset += size - missing
        return b"".join(parts)

    def skip_to(self, offset: int) -> None:
        """Pass over bytes without copying them."""
        self._position += offset - self.offset
        while self._position > self._end:
            chunk = next(self._chunks, None)
            if chunk is None:
                end = offset - self._position + self._end
                raise BadEntryError("the bytes end inside a member", end, is_short=True)
            self._set(chunk, self._position - self._end)
        self.offset = offset

    def pass_zeros(self) -> bytes:
        """Pass over blocks of zeros; the first other block, which is then the next, or b"" where the bytes end."""
        while True:
            rest = self._chunk[self._position : self._end]
            if rest.count(0) != len(rest):
                break
            self.offset += len(rest)
            chunk = next(self._chunks, None)
            self._set(chunk or b"", 0)
            if chunk is None:
                return b""
        zeros = len(rest) - len(rest.lstrip(b"\0"))
        begins = zeros - (self.offset + zeros) % BLOCK  # below 0: the block begins with zeros of earlier chunks
        self._set(bytes(-begins) + rest if begins < 0 else rest[begins:], 0)
        self.offset += begins
        block = self.take(BLOCK)
        self.put_back(block)
        return block

    def put_back(self, data: bytes) -> None:
        """Make `data` the next bytes again: those that were taken last, or as many others in their place."""
        self._set(data + self._chunk[self._position : self._end], 0)
        self.offset -= len(data)


def read_entry(source: Source) -> Entry:
    """The next entry, with what its prefix headers say of it. The source is then at its payload."""
    offset = source.offset
    name: str | None = None
    link: str | None = None
    size: int | None = None
    is_sparse = is_prefixed = False
    flaw = ""
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
            if end - offset > MAX_PASSED_BYTES:
                raise ValueError(f"the prefix headers of an entry are too large: above {MAX_PASSED_BYTES} bytes")
            is_prefixed |= kind != GLOBAL_KIND  # which may also stand before the archive's end
            is_read = end - offset <= MAX_PREFIX_BYTES
            payload = source.take(header.size) if is_read else b""
            source.skip_to(end)
            if not is_read:
                flaw = flaw or f"its prefix headers are too large to be read: above {MAX_PREFIX_BYTES} bytes"
            elif kind in PAX_KINDS:
                pax = parse_pax(payload)
                flaw = flaw or pax.flaw
                if kind == GLOBAL_KIND:
                    if pax.name is not None or pax.size is not None:
                        raise ValueError("a global PAX header gives one path or size to all entries")
                else:  # the first of several headers wins, as in Python's tarfile
                    name = pax.name if name is None else name
                    link = pax.link if link is None else link
                    size = pax.size if size is None else size
                    is_sparse |= pax.is_sparse
            elif kind == LONG_NAME_KIND and name is None:
                name = parse_text(payload)
            elif kind == LONG_LINK_KIND and link is None:
                link = parse_text(payload)
        except ValueError as error:
            raise BadEntryError(str(error), at, member=name, block=block) from None
    if kind in BARE_KINDS:
        size = 0
    elif size is None:
        size = header.size
    if kind == SPARSE_KIND:
        is_sparse = True
        _pass_map(source, block, name or header.name)
    end = source.offset + padded(size)
    if kind in OTHER_KINDS:
        return Entry(Kind.OTHER, offset, name or header.name, size, end)
    if flaw:  # what was not read may hold the name
        flaw = f"{flaw}; in the header it is {header.name!r:.100}"
        return Entry(Kind.FILE, offset, header.name, size, end, flaw, is_named=False)
    if name is None:
        name = header.name
    if len(name) > MAX_NAME_LENGTH:
        flaw = f"a name of {len(name)} characters, more than {MAX_NAME_LENGTH}"
    elif is_sparse:
        flaw = "a sparse file, of which the holes are left out; write the shard without --sparse"
    if link is None:
        link = parse_text(block[157:257])
    flaw = flaw or flaw_of(kind, link)
    return Entry(Kind.FILE, offset, name, size, end, flaw, link=link if kind == HARD_LINK_KIND else "")


def _pass_map(source: Source, block: bytes, name: str) -> None:
    """Pass over the map of a sparse file's holes, as far as it has blocks of its own."""
    begin = source.offset
    is_extended = block[482]
    while is_extended:
        if source.offset - begin > MAX_PASSED_BYTES:
            what = f"the map of a sparse file's holes is too large: above {MAX_PASSED_BYTES} bytes"
            raise BadEntryError(what, begin - BLOCK, member=name)
        block = source.take(BLOCK)
        is_extended = len(block) == BLOCK and block[504]


def padded(size: int) -> int:
    """Bytes that a payload of `size` bytes takes, in whole blocks."""
    return -(-size // BLOCK) * BLOCK


def split_name(name: str) -> tuple[str, str] | None:
    """(key, extension) of a member in WebDataset's sense, or None where the member belongs to no sample.

    The extension begins after the first dot of the base name and is lower-cased; folders stay in the key. Those that
    belong to none: names without a dot, those of WebDataset's own folders ("__meta__/..."), and base names that begin
    with a dot (macOS writes "._a.txt" beside "a.txt"), which WebDataset would count to a sample of the folder's name.

    >>> split_name("train/en/000017.meta.JSON")
    ('train/en/000017', 'meta.json')
    >>> split_name("README") is split_name("__index__/a.txt") is split_name("en/._000017.txt") is None
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
    if not dot or not stem:
        return None
    return folder + slash + stem, extension.lower()
