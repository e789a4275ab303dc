"""The bytes of a text member in, its text out; also the size checks and the error that all kinds of contents share.

Out: a text, or a `BadContentError` that says why there is none; the reader of the sample adds shard and member.
Never: a text that is anything but strict UTF-8, or that is stripped (a byte order mark stays).
"""

from streampack.errors import DocumentTooLongError, RecordError
from streampack.records import BadRecord

_MARKS = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
"""The byte order marks with which other encodings begin; no UTF-8 does."""
_POINTER = b"version https://git-lfs"
_POINTER_BYTES = 1024
"""No Git LFS pointer has as many."""
_SHOWN_NAME = 300
"""Characters of the longest name that an error shows as a whole."""


class BadContentError(Exception):
    """Why a record is bad; `located` adds where it is."""

    def __init__(
        self,
        message: str,
        *,
        offset: int | None = None,
        kind: type[RecordError] = RecordError,
        extension: str | None = None,
    ) -> None:
        super().__init__(message)
        self.offset = offset
        self.kind = kind
        self.extension = extension

    def located(self, record: int, url: str, member: str, *, line_number: int = 0, start: int = 0) -> BadRecord:
        """The bad record with this index, shard and member; for JSON lines also its line, from byte `start` on."""
        message = f"line {line_number}: {self}" if line_number else str(self)
        name = member if len(member) <= _SHOWN_NAME else f"{member[:60]}..."
        offset = self.offset if self.offset is None and not line_number else start + (self.offset or 0)
        return BadRecord(record=record, error=self.kind(message, url=url, member=name or None, offset=offset))


def encoding_of(data: bytes) -> str | None:
    """The encoding that a byte order mark tells, with the mark; None: there is none, or that of UTF-8."""
    mark = next((mark for mark in _MARKS if data.startswith(mark)), None)
    return None if mark is None else f"{_MARKS[mark]}, by its byte order mark {mark.hex(' ')}"


def check_pointer(data: bytes) -> None:
    """Refuse a member that is not the file, but what Git LFS keeps in its place."""
    if data.startswith(_POINTER) and len(data) < _POINTER_BYTES:
        what = "a Git LFS pointer, not the file it stands for: fetch that with `git lfs pull` and write the shard again"
        raise BadContentError(what)


def check_size(size: int, limit: int) -> None:
    """Refuse a document of more bytes than `limits.document_bytes`."""
    if size > limit:
        what = f"a document of {size:,} bytes, above limits.document_bytes={limit:,}"
        raise BadContentError(what, kind=DocumentTooLongError)


def check_text_size(text: str, limit: int) -> None:
    """The same for a text, which counts as UTF-8."""
    if 4 * len(text) > limit:  # else UTF-8 cannot take more, and nothing need be encoded
        check_size(len(text.encode("utf-8", "surrogatepass")), limit)


def utf8_text(data: bytes, limit: int) -> str:
    """All of it as text, a BOM too."""
    check_size(len(data), limit)
    check_pointer(data)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        other = encoding_of(data)
        found = f": byte 0x{data[error.start]:02x}, {error.reason}" if other is None else f" but {other}"
        what = f"not UTF-8{found}; encodings are not guessed, convert the text"
        raise BadContentError(what, offset=error.start) from None
