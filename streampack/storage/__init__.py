"""One URL as exact bytes, or one error, however the storage below it fails.

URL -> backends -> cache -> ranges ----------------> checking -> bytes
one reader  what is  growing ranges,          digests of
per kind    on the   readahead: the next one  a manifest
of storage  disk     retry: the failed one

access       `StorageReader`, which the other packages use; it joins the steps above
options      `Storage` and `RetryPolicy`, as users give them
backends/    one module per kind of storage; its docstring says how to add one
objects      `RangeReader`, what each backend must do
cache/       blocks of remote shards on this node's disk, between a backend and the ranges
pacing       when a request may be made, where a storage refuses some
ranges, readahead, retry      which bytes are requested, when, and when again
stretch      a range that is asked for at once and held, for readers that go back in it
faults       what an error of any library means: the rule of retries
remedies, redaction           what an error says, and what nothing shows
checking, digests             bytes against the digests of a manifest
threads      several questions at once, and their end
writing      `StorageWriter`: whole objects, each at once or not at all
listing      directories and globs
pages        sizes of many objects of a folder by one request
identity     which URLs name one object
clients      what each process has open
descriptors, proxies          how many files are kept open; which way leads to a web server
libraries/   private names of other libraries, with the versions they were tried with
"""

__all__ = [
    "access",
    "backends",
    "cache",
    "checking",
    "clients",
    "descriptors",
    "digests",
    "faults",
    "identity",
    "libraries",
    "listing",
    "objects",
    "options",
    "pacing",
    "pages",
    "proxies",
    "ranges",
    "readahead",
    "redaction",
    "remedies",
    "retry",
    "stretch",
    "threads",
    "writing",
]
