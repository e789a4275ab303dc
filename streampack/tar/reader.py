"""The bytes of one tar in, samples out. No IO.

Samples are grouped as WebDataset groups them: members that follow each other and share a key. A sample goes out only
when it is known to be complete: the next sample's header, or the end of the archive, has been seen. Never:
fewer samples without an error, from a shard that is cut short, or damaged where a header or an end must be; a member
that is left out although it could be one of a sample. What cannot be read of a good archive is a flaw of its sample:

    a symbolic link, a sparse file, a name that is too long     of that member
    a hard link in a compressed shard; elsewhere it is read     of that member
    two members with one extension                              of both: neither is chosen
    a member without a name                                     of a sample of its own
    another archive after the archive's end (joined by cat)     of a sample of its own, which stands where they meet

A plain tar may be read in ranges. Range i begins where range i-1 ends: at a boundary that is computed from the bytes
around the cut (`cuts`), which a tar inside the tar can fool. So each range's own chain of headers must arrive at the
next one's boundary, and with another key. The first range begins at byte 0, where a header is; so by induction, if no
range complains, together they hold every sample exactly once, in order. That is known only when all have been read.
A range that meets the end of an archive before the shard's end, be it in the bytes after its begin that it looks at
before its first sample, or later, follows the headers from byte 0 to its own begin: only then are these two archives
that were joined, and not the end of one inside the other.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

from streampack.errors import CorruptShardError, ShardError, TruncatedShardError, WrongCutError
from streampack.records import NO_FLAWS, WHOLE_SAMPLE, Sample
from streampack.tar.codecs import decompress, is_compressed, other_format_of
from streampack.tar.cuts import CUT_REMEDY, Boundary, find_sample, range_start
from streampack.tar.format import BadEntryError, Chunks, Entry, Kind, read_entry, split_name
from streampack.tar.headers import BLOCK, looks_like_header
from streampack.tar.links import HardLinks
from streampack.tar.scan import ELSEWHERE, Scanner

MAX_MEMBERS = 1024
"""Members of one sample that are remembered; more are those of samples whose names are equal up to the first dot."""

_ANYWHERE = Boundary(-1, None)
_MAX_EXTENSIONS = 64
"""Extensions for which it is remembered whether they are wanted."""
_new_tuple = tuple.__new__  # half the time of a NamedTuple's own
_REMEDY = "the shard is cut short or damaged; copy or write it again"
_END_BLOCKS = 2
"""Blocks of zeros with which every writer ends an archive; a single one may be damage."""
_TWICE = "the sample has two members with this extension, of which one would be lost; rename one"
_MANY = (
    f"the sample has more than {MAX_MEMBERS} members; its name goes up to the first dot, so put what tells samples "
    "apart before it"
)
_JOINED = (
    "two archives in one file: after the end of an archive another one begins, as where they were joined by cat, or "
    'bytes were lost here; on_error="skip" reads both and counts one bad record; tar --concatenate makes one of them'
)


PassOver: TypeAlias = Callable[[str], None]


def pass_over_silently(_: str) -> None:
    """Forget the name of a file that belongs to no sample."""


def read_samples(
    chunks: Iterable[bytes],
    *,
    url: str,
    wanted: Callable[[str], bool],
    max_member_bytes: int,
    start: int = 0,
    whole: bool = True,
    open_range: Callable[[int, int], Iterator[bytes]] | None = None,
    pass_over: PassOver = pass_over_silently,
) -> Iterator[Sample]:
    """The samples in the bytes of a tar from offset `start`, where an entry begins; their positions are offsets.

    Members whose extension `wanted` refuses are skipped without a copy; they are in `Sample.sizes` only. Wanted ones
    that are not given are in `Sample.flaws`, with the reason: those above `max_member_bytes`, or that would bring those
    of one sample above twice as many; links and sparse files; two with one extension.

    `whole`: the bytes run to the shard's end, which must be an archive's end: a zero block, and only zeros after it.
    Otherwise they end between two samples. `open_range(first, last)` gives the shard's bytes in between, for what hard
    links mean; None: these are flaws. `pass_over` is told the names of files that belong to no sample.

    Raises:
        TruncatedShardError: the bytes end before the archive does.
        CorruptShardError: they are not a tar or a damaged one, or (not `whole`) do not end between two entries.
    """
    until = None if whole else _ANYWHERE
    source = Chunks(chunks, start)
    links = None if open_range is None else HardLinks(open_range)
    return _read(
        source,
        url,
        wanted,
        max_member_bytes,
        until=lambda: until,
        is_cut=not whole,
        links=links,
        pass_over=pass_over,
    )


def read_shard(
    stored: Iterable[bytes],
    *,
    url: str,
    wanted: Callable[[str], bool],
    max_member_bytes: int,
    pass_over: PassOver = pass_over_silently,
) -> Iterator[Sample]:
    """The samples of a whole shard from its stored bytes, compressed as the URL says.

    `read_samples` has the other arguments and the errors; `codecs.decompress` has more.
    """
    source = Chunks(decompress(stored, url=url))
    by_ordinal = is_compressed(url)
    return _read(
        source,
        url,
        wanted,
        max_member_bytes,
        until=lambda: None,
        is_cut=False,
        by_ordinal=by_ordinal,
        pass_over=pass_over,
    )


def read_range(
    open_range: Callable[[int, int], Iterator[bytes]],
    open_at: Callable[[int], Iterator[bytes]],
    *,
    begin: int,
    end: int,
    size: int,
    url: str,
    wanted: Callable[[str], bool],
    max_member_bytes: int,
    resume: int | None = None,
    open_begin: Callable[[int], Iterator[bytes]] | None = None,
) -> Iterator[Sample]:
    """The samples of the range [begin, end) of a plain tar of `size` bytes; `read_samples` has the other arguments.

    The samples are those from `find_sample(begin)` to `find_sample(end)`; the ranges between any cuts hold each sample
    once. `open_range(first, last)` gives the bytes in between, `open_at(offset)` those from there on, of which only the
    first few are read. `resume`: the `Sample.position` in this range to continue from. `open_begin`: as `open_at`, for
    the place where the range begins, around which about `cuts.LOOK_BYTES` are read.

    Raises:
        TruncatedShardError: the shard ends before the archive does.
        CorruptShardError: the shard is damaged.
        WrongCutError: the headers of this range do not arrive where the next one begins; or it begins inside a member,
            of which an archive inside the archive tells that ends in this range.
    """
    if size == 0:
        raise _shard_error(_empty_shard(), url, 0, lambda: None, is_cut=False)

    is_doubtful = False
    if resume is None:
        left = range_start(open_begin or open_at, begin=begin, end=end, size=size, url=url)
        if left is None:
            return
        first, is_doubtful = left
    else:
        first = resume

    @functools.cache
    def right() -> Boundary:
        return find_sample(open_at, cut=end, size=size, url=url)

    if first >= end and first >= right().offset:
        if first > right().offset:
            what = f"this range begins after byte {right().offset}, where the next one begins"
            raise _shard_error(_WrongCut(what, first), url, first, right, is_cut=True)
        return

    def chunks() -> Iterator[bytes]:
        # The search for the right boundary can wait until this range has arrived at its cut.
        if first < end:
            yield from open_range(first, end)
        if right().offset > end:
            yield from open_range(max(first, end), right().offset)

    def until() -> Boundary | None:
        return None if right().offset == size else right()

    def prove() -> None:
        """Raise unless the headers from byte 0 on lead to where this range begins."""
        if begin > 0:
            before, here = Chunks(open_range(0, first)), Boundary(first, None)
            for _ in _read(before, url, lambda _: False, 0, until=lambda: here, is_cut=True):
                pass

    if is_doubtful:
        prove()
    is_cut = begin > 0 or end < size or resume is not None
    yield from _read(
        Chunks(chunks(), first),
        url,
        wanted,
        max_member_bytes,
        until=until,
        is_cut=is_cut,
        prove=prove,
        links=HardLinks(open_range),
    )


def _read(
    source: Chunks,
    url: str,
    wanted: Callable[[str], bool],
    max_member_bytes: int,
    *,
    until: Callable[[], Boundary | None],
    is_cut: bool,
    by_ordinal: bool = False,
    prove: Callable[[], None] = lambda: None,
    links: HardLinks | None = None,
    pass_over: PassOver = pass_over_silently,
) -> Iterator[Sample]:
    """`read_samples` up to the boundary that `until` gives when the bytes end, None: up to the archive's end.

    `is_cut` is for what an error says; `by_ordinal`: positions are ordinals; `prove` raises where `source` may have
    begun inside a member; `links` finds what hard links mean, None: they are flaws.
    """
    start = source.offset
    key: str | None = None
    position = 0
    num_samples = 0
    members: dict[str, bytes] = {}
    sizes: dict[str, int] = {}
    flaws = NO_FLAWS
    chunk = b""
    scanner = Scanner()
    wanted = functools.lru_cache(_MAX_EXTENSIONS)(wanted)
    try:
        while True:
            flaw = ""
            files, end = scanner.files(source)
            if files:
                chunk, _ = source.at_hand()
            else:
                entry = read_entry(source)
                end = entry.end
                if entry.kind is Kind.FILE:
                    files, flaw = [(entry.name, entry.offset, entry.size, ELSEWHERE)], entry.flaw
                elif entry.kind is Kind.ZERO_BLOCK and _is_another_archive(source, entry.offset):
                    prove()
                    files, flaw, end = [("", entry.offset, 0, ELSEWHERE)], _JOINED, source.offset
                elif entry.kind is not Kind.OTHER:
                    break
            for name, begin, size, at in files:
                names = split_name(name)
                if names is None:
                    if name and (size == 0 or not name.endswith("/")):
                        pass_over(name)
                        continue
                    if key is not None:
                        yield _new_tuple(Sample, (key, position, members, sizes, flaws))
                        key = None
                    position = num_samples if by_ordinal else begin
                    num_samples += 1
                    yield Sample(name, position, {}, {}, {WHOLE_SAMPLE: flaw or "a file without a name"})
                    continue
                extension = names[1]
                if names[0] != key:
                    if key is not None:
                        yield _new_tuple(Sample, (key, position, members, sizes, flaws))
                    key = names[0]
                    position = num_samples if by_ordinal else begin
                    num_samples += 1
                    members = {}
                    sizes = {}
                    flaws = NO_FLAWS
                elif extension in sizes or len(sizes) >= MAX_MEMBERS:
                    if wanted(extension) and len(flaws) <= MAX_MEMBERS:
                        members.pop(extension, None)
                        flaws = {**flaws, extension: _TWICE if extension in sizes else _MANY}
                    continue
                sizes[extension] = size
                if wanted(extension):
                    if flaw:
                        content = None
                        if links is not None and entry.link:
                            content = links.content(entry.link, before=begin, limit=max_member_bytes)
                        if content is None:
                            flaws = {**flaws, extension: flaw}
                        else:
                            members[extension], sizes[extension] = content, len(content)
                    elif size > max_member_bytes or (members and size + _held(members) > 2 * max_member_bytes):
                        flaws = {**flaws, extension: f"{size:,} bytes, more than is read of the members of one sample"}
                    else:
                        members[extension] = _payload(source, name, size) if at < 0 else chunk[at : at + size]
            chunk = b""  # frees its memory before the next chunk comes
            source.skip_to(end)
        _check_end(source, entry, until(), key)
    except BadEntryError as bad:
        raise _shard_error(bad, url, start, until, is_cut=is_cut) from None
    if key is not None:
        yield Sample(key, position, members, sizes, flaws)


def _is_another_archive(source: Chunks, zeros_at: int) -> bool:
    """Whether another archive follows the zeros from `zeros_at` on, which end one; the source is then at its begin.

    Raises:
        BadEntryError: other bytes follow.
    """
    block = source.pass_zeros()
    if not block:
        return False
    what = "there are other bytes after the end of the archive"
    if source.offset - zeros_at >= _END_BLOCKS * BLOCK and block[257:262] == b"ustar":
        if looks_like_header(block):
            return True
        what = "two archives in one file, and the first header of the second one is damaged"
    raise BadEntryError(what, source.offset + len(block) - len(block.lstrip(b"\0")))


def _payload(source: Chunks, name: str, size: int) -> bytes:
    """A payload that is not all in the current chunk, or that has an uncommon header."""
    payload = source.take(size)
    if len(payload) < size:
        what = f"the bytes end inside a member, after {len(payload)} of {size}"
        raise BadEntryError(what, source.offset, member=name, is_short=True)
    return payload


def _held(members: dict[str, bytes]) -> int:
    """Bytes of the members; added up for each wanted member after a sample's first, which most samples do not have."""
    return sum(map(len, members.values()))


