"""What a shard's URL says by itself: its folders, whether it is a pattern, whether it can be a name at all. No IO."""

import re
from collections.abc import Sequence

from streampack.corpus.kinds import HOW_TO_WRITE, READ
from streampack.errors import ConfigError
from streampack.tar.codecs import suffix_of

_LONGEST_NAME = 255
"""Bytes of a file's or folder's name, on every file system of Linux and macOS."""


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
    """Whether a URL without braces may be a pattern that the storage lists."""
    if url.startswith(("http://", "https://")):  # `?` begins a query there, and [::1] is a host
        return re.search(r"[*\[]", without_query(url).split("/", 3)[-1]) is not None
    return re.search(r"[*?\[]", url) is not None


def has_marks(url: str) -> bool:
    """Whether a URL has characters of braces or globs, so that it may not stand for itself alone."""
    return is_glob(url.partition("?versionId=")[0]) or "{" in without_query(url)


def refuse_shell(url: str) -> None:
    """Raise `ConfigError` for a URL that other libraries run as a command."""
    if url.startswith("pipe:"):
        raise ConfigError(
            f"{url!r} would run a shell, which streampack never does; give the storage's own URL (s3://, gs://, "
            "https://, a path) and what it needs in Storage(options=...)"
        )


def refuse_text(name: str, *, expanded: bool = True) -> None:
    """Raise `ConfigError` for a text that cannot be a URL or a path: a document in the place of a shard's name.

    `expanded`: False while braces may still make several names of it, which may be long together.
    """
    longest = 0
    if "://" not in name and (expanded or "{" not in name):
        longest = max(len(part.encode("utf-8", "surrogatepass")) for part in name.split("/"))
    if longest > _LONGEST_NAME or re.search(r"[\0\r\n]", name):
        raise ConfigError(
            f"{name[:40]!r}... ({len(name):,} characters) is a text, and not the URL or the path of a shard: {READ}; "
            f"{HOW_TO_WRITE}"
        )


def hint_at_text(urls: Sequence[str]) -> str:
    """More for the error where none of these is there: they may be short documents."""
    if any(suffix_of(url) is not None for url in urls) or not any(re.search(r"\s", url) for url in urls):
        return ""
    return f". Are these documents? {READ[0].upper()}{READ[1:]}; {HOW_TO_WRITE}"
