"""Where a cut through a plain tar falls between two samples, found in the bytes after it, without an index. No IO.

`find_sample(cut)` is a pure function of the shard's bytes from the cut on, so that the lanes on both sides agree, and
a lane that reads a small part of the shard needs nothing from before it::

    |x|a.txt ......|x|a.json ..|x|b.txt .....|x|c.txt ...|     entries; x: prefix headers
          ^cut     ^the first header from the cut: its entry is passed over, as prefix headers may lie before the cut
                               ^the next entry of a sample: of b, which the left lane keeps
                                             ^the boundary: the first entry of another sample; the right lane's first

A payload may hold what looks like a header (a tar inside the tar). A guess is given up where no chain of entries
follows it; even a guess with such a chain may be wrong. So a boundary is never trusted: the left lane, whose own chain
of headers is right from byte 0 on, must arrive at it (`reader.read_range`), and the right lane may look ahead for the
end of an archive before it begins there (`range_start`). Memory is bounded, whatever a member holds.
"""

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from streampack.errors import CorruptShardError, TruncatedShardError
from streampack.tar.format import BadEntryError, Kind, padded, read_entry, split_name
from streampack.tar.headers import BLOCK, looks_like_header
from streampack.tar.scan import scanner

_JUMP_BYTES = 1 << 20
"""Bytes: a larger gap is skipped with a new request; a smaller one is cheaper to read."""
_KEEP_BYTES = 1 << 21
_STEPS, _STEPS_A_BLOCK = 1 << 16, 16
"""Headers that a search may follow, and more for each block that it has seen, so that it ends whatever the bytes are.
Data that is not made to hinder it needs one for each header."""
_MAX_FAR_GUESSES = 64
"""Jumps that may lead nowhere; each costs two requests. More than a few do not happen by accident, and an error is
better than a search of hours."""
_MAGIC, _MAGIC_AT = b"ustar", 257
_NUMBERS_AT = 100
_USUAL = re.compile(rb"(?s)(?:[0-7]{7}[\0 ]){3}.{12}[0-7]{11}[\0 ]")
"""The numbers of a header that a scanner does not look at, as all writers write them: mode, owners, time."""
_FEW_FILES = 16
"""Files after a cut among which a search in memory looks for the end of a sample."""
LOOK_BYTES = 1 << 19
"""How far the right lane looks for the end of an archive before it gives its first sample: about its first request."""
CUT_REMEDY = (
    "the shard is cut short or damaged, or it was replaced, or a member looks like a tar inside the tar and a cut fell "
    'into it; for the last, begin a new run: list the shard with "whole": true in a manifest, or store it as '
    ".tar.gz or .tar.zst"
)
"""What to do where no valid entries follow a cut."""


class Boundary(NamedTuple):
    """Where the right lane of a cut begins."""

    offset: int
    """Of the sample's first entry, prefix headers included; the shard's size where nothing is left for the lane."""
    key: str | None
    """That sample's key; None at the shard's start and end."""


def find_sample(open_at: Callable[[int], Iterator[bytes]], *, cut: int, size: int, url: str) -> Boundary:
    """Where the right lane begins if a shard of `size` bytes is cut at byte `cut`.

    `open_at(offset)` gives the shard's bytes from there on; it is called once, and again where a gap is worth a jump.

    Raises:
        TruncatedShardError: It gives fewer bytes than the shard has.
        CorruptShardError: so much around the cut looks like a header, and is not one, that the search would not end.
    """
    found = first_boundary(open_at, begin=cut, end=size, size=size, url=url)
    return Boundary(size, None) if found is None else found


def first_boundary(
    open_at: Callable[[int], Iterator[bytes]], *, begin: int, end: int, size: int, url: str
) -> Boundary | None:
    """`find_sample(begin)`; None if no header in [begin, end) leads to it: then `find_sample(end)` is the same."""
    if begin <= 0:
        return Boundary(0, None)
    if begin >= size:
        return None
    return _search(_Window(open_at, begin, size, url), begin, end)


