"""`streampack manifest`: the shards with their sizes, listed once, into a file that later runs read instead.

In:  shards as anywhere else. Out: a file of JSON lines, one for each shard; of a config with several sources a file for
each source.
Invariants: the lines have the order in which the shards would be read without the manifest (globs and directories
sorted), so a run over `@FILE` is the same run. The file appears whole or not at all.
"""

import contextlib
import itertools
import os
import posixpath
import tempfile
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from threading import Lock
from typing import Annotated, Any, ClassVar

import msgspec
import typer
from msgspec import structs
from rich.status import Status

from streampack.cli.arguments import Json, OneSource, check_folder, file_errors, make_storages
from streampack.cli.console import format_bytes, messages, output, plural, print_json, printable
from streampack.cli.parts.dispatch import results_of
from streampack.cli.parts.options import Division, PartOption, PartsFolderOption, RayOption
from streampack.cli.parts.work import ShardRanges, record, shards_of_part, size_of
from streampack.cli.per_shard import Added
from streampack.cli.progress import ShardProgress
from streampack.corpus.manifest import ShardRow, manifest_line
from streampack.corpus.parts import WHOLE
from streampack.corpus.processes import Advance
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
_THREADS = 8


class Found(msgspec.Struct, kw_only=True):
    """The rows of some shards of each source, in order; local paths are absolute."""

    rows: dict[str, list[ShardRow]]
    digests: bool
    """Whether digests were made, and not only copied from a manifest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The work of `manifest`: a row for each listed shard, with digests where these are asked for."""

    tables: dict[str, ShardTable]
    storages: dict[str, StorageReader]
    digests: bool
    block_bytes: int
    command: ClassVar[str] = "manifest"

    @property
    def about(self) -> dict[str, Any]:  # Any: JSON
        return {"digests": self.digests, "block_bytes": self.block_bytes if self.digests else None}

    def run(self, shards: ShardRanges, *, workers: int | None, advance: Advance) -> Found:
        """The rows of these shards."""
        found: dict[str, list[ShardRow]] = {name: [] for name in self.tables}
        with contextlib.closing(self.rows(shards, workers=workers, advance=advance)) as rows:
            for name, row in rows:
                found[name].append(row)
        return Found(rows=found, digests=self.digests)

    def is_good(self, result: Any) -> bool:  # Any: JSON
        return True

    def rows(
        self, shards: ShardRanges, *, workers: int | None, advance: Advance
    ) -> Generator[tuple[str, ShardRow], None, None]:
        """The rows of these shards one by one, each with its source."""
        done = Added(advance)
        for name, table in self.tables.items():
            mine = shards[name]
            with errors_of(name):
                if not self.digests:
                    for index in mine:
                        shard = table[index]
                        size = shard.size if shard.size_known else None
                        yield name, _row(shard, size=size, digest=shard.digest)
                else:
                    threads = workers or _THREADS
                    read = _Digests(table, self.storages[name], self.block_bytes, done.advance)
                    with contextlib.closing(side_by_side(read, mine, num_threads=threads)) as found:
                        yield from ((name, row) for row in found)
            done.next_source(int(table.sizes[mine.start : mine.stop].sum()), len(mine))


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
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The file to write; give it as @FILE where shards are asked for. A config with several sources has a "
            "file for each: {source} stands for the name.",
            show_default=False,
        ),
    ] = None,
    digests: Annotated[
        bool,
        typer.Option(
            "--digests", help="Read every shard, and write a digest of each of its blocks, which readers then check."
        ),
    ] = False,
    block_bytes: Annotated[
        int, typer.Option(min=2**14, max=MAX_BLOCK_BYTES, help="With --digests: bytes of a block.")
    ] = BLOCK_BYTES,
    part: PartOption = None,
    parts: PartsFolderOption = None,
    ray: RayOption = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            "-w",
            min=1,
            help="With --digests: shards that are read at the same time.",
            show_default=str(_THREADS),
        ),
    ] = None,
    json: Json = False,
) -> None:
    """List shards and their sizes once, into a file that later runs read instead."""
    division = Division(part=part, parts=parts, ray=ray, workers=workers)
    division.check()
    if part is not None and output_file is not None:
        raise ConfigError(f"--output {output_file}: a part writes no manifest; give this to `streampack merge`")
    if part is None and output_file is None:
        raise ConfigError("--output (-o) FILE is missing: name the file to write")
    storages = make_storages(shards, source)
    if output_file is not None:
        files = _files(output_file, storages)
    tables = {}
    for name, (specs, storage) in storages.items():
        with errors_of(name), messages().status("listing") as status:

            def tell(done: int, total: int, status: Status = status) -> None:
                status.update(f"listed; {done:,} of {total:,} sizes looked up")

            tables[name] = resolve_shards(specs, storage, progress=tell)
    readers = {name: storage for name, (_, storage) in storages.items()}
    work = Listing(tables=tables, storages=readers, digests=digests, block_bytes=block_bytes)
    if division.is_asked_for:
        results = results_of(work, division, doing="reading", json=json)
        if results is not None:
            finish(results, output_file, json=json)
        return
    # Not through `results_of`: digests of blocks may take more memory than there is.
    everything = shards_of_part(tables, WHOLE)
    with (
        ShardProgress("reading", *size_of(tables, everything)) as progress,
        contextlib.closing(work.rows(everything, workers=workers, advance=progress.advance)) as rows,
    ):
        written = _write(rows, files, digests=digests)
    _tell(written, json=json)


