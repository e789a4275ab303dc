r"""A manifest: a file with one JSON line for each shard, written by the user or by `streampack manifest`.

    {"url": "en/00000.tar", "size": 104857600, "digest": "...", "num_samples": 8192}

A path that is not UTF-8 has JSON escapes (`caf\udce9.tar`) for the bytes that are not, as Python's `os.fsdecode`.

In:    the bytes of the manifest, and its URL.
Out:   a row for each line, in the order of the lines; relative URLs are below the manifest's own folder.
"""

import codecs
import difflib
import json
import posixpath
import re
from typing import Annotated

import msgspec
from msgspec import Meta

from streampack.corpus.urls import refuse_shell, without_query
from streampack.errors import ConfigError
from streampack.storage.digests import PATTERN, parse_digest

_LARGEST_SHARD = 2**50
_LOOKS_LIKE = (
    (rb"\xff\xfe|\xfe\xff|.\0|\0.", "text in UTF-16 or UTF-32, or binary data: save it as UTF-8"),
    (rb"version https://git-lfs", "a Git LFS pointer, not the file it stands for: fetch that with `git lfs pull`"),
    (rb"\x1f\x8b|\x28\xb5\x2f\xfd", "compressed: decompress it"),
    (rb"\s*\[", "a JSON array: write its objects on lines of their own, without brackets and commas (jq -c '.[]')"),
    (rb"\s*\{\s*\n", "one JSON value over several lines: write each shard's object on one line (jq -c)"),
    (rb"\s*<", "HTML or XML, perhaps a message of the storage"),
    (rb"\s*[^{\s]", 'no JSON object on each line, as {"url": "a.tar", "size": 1024}'),
)
"""How the bytes begin of what is no manifest -> what they are, and what to do."""


class ShardRow(msgspec.Struct, forbid_unknown_fields=True):
    """One shard; also the form of a manifest's line."""

    url: Annotated[str, Meta(min_length=1)]
    size: Annotated[int, Meta(ge=0, le=_LARGEST_SHARD)] | None = None
    etag: str | None = None
    digest: Annotated[str, Meta(pattern=PATTERN)] | None = None
    num_samples: Annotated[int, Meta(ge=0, le=_LARGEST_SHARD)] | None = None
    num_documents: Annotated[int, Meta(ge=0, le=_LARGEST_SHARD)] | None = None
    """For people; a run does not read it."""
    count: Annotated[int, Meta(ge=0, le=_LARGEST_SHARD)] | None = None
    """Another word for `num_samples`."""
    whole: bool = False


def manifest_line(row: ShardRow) -> bytes:
    """The line of a manifest that says this, without what is not known."""
    line = {name: value for name in row.__struct_fields__ if (value := getattr(row, name)) is not None}
    if not row.whole:
        del line["whole"]
    text = json.dumps(line, ensure_ascii=False)  # msgspec's own refuses lone surrogates
    return text.encode("utf-8", "backslashreplace") + b"\n"


def read_manifest(data: bytes, *, manifest: str) -> list[ShardRow]:
    """The rows of a manifest with these bytes and this URL.

    Raises:
        ConfigError: a line cannot be read (the error has its number), or there is no line.
    """
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        rows = msgspec.json.Decoder(ShardRow).decode_lines(data)
    except (msgspec.MsgspecError, ValueError):
        rows = _find_bad_line(data, manifest)
    for number, row in enumerate(rows, 1):
        refuse_shell(row.url)
        if row.digest is not None:
            try:
                parse_digest(row.digest, size=row.size)
            except ConfigError as error:
                raise ConfigError(f"shard {number}: {error}", url=manifest) from None
        if row.count is not None:
            if row.num_samples is not None:
                raise ConfigError(f"shard {number}: give num_samples or count, not both", url=manifest)
            row.num_samples = row.count
        if row.url.endswith("/"):
            what = f"{row.url!r} is a folder; a manifest has a line for each shard (`streampack manifest` lists them)"
            raise ConfigError(f"shard {number}: {what}", url=manifest)
        if "://" not in row.url:
            row.url = _resolve(manifest, row.url)
    if not rows:
        raise ConfigError('the manifest is empty; it needs a line like {"url": "a.tar", "size": 1024}', url=manifest)
    return rows


def _find_bad_line(data: bytes, manifest: str) -> list[ShardRow]:
    """Decode line by line, which is slower and finds the line that is wrong."""
    rows = []
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            rows.append(_decode(line))
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            why = str(error)
            known = next((what for begin, what in _LOOKS_LIKE if re.match(begin, data, re.DOTALL)), None)
            if known is not None and not rows:
                why = f"{why}; the manifest is {known}"
            if isinstance(error, UnicodeDecodeError):
                byte = error.object[error.start]
                why = f"byte 0x{byte:02x} is not UTF-8; in a path that is not UTF-8, write it as \\udc{byte:02x}"
            if match := re.search(r"unknown field `(.*)`", why):
                keys = [name for name in ShardRow.__struct_fields__ if name != "count"]
                near = difflib.get_close_matches(match[1], ShardRow.__struct_fields__, n=1, cutoff=0.4)
                nearest = f"did you mean {near[0]!r}? " if near else ""
                why = f"unknown key {match[1]!r}; {nearest}a line has {', '.join(keys)}"
            raise ConfigError(f"line {number} of the manifest: {why}", url=manifest) from error
    return rows


def _decode(line: bytes) -> ShardRow:
    if rb"\ud" not in line.lower():
        return msgspec.json.decode(line, type=ShardRow)
    return msgspec.convert(json.loads(line), ShardRow)  # msgspec's own decoder refuses lone surrogates


def _resolve(manifest: str, url: str) -> str:
    """A URL of a manifest; a relative one is relative to the manifest's folder."""
    scheme, separator, path = without_query(manifest).rpartition("://")
    if separator and url.startswith("/"):
        raise ConfigError(
            f"{url!r} is a path of one machine; write it relative to the manifest, or as file://{url}", url=manifest
        )
    joined = posixpath.join(posixpath.dirname(path), url)
    return scheme + separator + (posixpath.normpath(joined) if "./" in url else joined)  # no bucket resolves ".."
