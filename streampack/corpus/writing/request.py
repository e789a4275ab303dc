"""A request in, shards out: all of them, or those of one part, which other machines write the other parts of.

    write_all                                          the folder is finished
    write_part 0/3, 1/3, 2/3; merge_parts              the same
    shuffled: write_part 0/3, 1/3, 2/3                 each sorts its records; when all have,
              write_part 0/3, 1/3, 2/3; merge_parts    each writes its shards

Invariants: the bytes do not depend on the parts. A part that is done is not done again; one that was killed continues.
"""

import dataclasses
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import msgspec
import numpy as np

from streampack.corpus.parts import WHOLE, Part, PartsJob, as_runs, shards_of
from streampack.corpus.writing.checking import as_field, check_of
from streampack.corpus.writing.folder import OutputFolder, Written, joined
from streampack.corpus.writing.inputs import find_inputs
from streampack.corpus.writing.job import Job, job_inputs
from streampack.corpus.writing.passes import Passes, Progress
from streampack.corpus.writing.planning import Portion, plan
from streampack.corpus.writing.reading import InputReader, IterableReader, Records, units_of
from streampack.corpus.writing.sorting import SortedPart
from streampack.errors import ConfigError, RecordError, as_bool, as_integer, check_choice
from streampack.storage.access import StorageReader
from streampack.storage.identity import identity
from streampack.storage.options import Storage, as_storage
from streampack.storage.redaction import named

