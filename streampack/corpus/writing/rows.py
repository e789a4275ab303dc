"""Rows of a Parquet file or of a dataset in, records out: each row as a JSON object, all its columns.

A time becomes a text (ISO 8601), bytes become base64, NaN becomes null. Numbers of rows count from 0 in their range.
"""

import io
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from streampack.corpus.writing.inputs import Input
from streampack.corpus.writing.lines import Found, Tell
from streampack.corpus.writing.planning import Unit
from streampack.documents.contents import BadContentError
from streampack.errors import ConfigError, CorruptShardError
from streampack.storage.access import StorageReader
from streampack.storage.redaction import named

_ROWS = 1000
"""Made into Python objects at once."""
_encoder = msgspec.json.Encoder()


def as_record(row: object) -> bytes | BadContentError:
    """A row as the JSON of a record, or why there is none."""
    if not isinstance(row, Mapping):
        return BadContentError(f"{type(row).__name__} and not a mapping of keys to values")
    try:
        return _encoder.encode(row)
    except (TypeError, ValueError, OverflowError) as error:
        return BadContentError(f"cannot be written as JSON: {error}")


def parquet_units(index: int, given: Input, storage: StorageReader) -> list[Unit]:
    """A unit for each row group."""
    metadata = _parquet(given, storage).metadata
    return [
        Unit(index, group, group + 1, metadata.row_group(group).total_byte_size, False)
        for group in range(metadata.num_row_groups)
    ]


def read_parquet(given: Input, start: int, stop: int, storage: StorageReader, tell: Tell) -> Found:
    """The rows of some row groups."""
    import pyarrow as pa

    file = _parquet(given, storage)

    def rows() -> Iterator[Mapping[str, Any]]:
        for group in range(start, stop):
            num_rows = max(file.metadata.row_group(group).num_rows, 1)
            num_bytes = file.metadata.row_group(group).total_byte_size
            for batch in file.iter_batches(_ROWS, row_groups=[group]):
                tell(num_bytes * batch.num_rows // num_rows)
                yield from batch.to_pylist()

    try:
        yield from _numbered(rows())
    except (pa.ArrowException, UnicodeDecodeError) as error:
        what = f"row groups {start} to {stop - 1} cannot be read: {error}"
        raise CorruptShardError(what, url=named(given.url)) from error


def rows_before(given: Input, group: int, storage: StorageReader) -> int:
    """How many rows of a Parquet file come before a row group."""
    metadata = _parquet(given, storage).metadata
    return sum(metadata.row_group(each).num_rows for each in range(group))


def dataset_units(index: int, given: Input) -> list[Unit]:
    """One unit, which can be cut at any row."""
    return [Unit(index, 0, len(_dataset(given)), given.size, True)]


def read_dataset(given: Input, start: int, stop: int, tell: Tell) -> Found:
    """Some rows of a dataset."""
    dataset = _dataset(given)
    row_bytes = given.size / max(len(dataset), 1)

    def rows() -> Iterator[Mapping[str, Any]]:
        for first in range(start, stop, _ROWS):
            columns = dataset[first : min(first + _ROWS, stop)]
            count = min(_ROWS, stop - first)
            tell(int(count * row_bytes))
            yield from ({name: values[row] for name, values in columns.items()} for row in range(count))

    return _numbered(rows())


def _numbered(rows: Iterable[object]) -> Found:
    for number, row in enumerate(rows):
        yield number, as_record(row)


def _dataset(given: Input) -> Any:  # Any: `datasets` need not be installed
    try:
        import datasets
    except ImportError as error:
        raise ConfigError("a dataset on disk is read by `pip install datasets`", url=named(given.url)) from error
    return datasets.load_from_disk(given.url.rstrip("/"))


def _parquet(given: Input, storage: StorageReader) -> Any:  # Any: pyarrow has no types
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise ConfigError("Parquet is read by `pip install 'streampack[parquet]'`", url=named(given.url)) from error
    try:
        return parquet.ParquetFile(_Ranges(given, storage), pre_buffer=True)
    except pa.ArrowException as error:
        raise CorruptShardError(f"not a Parquet file that can be read: {error}", url=named(given.url)) from error


class _Ranges(io.RawIOBase):
    """A file of a storage, whose ranges are read as they are asked for."""

    def __init__(self, given: Input, storage: StorageReader) -> None:
        self._given = given
        self._storage = storage
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._given.size}[whence]
        self._at = base + offset
        return self._at

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(self._given.size - self._at, 0)
        count = left if size is None or size < 0 else min(size, left)
        if not count:
            return b""
        chunks = self._storage.chunks(
            self._given.url, self._at, self._at + count, size=self._given.size, first_bytes=count, max_bytes=count
        )
        data = b"".join(chunks)
        self._at += count
        return data
