"""Which backend reads a URL.

In: a URL. Out: the `RangeReader` of its object; nothing is asked yet.
"""

from collections.abc import Callable

from streampack.storage.backends.anyfs import FsspecObject
from streampack.storage.backends.gcs import gcs_object
from streampack.storage.backends.http import web_object
from streampack.storage.backends.local import LocalFile
from streampack.storage.backends.s3 import import_library, s3_object
from streampack.storage.clients import Clients, local_path
from streampack.storage.objects import Pin, RangeReader

_BY_PROTOCOL: dict[str, Callable[[str, Pin, Clients], RangeReader]] = {
    "http": web_object,
    "https": web_object,
    "s3": s3_object,
    "s3a": s3_object,
    "gs": gcs_object,
    "gcs": gcs_object,
}
"""All others are read by `FsspecObject`."""


def import_libraries(urls: bytes) -> None:
    """Import the libraries that reading these URLs takes half a second for, before processes are forked."""
    if b"s3://" in urls or b"s3a://" in urls:
        import_library()


def open_object(url: str, size: int | None, clients: Clients) -> RangeReader:
    """The reader of one object; `size` is what the shard list says of it, None where it says nothing."""
    pin = Pin(url, size, clients)
    path = local_path(url)
    if path is not None:
        return LocalFile(path, pin)
    protocol = "" if "::" in url else url.partition("://")[0]  # a chain is fsspec's
    return _BY_PROTOCOL.get(protocol, FsspecObject)(url, pin, clients)
