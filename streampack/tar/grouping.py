"""The entries of one tar in, samples out: members that follow each other and share a key, as WebDataset groups them.

A sample goes out only when it is known to be complete: the next sample's header, or the end of the archive, has been
seen. What cannot be read of a good archive is a flaw of its sample:

    a symbolic link, a sparse file, a name that is too long     of that member
    a hard link in a compressed shard; elsewhere it is read     of that member
    two members with one extension                              of both: neither is chosen
    a member without a name                                     of a sample of its own
    another archive after the archive's end (joined by cat)     of a sample of its own, which stands where they meet,
                                                                with what `seams` passes over there

Never: fewer samples without an error, from a shard that is cut short, or damaged where a header or an end must be; a
member that is left out in silence although it could be one of a sample.
"""

from collections.abc import Callable, Iterator
from typing import TypeAlias

from streampack.errors import CorruptShardError, ShardError, TruncatedShardError, WrongCutError
from streampack.records import NO_FLAWS, WHOLE_SAMPLE, Sample
from streampack.tar.codecs import other_format_of
from streampack.tar.cuts import CUT_REMEDY, Boundary
from streampack.tar.format import BadEntryError, Chunks, Entry, Kind, read_entry, split_name
from streampack.tar.links import HardLinks
from streampack.tar.scan import ELSEWHERE, scanner
from streampack.tar.seams import AfterEndError, pass_seam

MAX_MEMBERS = 1024
"""Members of one sample that are remembered; more are those of samples whose names are equal up to the first dot."""

_new_tuple = tuple.__new__  # half the time of a NamedTuple's own
_REMEDY = "the shard is cut short or damaged; copy or write it again"
_TWICE = "the sample has two members with this extension, of which one would be lost; rename one"
_MANY = (
    f"the sample has more than {MAX_MEMBERS} members; its name goes up to the first dot, so put what tells samples "
    "apart before it"
)
_TOO_LARGE = "{size:,} bytes, more than is read of the members of one sample"

PassOver: TypeAlias = Callable[[str], None]


def pass_over_silently(_: str) -> None:
    """Forget the name of a file that belongs to no sample."""


def samples_of(
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
    """`reader.read_samples` up to the boundary that `until` gives when the bytes end, None: up to the archive's end.

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
    try:
        while True:
            flaw = ""
            files, end = scanner.files(source)
            if files:
                chunk = source.at_hand().data
            else:
                entry = read_entry(source)
                end = entry.end
                if entry.kind is Kind.FILE:
                    name = entry.name if entry.is_named else ""
                    files, flaw = [(name, entry.offset, entry.size, ELSEWHERE)], entry.flaw
                elif entry.kind is Kind.ZERO_BLOCK and (seam := pass_seam(source, entry.offset)) is not None:
                    prove()
                    if key is not None:
                        yield Sample(key, position, members, sizes, flaws)
                        key = None
                    position = num_samples if by_ordinal else entry.offset
                    num_samples += 1
                    yield Sample("", position, {}, {}, {WHOLE_SAMPLE: seam})
                    continue
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
                    what = f"{flaw or 'a file without a name'} (byte {begin} of the tar)"
                    yield Sample(name, position, {}, {}, {WHOLE_SAMPLE: what})
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
                            continue
                        sizes[extension] = len(content)
                        if members and len(content) + _held(members) > 2 * max_member_bytes:
                            flaws = {**flaws, extension: _TOO_LARGE.format(size=len(content))}
                        else:
                            members[extension] = content
                    elif size > max_member_bytes or (members and size + _held(members) > 2 * max_member_bytes):
                        flaws = {**flaws, extension: _TOO_LARGE.format(size=size)}
                    else:
                        members[extension] = _payload(source, name, size) if at < 0 else chunk[at : at + size]
            chunk = b""  # frees its memory before the next chunk comes
            source.skip_to(end)
        _check_end(source, entry, until(), key)
    except BadEntryError as bad:
        if isinstance(bad, AfterEndError) and key is not None:  # this sample is complete
            yield Sample(key, position, members, sizes, flaws)
        raise shard_error(bad, url, start, until, is_cut=is_cut) from None
    if key is not None:
        yield Sample(key, position, members, sizes, flaws)


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
            raise WrongCutEntryError(f"the next range begins inside sample {key!r}", source.offset)
    elif source.offset == 0:
        raise empty_shard()
    elif last.kind is not Kind.ZERO_BLOCK:
        raise BadEntryError("the bytes end before the archive does", source.offset, is_short=True)


class WrongCutEntryError(BadEntryError):
    """The entries are valid, but the next range begins at a wrong byte."""


def empty_shard() -> BadEntryError:
    """The error for a shard of 0 bytes."""
    what = "empty shard: it has 0 bytes, and even an archive without members has zero blocks"
    return BadEntryError(what, 0, is_short=True)


def shard_error(
    bad: BadEntryError, url: str, start: int, until: Callable[[], Boundary | None], *, is_cut: bool
) -> ShardError:
    """What went wrong as an error for the user, and what to do."""
    if bad.block and start == 0 and bad.offset == (len(bad.block) if bad.is_short else 0):
        known = other_format_of(bad.block)
        if known is not None or not bad.is_short:
            what = f"not a tar archive: it begins with {bad.block[:16]!r}" + (f", which is {known}" if known else "")
            return CorruptShardError(f"{what} ({bad.what})", url=url, offset=0)
    kind: type[ShardError] = TruncatedShardError if bad.is_short else CorruptShardError
    if isinstance(bad, WrongCutEntryError) or (bad.is_short and until() is not None):
        kind = WrongCutError  # this range's own headers are right: they lead past where the next one begins
    what = f"{bad.what}; {CUT_REMEDY if is_cut else _REMEDY}"
    return kind(what, url=url, member=bad.member, offset=bad.offset)
