"""The clients of this process: fsspec filesystems, an S3 client, HTTP connections; made on first use, never shared.

In: the storage options as the user gave them. Out: clients that do not retry by themselves (their retries would
multiply ours) and that give up on a connection without a byte; new ones where credentials have expired.
Never: a client of another process. Connections, event loops and threads do not survive a fork, so they are kept under
the process id, and a forked child makes its own; a pickle has none of them.
"""

import gc
import logging
import os
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import fsspec
import fsspec.config
from fsspec.spec import AbstractFileSystem

from streampack.errors import ConfigError, StreampackError
from streampack.storage import descriptors
from streampack.storage.faults import UnmadeError
from streampack.storage.libraries import fsspec as fsspec_names
from streampack.storage.libraries import gcsfs
from streampack.storage.options import RetryPolicy
from streampack.storage.proxies import proxy_of
from streampack.storage.redaction import named, secrets_in

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "http": "http", "https": "http"}
_MOST_VERSIONS = 100_000
_MOST_CHAINED = 32


@dataclass(slots=True)
class _Live:
    """What one process has open."""

    made: dict[tuple[str, str], Any] = field(default_factory=dict)
    """Clients, by protocol and whatever else they depend on."""
    lock: threading.RLock = field(default_factory=threading.RLock)
    versions: dict[int, str] = field(default_factory=dict)
    """The version of each object that was read, by the hash of its URL."""


