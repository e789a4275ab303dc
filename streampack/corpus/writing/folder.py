"""The folder that shards are written into: what is done in it, and what is not.

    _writing/job.json           what is written there; a folder that has it is not finished, and no run reads it
    _writing/begun-00002        part 2 is being written, or was killed
    _writing/portion-00003.5be1c9a2.json     its shards, once they are there; the 8 hex digits are of the job
    _writing/sorted/, parts/    of each part what it has sorted, and all its shards
    _writing/scratch/           files on their way, where the folder is local
    00003-00000.tar             a shard, complete
    manifest.jsonl              the shards in order, when all of them are there
    .written.json               the job and what it gave, in place of _writing/

In:  a job. Out: which of its portions are done, or that all are.
Never: a shard, a note or the manifest under its name before it is complete; a folder that mixes two jobs.
"""

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from streampack.corpus.kinds import MANIFEST, UNFINISHED, WRITING
from streampack.corpus.manifest import ShardRow, manifest_line
from streampack.corpus.parts import WHOLE, Part, PartsFolder, as_runs
from streampack.corpus.writing.job import Job, check_same, parts_job
from streampack.corpus.writing.notes import (
    FINISHED,
    Begun,
    Finished,
    Written,
    decode,
    encode,
    joined,
    read_begun,
    read_finished,
)
from streampack.corpus.writing.scratch import SCRATCH, Scratch
from streampack.errors import ConfigError
from streampack.storage.access import StorageReader
from streampack.storage.clients import local_path
from streampack.storage.options import Storage
from streampack.storage.redaction import named
from streampack.storage.threads import side_by_side
from streampack.storage.writing import StorageWriter

_AT_ONCE = 16
"""Notes that are read or removed side by side."""


