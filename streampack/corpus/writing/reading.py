"""A portion in, its records out: JSON of one line each, checked as a run will check them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, TypeAlias

from streampack.corpus.writing.checking import BadRecords, Check
from streampack.corpus.writing.inputs import Input, InputKind
from streampack.corpus.writing.lines import Found, Tell, expected_bytes, lines_before, read_lines, read_text
from streampack.corpus.writing.planning import Portion, Range, Unit
from streampack.corpus.writing.rows import (
    as_record,
    dataset_units,
    parquet_units,
    read_dataset,
    read_parquet,
    rows_before,
)
from streampack.documents.contents import BadContentError
from streampack.storage.access import StorageReader
from streampack.storage.redaction import named
from streampack.storage.threads import side_by_side

Records: TypeAlias = Iterable[str | Mapping[str, Any]]
_COUNTED_BYTES = 2**30
"""Bytes before a range in which lines are counted, to tell the number of a bad one; more are not read again."""
_AT_ONCE = 16
"""Footers of Parquet files that are read side by side."""


def units_of(inputs: Sequence[Input], storage: StorageReader) -> list[Unit]:
    """The ranges that the inputs consist of."""

    def units(index: int) -> list[Unit]:
        given = inputs[index]
        match given.kind:
            case InputKind.PARQUET:
                return parquet_units(index, given, storage)
            case InputKind.DATASET:
                return dataset_units(index, given)
        is_plain = given.kind is InputKind.LINES and given.compression is None
        return [Unit(index, 0, given.size, expected_bytes(given), is_plain)]

    found = side_by_side(units, range(len(inputs)), num_threads=_AT_ONCE)
    return [unit for of_input in found for unit in of_input]


@dataclass(frozen=True, slots=True, kw_only=True)
class InputReader:
    """Reads portions; it can be pickled."""

    inputs: Sequence[Input]
    storage: StorageReader
    check: Check

    def records(self, portion: Portion, bad: BadRecords, tell: Tell) -> Iterator[bytes]:
        """The records of a portion, in order."""
        for each in portion.ranges:
            given = self.inputs[each.input]
            before = cache(partial(self._before, each))  # counted once, where a record is bad
            for number, record in self._found(each, tell):
                if given.kind is InputKind.LINES and isinstance(record, bytes):
                    record = record.strip()  # noqa: PLW2901  # the same record
                    if not record:
                        continue
                error = _error_of(record, self.check)
                if error is None:
                    assert isinstance(record, bytes)
                    yield record
                else:
                    bad.add(error, partial(_place, given, each, before, number))

    def _found(self, each: Range, tell: Tell) -> Found:
        given = self.inputs[each.input]
        match given.kind:
            case InputKind.LINES:
                return read_lines(given, each.start, each.stop, self.storage, tell)
            case InputKind.TEXT:
                return read_text(given, self.storage, tell)
            case InputKind.PARQUET:
                return read_parquet(given, each.start, each.stop, self.storage, tell)
            case InputKind.DATASET:
                return read_dataset(given, each.start, each.stop, tell)

    def _before(self, each: Range) -> int | None:
        """Lines or rows of the file before a range; None: too many bytes to count them."""
        given = self.inputs[each.input]
        match given.kind:
            case InputKind.LINES:
                return lines_before(given, each.start, self.storage) if each.start <= _COUNTED_BYTES else None
            case InputKind.PARQUET:
                return rows_before(given, each.start, self.storage)
        return each.start


@dataclass(frozen=True, slots=True, kw_only=True)
class IterableReader:
    """Gives the records of an iterable, as one portion."""

    data: Records
    keys: tuple[str, ...]
    """Where a text that is given by itself goes."""
    check: Check

    def records(self, portion: Portion, bad: BadRecords, tell: Tell) -> Iterator[bytes]:
        """All of them, in order."""
        for number, value in enumerate(self.data, 1):
            wrapped: object = value
            if isinstance(value, str):
                for key in reversed(self.keys):
                    wrapped = {key: wrapped}
            record = as_record(wrapped)
            error = _error_of(record, self.check)
            if error is None:
                assert isinstance(record, bytes)
                tell(len(record))
                yield record
            else:
                bad.add(error, partial("record {:,}".format, number))


def _place(given: Input, each: Range, before: Callable[[], int | None], number: int) -> str:
    """Where a record is, of which `number` others of its range are before it."""
    if given.kind is InputKind.TEXT:
        return named(given.url)
    what, first = ("line" if given.kind is InputKind.LINES else "row"), before()
    if first is None:
        return f"{named(given.url)}, line {number + 1:,} of those that begin at byte {each.start:,} or after it"
    return f"{named(given.url)}, {what} {first + number + 1:,}"


def _error_of(record: bytes | BadContentError, check: Check) -> BadContentError | None:
    if isinstance(record, BadContentError):
        return record
    try:
        check(record)
    except BadContentError as error:
        return error
    return None
