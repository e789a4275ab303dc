"""One object, read by ranges: what every backend must do (`RangeReader`), and which object it is (`Pin`).

In: a range [start, stop). Out: its bytes, handed on as they come, so that a fault loses nothing that came before it; or
whatever exception the backend's library raises.
Never: bytes of two versions of an object. The version is pinned by the first answer, for each reading.
"""

from collections.abc import Callable
from typing import Protocol

from streampack.errors import ShardError, StorageError, TruncatedShardError
from streampack.storage.clients import Clients
from streampack.storage.redaction import named

LARGEST_BODY = 64 * 2**20
"""The largest object that is accepted from a server that ignores ranges; a larger one would break the memory budget."""

Keep = Callable[[bytes], None]


class Pin:
    """What the object is known to be: its size and version, from the shard list and from the answers so far."""

    def __init__(self, url: str, size: int | None, clients: Clients) -> None:
        self.url = url
        self.size = size
        """Bytes; None until it is known."""
        self.version: str | None = None
        """An ETag, a generation or a time: whatever changes when the object does."""
        self._clients = clients

    def check(self, *, size: int | None, version: str | None, offset: int) -> None:
        """Keep the size and version that an answer tells; an error if they are those of another object."""
        if size is not None and self.size not in (None, size):
            if self.size > size:  # not None, as the line above says
                raise truncated(self.url, at=size, size=self.size)
            raise ShardError(
                f"the object has {size} bytes, {self.size} were expected: it was replaced; give the new size where a "
                "manifest has the old one, and begin a new run, as the data differ",
                url=named(self.url),
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
        """The error for an object that has another version now."""
        return ShardError(
            f"the object was replaced while it was read ({how}); bytes of two versions are never mixed. Write changed "
            "shards under new names, or begin a new run",
            url=named(self.url),
            offset=offset,
        )

    def check_body(self, num_bytes: int, offset: int) -> None:
        """An error if a server that ignores ranges sends more than `LARGEST_BODY`."""
        if num_bytes > LARGEST_BODY:
            raise StorageError(
                f"{num_bytes} bytes came where a range was asked for: the server ignores ranges, which works for "
                f"objects up to {LARGEST_BODY} bytes only; use one that serves ranges, or copy the shards",
                url=named(self.url),
                offset=offset,
            )


def truncated(url: str, *, at: int, size: int | None) -> TruncatedShardError:
    """The error for an object that ends at byte `at`."""
    return TruncatedShardError(
        f"the object ends here, {size} bytes were expected; if it was replaced or its upload cut, write it again, "
        "and give the new size where a manifest has the old one",
        url=named(url),
        offset=at,
    )


class RangeReader(Protocol):
    """Reads one object by ranges. A backend subclasses it, and says where it differs. One thread at a time uses it."""

    pin: Pin
    """What the object is known to be; each answer is checked against it."""
    is_remote: bool = True
    """Whether a request costs more than a system call: ranges may be large, and are worth a cache."""
    reads_ahead: bool = True
    """Whether ranges may be fetched by another thread than the consumer's."""
    whole_ranges: bool = False
    """Whether a range arrives in one piece only: it is in memory twice then, and a fault loses all of it."""
    tells_version: bool = True
    """Whether the version comes with each answer, so that bytes can be kept under its name."""
    is_cached: bool = False
    """Whether most ranges need no request; it counts by itself those that it makes."""

    def fetch(self, start: int, stop: int, keep: Keep) -> None:
        """Hand the bytes from `start` to `stop` to `keep`, block by block, as they come.

        More than asked for: from `start` to the object's end, where a server ignores ranges. Fewer, without an
        exception: the object ends there, or the server gives small answers.

        Raises:
            Exception: whatever the backend's library raises; `faults` judges it.
            ShardError: the object is another one than it was, or shorter than the shard list says.
        """

    def close(self) -> None:
        """Give back what is open; `fetch` may follow."""
        return None  # noqa: RET501 - not abstract, as most backends have nothing to give back