class OutputFolder:
    """One folder; it can be pickled, so that each process writes into it."""

    def __init__(self, url: str, storage: Storage, job: Job, part: Part = WHOLE, scratch: str | None = None) -> None:
        self.url = url.rstrip("/")
        self.job = job
        self.part = part
        """What this process, and those that it starts, write."""
        self.in_parts = parts_job(job, part.num_parts)
        self.sorted = PartsFolder(self._at(f"{WRITING}/sorted"), storage)
        """What each part has sorted."""
        self.parts = PartsFolder(self._at(f"{WRITING}/parts"), storage)
        """What each part has become."""
        self.scratch = Scratch(self.url, scratch, self.in_parts, part)
        """Where files are made before they are moved: on the disk of a local folder itself, unless told otherwise."""
        self._reader = StorageReader.of(storage)
        self._writer = StorageWriter(storage)

    def finished(self) -> Written | None:
        """What the job has become, where the folder is finished; None: the job may be begun, or goes on.

        Raises:
            ConfigError: the folder is not empty, or of another job, or its shards are not as they were written.
        """
        sizes = self._sizes()
        finished = read_finished(self.url, self._reader)
        if finished is not None:
            self._check_finished(finished, sizes)
            self._remove_notes(sizes)
            return finished.written
        begun = read_begun(self.url, self._reader)
        if begun is not None:
            check_same(begun.job, self.job, folder=named(self.url), scratch=self._left_in_scratch(begun))
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

    def begin(self) -> None:
        """Begin the job, or go on with it.

        Raises:
            ConfigError: another process has finished it, or begun another job here, since this one has looked.
        """
        if self.finished() is not None:
            raise self._was_finished()
        if self.job.inputs is None:  # an iterable may give something else now
            self._remove(name for name in self._sizes() if name != UNFINISHED)
            self.scratch.remove()
        self._writer.write(self._at(self._under_way), b"")
        if read_begun(self.url, self._reader) != self._begun:
            self._writer.write(self._at(UNFINISHED), encode(self._begun))
        if read_finished(self.url, self._reader) is not None:  # in the moment before it was written
            self._remove([self._under_way, UNFINISHED])
            raise self._was_finished()

    def end_without_any(self) -> None:
        """Leave the folder as it was before `begin`, where no part is under way or has kept anything since."""
        self._remove([self._under_way])
        if not self.scratch.has_sorted() and not [name for name in self._sizes() if name != UNFINISHED]:
            self._remove_notes([])

    def done(self, numbers: Iterable[int]) -> dict[int, Written]:
        """What was written of each of these portions that is done."""
        sizes, found = self._sizes(), {}
        noted = [number for number in numbers if self._note(number) in sizes]
        urls = [self._at(self._note(number)) for number in noted]
        notes = side_by_side(self._reader.read, urls, num_threads=_AT_ONCE)
        for number, data in zip(noted, notes, strict=True):
            written = decode(data, Written)
            if not _wrong(written, sizes):
                found[number] = written
        return found

    def note(self, number: int, written: Written) -> None:
        """Note that a portion is done: all its shards are there."""
        self._writer.write(self._at(self._note(number)), encode(written))

    def move(self, file: Path, name: str) -> None:
        """Give a complete local file its name in the folder."""
        self._writer.move(file, self._at(name))

    def done_part(self) -> Written | None:
        """What this part has become, where it is done and its shards are there."""
        if self.part.index not in self.parts.done(self.in_parts):
            return None
        written = msgspec.convert(next(self.parts.results(self.in_parts, [self.part.index])), Written)
        return None if _wrong(written, self._sizes()) else written

    def keep_part(self, written: Written) -> None:
        """Note that this part is done: all its shards are there."""
        self.parts.keep(self.in_parts, self.part.index, msgspec.to_builtins(written))
        self._remove([self._under_way])
        if read_finished(self.url, self._reader) is not None:  # another process has written this part, too
            self._remove_notes(self._sizes())
        elif read_begun(self.url, self._reader) is None:  # a part that kept nothing has removed it in a bad moment
            self._writer.write(self._at(UNFINISHED), encode(self._begun))

    def finish(self, parts: Sequence[Written]) -> Written:
        """Write the manifest, then what says that all is done.

        Args:
            parts: what each has become, in their order.

        Raises:
            ConfigError: there is no document; a shard is not there as it was written, or is not of this job.
        """
        written, sizes = joined(parts), self._sizes()
        if not written.shards:
            first = "".join(f"; {written.num_skipped:,} were skipped, the first: {it}" for it in written.problems[:1])
            raise ConfigError(f"there is no document in the data{first}")
        lost = {index: wrong for index, part in enumerate(parts) if (wrong := _wrong(part, sizes))}
        if lost:
            again = "the same" if len(parts) == 1 else f"--part {min(lost)}/{len(parts)} of `streampack write`"
            more = f" (also: parts {as_runs(set(list(lost)[1:]))})" if len(lost) > 1 else ""
            raise ConfigError(
                f"{named(self.url)}: {lost[min(lost)]}; run {again} again, which writes what is missing{more}"
            )
        mine = {row.url for row in written.shards}
        if others := [name for name in sizes if name not in mine and not name.startswith(WRITING) and name != MANIFEST]:
            raise ConfigError(f"{named(self.url)} has files of others, as {named(others[0])}: move them away")
        self._writer.write(self._at(MANIFEST), b"".join(map(manifest_line, written.shards)))
        rows = [ShardRow(row.url, size=row.size, num_documents=row.num_documents) for row in written.shards]
        kept = Written(shards=rows, num_skipped=written.num_skipped, problems=written.problems)
        self._writer.write(self._at(FINISHED), encode(Finished(job=self.job, written=kept)))
        self._remove_notes(sizes)
        return written

    def tidy(self) -> None:
        """Remove the notes of a finished folder, which a process that was killed may have left."""
        self._remove_notes(self._sizes())

    @property
    def manifest(self) -> str:
        """The URL of the manifest."""
        return self._at(MANIFEST)

    def _check_finished(self, finished: Finished, sizes: dict[str, int | None]) -> None:
        check_same(finished.job, self.job, folder=named(self.url))
        if self.job.inputs is None:
            raise ConfigError(
                f"{named(self.url)} is finished, and what an iterable gives cannot be compared with it: remove the "
                "folder to write it again, or name another"
            )
        if wrong := _wrong(finished.written, sizes):
            raise ConfigError(f"{wrong}; remove {named(self.url)} and write it again")

    def _left_in_scratch(self, begun: Begun) -> str | None:
        path = Scratch(self.url, begun.scratch, parts_job(begun.job, begun.num_parts), self.part).path
        return str(path) if begun.scratch is not None and path.is_dir() else None

    def _was_finished(self) -> ConfigError:
        return ConfigError(
            f"{named(self.url)} was finished by another process just now; the same command again changes nothing"
        )

    @property
    def _begun(self) -> Begun:
        return Begun(job=self.job, num_parts=self.part.num_parts, scratch=self.scratch.given)

    @property
    def _under_way(self) -> str:
        """A file that is there while this part is written."""
        return f"{WRITING}/begun-{self.part.index:05d}"

    def _note(self, number: int) -> str:
        return f"{WRITING}/portion-{number:05d}.{self.in_parts.digest}.json"

    def _remove(self, names: Iterable[str]) -> None:
        for _ in side_by_side(lambda name: self._writer.remove([self._at(name)]), names, num_threads=_AT_ONCE):
            pass

    def _remove_notes(self, sizes: Iterable[str]) -> None:
        self._remove(name for name in sizes if name.startswith(WRITING) and name != UNFINISHED)
        self._remove([UNFINISHED])  # the last: without it the others would be in the way of a new job
        self.scratch.remove()
        path = local_path(self._at(WRITING))
        if path is not None:
            shutil.rmtree(path, ignore_errors=True)
            for copy in Path(path).parent.glob(".*.tar.*-*"):  # of a move from another disk that was killed
                copy.unlink(missing_ok=True)

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

    def _at(self, name: str) -> str:
        return f"{self.url}/{name}"


def _wrong(written: Written, sizes: Mapping[str, int | None]) -> str:
    """What is wrong with the first shard that is not there as it was written; "": all are."""
    for row in written.shards:
        if sizes.get(row.url) != row.size:
            there = "is gone" if row.url not in sizes else f"has {sizes[row.url]:,} bytes and not {row.size:,}"
            return f"{row.url} {there}"
    return ""


def _parts(number: int) -> str:
    return "one part" if number == 1 else f"{number:,} parts"


def _files_below(folder: Path) -> Iterator[tuple[str, int]]:
    for place, folders, names in os.walk(folder):
        below = os.path.relpath(place, folder)
        prefix = "" if below == "." else f"{below}/"
        folders[:] = sorted(name for name in folders if name[0] != "." and f"{prefix}{name}" != SCRATCH)
        for name in sorted(names):
            with contextlib.suppress(FileNotFoundError):  # a process of a run that was killed may still be ending
                path = Path(place, name)
                if name[0] != "." and path.is_file():
                    yield f"{prefix}{name}", path.stat().st_size