class Clients:
    """Makes and keeps the clients for one set of storage options, and counts what they do."""

    def __init__(self, options: Mapping[str, object], retry: RetryPolicy) -> None:
        self.options: dict[str, Any] = dict(options)
        self.retry = retry
        self.secrets = secrets_in(self.options)
        self.etags: dict[str, str] = {}
        """Versions of URLs that were listed or looked up, until they are taken."""
        self.reached: set[str] = set()
        """Places that have answered this process or the one that it comes from (`faults` says what depends on it)."""
        self._first_away: dict[str, float] = {}
        """When each place refused a connection for the first time, before its first answer."""
        self.is_restart = False
        """Whether earlier processes of this run have read what this one reads now, so that every place was reached."""
        self.num_retries = 0
        self.num_requests = 0
        self.num_bytes = 0
        self.waited_s = 0.0
        self.num_thread_requests = 0
        """Requests of readings through the cache, which threads may make; the others are in `num_requests`."""
        self.num_thread_bytes = 0
        self.num_cache_hits = 0
        """Blocks read from the cache."""
        self.num_cached_bytes = 0
        self._live: dict[int, _Live] = {}

    @property
    def here(self) -> _Live:
        """What this process has open. What its parent had open is left alone, as the parent still uses it."""
        pid = os.getpid()
        found = self._live.get(pid)
        if found is None:
            if self._live:
                fsspec_names.forget_parent()
            found = self._live.setdefault(pid, _Live())
        return found

    def configured(self, protocol: str) -> dict[str, Any]:
        """The options for a protocol: those of fsspec's own configuration, overridden by those given."""
        return {**fsspec.config.conf.get(protocol, {}), **self.options}

    def filesystem(self, url: str) -> tuple[AbstractFileSystem, str, dict[str, float]]:
        """The fsspec client for the URL, the URL as it wants it, and keywords that bound a request."""
        if "::" in url:
            chain = _chain(url)
            for protocol in chain:
                _filesystem_class(protocol, url)  # or an error that says what is not known or not installed
            proxy = proxy_of(_last(url))
            options = {name: _own_options(name, self.options.get(name, {}), proxy) for name in chain}
            options[chain[0]]["skip_instance_cache"] = True  # it has the URL in it: there would be one for each shard
            made, path = self._make("::", url, lambda: fsspec.core.url_to_fs(url, **options))
            return made, path, {}  # a cache fetches whole objects, which may take long
        protocol = "file" if local_path(url) is not None else url.partition("://")[0]
        cls = _filesystem_class(protocol, url)
        in_url, proxy = fsspec_names.arguments_in(cls, url), proxy_of(url)

        def make() -> AbstractFileSystem:
            options = {**in_url, **_own_options(protocol, self.options, proxy)}
            try:
                made = cls(**options, skip_instance_cache=True, use_listings_cache=False)
            except TypeError:
                made = cls(**options, skip_instance_cache=True)
            _set_up(made, protocol)
            return made

        filesystem = self._make(protocol, repr((sorted(in_url.items()), proxy)), make)
        limit = {"timeout": self.retry.timeout_s} if getattr(filesystem, "async_impl", False) else {}
        return filesystem, fsspec_names.path_in(cls, url), limit

    def client(self, protocol: str, make: Callable[[], _T]) -> _T:
        """This process's client for a protocol, not of fsspec; `make` makes it at the first call."""
        return self._make(protocol, "native", make)

    def _make(self, protocol: str, place: str, make: Callable[[], _T]) -> _T:
        live = self.here
        found: _T | None = live.made.get((protocol, place))
        if found is None:
            with live.lock:  # sessions of botocore and google-auth are not made by two threads at once
                found = live.made.get((protocol, place))
                if found is None:
                    found = live.made[protocol, place] = _made(make)
                    chained = [key for key in live.made if key[0] == "::"]
                    for key in chained[:-_MOST_CHAINED]:
                        live.made.pop(key)
        return found

    def renew(self, url: str) -> None:
        """Forget this process's clients of the URL's protocol: the next request makes one, with new credentials."""
        live, chain = self.here, _chain(url)
        for key in list(live.made):
            if key[0] == (chain[0] if len(chain) == 1 else "::"):
                live.made.pop(key, None)
        for protocol in chain[1:]:
            fsspec.get_filesystem_class(protocol).clear_instance_cache()

    def free_descriptors(self) -> None:
        """Close what this process has open and does not use: files, and the connections of all clients."""
        descriptors.let_all_go()
        self.here.made.clear()
        gc.collect()  # a client's connections are closed when nothing refers to it

    def note_success(self, url: str) -> None:
        """Remember that there was an answer from the URL's place: it is there, and the credentials are good."""
        self.reached.add(_place(url))

    def first_away(self, url: str, now: float) -> float:
        """When the URL's place first refused a connection: `now`, if it has not before."""
        return self._first_away.setdefault(_place(url), now)

    def has_succeeded(self, url: str) -> bool:
        """Whether there was an answer from the URL's place."""
        return self.is_restart or _place(url) in self.reached

    def count_asked(self, num_bytes: int) -> None:
        """Count a request that a thread may have made, and the bytes that came."""
        with self.here.lock:
            self.num_thread_requests += 1
            self.num_thread_bytes += num_bytes

    def count_cached(self, *, num_hits: int, num_bytes: int) -> None:
        """Count what was read from the cache, by whatever thread."""
        with self.here.lock:
            self.num_cache_hits += num_hits
            self.num_cached_bytes += num_bytes

    def seen_version(self, url: str) -> str | None:
        """The version of a URL's content that this process was told last; None: it is not known here."""
        return self.here.versions.get(hash(url))

    def note_version(self, url: str, version: str) -> None:
        """Warn where a shard is not the one of an earlier reading, though it has the same size."""
        versions, key = self.here.versions, hash(url)  # strings hash differently in each process
        before = versions.get(key, version)
        if before != version:
            _log.warning(
                "%s: changed since an earlier reading, with the same size (%s, then %s)", named(url), before, version
            )
        if key in versions or len(versions) < _MOST_VERSIONS:
            versions[key] = version


