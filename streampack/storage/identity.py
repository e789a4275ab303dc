"""Which object a URL names: one text for all names of an object.

    a.tar   ./a.tar   en//../a.tar   file:///data/a.tar   link-to-a.tar                one file
    http://h/a%62.tar   http://H:80/ab.tar   http://h/x/../ab.tar?X-Amz-Signature=...  one object of a web server
    s3://b/a.tar   s3a://b/a.tar   simplecache::s3://b/a.tar                           one object of S3

In: a URL. Out: a text that is equal for these, and differs for others. Links of local paths are followed; nothing else
is asked.
Never: one text for two objects. On S3 and GCS `//` is part of a key, and %62 is itself.
"""

import os
import posixpath
import re
import urllib.parse
from collections.abc import Iterable

from streampack.storage.cache.blocknames import unsigned
from streampack.storage.clients import local_path

_CACHED = re.compile(r"(?:(?:simplecache|filecache|blockcache|cached)::)+")
_ALIASES = {"s3a": "s3", "gcs": "gs"}
_DEFAULT_PORTS = {"http": 80, "https": 443}


def identity(url: str) -> str:
    """The same text for all names of one object."""
    return identities([url])[0]


def identities(urls: Iterable[str]) -> list[str]:
    """The identity of each; the folders of local paths are looked at once."""
    folders: dict[str, str] = {}
    return [_identity(url, folders) for url in urls]


def _identity(url: str, folders: dict[str, str]) -> str:
    try:
        return _known_form(url, folders)
    except ValueError:  # no URL or path at all, which is an error where it is read
        return url


def _known_form(url: str, folders: dict[str, str]) -> str:
    if chained := _CACHED.match(url):
        url = url[chained.end() :]
    path = local_path(url)
    if path is not None:
        return "file://" + _real(path, folders)
    protocol, _, rest = url.partition("://")
    if protocol in _DEFAULT_PORTS:
        return _of_web(url)
    if protocol == "memory":
        return "memory:///" + rest.strip("/")
    return f"{_ALIASES.get(protocol, protocol)}://{rest}"


def _real(path: str, folders: dict[str, str]) -> str:
    """The path without links; `folders` are those that were resolved before."""
    folder, name = os.path.split(path)
    if name in ("", ".", ".."):
        return os.path.realpath(path)
    if folder not in folders:
        folders[folder] = os.path.realpath(folder)
    plain = os.path.join(folders[folder], name)  # noqa: PTH118 - Path's own costs more, for very many
    return os.path.realpath(plain) if os.path.islink(plain) else plain  # noqa: PTH114


def _of_web(url: str) -> str:
    parts = urllib.parse.urlsplit(unsigned(url))
    host = parts.netloc.lower().removesuffix(f":{_DEFAULT_PORTS[parts.scheme]}")
    path = posixpath.normpath("/" + urllib.parse.unquote(parts.path, errors="surrogateescape").lstrip("/"))
    return parts._replace(netloc=host, path=path).geturl()
