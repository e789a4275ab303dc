"""The bytes of one object in order, by ranges that grow: every length checked, resumed at the byte reached, read ahead.

In: a reader of one object, where to begin and end, how many bytes may be held.
Out: exactly these bytes, in pieces; or an error with the URL and the byte.

    |-- 512 KiB --|---- 1 MiB ----|-------- 2 MiB --------| ...        up to `max_bytes`
                                              ^ when a quarter of a range is left, a thread fetches the next one

So there are never more bytes in memory than five quarters of `max_bytes`. While the first range is used nothing is read
ahead: a reader that looks for one sample needs no second range. Where a fault loses a whole range, those that follow
are smaller, and grow again.
Never: a request for bytes after `stop`; a request that is open while the consumer pauses; bytes after a gap.
"""

import time
from collections.abc import Callable, Iterator

from streampack.metrics import clock
from streampack.storage.backends.local import LocalFile
from streampack.storage.clients import Clients
from streampack.storage.faults import is_past_end
from streampack.storage.objects import RangeReader, truncated
from streampack.storage.readahead import Fetch, fetch_ahead
from streampack.storage.retry import Failures

_SMALLEST_RANGE = 64 * 1024
"""Bytes of the smallest range, to which faults shrink them."""
LOCAL_RANGE_BYTES = 512 * 1024
"""The largest range of a local file. Larger ones save nothing, and cost three times the CPU: their memory comes fresh
from the kernel, page by page, and falls out of the caches before it is used. Smaller ones would be felt by mounted
network file systems, which are local paths too."""
_MOST_PIECES = 8
"""A range is handed out in about so many pieces, so that its memory is given back as it is used."""


def read_ranges(
    reader: RangeReader,
    *,
    start: int,
    stop: int | None,
    first_bytes: int,
    max_bytes: int,
    clients: Clients,
    size_of: Callable[[], int | None],
    begun: Fetch | None = None,
) -> Iterator[bytes]:
    """The bytes from `start` to `stop` (None: to the object's end), in pieces of at most `max_bytes`.

    `size_of` asks for the object's size, to tell its end from an empty answer. `begun`: the first request, if it is
    under way.

    Raises:
        ShardError: the object is another one than it was, or ends before `stop`.
        StorageError: a request failed for good, or for too long.
    """
    max_bytes, piece_bytes = _memory_bounds(reader, max_bytes)
    url, position = reader.pin.url, start
    end = _End(url, start, stop, size_of)
    failures = Failures(url, clients)
    requests = _Requests(reader, clients, _RangeSize(first_bytes, max_bytes), begun)
    try:
        while not end.is_reached(position):
            began = time.monotonic()
            answer = requests.next(position, end.byte)
            if answer.num_bytes:
                failures.clear()
                clients.note_success(url)
            end.learn(reader.pin.size)
            wanted = end.cut(position, answer.num_bytes)
            after = position + wanted
            for piece in _pieces(answer, wanted, piece_bytes):
                position += len(piece)
                if 4 * (after - position) <= wanted and not answer.is_short:
                    requests.read_ahead(after, end.byte)
                yield piece
            if answer.error is not None and not is_past_end(answer.error):
                began = time.monotonic() if wanted else max(began, answer.asked_since)
                failures.add(answer.error, began=began, offset=position)
            elif not wanted and not end.is_reached(position):
                if end.is_at(position):
                    return
                failures.add(OSError("an empty answer"), began=began, offset=position)
            elif answer.is_short and position != end.byte:
                clients.num_retries += end.byte is not None
    finally:
        requests.close()


def begin_range(reader: RangeReader, start: int, stop: int, clients: Clients) -> Fetch | None:
    """Have a thread ask for the range, for a `read_ranges` of it to come; None where that gains nothing."""
    if not (reader.is_remote and reader.reads_ahead):
        return None
    clients.num_requests += not reader.is_cached
    fetch = Fetch(reader, start, stop)
    fetch_ahead(fetch)
    return fetch


def read_at_once(
    file: LocalFile, start: int, stop: int, read: Callable[[], Iterator[bytes]], clients: Clients
) -> Iterator[bytes]:
    """A range of a local file by one system call; where that fails, all of it by `read`, which tries again."""
    try:
        data = clock.waited(file.read, start, stop)
    except Exception:  # noqa: BLE001 - `read` meets it, too
        data = b""
    if len(data) < stop - start:
        yield from read()
        return
    file.close()
    clients.num_requests += 1
    clients.num_bytes += len(data)
    clients.note_success(file.pin.url)
    yield data


