"""One module per kind of storage; each reads ranges of one object.

    choice     URL -> which of these
    local      a path, file://, local://        the operating system
    http       http://, https://                urllib3 (connections that are kept)
    s3         s3://, s3a://                    botocore, which s3fs brings along
    gcs        gs://, gcs://                    urllib3, with gcsfs's address and credentials
    anyfs      every other protocol             fsspec's `cat_file`; also options that only fsspec's client understands
    answers    (no storage: what http, s3 and gcs have in common, an answer to a range, checked and handed on)
    connections    (no storage: urllib3's connections, for http and gcs, through the proxies of the environment)

To add a storage: a protocol that fsspec knows works without more. For a client of its own, write a module here with a
class that is a `RangeReader` (`streampack.storage.objects`, which says what it promises), add its protocol to the table
in `choice`, and let `streampack.testing.StorageConformance` prove it. Sizes and listings still come from fsspec's
filesystem; `clients` keeps that one from retrying by itself.
"""

__all__ = ["answers", "anyfs", "choice", "connections", "gcs", "http", "local", "s3"]