SHARD_BYTES = 256 * 2**20
_LEAST_SHARD_BYTES = 2**16
_DIGESTED_BYTES = 4 * 2**40
"""Of all documents, up to which the manifest has digests of blocks: they are 2 GiB then, which each start reads."""
_log = logging.getLogger(__name__)
AnyPath: TypeAlias = str | os.PathLike[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What `write_shards` was asked for; its arguments."""

    data: AnyPath | Sequence[AnyPath] | Records
    output: AnyPath
    field: str
    shard_bytes: int
    shuffle: bool
    seed: int
    on_error: str
    num_workers: int
    scratch: AnyPath | None
    storage: Storage | Mapping[str, object] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenShards:
    """What `write_shards` has written."""

    manifest: str
    """The path or URL of the manifest; `PackedDataset("@" + manifest, ...)` reads the shards."""
    field: str
    """Where the text of a record is: `field=` of that dataset."""
    num_shards: int
    num_documents: int
    num_bytes: int
    """Of the shards."""
    num_skipped: int
    """Records that cannot be written, which `on_error="skip"` has left out."""
    skipped: tuple[str, ...] = dataclasses.field(repr=False)
    """The first of them (at most 100), each with its file, its line or row, and the reason."""
    was_finished: bool
    """Whether all of it was there already, so that nothing was changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenPart:
    """How far a part, and the others, have come."""

    shards: WrittenShards | None
    """What the part has become; None: its records are sorted, and its shards wait until those of all parts are."""
    missing: str
    """The parts that are still to be written, or sorted, as Slurm's `--array` takes them; "": none."""


def write_all(request: Request, progress: Progress) -> WrittenShards:
    """Write all of it."""
    begun = _Begun(request, WHOLE, progress)
    if begun.finished is None:
        try:
            written = begun.write()
        except RecordError:  # mostly the first record of all: another field, say, may be tried in the same folder
            begun.folder.end_without_any()
            raise
        assert written is not None, "the only part waits for none"
        begun.folder.finish(begun.job, written)
        return _told(begun.folder, begun.job, written, was_finished=False)
    return _told(begun.folder, begun.job, begun.finished, was_finished=True)


def write_part(request: Request, part: Part, progress: Progress) -> WrittenPart:
    """Write the shards of one part, or sort its records; `merge_parts` finishes the folder when all are written."""
    begun = _Begun(request, part, progress)
    folder, shared = begun.folder, begun.shared
    if begun.finished is not None:
        return WrittenPart(shards=_told(folder, begun.job, begun.finished, was_finished=True), missing="")
    was_done = part.index in folder.parts.done(shared)
    if was_done:
        results = folder.parts.results(shared, [part.index])
        written: Written | None = msgspec.convert(next(results), Written)
    else:
        written = begun.write()
    if written is None:
        return WrittenPart(shards=None, missing=_missing(part, folder.sorted.done(shared)))
    if not was_done:
        folder.parts.keep(shared, part.index, msgspec.to_builtins(written))
    folder.end_part()
    shards = _told(folder, begun.job, written, was_finished=was_done)
    return WrittenPart(shards=shards, missing=_missing(part, folder.parts.done(shared)))


def has_written_shards(output: AnyPath) -> bool:
    """Whether shards are being written into a folder, or were."""
    folder = OutputFolder(os.fspath(output), Storage())
    return folder.begun() is not None or folder.read_finished() is not None


def merge_parts(output: AnyPath, storage: Storage | Mapping[str, object] | None = None) -> WrittenShards:
    """Finish a folder that `has_written_shards`, when all parts are written.

    Raises:
        ConfigError: parts are missing.
    """
    options = Storage() if storage is None else as_storage(storage)
    folder = OutputFolder(os.fspath(output), options)
    begun = folder.begun()
    if begun is None:
        finished = folder.read_finished()
        assert finished is not None, "see has_written_shards"
        return _told(folder, finished.job, finished.written, was_finished=True)
    shared = _shared(begun.job, begun.num_parts)
    if missing := _missing(Part(0, begun.num_parts), folder.parts.done(shared)):
        first = missing.replace("-", ",").partition(",")[0]
        raise ConfigError(
            f"{named(folder.url)}: parts {missing} of {begun.num_parts:,} are not written. Run the same `streampack "
            f"write ... --part {first}/{begun.num_parts}` and so on (Slurm: --array={missing}), then merge again"
        )
    folder = OutputFolder(os.fspath(output), options, begun.scratch)
    written = joined([msgspec.convert(result, Written) for result in folder.parts.results(shared)])
    folder.finish(begun.job, written)
    return _told(folder, begun.job, written, was_finished=False)


def num_portions(request: Request) -> int:
    """How many pieces of work the request has, without a shuffle: more parts than these would have nothing to write."""
    names = _names_of(request.data)
    if names is None:
        return 1
    reader = StorageReader.of(Storage() if request.storage is None else as_storage(request.storage))
    return len(plan(units_of(find_inputs(names, reader), reader), request.shard_bytes))


class _Begun:
    """One part of a request that was checked; the folder is begun, unless it is finished."""

    def __init__(self, request: Request, part: Part, progress: Progress) -> None:
        check_choice(request.on_error, ("raise", "skip"), "on_error")
        target = as_field(request.field)
        options = Storage() if request.storage is None else as_storage(request.storage)
        output, scratch = os.fspath(request.output), request.scratch
        names = _names_of(request.data)
        for name in names or ():
            _check_apart(name, output)
        reader = StorageReader.of(options)
        inputs = None if names is None else find_inputs(names, reader)
        self.job = Job(
            field=str(target),
            shard_bytes=as_integer(request.shard_bytes, "shard_bytes", low=_LEAST_SHARD_BYTES),
            shuffle=as_bool(request.shuffle, "shuffle"),
            seed=as_integer(request.seed, "seed") if request.shuffle else 0,
            on_error=request.on_error,
            inputs=None if inputs is None else job_inputs(inputs),
        )
        self.shared = _shared(self.job, part.num_parts)
        workers = as_integer(request.num_workers, "num_workers", low=1)
        self.folder = folder = OutputFolder(output, options, None if scratch is None else os.fspath(scratch), part)
        if part.num_parts > 1:
            _check_parts(folder, self.job)
        self.finished = folder.finished(self.job)
        if self.finished is not None:
            return
        if inputs is None:
            source: InputReader | IterableReader = IterableReader(
                data=request.data,  # type: ignore[arg-type]  # _names_of
                keys=target.keys,
                check=check_of(target),
            )
            portions = [Portion(0, ())]
        else:
            source = InputReader(inputs=inputs, storage=reader, check=check_of(target))
            portions = plan(units_of(inputs, reader), self.job.shard_bytes)
        sizes = np.array([portion.num_bytes for portion in portions], dtype=np.int64)
        self._mine = [portions[index] for index in shards_of(sizes, part)]
        self._num_portions = len(portions)
        digests = sum(portion.num_bytes for portion in portions) <= _DIGESTED_BYTES
        if not digests:
            _log.warning(
                "%s: the manifest will have no digests, which would be 0.5 MB for each GB; `streampack manifest "
                "--digests --block-bytes N` makes larger ones",
                named(folder.url),
            )
        self._passes = Passes(
            source=source, folder=folder, job=self.job, workers=workers, progress=progress, digests=digests
        )
        folder.begin(self.job)

    def write(self) -> Written | None:
        """What the part has become; None: its records are sorted, and those of other parts are not."""
        if not self.job.shuffle:
            return self._passes.in_order(self._mine, self._num_portions)
        folder, index = self.folder, self.folder.part.index
        if index not in folder.sorted.done(self.shared) or not _are_there(self._sorted([index]), folder):
            folder.sorted.keep(self.shared, index, msgspec.to_builtins(self._passes.sort(self._mine)))
        if len(folder.sorted.done(self.shared)) < folder.part.num_parts:
            return None
        found = self._sorted()
        if not _are_there(found, folder):
            raise ConfigError(
                f"{folder.scratch} does not have what the other parts have sorted: give all of them the same --scratch "
                "DIR, a folder that all machines share"
            )
        written = self._passes.write_sorted(found)
        mine = found[index]
        return joined([written, Written(num_skipped=mine.num_skipped, problems=mine.problems)])

    def _sorted(self, indexes: Iterable[int] | None = None) -> list[SortedPart]:
        return [msgspec.convert(each, SortedPart) for each in self.folder.sorted.results(self.shared, indexes)]


def _shared(job: Job, num_parts: int) -> PartsJob:
    """What all parts have in common; the inputs are in job.json. `on_error` may change: see `check_same`."""
    about = {name: value for name, value in msgspec.to_builtins(job).items() if name not in ("inputs", "on_error")}
    return PartsJob(command="write", num_parts=num_parts, about=about)


def _are_there(found: Iterable[SortedPart], folder: OutputFolder) -> bool:
    return all((folder.scratch / name).exists() for each in found for name, _ in each.runs)


def _missing(part: Part, done: set[int]) -> str:
    return as_runs(set(range(part.num_parts)) - done)


def _check_parts(folder: OutputFolder, job: Job) -> None:
    """Refuse what cannot be written in parts."""
    if job.inputs is None:
        raise ConfigError("an iterable is read by one process: write it to files, or without parts")
    if job.shuffle and not folder.shares_scratch:
        raise ConfigError(
            f"--shuffle in {folder.part.num_parts} parts: each reads what the others have sorted; give --scratch DIR, "
            "a folder that all machines share (it takes the size of the data)"
        )


def _names_of(data: object) -> list[str] | None:
    """The names of files that `data` is; None: it is an iterable of records."""
    if isinstance(data, str | os.PathLike):
        return [os.fspath(data)]
    if isinstance(data, list | tuple) and data and all(isinstance(each, str | os.PathLike) for each in data):
        return [os.fspath(each) for each in data]
    if not isinstance(data, Iterable) or isinstance(data, bytes | Mapping):
        raise ConfigError(f"data: {type(data).__name__} is neither names of files nor an iterable of records")
    return None


def _check_apart(name: str, output: str) -> None:
    """Refuse an output below a folder that is read: its files would be read the next time."""
    read, written = (identity(each.rstrip("/") or each).rstrip("/") for each in (name, output))
    if written.startswith(f"{read}/"):
        raise ConfigError(f"output {named(output)} lies in {named(name)}, which is read; name a folder outside of it")


def _told(folder: OutputFolder, job: Job, written: Written, *, was_finished: bool) -> WrittenShards:
    return WrittenShards(
        manifest=folder.manifest,
        field=job.field,
        num_shards=len(written.shards),
        num_documents=sum(row.num_documents or 0 for row in written.shards),
        num_bytes=sum(row.size or 0 for row in written.shards),
        num_skipped=written.num_skipped,
        skipped=tuple(written.problems),
        was_finished=was_finished,
    )
