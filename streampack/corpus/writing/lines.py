"""JSON lines and texts of a storage in, records out.

In:  a file, and of a plain file of JSON lines a range of its bytes: those lines belong to it that begin there.
Out: (number, JSON of a record, or why there is none). Numbers count from the first line of the range, blank ones too.
Never: a line that belongs to two ranges, or to none; more than one line and one chunk in memory.
"""

import posixpath
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

import msgspec

from streampack.corpus.writing.inputs import Input
from streampack.documents.contents import BadContentError, check_pointer, encoding_of, utf8_text
from streampack.documents.jsonrecords import BOM
from streampack.errors import ConfigError, RecordError
from streampack.records import Limits
from streampack.storage.access import StorageReader
from streampack.storage.redaction import named
from streampack.tar.codecs import inflate

Tell: TypeAlias = Callable[[int], None]
Found: TypeAlias = Iterator[tuple[int, bytes | BadContentError]]
_LONGEST_LINE = 512 * 2**20
_RATIO = 4
"""Bytes that are expected of a compressed byte of text; more makes more portions, with smaller shards."""


def expected_bytes(given: Input) -> int:
    """Bytes of documents that are expected of a file of lines or text."""
    return given.size * (_RATIO if given.compression else 1)


def read_lines(given: Input, start: int, stop: int, storage: StorageReader, tell: Tell) -> Found:
    """The lines that begin in a range."""
    begin = max(start - 1, 0)  # the byte before tells whether a line begins at `start`
    chunks = _counted(storage.chunks(given.url, begin, given.size, size=given.size), given, tell)
    if given.compression is not None:
        chunks = inflate(chunks, given.compression, url=given.url)
    for number, line in enumerate(_lines(chunks, given, begin, stop if given.compression is None else None)):
        if begin < start:
            if number:
                yield number - 1, line
        elif number:
            yield number, line
        else:
            _check_head(line, given)
            yield number, line.removeprefix(BOM)


def lines_before(given: Input, start: int, storage: StorageReader) -> int:
    """How many lines of a file begin before a byte."""
    count, last = 0, b"\n"
    for chunk in storage.chunks(given.url, 0, start, size=given.size):
        count += chunk.count(b"\n")
        last = chunk[-1:] or last
    return count + (last != b"\n")


def read_text(given: Input, storage: StorageReader, tell: Tell) -> Found:
    """A file of text as one record, with its name."""
    data = b"".join(_counted(storage.chunks(given.url, size=given.size), given, tell))
    try:
        text = utf8_text(data, Limits().document_bytes)
    except BadContentError as error:
        yield 0, error
    else:
        name = given.name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")  # it need not be UTF-8
        yield 0, msgspec.json.encode({"file": name, "text": text})


def _lines(chunks: Iterable[bytes], given: Input, position: int, stop: int | None) -> Iterator[bytes]:
    """The lines from `position` on, without their ends, of which each begins before `stop`."""
    parts: list[bytes] = []  # of the line that has not ended yet
    size = 0
    for chunk in chunks:
        head, *rest = chunk.split(b"\n")
        parts.append(head)
        size += len(head)
        if size > _LONGEST_LINE:
            raise RecordError(f"a line of more than {_LONGEST_LINE:,} bytes; is it JSON lines?", url=named(given.url))
        if not rest:
            continue
        *whole, last = [b"".join(parts), *rest]
        for line in whole:
            if stop is not None and position >= stop:
                return
            yield line
            position += len(line) + 1
        parts, size = [last], len(last)
    if size and (stop is None or position < stop):
        yield b"".join(parts)


def _check_head(line: bytes, given: Input) -> None:
    """Refuse a file that holds no JSON lines at all, by its first line."""
    other = encoding_of(line)
    if other is not None:
        raise ConfigError(f"{other}; encodings are not guessed, convert the file", url=named(given.url))
    try:
        check_pointer(line)
    except BadContentError as error:
        raise ConfigError(str(error), url=named(given.url)) from None
    if line.removeprefix(BOM).lstrip().startswith(b"["):
        name = posixpath.basename(given.name)
        raise ConfigError(
            f"a JSON array and not JSON lines: write each of its records in a line of its own, as by "
            f"`jq -c '.[]' {name} > {name.rpartition('.')[0] or name}.jsonl`",
            url=named(given.url),
        )


def _counted(chunks: Iterable[bytes], given: Input, tell: Tell) -> Iterator[bytes]:
    factor = _RATIO if given.compression else 1
    for chunk in chunks:
        tell(len(chunk) * factor)
        yield chunk
