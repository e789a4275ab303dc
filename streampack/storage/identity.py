"""Which object a URL names: one text for all names of an object.

    a.tar   ./a.tar   en//../a.tar   file:///data/a.tar   link-to-a.tar                one file
    a.tar   hard-link-to-a.tar   /another/mount/a.tar                                  one file, for `identities` only
    http://h/a%62.tar   http://H:80/ab.tar   http://h/x/../ab.tar?X-Amz-Signature=...  one object of a web server
    s3://b/a.tar   s3a://b/a.tar   simplecache::s3://b/a.tar                           one object of S3

In: a URL. Out: a text that is equal for these, and differs for others. Of local paths the links are followed, or the
file's own number is asked for; nothing else is asked.
Never: one text for two objects. On S3 and GCS `//` is part of a key, and %62 is itself; on the web %2F is no `/`, %3F
begins no query and %23 no fragment.
"""

import os
import posixpath
import re
import urllib.parse
from collections.abc import Callable, Iterable

from streampack.storage.cache.blocknames import unsigned
from streampack.storage.clients import local_path

_CACHED = re.compile(r"(?:(?:simplecache|filecache|blockcache|cached)::)+")
_ALIASES = {"s3a": "s3", "gcs": "gs"}
_DEFAULT_PORTS = {"http": 80, "https": 443}


def identity(url: str) -> str:
    """The same text for the names of one object, today and later: a local file is known by its path without links."""
    return _identity(url, os.path.realpath)


def identities(urls: Iterable[str]) -> list[str]:
    """For each URL a text to compare with the others now: a local file is known by its device and number (inode)."""
    return [_identity(url, _file_number) for url in urls]


def _identity(url: str, of_path: Callable[[str], str]) -> str:
    try:
        return _known_form(url, of_path)
    except ValueError:  # no URL or path at all, which is an error where it is read
        return url


def _known_form(url: str, of_path: Callable[[str], str]) -> str:
    if chained := _CACHED.match(url):
        url = url[chained.end() :]
    path = local_path(url)
    if path is not None:
        return "file://" + of_path(path)
    protocol, _, rest = url.partition("://")
    if protocol in _DEFAULT_PORTS:
        return _of_web(url)
    if protocol == "memory":
        return "memory:///" + rest.strip("/")
    return f"{_ALIASES.get(protocol, protocol)}://{rest}"


def _file_number(path: str) -> str:
    """Which file a path leads to: names of one file differ by symbolic links, hard links, mounts, upper case."""
    try:
        status = os.stat(path)  # noqa: PTH116 - Path's own costs more, for very many
    except OSError:  # a file that is not there is an error where it is read
        status = None
    return f"{status.st_dev}:{status.st_ino}" if status is not None and status.st_ino else os.path.realpath(path)


def _of_web(url: str) -> str:
    parts = urllib.parse.urlsplit(unsigned(url))
    host = parts.netloc.lower().removesuffix(f":{_DEFAULT_PORTS[parts.scheme]}")
    pieces = [urllib.parse.unquote_to_bytes(piece) for piece in re.split("(?i)%2f", parts.path)]
    path = posixpath.normpath("/" + "%2F".join(map(urllib.parse.quote_from_bytes, pieces)).lstrip("/"))
    return parts._replace(netloc=host, path=path).geturl()
