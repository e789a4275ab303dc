"""One URL as bytes over fsspec: bounded ranges, every length checked, resumed at the byte reached.

In: a URL (a local path, `file://`, or any protocol fsspec has), the options to reach it, a range of bytes.
Out: the bytes of exactly that range, in order, in pieces of bounded size; or a ShardError with the URL and the byte.
Never: a range that ends early without an error; a client that crosses a fork or a pickle; a secret in a repr or a log.

A fault that may pass (reset, stall, 5xx, 429, short body) costs time only: the range is asked for again from the byte
reached, smaller, after a back-off, until `RetryPolicy.budget_s` has gone by without a byte. One that will not pass (not
found, access denied, a wrong argument) is an error at once. The backends' exceptions share no base class and hide each
other, so `is_final` looks through the chain of causes.
"""

import json
import logging
import os
import random
import re
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import fsspec
from fsspec.asyn import reset_lock
from fsspec.spec import AbstractFileSystem
from fsspec.utils import glob_translate

from streampack.errors import ConfigError, ShardNotFoundError, StorageError, StreampackError, TruncatedShardError

_log = logging.getLogger(__name__)
_system_random = random.SystemRandom()
_T = TypeVar("_T")

_SMALLEST_RANGE = 64 * 1024
"""What ranges shrink to under faults: 30 s for it is a link of 2 KB/s."""
_LARGEST_BODY = 64 * 2**20
"""What is accepted from a server that ignores Range and sends whole objects; more would break the memory budget."""
_PASSING_STATUS = frozenset({408, 409, 416, 421, 423, 425, 429})
_FINAL_NAMES = frozenset(
    {
        "DefaultCredentialsError",  # google-auth
        "NoCredentialsError",  # botocore
        "ParamValidationError",
        "PartialCredentialsError",
        "PermissionDeniedError",  # obstore
        "UnauthenticatedError",
    }
)
"""Final ones that are known by name, as their libraries may not be installed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How long a failing storage is waited for. The waits are random on purpose; they never influence the data.

    `RetryPolicy.immediate()` retries without waiting, for tests.
    """

    budget_s: float = 420.0
    """Seconds a reading may keep failing without a byte of progress; a pause of the consumer does not count."""
    timeout_s: float = 30.0
    """Seconds for one request of an async backend (s3, gs, http); ranges are kept so small that it means a stall."""
    first_wait_s: float = 0.1
    max_wait_s: float = 20.0
    jitter: bool = True
    """Wait a random part of the doubling wait ("full jitter"), so that a thousand workers do not come back at once."""
    max_tries: int | None = None
    """Failures in a row after which it is over whatever the time; None: only the budget counts."""

    def __post_init__(self) -> None:
        if not (self.budget_s >= 0 and self.timeout_s > 0 and 0 <= self.first_wait_s <= self.max_wait_s):
            raise ConfigError(
                f"{self} cannot work: it needs budget_s >= 0, timeout_s > 0 and 0 <= first_wait_s <= max_wait_s"
            )
        if self.max_tries is not None and self.max_tries < 1:
            raise ConfigError(f"max_tries is {self.max_tries}; it must be at least 1, or None for no limit")

    @classmethod
    def immediate(cls, max_tries: int = 5) -> "RetryPolicy":
        """A policy that never waits and gives up after `max_tries` failures in a row."""
        return cls(first_wait_s=0.0, max_wait_s=0.0, max_tries=max_tries)

    def wait_s(self, tries: int) -> float:
        """Seconds to wait after failure number `tries` (from 1) in a row."""
        wait = min(self.max_wait_s, self.first_wait_s * 2.0 ** min(tries - 1, 60))
        return wait * _system_random.random() if self.jitter else wait


