"""All records in a random order that the seed alone decides, on a local disk and in bounded memory.

    portion 0 --> runs, each sorted by the keys of its records     |ab...k|  |ad...p|
    portion 1 --> ...                                              |bc...m|
    many runs --> few, by merges (`merging`)                       |aabbcd.......mp|  |bc...m|
    shard s of S <-- of every run that is left the keys in [s * 2**64 / S, (s + 1) * 2**64 / S), sorted together

A record's key is a hash of the seed, its portion, its run and its index there: the order of the keys is a uniform
permutation. How many shards there are is known when all is sorted, and each fits into memory.
Invariants: the same order for any number of processes; memory for one run, or one shard, besides a few
bytes for each of its records. A file appears as a whole.
"""

import shutil
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from pathlib import Path

import msgspec

from streampack.corpus.writing.checking import KEPT, BadRecords
from streampack.corpus.writing.folder import OutputFolder
from streampack.corpus.writing.merging import Span, plan_merges
from streampack.corpus.writing.notes import decode, encode
from streampack.corpus.writing.runs import Run, merge_runs, write_run
from streampack.corpus.writing.scratch import Scratch
from streampack.hashing import Purpose, hash_range

_RUN_BYTES = 128 * 2**20
_SORTED = "sorted.json"
_RECORD_BYTES = 100
"""What a record costs in memory besides its bytes."""
MOST_RUNS = 1024
"""Runs that a shard is read from, 256 KiB of each; and that are merged into one."""


class Sorted(msgspec.Struct, kw_only=True):
    """What is in a portion that is sorted."""

    num_bytes: int
    runs: list[tuple[int, int]]
    """Records, and bytes of the file, of each run."""
    num_skipped: int
    problems: list[str]


class SortedPart(msgspec.Struct, kw_only=True):
    """What is in all portions of a part, sorted and merged."""

    num_bytes: int
    runs: list[tuple[str, int, int]]
    """The file, its records and its bytes, of each run."""
    num_skipped: int
    problems: list[str]


def sort_portion(records: Iterable[bytes], bad: BadRecords, *, number: int, seed: int, scratch: Scratch) -> Sorted:
    """Write the records of a portion into sorted runs."""
    unfinished = scratch.unfinished(f"sorted-{number:05d}")
    unfinished.mkdir()
    num_bytes = held = 0
    run: list[bytes] = []
    runs: list[tuple[int, int]] = []

    def end_run() -> None:
        nonlocal held, run
        keys = hash_range(Purpose.WRITE_ORDER, seed, number, len(runs), count=len(run))
        size = write_run(unfinished / str(len(runs)), keys, run)
        runs.append((len(run), size))
        held, run = 0, []

    for record in records:
        run.append(record)
        num_bytes += len(record) + 1
        held += len(record) + _RECORD_BYTES
        if held >= _RUN_BYTES:
            end_run()
    if run:
        end_run()
    found = Sorted(num_bytes=num_bytes, runs=runs, num_skipped=bad.count, problems=bad.kept)
    (unfinished / _SORTED).write_bytes(encode(found))
    place = _place(scratch.path, number)
    if not all(Run(place / str(index), *sizes).is_there for index, sizes in enumerate(runs)):
        shutil.rmtree(place, ignore_errors=True)
        unfinished.rename(place)
    return found


def sorted_portion(number: int, scratch: Path) -> Sorted | None:
    """What is in a portion, if it is sorted. Its runs may be gone: merged, or lost (`PartRuns.lost`)."""
    try:
        return decode((_place(scratch, number) / _SORTED).read_bytes(), Sorted)
    except FileNotFoundError:
        return None
    except (ValueError, msgspec.ValidationError):  # cut short, by a machine that failed
        return None


