"""A remote object read through the cache on this node's disk: what is there is not asked for, what comes is kept.

In: the reader of an object that tells its version, a range. Out: the range's bytes, as `RangeReader` says.

    range        |............................|
    in the cache |#####|              |#######|.....       chunks of 32 KiB, in files of 8 MiB
    asked for          |--------------|                    one request, under the locks of the files that it fills

With the cache a byte waits for the rest of its chunk and no longer, and there are no more requests than without it. A
process that wants bytes which another process is fetching waits for them, chunk by chunk. If the other process dies,
the kernel gives its lock to the next; if it makes no progress, the bytes are read without the cache.

Blocks are named by object, size and version (`blocknames`), so bytes of two versions never meet. The version is the one
that the storage has told this process, else the one of the shard list, else it is asked for, once. Where the storage
then answers with another version, the blocks of the old one are removed.
Never: an error because of the disk; a wait without a limit; a lock that is held for longer than one request.
"""

from collections.abc import Iterator

from streampack.errors import ShardError
from streampack.storage.cache.blockfile import BLOCK_BYTES, BlockFile
from streampack.storage.cache.blocknames import block_names, object_key
from streampack.storage.cache.folder import FILE_BYTES, CacheFolder
from streampack.storage.cache.relay import EnoughError, Patience, Relay, chunks_around, next_chunk
from streampack.storage.clients import Clients
from streampack.storage.objects import Keep, RangeReader

_NO_VERSION = (
    "shards of which the storage tells no version with each answer (an ETag, a generation, a time of change) are not "
    "kept in cache_dir; S3, GCS and web servers tell one"
)
_NO_RANGES = (
    "shards of servers that ignore ranges and send whole objects are not kept in cache_dir; use a server that serves "
    "ranges, or copy the shards to a disk"
)


def forget_range(
    folder: CacheFolder, url: str, start: int, stop: int, *, size: int, version: str | None, clients: Clients
) -> None:
    """Remove the blocks with the bytes `start` to `stop` from the cache: something in them is wrong."""
    for known in {version, clients.seen_version(url)} - {None, ""}:
        assert known is not None
        first, last = start // BLOCK_BYTES, max(stop - 1, start) // BLOCK_BYTES
        for name in block_names(object_key(url, clients), size, known, first, last):
            folder.remove(name)


def read_through(reader: RangeReader, folder: CacheFolder, clients: Clients, etag: str) -> RangeReader:
    """The object's reader through the cache; `reader` itself where blocks can have no names. `etag`: "" is unknown."""
    if not reader.is_remote:
        return reader
    if reader.tells_version and reader.pin.size is not None:
        return CachedObject(reader, folder, clients, etag or None)
    if reader.tells_version:
        folder.say_once("size", "shards of unknown size are not kept in cache_dir; a manifest gives them one")
    else:
        folder.say_once("version", _NO_VERSION)
    return reader