def is_final(error: BaseException) -> bool:
    """Whether trying again is pointless: decided by the chain of causes, an HTTP status before everything else."""
    chain = list(_chain(error))
    if any(type(link).__module__ == "aiohttp.http_exceptions" for link in chain):
        return False  # an answer cut or garbled on its way; aiohttp gives it status 400, which no server said
    statuses = _statuses(chain)
    if statuses:
        if any("RequestTimeout" in str(link) for link in chain):  # S3 says so with 400
            return False
        return 400 <= statuses[0] < 500 and statuses[0] not in _PASSING_STATUS
    if any(type(link).__name__ in _FINAL_NAMES for link in chain):
        return True
    # fsspec's http turns refused connections into FileNotFoundError: the network's word counts before the translation.
    for link in chain:
        network = isinstance(link, ConnectionError | TimeoutError) or type(link).__module__.startswith("aiohttp")
        if (network and not isinstance(link, ValueError)) or isinstance(link, json.JSONDecodeError):
            return False
    final = FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError
    mistakes = ImportError, TypeError, ValueError, NotImplementedError
    return any(isinstance(link, final + mistakes) for link in chain)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _statuses(chain: list[BaseException]) -> list[int]:
    """HTTP statuses that the errors carry, each library in its own way, outermost first."""
    found = []
    for link in chain:
        response = getattr(link, "response", None)
        if isinstance(response, dict):  # botocore
            values = [response.get("ResponseMetadata", {}).get("HTTPStatusCode")]
        else:
            values = [getattr(link, "status", None), getattr(link, "status_code", None)]
            values.append(getattr(response, "status_code", None))
            if not any(values):  # aiohttp warns at the mere sight of `code`
                values.append(getattr(link, "code", None))
        found += [int(str(value)) for value in values if str(value).isdigit() and 300 <= int(str(value)) < 600]
    return found


def _is_missing(error: BaseException) -> bool:
    chain = list(_chain(error))
    statuses = _statuses(chain)
    return statuses[0] in (404, 410) if statuses else any(isinstance(link, FileNotFoundError) for link in chain)


def _is_past_end(error: BaseException) -> bool:
    return 416 in _statuses(list(_chain(error))) or "InvalidRange" in str(error)


def redacted(text: str) -> str:
    """The text without what may be secret in a URL: a password, and signatures and tokens in the query."""
    text = re.sub(r"(://[^/:@\s]*):[^/@\s]*@", r"\1:***@", text)
    return re.sub(r"(?i)([?&][^=&\s]*(?:sig|token|key|secret|passw|credential)[^=&\s]*=)[^&#\s'\")]*", r"\1***", text)


class _Ranges(Protocol):
    """What reads ranges of one object. `read` may return fewer bytes; it raises whatever its library raises."""

    def read(self, start: int, stop: int) -> bytes: ...
    def close(self) -> None: ...


class _LocalFile:
    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor: int | None = None

    def read(self, start: int, stop: int) -> bytes:
        if self._descriptor is None:
            self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(self._descriptor, stop - start, start)
        except OSError:
            self.close()  # a stale NFS handle is only cured by opening anew
            raise

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class _RemoteObject:
    def __init__(self, storage: "Storage", url: str) -> None:
        self._storage = storage
        self._url = url

    def read(self, start: int, stop: int) -> bytes:
        filesystem, path, limit = self._storage.filesystem(self._url)
        return bytes(filesystem.cat_file(path, start=start, end=stop, **limit))

    def close(self) -> None:
        pass


class _Failures:
    """Failures of one reading since its last byte of progress: `add` waits for the next try, or raises the end."""

    def __init__(self, storage: "Storage", url: str) -> None:
        self._storage = storage
        self._url = url
        self.clear()

    def clear(self) -> None:
        self._tries = 0
        self._since: float | None = None
        self._renewed = False

    def add(self, error: Exception, *, began: float, offset: int | None = None) -> None:
        if isinstance(error, StreampackError):
            raise error
        retry, url = self._storage.retry, redacted(self._url)
        chain = list(_chain(error))
        ends = chain if len(chain) == 1 else (chain[0], chain[-1])  # what was said, and what was behind it
        said = ", from ".join(f"{type(link).__name__}: {str(link)[:300]}" for link in ends)
        cause = redacted(" ".join(said.split()))
        self._tries += 1
        self._since = began if self._since is None else self._since
        if is_final(error):
            if not self._renewed and any("expired" in str(link).lower() for link in chain):
                self._renewed = True  # once: a new client reads credentials that were refreshed meanwhile
                self._storage.renew(self._url)
                return
            if _is_missing(error):
                raise ShardNotFoundError(
                    f"there is no such file or object ({cause}); check the URL, or take it out of the shard list",
                    url=url,
                    offset=offset,
                ) from error
            raise StorageError(
                f"cannot be read, and trying again would not help ({cause}); check the credentials and the other "
                "storage_options, and what they allow",
                url=url,
                offset=offset,
            ) from error
        wait, elapsed = retry.wait_s(self._tries), time.monotonic() - self._since
        if elapsed + wait > retry.budget_s or self._tries == retry.max_tries:
            raise StorageError(
                f"not a byte in {elapsed:.0f} s and {self._tries} tries, last {cause}; check the network and the "
                f"service, or allow more with RetryPolicy(budget_s=...), now {retry.budget_s:g} s",
                url=url,
                offset=offset,
            ) from error
        self._storage.num_retries += 1
        _log.warning("%s, byte %s: try %d failed, next in %.1f s: %s", url, offset, self._tries, wait, cause)
        time.sleep(wait)


