"""The bytes of a text member in, its text out; also the size checks and the error that all kinds of contents share.

Out: a text, or a `BadContentError` that says why there is none; the reader of the sample adds shard and member.
Never: a text that is anything but strict UTF-8, or that is stripped (a byte order mark stays).
"""

from streampack.errors import DocumentTooLongError, RecordError
from streampack.records import BadRecord

UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
"""The byte order marks with which UTF-16 (and UTF-32) begins; no UTF-8 does."""
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
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"not UTF-8: byte 0x{data[error.start]:02x}, {error.reason}"
        if data.startswith(UTF16_MARKS):
            found = f"not UTF-8 but UTF-16, by its byte order mark {data[:2].hex(' ')}"
        raise BadContentError(f"{found}; encodings are not guessed, convert the text", offset=error.start) from None
