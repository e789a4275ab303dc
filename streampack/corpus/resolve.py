"""What the user wrote as shards, resolved once into URLs, relative names and sizes, in an order that is kept.

    "s3://b/c/{00000..01023}.tar"   braces, as shells have them                 kept in the order written
    "data/*.tar"                    a glob (*, ?, [..])                         listed and sorted
    "data/"                         a directory, every tar below it             listed and sorted
    "@manifest.jsonl"               a line per shard: {"url": ..., "size": ...} kept in the order of its lines
    ["...", "..."]                  a list of any of these                      kept in the order written

A text that is the name of a file or folder is that one, whatever braces and marks it has. Files and folders whose names
begin with a dot are in no listing.

In:    a specification, and a storage that lists, reads and tells sizes.
Out:   a `ShardTable`. One process does this and hands `ShardTable.to_bytes` to the others: workers never list.
Never: a shard twice (by whatever names), an empty shard, a missing shard, other data in the place of shards, or a
pattern that matches nothing: these are errors.
"""

import contextlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np

from streampack.corpus.braces import expand_braces
from streampack.corpus.kinds import UNFINISHED, not_finished, refuse_others, shards_among
from streampack.corpus.manifest import ShardRow, read_manifest
from streampack.corpus.sizes import NO_PATTERNS, Progress, Sizes, look_up_sizes
from streampack.corpus.table import ShardTable, Texts
from streampack.corpus.urls import (
    has_marks,
    hint_at_text,
    is_glob,
    refuse_shell,
    refuse_text,
    relative_names,
)
from streampack.errors import ConfigError, ShardError, ShardNotFoundError
from streampack.storage.clients import local_path
from streampack.storage.redaction import named
from streampack.storage.threads import side_by_side
from streampack.tar.codecs import COMPRESSED_SUFFIXES, suffix_of

_GUESSED_BYTES = 64 * 2**20
"""Bytes that every shard is taken to have where no size is known."""
_LARGEST_CORPUS = 2**62
"""Bytes: sums of sizes are 64-bit integers."""
_MOST_LISTINGS = 16
"""Folders that are listed at once."""


class Listing(Sizes, Protocol):
    """What the storage must answer."""

    def listing(self, url: str) -> list[tuple[str, int | None]]:
        """(URL, size or None) of the files below a directory (it ends with `/`), or of those that match a glob.

        Where a file has the name of the glob itself: that one.
        """

    def is_local_name(self, text: str) -> bool:
        """Whether this machine has a file or folder of this very name."""

    def is_directory(self, url: str) -> bool:
        """Whether the URL is a directory."""

    def etag(self, url: str) -> str | None:
        """The version that `listing` or `size` saw of the object, given once; None where the storage has none."""

    def read(self, url: str) -> bytes:
        """All of a small object."""

    def identities(self, urls: Sequence[str]) -> list[str]:
        """For each URL a text that all names of its object have."""


def resolve_shards(spec: str | Sequence[str], storage: Listing, *, progress: Progress | None = None) -> ShardTable:
    """The shards that a specification stands for, with their sizes.

    Args:
        spec: A URL with or without braces, a glob, a directory, "@manifest", or a list of these.
        storage: Lists, reads and tells sizes.
        progress: Called with (sizes known, sizes to look up) while sizes are looked up.

    Raises:
        ConfigError: a specification that cannot be read, or a shard given twice.
        ShardNotFoundError: nothing matches, or a listed shard is not there.
        ShardError: an empty shard.
    """
    items = [spec] if isinstance(spec, str) else list(spec)
    for item in items:  # all of them before the first request: a column of texts has very many
        _check_item(item, storage)
    num_threads = min(_MOST_LISTINGS, max(len(items), 1))
    listed = list(side_by_side(lambda item: _rows(item, storage), items, num_threads=num_threads))
    rows = [row for rows in listed for row in rows]
    if not rows:
        raise ConfigError(f"no shards: {spec!r} is empty; give a URL, a glob, a directory, '@manifest' or a list")
    refuse_others([row.url for row in rows])
    twice = [url for url, times in Counter(row.url for row in rows).items() if times > 1]
    if twice:
        raise _given_twice(len(twice), len(rows), named(twice[0]))
    look_up_sizes([row for row in rows if row.size is None], storage, progress)
    for row in rows:
        row.etag = storage.etag(row.url) or row.etag
        if row.size == 0:
            what = "the shard is empty (0 bytes); write it again or take it out of the list"
            raise ShardError(what, url=named(row.url))
    _refuse_other_names(rows, storage)
    return _table(rows)


def _check_item(item: str, storage: Listing) -> None:
    if not isinstance(item, str) or not item.strip("@ "):
        raise ConfigError(f"{item!r:.80} is not a shard specification; give a URL, a glob, a directory or '@manifest'")
    if not _stands_for_itself(item, storage):
        refuse_text(item, expanded=False)


