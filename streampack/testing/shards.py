"""For tests of your own training code: small shards from Python values.

In:  documents as strings, integer sequences, or bytes that are stored as they are.
Out: tar shards as webdataset's own writer makes them, the same bytes every time.
Never: an import of torch or webdataset when this module is imported.
"""

import contextlib
import gzip
import io
import itertools
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, Any, Literal

import fsspec
import numpy as np
import zstandard
from numpy.typing import NDArray

from streampack.documents.compression import SUFFIXES as MEMBER_SUFFIXES
from streampack.documents.fields import Field, parse_field
from streampack.errors import ConfigError
from streampack.records import Message
from streampack.tar.codecs import SUFFIXES as SHARD_SUFFIXES

_FORMATS = {"pax": tarfile.PAX_FORMAT, "gnu": tarfile.GNU_FORMAT, "ustar": tarfile.USTAR_FORMAT}

Source = str | bytes | Sequence[int] | Sequence[Message] | NDArray[np.integer]


def write_shards(
    directory: str | os.PathLike[str],
    documents: Iterable[Source],
    *,
    field: str = "txt",
    documents_per_shard: int = 100,
    shard_sizes: Sequence[int] | None = None,
    documents_per_member: int = 10,
    compression: Literal["gz", "zst"] | None = None,
    member_compression: Literal["gz", "zst"] | None = None,
    format: Literal["pax", "gnu", "ustar"] = "pax",  # noqa: A002 - tarfile's own word
    storage_options: Mapping[str, object] | None = None,
) -> list[str]:
    """The paths (or URLs) of the shards `00000.tar`, `00001.tar`, ... that it has written, in order.

    For tests, with as many documents in a shard as a test needs; `streampack.write_shards` makes shards of a corpus.
    Samples are written by `webdataset.TarWriter`, with keys `00000000`, `00000001`, ... that count on over the shards.

    Args:
        directory: made if it is not there; a path or an fsspec URL.
        documents: str for text, integers for `npy`, lists of messages for a key `messages`. Bytes are
            stored as they are: a whole member, for `jsonl` a line.
        field: as in `PackedDataset`: which member holds a document, and how.
        documents_per_shard: how many documents each shard but the last has.
        shard_sizes: documents of each shard instead; it must add up to all of them. 0 gives an archive without members.
        documents_per_member: for `jsonl`, lines of each member but a shard's last.
        compression: of the shards.
        member_compression: of the members, for `jsonl`.
        format: `"pax"` has an extra header before each member, as webdataset's writer puts there for the time.
        storage_options: for fsspec.

    Raises:
        ConfigError: an argument that cannot work, or `shard_sizes` that do not add up.
    """
    target = parse_field(field)
    if member_compression is not None and not target.holds_many:
        raise ConfigError(f"member_compression={member_compression!r} goes with field='jsonl:KEY', not with {field!r}")
    is_known = compression in SHARD_SUFFIXES and member_compression in (None, *MEMBER_SUFFIXES)
    if format not in _FORMATS or not is_known:
        raise ConfigError(f"not known: one of {format=}, {compression=}, {member_compression=}")
    filesystem, root = fsspec.url_to_fs(os.fspath(directory), **(storage_options or {}))
    filesystem.makedirs(root, exist_ok=True)
    prefix = os.fspath(directory) if "://" in os.fspath(directory) else root
    keys = (f"{number:08d}" for number in itertools.count())
    extension = target.exact or target.kind
    if member_compression is not None:
        extension = f"{extension}.{member_compression}"
    per_member = documents_per_member if target.holds_many else 1
    paths = []
    for index, group in enumerate(_groups(documents, documents_per_shard, shard_sizes)):
        name = f"{index:05d}{SHARD_SUFFIXES[compression][0]}"
        members = [group[start : start + per_member] for start in range(0, len(group), per_member)]
        with filesystem.open(f"{root}/{name}", "wb") as file, _tar_writer(file, compression, format) as write:
            for member in members:
                data = _member_bytes(member, target)
                write({"__key__": next(keys), extension: _compress(data, member_compression)})
        paths.append(f"{prefix.rstrip('/')}/{name}")
    return paths


def _groups(documents: Iterable[Source], per_shard: int, sizes: Sequence[int] | None) -> Iterator[list[Source]]:
    rest = iter(documents)
    if sizes is None:
        while group := list(itertools.islice(rest, per_shard)):
            yield group
        return
    for size in sizes:
        group = list(itertools.islice(rest, size))
        if len(group) < size:
            raise ConfigError(f"shard_sizes={list(sizes)} asks for more documents than there are")
        yield group
    if next(rest, None) is not None:
        raise ConfigError(f"shard_sizes={list(sizes)} leaves documents over: they must add up to all of them")


@contextlib.contextmanager
def _tar_writer(file: IO[bytes], compression: str | None, format: str) -> Iterator[Any]:  # noqa: A002 - as above
    """The `write` of a TarWriter, into a file compressed here, since its own compression stores the time."""
    import webdataset  # imports torch

    with contextlib.ExitStack() as stack:
        stream: Any = file
        if compression == "gz":
            stream = stack.enter_context(gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0))
        elif compression == "zst":
            stream = stack.enter_context(zstandard.ZstdCompressor().stream_writer(file, closefd=False))
        # A time with a fraction is what makes tarfile write PAX headers.
        writer = stack.enter_context(webdataset.TarWriter(stream, encoder=False, mtime=0.5))
        writer.tarstream.format = _FORMATS[format]  # TarWriter takes a format, and ignores it
        yield writer.write


def _member_bytes(documents: list[Source], target: Field) -> bytes:
    if target.holds_many:
        return b"".join(_json_bytes(document, target) + b"\n" for document in documents)
    (document,) = documents
    if isinstance(document, bytes):
        return document
    if target.kind == "json":
        return _json_bytes(document, target)
    if isinstance(document, str):
        return document.encode()
    stream = io.BytesIO()
    np.save(stream, np.asarray(document, dtype=getattr(document, "dtype", np.int32)))
    return stream.getvalue()


def _json_bytes(document: Source, target: Field) -> bytes:
    if isinstance(document, bytes):
        return document
    value: object = document
    for key in reversed(target.keys):
        value = {key: value}
    return json.dumps(value, ensure_ascii=False).encode()


def _compress(data: bytes, compression: str | None) -> bytes:
    if compression == "gz":
        return gzip.compress(data, mtime=0)
    return zstandard.compress(data) if compression == "zst" else data