class CachedObject(RangeReader):
    """Reads one object through the cache. Only one thread at a time uses it."""

    is_cached = True

    def __init__(self, inner: RangeReader, folder: CacheFolder, clients: Clients, listed: str | None) -> None:
        """`listed`: the version in the shard list; None: it has none."""
        assert inner.pin.size is not None, "blocks are named by it"
        self.pin = inner.pin
        self.reads_ahead = inner.reads_ahead
        self._size: int = inner.pin.size
        self._key = object_key(inner.pin.url, clients)
        self._inner = inner
        self._folder = folder
        self._clients = clients
        self._listed = listed
        self._patience = Patience(clients.retry.timeout_s)
        self._is_direct = False
        self._stuck_at = -1

    def close(self) -> None:
        self._inner.close()

    def fetch(self, start: int, stop: int, keep: Keep) -> None:
        try:
            self._fetch(start, stop, keep)
        except ShardError:  # the object is another one now
            if self.pin.version is not None:
                self._forget(self.pin.version)
            raise

    def _fetch(self, start: int, stop: int, keep: Keep) -> None:
        position = start
        while position < stop:
            version = None if self._is_direct else self._version()
            if version is None or position == self._stuck_at:
                self._stuck_at = -1
                self._ask(position, stop, keep)
                return
            position += self._read(version, position, stop, keep)
            if position == stop:
                return
            files, end = self._claim(version, position, stop)
            if files is not None:
                come, is_short = self._fill(version, files, position, end, keep)
            elif end == position and not self._patience.is_over(self._marks(version, position)):
                continue
            else:
                end = self._missing_until(version, position, stop)
                come = self._ask(position, end, keep)
                is_short = come < end - position
            position += come
            if is_short:  # the object ends here, or the server likes small answers
                return

    def _version(self) -> str | None:
        """The version whose blocks are used; None: the storage does not say, so nothing can be kept."""
        version = self.pin.version or self._clients.seen_version(self.pin.url) or self._listed
        if version is None:
            try:
                self._ask(0, 1, _take_one)
            except EnoughError:
                self._give_up("ranges", _NO_RANGES)
                return None
            version = self.pin.version
        if version is None:
            self._give_up("version", _NO_VERSION)
        return version

    def _give_up(self, what: str, why: str) -> None:
        """Read the rest without the cache."""
        self._is_direct = True
        self._folder.say_once(what, why)

    def _blocks(self, version: str, start: int, stop: int) -> Iterator[tuple[int, str, int]]:
        """Each block with bytes from `start` to `stop`: where it begins, its name and its length."""
        first, last = start // BLOCK_BYTES, (stop - 1) // BLOCK_BYTES
        for index, name in enumerate(block_names(self._key, self._size, version, first, last), first):
            begin = index * BLOCK_BYTES
            yield begin, name, min(BLOCK_BYTES, self._size - begin)

    def _marks(self, version: str, position: int) -> object:
        """A value that changes when a process adds to the block of `position`, and not when it is read."""
        ((_, name, length),) = self._blocks(version, position, position + 1)
        file = self._folder.open(name, length)
        if file is None:
            return name, None
        file.close()
        return name, file.digests

    def _read(self, version: str, start: int, stop: int, keep: Keep) -> int:
        """Hand on what is in the cache from `start` on; returns how many bytes that was."""
        position = start
        for begin, name, length in self._blocks(version, start, stop):
            file = self._folder.open(name, length)
            if file is None:
                break
            try:
                position += self._read_block(file, version, begin, position, stop, keep)
            finally:
                file.close()
            if position < begin + length:
                break
        return position - start

    def _read_block(self, file: BlockFile, version: str, begin: int, start: int, stop: int, keep: Keep) -> int:
        def keep_own(piece: bytes) -> None:
            if self.pin.version is None:  # from here on it is this version or an error
                self.pin.check(size=None, version=version, offset=start)
            keep(piece)

        got = file.read(start - begin, min(stop - begin, BLOCK_BYTES), keep_own)
        if got:
            self._clients.count_cached(num_hits=1, num_bytes=got)
        return got

    def _missing_until(self, version: str, start: int, stop: int) -> int:
        """Where the bytes end that are not in the cache; those at `start` are not, as the caller knows."""
        for begin, name, length in self._blocks(version, start, stop):
            file = self._folder.open(name, length)
            if file is not None:
                end = next_chunk(file, begin, length, start, stop)
                file.close()
                if end < min(stop, begin + length):
                    return end
        return stop

    def _claim(self, version: str, start: int, stop: int, *, tries: int = 1) -> tuple[list[BlockFile] | None, int]:
        """The locked files for the bytes from `start` on, and where these bytes end.

        Without files nothing can be kept now; with an end at `start`, as another process fills the block.
        """
        files: list[BlockFile] = []
        end = stop
        if self._folder.is_off:
            return None, stop
        try:
            for begin, name, length in self._blocks(version, start, stop):
                file = self._folder.claim(name, length)
                if file is None:
                    end = max(begin, start)
                    break
                files.append(file)
                end = next_chunk(file, begin, length, start, stop)
                if end < min(stop, begin + length):
                    break
            first, last = chunks_around(start, end, self._size)
            in_middle = FILE_BYTES if first % BLOCK_BYTES else 0  # the head has a page of its own there
            if files and self._folder.reserve(last - first + in_middle, files):
                return files, end
        except OSError as error:
            _close(files)
            if self._folder.failed(error, tries=tries):
                return self._claim(version, start, stop, tries=tries + 1)
            return None, stop
        except BaseException:  # a lock that is not given back would last as long as the process
            _close(files)
            raise
        _close(files)
        return None, end

    def _fill(self, version: str, files: list[BlockFile], start: int, stop: int, keep: Keep) -> tuple[int, bool]:
        """Ask the storage for the bytes, keep them and hand them on; returns how many, and whether that is too few."""
        relay = None
        try:
            # Another process may have filled it before it was locked here.
            begin = start // BLOCK_BYTES * BLOCK_BYTES
            if got := self._read_block(files[0], version, begin, start, stop, keep):
                return got, False
            relay = Relay(self.pin, version, self._folder, files, start, stop, keep)
            self._ask(relay.begin, relay.end, relay)
            if relay.came and not relay.num_stored and relay.came < relay.end - relay.begin:
                self._is_direct = True  # the server's answers are smaller than a chunk
                return relay.given, False
        except EnoughError:
            assert relay is not None
            if relay.is_other:
                self._forget(version)
            if self.pin.version is None:
                self._give_up("version", _NO_VERSION)
            elif relay.came > relay.end - relay.begin:
                self._give_up("ranges", _NO_RANGES)
            return relay.given, False
        finally:
            _close(files)
            if relay is not None and relay.came and not relay.given and not relay.num_stored:
                self._stuck_at = start  # the next try must make progress without the cache
        return relay.given, relay.given < stop - start

    def _ask(self, start: int, stop: int, keep: Keep) -> int:
        """Ask the storage for the bytes and hand them on; returns how many came."""
        num_bytes = 0

        def keep_counted(piece: bytes) -> None:
            nonlocal num_bytes
            num_bytes += len(piece)
            keep(piece)

        try:
            self._inner.fetch(start, stop, keep_counted)
        finally:
            self._clients.count_asked(num_bytes)
        return num_bytes

    def _forget(self, version: str) -> None:
        for _, name, _ in self._blocks(version, 0, self._size):
            self._folder.remove(name)


def _take_one(piece: bytes) -> None:
    if len(piece) > 1:  # a whole object, of which only the head was wanted
        raise EnoughError


def _close(files: list[BlockFile]) -> None:
    for file in files:
        file.close()
