"""The sizes of shards that were named one by one, by few requests where the storage lists its folders.

In:    rows of shards without a size, and the storage.
Out:   the same rows with it, and with the version that the storage tells.
Never: a shard that is taken to be there, or to be missing, because of what else is in its folder.

A page of a listing can begin at any name and tells up to a thousand sizes, so the shards of a folder are looked up a
thousand names at a time, several pages at once. What they do not have is asked for by itself: a folder may hold so much
else that pages are of no use, and only a request for the shard tells that it is missing.
"""

import bisect
import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from streampack.corpus.manifest import ShardRow
from streampack.corpus.urls import has_marks, hint_at_text
from streampack.errors import ShardNotFoundError
from streampack.storage.clients import local_path
from streampack.storage.pages import PAGE, Listed
from streampack.storage.threads import side_by_side

_log = logging.getLogger(__name__)

_MOST_PAGES = 16
"""Pages that are asked for at once."""
_MOST_SIZES = 64
"""Sizes that are asked for at once."""
_WORTH_A_PAGE = 32
"""Sizes that a page must tell for the next page to be asked for: as many single requests take about as long."""
_MANY_SHARDS = 2_000

NO_PATTERNS = "a manifest has a line for each shard, and no braces or globs (`streampack manifest` expands them)"

Progress = Callable[[int, int], None]
"""Called with (sizes known, sizes to look up)."""


class Sizes(Protocol):
    """What the storage must answer."""

    def size(self, url: str) -> int | None:
        """The size in bytes, None where it is not known.

        Raises:
            ShardNotFoundError: there is no such object.
        """

    def page_from(self, url: str) -> list[Listed] | None:
        """The object and those after it in its folder, in the order of their names, as far as one request tells them.

        None where the storage has no such request, or refuses it.
        """


def look_up_sizes(rows: Sequence[ShardRow], storage: Sizes, progress: Progress | None) -> None:
    """Give each row its size and, from a listing, its version.

    Raises:
        ShardNotFoundError: some are not there; it counts them and names the first.
    """
    began = time.monotonic()
    num_listed = 0
    for listed in _listed(rows, storage):
        num_listed += len(listed)
        for row, found in listed:
            row.size, row.etag = found.size, found.version or row.etag
        if progress is not None:
            progress(num_listed, len(rows))
    _ask_each([row for row in rows if row.size is None], storage, progress, len(rows))
    if progress is None and len(rows) > _MANY_SHARDS and any(local_path(row.url) is None for row in rows):
        _log.warning(
            "the sizes of %d shards were looked up in %.1f s (%d of them in listings), as at every start; `streampack "
            "manifest` writes them to a file once, which is given as @FILE",
            len(rows), time.monotonic() - began, num_listed,
        )  # fmt: skip


def _listed(rows: Sequence[ShardRow], storage: Sizes) -> Iterable[list[tuple[ShardRow, Listed]]]:
    """What pages tell of the shards of folders of which many are asked for."""
    ordered = sorted(rows, key=lambda row: (_folder(row), row.url))  # code points are in the order of UTF-8's bytes
    parts: list[list[ShardRow]] = []
    for _, group in itertools.groupby(ordered, key=_folder):
        of_folder = list(group)
        if len(of_folder) >= _WORTH_A_PAGE and local_path(of_folder[0].url) is None:
            parts += (of_folder[at : at + PAGE] for at in range(0, len(of_folder), PAGE))
    unlisted: set[str] = set()  # folders that need not be tried again

    def look(part: list[ShardRow]) -> list[tuple[ShardRow, Listed]]:
        return [] if _folder(part[0]) in unlisted else _of_pages(part, storage, unlisted)

    if parts:
        with contextlib.closing(side_by_side(look, parts, num_threads=min(_MOST_PAGES, len(parts)))) as found:
            yield from found


def _folder(row: ShardRow) -> str:
    return row.url[: row.url.rfind("/") + 1]


def _of_pages(rows: Sequence[ShardRow], storage: Sizes, unlisted: set[str]) -> list[tuple[ShardRow, Listed]]:
    """What is found of rows of one folder, in order; page after page, while these are worth it."""
    found: list[tuple[ShardRow, Listed]] = []
    at = 0
    while at < len(rows):
        page = storage.page_from(rows[at].url)
        if page is None:
            unlisted.add(_folder(rows[at]))
        if not page:
            break
        by_url = {listed.url: listed for listed in page}
        end = bisect.bisect(rows, page[-1].url, lo=at, key=lambda row: row.url)
        told = [(row, by_url[row.url]) for row in rows[at:end] if row.url in by_url]
        found += told
        at = end
        if len(told) < _WORTH_A_PAGE:
            break
    return found


def _ask_each(rows: Sequence[ShardRow], storage: Sizes, progress: Progress | None, num_rows: int) -> None:
    if not rows:
        return
    missing: list[tuple[ShardRow, ShardNotFoundError]] = []

    def size(row: ShardRow) -> int | ShardNotFoundError | None:
        try:
            return storage.size(row.url)
        except ShardNotFoundError as error:
            return error

    with contextlib.closing(side_by_side(size, rows, num_threads=min(_MOST_SIZES, len(rows)))) as sizes:
        for done, (row, found) in enumerate(zip(rows, sizes, strict=True), num_rows - len(rows) + 1):
            if isinstance(found, ShardNotFoundError):
                missing.append((row, found))
            else:
                row.size = found
            if progress is not None:
                progress(done, num_rows)
    if missing:
        first, error = missing[0]
        hint = hint_at_text([row.url for row in rows]) if len(missing) == num_rows else ""
        if has_marks(first.url):  # those of other items were expanded
            hint = f"; {NO_PATTERNS}"
        raise ShardNotFoundError(f"{len(missing)} of {num_rows} shards are not there; the first: {error}{hint}")
