"""What kind of file a URL names, told by the name alone: a shard, something that may be one, or other data.

    a.tar  b.tar.gz  c.tzst               SHARD        read
    d.tar.xz  e.tbz2                      UNSUPPORTED  a tar in a compression that is not read
    a.tar.idx  README.md  x.jsonl.zst     OTHER        known to be no tar
    f.tar.part  g.tar-00  h.tar~  i_tar   LIKE_SHARD   a tar that is unfinished, cut, a copy, or has lost its suffix
    j.ustar  00017.gz                     LIKE_SHARD   an archive, or compressed data of no other name
    part-00017  data.bin                  UNKNOWN      read as a plain tar where it is named, as some have no suffix

In:    URLs that were found in a folder, or that the user named.
Out:   those to read; a line in the log about those that were passed over; an error about what may be lost data.
Never: a file whose name looks like a shard's and that is left out without an error. One of an UNKNOWN kind in a folder
is passed over with that line in the log, which counts them and names the first.
"""

import logging
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from enum import Enum, auto

from streampack.errors import ConfigError, ShardNotFoundError
from streampack.storage.redaction import named
from streampack.tar.codecs import ALL_SUFFIXES, path_of, suffix_of, unsupported_suffix_of

_log = logging.getLogger(__name__)

READ = f"shards are tars that end with {', '.join(ALL_SUFFIXES)}"
HOW_TO_WRITE = "`streampack write DATA -o FOLDER` (streampack.write_shards) makes them; docs/data.md shows how"
MANIFEST = "manifest.jsonl"
"""The manifest that `streampack write` puts beside the shards."""
WRITING = "_writing"
"""The folder, below the one that shards are written into, that is there until all of them are."""
UNFINISHED = f"{WRITING}/job.json"
"""A file that is in it as long as it is there."""
_COMPRESSIONS = frozenset({"gz", "zst", "bz2", "xz", "lz4", "br", "lzma", "z"})
_OTHER = frozenset(
    {
        # texts: about the shards, or documents that are in no shard
        *("json", "jsonl", "ndjson", "yaml", "yml", "toml", "xml", "html", "csv", "tsv", "txt", "text", "md", "rst"),
        # what is written beside a shard
        *("idx", "index", "meta", "info", "stats", "log", "done", "ok", "success", "lock", "sig", "asc", "etag"),
        *("md5", "md5sum", "sha1", "sha1sum", "sha256", "sha256sum", "sha512", "sha512sum", "crc", "crc32", "crc32c"),
        # other forms of data
        *("parquet", "arrow", "feather", "orc", "avro", "tfrecord", "mds", "lance", "h5", "hdf5", "db", "sqlite"),
        *("zip", "7z", "rar", "npy", "npz", "pt", "pth", "safetensors", "model", "py", "sh", "ipynb", "pdf"),
    }
)
"""Suffixes of what is no tar."""
_BESIDE = frozenset({"readme", "license", "licence", "notice", "changelog", "manifest", "index", "_success"})
"""Names without a suffix that are often beside shards."""
_LIKE_SHARD = re.compile(
    r"[._-](tar|tgz|tzst)([^a-z/][^/]*)?$"  # a.tar-00, a.tar (1), a.tar~, a_tar
    r"|\.(ustar|pax|cpio|gtar)$"
    r"|(^|/)[^./]+(\.[0-9]+)*\.(gz|gzip|zst|zstd|bz2|xz|lz4|z)$"  # 00017.gz
)
"""Names that a shard may have got from a tool that cuts, copies, uploads or renames."""


class Kind(Enum):
    """What a file is by its name; the module's text says more."""

    SHARD = auto()
    UNSUPPORTED = auto()
    OTHER = auto()
    LIKE_SHARD = auto()
    UNKNOWN = auto()


def kind_of(url: str) -> Kind:
    """What the file is by its name.

    >>> [kind_of(name).name for name in ("a.tar", "a.tar.Z", "a.tar.md5", "a.tar-00", "part-00017")]
    ['SHARD', 'UNSUPPORTED', 'OTHER', 'LIKE_SHARD', 'UNKNOWN']
    """
    if suffix_of(url) is not None:
        return Kind.SHARD
    if unsupported_suffix_of(url) is not None:
        return Kind.UNSUPPORTED
    path = path_of(url)
    if _suffix(path) in _OTHER or path.rpartition("/")[2] in _BESIDE:
        return Kind.OTHER
    return Kind.LIKE_SHARD if _LIKE_SHARD.search(path) else Kind.UNKNOWN


