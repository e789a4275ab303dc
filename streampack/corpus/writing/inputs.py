"""What the user named as data to write: files, folders, globs, braces; in. Out: the files, in order, of a known kind.

    a.jsonl  a.ndjson  a.json  (.gz, .zst)      JSON lines: a document in each
    a.parquet                                   a document in each row
    a.txt  a.md  a.rst  a.text                  a document in each file
    a folder of `Dataset.save_to_disk`          a document in each row

A folder gives what is below it of one sort: JSON lines (.jsonl, .ndjson) and Parquet, else .json, else texts.
Never: a file that was named and is left out. What is passed over in a folder is counted in the log.
"""

import enum
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from streampack.corpus.braces import expand_braces
from streampack.corpus.kinds import Kind, kind_of
from streampack.corpus.urls import is_glob, refuse_shell, refuse_text, relative_names
from streampack.errors import ConfigError, ShardNotFoundError
from streampack.storage.access import StorageReader
from streampack.storage.clients import local_path
from streampack.storage.redaction import named
from streampack.tar.codecs import Compression, path_of

_log = logging.getLogger(__name__)
_LINES = (".jsonl", ".ndjson")
_JSON = (".json",)
_PARQUET = (".parquet",)
_TEXTS = (".txt", ".md", ".rst", ".text")
_COMPRESSIONS: dict[str, Compression] = {".gz": "gz", ".zst": "zst"}
_KINDS = "JSON lines (.jsonl, .ndjson, .json; .gz, .zst), .parquet, texts (.txt, .md, .rst) or the folder of a dataset"
_DATASET = "state.json"
_SPLITS = "dataset_dict.json"


class InputKind(enum.StrEnum):
    """How the records of an input are read."""

    LINES = "lines"
    TEXT = "text"
    PARQUET = "parquet"
    DATASET = "dataset"


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """A file, or the folder of a dataset."""

    url: str
    name: str
    """The part of the URL that stays the same when all inputs move together."""
    kind: InputKind
    compression: Compression | None
    size: int
    version: str
    """Changes with its content, as far as the storage tells: a time of change, or an ETag."""


def find_inputs(named_as: Sequence[str], storage: StorageReader) -> list[Input]:
    """The inputs that these names stand for.

    Raises:
        ConfigError: a name of another kind of file, or one that is given twice.
        ShardNotFoundError: nothing is there.
    """
    found: list[tuple[str, int | None]] = []
    for name in named_as:
        found += _matching(name, storage)
    urls = [url for url, _ in found]
    first_of: dict[str, str] = {}
    for one, url in zip(storage.identities(urls), urls, strict=True):
        if (first := first_of.setdefault(one, url)) is not url:
            raise ConfigError(f"given twice: {named(first)}, also as {named(url)}; name each file once")
    names = relative_names(urls) if len(urls) > 1 else [url.rstrip("/").rpartition("/")[2] for url in urls]
    return [_input(url, size, name, storage) for (url, size), name in zip(found, names, strict=True)]


def _matching(given: str, storage: StorageReader) -> list[tuple[str, int | None]]:
    found: list[tuple[str, int | None]] = []
    is_name = storage.is_local_name(given)
    for url in [given] if is_name else expand_braces(given):
        refuse_shell(url)
        if not is_name:
            refuse_text(url)
        if _known(url) is None and (url.endswith("/") or ((is_name or not is_glob(url)) and storage.is_directory(url))):
            found += _below(url.rstrip("/") + "/", storage)
        elif is_glob(url) and not is_name:
            matched = storage.listing(url)
            if not matched:
                raise ShardNotFoundError(f"nothing matches {named(url)!r}; check the pattern and the folder")
            for each, _ in matched:
                _refuse_other(each)
            found += matched
        else:
            _refuse_other(url)
            found.append((url, None))
    return found


