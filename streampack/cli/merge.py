"""`streampack merge`: adds up what all parts of a command have found, or finishes a folder of written shards.

In:  a folder with the files of all parts, or with the shards that all parts of `write` have written.
Out: the output of the command, or its file; its exit code.
Invariants: no shard is read, and no list of shards.
"""

from pathlib import Path
from typing import Annotated

import typer

import streampack
from streampack.cli.arguments import Json
from streampack.cli.parts.dispatch import kept_results
from streampack.cli.write import finish as finish_write
from streampack.corpus.parts import PartsFolder
from streampack.corpus.writing.request import has_written_shards
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
    folder = PartsFolder(parts)
    if has_written_shards(parts):
        _check_written(folder, output_file)
        finish_write(parts, json=json)
        return
    job = folder.job()
    if job.command == "write":
        raise ConfigError(f"{named(parts)}: parts of `write` are merged by the folder of the shards: name that one")
    if (release := job.about.get("streampack")) != streampack.__version__:
        raise ConfigError(
            f"{named(parts)}: its parts are of streampack {release}, and this is {streampack.__version__}; merge them "
            "with that release"
        )
    results = kept_results(folder, job)
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
        raise ConfigError(f"{named(parts)}: parts of `{job.command}`, which this release does not know")


def _check_written(folder: PartsFolder, output_file: Path | None) -> None:
    """Refuse what does not fit a folder that `write` writes."""
    if names := folder.names():
        raise ConfigError(
            f"{named(folder.url)} has shards of `write`, and parts of another command ({names[0]}): move the files of "
            "the parts to a folder of their own, and merge each"
        )
    if output_file is not None:
        raise ConfigError(
            f"--output {output_file}: {named(folder.url)} has shards of `write`, which get their manifest beside them; "
            "leave out --output"
        )
