"""fsspec: which part of a URL belongs to the filesystem and which to the path; fsspec's lock after a fork.

In: a class of filesystems, a URL. Out: arguments of the class, a path.
"""

from typing import Any

from fsspec.asyn import reset_lock
from fsspec.spec import AbstractFileSystem

TRIED = ("2026.9.0",)


def arguments_in(cls: type[AbstractFileSystem], url: str) -> dict[str, Any]:
    """Arguments of the filesystem that the URL has in it: a host, a user."""
    found: dict[str, Any] = cls._get_kwargs_from_urls(url)
    return found


def path_in(cls: type[AbstractFileSystem], url: str) -> str:
    """The path by which the filesystem knows the URL."""
    path: str = cls._strip_protocol(url)
    return path


def forget_parent() -> None:
    """Give fsspec a new lock in a forked child: a thread of the parent may have held the old one at the fork."""
    reset_lock()
