"""`write_shards`: documents in JSON lines, Parquet, texts, a dataset or an iterable in, a folder of shards out.

In:  what to write, and where. Out: the shards with a manifest, and what was written in numbers.
Invariants: each piece of work (a portion, or a shard of the shuffled order) gives the same bytes wherever and whenever
it is done, and is noted when it is done: so any number of processes gives the same folder, and a run that was killed
goes on.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from streampack.corpus.processes import Advance
from streampack.corpus.writing.checking import as_field, check_of
from streampack.corpus.writing.folder import OutputFolder, Written
from streampack.corpus.writing.inputs import find_inputs
from streampack.corpus.writing.job import Job, job_inputs
from streampack.corpus.writing.passes import Passes, Progress, Source
from streampack.corpus.writing.planning import Portion, plan
from streampack.corpus.writing.reading import InputReader, IterableReader, Records, units_of
from streampack.errors import ConfigError, as_bool, as_integer, check_choice
from streampack.storage.access import StorageReader
from streampack.storage.identity import identity
from streampack.storage.options import Storage, as_storage
from streampack.storage.redaction import named

SHARD_BYTES = 256 * 2**20
_LEAST_SHARD_BYTES = 2**16
_Path: TypeAlias = str | os.PathLike[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenShards:
    """What `write_shards` has written."""

    manifest: str
    """The path or URL of the manifest; `PackedDataset("@" + manifest, ...)` reads the shards."""
    num_shards: int
    num_documents: int
    num_bytes: int
    """Of the shards."""
    num_skipped: int
    """Records that cannot be written, which `on_error="skip"` has left out."""
    skipped: tuple[str, ...] = field(repr=False)
    """The first of them (at most 100), each with its file, its line or row, and the reason."""
    was_finished: bool
    """Whether all of it was there already, so that nothing was changed."""


def write_shards(
    data: _Path | Sequence[_Path] | Records,
    output: _Path,
    *,
    field: str = "jsonl:text",
    shard_bytes: int = SHARD_BYTES,
    shuffle: bool = False,
    seed: int = 0,
    on_error: str = "raise",
    num_workers: int = 1,
    scratch: _Path | None = None,
    storage: Storage | Mapping[str, object] | None = None,
) -> WrittenShards:
    """Write documents into tar shards with a manifest, and return what was written.

    The shards are the same, byte for byte, for any number of workers. A call that was killed continues when it is made
    again; where all is written, nothing is changed. The folder is not read by any run before it is finished.

    Args:
        data: names of files: JSON lines (`.jsonl`, `.ndjson`, `.json`, with `.gz` or `.zst`), `.parquet`, texts
            (`.txt`, `.md`, `.rst`), a folder of these or of `datasets.Dataset.save_to_disk`, with globs and braces,
            local or remote; a string, a path, or a list of them. Or any other iterable of records: mappings, or texts,
            which are put under the key of `field`; it is read by this process, and from its start in each call.
        output: the folder, a path or a URL; new or empty.
        field: `"jsonl:KEY"`, where the text or the conversation of a record is. Records are written as they are, with
            all their keys. Give the same `field` to `PackedDataset`.
        shard_bytes: bytes of members after which a shard ends.
        shuffle: write the records in a random order, instead of that of the data.
        seed: decides that order, alone.
        on_error: `"raise"`: a record that cannot be written is an error; `"skip"`: it is left out, counted and listed.
        num_workers: processes; 1: this one.
        scratch: a folder on a local disk, for shards on their way to a remote `output`, and with `shuffle` for all of
            the data. None: in `output` where that is local, else the folder of temporary files.
        storage: how `data` and `output` are reached. A plain mapping stands for `Storage(options=mapping)`.

    Raises:
        ConfigError: an argument that cannot work, or an `output` that was written from something else.
        RecordError: a record that cannot be written, with its file and line.
        ShardError: the storage fails.
    """
    return write_to(
        data, output, field=field, shard_bytes=shard_bytes, shuffle=shuffle, seed=seed, on_error=on_error,
        num_workers=num_workers, scratch=scratch, storage=storage, progress=_tell_nobody,
    )  # fmt: skip


def write_to(
    data: _Path | Sequence[_Path] | Records,
    output: _Path,
    *,
    field: str,
    shard_bytes: int,
    shuffle: bool,
    seed: int,
    on_error: str,
    num_workers: int,
    scratch: _Path | None,
    storage: Storage | Mapping[str, object] | None,
    progress: Progress,
) -> WrittenShards:
    """The same, with progress."""
    check_choice(on_error, ("raise", "skip"), "on_error")
    target = as_field(field)
    options = Storage() if storage is None else as_storage(storage)
    names = _names_of(data)
    for name in names or ():
        _check_apart(name, os.fspath(output))
    reader = StorageReader.of(options)
    inputs = None if names is None else find_inputs(names, reader)
    job = Job(
        field=str(target),
        shard_bytes=as_integer(shard_bytes, "shard_bytes", low=_LEAST_SHARD_BYTES),
        shuffle=as_bool(shuffle, "shuffle"),
        seed=as_integer(seed, "seed") if shuffle else 0,
        on_error=on_error,
        inputs=None if inputs is None else job_inputs(inputs),
    )
    workers = as_integer(num_workers, "num_workers", low=1)
    folder = OutputFolder(os.fspath(output), options, None if scratch is None else os.fspath(scratch))
    if (finished := folder.finished(job)) is not None:
        return _told(folder, finished, was_finished=True)
    source: Source
    if inputs is None:
        source = IterableReader(data=data, keys=target.keys, check=check_of(target))  # type: ignore[arg-type]  # _names_of
        portions, num_bytes = [Portion(0, ())], None
    else:
        source = InputReader(inputs=inputs, storage=reader, check=check_of(target))
        units = units_of(inputs, reader)
        portions, num_bytes = plan(units, job.shard_bytes), sum(unit.num_bytes for unit in units)
    folder.begin(job)
    passes = Passes(source=source, folder=folder, job=job, workers=workers, progress=progress)
    written = (passes.shuffled if job.shuffle else passes.in_order)(portions, num_bytes)
    if not written.shards:
        bad = f"; {written.num_skipped:,} were skipped, the first: {written.problems[0]}" if written.problems else ""
        raise ConfigError(f"there is no document in the data{bad}")
    folder.finish(job, written)
    return _told(folder, written, was_finished=False)


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
        num_shards=len(written.shards),
        num_documents=sum(row.num_documents or 0 for row in written.shards),
        num_bytes=sum(row.size or 0 for row in written.shards),
        num_skipped=written.num_skipped,
        skipped=tuple(written.problems),
        was_finished=was_finished,
    )


def _tell_nobody(doing: str, num_items: int, num_bytes: int | None) -> Advance:
    return lambda bytes_done, items_done: None
