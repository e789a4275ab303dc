"""Objects behind HTTP: web servers and Google Cloud Storage, read over urllib3 with connections that are kept.

Out: as `objects` says; each received block is handed on at once, so that a fault loses nothing that came before it.
Never: a retry or a total time limit of urllib3's own; a body that was decoded; an answer whose head does not fit the
range asked for, the size in the shard list, or the version that the reading began with.
"""

import base64
import re
import urllib.parse
from collections.abc import Mapping
from typing import Any

from streampack.errors import ConfigError
from streampack.storage.clients import Clients
from streampack.storage.faults import StatusError
from streampack.storage.objects import FsspecObject, Keep, Pin

BLOCK_BYTES = 256 * 1024
"""Of one read: one call of the system, which gives less where less has come."""
_HARMLESS = {"headers", "simple_links", "same_scheme", "size_policy", "block_size", "cache_type", "cache_options"}
"""Options of fsspec's HTTP filesystem that say nothing else of how an object is read."""


def receive(
    response: Any,  # a response of urllib3
    pin: Pin,
    *,
    status: int,
    headers: Mapping[str, str],
    version: str | None,
    asked: tuple[int, int],
    keep: Keep,
) -> None:
    """Hand on the body of an answer to a range, after its head has been checked.

    Raises:
        ShardError: the object is another one than it was, or is shorter than the shard list says.
        OSError: the answer does not fit the question, or ends before its time.
    """
    try:
        _receive(response, pin, status, headers, version, asked, keep)
    except BaseException:
        response.close()  # what is left of the body is not waited for
        raise
    if response.length_remaining == 0:
        response.release_conn()
    else:
        response.close()


def _receive(
    response: Any,
    pin: Pin,
    status: int,
    headers: Mapping[str, str],
    version: str | None,
    asked: tuple[int, int],
    keep: Keep,
) -> None:
    start, stop = asked
    unwanted = 0  # bytes of the body before `start`
    if status == 206:
        told = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", headers.get("content-range", ""))
        if told is None or int(told[1]) != start or not start <= int(told[2]) < stop:
            raise OSError(f"an answer of the range {headers.get('content-range')!r}, asked for were {start}-{stop - 1}")
        pin.check(size=None if told[3] == "*" else int(told[3]), version=version, offset=start)
        missing: int | None = int(told[2]) + 1 - start
    else:  # the server does not know ranges and sends the whole object
        length = headers.get("content-length", "")
        pin.check(size=int(length) if length.isdigit() else None, version=version, offset=start)
        pin.check_body(pin.size or 0, start)
        missing, unwanted = pin.size, start
    received = 0
    while received != missing:
        block = response.read1(BLOCK_BYTES, decode_content=False)
        if not block:
            break
        received += len(block)
        pin.check_body(received, start)
        if unwanted < len(block):
            keep(block[unwanted:] if unwanted else block)
        unwanted = max(unwanted - len(block), 0)
    if missing is not None and received != missing:
        raise OSError(f"the answer ended after {received} of {missing} bytes")
    if status != 206:
        pin.check(size=received, version=None, offset=start)


def pool_manager(clients: Clients) -> Any:
    """This process's connections."""

    def make() -> Any:
        try:
            import urllib3
        except ImportError as error:
            raise ConfigError(f"http:// needs `pip install 'streampack[http]'` ({error})") from error
        timeout_s = clients.retry.timeout_s
        return urllib3.PoolManager(
            num_pools=16,
            maxsize=32,
            retries=urllib3.Retry(
                None, connect=0, read=0, status=0, other=0, redirect=10, respect_retry_after_header=False
            ),
            timeout=urllib3.Timeout(connect=min(timeout_s, 10.0), read=timeout_s),  # read: without a byte
        )

    return clients.client("http", make)


class WebObject:
    """An object of a web server. Its version is its ETag, else the time of its last change."""

    is_remote = True
    reads_ahead = True
    whole_ranges = False
    tells_version = True
    is_cached = False

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
        self._get(self._url, self._headers, start, stop, keep)

    def _get(self, url: str, headers: Mapping[str, str], start: int, stop: int, keep: Keep) -> None:
        response = pool_manager(self._clients).request(
            "GET", url, headers={**headers, "Range": f"bytes={start}-{stop - 1}"}, preload_content=False
        )
        if response.status not in (200, 206):
            said = " ".join(response.read1(4096, decode_content=False).decode("utf-8", "replace").split())
            response.close()
            if told := re.fullmatch(r"bytes \*/(\d+)", response.headers.get("content-range", "")):  # with 416
                self.pin.check(size=int(told[1]), version=None, offset=start)
            raise StatusError(response.status, said[:200], response.headers)
        receive(
            response,
            self.pin,
            status=response.status,
            headers=response.headers,
            version=self._version(response.headers),
            asked=(start, stop),
            keep=keep,
        )

    @staticmethod
    def _version(headers: Mapping[str, str]) -> str | None:
        return headers.get("etag") or headers.get("last-modified")

    def close(self) -> None:
        pass


class GcsObject(WebObject):
    """An object of Google Cloud Storage; gcsfs gives its address and credentials. Its version is its generation."""

    def __init__(self, url: str, pin: Pin, clients: Clients) -> None:
        self.pin = pin
        self._gs_url = url
        self._clients = clients

    def fetch(self, start: int, stop: int, keep: Keep) -> None:
        filesystem, path, _ = self._clients.filesystem(self._gs_url)
        # Objects stored compressed are read as they are stored, as ranges and sizes are those of the stored bytes.
        headers = {"Accept-Encoding": "gzip"}
        filesystem.credentials.apply(headers)
        address = filesystem.url(path)
        if self.pin.version is not None:
            address += f"&ifGenerationMatch={self.pin.version}"
        for name, value in filesystem._get_params({}).items():  # noqa: SLF001 - who pays
            address += f"&{name}={urllib.parse.quote(str(value))}"
        try:
            self._get(address, headers, start, stop, keep)
        except StatusError as error:
            if error.status == 412 and self.pin.version is not None:
                raise self.pin.replaced(f"generation {self.pin.version} is no longer there", start) from error
            raise

    @staticmethod
    def _version(headers: Mapping[str, str]) -> str | None:
        return headers.get("x-goog-generation") or headers.get("etag")


def web_object(url: str, pin: Pin, clients: Clients) -> WebObject | FsspecObject:
    """The reader for a web URL; options that only fsspec's own client understands are left to it."""
    understood = clients.configured("http").keys() <= _HARMLESS
    return WebObject(url, pin, clients) if understood else FsspecObject(url, pin, clients)


def gcs_object(url: str, pin: Pin, clients: Clients) -> WebObject | FsspecObject:
    """The reader for gs://; with options for gcsfs's own connections, its own."""
    if clients.configured("gs").get("session_kwargs") or getattr(clients.filesystem(url)[0], "_use_client_cert", False):
        return FsspecObject(url, pin, clients)
    return GcsObject(url, pin, clients)
