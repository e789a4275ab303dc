"""`streampack write`: tar shards and their manifest from JSON lines, Parquet, texts or a dataset on disk.

In:  files or folders. Out: a folder of shards, what was written in numbers, and the records that were left out.
"""

import dataclasses
from typing import Annotated

import typer

from streampack.cli.arguments import Json
from streampack.cli.console import format_bytes, output, plural, print_json, printable
from streampack.cli.progress import BytesProgress
from streampack.corpus.processes import num_cores
from streampack.corpus.writing.public import SHARD_BYTES, write_to

_SHOWN = 20
"""Records that were left out, of which the table shows."""


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
    json: Json = False,
) -> None:
    """Write JSON lines, Parquet, texts or a dataset into shards, with a manifest."""
    with BytesProgress() as progress:
        written = write_to(
            data, out, field=field, shard_bytes=shard_bytes, shuffle=shuffle, seed=seed, on_error=on_error,
            num_workers=workers or num_cores(), scratch=scratch, storage=None, progress=progress,
        )  # fmt: skip
    if json:
        print_json(dataclasses.asdict(written))
        return
    manifest = printable(written.manifest)
    what = f"{plural(written.num_shards, 'shard')}, {plural(written.num_documents, 'document')}"
    if written.was_finished:
        output().print(f"{manifest}: {what} are there already; nothing was changed", soft_wrap=True)
    else:
        output().print(f"{manifest}: {what}, {format_bytes(written.num_bytes)}", soft_wrap=True)
    output().print(f"use it as @{manifest} with --field {field}", soft_wrap=True)
    if written.num_skipped:
        output().print(f"{plural(written.num_skipped, 'record')} left out:")
        for problem in written.skipped[:_SHOWN]:
            output().print(f"  {printable(problem)}", soft_wrap=True)
        if written.num_skipped > _SHOWN:
            output().print(f"  and {written.num_skipped - min(_SHOWN, len(written.skipped)):,} more")
