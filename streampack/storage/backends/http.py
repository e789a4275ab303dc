"""An object of a web server, read over urllib3 with connections that are kept.

In, out: as `RangeReader` says. Private names: none. With options that only fsspec's own HTTP client (aiohttp)
understands, that client reads.
"""

import base64
import re
import urllib.parse
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from streampack.errors import ConfigError
from streampack.storage import descriptors
from streampack.storage.backends.answers import Answer, receive
from streampack.storage.backends.anyfs import FsspecObject
from streampack.storage.clients import Clients
from streampack.storage.faults import StatusError
from streampack.storage.objects import Keep, Pin, RangeReader

if TYPE_CHECKING:
    from streampack.storage.backends.connections import Connections

_HARMLESS = {"headers", "simple_links", "same_scheme", "size_policy", "block_size", "cache_type", "cache_options"}
"""Options of fsspec's HTTP filesystem that do not change how an object is read, but for the headers."""


class WebObject(RangeReader):
    """An object of a web server. Its version is its ETag, else the time of its last change."""

    def __init__(self, url: str, pin: Pin, clients: Clients) -> None:
        self.pin = pin
        self._clients = clients
        parts = urllib.parse.urlsplit(url)
        user, at, host = parts.netloc.rpartition("@")
        self._url = parts._replace(netloc=host, fragment="").geturl()
        self._headers = {"Accept-Encoding": "identity", **clients.configured("http").get("headers", {})}
        if at:
            plain = urllib.parse.unquote(user if ":" in user else f"{user}:")
            self._headers["Authorization"] = "Basic " + base64.b64encode(plain.encode()).decode()

    def fetch(self, start: int, stop: int, keep: Keep) -> None:
        get_range(self._url, self._headers, start, stop, keep, pin=self.pin, version=_version, clients=self._clients)


def web_object(url: str, pin: Pin, clients: Clients) -> RangeReader:
    """The reader for a web URL; with options that only fsspec's own client understands, that client."""
    understood = clients.configured("http").keys() <= _HARMLESS
    return WebObject(url, pin, clients) if understood else FsspecObject(url, pin, clients)


def get_range(
    url: str,
    headers: Mapping[str, str],
    start: int,
    stop: int,
    keep: Keep,
    *,
    pin: Pin,
    version: Callable[[Mapping[str, str]], str | None],
    clients: Clients,
) -> None:
    """One GET of the bytes from `start` to `stop`; `version` finds the object's version in the answer's headers.

    Raises:
        StatusError: the server did not send the object.
        ShardError, OSError: as `receive` says.
    """
    response = _connections(clients).get(url, {**headers, "Range": f"bytes={start}-{stop - 1}"})
    if response.status not in (200, 206):
        said = " ".join(response.read1(4096, decode_content=False).decode("utf-8", "replace").split())
        response.close()
        if told := re.fullmatch(r"bytes \*/(\d+)", response.headers.get("content-range", "")):  # with 416
            pin.check(size=int(told[1]), version=None, offset=start)
        raise StatusError(response.status, said[:200], response.headers)
    head = response.headers
    answer = Answer(response=response, status=response.status, headers=head, version=version(head))
    receive(answer, pin, start, stop, keep)


def _version(headers: Mapping[str, str]) -> str | None:
    return headers.get("etag") or headers.get("last-modified")


def _connections(clients: Clients) -> "Connections":
    """Those of this process."""

    def make() -> "Connections":
        try:
            from streampack.storage.backends.connections import Connections
        except ImportError as error:
            if descriptors.are_used_up():
                raise  # nothing can be imported then
            raise ConfigError(f"http:// needs `pip install 'streampack[http]'` ({error})") from error
        return Connections(clients.retry.timeout_s)

    return clients.client("http", make)