def _stands_for_itself(item: str, storage: Listing) -> bool:
    """Whether an item that would be expanded or refused is the name of a file or folder (globs are looked at later)."""
    return re.search(r"[{\r\n]|\*\*", item) is not None and storage.is_local_name(item)


def _rows(item: str, storage: Listing) -> list[ShardRow]:
    if item.startswith("@"):
        manifest = item[1:]
        refuse_shell(manifest)
        if manifest.endswith("/") or suffix_of(manifest) is not None:
            what = "a folder" if manifest.endswith("/") else "a shard"
            raise ConfigError(f"{item!r}: @ is for a manifest, and this is {what} by its name; leave out the @")
        return _of_manifest(manifest, storage)
    is_name = _stands_for_itself(item, storage)
    urls = [item] if is_name else expand_braces(item)
    rows = []
    for url in urls:
        refuse_shell(url)
        if not is_name:
            refuse_text(url)
        if url.endswith("/"):
            found = shards_among(storage.listing(url), folder=url)
        elif is_glob(url) and not is_name:
            found = _matching(url, storage, may_be_directory=len(urls) == 1)
        elif len(urls) == 1 and suffix_of(url) is None and storage.is_directory(url):
            found = shards_among(storage.listing(url + "/"), folder=url + "/")
        else:
            rows.append(ShardRow(url))
            continue
        rows += [ShardRow(name, size) for name, size in sorted(found)]
    return rows


def _of_manifest(manifest: str, storage: Listing) -> list[ShardRow]:
    rows = read_manifest(storage.read(manifest), manifest=manifest)
    for number, row in enumerate(rows, 1):
        if has_marks(row.url) and local_path(row.url) is not None and not storage.is_local_name(row.url):
            raise ConfigError(f"shard {number}: there is no file {named(row.url)}; {NO_PATTERNS}", url=manifest)
    return rows


def _matching(url: str, storage: Listing, *, may_be_directory: bool) -> list[tuple[str, int | None]]:
    """The files that a glob matches; else the shards of the directory, or the file, that has this very name."""
    refused: ShardError | None = None
    found: list[tuple[str, int | None]] = []
    try:
        found = storage.listing(url)
    except ShardError as error:
        refused = error
    if found:
        _refuse_unfinished({match[: match.rfind("/") + 1] for match, _ in found}, storage)
        return found
    if refused is None and may_be_directory and suffix_of(url) is None and storage.is_directory(url):
        return shards_among(storage.listing(url + "/"), folder=url + "/")
    try:
        return [(url, storage.size(url))]  # of a storage that does not list, such as a web server
    except ShardError as error:
        if refused is not None:
            raise refused from None
        if not isinstance(error, ShardNotFoundError):
            raise
        message = f"nothing matches '{named(url)}'; check the pattern, the folder and the credentials"
        raise ShardNotFoundError(message + hint_at_text([url])) from None


def _refuse_unfinished(folders: Iterable[str], storage: Listing) -> None:
    """Raise `ConfigError` if `streampack write` has not finished one of these folders, in which a glob found shards.

    One request for each folder; none to a web server, which nothing is written to.
    """

    def is_unfinished(folder: str) -> bool:
        try:
            storage.size(f"{folder}{UNFINISHED}")
        except ShardError:
            return False
        return True

    writable = sorted(folder for folder in folders if not folder.startswith(("http://", "https://")))
    with contextlib.closing(side_by_side(is_unfinished, writable, num_threads=_MOST_LISTINGS)) as answers:
        for folder, unfinished in zip(writable, answers, strict=True):
            if unfinished:
                raise not_finished(folder or "./")


def _refuse_other_names(rows: list[ShardRow], storage: Listing) -> None:
    """Raise `ConfigError` if two of the URLs are of one shard."""
    by_size = defaultdict(list)  # two names of one shard have one size, so most shards need no closer look
    for row in rows:
        by_size[row.size].append(row.url)
    first_of: dict[str, str] = {}
    alike = [url for urls in by_size.values() if len(urls) > 1 for url in urls]
    pairs = zip(storage.identities(alike), alike, strict=True)
    if twice := [(first, url) for one, url in pairs if (first := first_of.setdefault(one, url)) != url]:
        raise _given_twice(len(twice), len(rows), f"{named(twice[0][0])}, also given as {named(twice[0][1])}")


def _given_twice(num_twice: int, num_shards: int, first: str) -> ConfigError:
    return ConfigError(
        f"{num_twice} of {num_shards} shards are given more than once, the first is {first}; list each shard once (to "
        "repeat data use epochs, or weight and max_epochs of one of several sources)"
    )


def _table(rows: list[ShardRow]) -> ShardTable:
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
