"""Where the work of a command is done, as it was asked for: all of it here, one part of it, or all parts on Ray.

In:  the work, and how it is divided. Out: what was found in all shards, or in each part in order, as plain values.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

from streampack.cli.console import format_bytes, output, plural, print_json
from streampack.cli.parts.on_ray import run_tasks
from streampack.cli.parts.options import Division
from streampack.cli.parts.work import Kept, ShardRanges, Work, files_of, job_of, plain, record, shards_of_part, size_of
from streampack.cli.progress import ShardProgress
from streampack.corpus.parts import WHOLE, Part, PartsFolder, PartsJob, as_part
from streampack.corpus.processes import Advance, advance_silently
from streampack.corpus.writing.request import has_written_shards
from streampack.errors import ConfigError
from streampack.storage.clients import local_path
from streampack.storage.redaction import named

_MOST_RAY_PARTS = 2000
"""Of all shards. The cluster's size does not count, so that another cluster can go on with the same parts."""


def results_of(work: Work, division: Division, *, doing: str, json: bool) -> Iterator[Any] | None:
    """What was found, as plain values: of all shards, or of each part in order. None: of one part, which is told."""
    if division.part is not None:
        _do_part(work, as_part(division.part), division, doing=doing, json=json)
        return None
    if division.ray is not None:
        return _on_ray(work, division.ray, division, doing=doing)
    everything = shards_of_part(work.tables, WHOLE)
    with ShardProgress(doing, *size_of(work.tables, everything)) as progress:
        return iter([plain(work.run(everything, workers=division.workers, advance=progress.advance))])


def kept_results(folder: PartsFolder, job: PartsJob) -> Iterator[Any]:  # Any: JSON
    """What each part has found, in order."""
    return (record(kept, Kept).found for kept in folder.results(job))


def _do_part(work: Work, part: Part, division: Division, *, doing: str, json: bool) -> None:
    assert division.parts is not None, "see Division.check"
    folder, job = _parts_folder(division.parts), job_of(work, part.num_parts)
    shards = shards_of_part(work.tables, part)
    num_shards, num_bytes = size_of(work.tables, shards)
    done = folder.done(job)
    was_done = part.index in done and not _to_read_again(work, {part.index: shards}, folder, job)
    if not was_done:
        with ShardProgress(f"{doing} part {part}", num_shards, num_bytes) as progress:
            found = _keep(work, shards, workers=division.workers, advance=progress.advance)
        folder.keep(job, part.index, found)
    where = named(folder.url)
    if json:
        about = {"part": str(part), "parts": where, "num_shards": num_shards, "bytes": num_bytes, "was_done": was_done}
        print_json(about)
        return
    what = "was done already; nothing was read" if was_done else f"{format_bytes(num_bytes)}, kept in {where}"
    output().print(f"part {part}: {plural(num_shards, 'shard')}, {what}", soft_wrap=True)
    if len(done | {part.index}) == part.num_parts:
        output().print(f"all parts are done: `streampack merge {where}`", soft_wrap=True)


@dataclass(frozen=True, slots=True)
class _PartTask:
    """What a task of the cluster does with the shards of a part."""

    work: Work

    def __call__(self, shards: ShardRanges) -> Any:  # Any: JSON
        return _keep(self.work, shards, workers=1, advance=advance_silently)


def _parts_folder(url: str) -> PartsFolder:
    """The folder of --parts."""
    if has_written_shards(url):
        raise ConfigError(f"--parts {named(url)}: `write` writes its shards there, or has; name another folder")
    return PartsFolder(url)


def _keep(work: Work, shards: ShardRanges, *, workers: int | None, advance: Advance) -> Any:  # Any: JSON
    """What a part keeps."""
    files = files_of(work.tables, shards)  # before they are read: what is changed meanwhile is read again
    return plain(Kept(files=files, found=plain(work.run(shards, workers=workers, advance=advance))))


def _to_read_again(work: Work, done: Mapping[int, ShardRanges], folder: PartsFolder, job: PartsJob) -> list[int]:
    """Those parts that are done and are to be read again: their files have changed, or problems may be repaired."""
    again = []
    for (index, shards), result in zip(done.items(), folder.results(job, done), strict=True):
        kept = record(result, Kept)
        if kept.files != files_of(work.tables, shards) or not work.is_good(kept.found):
            again.append(index)
    return again


def _on_ray(work: Work, address: str, division: Division, *, doing: str) -> Iterator[Any]:  # Any: JSON
    num_shards, num_bytes = size_of(work.tables, shards_of_part(work.tables, WHOLE))
    job = job_of(work, min(num_shards, _MOST_RAY_PARTS))
    with TemporaryDirectory(prefix="streampack-parts-") as temporary:
        folder = _parts_folder(division.parts or temporary)
        parts = {index: shards_of_part(work.tables, Part(index, job.num_parts)) for index in range(job.num_parts)}
        done = {index: parts[index] for index in sorted(folder.done(job))}
        for index in done.keys() - set(_to_read_again(work, done, folder, job)):
            del parts[index]
        sizes = {index: size_of(work.tables, shards) for index, shards in parts.items()}
        shards_left, bytes_left = (sum(size[which] for size in sizes.values()) for which in (0, 1))
        with ShardProgress(doing, num_shards, num_bytes) as progress:
            has_files = any(local_path(shard.url) is not None for table in work.tables.values() for shard in table)
            tasks = run_tasks(_PartTask(work), parts, address=address, at_once=division.workers, has_files=has_files)
            for index, found in tasks:
                folder.keep(job, index, found)
                shards_left, bytes_left = shards_left - sizes[index][0], bytes_left - sizes[index][1]
                progress.advance(num_bytes - bytes_left, num_shards - shards_left)
        yield from kept_results(folder, job)
