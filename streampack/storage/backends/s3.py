"""An object of S3, read with botocore's plain client, which s3fs brings along.

In, out: as `RangeReader` says. Private names: botocore's (`libraries.botocore`).

Of s3fs, obstore and this client, this one takes the least CPU for a byte (measured), and it has no threads and no event
loop, so a forked worker can make its own. The URLs and the storage options are those of s3fs. With options that only
s3fs understands, s3fs reads. Sizes and listings are s3fs's, but for pages of a listing that begin at a name (`pages`).
"""

from contextlib import suppress
from typing import Any

from streampack.storage.backends.answers import Answer, receive
from streampack.storage.backends.anyfs import FsspecObject
from streampack.storage.clients import Clients
from streampack.storage.faults import statuses
from streampack.storage.libraries.botocore import raw_response
from streampack.storage.objects import Keep, Pin, RangeReader

_UNDERSTOOD = {
    *("anon", "endpoint_url", "key", "secret", "token", "username", "password", "use_ssl", "profile"),
    *("client_kwargs", "config_kwargs", "s3_additional_kwargs", "requester_pays"),
    *("default_block_size", "default_fill_cache", "default_cache_type", "max_concurrency", "fixed_upload_size"),
    *("version_aware", "cache_regions", "local_expiry_check"),
}


class S3Object(RangeReader):
    """An object of S3. Its version is its ETag."""

    def __init__(self, url: str, pin: Pin, clients: Clients) -> None:
        self.pin = pin
        self._clients = clients
        self._protocol, _, path = url.partition("://")
        bucket, _, key = path.partition("/")
        key, _, version_id = key.partition("?versionId=")
        self._object = {"Bucket": bucket, "Key": key} | ({"VersionId": version_id} if version_id else {})

    def fetch(self, start: int, stop: int, keep: Keep) -> None:
        client, more = client_of(self._protocol, self._clients)
        pinned = {} if self.pin.version is None else {"IfMatch": self.pin.version}
        try:
            found = client.get_object(**self._object, **more, **pinned, Range=f"bytes={start}-{stop - 1}")
        except Exception as error:  # of any class: its status is what counts
            if pinned and 412 in statuses(error):
                raise self.pin.replaced(f"ETag {self.pin.version} is no longer there", start) from error
            raise
        answer = Answer(
            response=raw_response(found["Body"]),
            status=found["ResponseMetadata"]["HTTPStatusCode"],
            headers=found["ResponseMetadata"]["HTTPHeaders"],
            version=found.get("ETag"),
        )
        receive(answer, self.pin, start, stop, keep)


def s3_object(url: str, pin: Pin, clients: Clients) -> RangeReader:
    """The reader for s3://; s3fs's own for options and kinds of buckets that only it understands."""
    bucket = url.partition("://")[2].partition("/")[0]
    return S3Object(url, pin, clients) if is_understood(bucket, clients) else FsspecObject(url, pin, clients)


def is_understood(bucket: str, clients: Clients) -> bool:
    """Whether a plain client of botocore can be made that reaches the bucket as s3fs would."""
    if not clients.configured("s3").keys() <= _UNDERSTOOD or bucket.startswith("arn:"):
        return False
    try:
        import botocore  # noqa: F401 - whether it is there; s3fs says what to install
    except ImportError:
        return False
    return True


def client_of(protocol: str, clients: Clients) -> tuple[Any, dict[str, Any]]:
    """This process's client, which threads may share, and what goes with every request for an object."""
    return clients.client(protocol, lambda: _make_client(clients))


def import_library() -> None:
    """Import what a client is made of, so that processes that are forked from this one share it."""
    with suppress(ImportError):  # without it s3fs says what to install
        import botocore.config
        import botocore.session  # noqa: F401 - only to be there


def _make_client(clients: Clients) -> tuple[Any, dict[str, Any]]:
    """A client as s3fs would make it from the same options, and what goes with every request."""
    import botocore.session
    from botocore import UNSIGNED
    from botocore.config import Config

    options = clients.configured("s3")
    timeout_s = clients.retry.timeout_s
    config = {
        "retries": {"total_max_attempts": 1, "mode": "standard"},
        "connect_timeout": min(timeout_s, 10.0),
        "read_timeout": timeout_s,  # without a byte
        "max_pool_connections": 32,
        **options.get("config_kwargs", {}),
    }
    arguments = {
        "aws_access_key_id": options.get("key") or options.get("username"),
        "aws_secret_access_key": options.get("secret") or options.get("password"),
        "aws_session_token": options.get("token"),
        "endpoint_url": options.get("endpoint_url"),
        "use_ssl": options.get("use_ssl", True),
        **options.get("client_kwargs", {}),
    }
    if options.get("anon"):
        config["signature_version"] = UNSIGNED
        for name in ("aws_access_key_id", "aws_secret_access_key", "aws_session_token"):
            arguments.pop(name, None)
    settings = Config(**config).merge(arguments.pop("config", Config()))
    session = botocore.session.Session(profile=options.get("profile"))
    # As AWS's own command line does: seven eighths of the time for a page of a listing went into its dates.
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=str)
    client = session.create_client("s3", config=settings, **arguments)
    known = client.meta.service_model.operation_model("GetObject").input_shape.members
    more = {name: value for name, value in options.get("s3_additional_kwargs", {}).items() if name in known}
    if options.get("requester_pays"):
        more["RequestPayer"] = "requester"
    return client, more
