"""One URL as exact bytes, or one error, however the storage behind it fails."""

__all__ = [
    "access",
    "cache",
    "checking",
    "clients",
    "digests",
    "faults",
    "http",
    "listing",
    "objects",
    "options",
    "ranges",
    "readahead",
    "retry",
    "s3",
]
