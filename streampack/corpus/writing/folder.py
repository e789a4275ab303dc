"""The folder that shards are written into: what is done in it, and what is not.

    _writing/job.json           what is written there; a folder that has it is not finished, and no run reads it
    _writing/portion-00003.json its shards, once they are there
    _writing/sorted/, parts/    of each part what it has sorted, and all its shards
    _writing/scratch/           files on their way, where the folder is local
    00003-00000.tar             a shard, complete
    manifest.jsonl              the shards in order, when all of them are there
    .written.json               the job and what it gave, in place of _writing/

In:  a job. Out: which of its portions are done, or that all are.
Never: a shard, a note or the manifest under its name before it is complete; a folder that mixes two jobs.
"""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from streampack.corpus.kinds import MANIFEST, UNFINISHED, WRITING
from streampack.corpus.manifest import ShardRow, manifest_line
from streampack.corpus.parts import WHOLE, Part, PartsFolder
from streampack.corpus.writing.checking import KEPT
from streampack.corpus.writing.job import Job, check_same
from streampack.errors import ConfigError, ShardNotFoundError
from streampack.storage.access import StorageReader
from streampack.storage.clients import local_path
from streampack.storage.options import Storage
from streampack.storage.redaction import named
from streampack.storage.threads import side_by_side
from streampack.storage.writing import StorageWriter

_WRITTEN = ".written.json"
_SCRATCH = f"{WRITING}/scratch"
_AT_ONCE = 16
"""Notes that are read or removed side by side."""


class Written(msgspec.Struct, kw_only=True):
    """What a portion, or all of them, have become."""

    shards: list[ShardRow] = msgspec.field(default_factory=list)
    num_skipped: int = 0
    problems: list[str] = msgspec.field(default_factory=list)
    """The first records that were skipped, each with its place."""


class Begun(msgspec.Struct, kw_only=True):
    """What is being written into a folder."""

    job: Job
    num_parts: int
    scratch: str | None
    """As it was given."""


class Finished(msgspec.Struct, kw_only=True):
    """What was written into a folder."""

    job: Job
    written: Written


