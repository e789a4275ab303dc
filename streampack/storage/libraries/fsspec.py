"""fsspec: the parts of a URL, its lock after a fork, what a process has told it.

In: a class of filesystems, a URL. Out: arguments of the class, a path. And what a process has registered, for another.
"""

import sys
from typing import Any, NamedTuple

import fsspec
import fsspec.config
from fsspec.asyn import reset_lock
from fsspec.registry import known_implementations, registry
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


class Registered(NamedTuple):
    """What a process has told fsspec besides what every process knows."""

    classes: dict[str, type[AbstractFileSystem]]
    """Filesystems that were registered, by protocol; those that the process needs."""
    names: dict[str, Any]
    """Where the classes of all known protocols are imported from."""
    settings: dict[str, Any]


def registered(urls: bytes) -> Registered:
    """What this process has told fsspec, for another process that reads these URLs."""
    wanted = {protocol: cls for protocol, cls in registry.items() if protocol.encode() in urls}
    classes = {protocol: cls for protocol, cls in wanted.items() if not _is_known(protocol, cls)}
    return Registered(classes, dict(known_implementations), dict(fsspec.config.conf))


def register(given: Registered) -> None:
    """Tell fsspec what another process has told it."""
    for protocol, cls in given.classes.items():
        fsspec.register_implementation(protocol, cls, clobber=True)
    known_implementations.update(given.names)
    fsspec.config.conf.update(given.settings)


def own_attributes(cls: type, attributes: dict[str, Any]) -> dict[str, Any]:
    """The attributes of a class without those that fsspec gives each class of filesystems anew in each process."""
    made = ("_cache", "_pid", "_instantiation_lock", "_latest") if isinstance(cls, type(AbstractFileSystem)) else ()
    return {name: value for name, value in attributes.items() if name not in made}


def _is_known(protocol: str, cls: type[AbstractFileSystem]) -> bool:
    """Whether fsspec itself imports this class for the protocol."""
    module, _, name = known_implementations.get(protocol, {}).get("class", "").replace(":", ".").rpartition(".")
    return getattr(sys.modules.get(module), name, None) is cls
