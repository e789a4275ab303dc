"""Sorted runs: records in files, in the order of their keys; ranges of keys of several runs, sorted together.

    keys (uint64 each) | ends of the records (int64 each) | the records, one after the other

In:  keys and records. Out: a file; or of several files the records whose keys are in a range.
Invariants: records of equal keys keep the order of the runs that they come from. One file is open at a time, and what
is in memory is the range that is asked for.
"""

import mmap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

NUM_KEYS = 2**64
RECORD_BYTES = 50
"""What a record costs in memory besides its bytes while it is read, at most."""
_AT_ONCE = 4096
"""Records of which Python has numbers at a time."""


@dataclass(frozen=True, slots=True)
class Run:
    """A file of sorted records."""

    path: Path
    num_records: int
    num_bytes: int
    """Of the file."""

    @property
    def is_there(self) -> bool:
        """Whether the file is there, whole."""
        try:
            return self.path.stat().st_size == self.num_bytes
        except FileNotFoundError:
            return False


def write_run(path: Path, keys: "NDArray[np.uint64]", records: Sequence[bytes]) -> int:
    """Write a run: records [n] with their keys [n], in any order; returns the bytes of the file."""
    order = np.argsort(keys, kind="stable")
    with path.open("wb") as file:
        file.write(keys[order].tobytes())
        file.write(np.cumsum([len(records[index]) for index in order], dtype=np.int64).tobytes())
        file.writelines(records[index] for index in order)
        return file.tell()


def merge_runs(runs: Sequence[Run], path: Path, *, slice_bytes: int, tell: Callable[[int], None]) -> None:
    """Write one run that has the records of all of these, with about `slice_bytes` of them in memory."""
    num_records = sum(run.num_records for run in runs)
    num_bytes = sum(run.num_bytes for run in runs) + (RECORD_BYTES - 16) * num_records  # 16 of each are in the file
    num_slices = -(-num_bytes // slice_bytes)
    at = end = 0
    with path.open("wb") as file:
        for number in range(num_slices):
            found = _Slice(runs, number, num_slices)
            file.seek(8 * at)
            file.write(found.keys.tobytes())
            file.seek(8 * (num_records + at))
            file.write((end + np.cumsum(found.sizes)).tobytes())
            file.seek(16 * num_records + end)
            file.writelines(found.records())
            at += len(found.keys)
            end += int(found.sizes.sum())
            tell(16 * len(found.keys) + int(found.sizes.sum()))
    assert at == num_records, (at, num_records)


def records_between(runs: Sequence[Run], number: int, count: int) -> Iterator[bytes]:
    """The records of these runs whose keys are in range `number` of `count` equal ranges, in the order of the keys."""
    return map(bytes, _Slice(runs, number, count).records())


class _Slice:
    """The records of one range of the keys."""

    def __init__(self, runs: Sequence[Run], number: int, count: int) -> None:
        keys: list[NDArray[np.uint64]] = []
        ends: list[NDArray[np.int64]] = []
        self._data = bytearray()
        for run in runs:
            its_keys, its_ends, data = _read(run, number, count)
            keys.append(its_keys)
            its_ends += len(self._data)
            ends.append(its_ends)
            self._data += data
            del data  # each array that is not needed any more goes at once: short records have more bytes there
        stops, unsorted = np.concatenate(ends), np.concatenate(keys)
        del ends, its_ends, keys, its_keys
        order = np.argsort(unsorted, kind="stable")
        self.keys = unsorted[order]
        del unsorted
        self.sizes = np.diff(stops, prepend=0)
        """Bytes of each record."""
        self._starts = (stops - self.sizes)[order]
        del stops
        self.sizes = self.sizes[order]

    def records(self) -> Iterator[memoryview]:
        view = memoryview(self._data)
        for at in range(0, len(self.sizes), _AT_ONCE):
            starts, sizes = (each[at : at + _AT_ONCE].tolist() for each in (self._starts, self.sizes))
            for start, size in zip(starts, sizes, strict=True):
                yield view[start : start + size]


def _read(run: Run, number: int, count: int) -> "tuple[NDArray[np.uint64], NDArray[np.int64], bytes]":
    """The keys, the ends and the bytes of a run's records in a range of the keys."""
    with (
        open(run.path, "rb") as file,  # noqa: PTH123 - there are very many
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stored,
    ):
        all_keys = np.frombuffer(stored, np.uint64, run.num_records)
        first = int(np.searchsorted(all_keys, np.uint64(number * NUM_KEYS // count)))
        stop = run.num_records
        if number < count - 1:
            stop = int(np.searchsorted(all_keys, np.uint64((number + 1) * NUM_KEYS // count)))
        keys = all_keys[first:stop].copy()
        del all_keys  # it is in the way of closing the file
        at = 8 * (run.num_records + first)
        begin = int.from_bytes(stored[at - 8 : at], "little") if first else 0
        ends = np.frombuffer(stored[at : 8 * (run.num_records + stop)], np.int64) - begin
        data = 16 * run.num_records
        size = begin + int(ends[-1]) if len(ends) else begin
        return keys, ends, stored[data + begin : data + size]
