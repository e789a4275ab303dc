"""The folder that shards are written into: what is done in it, and what is not.

    _writing/job.json           what is written there; a folder that has it is not finished, and no run reads it
    _writing/portion-00003.json its shards, once they are there
    00003-00000.tar             a shard, complete
    manifest.jsonl              the shards in order, when all of them are there
    .written.json               the job and what it gave, in place of _writing/

In:  a job. Out: which of its portions are done, or that all are.
Never: a shard, a note or the manifest under its name before it is complete; a folder that mixes two jobs.
"""

import contextlib
import hashlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from streampack.corpus.kinds import MANIFEST, WRITING
from streampack.corpus.manifest import ShardRow, manifest_line
from streampack.corpus.writing.job import Job, check_same
from streampack.errors import ConfigError, ShardNotFoundError
from streampack.storage.access import StorageReader
from streampack.storage.clients import local_path
from streampack.storage.options import Storage
from streampack.storage.redaction import named
from streampack.storage.writing import StorageWriter

_WRITTEN = ".written.json"
_JOB = f"{WRITING}/job.json"


class Written(msgspec.Struct, kw_only=True):
    """What a portion, or all of them, have become."""

    shards: list[ShardRow] = msgspec.field(default_factory=list)
    num_skipped: int = 0
    problems: list[str] = msgspec.field(default_factory=list)
    """The first records that were skipped, each with its place."""


class _Finished(msgspec.Struct, kw_only=True):
    job: Job
    written: Written


class OutputFolder:
    """One folder; it can be pickled, so that each process writes into it."""

    def __init__(self, url: str, storage: Storage, scratch: str | None = None) -> None:
        self.url = url.rstrip("/")
        self._reader = StorageReader.of(storage)
        self._writer = StorageWriter(storage)
        path = local_path(self.url)
        if path is not None and scratch is None:
            self.scratch = Path(path, WRITING)
        else:  # the same for every try
            name = hashlib.blake2b(self.url.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
            self.scratch = Path(scratch or tempfile.gettempdir(), f"streampack-write-{name}")
        """Where files are made before they are moved: on the disk of a local folder itself, unless told otherwise."""

    def finished(self, job: Job) -> Written | None:
        """What the job has become, where the folder is finished; None: the job may be begun, or goes on.

        Raises:
            ConfigError: the folder is not empty, or of another job, or its shards are not as they were written.
        """
        sizes = self._sizes()
        known = self._read(_WRITTEN)
        if known is not None:
            finished = msgspec.json.decode(known, type=_Finished)
            self._check_finished(finished, job, sizes)
            self._remove_notes(sizes)
            return finished.written
        begun = self._read(_JOB)
        if begun is not None:
            check_same(msgspec.json.decode(begun, type=Job), job, folder=named(self.url))
        elif others := [name for name in sizes if not name.startswith(WRITING)]:
            raise ConfigError(
                f"{named(self.url)} is not empty ({named(others[0])}): name a new folder, so that no other shards "
                "come among those that are written"
            )
        return None

    def begin(self, job: Job) -> None:
        """Begin the job, or go on with it."""
        self._writer.write(self._at(_JOB), msgspec.json.encode(job))
        if job.inputs is None:  # an iterable may give something else now
            self._writer.remove([self._at(name) for name in self._sizes() if name != _JOB])
            shutil.rmtree(self.scratch / "sorted-00000", ignore_errors=True)
        self.scratch.mkdir(parents=True, exist_ok=True)

    def done(self) -> dict[int, Written]:
        """What was written of each portion that is done."""
        sizes, found = self._sizes(), {}
        for name in sizes:
            if name.startswith(f"{WRITING}/portion-") and name.endswith(".json"):
                data = self._read(name)
                assert data is not None, "it was listed"
                written = msgspec.json.decode(data, type=Written)
                if all(sizes.get(row.url) == row.size for row in written.shards):
                    found[int(name.rpartition("-")[2].removesuffix(".json"))] = written
        return found

    def note(self, number: int, written: Written) -> None:
        """Note that a portion is done: all its shards are there."""
        self._writer.write(self._at(f"{WRITING}/portion-{number:05d}.json"), msgspec.json.encode(written))

    def move(self, file: Path, name: str) -> None:
        """Give a complete local file its name in the folder."""
        self._writer.move(file, self._at(name))

    def finish(self, job: Job, written: Written) -> None:
        """Write the manifest, then what says that all is done.

        Raises:
            ConfigError: there are shards in the folder that are not of this job.
        """
        sizes, mine = self._sizes(), {row.url for row in written.shards}
        if others := [name for name in sizes if name not in mine and not name.startswith(WRITING) and name != MANIFEST]:
            raise ConfigError(f"{named(self.url)} has files of others, as {named(others[0])}: move them away")
        self._writer.write(self._at(MANIFEST), b"".join(map(manifest_line, written.shards)))
        rows = [ShardRow(row.url, size=row.size, num_documents=row.num_documents) for row in written.shards]
        kept = Written(shards=rows, num_skipped=written.num_skipped, problems=written.problems)
        self._writer.write(self._at(_WRITTEN), msgspec.json.encode(_Finished(job=job, written=kept)))
        self._remove_notes(sizes)

    @property
    def manifest(self) -> str:
        """The URL of the manifest."""
        return self._at(MANIFEST)

    def _check_finished(self, finished: _Finished, job: Job, sizes: dict[str, int | None]) -> None:
        check_same(finished.job, job, folder=named(self.url))
        if job.inputs is None:
            raise ConfigError(
                f"{named(self.url)} is finished, and what an iterable gives cannot be compared with it: remove the "
                "folder to write it again, or name another"
            )
        for row in finished.written.shards:
            if sizes.get(row.url) != row.size:
                there = "is gone" if row.url not in sizes else f"has {sizes[row.url]:,} bytes and not {row.size:,}"
                raise ConfigError(f"{row.url} {there}; remove {named(self.url)} and write it again")

    def _remove_notes(self, sizes: Iterable[str]) -> None:
        self._writer.remove([self._at(name) for name in sorted(sizes, reverse=True) if name.startswith(WRITING)])
        self._writer.remove([self._at(_JOB)])  # the last: without it the others would be in the way of a new job
        shutil.rmtree(self.scratch, ignore_errors=True)
        path = local_path(self._at(WRITING))
        if path is not None:
            shutil.rmtree(path, ignore_errors=True)

    def _sizes(self) -> dict[str, int | None]:
        """The size of each file in the folder whose name does not begin with a dot."""
        path = local_path(self.url)
        if path is not None and not Path(path).is_dir():
            if Path(path).exists():
                raise ConfigError(f"{self.url} is a file; name a folder to write into")
            return {}
        if path is not None:
            return dict(_files_below(Path(path)))
        prefix = f"{self.url}/"
        return {url[len(prefix) :]: size for url, size in self._reader.listing(prefix)}

    def _read(self, name: str) -> bytes | None:
        try:
            return self._reader.read(self._at(name))
        except ShardNotFoundError:
            return None

    def _at(self, name: str) -> str:
        return f"{self.url}/{name}"


def _files_below(folder: Path) -> Iterator[tuple[str, int]]:
    for path in sorted(folder.rglob("*")):
        below = path.relative_to(folder)
        if not any(part.startswith(".") for part in below.parts):
            with contextlib.suppress(FileNotFoundError):  # a process of a run that was killed may still be ending
                if path.is_file():
                    yield below.as_posix(), path.stat().st_size
