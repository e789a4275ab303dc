"""The files that hard links of a plain tar mean: a name in, the content of the file before the link out. No IO.

Another reading of the shard's headers, from byte 0 on: it begins at the first link that is wanted, and goes no further
than the last one. So what a link gives depends on the shard alone, wherever the reading of its samples began.
Never: more than `_MOST_FILES` names in memory; a file that comes after the link, or from another archive.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise

from streampack.tar.format import BadEntryError, Chunks, Kind, padded, read_entry
from streampack.tar.scan import Scanner
from streampack.tar.seams import AfterEndError, pass_seam

_MOST_FILES = 1 << 20


class HardLinks:
    """Finds the files of one shard by their names."""

    def __init__(self, open_range: Callable[[int, int], Iterator[bytes]]) -> None:
        """`open_range(first, last)` gives the shard's bytes in between."""
        self._open_range = open_range
        self._places: dict[str, tuple[int, int]] = {}
        """Name -> where the payload of the last file with this name begins, and its bytes."""
        self._seen = 0
        self._is_complete = True

    def content(self, target: str, *, before: int, limit: int) -> bytes | None:
        """The content of the last file of that name before byte `before`.

        None: there is none, or one of more than `limit` bytes, or not all names before the link are known.
        """
        if self._is_complete and before > self._seen:
            try:
                self._look(Chunks(self._open_range(self._seen, before), self._seen))
            except BadEntryError:  # the reading of the samples there says so
                self._is_complete = False
            self._seen = before
        begin, size = self._places.get(target, (0, limit + 1))
        if not self._is_complete or size > limit:
            return None
        return b"".join(self._open_range(begin, begin + size)) if size else b""

    def _look(self, source: Chunks) -> None:
        scanner = Scanner()
        while True:
            files, end = scanner.files(source)
            begins = [begin for _, begin, _, _ in files]
            for (name, _, size, _), (_, stop) in zip(files, pairwise([*begins, end]), strict=True):
                self._places[name] = stop - padded(size), size
            if not files:
                entry = read_entry(source)
                end = entry.end
                if entry.kind is Kind.NO_BYTES:
                    return
                if entry.kind is Kind.ZERO_BLOCK:  # a link after it is one of another archive
                    self._places.clear()
                    try:
                        pass_seam(source, entry.offset)
                    except AfterEndError:  # damage up to the link itself, or the reading of the samples says so
                        return
                    end = source.offset
                elif entry.link:
                    self._places[entry.name] = self._places.get(entry.link, (0, 1 << 62))
                elif entry.kind is Kind.FILE and not entry.flaw:
                    self._places[entry.name] = end - padded(entry.size), entry.size
                else:
                    self._places.pop(entry.name, None)
            if len(self._places) > _MOST_FILES:
                self._is_complete = False
                return
            source.skip_to(end)