def boundary_in(data: bytes, *, start: int, begin: int, size: int) -> Boundary | None:
    """`find_sample(begin)` where files of the commonest shape follow the cut, in the shard's bytes from `start` on.

    None: these bytes do not tell; the search has to be made.
    """
    if not max(start, 1) <= begin < size:
        return None
    at, hit = padded(begin), -1
    while hit < 0:
        hit = data.find(_MAGIC, at + _MAGIC_AT - start)
        if hit < 0:
            return None
        at = (hit + start - _MAGIC_AT) // BLOCK * BLOCK
        if at + _MAGIC_AT != hit + start:
            at, hit = at + BLOCK, -1
    at -= start
    last = len(data) - 3 * BLOCK
    if at > last or not (_USUAL.match(data, at + _NUMBERS_AT) or looks_like_header(data[at : at + BLOCK])):
        return None
    first_key = None
    for number in range(_FEW_FILES):
        if at > last:
            return None
        files, at, payload = scanner.find(data, at, at, start, end=len(data))
        if not files:
            return None
        names = split_name(files[0][0]) if number else None  # the first one is passed over
        if names is not None:
            if first_key is None:
                first_key = names[0]
            elif names[0] != first_key:
                return Boundary(files[0][1], names[0])
        if payload >= 0:
            return None
    return None


def range_start(
    open_at: Callable[[int], Iterator[bytes]], *, begin: int, end: int, size: int, url: str, look_bytes: int
) -> tuple[int, bool] | None:
    """The offset of `first_boundary`, and whether it is doubtful.

    It is where an archive ends within `look_bytes` of it and other bytes follow: it then lies in an archive inside the
    archive, or in one of several that were joined.
    """
    if begin <= 0:
        return 0, False
    if begin >= size:
        return None
    window = _Window(open_at, begin, size, url)
    found = _search(window, begin, end)
    return None if found is None else (found.offset, _ends_early(window, found.offset, look_bytes))


def _ends_early(window: "_Window", start: int, look_bytes: int) -> bool:
    """Whether the entries from `start` on end, within `look_bytes`, though the shard does not."""
    window.offset = start
    try:
        while window.offset < start + look_bytes:
            entry = read_entry(window)
            if entry.kind is Kind.ZERO_BLOCK:
                return not window.is_zero_to_the_end()
            if entry.kind is Kind.NO_BYTES:
                return False
            window.skip_to(entry.end)
    except BadEntryError:  # the reading of the range will say so
        pass
    return False


def _search(window: "_Window", begin: int, end: int) -> Boundary | None:
    # What a header leads to depends on where its entry ends alone. From an offset on a walk that led nowhere another
    # one would lead nowhere too, so it is left out; the first header from the cut that leads anywhere decides, and so
    # the None above is exact.
    broken: set[int] = set()
    num_far = 0
    furthest = begin
    at = window.find_header(begin, end)
    while at is not None:
        num_opens = window.num_opens
        entry_end = window.entry_end(at)
        if entry_end is not None and entry_end not in broken:
            result = _walk(window, entry_end, broken)
            if isinstance(result, Boundary):
                return result
            furthest = max(furthest, result)
        if window.num_takes > _STEPS + _STEPS_A_BLOCK * (furthest - begin) // BLOCK:
            what = f"{window.num_takes} headers after the cut at byte {begin} were followed and led nowhere"
            raise CorruptShardError(f"{what}; {CUT_REMEDY}", url=window.url, offset=at)
        num_far += window.num_opens > num_opens
        if num_far > _MAX_FAR_GUESSES:
            what = f"{num_far} times what looked like a header after the cut at byte {begin} led far and nowhere"
            raise CorruptShardError(f"{what}; {CUT_REMEDY}", url=window.url, offset=at)
        at = window.find_header(at + BLOCK, end)
    return None


