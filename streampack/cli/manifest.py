"""`streampack manifest`: the shards with their sizes, listed once, into a file that later runs read instead.

In:  shards as anywhere else. Out: a file of JSON lines, one for each shard; of a config with several sources a file for
each source.
Invariants: the lines have the order in which the shards would be read without the manifest (globs and directories
sorted), so a run over `@FILE` is the same run. The file appears whole or not at all.
"""

import contextlib
import os
import posixpath
import tempfile
from collections.abc import Generator, Sequence
from pathlib import Path
from threading import Lock
from typing import Annotated, Any

import typer

from streampack.cli.arguments import Json, OneSource, check_folder, file_errors, make_storages
from streampack.cli.console import format_bytes, messages, output, plural, print_json, printable
from streampack.cli.progress import ShardProgress
from streampack.corpus.manifest import ShardRow, manifest_line
from streampack.corpus.resolve import resolve_shards
from streampack.corpus.shares import DEFAULT
from streampack.corpus.table import ShardTable
from streampack.dataset.sources import errors_of
from streampack.errors import ConfigError
from streampack.records import Shard
from streampack.storage.access import StorageReader
from streampack.storage.clients import local_path
from streampack.storage.digests import BLOCK_BYTES, MAX_BLOCK_BYTES, BlockDigester
from streampack.storage.threads import check, side_by_side
from streampack.tar.codecs import is_compressed

_PLACE = "{source}"
"""What stands for the name of a source in the name of a file."""


def manifest(
    shards: Annotated[
        list[str],
        typer.Argument(
            metavar="SHARDS",
            help="Paths or URLs, with braces or globs; directories; @manifest; or one config file (.yaml): the shards "
            "of its dataset.",
            show_default=False,
        ),
    ],
    *,
    source: OneSource = None,
    output_file: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The file to write; give it as @FILE where shards are asked for. A config with several sources has a "
            "file for each: {source} stands for the name.",
        ),
    ],
    digests: Annotated[
        bool,
        typer.Option(
            "--digests", help="Read every shard, and write a digest of each of its blocks, which readers then check."
        ),
    ] = False,
    block_bytes: Annotated[
        int, typer.Option(min=2**14, max=MAX_BLOCK_BYTES, help="With --digests: bytes of a block.")
    ] = BLOCK_BYTES,
    workers: Annotated[
        int, typer.Option("--workers", "-w", min=1, help="With --digests: shards that are read at the same time.")
    ] = 8,
    json: Json = False,
) -> None:
    """List shards and their sizes once, into a file that later runs read instead."""
    storages = make_storages(shards, source)
    files = {name: Path(str(output_file).replace(_PLACE, name)) for name in storages}
    if len(set(files.values())) < len(files):
        raise ConfigError(
            f"--output {output_file}: the config has {plural(len(files), 'source')}, and each has a manifest of its "
            f"own. Put {_PLACE} into the name of the file, or choose a source with --source"
        )
    for asked in files.values():
        check_folder("--output", asked)
    written = []
    for name, (specs, storage) in storages.items():
        with errors_of(name):
            about = _write(specs, storage, files[name], digests=digests, block_bytes=block_bytes, workers=workers)
        written.append(({} if name == DEFAULT else {"source": name}) | about)
    if json:
        print_json(written[0] if len(written) == 1 else {"manifests": written})
        return
    for about in written:
        unknown = f", {about['unknown']:,} of unknown size" if "unknown" in about else ""
        file = printable(about["file"])
        whose = f"source {about['source']}: " if len(written) > 1 else ""
        what = f"{plural(about['num_shards'], 'shard')}, {format_bytes(about['bytes'])}{unknown}"
        output().print(f"{whose}{file}: {what}; use it as @{file}")


def _write(
    specs: Sequence[str], storage: StorageReader, output_file: Path, *, digests: bool, block_bytes: int, workers: int
) -> dict[str, Any]:
    """Write the manifest of some shards, and tell what is in it."""
    console = messages()
    with console.status("listing") as status:

        def tell(done: int, total: int) -> None:
            status.update(f"listed; {done:,} of {total:,} sizes looked up")

        table = resolve_shards(specs, storage, progress=tell)
    rows: Generator[tuple[Shard, int | None, str | None], None, None] = (
        (shard, shard.size if shard.size_known else None, shard.digest) for shard in table
    )
    folder = output_file.parent
    num_bytes = 0
    with (
        file_errors("--output", output_file),
        tempfile.NamedTemporaryFile("w", dir=folder, prefix=output_file.name, encoding="utf-8", delete=False) as file,
    ):
        try:
            with ShardProgress("reading", table) as progress:
                if digests:
                    rows = _digested(table, storage, block_bytes=block_bytes, workers=workers, progress=progress)
                with contextlib.closing(rows):
                    for shard, size, digest in rows:
                        num_bytes += size or 0
                        file.write(_line(shard, size=size, digest=digest, folder=folder))
            file.flush()
            os.fsync(file.fileno())
            Path(file.name).chmod(0o644)
            Path(file.name).replace(output_file)
        except BaseException:  # an interrupt too: no half manifest is left
            Path(file.name).unlink()
            raise
    unknown = int((~table.size_known).sum()) if not digests else 0
    about = {"file": str(output_file), "num_shards": len(table), "bytes": num_bytes, "digests": digests}
    return about | ({"unknown": unknown} if unknown else {})


def _line(shard: Shard, *, size: int | None, digest: str | None, folder: Path) -> str:
    is_marked = shard.whole and shard.size_known and not is_compressed(shard.url)
    row = ShardRow(
        _url(shard.url, folder),
        size=size,
        etag=shard.etag,
        digest=digest,
        num_samples=shard.num_samples,
        whole=is_marked,
    )
    return manifest_line(row).decode()


def _url(url: str, folder: Path) -> str:
    """The URL in the manifest: relative for a shard below the manifest's folder, so that both can move together."""
    path = local_path(url)
    if path is None:
        return url
    below = os.path.relpath(path, folder)
    if below.startswith(".."):
        return str(Path(path).absolute())
    return posixpath.join(*Path(below).parts)


def _digested(
    table: ShardTable, storage: StorageReader, *, block_bytes: int, workers: int, progress: ShardProgress
) -> Generator[tuple[Shard, int | None, str | None], None, None]:
    """Each shard with its size and digest, in order; several threads read."""
    lock = Lock()
    bytes_done = shards_done = 0

    def read(index: int) -> tuple[Shard, int, str]:
        nonlocal bytes_done, shards_done
        shard = table[index]
        digester, size = BlockDigester(block_bytes=block_bytes), 0
        for chunk in storage.chunks(shard.url, size=shard.size if shard.size_known else None):
            check()
            digester.update(chunk)
            size += len(chunk)
            with lock:
                bytes_done += len(chunk)
                progress.advance(bytes_done, shards_done)
        with lock:
            shards_done += 1
        return shard, size, digester.text()

    return side_by_side(read, range(len(table)), num_threads=workers)