class PartRuns:
    """The runs of a part's portions, and what they are merged into."""

    def __init__(self, portions: Sequence[tuple[int, Sorted]], folder: OutputFolder) -> None:
        self._portions = portions
        self._folder = folder
        self._scratch = folder.scratch.path
        self._files = [(number, run) for number, each in portions for run in range(len(each.runs))]
        sizes = [size for _, each in portions for size in each.runs]
        self._records_before = list(accumulate((records for records, _ in sizes), initial=0))
        self._bytes_before = list(accumulate((num_bytes for _, num_bytes in sizes), initial=0))
        left = max(MOST_RUNS // folder.part.num_parts, 1)  # a shard is put together from the runs of all parts
        self._steps, self._left = plan_merges(len(sizes), left=left, most=MOST_RUNS)
        self._inputs = {span: inputs for step in self._steps for span, inputs in step.items()}

    def lost(self) -> set[int]:
        """The portions that have runs which are neither there as they were sorted nor in a merge that is."""
        wanted = set(self._left)
        for step in reversed(self._steps):
            wanted.update(each for span in step if self._is_to_do(span, wanted) for each in step[span])
        firsts = [first for first, stop in wanted if stop - first == 1 and not self._run((first, stop)).is_there]
        return {self._files[first][0] for first in firsts}

    def missing(self) -> list[list[Span]]:
        """The merges that are left to do: of each step those that can be done side by side."""
        wanted, found = set(self._left), []
        for step in reversed(self._steps):
            todo = [span for span in step if self._is_to_do(span, wanted)]
            wanted.update(each for span in todo for each in step[span])
            found.append(todo)
        return found[::-1]

    def size(self, merges: Sequence[Span]) -> int:
        """The bytes that these merges read, when all of a step before theirs is done."""
        return sum(self._run(each).num_bytes for span in merges for each in self._inputs[span])

    def merge(self, span: Span, tell: Callable[[int], None]) -> None:
        """Merge into this run what becomes it, and remove that."""
        path = self._run(span).path
        unfinished = self._folder.scratch.unfinished(path.name)
        runs = [self._run(each) for each in self._inputs[span]]
        merge_runs(runs, unfinished, slice_bytes=_RUN_BYTES, tell=tell)
        unfinished.rename(path)
        for run in runs:
            run.path.unlink(missing_ok=True)

    def joined(self) -> SortedPart:
        """What is in the part, when nothing is missing."""
        runs = [self._run(span) for span in self._left]
        of_all = [each for _, each in self._portions]
        return SortedPart(
            num_bytes=sum(each.num_bytes for each in of_all),
            runs=[(str(run.path.relative_to(self._scratch)), run.num_records, run.num_bytes) for run in runs],
            num_skipped=sum(each.num_skipped for each in of_all),
            problems=[problem for each in of_all for problem in each.problems][:KEPT],
        )

    def _is_to_do(self, span: Span, wanted: set[Span]) -> bool:
        return span in wanted and not self._run(span).is_there

    def _run(self, span: Span) -> Run:
        first, stop = span
        if stop - first == 1:
            number, run = self._files[first]
            path = _place(self._scratch, number) / str(run)
        else:
            path = self._scratch / f"merged-{self._folder.part.index:05d}-{first:07d}-{stop:07d}"
        records, num_bytes = (before[stop] - before[first] for before in (self._records_before, self._bytes_before))
        return Run(path, records, num_bytes)


def sorted_parts(folder: OutputFolder, indexes: Iterable[int] | None = None) -> list[SortedPart]:
    """What these parts (None: all) have sorted."""
    return [msgspec.convert(each, SortedPart) for each in folder.sorted.results(folder.in_parts, indexes)]


def runs_of(part: SortedPart, folder: OutputFolder) -> list[Run]:
    """The runs of a part."""
    return [Run(folder.scratch.path / name, records, num_bytes) for name, records, num_bytes in part.runs]


def lost_runs(parts: Sequence[SortedPart], folder: OutputFolder) -> dict[int, Path]:
    """Of each part, by its place among these, that is not there as it was sorted: the first file."""
    gone = {
        index: [run.path for run in runs_of(part, folder) if not run.is_there] for index, part in enumerate(parts)
    }
    return {index: paths[0] for index, paths in gone.items() if paths}


def is_sorted(folder: OutputFolder) -> bool:
    """Whether this part is sorted, and its runs are there."""
    index = folder.part.index
    return index in folder.sorted.done(folder.in_parts) and not lost_runs(sorted_parts(folder, [index]), folder)


def _place(scratch: Path, number: int) -> Path:
    return scratch / f"sorted-{number:05d}"
