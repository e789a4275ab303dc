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

from streampack.corpus.parts import WHOLE, Part, as_runs, shards_of
from streampack.corpus.writing.checking import as_field, check_of
from streampack.corpus.writing.folder import OutputFolder
from streampack.corpus.writing.inputs import find_inputs
from streampack.corpus.writing.job import Job, job_inputs
from streampack.corpus.writing.notes import Written, read_begun, read_finished
from streampack.corpus.writing.passes import Passes, Progress
from streampack.corpus.writing.planning import Portion, plan
from streampack.corpus.writing.reading import InputReader, IterableReader, Records, units_of
from streampack.corpus.writing.sorting import is_sorted
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
    task = _Task(request, WHOLE, progress)
    finished = task.folder.finished()
    if finished is not None:
        return _told(task.folder, finished, was_finished=True)
    written = task.write()
    assert written is not None, "the only part waits for none"
    return _told(task.folder, task.folder.finish([written]), was_finished=False)


def write_part(request: Request, part: Part, progress: Progress) -> WrittenPart:
    """Write the shards of one part, or sort its records; `merge_parts` finishes the folder when all are written."""
    task = _Task(request, part, progress)
    folder, job = task.folder, task.folder.in_parts
    finished = folder.finished()
    if finished is not None:
        return WrittenPart(shards=_told(folder, finished, was_finished=True), missing="")
    written = folder.done_part()  # before `write`, which would begin the folder again if it is finished meanwhile
    was_done = written is not None
    if written is None or _others_need(folder):
        written = task.write()
        if written is None:
            return WrittenPart(shards=None, missing=_missing(part, folder.sorted.done(job)))
        folder.keep_part(written)
    return WrittenPart(
        shards=_told(folder, written, was_finished=was_done), missing=_missing(part, folder.parts.done(job))
    )


def has_written_shards(output: AnyPath) -> bool:
    """Whether shards are being written into a folder, or were."""
    url, reader = os.fspath(output).rstrip("/"), StorageReader()
    return read_begun(url, reader) is not None or read_finished(url, reader) is not None


def merge_parts(output: AnyPath, storage: Storage | Mapping[str, object] | None = None) -> WrittenShards:
    """Finish a folder that `has_written_shards`, when all parts are written.

    Raises:
        ConfigError: parts, or shards of them, are missing.
    """
    options = Storage() if storage is None else as_storage(storage)
    url, reader = os.fspath(output).rstrip("/"), StorageReader.of(options)
    begun = read_begun(url, reader)
    finished = read_finished(url, reader)
    if finished is not None:
        folder = OutputFolder(url, options, finished.job)
        folder.tidy()
        return _told(folder, finished.written, was_finished=True)
    assert begun is not None, "see has_written_shards"
    folder = OutputFolder(url, options, begun.job, Part(0, begun.num_parts), begun.scratch)
    if missing := _missing(folder.part, folder.parts.done(folder.in_parts)):
        first = missing.replace("-", ",").partition(",")[0]
        raise ConfigError(
            f"{named(folder.url)}: parts {missing} of {begun.num_parts:,} are not written. Run the same `streampack "
            f"write ... --part {first}/{begun.num_parts}` and so on (Slurm: --array={missing}), then merge again"
        )
    if begun.job.shuffle and not folder.scratch.path.is_dir():
        _log.warning(
            "%s is not there; where it is, remove it with all that was sorted: it has the size of the data",
            folder.scratch.path,
        )
    results = folder.parts.results(folder.in_parts)
    written = folder.finish([msgspec.convert(result, Written) for result in results])
    return _told(folder, written, was_finished=False)


def num_portions(request: Request) -> int:
    """How many pieces of work the request has, without a shuffle: more parts than these would have nothing to write."""
    names = _names_of(request.data)
    if names is None:
        return 1
    reader = StorageReader.of(Storage() if request.storage is None else as_storage(request.storage))
    return len(plan(units_of(find_inputs(names, reader), reader), request.shard_bytes))


