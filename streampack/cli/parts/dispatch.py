"""Where the work of a command is done, as it was asked for: all of it here, one part of it, or all parts on Ray.

In:  the work, and how it is divided. Out: what was found in all shards, or in each part in order, as plain values.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

from streampack.cli.console import format_bytes, output, plural, print_json
from streampack.cli.parts.on_ray import run_tasks
from streampack.cli.parts.options import Division
from streampack.cli.parts.work import ShardRanges, Work, job_of, plain, shards_of_part, size_of
from streampack.cli.progress import ShardProgress
from streampack.corpus.parts import WHOLE, Part, PartsFolder, as_part
from streampack.corpus.processes import advance_silently
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


def _do_part(work: Work, part: Part, division: Division, *, doing: str, json: bool) -> None:
    assert division.parts is not None, "see Division.check"
    folder, job = PartsFolder(division.parts), job_of(work, part.num_parts)
    shards = shards_of_part(work.tables, part)
    num_shards, num_bytes = size_of(work.tables, shards)
    done = folder.done(job)
    was_done = part.index in done
    if not was_done:
        with ShardProgress(f"{doing} part {part}", num_shards, num_bytes) as progress:
            found = work.run(shards, workers=division.workers, advance=progress.advance)
        folder.keep(job, part.index, plain(found))
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
        return plain(self.work.run(shards, workers=1, advance=advance_silently))


def _on_ray(work: Work, address: str, division: Division, *, doing: str) -> Iterator[Any]:  # Any: JSON
    num_shards, num_bytes = size_of(work.tables, shards_of_part(work.tables, WHOLE))
    job = job_of(work, min(num_shards, _MOST_RAY_PARTS))
    with TemporaryDirectory(prefix="streampack-parts-") as temporary:
        folder = PartsFolder(division.parts or temporary)
        left = sorted(set(range(job.num_parts)) - folder.done(job))
        parts = {index: shards_of_part(work.tables, Part(index, job.num_parts)) for index in left}
        sizes = {index: size_of(work.tables, shards) for index, shards in parts.items()}
        shards_left, bytes_left = (sum(size[which] for size in sizes.values()) for which in (0, 1))
        with ShardProgress(doing, num_shards, num_bytes) as progress:
            has_files = any(local_path(shard.url) is not None for table in work.tables.values() for shard in table)
            tasks = run_tasks(_PartTask(work), parts, address=address, at_once=division.workers, has_files=has_files)
            for index, found in tasks:
                folder.keep(job, index, found)
                shards_left, bytes_left = shards_left - sizes[index][0], bytes_left - sizes[index][1]
                progress.advance(num_bytes - bytes_left, num_shards - shards_left)
        yield from folder.results(job)
