"""The bytes of one tar in, samples out. No IO.

Samples are grouped as WebDataset groups them: members that follow each other and share a key. A sample goes out only
when it is known to be complete: the next sample's header, or the end of the archive, has been seen. Never:
fewer samples without an error, from a shard that is cut short, or damaged where a header or an end must be.

A plain tar may be read in ranges. Range i begins where range i-1 ends: at a boundary that is computed from the bytes
around the cut (`cuts`), which a tar inside the tar can fool. So each range's own chain of headers must arrive at the
next one's boundary, and with another key. The first range begins at byte 0, where a header is; so by induction, if no
range complains, together they hold every sample exactly once, in order.
"""

import functools
from collections.abc import Callable, Iterable, Iterator

from streampack.errors import CorruptShardError, ShardError, TruncatedShardError, WrongCutError
from streampack.records import Sample
from streampack.tar.codecs import decompress, is_compressed, other_format_of
from streampack.tar.cuts import CUT_REMEDY, Boundary, find_sample, first_boundary
from streampack.tar.format import BadEntryError, Chunks, Entry, Kind, read_entry, split_name
from streampack.tar.scan import ELSEWHERE, Scanner

MAX_MEMBERS = 1024
"""Members of one sample; more are those of many samples whose names are equal up to the first dot."""

_ANYWHERE = Boundary(-1, None)
_MAX_EXTENSIONS = 64
"""Extensions for which it is remembered whether they are wanted."""
_new_tuple = tuple.__new__  # half the time of a NamedTuple's own
_REMEDY = "the shard is cut short or damaged; copy or write it again"


def read_samples(
    chunks: Iterable[bytes],
    *,
    url: str,
    wanted: Callable[[str], bool],
    max_member_bytes: int,
    start: int = 0,
    whole: bool = True,
) -> Iterator[Sample]:
    """The samples in the bytes of a tar from offset `start`, where an entry begins; their positions are offsets.

    Members whose extension `wanted` refuses, those above `max_member_bytes`, and sparse files (their stored bytes are
    not their content) are skipped without a copy; they are in `Sample.sizes` only. So are members that would bring
    those of one sample above twice `max_member_bytes` together.

    `whole`: the bytes run to the shard's end, which must be an archive's end: a zero block, and only zeros after it.
    Otherwise they end between two samples.

    Raises:
        TruncatedShardError: the bytes end before the archive does.
        CorruptShardError: they are not a tar or a damaged one, or (not `whole`) do not end between two entries.
    """
    until = None if whole else _ANYWHERE
    source = Chunks(chunks, start)
    return _read(source, url, wanted, max_member_bytes, until=lambda: until, is_cut=not whole)


def read_shard(
    stored: Iterable[bytes], *, url: str, wanted: Callable[[str], bool], max_member_bytes: int
) -> Iterator[Sample]:
    """The samples of a whole shard from its stored bytes, compressed as the URL says.

    `read_samples` has the other arguments and the errors; `codecs.decompress` has more.
    """
    source = Chunks(decompress(stored, url=url))
    by_ordinal = is_compressed(url)
    return _read(source, url, wanted, max_member_bytes, until=lambda: None, is_cut=False, by_ordinal=by_ordinal)


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
) -> Iterator[Sample]:
    """The samples of the range [begin, end) of a plain tar of `size` bytes; `read_samples` has the other arguments.

    The samples are those from `find_sample(begin)` to `find_sample(end)`; the ranges between any cuts hold each sample
    once. `open_range(first, last)` gives the bytes in between, `open_at(offset)` those from there on, of which only the
    first few are read. `resume`: the `Sample.position` in this range to continue from.

    Raises:
        TruncatedShardError: the shard ends before the archive does.
        CorruptShardError: the shard is damaged.
        WrongCutError: the headers of this range do not arrive where the next one begins.
    """
    if size == 0:
        raise _shard_error(_empty_shard(), url, 0, lambda: None, is_cut=False)

    if resume is None:
        left = first_boundary(open_at, begin=begin, end=end, size=size, url=url)
        if left is None:
            return
        first = left.offset
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

    is_cut = begin > 0 or end < size or resume is not None
    yield from _read(Chunks(chunks(), first), url, wanted, max_member_bytes, until=until, is_cut=is_cut)


def _read(
    source: Chunks,
    url: str,
    wanted: Callable[[str], bool],
    max_member_bytes: int,
    *,
    until: Callable[[], Boundary | None],
    is_cut: bool,
    by_ordinal: bool = False,
) -> Iterator[Sample]:
    """`read_samples` up to the boundary that `until` gives when the bytes end, None: up to the archive's end.

    `is_cut` is for what an error says; `by_ordinal`: positions are ordinals.
    """
    start = source.offset
    key: str | None = None
    position = 0
    num_samples = 0
    members: dict[str, bytes] = {}
    sizes: dict[str, int] = {}
    chunk = b""
    scanner = Scanner()
    wanted = functools.lru_cache(_MAX_EXTENSIONS)(wanted)
    try:
        while True:
            files, end = scanner.files(source)
            limit = max_member_bytes
            if files:
                chunk, _ = source.at_hand()
            else:
                entry = read_entry(source)
                end = entry.end
                if entry.kind is Kind.FILE or entry.kind is Kind.SPARSE:
                    files = [(entry.name, entry.offset, entry.size, ELSEWHERE)]
                    limit = limit if entry.kind is Kind.FILE else -1
                elif entry.kind is not Kind.OTHER:
                    break
            for name, begin, size, at in files:
                names = split_name(name)
                if names is None:
                    continue
                extension = names[1]
                if names[0] != key:
                    if key is not None:
                        yield _new_tuple(Sample, (key, position, members, sizes))
                    key = names[0]
                    position = num_samples if by_ordinal else begin
                    num_samples += 1
                    members = {}
                    sizes = {}
                elif len(sizes) >= MAX_MEMBERS:
                    what = f"sample {key!r} has more than {MAX_MEMBERS} members"
                    remedy = "a sample's name goes up to the first dot of its files, so put the number before it"
                    raise BadEntryError(f"{what}; {remedy}", begin, member=name)
                elif extension in sizes:
                    what = f"sample {key!r} has two members {extension!r}; rename one, or it would be lost"
                    raise BadEntryError(what, begin, member=name)
                sizes[extension] = size
                if (size <= limit and wanted(extension)) and (
                    not members or size + _held(members) <= 2 * max_member_bytes
                ):
                    members[extension] = _payload(source, name, size) if at < 0 else chunk[at : at + size]
            chunk = b""  # frees its memory before the next chunk comes
            source.skip_to(end)
        _check_end(source, entry, until(), key)
    except BadEntryError as bad:
        raise _shard_error(bad, url, start, until, is_cut=is_cut) from None
    if key is not None:
        yield Sample(key, position, members, sizes)


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
        if last.kind is Kind.ZERO_BLOCK:
            raise BadEntryError("the archive ends before the range does", last.offset)
        if until.offset not in (-1, source.offset):
            raise BadEntryError(f"the range should go on to byte {until.offset}", source.offset, is_short=True)
        if key is not None and key == until.key:
            raise _WrongCut(f"the next range begins inside sample {key!r}", source.offset)
    elif last.kind is Kind.ZERO_BLOCK:
        at = source.first_nonzero()
        if at is not None:
            raise BadEntryError("there are other bytes after the end of the archive", at)
    elif source.offset == 0:
        raise _empty_shard()
    else:
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