class _Task:
    """One part of a request that was checked."""

    def __init__(self, request: Request, part: Part, progress: Progress) -> None:
        check_choice(request.on_error, ("raise", "skip"), "on_error")
        self._target = as_field(request.field)
        options = Storage() if request.storage is None else as_storage(request.storage)
        output, scratch = os.fspath(request.output), request.scratch
        names = _names_of(request.data)
        for name in names or ():
            _check_apart(name, output)
        self._reader = StorageReader.of(options)
        self._inputs = None if names is None else find_inputs(names, self._reader)
        job = Job(
            field=str(self._target),
            shard_bytes=as_integer(request.shard_bytes, "shard_bytes", low=_LEAST_SHARD_BYTES),
            shuffle=as_bool(request.shuffle, "shuffle"),
            seed=as_integer(request.seed, "seed") if request.shuffle else 0,
            on_error=request.on_error,
            inputs=None if self._inputs is None else job_inputs(self._inputs),
        )
        self._data = request.data
        self._workers = as_integer(request.num_workers, "num_workers", low=1)
        self._progress = progress
        self.folder = OutputFolder(output, options, job, part, None if scratch is None else os.fspath(scratch))
        if part.num_parts > 1:
            _check_parts(self.folder)

    def write(self) -> Written | None:
        """What the part has become; None: its records are sorted, and those of other parts are not."""
        passes, portions = self._plan()
        self.folder.begin()
        with self.folder.scratch.begun():
            try:
                return passes.shuffled(portions) if self.folder.job.shuffle else passes.in_order(portions)
            except RecordError:  # mostly the first record of all: another field, say, may be tried in the same folder
                self.folder.end_without_any()
                raise

    def _plan(self) -> tuple[Passes, list[Portion]]:
        """The passes, and the portions that this part has."""
        source: InputReader | IterableReader
        if self._inputs is None:
            source = IterableReader(
                data=self._data,  # type: ignore[arg-type]  # checked by _names_of
                keys=self._target.keys,
                check=check_of(self._target),
            )
            portions = [Portion(0, ())]
        else:
            source = InputReader(inputs=self._inputs, storage=self._reader, check=check_of(self._target))
            portions = plan(units_of(self._inputs, self._reader), self.folder.job.shard_bytes)
        sizes = np.array([portion.num_bytes for portion in portions], dtype=np.int64)
        digests = int(sizes.sum()) <= _DIGESTED_BYTES
        if not digests:
            _log.warning(
                "%s: the manifest will have no digests, which would be 0.5 MB for each GB; `streampack manifest "
                "--digests --block-bytes N` makes larger ones",
                named(self.folder.url),
            )
        passes = Passes(
            source=source, folder=self.folder, workers=self._workers, progress=self._progress, digests=digests,
            num_portions=len(portions),
        )  # fmt: skip
        return passes, [portions[index] for index in shards_of(sizes, self.folder.part)]


def _others_need(folder: OutputFolder) -> bool:
    """Whether this part is to be sorted again for parts that are not written."""
    return (
        folder.job.shuffle
        and len(folder.parts.done(folder.in_parts)) < folder.part.num_parts
        and not is_sorted(folder)
    )


def _missing(part: Part, done: set[int]) -> str:
    return as_runs(set(range(part.num_parts)) - done)


def _check_parts(folder: OutputFolder) -> None:
    """Refuse what cannot be written in parts."""
    if folder.job.inputs is None:
        raise ConfigError("an iterable is read by one process: write it to files, or without parts")
    if folder.job.shuffle and not folder.scratch.is_shared:
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


def _told(folder: OutputFolder, written: Written, *, was_finished: bool) -> WrittenShards:
    return WrittenShards(
        manifest=folder.manifest,
        field=folder.job.field,
        num_shards=len(written.shards),
        num_documents=sum(row.num_documents or 0 for row in written.shards),
        num_bytes=sum(row.size or 0 for row in written.shards),
        num_skipped=written.num_skipped,
        skipped=tuple(written.problems),
        was_finished=was_finished,
    )
