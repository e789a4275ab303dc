"""The passes over the data: portions one by one into shards, or all of them sorted and then written.

In:  a source of records and its portions. Out: what they have become, all of it noted in the folder.
Never: a portion or a shard that is done twice in a run, or again after it was noted.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from streampack.corpus.processes import Advance, Work, each_item
from streampack.corpus.writing.checking import KEPT, BadRecords
from streampack.corpus.writing.folder import OutputFolder, Written
from streampack.corpus.writing.job import Job
from streampack.corpus.writing.merging import Span
from streampack.corpus.writing.planning import Portion
from streampack.corpus.writing.runs import Run, records_between
from streampack.corpus.writing.sorting import MOST_RUNS, PartRuns, Sorted, SortedPart, sort_portion, sorted_portion
from streampack.corpus.writing.tars import write_tars

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
Tell = Callable[[int], None]


class Source(Protocol):
    """Gives the records of portions."""

    def records(self, portion: Portion, bad: BadRecords, tell: Tell) -> Iterator[bytes]:
        """The records of a portion, in order."""


class Progress(Protocol):
    """Is told how far a pass over the data has got."""

    def __call__(self, doing: str, num_items: int, num_bytes: int | None) -> Advance:
        """Called where a pass begins; what it returns is called with (bytes done, items done)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _InOrder:
    """Writes a portion into shards of its own."""

    source: Source
    folder: OutputFolder
    job: Job

    def __call__(self, item: Portion, *, tell: Tell) -> Written:
        bad = BadRecords(skip=self.job.on_error == "skip")
        records = self.source.records(item, bad, tell)
        shards = write_tars(records, self.folder, number=item.number, shard_bytes=self.job.shard_bytes)
        written = Written(shards=shards, num_skipped=bad.count, problems=bad.kept)
        self.folder.note(item.number, written)
        return written


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sort:
    """Sorts the records of a portion."""

    source: Source
    scratch: Path
    job: Job

    def __call__(self, item: Portion, *, tell: Tell) -> Sorted:
        bad = BadRecords(skip=self.job.on_error == "skip")
        records = self.source.records(item, bad, tell)
        return sort_portion(records, bad, number=item.number, seed=self.job.seed, scratch=self.scratch)


@dataclass(frozen=True, slots=True)
class _Merge:
    """Merges sorted runs into one."""

    runs: PartRuns

    def __call__(self, item: Span, *, tell: Tell) -> None:
        self.runs.merge(item, tell)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shuffled:
    """Writes one shard of the shuffled order."""

    runs: Sequence[Run]
    num_shards: int
    folder: OutputFolder

    def __call__(self, item: int, *, tell: Tell) -> Written:
        records = _told(records_between(self.runs, item, self.num_shards), tell)
        written = Written(shards=write_tars(records, self.folder, number=item, shard_bytes=None))
        self.folder.note(item, written)
        return written


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """The passes of one job."""

    source: Source
    folder: OutputFolder
    job: Job
    workers: int
    progress: Progress

    def in_order(self, portions: Sequence[Portion], num_bytes: int | None) -> Written:
        """All portions, one after the other."""
        done = self.folder.done()
        left = [portion for portion in portions if portion.number not in done]
        work = _InOrder(source=self.source, folder=self.folder, job=self.job)
        for portion, written in self._each(work, left, "writing", num_bytes):
            done[portion.number] = written
        return _joined([done[portion.number] for portion in portions])

    def shuffled(self, portions: Sequence[Portion], num_bytes: int | None) -> Written:
        """All records in an order that the seed decides."""
        scratch = self.folder.scratch
        found = {each.number: done for each in portions if (done := sorted_portion(each.number, scratch)) is not None}
        left = [portion for portion in portions if portion.number not in found]
        sort = _Sort(source=self.source, scratch=scratch, job=self.job)
        for portion, result in self._each(sort, left, "sorting", num_bytes):
            found[portion.number] = result
        part = self._merged([(portion.number, found[portion.number]) for portion in portions])
        count = -(-part.num_bytes // self.job.shard_bytes)
        noted = self.folder.done()
        runs = [Run(scratch / name, num_records) for name, num_records in part.runs]
        write = _Shuffled(runs=runs, num_shards=count, folder=self.folder)
        missing = [shard for shard in range(count) if shard not in noted]
        for shard, written in self._each(write, missing, "writing", part.num_bytes):
            noted[shard] = written
        skipped = Written(num_skipped=part.num_skipped, problems=part.problems)
        return _joined([*(noted[shard] for shard in range(count)), skipped])

    def _merged(self, portions: Sequence[tuple[int, Sorted]]) -> SortedPart:
        runs = PartRuns(portions, name="00000", left=MOST_RUNS, scratch=self.folder.scratch)
        for merges in runs.missing():
            for _ in self._each(_Merge(runs), merges, "merging", runs.size(merges)):
                pass
        return runs.joined()

    def _each(
        self, work: Work[_Item, _Result], items: Sequence[_Item], doing: str, num_bytes: int | None
    ) -> Iterator[tuple[_Item, _Result]]:
        workers = min(self.workers, len(items))
        return each_item(work, items, workers=workers, advance=self.progress(doing, len(items), num_bytes))


def _told(records: Iterator[bytes], tell: Tell) -> Iterator[bytes]:
    """The records, as they are told in steps."""
    size = 0
    for record in records:
        size += len(record) + 1
        if size >= 2**20:
            tell(size)
            size = 0
        yield record
    tell(size)


def _joined(parts: Sequence[Written]) -> Written:
    """What several portions have become together. Pure."""
    return Written(
        shards=[row for part in parts for row in part.shards],
        num_skipped=sum(part.num_skipped for part in parts),
        problems=[problem for part in parts for problem in part.problems][:KEPT],
    )
