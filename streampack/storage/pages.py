"""The sizes of up to a thousand objects by one request: a page of their folder's listing that begins at a name.

In:    the URL of an object.
Out:   size and version of it and of those after it in its folder, in the order of their names, as far as one page goes.
       An object that is not on the page may be there all the same.
Never: a page of a storage whose listings cannot begin at a name; an error where folders may not be listed.
"""

import logging
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple, TypeAlias

from streampack.errors import ShardError
from streampack.storage.backends import s3
from streampack.storage.clients import Clients
from streampack.storage.libraries import gcsfs
from streampack.storage.redaction import named
from streampack.storage.retry import persist

_log = logging.getLogger(__name__)
_Object: TypeAlias = tuple[str, int, str | None]
"""Key, size and version."""

PAGE: Final = 1000
"""Names of a page, at most."""


class Listed(NamedTuple):
    """What a page tells of an object."""

    url: str
    size: int
    version: str | None
    """Its ETag or generation, as requests for its bytes tell it."""


def page_from(url: str, clients: Clients) -> list[Listed] | None:
    """The page that begins at a URL; None where the storage has none, or does not let its folders be listed."""
    protocol = "" if "::" in url else url.partition("://")[0]
    ask = _BY_PROTOCOL.get(protocol)
    if ask is None:
        return None
    bucket, _, key = url.partition("://")[2].partition("/")
    if ask is _s3_page and not s3.is_understood(bucket, clients):
        return None
    try:
        found = persist(url, clients, lambda: list(ask(protocol, bucket, key, clients)))
    except ShardError as error:
        _log.info("the folder of %s cannot be listed, so each size is asked for: %s", named(url), error)
        return None
    return [Listed(f"{protocol}://{bucket}/{name}", size, version) for name, size, version in found]


def _s3_page(protocol: str, bucket: str, key: str, clients: Clients) -> Iterable[_Object]:
    client, more = s3.client_of(protocol, clients)
    payer = {name: value for name, value in more.items() if name == "RequestPayer"}
    page = client.list_objects_v2(
        Bucket=bucket, Prefix=_folder(key), Delimiter="/", StartAfter=key[:-1], MaxKeys=PAGE, **payer
    )
    return ((each["Key"], each["Size"], each.get("ETag")) for each in page.get("Contents", ()))


def _gcs_page(protocol: str, bucket: str, key: str, clients: Clients) -> Iterable[_Object]:
    filesystem, _, limit = clients.filesystem(f"{protocol}://{bucket}/{key}")
    page = gcsfs.page_of_objects(filesystem, bucket, prefix=_folder(key), first=key, count=PAGE, **limit)
    return ((each["name"], int(each["size"]), each.get("generation")) for each in page)


def _folder(key: str) -> str:
    return key[: key.rfind("/") + 1]


_BY_PROTOCOL: Final[dict[str, Callable[[str, str, str, Clients], Iterable[_Object]]]] = {
    "s3": _s3_page,
    "s3a": _s3_page,
    "gs": _gcs_page,
    "gcs": _gcs_page,
}