def _memory_bounds(reader: RangeReader, max_bytes: int) -> tuple[int, int]:
    """The largest range and the largest piece of it, for a reading that may hold `max_bytes`."""
    if not reader.is_remote:
        max_bytes = min(max_bytes, LOCAL_RANGE_BYTES)
    if reader.whole_ranges:
        max_bytes = max(max_bytes // 2, 1)  # the range in use is held whole until its end
    if not reader.is_remote:
        return max_bytes, max_bytes
    return max_bytes, min(max(max_bytes // _MOST_PIECES, _SMALLEST_RANGE), max_bytes)


class _RangeSize:
    """How many bytes the next request asks for."""

    def __init__(self, first_bytes: int, max_bytes: int) -> None:
        self.num_bytes = min(first_bytes, max_bytes)
        self._largest = max_bytes
        self._smallest = min(self.num_bytes, _SMALLEST_RANGE)

    def grow(self) -> None:
        self.num_bytes = min(self.num_bytes * 2, self._largest)

    def shrink(self) -> None:
        self.num_bytes = max(self.num_bytes // 4, self._smallest)


class _Requests:
    """The requests of one reading: one that is waited for, at most one ahead of it."""

    def __init__(self, reader: RangeReader, clients: Clients, size: _RangeSize, begun: Fetch | None) -> None:
        self._reader = reader
        self._clients = clients
        self._size = size
        self._ahead = begun
        self._num_done = 0

    def next(self, position: int, stop: int | None) -> Fetch:
        """The answer from `position` on, which may be short or a failure; the wait for it is counted."""
        fetch, self._ahead = self._ahead or self._make(position, stop), None
        began = time.monotonic()
        clock.waited(fetch.finish)
        self._clients.waited_s += time.monotonic() - began
        self._clients.num_bytes += 0 if self._reader.is_cached else fetch.num_bytes
        self._num_done += 1
        if not fetch.is_short:
            if fetch.seconds < self._clients.retry.timeout_s / 4:  # it may limit a whole request
                self._size.grow()
        elif self._reader.whole_ranges:  # the fault has lost the whole range
            self._size.shrink()
        return fetch

    def read_ahead(self, position: int, stop: int | None) -> None:
        """Have a thread ask for the range at `position`, once for each answer but the first."""
        if self._ahead is not None or self._num_done == 1 or not self._reader.reads_ahead:
            return
        if stop is not None and position < stop:
            self._ahead = self._make(position, stop)
            fetch_ahead(self._ahead)

    def _make(self, position: int, stop: int | None) -> Fetch:
        self._clients.num_requests += not self._reader.is_cached
        after = position + self._size.num_bytes
        return Fetch(self._reader, position, after if stop is None else min(after, stop))

    def close(self) -> None:
        """Drop the request that is under way."""
        if self._ahead is not None:
            self._ahead.drop()
        self._reader.close()


class _End:
    """Where the reading ends: at the byte asked for, else at the object's end, as soon as that is known."""

    def __init__(self, url: str, start: int, stop: int | None, size_of: Callable[[], int | None]) -> None:
        self.byte = stop
        """None: not known yet."""
        self._url = url
        self._start = start
        self._size_of = size_of

    def learn(self, size: int | None) -> None:
        """Take note of the object's size, if an answer has told it."""
        if self.byte is None and size is not None:
            self.byte = max(size, self._start)

    def is_reached(self, position: int) -> bool:
        """Whether nothing is left to read at `position`."""
        return self.byte is not None and self.byte <= position

    def cut(self, position: int, num_bytes: int) -> int:
        """How many of `num_bytes` that came from `position` on are wanted; a whole object may have come."""
        return num_bytes if self.byte is None else min(num_bytes, self.byte - position)

    def is_at(self, position: int) -> bool:
        """Whether an empty answer at `position` means that the object ends there.

        Raises:
            TruncatedShardError: the object ends there, before the last byte asked for.
        """
        if self.byte is None:
            return True
        size = self._size_of()
        if size is None or size > position:
            return False
        raise truncated(self._url, at=size, size=self.byte)


def _pieces(fetch: Fetch, num_bytes: int, piece_bytes: int) -> Iterator[bytes]:
    """The first `num_bytes` of what came; each block is let go once it is handed out."""
    while num_bytes > 0:
        block = fetch.blocks.popleft()[:num_bytes]
        num_bytes -= len(block)
        if len(block) <= piece_bytes:
            yield block
        else:
            for at in range(0, len(block), piece_bytes):
                yield block[at : at + piece_bytes]
