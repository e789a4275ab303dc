"""The passes over the data of a part: portions one by one into shards, or all of them sorted and then written.

In:  a source of records and the part's portions. Out: what they have become, all of it noted in the folder.
Never: a portion or a shard that is done twice in a run, or again after it was noted.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from streampack.corpus.parts import as_runs
from streampack.corpus.processes import Advance, Work, advance_silently, each_item
from streampack.corpus.writing.checking import BadRecords
from streampack.corpus.writing.folder import OutputFolder
from streampack.corpus.writing.merging import Span
from streampack.corpus.writing.notes import Written, joined
from streampack.corpus.writing.planning import Portion
from streampack.corpus.writing.runs import Run, records_between
from streampack.corpus.writing.sorting import (
    PartRuns,
    Sorted,
    SortedPart,
    is_sorted,
    lost_runs,
    runs_of,
    sort_portion,
    sorted_parts,
    sorted_portion,
)
from streampack.corpus.writing.tars import write_tars
from streampack.errors import ConfigError

_log = logging.getLogger(__name__)
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


def progress_silently(doing: str, num_items: int, num_bytes: int | None) -> Advance:
    """A `Progress` that tells nobody."""
    return advance_silently


@dataclass(frozen=True, slots=True, kw_only=True)
class _InOrder:
    """Writes a portion into shards of its own."""

    source: Source
    folder: OutputFolder
    num_portions: int
    digests: bool

    def __call__(self, item: Portion, *, tell: Tell) -> Written:
        job = self.folder.job
        bad = BadRecords(skip=job.on_error == "skip")
        records = self.source.records(item, bad, tell)
        name = _name(item.number, self.num_portions)
        shards = write_tars(records, self.folder, name=name, shard_bytes=job.shard_bytes, digests=self.digests)
        written = Written(shards=shards, num_skipped=bad.count, problems=bad.kept)
        self.folder.note(item.number, written)
        return written


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sort:
    """Sorts the records of a portion."""

    source: Source
    folder: OutputFolder

    def __call__(self, item: Portion, *, tell: Tell) -> Sorted:
        bad = BadRecords(skip=self.folder.job.on_error == "skip")
        records = self.source.records(item, bad, tell)
        return sort_portion(records, bad, number=item.number, seed=self.folder.job.seed, scratch=self.folder.scratch)


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
    digests: bool

    def __call__(self, item: int, *, tell: Tell) -> Written:
        records = _told(records_between(self.runs, item, self.num_shards), tell)
        name = _name(item, self.num_shards)
        shards = write_tars(records, self.folder, name=name, shard_bytes=None, digests=self.digests)
        written = Written(shards=shards)
        self.folder.note(item, written)
        return written


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """The passes of one part of a job."""

    source: Source
    folder: OutputFolder
    workers: int
    progress: Progress
    digests: bool
    num_portions: int
    """Of all parts."""

    def in_order(self, portions: Sequence[Portion]) -> Written:
        """Write the shards of each portion, one portion after the other."""
        done = self.folder.done(portion.number for portion in portions)
        left = [portion for portion in portions if portion.number not in done]
        work = _InOrder(source=self.source, folder=self.folder, num_portions=self.num_portions, digests=self.digests)
        for portion, written in self._each(work, left, "writing", _bytes_of(left)):
            done[portion.number] = written
        return joined([done[portion.number] for portion in portions])

    def shuffled(self, portions: Sequence[Portion]) -> Written | None:
        """Sort the records of the portions, then write this part's shards; None: other parts have not sorted yet.

        Raises:
            ConfigError: what another part has sorted is not there.
        """
        folder, job, part = self.folder, self.folder.in_parts, self.folder.part
        if not is_sorted(folder):
            folder.sorted.keep(job, part.index, msgspec.to_builtins(self._sort(portions)))
        if len(folder.sorted.done(job)) < part.num_parts:
            return None
        found = sorted_parts(folder)
        if lost := lost_runs(found, folder):
            raise ConfigError(self._what_is_lost(lost, found))
        written = self._write_sorted(found)
        mine = found[part.index]
        return joined([written, Written(num_skipped=mine.num_skipped, problems=mine.problems)])

    def _sort(self, portions: Sequence[Portion]) -> SortedPart:
        """Sort the records of the portions, into a few runs."""
        scratch = self.folder.scratch.path
        found = {each.number: done for each in portions if (done := sorted_portion(each.number, scratch)) is not None}
        work = _Sort(source=self.source, folder=self.folder)

        def sort(left: Sequence[Portion]) -> PartRuns:
            for portion, result in self._each(work, left, "sorting", _bytes_of(left)):
                found[portion.number] = result
            return PartRuns([(portion.number, found[portion.number]) for portion in portions], self.folder)

        runs = sort([portion for portion in portions if portion.number not in found])
        if lost := runs.lost():
            _log.warning("%s: of %d portions what was sorted is gone; they are sorted again", scratch, len(lost))
            runs = sort([portion for portion in portions if portion.number in lost])
        for merges in runs.missing():
            for _ in self._each(_Merge(runs), merges, "merging", runs.size(merges)):
                pass
        return runs.joined()

    def _write_sorted(self, parts: Sequence[SortedPart]) -> Written:
        """Write the shards that this part has of what all parts have sorted."""
        count = -(-sum(part.num_bytes for part in parts) // self.folder.job.shard_bytes)
        runs = [run for part in parts for run in runs_of(part, self.folder)]
        index, num_parts = self.folder.part.index, self.folder.part.num_parts
        mine = range(index * count // num_parts, (index + 1) * count // num_parts)
        done = self.folder.done(mine)
        left = [shard for shard in mine if shard not in done]
        work = _Shuffled(runs=runs, num_shards=count, folder=self.folder, digests=self.digests)
        for shard, written in self._each(work, left, "writing", len(left) * self.folder.job.shard_bytes):
            done[shard] = written
        return joined([done[shard] for shard in mine])

    def _what_is_lost(self, lost: dict[int, Path], found: Sequence[SortedPart]) -> str:
        num_parts, others = self.folder.part.num_parts, set(range(len(found))) - {self.folder.part.index}
        text = f"{lost[min(lost)]} is not there as part {min(lost)}/{num_parts} has sorted it"
        again = f"run --part {min(lost)}/{num_parts} again, which sorts again what is gone (parts {as_runs(lost)})"
        if any(run.path.exists() for index in others for run in runs_of(found[index], self.folder)):
            return f"{text}: {again}"
        return (
            f"{text}, nor anything that the other parts have sorted: give all of them the same --scratch DIR, a folder "
            f"that all machines share; where it is that, {again}"
        )

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


def _bytes_of(portions: Sequence[Portion]) -> int | None:
    """Bytes of documents that are expected of these; None: it is not known."""
    return sum(portion.num_bytes for portion in portions) or None


def _name(number: int, count: int) -> str:
    """A number as a name, of which all `count` have the order of the numbers."""
    return f"{number:0{max(len(str(count - 1)), 5)}d}"
