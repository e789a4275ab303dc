"""A stretch of one object that is asked for at once, and kept until it is let go.

In:    the pieces of the first request, and what reads any other bytes of the object.
Out:   the bytes of any range, as often as wanted: from memory as far as they are there.
Never: bytes after a gap; a second request for what is held.

    |======= asked for at once =======|- more -|- - more - -|        what comes after it is kept, too, up to
    start                          stop                              `_MOST_MORE` bytes: a search goes back there
"""

from collections.abc import Callable, Iterator

from streampack.metrics import clock

_FIRST_MORE = 32 * 2**10
"""Bytes that are asked for where a reading goes on after the stretch; each time twice as many."""
_MOST_MORE = 2**20
_HEAD_BYTES = 16 * 2**10
"""The first bytes of a reading without an end, which looks for a header and mostly needs few; then twice as many."""


class Stretch:
    """Bytes `start` to `stop` of an object of `size` bytes."""

    def __init__(
        self,
        first: Iterator[bytes],
        more: Callable[[int, int], Iterator[bytes]],
        *,
        start: int,
        stop: int,
        size: int,
        step: int = 1,
    ) -> None:
        """`first` gives all bytes from `start` to `stop`; `more(begin, end)` those in between, by another request.

        `step`: bytes of a block that is read whole in any case; `stop` is where one ends.
        """
        self.start = start
        self.stop = stop
        """The byte after the last one that is held, or that `first` will give."""
        self._size = size
        self._first: Iterator[bytes] | None = first
        self._more = more
        self._data = b""
        self._error: Exception | None = None
        self._planned = stop
        self._step = -(-_FIRST_MORE // step) * step

    def chunks(self, begin: int, end: int | None = None) -> Iterator[bytes]:
        """The bytes from `begin` to `end` (None: to the object's end).

        Raises:
            StreampackError: what the request for the stretch raised, once; the next reading asks again.
        """
        at, step = begin, _HEAD_BYTES if end is None else self._size
        end = self._size if end is None else end
        self._load()
        while at < end and self.start <= at <= self.stop:
            if at == self.stop and not self._extend():
                break
            part = self._data[at - self.start : min(at + step, end) - self.start]
            at, step = at + len(part), 2 * step
            yield part
        if at < end:
            yield from self._more(at, end)

    def held(self) -> bytes:
        """The bytes from `start` on that are held; the first request is waited for, and has failed where some lack."""
        self._load()
        return self._data

    def close(self) -> None:
        """Let the bytes go."""
        first, self._first = self._first, None
        self._data, self.stop = b"", self.start
        close = getattr(first, "close", None)
        if close is not None:
            close()

    def _load(self) -> None:
        """Wait for the first request."""
        if self._first is None:
            return
        first, self._first = self._first, None
        parts: list[bytes] = []
        try:
            clock.timed(clock.STORAGE, parts.extend, first)
        except Exception as error:  # noqa: BLE001 - raised when a reading has used what came before it
            self._error = error
        self._data = parts[0] if len(parts) == 1 else b"".join(parts)
        self.stop = self.start + len(self._data)

    def _extend(self) -> bool:
        """Ask for some bytes after the stretch; False: no more of them are kept."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        after = self.stop - self._planned
        if not self._data or not 0 <= after < _MOST_MORE or self.stop >= self._size:
            return False
        stop = min(self.stop + max(self._step, after), self._size)
        self._data += b"".join(self._more(self.stop, stop))
        self.stop = stop
        return True
