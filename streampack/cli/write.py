"""`streampack write`: tar shards and their manifest from JSON lines, Parquet, texts or a dataset on disk.

In:  files or folders. Out: a folder of shards, or a part of them; what was written in numbers, and the records that
were left out.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, cast

import typer

from streampack.cli.arguments import Json
from streampack.cli.console import format_bytes, output, plural, print_json, printable
from streampack.cli.parts.on_ray import run_tasks
from streampack.cli.progress import BytesProgress
from streampack.corpus.parts import Part, as_part
from streampack.corpus.processes import num_cores
from streampack.corpus.writing.passes import Progress, progress_silently
from streampack.corpus.writing.request import (
    SHARD_BYTES,
    Request,
    WrittenPart,
    WrittenShards,
    merge_parts,
    num_portions,
    write_all,
    write_part,
)
from streampack.errors import ConfigError
from streampack.storage.clients import local_path

_MOST_RAY_PARTS = 256
"""Each part lists the inputs. The cluster's size does not count, so that another one can go on with the same parts."""
_SHOWN = 20
"""Records that were left out, of which so many are shown."""


def write(
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="IN...",
            help="JSON lines (.jsonl, .ndjson, .json; .gz, .zst), .parquet, texts (.txt, .md, .rst), folders of these "
            "or of a Hugging Face dataset on disk; paths or URLs, with braces or globs.",
            show_default=False,
        ),
    ],
    *,
    out: Annotated[
        str, typer.Option("--output", "-o", metavar="DIR", help="The folder to write into, a path or a URL.")
    ],
    field: Annotated[
        str, typer.Option(help="jsonl:KEY, where the text or the conversation of a record is.")
    ] = "jsonl:text",
    shuffle: Annotated[bool, typer.Option("--shuffle", help="Write the records in a random order.")] = False,
    seed: Annotated[int, typer.Option(help="With --shuffle: decides the order.")] = 0,
    shard_bytes: Annotated[
        int, typer.Option(min=2**16, help="Bytes of members after which a shard ends.")
    ] = SHARD_BYTES,
    on_error: Annotated[
        str, typer.Option(help="A record that cannot be written: raise, or skip it, counted and listed.")
    ] = "raise",
    workers: Annotated[
        int | None, typer.Option("--workers", "-w", min=1, help="Processes.", show_default="one per core")
    ] = None,
    scratch: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="A folder on a local disk for what is on its way; with --shuffle all of the data.",
            show_default="DIR itself, or the folder of temporary files",
        ),
    ] = None,
    part: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Write part I of N (0 to N-1) only, on this machine; `streampack merge DIR` finishes the folder.",
            show_default="all",
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="[ADDRESS]",
            help="Write all parts on a Ray cluster (extra `ray`), which reaches DIR: host:port, ray://host:port, or, "
            "without an address, the cluster of RAY_ADDRESS or of this machine.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Write JSON lines, Parquet, texts or a dataset into shards, with a manifest."""
    if part is not None and ray is not None:
        raise ConfigError("--part and --ray: a Ray cluster writes all parts; give one of the two")
    request = Request(
        data=data, output=out, field=field, shard_bytes=shard_bytes, shuffle=shuffle, seed=seed, on_error=on_error,
        num_workers=workers or num_cores(), scratch=scratch, storage=None,
    )  # fmt: skip
    with BytesProgress() as progress:
        if part is not None:
            of_part = as_part(part)
            found = write_part(request, of_part, progress)
        elif ray is not None:
            written = _write_on_ray(request, ray, progress, at_once=workers)
        else:
            written = write_all(request, progress)
    if part is not None:
        _tell_part(of_part, found, printable(out), json=json)
    else:
        _tell_all(written, json=json)


@dataclasses.dataclass(frozen=True, slots=True)
class _WritingPart:
    """What a task of the cluster does."""

    request: Request
    num_parts: int

    def __call__(self, index: int) -> bool:
        """Whether the part is written; False: its records are sorted, and wait for those of other parts."""
        return write_part(self.request, Part(index, self.num_parts), progress_silently).shards is not None


def _write_on_ray(request: Request, address: str, progress: Progress, *, at_once: int | None) -> WrittenShards:
    num_parts = min(num_portions(request), _MOST_RAY_PARTS)
    # Absolute: with remote inputs and a remote output, nodes are not in the folder of this command.
    scratch = None if request.scratch is None else Path(request.scratch).absolute()
    task = _WritingPart(dataclasses.replace(request, num_workers=1, scratch=scratch), num_parts)
    names = [*cast("list[str]", request.data), str(request.output)]
    has_files = any(local_path(name) is not None for name in names)
    left = dict(enumerate(range(num_parts)))
    for doing in ("writing or sorting parts", "writing sorted parts"):
        advance = progress(doing, len(left), None)
        tasks = run_tasks(task, left, address=address, at_once=at_once, has_files=has_files)
        left = {}
        for done, (index, is_written) in enumerate(tasks, 1):
            advance(0, done)
            if not is_written:
                left[index] = index
    return merge_parts(request.output)


def finish(folder: str, *, json: bool) -> None:
    """Finish a folder that was written in parts, and print what is there."""
    _tell_all(merge_parts(folder), json=json)


def _tell_all(written: WrittenShards, *, json: bool) -> None:
    if json:
        print_json(dataclasses.asdict(written))
        return
    manifest = printable(written.manifest)
    output().print(f"{manifest}: {_counted(written)}", soft_wrap=True)
    output().print(f"use it as @{manifest} with --field {written.field}", soft_wrap=True)
    _tell_skipped(written)


def _tell_part(part: Part, found: WrittenPart, folder: str, *, json: bool) -> None:
    if json:
        shards = None if found.shards is None else dataclasses.asdict(found.shards)
        print_json({"part": str(part), "missing": found.missing, "shards": shards})
        return
    if found.shards is None:
        output().print(f"part {part}: its records are sorted", soft_wrap=True)
        to_do, then = "sorted", "run all parts again: each writes its shards"
    else:
        output().print(f"part {part}: {_counted(found.shards)}", soft_wrap=True)
        _tell_skipped(found.shards)
        to_do, then = "written", f"`streampack merge {folder}`"
    if found.missing:
        output().print(f"not {to_do} yet: {found.missing}; when all are, {then}", soft_wrap=True)
    else:
        output().print(f"all parts are {to_do}: {then}", soft_wrap=True)


def _counted(written: WrittenShards) -> str:
    what = f"{plural(written.num_shards, 'shard')}, {plural(written.num_documents, 'document')}"
    if written.was_finished:
        return f"{what} are there already; nothing was changed"
    return f"{what}, {format_bytes(written.num_bytes)}"


def _tell_skipped(written: WrittenShards) -> None:
    if not written.num_skipped:
        return
    output().print(f"{plural(written.num_skipped, 'record')} left out:")
    for problem in written.skipped[:_SHOWN]:
        output().print(f"  {printable(problem)}", soft_wrap=True)
    if written.num_skipped > _SHOWN:
        output().print(f"  and {written.num_skipped - min(_SHOWN, len(written.skipped)):,} more")
