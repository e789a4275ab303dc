"""gcsfs: its retries are switched off; what a request that is made without it needs.

In: a `GCSFileSystem`. Out: parameters and answers about it. gcsfs is not imported here, as that takes seconds.
"""

import os
from typing import Any

TRIED = ("2026.10.1",)


def before_import() -> None:
    """Keep gcsfs from asking each bucket's type over gRPC, whose threads hang a forked worker."""
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")


def switch_off_retries(filesystem: Any) -> None:
    """Have each request made once; gcsfs tries it six times, in a decorator, and has no option for that."""
    once = getattr(type(filesystem)._request, "__wrapped__", None)  # noqa: SLF001 - as the docstring says
    if once is not None:
        filesystem._request = once.__get__(filesystem)  # noqa: SLF001 - as the docstring says


def query_parameters(filesystem: Any) -> dict[str, str]:
    """The parameters of every request's query: the project that pays."""
    return {name: str(value) for name, value in filesystem._get_params({}).items()}  # noqa: SLF001 - only there


def page_of_objects(
    filesystem: Any, bucket: str, *, prefix: str, first: str, count: int, timeout: float | None = None
) -> list[dict[str, Any]]:
    """Name, size and generation of the objects of a folder from the name `first` on; one request."""
    fields = "items(name,size,generation)"
    query = {"prefix": prefix, "startOffset": first, "delimiter": "/", "maxResults": count, "fields": fields}
    found = filesystem.call("GET", "b/{}/o", bucket, json_out=True, timeout=timeout, **query)
    items: list[dict[str, Any]] = found.get("items", [])
    return items


def uses_client_certificate(filesystem: Any) -> bool:
    """Whether it opens its connections with a certificate of this machine, as only its own session does."""
    return bool(getattr(filesystem, "_use_client_cert", False))
