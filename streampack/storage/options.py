"""The options of a storage as a user gives them: how to reach it, how long to wait for it, what to keep on the disk.

In: values from Python or from a configuration file. Out: frozen records, checked once; they can be pickled.
Never: a client or a connection; the value of a storage option in a repr, as it may be a key or a password.
"""

import os
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from types import MappingProxyType

from streampack.errors import ConfigError, as_bool, as_integer, as_number, record_hint
from streampack.storage.cache.folder import MIN_CACHE_BYTES

_system_random = random.SystemRandom()


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How long and how often failed requests are repeated. The waits are random; they never change the data.

    `RetryPolicy.immediate()` retries without waiting, for tests.

    Raises:
        ConfigError: a value that cannot work.
    """

    budget_s: float = 420.0
    """Seconds that a reader may wait with an empty buffer and without a byte; pauses of the consumer do not count."""
    timeout_s: float = 30.0
    """Seconds without a byte after which a request counts as stalled; a slow one that makes progress is never ended."""
    first_wait_s: float = 0.1
    max_wait_s: float = 20.0
    """The largest wait, but for a server's `Retry-After`, which may ask for more. 0: never wait."""
    jitter: bool = True
    """Wait a random part of the doubling wait ("full jitter"), so that a thousand workers do not try again at once."""
    max_tries: int | None = None
    """Failures in a row that are an error, whatever the time; None: only `budget_s` counts."""
    start_s: float = 5.0
    """Seconds at the start, before a storage has answered for the first time, in which refused connections are tried
    again, as a proxy or server beside the job may come up with it; after the first answer `budget_s` counts."""

    def __post_init__(self) -> None:
        for name in ("budget_s", "timeout_s", "first_wait_s", "max_wait_s", "start_s"):
            object.__setattr__(self, name, as_number(getattr(self, name), name))
        object.__setattr__(self, "jitter", as_bool(self.jitter, "jitter"))
        if self.max_tries is not None:
            object.__setattr__(self, "max_tries", as_integer(self.max_tries, "max_tries", low=1))
        in_order = 0 <= self.first_wait_s <= self.max_wait_s
        if not (self.budget_s >= 0 and self.timeout_s > 0 and in_order and self.start_s >= 0):
            raise ConfigError(
                f"{self} cannot work: it needs budget_s >= 0, timeout_s > 0, 0 <= first_wait_s <= max_wait_s and "
                "start_s >= 0"
            )

    @classmethod
    def immediate(cls, max_tries: int = 5, *, timeout_s: float = 30.0) -> "RetryPolicy":
        """A policy that never waits and gives up after `max_tries` failures in a row."""
        return cls(first_wait_s=0.0, max_wait_s=0.0, max_tries=max_tries, timeout_s=timeout_s)

    def wait_s(self, tries: int, asked_s: float = 0.0) -> float:
        """Seconds to wait after failure number `tries` (from 1) in a row, of which the server asked for `asked_s`."""
        if self.max_wait_s == 0:
            return 0.0
        wait = min(self.max_wait_s, self.first_wait_s * 2.0 ** min(tries - 1, 60))
        # Not before the time that the server asked for, and not all workers at that time.
        return asked_s + (wait * _system_random.random() if self.jitter else wait)


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """How the shards are reached.

    Raises:
        ConfigError: a value that cannot work.
    """

    options: Mapping[str, object] = field(default_factory=dict, hash=False)
    """Keyword arguments of fsspec's filesystem for the URLs: credentials, endpoints, regions. Here a read-only copy."""
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    """How long and how often a request that failed is repeated."""
    cache_dir: str | os.PathLike[str] | None = None
    """A folder on a disk of this node, where the bytes of remote shards are kept and shared by all ranks and workers;
    made if it is not there. None: nothing is kept."""
    cache_bytes: int = 64 * 2**30
    """What the folder may hold; the blocks that were not read for longest are removed first."""

    def __post_init__(self) -> None:
        if not isinstance(self.options, Mapping):
            raise ConfigError(f"storage options must be a mapping, not {type(self.options).__name__}")
        for name in self.options:
            if not isinstance(name, str):
                raise ConfigError(f"storage options have names, which are strings: {name!r} is not one")
        if not isinstance(self.retry, RetryPolicy):
            raise ConfigError(f"retry={self.retry!r} must be a RetryPolicy")
        object.__setattr__(self, "options", MappingProxyType(dict(self.options)))  # the caller's own may change later
        if self.cache_dir is not None:
            folder = os.fspath(self.cache_dir) if isinstance(self.cache_dir, str | os.PathLike) else None
            if not isinstance(folder, str) or not folder or "://" in folder:
                raise ConfigError(f"cache_dir={self.cache_dir!r} must be a folder on a disk of this node, or None")
            object.__setattr__(self, "cache_dir", folder)  # so that a path and its text are equal
        object.__setattr__(self, "cache_bytes", as_integer(self.cache_bytes, "cache_bytes", low=MIN_CACHE_BYTES))

    def __reduce__(self) -> tuple[Callable[[], "Storage"], tuple[()]]:
        # A read-only mapping has no pickle of its own.
        make = partial(type(self), options=dict(self.options), retry=self.retry)
        return partial(make, cache_dir=self.cache_dir, cache_bytes=self.cache_bytes), ()

    def __repr__(self) -> str:
        shown = f"options={hidden(self.options)}, retry={self.retry!r}"
        return f"Storage({shown}, cache_dir={self.cache_dir!r}, cache_bytes={self.cache_bytes})"


def as_storage(value: Storage | Mapping[str, object]) -> Storage:
    """The record that `value` is; a plain mapping stands for `Storage(options=value)`."""
    if isinstance(value, Mapping):
        if own := [field.name for field in fields(Storage) if field.name in value]:
            given = ", ".join(f"{name}=..." for name in own)
            raise ConfigError(
                f"storage is a mapping with {', '.join(map(repr, own))}, and a plain mapping holds options of the "
                f"filesystem: use storage=streampack.Storage({given}). An option of the filesystem that has such a "
                "name goes into Storage(options=...)."
            )
        return Storage(options=value)
    if not isinstance(value, Storage):
        raise ConfigError(f"storage={value!r} must be a streampack.Storage{record_hint(Storage, value)}")
    return value


def hidden(options: Mapping[str, object]) -> str:
    """The names of storage options, without their values."""
    return "{" + ", ".join(f"{name!r}: ***" for name in options) + "}"
