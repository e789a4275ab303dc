"""The shard list: what the user wrote, expanded once into URLs, relative names and sizes, in an order that is kept.

    "s3://b/c/{00000..01023}.tar"   braces, as shells have them; not listed     kept in the order written
    "data/*.tar"                    a glob (*, ?, [..])                         listed and sorted
    "data/"                         a directory, every tar below it             listed and sorted
    "@manifest.jsonl"               a line per shard: {"url": ..., "size": ...} kept in the order of its lines
    ["...", "..."]                  a list of any of these                      kept in the order written

One process does this and hands `ShardTable.to_bytes` to the others: workers never list. A shard twice, an empty shard,
a missing shard and a pattern that matches nothing are errors. The storage is handed in: nothing here knows of it.
"""

import difflib
import hashlib
import itertools
import math
import posixpath
import re
import string
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Protocol

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from streampack.errors import ConfigError, ShardError, ShardNotFoundError
from streampack.records import Shard
from streampack.storage.digests import PATTERN, block_bytes_of, parse_digest
from streampack.tar.codecs import ALL_SUFFIXES, COMPRESSED_SUFFIXES, path_of, suffix_of

_GUESSED_BYTES = 64 * 2**20
"""The size of shards of which nothing is known."""
_LARGEST_RANGE = 10_000_000
"""A brace range above this is a slip of the pen that would fill the memory."""
_LARGEST_SHARD = 2**50
_LARGEST_CORPUS = 2**62
"""In bytes: sums of sizes are 64-bit integers."""
_BLOCKS = 100
_MOST_LISTINGS = 16
"""At once."""
_LETTERS = string.ascii_uppercase + string.ascii_lowercase

Progress = Callable[[int, int], None]


class Listing(Protocol):
    """What the storage must answer."""

    def listing(self, url: str) -> list[tuple[str, int | None]]:
        """(URL, size) of the files below a directory (it ends with `/`), or that match a glob; None: not told."""

    def is_directory(self, url: str) -> bool:
        """Whether the URL is one."""

    def size(self, url: str) -> int | None:
        """The size in bytes; None: not told. ShardNotFoundError where nothing is."""

    def etag(self, url: str) -> str | None:
        """What `listing` or `size` told of the version of the URL's content, once; None: nothing."""

    def read(self, url: str) -> bytes:
        """All of a small object."""