def _below(folder: str, storage: StorageReader) -> list[tuple[str, int | None]]:
    """The files below a folder that are inputs; the folder itself where it is a dataset."""
    path = local_path(folder)
    if path is not None:  # the listing's names begin with it
        below = os.path.normpath(path)
        folder = f"{os.path.abspath(below) if below.startswith('.') else below}/"  # noqa: PTH100 - Path drops no '..'
    listed = storage.listing(folder)
    names = {url[len(folder) :] for url, _ in listed}
    if _SPLITS in names:
        splits = sorted({name.partition("/")[0] for name in names if name.endswith(f"/{_DATASET}")})
        one = f"; name one, as {named(folder)}{splits[0]}" if splits else ""
        raise ConfigError(f"{named(folder)} is a dataset with the splits {', '.join(splits) or 'none'}{one}")
    if _DATASET in names and any(name.endswith(".arrow") for name in names):
        return [(folder, sum(size or 0 for url, size in listed if url.endswith(".arrow")))]
    for suffixes in ((*_LINES, *_PARQUET), _JSON, _TEXTS):
        are_read = [_known(url) is not None and _bare(url)[0].endswith(suffixes) for url, _ in listed]
        chosen = [entry for entry, is_read in zip(listed, are_read, strict=True) if is_read]
        if chosen:
            others = [url for (url, _), is_read in zip(listed, are_read, strict=True) if not is_read]
            if others:
                _log.warning(
                    "%s: %d of %d files are not read; the first: %s",
                    named(folder), len(others), len(listed), named(others[0])
                )  # fmt: skip
            return chosen
    there = f"has {len(listed)} files, and none is read by its name" if listed else "is empty, or not there"
    raise ShardNotFoundError(f"{named(folder)} {there}; documents are read from {_KINDS}")


def _input(url: str, size: int | None, name: str, storage: StorageReader) -> Input:
    path = local_path(url)
    if url.endswith("/"):
        state = Path(path or url, _DATASET)
        if path is None:
            raise ConfigError("a dataset is read from a local folder; copy it to this machine", url=named(url))
        return Input(
            url=url, name=name, kind=InputKind.DATASET, compression=None, size=size or 0,
            version=str(state.stat().st_mtime_ns),
        )  # fmt: skip
    size = storage.size(url) if size is None else size
    if size is None:
        raise ConfigError("its size is not known: the server does not tell it; copy the file first", url=named(url))
    kind = _known(url)
    assert kind is not None, "checked where it was found"
    version = str(Path(path).stat().st_mtime_ns) if path is not None else storage.etag(url) or ""
    return Input(url=url, name=name, kind=kind, compression=_bare(url)[1], size=size, version=version)


def _known(url: str) -> InputKind | None:
    """How a file of this name is read; None for another kind of file."""
    bare, compression = _bare(url)
    if bare.endswith((*_LINES, *_JSON)):
        return InputKind.LINES
    if compression is not None:
        return None
    return InputKind.PARQUET if bare.endswith(_PARQUET) else InputKind.TEXT if bare.endswith(_TEXTS) else None


def _refuse_other(url: str) -> None:
    if _known(url) is not None:
        return
    hint = f"documents are read from {_KINDS}"
    if kind_of(url) is Kind.SHARD:
        hint = f"this is a shard already: PackedDataset reads it, `streampack peek {named(url)}` shows it"
    elif _bare(url)[0].endswith((".csv", ".tsv", ".arrow")):
        kind = "arrow" if _bare(url)[0].endswith(".arrow") else "csv"
        hint += f"; `datasets.load_dataset({kind!r}, data_files=...).save_to_disk(...)` makes such a folder of it"
    raise ConfigError(hint, url=named(url))


def _bare(url: str) -> tuple[str, Compression | None]:
    """The path without the suffix of a compression, and the compression."""
    path = path_of(url)
    for suffix, compression in _COMPRESSIONS.items():
        if path.endswith(suffix):
            return path.removesuffix(suffix), compression
    return path, None