class Storage:
    """Reads URLs with one set of storage options. It can be pickled and forked: each process makes its own clients."""

    def __init__(self, storage_options: Mapping[str, object] | None = None, retry: RetryPolicy | None = None) -> None:
        self._options: dict[str, Any] = dict(storage_options or {})
        self.retry = retry or RetryPolicy()
        self.num_retries = 0
        """Faults that passed, in this process."""
        self._filesystems: dict[tuple[int, str, str], AbstractFileSystem] = {}

    def __repr__(self) -> str:
        options = ", ".join(f"{key!r}: ***" for key in self._options)
        return f"Storage({{{options}}}, {self.retry!r})"

    def __getstate__(self) -> dict[str, object]:
        return {"storage_options": self._options, "retry": self.retry}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]  # the state is exactly the arguments

    def chunks(
        self,
        url: str,
        start: int = 0,
        stop: int | None = None,
        *,
        size: int | None = None,
        first_bytes: int = 512 * 1024,
        max_bytes: int = 8 * 2**20,
    ) -> Iterator[bytes]:
        """The bytes `start` to `stop` of a URL, in pieces that grow from `first_bytes` to at most `max_bytes`.

        `size` is what the object should hold: an object that ends before it (or before `stop`) is a
        TruncatedShardError. Without it the reading goes on until the object ends, and costs two more requests.
        """
        stop = size if stop is None else stop
        assert 0 <= start <= (start if stop is None else stop), (start, stop)
        assert size is None or stop is None or stop <= size, (stop, size)
        local = local_path(url)
        source: _Ranges = _RemoteObject(self, url) if local is None else _LocalFile(local)
        try:
            if local is None and size is None:
                # Only a length that cannot be the object's own shows that the server honours ranges.
                probe = self._call(url, lambda: self._read(source, url, 0, 1, None))
                if len(probe) > 1:
                    yield from self._cut(probe, url, start, stop, None, max_bytes)
                    return
            yield from self._ranges(source, url, start, stop, size, min(first_bytes, max_bytes), max_bytes)
        finally:
            source.close()

    def _ranges(
        self, source: _Ranges, url: str, position: int, stop: int | None, size: int | None, want: int, max_bytes: int
    ) -> Iterator[bytes]:
        smallest = min(want, _SMALLEST_RANGE)
        failures = _Failures(self, url)
        while stop is None or position < stop:
            end = position + want if stop is None else min(position + want, stop)
            began = time.monotonic()
            try:
                data = self._read(source, url, position, end, size)
            except Exception as error:  # noqa: BLE001 - the backends' exceptions share no base class
                failures.add(error, began=began, offset=position)
                want = max(want // 4, smallest)
                continue
            failures.clear()
            if len(data) > end - position:
                yield from self._cut(data, url, position, stop, size, max_bytes)
                return
            if not data:
                return
            if len(data) < end - position:
                self.num_retries += size is not None
                want = max(want // 4, smallest)
            elif time.monotonic() - began < self.retry.timeout_s / 4:  # so that the next one takes under a half
                want = min(want * 2, max_bytes)
            position += len(data)
            yield data

    def _read(self, source: _Ranges, url: str, start: int, stop: int, size: int | None) -> bytes:
        """One range; empty only where an object of unknown size ends."""
        try:
            data = source.read(start, stop)
        except Exception as error:
            if not _is_past_end(error):
                raise
            data = b""
        if data or size is None:
            return data
        actual = self.size(url)
        if actual is None or actual > start:
            raise OSError(f"an empty answer to a range from byte {start}")
        raise TruncatedShardError(
            f"the object ends here, {size} bytes were expected; if it was replaced or its upload cut, write it again, "
            "and give the new size where a manifest has the old one",
            url=redacted(url),
            offset=actual,
        )

    @staticmethod
    def _cut(body: bytes, url: str, start: int, stop: int | None, size: int | None, max_bytes: int) -> Iterator[bytes]:
        """The range out of the whole object, which is what a server sends that does not know ranges."""
        if size not in (None, len(body)) or len(body) > _LARGEST_BODY:
            raise StorageError(
                f"{len(body)} bytes came where a range was asked for, of an object of {size or 'unknown'} bytes: the "
                f"server ignores ranges, which works for objects up to {_LARGEST_BODY} bytes only; use one that serves "
                "ranges, or copy the shards",
                url=redacted(url),
                offset=start,
            )
        stop = len(body) if stop is None else min(stop, len(body))
        for position in range(start, stop, max_bytes):
            yield body[position : min(position + max_bytes, stop)]

    def size(self, url: str) -> int | None:
        """The object's size in bytes; None where the server does not tell; ShardNotFoundError where nothing is."""
        local = local_path(url)

        def ask() -> int | None:
            if local is not None:
                status = Path(local).stat()
                kind, size = "file" if stat.S_ISREG(status.st_mode) else "other", status.st_size
            else:
                filesystem, path, limit = self.filesystem(url)
                info = filesystem.info(path, **limit)
                kind, size = info.get("type", "file"), info.get("size")
            if kind != "file":
                raise ValueError("not a file; a directory of shards is given with a '/' at its end")
            return size

        return self._call(url, ask)

    def read(self, url: str) -> bytes:
        """All of a small object: a manifest, a tokenizer's model."""
        return b"".join(self.chunks(url, size=self.size(url)))

    def is_directory(self, url: str) -> bool:
        """Whether shards may lie below the URL. A web server does not tell: there the `/` at the end decides."""
        local = local_path(url)
        if local is not None:
            return Path(local).is_dir()
        if url.startswith(("http://", "https://")):
            return url.endswith("/")

        def ask() -> bool:
            filesystem, path, limit = self.filesystem(url)
            return bool(filesystem.isdir(path, **limit))

        return self._call(url, ask)

    def listing(self, url: str) -> list[tuple[str, int | None]]:
        """Files below a directory (a URL that ends with `/`), else those that match a glob: (URL, size), sorted.

        Empty where nothing is; the size is None where the listing does not tell it. A folder that cannot be listed
        is an error: fsspec's own `find` and `glob` would pass over it.
        """
        filesystem, path, _ = self.filesystem(url)
        root, pattern, depth = path.rstrip("/") + "/", "**", None
        if not url.endswith("/"):
            web = "://" in path  # where `?` begins a query and [::1] is a host
            magic = re.compile(r"[*\[]" if web else r"[*?\[]").search(path, path.find("/", path.find("://") + 3) * web)
            root = path[: path.rfind("/", 0, magic.start() if magic else len(path)) + 1]
            pattern = path[len(root) :]
            depth = None if "**" in pattern else pattern.count("/") + 1
        wanted = re.compile(glob_translate(pattern))
        found: list[tuple[str, int | None]] = []
        folders: list[tuple[str, tuple[str, ...]]] = [(root, ())]
        while folders:
            folder, above = folders.pop()
            place = str(Path(folder).resolve()) if local_path(url) is not None else folder
            if place in above:  # links may go in circles
                continue
            for name, is_directory, size in self._entries(url, folder, is_root=not above):
                if is_directory and (depth is None or len(above) + 1 < depth):
                    folders.append((f"{name}/", (*above, place)))
                elif not is_directory and wanted.match(name[len(root) :]):
                    found.append((_as_given(url, filesystem, path, name), size))
        return sorted(found)

    def _entries(self, url: str, folder: str, *, is_root: bool) -> list[tuple[str, bool, int | None]]:
        """(name, is it a directory, size) of what is in one folder."""

        def ask() -> list[tuple[str, bool, int | None]]:
            if local_path(url) is not None:
                with os.scandir(folder) as listed:  # fsspec takes a link to a file for neither file nor directory
                    return [(e.path, e.is_dir(), e.stat().st_size if e.is_file() else None) for e in listed]
            filesystem, _, limit = self.filesystem(url)
            limit = {"timeout": self.retry.budget_s} if limit else {}  # many pages in one call
            infos = filesystem.ls(folder, detail=True, **limit)
            entries = [(info["name"].rstrip("/"), info["type"] == "directory", info.get("size")) for info in infos]
            return [entry for entry in entries if entry[0] != folder.rstrip("/")]

        try:
            return self._call(url, ask)
        except ShardNotFoundError:
            if is_root:
                return []
            raise

    def filesystem(self, url: str) -> tuple[AbstractFileSystem, str, dict[str, float]]:
        """This process's client for the URL, the URL as it wants it, and keywords that bound a request."""
        protocol = "file" if local_path(url) is not None else url.partition("://")[0]
        cls = _filesystem_class(protocol, url)
        place = cls._get_kwargs_from_urls(url)
        key = (os.getpid(), protocol, repr(sorted(place.items())))
        if key not in self._filesystems:
            if self._filesystems and not any(pid == key[0] for pid, _, _ in self._filesystems):
                # After a fork. The parent's clients stay in the dictionary: to close them here would end
                # connections that the parent still uses.
                reset_lock()
            options = {**place, **_client_options(protocol, self._options)}
            try:
                made = cls(**options, skip_instance_cache=True, use_listings_cache=False)
            except TypeError:
                made = cls(**options, skip_instance_cache=True)
            if protocol in ("s3", "s3a"):
                made.retries = 1
            self._filesystems.setdefault(key, made)  # two threads may both have made one
        filesystem = self._filesystems[key]
        limit = {"timeout": self.retry.timeout_s} if getattr(filesystem, "async_impl", False) else {}
        return filesystem, cls._strip_protocol(url), limit

    def renew(self, url: str) -> None:
        """Forget this process's clients of the URL's protocol; the next request makes one, with credentials of then."""
        protocol = url.partition("://")[0]
        for key in list(self._filesystems):
            if key[:2] == (os.getpid(), protocol):
                self._filesystems.pop(key, None)

    def _call(self, url: str, action: Callable[[], _T]) -> _T:
        failures = _Failures(self, url)
        while True:
            began = time.monotonic()
            try:
                return action()
            except Exception as error:  # noqa: BLE001 - the backends' exceptions share no base class
                failures.add(error, began=began)


def local_path(url: str) -> str | None:
    """The path of a local URL (no protocol, `file://`, `local://`), or None; what would run a shell is refused."""
    if url.startswith("pipe:") or re.match(r"\w+::", url):
        raise ConfigError(
            "pipe: and chained URLs are not read, as they would run a shell or hide what is read; give the storage's "
            "own URL (s3://, gs://, https://, a path) and what it needs in storage_options",
            url=redacted(url),
        )
    protocol, separator, path = url.partition("://")
    if not separator:
        return str(Path(url).expanduser()) if url.startswith("~") else url
    return path if protocol in ("file", "local") else None


def _filesystem_class(protocol: str, url: str) -> type[AbstractFileSystem]:
    try:
        cls: type[AbstractFileSystem] = fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        extra = {"s3": "streampack[s3]", "s3a": "streampack[s3]", "gs": "streampack[gcs]", "gcs": "streampack[gcs]"}
        needed = extra.get(protocol, f"fsspec[{protocol}]")
        raise ConfigError(f"{protocol}:// needs `pip install '{needed}'` ({error})", url=redacted(url)) from error
    except ValueError as error:
        raise ConfigError(f"no storage is known as {protocol}:// ({error})", url=redacted(url)) from error
    return cls


def _client_options(protocol: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The user's options, and beneath them what keeps a client from retrying or unpacking by itself."""
    if protocol == "file":
        return {}
    if protocol in ("http", "https"):
        return {**given, "headers": {"Accept-Encoding": "identity", **given.get("headers", {})}}
    if protocol in ("s3", "s3a"):
        retries = {"total_max_attempts": 1, "mode": "standard"}
        return {**given, "config_kwargs": {"retries": retries, **given.get("config_kwargs", {})}}
    return dict(given)


def _as_given(url: str, filesystem: AbstractFileSystem, path: str, name: str) -> str:
    """A listed `name` in the manner of the `url` that was listed (whose stripped form is `path`)."""
    url = url if url.endswith("://") else url.rstrip("/")
    if url and path.endswith(url):  # a relative path, which was made absolute
        return name[len(path) - len(url) :]
    if url.endswith(path):
        return url[: len(url) - len(path)] + name
    return name if "://" not in url else str(filesystem.unstrip_protocol(name))
