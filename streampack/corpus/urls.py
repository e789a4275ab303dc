"""What a shard's URL says: its folders, and whether it is a pattern."""

import re
from collections.abc import Sequence

from streampack.errors import ConfigError


def relative_names(urls: Sequence[str]) -> list[str]:
    """The URLs without the folders that all share, and without queries if the names stay different."""
    paths = [without_query(url) for url in urls]
    if len(set(paths)) < len(urls):
        paths = list(urls)
    low, high = min(paths), max(paths)  # what these two share, all share
    shared = 0
    while shared < min(len(low), len(high)) and low[shared] == high[shared]:
        shared += 1
    cut = low.rfind("/", 0, shared) + 1
    return [path[cut:] for path in paths]


def without_query(url: str) -> str:
    """The URL without the query and fragment that a web URL may have."""
    return re.split(r"[?#]", url, maxsplit=1)[0] if url.startswith(("http://", "https://")) else url


def is_glob(url: str) -> bool:
    """Whether a URL without braces is a pattern that the storage lists."""
    if url.startswith(("http://", "https://")):  # `?` begins a query there, and [::1] is a host
        return re.search(r"[*\[]", without_query(url).split("/", 3)[-1]) is not None
    return re.search(r"[*?\[]", url) is not None


def refuse_shell(url: str) -> None:
    """Raise `ConfigError` for a URL that other libraries run as a command."""
    if url.startswith("pipe:"):
        raise ConfigError(
            f"{url!r} would run a shell, which streampack never does; give the storage's own URL (s3://, gs://, "
            "https://, a path) and what it needs in Storage(options=...)"
        )