def _walk(window: "_Window", start: int, passed: set[int]) -> Boundary | int:
    """The boundary after the sample of the first keyed entry from `start` on, or where the chain of entries breaks.

    The offsets of the entries are added to `passed`.
    """
    window.offset = start
    first_key = None
    while True:
        at = window.offset
        passed.add(at)
        try:
            entry = read_entry(window)
            if entry.kind is Kind.NO_BYTES or (entry.kind is Kind.ZERO_BLOCK and window.is_zero_to_the_end()):
                return Boundary(window.size, None)
            if entry.kind is Kind.ZERO_BLOCK:
                return at
            names = split_name(entry.name) if entry.kind is not Kind.OTHER else None
            if names is not None:
                if first_key is None:
                    first_key = names[0]
                elif names[0] != first_key:
                    return Boundary(entry.offset, names[0])
            window.skip_to(entry.end)
        except BadEntryError:
            return at


class _Window:
    """A shard as a Source that can go back: some MiB are kept, anything else is opened again."""

    def __init__(self, open_at: Callable[[int], Iterator[bytes]], offset: int, size: int, url: str) -> None:
        self.offset = offset
        self.size = size
        self.url = url
        self._open_at = open_at
        self._chunks = open_at(offset)
        self.num_opens = 1
        self.num_takes = 0
        self._base = offset
        self._buffer = bytearray()

    def take(self, size: int) -> bytes:
        data = self.read(self.offset, size)
        self.num_takes += 1
        self.offset += len(data)
        return data

    def skip_to(self, offset: int) -> None:
        if offset > self.size:
            raise BadEntryError("the member is larger than the shard", self.offset, is_short=True)
        self.offset = offset

    def read(self, offset: int, size: int) -> bytes:
        """Bytes at any offset, fewer only at the shard's end."""
        end = min(offset + size, self.size)
        if not self._base <= offset <= self._base + len(self._buffer) + _JUMP_BYTES:
            self._close()
            self._base = offset
            self._buffer = bytearray()
            self._chunks = self._open_at(self._base)
            self.num_opens += 1
        while self._base + len(self._buffer) < end:
            self._fill(offset)
        begin = offset - self._base
        return bytes(self._buffer[begin : end - self._base])

    def _fill(self, keep_from: int) -> None:
        """Append a chunk; forget what is too far back, but never what is needed from `keep_from` on."""
        chunk = next(self._chunks, None)
        if chunk is None:
            have = self._base + len(self._buffer)
            what = f"the bytes end, but the shard was listed with {self.size}; list or copy it again"
            raise TruncatedShardError(what, url=self.url, offset=have)
        self._buffer += chunk
        surplus = min(len(self._buffer) - _KEEP_BYTES, keep_from - self._base)
        if surplus > 0:
            del self._buffer[:surplus]
            self._base += surplus

    def _close(self) -> None:
        close = getattr(self._chunks, "close", None)  # a generator may hold a connection
        if close is not None:
            close()

    def find_header(self, begin: int, end: int) -> int | None:
        """Offset of the first block in [begin, end) that looks like a header."""
        at = padded(begin)
        while at < end:
            block = self.read(at, BLOCK)
            if len(block) < BLOCK:
                return None
            if looks_like_header(block):
                return at
            # The magic of the next header that is in the buffer, or the first block that is not.
            have = self._base + len(self._buffer)
            hit = self._buffer.find(b"ustar", at + BLOCK + 257 - self._base)
            at = have // BLOCK * BLOCK if hit < 0 else (hit + self._base - 257) // BLOCK * BLOCK
        return None

    def entry_end(self, header: int) -> int | None:
        """Where the entry of a header ends; None where it is none, or is larger than the shard."""
        self.offset = header
        try:
            end = read_entry(self).end
            self.skip_to(end)
        except BadEntryError:
            return None
        return end

    def is_zero_to_the_end(self) -> bool:
        at = self.offset
        while piece := self.read(at, _KEEP_BYTES >> 4):
            if piece.count(0) != len(piece):
                return False
            at += len(piece)
        return True
