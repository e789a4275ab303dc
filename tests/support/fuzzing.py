"""Targets for fuzzing: each takes any bytes, and raises where the product does what it must not.

`test_fuzz.py` gives them what hypothesis makes of good input, `fuzz/run.py` what atheris finds by coverage::

    TARGETS["tar"](data)        every reader: whole, in ranges, behind each decompressor
    TARGETS["config"](data)     ...

What they may raise inside is in the error tree, and of the right branch; anything else comes out.
"""

import gzip
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import numpy as np
import zstandard

from streampack.config.file import load_config
from streampack.corpus.resolve import resolve_shards
from streampack.corpus.table import ShardTable
from streampack.documents.fields import parse_field
from streampack.documents.reader import DocumentReader
from streampack.errors import ConfigError, RecordError, ShardError, ShardNotFoundError, StreampackError
from streampack.records import BadRecord, Document, Sample
from streampack.storage.identity import identities
from streampack.tar.codecs import MAX_CHUNK_BYTES, decompress
from streampack.tar.reader import read_range, read_samples
from support.tars import URL, Shard, chunked

LIMIT = 1 << 20
"""Of a member, in bytes."""
SECONDS = 10
"""More than any input of some KiB may cost, on any machine: a hang."""


@contextmanager
def in_time() -> Iterator[None]:
    began = time.process_time()
    yield
    spent = time.process_time() - began
    assert spent < SECONDS, f"{spent:.1f} s"


def drained(samples: Iterator[Sample]) -> tuple[list[Sample], ShardError | None]:
    """The samples up to the end or the error, which must be one of the tree."""
    found: list[Sample] = []
    caught: ShardError | None = None
    try:
        found.extend(samples)  # keeps what came before the error
    except ShardError as error:
        caught = error
    assert caught is None or caught.url, "an error without its place"
    return found, caught


def read_whole(data: bytes, *, chunk: int = 700, url: str = URL) -> tuple[list[Sample], ShardError | None]:
    chunks = decompress(chunked(data, chunk), url=url)
    return drained(read_samples(chunks, url=url, wanted=lambda _: True, max_member_bytes=LIMIT))


def read_in_ranges(data: bytes, cuts: list[int]) -> tuple[list[Sample], ShardError | None]:
    """What the ranges between the cuts hold, to the first error."""
    shard = Shard(data)
    samples: list[Sample] = []
    for begin, end in itertools.pairwise([0, *cuts, len(data)]):
        found, error = drained(
            read_range(
                shard.open_range,
                shard.open_at,
                begin=begin,
                end=end,
                size=len(data),
                url=URL,
                wanted=lambda _: True,
                max_member_bytes=LIMIT,
            )
        )
        samples += found
        if error is not None:
            return samples, error
    return samples, None


def tar(data: bytes) -> None:
    """Chunks, ranges and compressions make no difference; what is read is there."""
    with in_time():
        samples, error = read_whole(data, chunk=1 << 20)
        for sample in samples:
            for extension, content in sample.members.items():
                assert len(content) == sample.sizes[extension]
                assert not content or content in data
        again, same = read_whole(data, chunk=513)
        assert (again, str(same)) == (samples, str(error))
        if len(data) > 1:
            step = max(len(data) // 4, 1)
            cuts = list(range(step, len(data), step))
            ranged, wrong = read_in_ranges(data, cuts)
            if wrong is None:  # the ranges complain, or hold together what the whole has
                assert error is None
                assert ranged == samples
        for url, compress in (("a.tar.gz", gzip.compress), ("a.tar.zst", zstandard.compress)):
            unpacked, _ = read_whole(compress(data), url=url)
            assert unpacked == samples


def compressed(data: bytes) -> None:
    """Any bytes under a compressed name give chunks of a bounded size, or an error."""
    with in_time():
        for url in ("a.tar.gz", "a.tar.zst"):
            for chunk in (1 << 20, 7):
                at: int | None = len(data)
                try:
                    for out in decompress(chunked(data, chunk), url=url):
                        assert 0 < len(out) <= MAX_CHUNK_BYTES
                except ShardError as error:
                    at = error.offset
                assert at is not None
                assert 0 <= at <= len(data)


def documents(field: str, extension: str) -> Callable[[bytes], None]:
    """The target for members of one kind."""
    reader = DocumentReader(
        field=parse_field(field),
        max_document_bytes=1 << 16,
        max_member_bytes=LIMIT,
        chat=(lambda *_: (np.zeros(1, np.int32), np.ones(1, bool))) if parse_field(field).is_chat else None,
    )

    def target(data: bytes) -> None:
        sample = Sample("k", 0, {extension: data}, {extension: len(data)})
        with in_time():
            found = list(reader.read(sample, url=URL, shard_name="s", shard_index=0, epoch=0))
        records = [item.record for item in found]
        assert records == sorted(set(records))
        assert reader.field.holds_many or records == [0]
        for item in found:
            if isinstance(item, BadRecord):
                assert isinstance(item.error, RecordError)
                assert item.error.url == URL
                assert str(item.error).isprintable() or "\n" not in str(item.error)[:10]
            else:
                check_document(item)

    return target


def check_document(document: Document) -> None:
    if document.text is not None:
        assert len(document.text.encode()) <= 1 << 16
    else:
        assert document.tokens is not None
        assert document.tokens.dtype == np.int32
        assert document.tokens.ndim == 1
        assert not len(document.tokens) or document.tokens.min() >= 0


class OneFile:
    """A listing that knows one manifest, and of everything else that it has a byte."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def listing(self, url: str) -> list[tuple[str, int | None]]:
        return []

    def is_local_name(self, text: str) -> bool:
        return False

    def is_directory(self, url: str) -> bool:
        return False

    def size(self, url: str) -> int | None:
        return 1

    def etag(self, url: str) -> str | None:
        return None

    def read(self, url: str) -> bytes:
        return self.data

    def identities(self, urls: Sequence[str]) -> list[str]:
        return identities(urls)


def manifest(data: bytes) -> None:
    """A manifest is a table that survives the way to another process, or an error that names it."""
    with in_time():
        try:
            table = resolve_shards("@memory://corpus/m.jsonl", OneFile(data))
        except (ConfigError, ShardNotFoundError, ShardError):
            return
        again = ShardTable.from_bytes(table.to_bytes())
        assert list(again) == list(table)
        assert again.digest == table.digest
        assert table.total_bytes > 0


def braces(data: bytes) -> None:
    with in_time(), suppress(StreampackError):
        resolve_shards(data.decode("utf-8", "replace"), OneFile(b""))


_FOLDER = tempfile.TemporaryDirectory(prefix="streampack-fuzz-")


def config(data: bytes) -> None:
    """A config file is a Config, or a ConfigError that names the file."""
    path = Path(_FOLDER.name) / "run.yaml"
    path.write_bytes(data)
    said = str(path)
    with in_time():
        try:
            loaded = load_config(path)
            loaded.loader_arguments()
            msgspec.to_builtins(loaded, enc_hook=str)
        except ConfigError as error:
            said = str(error)
    assert str(path) in said


TARGETS: dict[str, Callable[[bytes], None]] = {
    "tar": tar,
    "compressed": compressed,
    "text": documents("txt", "txt"),
    "json": documents("json:text", "json"),
    "messages": documents("json:messages", "json"),
    "lines": documents("jsonl:meta.text", "jsonl"),
    "lines.gz": documents("jsonl:text", "jsonl.gz"),
    "lines.zst": documents("jsonl:text", "jsonl.zst"),
    "npy": documents("npy", "npy"),
    "manifest": manifest,
    "braces": braces,
    "config": config,
}
