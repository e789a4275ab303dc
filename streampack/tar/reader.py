"""The bytes of one shard in, samples out: the whole shard, or a range of it. No IO. `grouping` has what samples are.

A plain tar may be read in ranges. Range i begins where range i-1 ends: at a boundary that is computed from the bytes
around the cut (`cuts`), which a tar inside the tar can fool. So each range's own chain of headers must arrive at the
next one's boundary, and with another key. The first range begins at byte 0, where a header is; so by induction, if no
range complains, together they hold every sample exactly once, in order. That is known only when all have been read.

A range that meets the end of an archive before the shard's end, be it in the bytes after its begin that it looks at
before its first sample, or later, follows the headers from byte 0 to its own begin: only then are these two archives
that were joined, and not the end of one inside the other.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from streampack.metrics import clock
from streampack.records import Sample
from streampack.tar.codecs import decompress, is_compressed
from streampack.tar.cuts import LOOK_BYTES, Boundary, boundary_in, find_sample, range_start
from streampack.tar.format import Chunks, Part
from streampack.tar.grouping import (
    PassOver,
    WrongCutEntryError,
    empty_shard,
    pass_over_silently,
    samples_of,
    shard_error,
)
from streampack.tar.links import HardLinks
from streampack.tar.seams import mend_after_end

_ANYWHERE = Boundary(-1, None)


class Held(Protocol):
    """Bytes of a shard that are in memory."""

    def at_hand(self) -> tuple[bytes, int]:
        """The bytes, and the offset of the first of them."""

    def part(self, start: int, stop: int) -> Part | None:
        """Those from `start` to `stop`, not copied; None: not all of them are in memory."""


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
    if start and open_range is not None:
        mend_after_end(source, open_range)
    yield from samples_of(
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
    by_ordinal = is_compressed(url)
    tar = decompress(stored, url=url)
    source = Chunks(clock.within(clock.DECOMPRESS, tar) if by_ordinal else tar)
    return samples_of(
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
    held: Held | None = None,
    pass_over: PassOver = pass_over_silently,
) -> Iterator[Sample]:
    """The samples of the range [begin, end) of a plain tar of `size` bytes; `read_samples` has the other arguments.

    The samples are those from `find_sample(begin)` to `find_sample(end)`; the ranges between any cuts hold each sample
    once. `open_range(first, last)` gives the bytes in between, `open_at(offset)` those from there on, of which only the
    first few are read. `resume`: the `Sample.position` in this range to continue from. `open_begin`: as `open_at`, for
    the place where the range begins, from which `cuts.LOOK_BYTES` of the range are looked at for the end of an archive.
    `held`: bytes of the shard that are in memory: those of the range, as far as they could be read, and some after it.
    No sample is used then before the whole range is read; so nothing is looked at. None: nothing is in memory.

    Raises:
        TruncatedShardError: the shard ends before the archive does.
        CorruptShardError: the shard is damaged.
        WrongCutError: the headers of this range do not arrive where the next one begins; or it begins inside a member,
            of which an archive inside the archive tells that ends in this range.
    """
    if size == 0:
        raise shard_error(empty_shard(), url, 0, lambda: None, is_cut=False)

    def known(cut: int) -> Boundary | None:
        """The boundary after a cut, if what is in memory tells it."""
        if held is None:
            return None
        data, start = held.at_hand()
        return boundary_in(data, start=start, begin=cut, size=size)

    is_doubtful = False
    if resume is None and (known_left := known(begin)) is not None and known_left.offset < end:
        first = known_left.offset
    elif resume is None:
        look_bytes = min(LOOK_BYTES, end - begin) if held is None else 0
        left = range_start(open_begin or open_at, begin=begin, end=end, size=size, url=url, look_bytes=look_bytes)
        if left is None:
            return
        first, is_doubtful = left
    else:
        first = resume

    found_right: Boundary | None = None

    def right() -> Boundary:
        nonlocal found_right
        found_right = found_right or known(end) or find_sample(open_at, cut=end, size=size, url=url)
        return found_right

    if first >= end and first >= right().offset:
        if first > right().offset:
            what = f"this range begins after byte {right().offset}, where the next one begins"
            raise shard_error(WrongCutEntryError(what, first), url, first, right, is_cut=True)
        return

    def chunks() -> Iterator[bytes]:
        middle = end if held is None else right().offset
        if first < middle:  # the search for the right boundary waits until this range has arrived at its cut
            yield from open_range(first, middle)
        if right().offset > middle:
            yield from open_range(max(first, middle), right().offset)

    def until() -> Boundary | None:
        return None if right().offset == size else right()

    def prove() -> None:
        """Raise unless the headers from byte 0 on lead to where this range begins."""
        if begin > 0:
            before, here = Chunks(open_range(0, first)), Boundary(first, None)
            for _ in samples_of(before, url, lambda _: False, 0, until=lambda: here, is_cut=True):
                pass

    if is_doubtful:
        prove()
    is_cut = begin > 0 or end < size or resume is not None
    part = None if held is None else held.part(first, right().offset)
    source = Chunks(chunks(), first) if part is None else Chunks((), first, first=part)
    if resume is not None:
        mend_after_end(source, open_range)
    yield from samples_of(
        source,
        url,
        wanted,
        max_member_bytes,
        until=until,
        is_cut=is_cut,
        prove=prove,
        links=HardLinks(open_range),
        pass_over=pass_over,
    )