def _check_end(source: Chunks, last: Entry, until: Boundary | None, key: str | None) -> None:
    """Raise unless the bytes may end here: after entry `last`, in sample `key`."""
    if until is not None:
        if last.kind is Kind.ZERO_BLOCK and (until.key is not None or source.offset != until.offset):
            raise BadEntryError("the archive ends before the range does", last.offset)
        if until.offset not in (-1, source.offset):
            raise BadEntryError(f"the range should go on to byte {until.offset}", source.offset, is_short=True)
        if key is not None and key == until.key:
            raise _WrongCut(f"the next range begins inside sample {key!r}", source.offset)
    elif source.offset == 0:
        raise _empty_shard()
    elif last.kind is not Kind.ZERO_BLOCK:
        raise BadEntryError("the bytes end before the archive does", source.offset, is_short=True)


class _WrongCut(BadEntryError):  # noqa: N818 - named by what is wrong
    """The entries are valid, but the next range begins at a wrong byte."""


def _empty_shard() -> BadEntryError:
    what = "empty shard: it has 0 bytes, and even an archive without members has zero blocks"
    return BadEntryError(what, 0, is_short=True)


def _shard_error(
    bad: BadEntryError, url: str, start: int, until: Callable[[], Boundary | None], *, is_cut: bool
) -> ShardError:
    """What went wrong as an error for the user, and what to do."""
    if bad.block and start == 0 and bad.offset == (len(bad.block) if bad.is_short else 0):
        known = other_format_of(bad.block)
        if known is not None or not bad.is_short:
            what = f"not a tar archive: it begins with {bad.block[:16]!r}" + (f", which is {known}" if known else "")
            return CorruptShardError(f"{what} ({bad.what})", url=url, offset=0)
    kind: type[ShardError] = TruncatedShardError if bad.is_short else CorruptShardError
    if isinstance(bad, _WrongCut) or (bad.is_short and until() is not None):
        kind = WrongCutError  # this range's own headers are right: they lead past where the next one begins
    what = f"{bad.what}; {CUT_REMEDY if is_cut else _REMEDY}"
    return kind(what, url=url, member=bad.member, offset=bad.offset)
