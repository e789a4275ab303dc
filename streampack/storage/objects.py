"""One object in one storage, read by ranges: what every backend must do, and local files and fsspec's own way.

In: a range [start, stop). Out: its bytes, handed to `keep` as they come, so that a fault loses nothing that came before
it; or whatever exception the backend's library raises. More bytes than asked for: from `start` to the object's end,
where a server ignores ranges. Fewer, without an exception: the object ends there, or the server likes small answers.
Never: bytes of two versions of an object. The version is pinned by the first answer (`Pin`), for each reading.
"""

import os
from collections.abc import Callable
from typing import Protocol

from streampack.errors import ShardError, StorageError, TruncatedShardError
from streampack.storage.clients import Clients
from streampack.storage.faults import redacted

LARGEST_BODY = 64 * 2**20
"""What is accepted from a server that ignores ranges and sends whole objects; more would break the memory budget."""

Keep = Callable[[bytes], None]


class RangeReader(Protocol):
    """Reads one object. Only one thread at a time uses it."""

    pin: "Pin"
    is_remote: bool
    reads_ahead: bool
    """Whether ranges may be fetched by another thread than the consumer's."""
    whole_ranges: bool
    """Whether a range is in memory twice as it arrives: as a whole, and in what is handed on."""
    tells_version: bool
    """Whether the version comes with each answer, so that bytes can be kept under its name."""
    is_cached: bool
    """Whether most ranges need no request; it counts those that it makes."""

    def fetch(self, start: int, stop: int, keep: Keep) -> None: ...
    def close(self) -> None: ...


class Pin:
    """What the object is known to be: its size and version, from the shard list and from the answers so far."""

    def __init__(self, url: str, size: int | None, clients: Clients) -> None:
        self.url = url
        self.size = size
        """None until it is known."""
        self.version: str | None = None
        """An ETag, a generation or a time: whatever changes when the object does."""
        self._clients = clients

    def check(self, *, size: int | None, version: str | None, offset: int) -> None:
        """Take note of what an answer says of the whole object; an error if it is another one."""
        if size is not None and self.size not in (None, size):
            if self.size > size:  # not None, as the line above says
                raise truncated(self.url, at=size, size=self.size)
            raise ShardError(
                f"the object has {size} bytes, {self.size} were expected: it was replaced; give the new size where a "
                "manifest has the old one, and begin a new run, as the data are others",
                url=redacted(self.url),
                offset=offset,
            )
        if self.version is None and version is not None:
            self.version = version
            self._clients.note_version(self.url, version)
        elif version not in (None, self.version):
            raise self.replaced(f"{self.version} became {version}", offset)
        if size is not None:
            self.size = size

    def replaced(self, how: str, offset: int) -> ShardError:
        """The error for an object that is another one now."""
        return ShardError(
            f"the object was replaced while it was read ({how}); bytes of two versions are never mixed. Write changed "
            "shards under new names, or begin a new run",
            url=redacted(self.url),
            offset=offset,
        )

    def check_body(self, num_bytes: int, offset: int) -> None:
        """An error if a server that ignores ranges sends more than works."""
        if num_bytes > LARGEST_BODY:
            raise StorageError(
                f"{num_bytes} bytes came where a range was asked for: the server ignores ranges, which works for "
                f"objects up to {LARGEST_BODY} bytes only; use one that serves ranges, or copy the shards",
                url=redacted(self.url),
                offset=offset,
            )


def truncated(url: str, *, at: int, size: int | None) -> TruncatedShardError:
    """The error for an object that ends at byte `at`."""
    return TruncatedShardError(
        f"the object ends here, {size} bytes were expected; if it was replaced or its upload cut, write it again, "
        "and give the new size where a manifest has the old one",
        url=redacted(url),
        offset=at,
    )


class LocalFile:
    """A file of this machine, or of a file system that is mounted here."""

    is_remote = False
    reads_ahead = False  # the kernel does
    whole_ranges = False
    tells_version = False
    is_cached = False

    def __init__(self, path: str, pin: Pin) -> None:
        self.pin = pin
        self._path = path
        self._descriptor: int | None = None

    def fetch(self, start: int, stop: int, keep: Keep) -> None:
        if data := self.read(start, stop):
            keep(data)

    def read(self, start: int, stop: int) -> bytes:
        if self._descriptor is None:
            self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            status = os.fstat(self._descriptor)
            self.pin.check(size=status.st_size, version=f"time {status.st_mtime_ns}", offset=start)
        try:
            return os.pread(self._descriptor, stop - start, start)
        except OSError:
            self.close()  # a stale NFS handle is only cured by opening anew
            raise

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class FsspecObject:
    """An object of any storage that fsspec knows, by `cat_file`. It tells neither size nor version with its answers."""

    is_remote = True
    whole_ranges = True
    tells_version = False
    is_cached = False

    def __init__(self, url: str, pin: Pin, clients: Clients) -> None:
        self.pin = pin
        self._url = url
        self._clients = clients
        self._knows_ranges = pin.size is not None
        self.reads_ahead = False

    def fetch(self, start: int, stop: int, keep: Keep) -> None:
        if not self._knows_ranges:
            # Only a length that cannot be the object's own shows that the server honours ranges.
            probe = self._cat(0, 1)
            if len(probe) > 1:
                return self._keep_whole(probe, start, keep)
            self._knows_ranges = True
        data = self._cat(start, stop)
        if len(data) > stop - start:
            return self._keep_whole(data, start, keep)
        if data:
            keep(data)
        return None

    def _cat(self, start: int, stop: int) -> bytes:
        filesystem, path, limit = self._clients.filesystem(self._url)
        # The asynchronous ones are used by many at once; of the others nobody has promised that two threads may.
        self.reads_ahead = bool(limit)
        return bytes(filesystem.cat_file(path, start=start, end=stop, **limit))

    def _keep_whole(self, body: bytes, start: int, keep: Keep) -> None:
        self.pin.check_body(len(body), start)
        if self.pin.size is not None and len(body) < self.pin.size:
            raise OSError(f"{len(body)} of {self.pin.size} bytes came")
        self.pin.check(size=len(body), version=None, offset=start)
        if body[start:]:
            keep(body[start:])

    def close(self) -> None:
        pass