class _Row(msgspec.Struct, forbid_unknown_fields=True):
    """One shard; also the form of a manifest's line."""

    url: Annotated[str, Meta(min_length=1)]
    size: Annotated[int, Meta(ge=0, le=_LARGEST_SHARD)] | None = None
    etag: str | None = None
    digest: Annotated[str, Meta(pattern=PATTERN)] | None = None
    num_samples: Annotated[int, Meta(ge=0, le=_LARGEST_SHARD)] | None = None
    count: Annotated[int, Meta(ge=0, le=_LARGEST_SHARD)] | None = None
    """Another word for `num_samples`."""
    whole: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Texts:
    """Many strings as one block of bytes: no Python object for each, so a forked worker copies none."""

    blob: bytes
    offsets: NDArray[np.int64]
    """int64 [n + 1]."""

    def __getitem__(self, index: int) -> str:
        return self.blob[self.offsets[index] : self.offsets[index + 1]].decode("utf-8", "surrogatepass")

    @classmethod
    def of(cls, texts: Sequence[str]) -> "Texts":
        """The strings laid end to end."""
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        offsets = np.zeros(len(texts) + 1, dtype=np.int64)
        np.cumsum([len(text) for text in encoded], out=offsets[1:])
        return cls(blob=b"".join(encoded), offsets=offsets)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ShardTable:
    """The shards of a run, in listed order; `table[i]` is a `Shard`.

    Names are the URLs without the folders that all of them share (and without a query), so that the corpus can move.
    """

    urls: Texts
    names: Texts
    digests: Texts
    """Empty where the manifest gave none."""
    etags: Texts
    """Empty where neither a manifest nor the storage told one."""
    sizes: NDArray[np.int64]
    """int64 [n] bytes; the mean of the known ones where a size is unknown."""
    size_known: NDArray[np.bool_]
    whole: NDArray[np.bool_]
    """bool [n]: cannot be cut (compressed, of unknown size, or the manifest says so)."""
    num_samples: NDArray[np.int64]
    """int64 [n]; -1 where unknown."""

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Shard:
        index = range(len(self))[index]
        samples = int(self.num_samples[index])
        return Shard(
            url=self.urls[index],
            name=self.names[index],
            size=int(self.sizes[index]),
            size_known=bool(self.size_known[index]),
            digest=self.digests[index] or None,
            etag=self.etags[index] or None,
            num_samples=None if samples < 0 else samples,
            whole=bool(self.whole[index]),
        )

    def __iter__(self) -> Iterator[Shard]:
        return (self[index] for index in range(len(self)))

    @property
    def total_bytes(self) -> int:
        """The sizes added up, estimates included."""
        return int(self.sizes.sum())

    @property
    def num_unchecked(self) -> int:
        """Shards whose digest is of the whole, though several lanes read them in parts and nobody all of them."""
        with_digest = np.flatnonzero(np.diff(self.digests.offsets) * ~self.whole)
        return sum(not block_bytes_of(self.digests[int(index)]) for index in with_digest)

    @property
    def digest(self) -> str:
        """32 hex digits that stand for the names and sizes in their order."""
        blocks = "".join(self.block_digests())
        return hashlib.blake2b(f"{len(self)}:{blocks}".encode(), digest_size=16).hexdigest()

    def block_digests(self, num_blocks: int = _BLOCKS) -> list[str]:
        """16 hex digits for each block of neighbouring shards; block b holds the shards [b*n//B, (b+1)*n//B)."""
        num_blocks = min(num_blocks, len(self))
        names, offsets, lengths = self.names.blob, self.names.offsets, np.diff(self.names.offsets)
        rows = np.stack([lengths, self.sizes], axis=1).astype("<i8")
        digests = []
        for block in range(num_blocks):
            first, stop = block * len(self) // num_blocks, (block + 1) * len(self) // num_blocks
            digest = hashlib.blake2b(rows[first:stop].tobytes(), digest_size=8)
            digest.update(names[offsets[first] : offsets[stop]])
            digests.append(digest.hexdigest())
        return digests

    def to_bytes(self) -> bytes:
        """The table for another process, whatever its version of Python."""
        texts, integers, flags = _PARTS
        return msgspec.msgpack.encode(
            _Wire(
                texts=[(getattr(self, name).blob, _bytes(getattr(self, name).offsets)) for name in texts],
                integers=[_bytes(getattr(self, name)) for name in integers],
                flags=[getattr(self, name).tobytes() for name in flags],
            )
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> "ShardTable":
        """The table that `to_bytes` wrote.

        Raises:
            ConfigError: if it is not one of this version.
        """
        try:
            wire = msgspec.msgpack.decode(data, type=_Wire)
        except msgspec.MsgspecError as error:
            raise ConfigError(f"not a shard table of this version ({error}); run one version on all ranks") from error
        urls, names, digests, etags = (Texts(blob=blob, offsets=np.frombuffer(at, "<i8")) for blob, at in wire.texts)
        sizes, num_samples = (np.frombuffer(values, "<i8") for values in wire.integers)
        size_known, whole = (np.frombuffer(values, np.bool_) for values in wire.flags)
        return cls(
            urls=urls,
            names=names,
            digests=digests,
            etags=etags,
            sizes=sizes,
            size_known=size_known,
            whole=whole,
            num_samples=num_samples,
        )


_PARTS = ("urls", "names", "digests", "etags"), ("sizes", "num_samples"), ("size_known", "whole")


class _Wire(msgspec.Struct, tag="streampack.shards.2"):
    texts: list[tuple[bytes, bytes]]
    integers: list[bytes]
    flags: list[bytes]


def _bytes(values: NDArray[np.int64]) -> bytes:
    return values.astype("<i8").tobytes()


def differing_block(then: Sequence[str], now: Sequence[str], *, num_shards: int) -> range | None:
    """The shards of the first block whose digest differs, or None; both lists are of tables of `num_shards`."""
    for block, (before, after) in enumerate(zip(then, now, strict=False)):
        if before != after:
            return range(block * num_shards // len(now), (block + 1) * num_shards // len(now))
    return None


def resolve_shards(spec: str | Sequence[str], storage: Listing, *, progress: Progress | None = None) -> ShardTable:
    """The shards that a specification stands for, with their sizes.

    Args:
        spec: A URL with or without braces, a glob, a directory, "@manifest", or a list of these.
        storage: Lists, reads and tells sizes.
        progress: Called with (sizes known, sizes to look up) while sizes are looked up one request each.

    Raises:
        ConfigError: a specification that cannot be read, or a shard given twice.
        ShardNotFoundError: nothing matches, or a listed shard is not there.
        ShardError: an empty shard.
    """
    items = [spec] if isinstance(spec, str) else list(spec)
    with ThreadPoolExecutor(max_workers=min(_MOST_LISTINGS, max(len(items), 1))) as pool:
        rows = [row for rows in pool.map(lambda item: _rows(item, storage), items) for row in rows]
    if not rows:
        raise ConfigError(f"no shards: {spec!r} is empty; give a URL, a glob, a directory, '@manifest' or a list")
    twice = [url for url, times in Counter(row.url for row in rows).items() if times > 1]
    if twice:
        raise ConfigError(
            f"{len(twice)} of {len(rows)} shards are given more than once, the first is {twice[0]}; list each shard "
            "once (to repeat data use epochs)"
        )
    _look_up_sizes([row for row in rows if row.size is None], storage, progress)
    for row in rows:
        row.etag = storage.etag(row.url) or row.etag
        if row.size == 0:
            raise ShardError("the shard is empty (0 bytes); write it again or take it out of the list", url=row.url)
    return _table(rows)


def _rows(item: str, storage: Listing) -> list[_Row]:
    if not isinstance(item, str) or not item.strip("@ "):
        raise ConfigError(f"{item!r} is not a shard specification; give a URL, a glob, a directory or '@manifest'")
    if item.startswith("@"):
        return _read_manifest(item[1:], storage)
    urls = expand_braces(item)
    rows = []
    for url in urls:
        _refuse_shell(url)
        if _is_glob(url):
            found = storage.listing(url)
            if not found:
                raise ShardNotFoundError(f"nothing matches {url!r}; check the pattern, the folder and the credentials")
        elif url.endswith("/"):
            found = _tars_below(url, storage)
        elif len(urls) == 1 and suffix_of(url) is None and storage.is_directory(url):
            found = _tars_below(url + "/", storage)
        else:
            rows.append(_Row(url))
            continue
        rows += [_Row(name, size) for name, size in sorted(found)]
    return rows


def _tars_below(directory: str, storage: Listing) -> list[tuple[str, int | None]]:
    files = storage.listing(directory)
    tars = [(url, size) for url, size in files if suffix_of(url) is not None]
    if tars:
        return tars
    kinds = Counter(posixpath.splitext(path_of(url))[1] or "without a suffix" for url, _ in files).most_common(5)
    held = ", ".join(f"{count} {kind}" for kind, count in kinds)
    what = f"has {len(files)} files but no tar ({held})" if files else "is empty, or not there"
    raise ShardNotFoundError(
        f"the directory {directory} {what}; shards end with {', '.join(ALL_SUFFIXES)}; give others by a glob or list"
    )


def _read_manifest(manifest: str, storage: Listing) -> list[_Row]:
    _refuse_shell(manifest)
    data = storage.read(manifest)
    try:
        rows = msgspec.json.Decoder(_Row).decode_lines(data)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        rows = _find_bad_line(data, manifest)
    for number, row in enumerate(rows, 1):
        _refuse_shell(row.url)
        if row.digest is not None:
            try:
                parse_digest(row.digest, size=row.size)
            except ConfigError as error:
                raise ConfigError(f"shard {number}: {error}", url=manifest) from None
        if row.count is not None:
            if row.num_samples is not None:
                raise ConfigError(f"shard {number}: give num_samples or count, not both", url=manifest)
            row.num_samples = row.count
        if "://" not in row.url:
            row.url = _resolve(manifest, row.url)
    if not rows:
        raise ConfigError('the manifest is empty; it needs a line like {"url": "a.tar", "size": 1024}', url=manifest)
    return rows


def _find_bad_line(data: bytes, manifest: str) -> list[_Row]:
    """Decode line by line, which is slower and says where it fails."""
    rows = []
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            rows.append(msgspec.json.decode(line, type=_Row))
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            why = str(error)
            if match := re.search(r"unknown field `(.*)`", why):
                keys = [name for name in _Row.__struct_fields__ if name != "count"]
                near = difflib.get_close_matches(match[1], _Row.__struct_fields__, n=1, cutoff=0.4)
                nearest = f"did you mean {near[0]!r}? " if near else ""
                why = f"unknown key {match[1]!r}; {nearest}a line has {', '.join(keys)}"
            raise ConfigError(f"line {number} of the manifest: {why}", url=manifest) from error
    return rows


def _resolve(manifest: str, url: str) -> str:
    """A manifest's relative URL, relative to the manifest's folder; an absolute path stays one."""
    scheme, separator, path = _path(manifest).rpartition("://")
    if separator and url.startswith("/"):
        raise ConfigError(
            f"{url!r} is a path of one machine; write it relative to the manifest, or as file://{url}", url=manifest
        )
    joined = posixpath.join(posixpath.dirname(path), url)
    return scheme + separator + (posixpath.normpath(joined) if "./" in url else joined)  # no bucket resolves ".."


def _look_up_sizes(rows: list[_Row], storage: Listing, progress: Progress | None) -> None:
    if not rows:
        return
    missing: list[ShardNotFoundError] = []
    with ThreadPoolExecutor(max_workers=min(32, len(rows))) as pool:
        futures = [pool.submit(storage.size, row.url) for row in rows]
        try:
            for done, (row, future) in enumerate(zip(rows, futures, strict=True), 1):
                try:
                    row.size = future.result()
                except ShardNotFoundError as error:
                    missing.append(error)
                if progress is not None:
                    progress(done, len(rows))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    if missing:
        raise ShardNotFoundError(f"{len(missing)} of {len(rows)} shards are not there; the first: {missing[0]}")


def _table(rows: list[_Row]) -> ShardTable:
    known = np.array([row.size is not None for row in rows], dtype=np.bool_)
    if sum(row.size or 0 for row in rows) > _LARGEST_CORPUS:
        raise ConfigError(f"the sizes of the {len(rows)} shards add up to more than {_LARGEST_CORPUS} bytes")
    sizes = np.array([row.size or 0 for row in rows], dtype=np.int64)
    sizes[~known] = int(sizes.sum()) // int(known.sum()) if known.any() else _GUESSED_BYTES
    compressed = np.array([suffix_of(row.url) in COMPRESSED_SUFFIXES for row in rows], dtype=np.bool_)
    by_hand = np.array([row.whole for row in rows], dtype=np.bool_)
    return ShardTable(
        urls=Texts.of([row.url for row in rows]),
        names=Texts.of(relative_names([row.url for row in rows])),
        digests=Texts.of([row.digest or "" for row in rows]),
        etags=Texts.of([row.etag or "" for row in rows]),
        sizes=sizes,
        size_known=known,
        whole=compressed | ~known | by_hand,
        num_samples=np.array([-1 if row.num_samples is None else row.num_samples for row in rows], dtype=np.int64),
    )


def relative_names(urls: Sequence[str]) -> list[str]:
    """The URLs without the folders that all share; without queries too, where they stay different without."""
    paths = [_path(url) for url in urls]
    if len(set(paths)) < len(urls):
        paths = list(urls)
    low, high = min(paths), max(paths)  # what these two share, all share
    shared = 0
    while shared < min(len(low), len(high)) and low[shared] == high[shared]:
        shared += 1
    cut = low.rfind("/", 0, shared) + 1
    return [path[cut:] for path in paths]


def _path(url: str) -> str:
    """The URL without the query and fragment that a web URL may have."""
    return re.split(r"[?#]", url, maxsplit=1)[0] if url.startswith(("http://", "https://")) else url


def _is_glob(url: str) -> bool:
    if url.startswith(("http://", "https://")):  # `?` begins a query there, and [::1] is a host
        return re.search(r"[*\[]", _path(url).split("/", 3)[-1]) is not None
    return re.search(r"[*?\[]", url) is not None


def _refuse_shell(url: str) -> None:
    if url.startswith("pipe:"):
        raise ConfigError(
            f"{url!r} would run a shell, which streampack never does; give the storage's own URL (s3://, gs://, "
            "https://, a path) and what it needs in storage_options"
        )


def expand_braces(pattern: str) -> list[str]:
    r"""The strings that a pattern with braces stands for, in the order of shells.

    `{a,b}` alternatives, `{08..11}` a range padded with zeros, `{1..9..2}` with a step, `{a..e}` letters; nested and
    repeated as wished, the last one varies first. A backslash takes a brace or comma literally; a pair of braces
    without comma or range stands for itself.

    >>> expand_braces("en-{08..10}.{tar,tgz}")
    ['en-08.tar', 'en-08.tgz', 'en-09.tar', 'en-09.tgz', 'en-10.tar', 'en-10.tgz']

    Raises:
        ConfigError: if the braces are not balanced.
    """
    if "{" not in pattern:
        return [pattern]
    try:
        return [re.sub(r"\\(.)", r"\1", text) for text in _expand(pattern, pattern)]
    except RecursionError:
        raise ConfigError(f"the braces in {pattern[:60]!r}... are nested too deep") from None


_MARKS = re.compile(r"\\.|[{},]", re.DOTALL)
_RANGE = re.compile(r"(?:(-?[0-9]+)\.\.(-?[0-9]+)|([A-Za-z])\.\.([A-Za-z]))(?:\.\.-?([0-9]+))?")


def _expand(text: str, pattern: str) -> list[str]:
    parts: list[list[str]] = []
    depth = start = 0
    for mark in _MARKS.finditer(text):
        if mark[0] == "{":
            if depth == 0:
                parts.append([text[start : mark.start()]])
                start = mark.end()
            depth += 1
        elif mark[0] == "}":
            depth -= 1
            if depth < 0:
                break
            if depth == 0:
                parts.append(_expand_group(text[start : mark.start()], pattern))
                start = mark.end()
    if depth:
        raise ConfigError(f"the braces in {pattern!r} are not balanced; a literal brace is written with a backslash")
    if math.prod(map(len, parts)) > _LARGEST_RANGE:
        raise ConfigError(f"{pattern[:200]!r} stands for more than {_LARGEST_RANGE} shards; check the braces")
    return ["".join(choice) for choice in itertools.product(*parts, [text[start:]])]


def _expand_group(inside: str, pattern: str) -> list[str]:
    if found := _RANGE.fullmatch(inside):
        return _expand_range(found, pattern)
    alternatives, depth, start = [], 0, 0
    for mark in _MARKS.finditer(inside):
        depth += (mark[0] == "{") - (mark[0] == "}")
        if mark[0] == "," and depth == 0:
            alternatives.append(inside[start : mark.start()])
            start = mark.end()
    if not alternatives:
        return ["{" + text + "}" for text in _expand(inside, pattern)]
    return [text for alternative in [*alternatives, inside[start:]] for text in _expand(alternative, pattern)]


def _expand_range(found: re.Match[str], pattern: str) -> list[str]:
    first, last, step = found[1] or found[3], found[2] or found[4], max(int(found[5] or 1), 1)
    low, high = (int(end) if found[1] else _LETTERS.index(end) for end in (first, last))
    if abs(high - low) // step > _LARGEST_RANGE:
        raise ConfigError(f"{{{found[0]}}} in {pattern!r} is more than {_LARGEST_RANGE} shards; check the range")
    values = range(low, high + 1, step) if low <= high else range(low, high - 1, -step)
    if not found[1]:
        return [_LETTERS[value] for value in values]
    padded = any(re.match("-?0.", end) for end in (first, last))
    width = max(len(first), len(last)) if padded else 0
    return [f"{value:0{width}d}" for value in values]