def shards_among(found: Sequence[tuple[str, int | None]], *, folder: str) -> list[tuple[str, int | None]]:
    """The shards among (URL, size) of all files below a folder; the log tells what else is there.

    Raises:
        ConfigError: there are files that may be shards and cannot be read as such.
        ShardNotFoundError: there is no shard.
    """
    for url, _ in found:
        before, inside, _ = f"/{url[len(folder) :]}".partition(f"/{WRITING}/")
        if inside:
            raise not_finished(f"{folder.rstrip('/')}{before}/")
    shards = [(url, size) for url, size in found if suffix_of(url) is not None]
    others = [url for url, _ in found if suffix_of(url) is None and url != f"{folder}{MANIFEST}"]
    lost = [url for url in others if kind_of(url) in (Kind.UNSUPPORTED, Kind.LIKE_SHARD)]
    if lost:
        raise ConfigError(
            f"{len(lost)} of {len(found)} files below {named(folder)} look like shards and cannot be read: "
            f"{_some(lost)}; {READ}. Write these again so, or move them away, or name the shards that are to be read, "
            f"as in {named(folder)}**/*.tar"
        )
    if not shards:
        what = f"has {len(found)} files but no tar ({_counted(others)})" if found else "is empty, or not there"
        web = folder.startswith(("http://", "https://"))
        hint = "; a web server lists a folder only where it has an index page with links" if web and not found else ""
        text = f"the directory {named(folder)} {what}{hint}; {READ}"
        text += f". {HOW_TO_WRITE[0].upper()}{HOW_TO_WRITE[1:]}" if found else "; give others by a glob or list"
        raise ShardNotFoundError(text)
    if others:
        _log.warning(
            "%s: %d of %d files are no shards and are not read (%s); the first: %s",
            named(folder), len(others), len(found), _counted(others), named(others[0])
        )  # fmt: skip
    return shards


def not_finished(folder: str) -> ConfigError:
    """The error of a folder that has `WRITING` in it."""
    return ConfigError(
        f"{named(folder)} is not finished: `streampack write` (streampack.write_shards) was writing into it. Run "
        "the same again, which goes on where it ended; or `streampack merge` where all its parts are written"
    )


def refuse_others(urls: Sequence[str]) -> None:
    """Raise `ConfigError` where a URL that was named, or that a glob matches, is known to be no shard by its name."""
    wrong = [url for url in urls if kind_of(url) in (Kind.UNSUPPORTED, Kind.OTHER) and not _is_query(url)]
    if not wrong:
        return
    first = wrong[0]
    hint = f"{HOW_TO_WRITE}."
    if unsupported := unsupported_suffix_of(first):
        hint = f"{unsupported} is not supported; store the shard as .tar, .tar.gz or .tar.zst."
    elif first.endswith((".json", ".jsonl", ".ndjson")):
        hint += f" If it is a manifest, a list of shards, give it as '@{named(first)}'."
    if len(wrong) < len(urls):
        hint += " If a glob matches more than the shards, make it narrower."
    what = f"{len(wrong)} of {len(urls)} files given as shards are no tars by their names: {_some(wrong)}"
    raise ConfigError(f"{what}; {READ}. {hint}")


def _is_query(url: str) -> bool:
    """Whether a web URL's query, and not its path, says what it is."""
    return "?" in url and url.startswith(("http://", "https://"))


def _suffix(path: str) -> str:
    """The last suffix, without its dot; the one before it where that one names a compression."""
    stem, dotted = posixpath.splitext(path)
    inner = posixpath.splitext(stem)[1]
    return (inner if inner and dotted[1:] in _COMPRESSIONS else dotted)[1:]


def _counted(urls: Iterable[str]) -> str:
    kinds = Counter(posixpath.splitext(path_of(url))[1] or "without a suffix" for url in urls).most_common(5)
    return ", ".join(f"{count} {kind}" for kind, count in kinds)


def _some(urls: Sequence[str]) -> str:
    shown = ", ".join(named(url) for url in urls[:3])
    return shown if len(urls) <= 3 else f"{shown} and {len(urls) - 3} more"