class OutputFolder:
    """One folder; it can be pickled, so that each process writes into it."""

    def __init__(self, url: str, storage: Storage, scratch: str | None = None, part: Part = WHOLE) -> None:
        self.url = url.rstrip("/")
        self.part = part
        """What this process, and those that it starts, write."""
        self.sorted = PartsFolder(self._at(f"{WRITING}/sorted"), storage)
        """What each part has sorted."""
        self.parts = PartsFolder(self._at(f"{WRITING}/parts"), storage)
        """What each part has become."""
        self._reader = StorageReader.of(storage)
        self._writer = StorageWriter(storage)
        self._scratch_given = scratch
        path = local_path(self.url)
        if path is not None and scratch is None:
            self.scratch = Path(path, _SCRATCH)
        else:  # the same for every try
            name = hashlib.blake2b(self.url.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
            self.scratch = Path(scratch or tempfile.gettempdir(), f"streampack-write-{name}")
        """Where files are made before they are moved: on the disk of a local folder itself, unless told otherwise."""

    @property
    def shares_scratch(self) -> bool:
        """Whether other machines can have the same scratch folder."""
        return self._scratch_given is not None or local_path(self.url) is not None

    def finished(self, job: Job) -> Written | None:
        """What the job has become, where the folder is finished; None: the job may be begun, or goes on.

        Raises:
            ConfigError: the folder is not empty, or of another job, or its shards are not as they were written.
        """
        sizes = self._sizes()
        finished = self.read_finished()
        if finished is not None:
            self._check_finished(finished, job, sizes)
            self._remove_notes(sizes)
            return finished.written
        begun = self.begun()
        if begun is not None:
            check_same(begun.job, job, folder=named(self.url))
            if begun.num_parts != self.part.num_parts:
                raise ConfigError(
                    f"{named(self.url)} is being written in {_parts(begun.num_parts)}, and not in "
                    f"{_parts(self.part.num_parts)}: go on with {_parts(begun.num_parts)}, or remove the folder"
                )
        elif others := [name for name in sizes if not name.startswith(WRITING)]:
            raise ConfigError(
                f"{named(self.url)} is not empty ({named(others[0])}): name a new folder, so that no other shards "
                "come among those that are written"
            )
        return None

    def begun(self) -> Begun | None:
        """What is being written into it; None: nothing, or it is finished."""
        found = self._read(UNFINISHED)
        return None if found is None else msgspec.json.decode(found, type=Begun)

    def read_finished(self) -> Finished | None:
        """What is there, where it is finished, whatever the job was."""
        known = self._read(_WRITTEN)
        return None if known is None else msgspec.json.decode(known, type=Finished)

    def begin(self, job: Job) -> None:
        """Begin the job, or go on with it."""
        begun = Begun(job=job, num_parts=self.part.num_parts, scratch=self._scratch_given)
        self._writer.write(self._at(UNFINISHED), msgspec.json.encode(begun))
        if job.inputs is None:  # an iterable may give something else now
            self._remove(name for name in self._sizes() if name != UNFINISHED)
            shutil.rmtree(self.scratch, ignore_errors=True)
        shutil.rmtree(self._unfinished, ignore_errors=True)  # of a try that was killed

    def end_without_any(self) -> None:
        """Leave the folder as it was before `begin`, where neither a shard nor a sorted record was kept since."""
        sorted_here = self.scratch.is_dir() and any(
            path.name != self._unfinished.name for path in self.scratch.iterdir()
        )
        if not sorted_here and not [name for name in self._sizes() if name != UNFINISHED]:
            self._remove_notes([])

    def unfinished(self, name: str) -> Path:
        """Where a file of this part is made before it gets its name."""
        self._unfinished.mkdir(parents=True, exist_ok=True)
        return self._unfinished / f"{name}-{os.getpid()}"

    def done(self, numbers: Iterable[int]) -> dict[int, Written]:
        """What was written of each of these portions that is done."""
        sizes, found = self._sizes(), {}
        noted = [number for number in numbers if _note(number) in sizes]
        notes = side_by_side(lambda number: self._read(_note(number)), noted, num_threads=_AT_ONCE)
        for number, data in zip(noted, notes, strict=True):
            assert data is not None, "it was listed"
            written = msgspec.json.decode(data, type=Written)
            if all(sizes.get(row.url) == row.size for row in written.shards):
                found[number] = written
        return found

    def note(self, number: int, written: Written) -> None:
        """Note that a portion is done: all its shards are there."""
        self._writer.write(self._at(_note(number)), msgspec.json.encode(written))

    def move(self, file: Path, name: str) -> None:
        """Give a complete local file its name in the folder."""
        self._writer.move(file, self._at(name))

    def end_part(self) -> None:
        """Leave nothing on this machine of a part that is done: other parts may have files there."""
        shutil.rmtree(self._unfinished, ignore_errors=True)
        with contextlib.suppress(OSError):  # it is not empty
            self.scratch.rmdir()

    def finish(self, job: Job, written: Written) -> None:
        """Write the manifest, then what says that all is done.

        Raises:
            ConfigError: there is no document, or there are shards in the folder that are not of this job.
        """
        if not written.shards:
            first = "".join(f"; {written.num_skipped:,} were skipped, the first: {it}" for it in written.problems[:1])
            raise ConfigError(f"there is no document in the data{first}")
        sizes, mine = self._sizes(), {row.url for row in written.shards}
        if others := [name for name in sizes if name not in mine and not name.startswith(WRITING) and name != MANIFEST]:
            raise ConfigError(f"{named(self.url)} has files of others, as {named(others[0])}: move them away")
        self._writer.write(self._at(MANIFEST), b"".join(map(manifest_line, written.shards)))
        rows = [ShardRow(row.url, size=row.size, num_documents=row.num_documents) for row in written.shards]
        kept = Written(shards=rows, num_skipped=written.num_skipped, problems=written.problems)
        self._writer.write(self._at(_WRITTEN), msgspec.json.encode(Finished(job=job, written=kept)))
        self._remove_notes(sizes)

    @property
    def manifest(self) -> str:
        """The URL of the manifest."""
        return self._at(MANIFEST)

    def _check_finished(self, finished: Finished, job: Job, sizes: dict[str, int | None]) -> None:
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

    @property
    def _unfinished(self) -> Path:
        return self.scratch / f"unfinished-{self.part.index:05d}"

    def _remove(self, names: Iterable[str]) -> None:
        for _ in side_by_side(lambda name: self._writer.remove([self._at(name)]), names, num_threads=_AT_ONCE):
            pass

    def _remove_notes(self, sizes: Iterable[str]) -> None:
        self._remove(name for name in sizes if name.startswith(WRITING) and name != UNFINISHED)
        self._remove([UNFINISHED])  # the last: without it the others would be in the way of a new job
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


def joined(written: Sequence[Written]) -> Written:
    """What several portions or parts have become together. Pure."""
    return Written(
        shards=[row for each in written for row in each.shards],
        num_skipped=sum(each.num_skipped for each in written),
        problems=[problem for each in written for problem in each.problems][:KEPT],
    )


def _note(number: int) -> str:
    return f"{WRITING}/portion-{number:05d}.json"


def _parts(number: int) -> str:
    return "one part" if number == 1 else f"{number:,} parts"


def _files_below(folder: Path) -> Iterator[tuple[str, int]]:
    for place, folders, names in os.walk(folder):
        below = os.path.relpath(place, folder)
        prefix = "" if below == "." else f"{below}/"
        folders[:] = sorted(name for name in folders if name[0] != "." and f"{prefix}{name}" != _SCRATCH)
        for name in sorted(names):
            with contextlib.suppress(FileNotFoundError):  # a process of a run that was killed may still be ending
                path = Path(place, name)
                if name[0] != "." and path.is_file():
                    yield f"{prefix}{name}", path.stat().st_size
