"""The names of the cache's blocks: a hash of which object it is, its size, its version, and which part of it is meant.

In: the URL and the options that a shard is read with. Out: the same names for all who read the same bytes.
Never: one name for objects at two endpoints, which may have all else in common; another name because of what only opens
an object: a password, or a signature that each run makes again. Nothing about the object can be read from a name.
"""

import hashlib
import os
import re
import urllib.parse

from streampack.storage.cache.blockfile import BLOCK_BYTES, CHUNK_BYTES
from streampack.storage.clients import Clients

_SIGNED = {
    "x-amz-signature": re.compile("x-amz-.*"),
    "x-goog-signature": re.compile("x-goog-.*"),
    "signature": re.compile(
        "signature|expires|awsaccesskeyid|googleaccessid|key-pair-id|policy"
    ),  # S3's old, CloudFront
    "sig": re.compile("sig|s[vprets]|srt|spr|sip|sk(oid|tid|t|e|s|v)"),  # Azure
}
"""Query parameter that is a signature -> all parameters that belong to the signature; in lower case."""
_ENDPOINTS = {
    **dict.fromkeys(("s3", "s3a"), ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")),
    **dict.fromkeys(("gs", "gcs"), ("STORAGE_EMULATOR_HOST",)),
}
"""Environment variables in which an endpoint may be given instead of in the options."""


def object_key(url: str, clients: Clients) -> str:
    """Which object it is, the same for every user: the endpoint if one is given, and the URL without credentials."""
    if url.startswith(("http://", "https://")):
        return unsigned(url)
    protocol = url.partition("://")[0]
    options = clients.configured(protocol)
    given = [options.get("endpoint_url"), dict(options.get("client_kwargs") or {}).get("endpoint_url")]
    given += map(os.environ.get, _ENDPOINTS.get(protocol, ()))
    endpoint = next((str(one).rstrip("/") for one in given if one), "")
    return f"{endpoint} {url}" if endpoint else url


def unsigned(url: str) -> str:
    """A web URL without user, fragment and what belongs to a signature in its query."""
    parts = urllib.parse.urlsplit(url)
    fields = parts.query.split("&")
    called = [field.partition("=")[0].lower() for field in fields]
    for sign, belonging in _SIGNED.items():
        if sign in called:
            kept = [field for field, name in zip(fields, called, strict=True) if not belonging.fullmatch(name)]
            parts = parts._replace(query="&".join(kept))
            break
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment="").geturl()


def block_names(key: str, size: int, version: str, first: int, last: int) -> list[str]:
    """The names of the blocks `first` to `last` of one version of an object: 32 hex digits each."""
    whole = hashlib.blake2b(f"{BLOCK_BYTES} {CHUNK_BYTES} {size} {len(version)} {version} ".encode(), digest_size=16)
    whole.update(key.encode("utf-8", "surrogatepass"))
    made = []
    for index in range(first, last + 1):
        one = whole.copy()
        one.update(f" {index}".encode())
        made.append(one.hexdigest())
    return made
