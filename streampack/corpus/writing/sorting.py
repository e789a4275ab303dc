"""All records in a random order that the seed alone decides, on a local disk and in bounded memory.

    portion 0 --> runs, each sorted by the keys of its records     |ab...k|  |ad...p|
    portion 1 --> ...                                              |bc...m|
    shard s of S <-- of every run the keys in [s * 2**64 / S, (s + 1) * 2**64 / S), sorted together

A record's key is a hash of the seed, its portion, its run and its index there: the order of the keys is a uniform
permutation. How many shards there are is known after the first pass, and each fits into memory.
Invariants: the same order for any number of processes; memory for one run, or one shard. A sorted portion appears as a
whole.
"""

import mmap
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from streampack.corpus.writing.checking import BadRecords
from streampack.hashing import Purpose, hash_range

if TYPE_CHECKING:
    from numpy.typing import NDArray

_RUN_BYTES = 128 * 2**20
_RECORD_BYTES = 100
"""What a record costs in memory besides its bytes."""


class Sorted(msgspec.Struct, kw_only=True):
    """What is in a portion that is sorted."""

    num_bytes: int
    runs: list[int]
    """Records of each run. Its file has their keys (uint64), the ends of their bytes (int64), and their bytes."""
    num_skipped: int
    problems: list[str]


def sort_portion(records: Iterable[bytes], bad: BadRecords, *, number: int, seed: int, scratch: Path) -> Sorted:
    """Write the records of a portion into sorted runs."""
    folder = scratch / f"sorting-{number:05d}-{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    num_bytes = held = 0
    run: list[bytes] = []
    sizes: list[int] = []

    def end_run() -> None:
        nonlocal held, run
        keys = hash_range(Purpose.WRITE_ORDER, seed, number, len(sizes), count=len(run))
        order = np.argsort(keys, kind="stable")
        with (folder / str(len(sizes))).open("wb") as file:
            file.write(keys[order].tobytes())
            file.write(np.cumsum([len(run[index]) for index in order], dtype=np.int64).tobytes())
            file.writelines(run[index] for index in order)
        sizes.append(len(run))
        held, run = 0, []

    for record in records:
        run.append(record)
        num_bytes += len(record) + 1
        held += len(record) + _RECORD_BYTES
        if held >= _RUN_BYTES:
            end_run()
    if run:
        end_run()
    found = Sorted(num_bytes=num_bytes, runs=sizes, num_skipped=bad.count, problems=bad.kept)
    (folder / "sorted.json").write_bytes(msgspec.json.encode(found))
    place = _place(scratch, number)
    shutil.rmtree(place, ignore_errors=True)
    folder.rename(place)
    return found


def sorted_portion(number: int, scratch: Path) -> Sorted | None:
    """What is in a portion, if it is sorted."""
    try:
        return msgspec.json.decode((_place(scratch, number) / "sorted.json").read_bytes(), type=Sorted)
    except FileNotFoundError:
        return None


def records_of_shard(
    shard: int, num_shards: int, portions: Sequence[tuple[int, Sequence[int]]], scratch: Path
) -> Iterator[bytes]:
    """The records of a shard in their order.

    Args:
        shard: its index.
        num_shards: of all.
        portions: number and `Sorted.runs` of all portions, in order.
        scratch: where they are.
    """
    low, high = (np.uint64(min(each * 2**64 // num_shards, 2**64 - 1)) for each in (shard, shard + 1))
    keys: list[NDArray[np.uint64]] = []
    ends: list[NDArray[np.int64]] = []
    data = bytearray()
    for number, runs in portions:
        folder = str(_place(scratch, number))
        for run, num_records in enumerate(runs):
            with (
                open(f"{folder}/{run}", "rb") as file,  # noqa: PTH123 - there are very many
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stored,
            ):
                run_keys = np.frombuffer(stored, np.uint64, num_records)
                first = int(np.searchsorted(run_keys, low))
                stop = num_records if shard == num_shards - 1 else int(np.searchsorted(run_keys, high))
                mine = run_keys[first:stop].copy()
                del run_keys  # it is in the way of closing the file
                at = num_records + max(first - 1, 0)
                run_ends = np.frombuffer(stored[8 * at : 8 * (num_records + stop)], np.int64)
                begin = int(run_ends[0]) if first else 0
                its_ends = run_ends[1:] if first else run_ends
                if first < stop:
                    keys.append(mine)
                    ends.append(its_ends - begin + len(data))
                    data += stored[16 * num_records + begin : 16 * num_records + int(run_ends[-1])]
    if not keys:
        return
    stops = np.concatenate(ends)
    starts = np.concatenate([np.zeros(1, np.int64), stops[:-1]])
    for index in np.argsort(np.concatenate(keys), kind="stable").tolist():
        yield bytes(data[starts[index] : stops[index]])


def _place(scratch: Path, number: int) -> Path:
    return scratch / f"sorted-{number:05d}"
