"""`streampack merge`: what all parts of a command have found, as one machine would tell it; written shards, finished.

In:  a folder with the files of all parts, or with the shards that all parts of `write` have written.
Out: the output of the command, or its file; its exit code.
Invariants: no shard is read, and no list of shards.
"""

from pathlib import Path
from typing import Annotated

import typer

import streampack
from streampack.cli.arguments import Json
from streampack.cli.write import finish as finish_write
from streampack.corpus.parts import PartsFolder
from streampack.errors import ConfigError
from streampack.storage.redaction import named


def merge(
    parts: Annotated[
        str,
        typer.Argument(
            metavar="DIR", help="The folder of --parts, or that of `write`, a path or URL.", show_default=False
        ),
    ],
    *,
    output_file: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Of parts of `manifest`: the file to write; {source} stands for the name of a source.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Add up the parts of `verify`, `count` or `manifest`, or finish a folder that `write` made in parts."""
    if output_file is None and finish_write(parts, json=json):
        return
    folder = PartsFolder(parts)
    job = folder.job()
    if (release := job.about.get("streampack")) != streampack.__version__:
        raise ConfigError(
            f"{named(parts)}: its parts are of streampack {release}, and this is {streampack.__version__}; merge them "
            "with that release"
        )
    results = folder.results(job)
    if job.command != "manifest" and output_file is not None:
        raise ConfigError(
            f"--output {output_file}: the parts in {named(parts)} are of `{job.command}`, which prints what it has "
            "found; only `manifest` writes a file"
        )
    if job.command == "verify":
        from streampack.cli.verify.command import finish as finish_verify

        finish_verify(results, json=json)
    elif job.command == "count":
        from streampack.cli.count.command import finish as finish_count

        finish_count(results, json=json)
    elif job.command == "manifest":
        from streampack.cli.manifest import finish as finish_manifest

        finish_manifest(results, output_file, json=json)
    else:
        raise ConfigError(f"{named(parts)} has parts of `{job.command}`: give the folder that it writes into")