def local_path(url: str) -> str | None:
    """The path of a local URL (no protocol, `file://`, `local://`), or None; what would run a shell is refused."""
    if url.startswith("pipe:") or "::pipe:" in url:
        raise ConfigError(
            "pipe: is not read, as it would run a shell; give the storage's own URL (s3://, gs://, https://, a path) "
            "and what it needs in Storage(options=...)",
            url=named(url),
        )
    if "::" in url and re.match(r"\w+::", url):  # a chain, as simplecache::s3://...
        return None
    protocol, separator, path = url.partition("://")
    if not separator:
        return os.path.expanduser(url) if url.startswith("~") else url  # noqa: PTH111 - Path's raises for "~nobody"
    return path if protocol in ("file", "local") else None


def _chain(url: str) -> list[str]:
    """The protocols of a URL, several in a chain as `simplecache::s3://bucket/a.tar`."""
    parts = url.split("::")
    if len(parts) == 1:
        return [url.partition("://")[0]]
    # As fsspec reads a chain: a part without "://" is a protocol if it is a word, else a local path.
    return [
        part.partition("://")[0] if "://" in part else part if re.fullmatch("[a-z]+", part) else "file"
        for part in parts
    ]


def _last(url: str) -> str:
    """The URL itself; of a chain the last one, which is that of the storage."""
    return url.rpartition("::")[2] if "::" in url and re.match(r"\w+::", url) else url


def _place(url: str) -> str:
    """What answers as one: a web server, or all that one other protocol reaches."""
    protocol, _, rest = _last(url).partition("://")
    if protocol in ("http", "https"):
        return f"{protocol}://{rest.partition('/')[0].rpartition('@')[2]}"
    return protocol if rest else ""


def _filesystem_class(protocol: str, url: str) -> type[AbstractFileSystem]:
    if protocol in ("gs", "gcs"):
        gcsfs.before_import()
    try:
        cls: type[AbstractFileSystem] = fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        if descriptors.are_used_up():
            raise  # nothing can be imported then
        needed = f"streampack[{_EXTRAS[protocol]}]" if protocol in _EXTRAS else f"fsspec[{protocol}]"
        raise ConfigError(f"{named(protocol)}:// needs `pip install '{needed}'` ({error})", url=named(url)) from error
    except ValueError:
        if "::" in url:
            how = f"a URL with :: in it is a chain, as simplecache::s3://bucket/a.tar; a file of that name is ./{url}"
        else:
            how = "name a path, s3://, gs://, https:// or another protocol of fsspec"
        raise ConfigError(f"no storage is known as {named(protocol)}://; {named(how)}", url=named(url)) from None
    return cls


def _made(make: Callable[[], _T]) -> _T:
    """What `make` makes; an error says that this failed, which is no answer of a storage."""
    try:
        return make()
    except StreampackError:
        raise
    except Exception as error:  # each library raises its own
        raise UnmadeError("its client could not be made") from error


def _own_options(protocol: str, given: Mapping[str, Any], proxy: str | None) -> dict[str, Any]:
    """What keeps a client from retrying or decompressing by itself, and its proxy, overridden by the user's options."""
    if protocol in ("file", "local"):
        return {}
    if protocol in ("http", "https"):
        own = {} if proxy is None else {"proxy": proxy}
        return {**own, **given, "headers": {"Accept-Encoding": "identity", **given.get("headers", {})}}
    if protocol in ("s3", "s3a"):
        retries = {"total_max_attempts": 1, "mode": "standard"}
        return {**given, "config_kwargs": {"retries": retries, **given.get("config_kwargs", {})}}
    return dict(given)


def _set_up(filesystem: AbstractFileSystem, protocol: str) -> None:
    """What has no option: each request is made once, and through the environment's proxy (botocore looks itself)."""
    if protocol in ("s3", "s3a"):
        filesystem.retries = 1
    elif protocol in ("gs", "gcs"):
        gcsfs.switch_off_retries(filesystem)
        proxy = proxy_of(filesystem.url("bucket/object"))
        if proxy is not None:
            filesystem.session_kwargs = {"proxy": proxy, **filesystem.session_kwargs}
