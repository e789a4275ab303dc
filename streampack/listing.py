"""Which files are below a directory, or match a glob: their URLs and sizes, sorted.

In: a URL. Out: URLs in the manner of that URL, so that each can be given back as it is.
Never: a folder passed over because it could not be listed, as fsspec's own `find` and `glob` do.
"""

import os
import re
from pathlib import Path

from fsspec.spec import AbstractFileSystem
from fsspec.utils import glob_translate

from streampack.clients import Clients, local_path
from streampack.errors import ShardNotFoundError
from streampack.retrying import persist


def list_files(url: str, clients: Clients) -> list[tuple[str, int | None]]:
    """(URL, size) of each file; empty where nothing is; the size is None where the listing does not tell it."""
    filesystem, path, _ = clients.filesystem(url)
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
    while folders:
        folder, above = folders.pop()
        place = str(Path(folder).resolve()) if local_path(url) is not None else folder
        if place in above:  # links may go in circles
            continue
        for name, is_directory, size in _entries(url, folder, clients, is_root=not above):
            if is_directory and (depth is None or len(above) + 1 < depth):
                folders.append((f"{name}/", (*above, place)))
            elif not is_directory and wanted.match(name[len(root) :]):
                found.append((_as_given(url, filesystem, path, name), size))
    return sorted(found)


def _entries(url: str, folder: str, clients: Clients, *, is_root: bool) -> list[tuple[str, bool, int | None]]:
    """(name, is it a directory, size) of what is in one folder."""

    def ask() -> list[tuple[str, bool, int | None]]:
        if local_path(url) is not None:
            with os.scandir(folder) as listed:  # fsspec takes a link to a file for neither file nor directory
                return [(e.path, e.is_dir(), e.stat().st_size if e.is_file() else None) for e in listed]
        filesystem, _, limit = clients.filesystem(url)
        limit = {"timeout": clients.retry.budget_s} if limit else {}  # many pages in one call
        infos = filesystem.ls(folder, detail=True, **limit)
        entries = [(info["name"].rstrip("/"), info["type"] == "directory", info.get("size")) for info in infos]
        return [entry for entry in entries if entry[0] != folder.rstrip("/")]

    try:
        return persist(url, clients, ask)
    except ShardNotFoundError:
        if is_root:
            return []
        raise


def _as_given(url: str, filesystem: AbstractFileSystem, path: str, name: str) -> str:
    """A listed `name` in the manner of the `url` that was listed (whose stripped form is `path`)."""
    url = url if url.endswith("://") else url.rstrip("/")
    if url and path.endswith(url):  # a relative path, which was made absolute
        return name[len(path) - len(url) :]
    if url.endswith(path):
        return url[: len(url) - len(path)] + name
    return name if "://" not in url else str(filesystem.unstrip_protocol(name))
