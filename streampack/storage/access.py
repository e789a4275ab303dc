"""What other packages see of the storage: a URL as bytes, its size, what is in a folder.

In: a URL (a local path, `file://`, s3://, gs://, http(s)://, any protocol fsspec has, a chain as simplecache::s3://),
the options to reach it, a range of bytes. Out: the bytes of exactly that range, in order, in pieces of bounded size; or
one clear error.
Never: a range that ends early without an error; bytes of two versions of an object; a client that crosses a fork or a
pickle; a secret in a repr, a log or an error.

A temporary fault costs time only: the range is requested again from the byte reached, until `RetryPolicy.budget_s` has
gone by without a byte. A permanent fault is an error at once; `faults` has the rule.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from streampack.metrics import clock
from streampack.records import StorageUse
from streampack.storage.backends.choice import open_object
from streampack.storage.backends.local import LocalFile
from streampack.storage.cache.folder import CacheFolder
from streampack.storage.cache.reader import forget_range, read_through
from streampack.storage.checking import check_blocks, check_whole
from streampack.storage.clients import Clients, local_path
from streampack.storage.digests import block_bytes_of, parse_digest
from streampack.storage.identity import identities
from streampack.storage.listing import list_files, note_etag
from streampack.storage.objects import RangeReader
from streampack.storage.options import RetryPolicy, Storage, hidden
from streampack.storage.pacing import PacedObject
from streampack.storage.pages import Listed, page_from
from streampack.storage.ranges import begin_range, read_at_once, read_ranges
from streampack.storage.retry import persist
from streampack.storage.stretch import Stretch

_MORE_BYTES = 64 * 2**10
"""Of the first request after a stretch: a document was larger than those before it."""
_MOST_PIECES = 8
"""A stretch comes in as many pieces as its request gives: they are joined in any case."""


class StorageReader:
    """Reads URLs with one set of storage options. It can be pickled and forked: each process makes its own clients."""

    def __init__(
        self,
        storage_options: Mapping[str, object] | None = None,
        retry: RetryPolicy | None = None,
        folder: CacheFolder | None = None,
    ) -> None:
        """`folder`: where bytes of shards are kept; None: nowhere."""
        self.retry = retry or RetryPolicy()
        self._folder = folder
        self._clients = Clients(storage_options or {}, self.retry)

    @classmethod
    def of(cls, storage: Storage) -> "StorageReader":
        """The reader with these options."""
        folder = None if storage.cache_dir is None else CacheFolder(storage.cache_dir, storage.cache_bytes)
        return cls(storage.options, storage.retry, folder)

    def __repr__(self) -> str:
        return f"StorageReader({hidden(self._clients.options)}, {self.retry!r})"

    def __getstate__(self) -> dict[str, object]:
        arguments = {"storage_options": self._clients.options, "retry": self.retry, "folder": self._folder}
        return {**arguments, "reached": self._clients.reached}

    def __setstate__(self, state: dict[str, Any]) -> None:
        reached = state.pop("reached")
        self.__init__(**state)  # type: ignore[misc]  # the rest is exactly the arguments
        self._clients.reached |= reached

    @property
    def num_retries(self) -> int:
        """Requests that failed and were repeated, in this process."""
        return self._clients.num_retries

    @property
    def num_requests(self) -> int:
        """Requests to storages, in this process; a redirect or a page of a listing is not counted by itself."""
        return self._clients.num_requests + self._clients.num_thread_requests

    @property
    def bytes_read(self) -> int:
        """Bytes of shards that came from the storage, in this process."""
        return self._clients.num_bytes + self._clients.num_thread_bytes

    @property
    def seconds_waited(self) -> float:
        """Seconds that this process had nothing to do but wait for the storage."""
        return self._clients.waited_s

    @property
    def use(self) -> StorageUse:
        """All of these counts, and those of the cache, in this process."""
        clients = self._clients
        return StorageUse(
            self.num_retries,
            self.num_requests,
            self.bytes_read,
            self.seconds_waited,
            clients.num_cache_hits,
            clients.num_cached_bytes,
        )

    def expect_answers(self) -> None:
        """This process goes on for one that has died: a storage that does not answer now will come back (`faults`).

        The process that made this reader may never have asked the storage itself.
        """
        self._clients.is_restart = True

    def chunks(
        self,
        url: str,
        start: int = 0,
        stop: int | None = None,
        *,
        size: int | None = None,
        digest: str | None = None,
        etag: str | None = None,
        first_bytes: int = 512 * 1024,
        max_bytes: int = 8 * 2**20,
    ) -> Iterator[bytes]:
        """The bytes `start` to `stop` of a URL, by ranges that grow from `first_bytes` to at most `max_bytes`.

        About `max_bytes` are held at most, with what is read ahead. `size` is what the object should hold: an object
        that ends before it (or before `stop`) is a TruncatedShardError. Without it the reading continues until the
        object ends, which costs one or two requests more. `digest` is a manifest's (see `digests`): blocks are read
        whole and checked before use; the digest of a whole shard is checked where all of it is read, at its end. `etag`
        is the version in the shard list, "" where it has none; None: it is not a shard, and is not kept in the cache.
        """
        stop = size if stop is None else stop
        assert 0 <= start <= (start if stop is None else stop), (start, stop)
        assert size is None or stop is None or stop <= size, (stop, size)
        first_bytes = max(first_bytes, block_bytes_of(digest))
        open_range = partial(self._ranges, url, size=size, etag=etag, first_bytes=first_bytes, max_bytes=max_bytes)
        checked = self._checked(open_range, url, start, stop, size=size, digest=digest, etag=etag)
        yield from clock.within(clock.STORAGE, checked)

    def _checked(
        self,
        open_range: Callable[[int, int | None], Iterator[bytes]],
        url: str,
        start: int,
        stop: int | None,
        *,
        size: int | None,
        digest: str | None,
        etag: str | None,
    ) -> Iterator[bytes]:
        """The bytes that `open_range` reads, checked as far as `digest` allows."""
        if digest is None:
            yield from open_range(start, stop)
            return
        known = parse_digest(digest, size=size)
        forget = partial(self.forget, url, size=size, etag=etag)
        if known.block_bytes:
            assert size is not None and stop is not None, "parse_digest demands it"
            yield from check_blocks(
                open_range, forget, known, start=start, stop=stop, size=size, url=url, clients=self._clients
            )
        elif start == 0 and stop == size:
            yield from check_whole(open_range(start, stop), forget, known, url=url)
        else:
            yield from open_range(start, stop)

    def stretch(
        self, url: str, start: int, stop: int, *, size: int, digest: str | None = None, etag: str | None = None
    ) -> Stretch:
        """The bytes `start` to `stop` of a URL of `size` bytes, to be held in memory; the arguments are as in `chunks`.

        Where the storage is remote a thread asks for them at once, in one request. With digests of blocks, whole blocks
        are asked for and held.
        """
        block_bytes = block_bytes_of(digest)
        if block_bytes:
            start, stop = start // block_bytes * block_bytes, min(-(-stop // block_bytes) * block_bytes, size)
        reader = self._reader(url, size=size, etag=etag)
        begun = begin_range(reader, start, stop, self._clients)
        first_bytes, max_bytes = stop - start, _MOST_PIECES * (stop - start)
        is_first = True

        def read() -> Iterator[bytes]:
            return read_ranges(
                reader,
                start=start,
                stop=stop,
                first_bytes=first_bytes,
                max_bytes=max_bytes,
                clients=self._clients,
                size_of=partial(self.size, url),
                begun=begun,
            )

        def open_range(begin: int, end: int | None) -> Iterator[bytes]:
            nonlocal is_first
            if not is_first:
                return self._ranges(
                    url, begin, end, size=size, etag=etag, first_bytes=first_bytes, max_bytes=max_bytes
                )
            is_first = False
            assert (begin, end) == (start, stop), "the first reading is that of the stretch"
            return read_at_once(reader, start, stop, read, self._clients) if isinstance(reader, LocalFile) else read()

        more = partial(self.chunks, url, size=size, digest=digest, etag=etag, first_bytes=_MORE_BYTES)
        first = self._checked(open_range, url, start, stop, size=size, digest=digest, etag=etag)
        return Stretch(first, more, start=start, stop=stop, size=size, step=max(block_bytes, 1))

    def forget(self, url: str, start: int, stop: int | None, *, size: int | None, etag: str | None) -> None:
        """Remove what the cache holds of a shard's bytes `start` to `stop` (None: the end).

        For bytes that are wrong: if they were altered on their way, the next request gives the right ones.
        """
        if self._folder is not None and size is not None:
            stop = size if stop is None else stop
            forget_range(self._folder, url, start, stop, size=size, version=etag, clients=self._clients)

    def _ranges(
        self,
        url: str,
        start: int,
        stop: int | None,
        *,
        size: int | None,
        etag: str | None,
        first_bytes: int,
        max_bytes: int,
    ) -> Iterator[bytes]:
        return read_ranges(
            self._reader(url, size=size, etag=etag),
            start=start,
            stop=stop,
            first_bytes=first_bytes,
            max_bytes=max_bytes,
            clients=self._clients,
            size_of=lambda: self.size(url),
        )

    def _reader(self, url: str, *, size: int | None, etag: str | None) -> RangeReader:
        """What reads the object, through the cache where there is one."""
        if local_path(url) is not None:  # nothing is made that could fail
            reader = open_object(url, size, self._clients)
        else:
            reader = persist(url, self._clients, lambda: open_object(url, size, self._clients), is_request=False)
            reader = PacedObject(reader, self._clients)
        if self._folder is not None and etag is not None:
            reader = read_through(reader, self._folder, self._clients, etag)
        return reader

    def is_remote(self, url: str) -> bool:
        """Whether a request for the URL costs more than a system call."""
        return local_path(url) is None

    def size(self, url: str) -> int | None:
        """The object's size in bytes; None where the server does not tell it.

        Raises:
            ShardNotFoundError: nothing is there.
        """
        local = local_path(url)

        def ask() -> int | None:
            if local is not None:
                status = Path(local).stat()
                kind, size = _kind(status.st_mode), status.st_size
            else:
                filesystem, path, limit = self._clients.filesystem(url)
                info = filesystem.info(path, **limit)
                kind, size = info.get("type", "file"), info.get("size")
                note_etag(url, info, self._clients)
            if kind == "directory":
                raise IsADirectoryError(errno.EISDIR, "a directory")
            if kind != "file":
                raise OSError(errno.EINVAL, "not a file but something else")
            return size

        return persist(url, self._clients, ask)

    def etag(self, url: str) -> str | None:
        """The version of the URL's content that `listing` or `size` was told; it is given once. None: they were not."""
        return self._clients.etags.pop(url, None)

    def read(self, url: str) -> bytes:
        """All of a small object: a manifest, a tokenizer's model."""
        return b"".join(self.chunks(url, size=self.size(url)))

    def is_local_name(self, text: str) -> bool:
        """Whether this machine has a file or folder of this very name, a link that leads nowhere included."""
        local = local_path(text)
        return local is not None and os.path.lexists(local)

    def is_directory(self, url: str) -> bool:
        """Whether shards may lie below the URL. A web server does not tell: there the `/` at the end decides."""
        local = local_path(url)
        if local is not None:
            return os.path.isdir(local)  # noqa: PTH112 - Path's raises where a name is too long
        if url.startswith(("http://", "https://")):
            return url.endswith("/")

        def ask() -> bool:
            filesystem, path, limit = self._clients.filesystem(url)
            return bool(filesystem.isdir(path, **limit))

        return persist(url, self._clients, ask)

    def listing(self, url: str) -> list[tuple[str, int | None]]:
        """Files below a directory (a URL that ends with `/`), else those that match a glob: (URL, size), sorted.

        Names that begin with a dot are left out, unless the glob has such a name. Where a file has the name of the
        glob itself, it is that file. Empty where there are none; the size is None where the listing does not tell it.
        """
        return list_files(url, self._clients)

    def page_from(self, url: str) -> list[Listed] | None:
        """URL, size and version of the object and of those after it in its folder, as far as one request tells them.

        In the order of their names, of which a page has up to `pages.PAGE`. What is not on it may be there all the
        same. None where the storage has no such request, or refuses it.
        """
        return page_from(url, self._clients)

    def identities(self, urls: Sequence[str]) -> list[str]:
        """For each URL a text that all names of its object have now; no request, but local files are looked at."""
        return identities(urls)


def _kind(mode: int) -> str:
    return "file" if stat.S_ISREG(mode) else "directory" if stat.S_ISDIR(mode) else "other"
