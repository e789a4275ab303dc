"""An object of Google Cloud Storage, read over urllib3; gcsfs gives its address and the credentials.

In, out: as `RangeReader` says. Private names: gcsfs's (`libraries.gcsfs`). With options for gcsfs's own connections,
gcsfs reads.
"""

import urllib.parse
from collections.abc import Mapping

from streampack.storage.backends.anyfs import FsspecObject
from streampack.storage.backends.http import get_range
from streampack.storage.clients import Clients
from streampack.storage.faults import StatusError
from streampack.storage.libraries import gcsfs
from streampack.storage.objects import Keep, Pin, RangeReader


class GcsObject(RangeReader):
    """An object of Google Cloud Storage. Its version is its generation."""

    def __init__(self, url: str, pin: Pin, clients: Clients) -> None:
        self.pin = pin
        self._url = url
        self._clients = clients

    def fetch(self, start: int, stop: int, keep: Keep) -> None:
        filesystem, path, _ = self._clients.filesystem(self._url)
        # Objects stored compressed are read as they are stored, as ranges and sizes are those of the stored bytes.
        headers = {"Accept-Encoding": "gzip"}
        filesystem.credentials.apply(headers)
        address = filesystem.url(path)
        if self.pin.version is not None:
            address += f"&ifGenerationMatch={self.pin.version}"
        for name, value in gcsfs.query_parameters(filesystem).items():
            address += f"&{name}={urllib.parse.quote(value)}"
        try:
            get_range(address, headers, start, stop, keep, pin=self.pin, version=_version, clients=self._clients)
        except StatusError as error:
            if error.status == 412 and self.pin.version is not None:
                raise self.pin.replaced(f"generation {self.pin.version} is no longer there", start) from error
            raise


def gcs_object(url: str, pin: Pin, clients: Clients) -> RangeReader:
    """The reader for gs://; with options for gcsfs's own connections, gcsfs."""
    own_session = clients.configured("gs").get("session_kwargs")
    if own_session or gcsfs.uses_client_certificate(clients.filesystem(url)[0]):
        return FsspecObject(url, pin, clients)
    return GcsObject(url, pin, clients)


def _version(headers: Mapping[str, str]) -> str | None:
    return headers.get("x-goog-generation") or headers.get("etag")
