r"""The files of a tar that have the commonest shape, many at a time: the current chunk in, files out. No IO.

That shape is a USTAR or GNU header of a file, alone or after a PAX header that tells no more than a time (Python's
tarfile, and so WebDataset's writer, puts one before every file)::

    [x header]  [27 mtime=17...\n ]  [name, owner, size, time | checksum | kind, magic, prefix ]  [payload]  [x ...
     known       known   its end       their sum is right       in the usual form, and this known

What headers of a tar have in common (the PAX header with the begin of its record, and all of a header after its
checksum) is checked once, and then only compared. At the first entry of another shape the files end, and
`read_entry` continues, which knows all shapes and says what is wrong. Never: a file that `read_entry` would refuse, or
read differently.
"""

from struct import Struct
from typing import TypeAlias
from zlib import adler32

from streampack.tar.format import Chunks
from streampack.tar.headers import BLOCK, parse_header

File: TypeAlias = tuple[str, int, int, int]
"""Name; offset of the entry's first block; payload bytes, without padding; where in the current chunk the payload
begins, or ELSEWHERE."""
ELSEWHERE = -1
"""The payload must be taken from the source, which is at its first byte."""

_FIELDS = "100s24x11sB12xQ356s"
_ALONE = Struct(f"<{_FIELDS}").unpack_from
"""Of a header: name, size's digits and the byte that ends them, checksum, and all from the kind on."""
_PREFIXED = Struct(f"<521s503x{_FIELDS}").unpack_from
"""The same after a PAX header, of which the whole block comes first, with the nine bytes of "NN mtime=" after it."""
_FILE_KIND, _PAX_KIND = b"0", ord("x")
_MAGICS = (b"ustar\x0000", b"ustar  \0")  # with their versions: POSIX, GNU
_WINDOW = 1 << 18
"""Bytes in which files are looked for at a time, so that the list of them is short however large the chunk is."""
_MOST_HEADERS, _MOST_CHECKSUMS = 256, 4096


class Scanner:
    """Finds files, and remembers which header bytes it has checked: what is known of them holds in every tar."""

    def __init__(self) -> None:
        self._fronts: dict[bytes, int] = {}
        self._rests: dict[bytes, int] = {}
        self._checksums: dict[int, int] = {}

    def files(self, source: Chunks) -> tuple[list[File], int]:
        """The next files whose headers are in the current chunk of the source, and the offset where they end.

        The source is then at that offset; or, where the last file's payload is not all in the chunk, at that payload.
        """
        chunk, at, end = source.refill()
        base = source.offset - at
        last = min(end - 1, len(chunk) - 3 * BLOCK, at + _WINDOW)
        found, at, payload = self.find(chunk, at, last, base, end=end)
        source.skip_to(base + (at if payload < 0 else payload))
        return found, base + at

    def find(self, chunk: bytes, at: int, last: int, base: int, *, end: int) -> tuple[list[File], int, int]:
        """The files with the next headers in a chunk that begins at offset `base`, from index `at` on.

        Each has its first block at index `last` or before it; no index above that of three blocks before the chunk's
        end may be given. With them come the index where they end, and that of the last one's payload where not all of
        it lies before index `end`, else -1.
        """
        found: list[File] = []
        known_front, known_rest = b"", b""
        record_end = rest_sum = 0
        checksum_of = self._checksums.get
        while at <= last:
            header = at
            if chunk[at + 156] == _PAX_KIND:
                front, name, digits, ends_digits, checksum, rest = _PREFIXED(chunk, at)
                if front != known_front:
                    record_end = self._record_end(front)
                    known_front = front
                if not record_end or chunk[at + record_end] != 10:  # "\n"
                    break
                header += 2 * BLOCK
            else:
                name, digits, ends_digits, checksum, rest = _ALONE(chunk, at)
            if rest != known_rest:
                rest_sum = self._rest_sum(rest)
                known_rest = rest
            actual = rest_sum + (adler32(chunk[header : header + 148]) & 0xFFFF)
            if checksum_of(checksum) != actual and not self._says(checksum, actual):
                break
            if not (rest_sum and digits.isdigit()) or ends_digits & 0xDF:  # a NUL or a blank ends them
                break
            try:
                size = int(digits, 8)
            except ValueError:
                break
            start = header + BLOCK
            after = start + (size + BLOCK - 1 & -BLOCK)
            text = name.partition(b"\0")[0].decode("utf-8", "surrogateescape")
            if after > end:
                if start > end:
                    break
                found.append((text, base + at, size, ELSEWHERE))
                return found, after, start
            found.append((text, base + at, size, start))
            at = after
        return found, at, -1

    def _record_end(self, front: bytes) -> int:
        """Where a PAX header's only record ends, from the first block's begin; 0 if it is anything but a time."""
        end = self._fronts.get(front)
        if end is None:
            end = 0
            try:
                header = parse_header(front[:BLOCK])
            except ValueError:  # `read_entry` reports it
                return end
            if front[BLOCK:] == b"%d mtime=" % header.size:
                end = BLOCK + header.size - 1
            if len(self._fronts) >= _MOST_HEADERS:
                self._fronts.clear()
            self._fronts[front] = end
        return end

    def _rest_sum(self, rest: bytes) -> int:
        """What a header's bytes from the kind on, and constants, add to its checksum; 0 if it is not a plain file's."""
        total = self._rests.get(rest)
        if total is None:
            is_plain = rest.startswith(_FILE_KIND) and rest[101:109] in _MAGICS and rest[189] == 0  # no prefix
            total = sum(rest) + 8 * ord(" ") - 1 if is_plain else 0  # the field counts as blanks; adler32 begins at 1
            if len(self._rests) >= _MOST_HEADERS:
                self._rests.clear()
            self._rests[rest] = total
        return total

    def _says(self, checksum: int, actual: int) -> bool:
        """Whether the checksum field holds the number, in the usual form."""
        is_right = checksum == int.from_bytes(b"%06o\0 " % actual, "little")
        if is_right:
            if len(self._checksums) >= _MOST_CHECKSUMS:
                self._checksums.clear()
            self._checksums[checksum] = actual
        return is_right


scanner = Scanner()
"""Of the process: blocks are too short to begin without what others have learned."""
