"""A member of JSON lines in, its records out, none of them parsed yet.

Never: a copy of more than one line at a time; a record for a blank line.
"""

from collections.abc import Iterator
from typing import NamedTuple

from streampack.documents.jsonrecords import BOM


class Line(NamedTuple):
    """A record of a member of JSON lines."""

    key: str
    """Of its sample."""
    position: int
    """`Sample.position` of its sample."""
    record: int
    data: bytes
    extension: str
    """Of its member."""
    line_number: int
    """Of all lines, blank ones too, from 1 on."""
    start: int
    """Its first byte in the decompressed member."""


def lines_of(data: bytes, *, key: str, position: int, extension: str) -> Iterator[Line]:
    """The records of the sample's member, which is decompressed already."""
    record, line_number, start = -1, 0, len(BOM) if data.startswith(BOM) else 0
    while start < len(data):
        end = data.find(b"\n", start)
        end = len(data) if end < 0 else end
        line = data[start:end]
        line_number += 1
        if line and not line.isspace():
            record += 1
            yield Line(key, position, record, line, extension, line_number, start)
        start = end + 1
