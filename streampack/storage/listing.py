"""Which files are below a directory, or match a glob: their URLs and sizes, sorted.

In: a URL. Out: URLs in the form of that URL (relative, absolute, with a protocol), so that each can be read as it is.
Files and folders whose names begin with a dot are passed over, as in shells, unless the glob itself has such a name.
Where a file has the name of the glob, it is that file.
Never: a folder left out because it could not be listed, as fsspec's own `find` and `glob` do; what is outside the
folder, though a web page links to it.
"""

import glob
import html
import itertools
import logging
import os
import re
import urllib.parse
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fsspec.spec import AbstractFileSystem
from fsspec.utils import glob_translate

from streampack.errors import ConfigError, ShardNotFoundError, StorageError
from streampack.storage.clients import Clients, local_path
from streampack.storage.redaction import named
from streampack.storage.retry import persist
from streampack.storage.threads import side_by_side

_log = logging.getLogger(__name__)
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
    filesystem, path, limit = persist(url, clients, lambda: clients.filesystem(url), is_request=False)
    wanted = _Wanted(url, path)
    found: list[tuple[str, int | None]] = []
    exact: list[tuple[str, int | None]] = []
    folders: list[tuple[str, tuple[str, ...]]] = [(wanted.root, ())]
    # fsspec does not promise that two threads may use a filesystem that is not asynchronous.
    num_threads = _MOST_FOLDERS if limit else 1
    while folders:  # all folders of one depth
        below: list[tuple[str, tuple[str, ...]]] = []
        places = [str(Path(folder).resolve()) if local_path(url) is not None else folder for folder, _ in folders]
        distinct = [(*folder, place) for folder, place in zip(folders, places, strict=True)]
        distinct = [entry for entry in distinct if entry[2] not in entry[1]]  # links may form circles
        listed = side_by_side(
            lambda entry: _entries(url, entry[0], clients, is_root=not entry[1]), distinct, num_threads=num_threads
        )
        for (_, above, place), entries in zip(distinct, list(listed), strict=True):
            for name, is_directory, size, info in entries:
                if is_directory and wanted.may_hold(name):
                    below.append((f"{name}/", (*above, place)))
                elif not is_directory and wanted.is_match(name):
                    given = _as_given(url, filesystem, path, name)
                    note_etag(given, info, clients)
                    (exact if wanted.is_named(name) else found).append((given, size))
        folders = below
    if exact and found:
        _log.warning(
            "%s is the name of a file, which is read; as a pattern it would match %d others", named(url), len(found)
        )
    return exact or sorted(found)


class _Wanted:
    """Which files and folders a URL asks for, by their names as the storage has them."""

    def __init__(self, url: str, path: str) -> None:
        """`path`: the URL as the storage wants it."""
        web = "://" in path
        # In the links of a web page, names are percent-encoded. There `?` begins a query, and [::1] is a host.
        self._read: Callable[[str], str] = _unquoted if web else str
        self._name = self._read(path)
        self.root, pattern = path.rstrip("/") + "/", "**"
        """The folder that all of them are below."""
        if not url.endswith("/"):
            magic = re.compile(r"[*\[]" if web else r"[*?\[]").search(path, path.find("/", path.find("://") + 3) * web)
            self.root = path[: path.rfind("/", 0, magic.start() if magic else len(path)) + 1]
            pattern = self._read(path[len(self.root) :])
        self._parts = pattern.split("/")
        try:
            self._patterns = {pattern: re.compile(glob_translate(pattern))}
        except ValueError as error:
            raise ConfigError(f"the pattern cannot be read ({error}); write **/ before the name", url=url) from error
        self._any_depth = next((level for level, part in enumerate(self._parts) if "**" in part), None)
        self._levels = [re.compile(glob_translate(part)) for part in self._parts[: self._any_depth]]
        self._with_hidden = any(re.match(r"\.[^./]", part) for part in self._parts)

    def is_named(self, name: str) -> bool:
        """Whether the file's name is the URL itself."""
        return self._read(name) == self._name

    def is_match(self, name: str) -> bool:
        """Whether the file is asked for."""
        below = self._below(name)
        if self.is_named(name):
            return True
        # A folder "en [v1]" is itself, also in a pattern.
        pairs = itertools.zip_longest(self._parts, below[: len(self._parts)], fillvalue="")
        pattern = "/".join(glob.escape(part) if part == name else part for part, name in pairs)
        if pattern not in self._patterns:
            self._patterns[pattern] = re.compile(glob_translate(pattern))
        return self._is_shown(below[-1]) and self._patterns[pattern].match("/".join(below)) is not None

    def may_hold(self, folder: str) -> bool:
        """Whether files below the folder may be asked for."""
        below = self._below(folder)
        level = len(below) - 1
        if self._any_depth is None or level < self._any_depth:
            if level >= len(self._parts) - 1:
                return False
            if below[level] != self._parts[level] and self._levels[level].match(below[level]) is None:
                return False
        return self._is_shown(below[level])

    def _below(self, name: str) -> list[str]:
        return self._read(name)[len(self._read(self.root)) :].split("/")

    def _is_shown(self, part: str) -> bool:
        return self._with_hidden or not part.startswith(".")


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
        if "://" in folder:
            infos = _links_below(folder, infos)
        entries = [
            _Entry(info["name"].rstrip("/"), info["type"] == "directory", info.get("size"), info) for info in infos
        ]
        return [entry for entry in entries if entry.name != folder.rstrip("/")]

    if is_root and local_path(url) is not None and Path(folder).is_file():
        raise ConfigError("this is a file, and the '/' at its end says that it is a directory; leave that out", url=url)
    try:
        return persist(url, clients, ask)
    except ShardNotFoundError:
        if is_root:
            return []
        raise
    except StorageError as error:
        if "://" not in folder:
            raise
        hint = "a web server lists a folder only where it has an index page; name the shards by braces or a manifest"
        raise StorageError(f"{error}; {hint}") from error


def _links_below(folder: str, infos: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Those links of a web page that lead below its folder, each in one form.

    A page also has links that sort it (`?C=N`), lead up, or to other places; and `./a.tar` is a.tar.
    """
    found: dict[str, dict[str, Any]] = {}
    scheme = folder.partition("://")[0]
    for info in infos:
        link = html.unescape(info["name"])
        name = urllib.parse.urljoin(folder, re.sub(r"^https?(?=://)", scheme, link).removeprefix(folder))
        below = name.removeprefix(folder)
        if below not in ("", name) and below[0] not in "?#":
            found[name] = {**info, "name": name, "type": "directory" if below.endswith("/") else "file"}
    return list(found.values())


def _unquoted(url: str) -> str:
    return urllib.parse.unquote(url, errors="surrogateescape")


def _as_given(url: str, filesystem: AbstractFileSystem, path: str, name: str) -> str:
    """A listed `name` in the form of the `url` that was listed (whose path is `path`)."""
    url = url if url.endswith("://") else url.rstrip("/")
    if url and path.endswith(url):  # a relative path, which was made absolute
        given = name[len(path) - len(url) :]
        # "~x", "pipe:x" and "a::b" would be read as something else.
        return f"./{given}" if given[0] == "~" or (":" in given.partition("/")[0] and "://" not in given) else given
    if url.endswith(path):
        return url[: len(url) - len(path)] + name
    return name if "://" not in url else str(filesystem.unstrip_protocol(name))
