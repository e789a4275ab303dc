"""Which files are below a directory, or match a glob: their URLs and sizes, sorted.

In: a URL. Out: URLs in the form of that URL (relative, absolute, with a protocol), so that each can be read as it is.
Never: a folder left out because it could not be listed, as fsspec's own `find` and `glob` do.
"""

import os
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from fsspec.spec import AbstractFileSystem
from fsspec.utils import glob_translate

from streampack.errors import ShardNotFoundError
from streampack.storage.clients import Clients, local_path
from streampack.storage.retry import persist

_MOST_FOLDERS = 16
"""Listed at once."""


class _Entry(NamedTuple):
    name: str
    is_directory: bool
    size: int | None
    info: Mapping[str, Any]
    """Everything else that the storage says of it."""


def list_files(url: str, clients: Clients) -> list[tuple[str, int | None]]:
    """(URL, size) of each file; empty where there are none; the size is None where the listing does not tell it."""
    filesystem, path, limit = clients.filesystem(url)
    root, pattern, depth = path.rstrip("/") + "/", "**", None
    if not url.endswith("/"):
        web = "://" in path  # where `?` begins a query and [::1] is a host
        magic = re.compile(r"[*\[]" if web else r"[*?\[]").search(path, path.find("/", path.find("://") + 3) * web)
        root = path[: path.rfind("/", 0, magic.start() if magic else len(path)) + 1]
        pattern = path[len(root) :]
        depth = None if "**" in pattern else pattern.count("/") + 1
    wanted = re.compile(glob_translate(pattern))
    found: list[tuple[str, int | None]] = []
    folders: list[tuple[str, tuple[str, ...]]] = [(root, ())]
    # fsspec does not promise that two threads may use a filesystem that is not asynchronous.
    with ThreadPoolExecutor(_MOST_FOLDERS if limit else 1) as pool:
        while folders:  # all folders of one depth
            below: list[tuple[str, tuple[str, ...]]] = []
            places = [str(Path(folder).resolve()) if local_path(url) is not None else folder for folder, _ in folders]
            distinct = [(*folder, place) for folder, place in zip(folders, places, strict=True)]
            distinct = [entry for entry in distinct if entry[2] not in entry[1]]  # links may form circles
            listed = pool.map(lambda entry: _entries(url, entry[0], clients, is_root=not entry[1]), distinct)
            for (_, above, place), entries in zip(distinct, listed, strict=True):
                for name, is_directory, size, info in entries:
                    if is_directory and (depth is None or len(above) + 1 < depth):
                        below.append((f"{name}/", (*above, place)))
                    elif not is_directory and wanted.match(name[len(root) :]):
                        given = _as_given(url, filesystem, path, name)
                        note_etag(given, info, clients)
                        found.append((given, size))
            folders = below
    return sorted(found)


def note_etag(url: str, info: Mapping[str, Any], clients: Clients) -> None:
    """Keep the content's version from a filesystem's `info`; it is the one that the answers to requests will have."""
    etag = info.get("generation") or info.get("ETag") or info.get("etag") or info.get("Last-Modified")
    if isinstance(etag, str):
        clients.etags[url] = etag


def _entries(url: str, folder: str, clients: Clients, *, is_root: bool) -> list[_Entry]:
    """What is in one folder."""

    def ask() -> list[_Entry]:
        if local_path(url) is not None:
            with os.scandir(folder) as listed:  # fsspec takes a link to a file for neither file nor directory
                return [_Entry(e.path, e.is_dir(), e.stat().st_size if e.is_file() else None, {}) for e in listed]
        filesystem, _, limit = clients.filesystem(url)
        limit = {"timeout": clients.retry.budget_s} if limit else {}  # many pages in one call
        infos = filesystem.ls(folder, detail=True, **limit)
        entries = [
            _Entry(info["name"].rstrip("/"), info["type"] == "directory", info.get("size"), info) for info in infos
        ]
        return [entry for entry in entries if entry.name != folder.rstrip("/")]

    try:
        return persist(url, clients, ask)
    except ShardNotFoundError:
        if is_root:
            return []
        raise


def _as_given(url: str, filesystem: AbstractFileSystem, path: str, name: str) -> str:
    """A listed `name` in the form of the `url` that was listed (whose path is `path`)."""
    url = url if url.endswith("://") else url.rstrip("/")
    if url and path.endswith(url):  # a relative path, which was made absolute
        return name[len(path) - len(url) :]
    if url.endswith(path):
        return url[: len(url) - len(path)] + name
    return name if "://" not in url else str(filesystem.unstrip_protocol(name))