def finish(results: Iterable[Any], output_file: Path | None, *, json: bool) -> None:  # Any: JSON
    """Write the manifest of each source from the rows that the parts have, and tell what is in it."""
    if output_file is None:
        raise ConfigError("these are parts of `manifest`: name the file to write with --output (-o) FILE")
    found = (record(result, Found) for result in results)
    first = next(found)
    rows = (
        (name, row)
        for part in itertools.chain([first], found)  # a part has shards of a source only after all of the one before
        for name, of_source in part.rows.items()
        for row in of_source
    )
    _tell(_write(rows, _files(output_file, first.rows), digests=first.digests), json=json)


def _files(output_file: Path, sources: Iterable[str]) -> dict[str, Path]:
    """The file of each source."""
    files = {name: Path(str(output_file).replace(_PLACE, name)) for name in sources}
    if len(set(files.values())) < len(files):
        raise ConfigError(
            f"--output {output_file}: the config has {plural(len(files), 'source')}, and each has a manifest of its "
            f"own. Put {_PLACE} into the name of the file, or choose a source with --source"
        )
    for asked in files.values():
        check_folder("--output", asked)
    return files


def _tell(written: list[dict[str, Any]], *, json: bool) -> None:  # Any: JSON
    if json:
        print_json(written[0] if len(written) == 1 else {"manifests": written})
        return
    for about in written:
        unknown = f", {about['unknown']:,} of unknown size" if "unknown" in about else ""
        file = printable(about["file"])
        whose = f"source {about['source']}: " if len(written) > 1 else ""
        what = f"{plural(about['num_shards'], 'shard')}, {format_bytes(about['bytes'])}{unknown}"
        output().print(f"{whose}{file}: {what}; use it as @{file}")


def _write(rows: Iterator[tuple[str, ShardRow]], files: Mapping[str, Path], *, digests: bool) -> list[dict[str, Any]]:
    """Write the manifest of each source, and tell what is in it."""
    written = []
    for name, of_source in itertools.groupby(rows, key=itemgetter(0)):
        about = _write_file((row for _, row in of_source), files[name], digests=digests)
        written.append(({} if name == DEFAULT else {"source": name}) | about)
    return written


def _write_file(rows: Iterator[ShardRow], output_file: Path, *, digests: bool) -> dict[str, Any]:  # Any: JSON
    folder = output_file.parent
    num_shards = num_bytes = unknown = 0
    with (
        file_errors("--output", output_file),
        tempfile.NamedTemporaryFile("wb", dir=folder, prefix=output_file.name, delete=False) as file,
    ):
        try:
            for row in rows:
                num_shards += 1
                num_bytes += row.size or 0
                unknown += row.size is None
                file.write(manifest_line(structs.replace(row, url=_url(row.url, folder))))
            file.flush()
            os.fsync(file.fileno())
            Path(file.name).chmod(0o644)
            Path(file.name).replace(output_file)
        except BaseException:  # an interrupt too: no half manifest is left
            Path(file.name).unlink()
            raise
    about = {"file": str(output_file), "num_shards": num_shards, "bytes": num_bytes, "digests": digests}
    return about | ({"unknown": unknown} if unknown else {})


def _row(shard: Shard, *, size: int | None, digest: str | None) -> ShardRow:
    """The row of a shard; a local path is absolute, since it may be written on another machine, in another folder."""
    path = local_path(shard.url)
    return ShardRow(
        shard.url if path is None else str(Path(path).absolute()),
        size=size,
        etag=shard.etag,
        digest=digest,
        num_samples=shard.num_samples,
        whole=shard.whole and shard.size_known and not is_compressed(shard.url),
    )


def _url(url: str, folder: Path) -> str:
    """The URL in the manifest: relative for a shard below the manifest's folder, so that both can move together."""
    path = local_path(url)
    if path is None:
        return url
    below = os.path.relpath(path, folder)
    if below.startswith(".."):
        return str(Path(path).absolute())
    return posixpath.join(*Path(below).parts)


class _Digests:
    """Reads shards, and gives the row of each; several threads call it."""

    def __init__(self, table: ShardTable, storage: StorageReader, block_bytes: int, advance: Advance) -> None:
        self._table, self._storage, self._block_bytes, self._advance = table, storage, block_bytes, advance
        self._lock = Lock()
        self._bytes_done = self._shards_done = 0

    def __call__(self, index: int) -> ShardRow:
        shard = self._table[index]
        digester, size = BlockDigester(block_bytes=self._block_bytes), 0
        for chunk in self._storage.chunks(shard.url, size=shard.size if shard.size_known else None):
            check()
            digester.update(chunk)
            size += len(chunk)
            self._tell(len(chunk), 0)
        self._tell(0, 1)
        return _row(shard, size=size, digest=digester.text())

    def _tell(self, num_bytes: int, num_shards: int) -> None:
        with self._lock:
            self._bytes_done += num_bytes
            self._shards_done += num_shards
            self._advance(self._bytes_done, self._shards_done)
