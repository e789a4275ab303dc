"""The bytes of one object in order, by ranges that grow: every length checked, resumed at the byte reached, read ahead.

In: a reader of one object, where to begin and end, how much memory the reading may have.
Out: exactly these bytes, in pieces; or an error with the URL and the byte.

    |-- 512 KiB --|---- 1 MiB ----|-------- 2 MiB --------| ...        up to `max_bytes`
                                              ^ when a quarter of a range is left, a thread fetches the next one

So there are never more bytes in memory than five quarters of `max_bytes`. The first range is read alone: who looks for
a sample needs no second one. Where a fault loses a whole range, it shrinks those that follow, and they grow again.
Never: a request behind `stop`; a request that is open while the consumer pauses; bytes after a gap.
"""

import time
from collections.abc import Callable, Iterator

from streampack.storage.clients import Clients
from streampack.storage.faults import is_past_end
from streampack.storage.objects import RangeReader, truncated
from streampack.storage.readahead import Fetch, fetch_ahead
from streampack.storage.retry import Failures

_SMALLEST_RANGE = 64 * 1024
"""What ranges shrink to under faults."""
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
) -> Iterator[bytes]:
    """The bytes from `start` to `stop` (None: to the object's end), in pieces of at most `max_bytes`.

    `size_of` asks for the object's size, to tell its end from an empty answer.
    """
    if not reader.is_remote:
        max_bytes = min(max_bytes, LOCAL_RANGE_BYTES)
    if reader.whole_ranges:
        max_bytes = max(max_bytes // 2, 1)  # the range in use is held whole until its end
    url, position, want = reader.pin.url, start, min(first_bytes, max_bytes)
    smallest = min(want, _SMALLEST_RANGE)
    failures = Failures(url, clients)
    ahead: Fetch | None = None
    num_ranges = 0
    piece_bytes = max_bytes
    if reader.is_remote:
        piece_bytes = min(max(max_bytes // _MOST_PIECES, _SMALLEST_RANGE), max_bytes)
        clients.spread()
    try:
        while stop is None or position < stop:
            fetch, ahead = ahead or _fetch(reader, position, want, stop, clients), None
            began = time.monotonic()
            fetch.finish()
            now = time.monotonic()
            clients.waited_s += now - began
            num_ranges += 1
            left = fetch.num_bytes
            clients.num_bytes += 0 if reader.is_cached else left
            is_short = left < fetch.stop - fetch.start
            if left:
                failures.clear()
                clients.note_success(url)
            if not is_short:
                if (
                    fetch.seconds < clients.retry.timeout_s / 4
                ):  # where that limits the whole request, the next one fits
                    want = min(want * 2, max_bytes)
            elif reader.whole_ranges:  # a fault loses the whole range
                want = max(want // 4, smallest)
            if stop is None and reader.pin.size is not None:
                stop = max(reader.pin.size, start)
            if stop is not None:
                left = min(left, stop - position)  # a whole object came
            end = position + left
            for piece in _pieces(fetch, left, piece_bytes):
                position += len(piece)
                is_low = 4 * (end - position) <= left and num_ranges > 1 and not is_short
                if ahead is None and is_low and reader.reads_ahead and stop is not None and end < stop:
                    ahead = _fetch(reader, end, want, stop, clients)
                    fetch_ahead(ahead)
                yield piece
            if fetch.error is not None and not is_past_end(fetch.error):
                failures.add(fetch.error, began=time.monotonic() if left else began, offset=position)
            elif not left and (stop is None or position < stop):
                if _ends_here(url, position, stop, size_of):
                    return
                failures.add(OSError("an empty answer"), began=began, offset=position)
            elif is_short and position != stop:
                clients.num_retries += stop is not None
    finally:
        if ahead is not None:
            ahead.drop()
        reader.close()


def _fetch(reader: RangeReader, start: int, want: int, stop: int | None, clients: Clients) -> Fetch:
    clients.num_requests += not reader.is_cached
    return Fetch(reader, start, start + want if stop is None else min(start + want, stop))


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


def _ends_here(url: str, position: int, stop: int | None, size_of: Callable[[], int | None]) -> bool:
    """Whether the object ends at `position`, where that is no fault of the answer; an error if it should not end."""
    if stop is None:
        return True
    actual = size_of()
    if actual is None or actual > position:
        return False
    raise truncated(url, at=actual, size=stop)
