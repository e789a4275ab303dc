"""An answer of the storage on its way through the cache: kept in whole chunks, handed on as it comes.

A process whose block is being filled by another one waits with `Patience`.

    asked for       |  chunk  |  chunk  |  chunk  |       whole chunks around what is wanted
    wanted              ^start                ^stop
    to the files    |=========|=========|=========|       as long as the disk takes them, and the version is right
    to the reader       |---------------------|           at once, piece by piece

Never: an error of the disk that reaches the reader; a chunk of another version than that of the files.
"""

import time

from streampack.metrics import heartbeat
from streampack.storage.cache.blockfile import AT_ONCE, BLOCK_BYTES, CHUNK_BYTES, CHUNKS, BlockFile
from streampack.storage.cache.folder import MOST_TRIES, CacheFolder
from streampack.storage.objects import Keep, Pin

_FIRST_POLL_S = 0.001
_POLL_S = 0.05
"""The longest pause between two looks at a file that another process fills."""


class EnoughError(Exception):
    """Raised to end a request: the rest of its answer is of no use."""


class Relay:
    """Takes an answer: whole chunks of it go to the files, the wanted part to the reader."""

    def __init__(
        self, pin: Pin, version: str, folder: CacheFolder, files: list[BlockFile], start: int, stop: int, keep: Keep
    ) -> None:
        self.begin, self.end = chunks_around(start, stop, pin.size)
        self.came = self.given = self.num_stored = 0
        self.is_other = False
        """Whether the answer is of another version, or of none; nothing of it was handed on."""
        self._pin = pin
        self._version = version
        self._folder = folder
        self._files = files
        self._start = start
        self._stop = stop
        self._keep = keep
        self._stores = True
        self._parts: list[bytes] = []
        self._held = 0

    def __call__(self, piece: bytes) -> None:
        heartbeat.beat()
        if self._pin.version != self._version:  # the answer's head has said so
            self.is_other = True
            raise EnoughError
        at = self.begin + self.came
        self.came += len(piece)
        self._store(piece[: max(self.end - at, 0)])
        wanted = piece[max(self._start - at, 0) : max(self._stop - at, 0)]
        if wanted:
            self.given += len(wanted)
            self._keep(wanted)
        # Either a server ignores ranges and sends the whole object, or nothing more is wanted and nothing is kept.
        if self.came > self.end - self.begin or (not self._stores and at + len(piece) >= self._stop):
            raise EnoughError

    def _store(self, piece: bytes) -> None:
        while piece and self._stores:
            at = self.begin + self.num_stored * CHUNK_BYTES
            room = min(CHUNK_BYTES, self.end - at) - self._held
            self._parts.append(piece[:room])
            self._held += len(self._parts[-1])
            if len(piece) < room:
                return
            piece = piece[room:]
            data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
            self._parts, self._held = [], 0
            self._write(at, data)

    def _write(self, at: int, data: bytes) -> None:
        file = self._files[at // BLOCK_BYTES - self.begin // BLOCK_BYTES]
        for tries in range(1, MOST_TRIES + 1):
            if not self._stores:
                return
            try:
                file.write(at // CHUNK_BYTES % CHUNKS, data)
            except OSError as error:
                self._stores = self._folder.failed(error, tries=tries)
            else:
                self.num_stored += 1
                return


class Patience:
    """Waits for another process, as long as it makes progress."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._seen: object = None
        self._last = self._waited_s = self._pause_s = 0.0

    def is_over(self, seen: object) -> bool:
        """Whether nothing has changed for too long (which stays so until it does); if not, waits a little first."""
        now = time.monotonic()
        if seen != self._seen:
            self._seen, self._waited_s, self._pause_s = seen, 0.0, _FIRST_POLL_S
        elif self._waited_s <= self._timeout_s:
            # Two looks with a long time between them belong to two readings of a block, not to one wait.
            self._waited_s += min(now - self._last, 1.0)
        self._last = now
        if self._waited_s > self._timeout_s:
            return True
        heartbeat.sleep(self._pause_s)
        self._pause_s = min(2 * self._pause_s, _POLL_S)
        return False


def next_chunk(file: BlockFile, begin: int, length: int, start: int, stop: int) -> int:
    """Where the first chunk that is there after that of `start` begins; at most `stop`, and the block's end."""
    stop = min(stop, begin + length)
    first = max(start // CHUNK_BYTES + 1, begin // CHUNK_BYTES)
    if start >= begin and file.has(start // CHUNK_BYTES % CHUNKS):  # it is wrong, and so may be those after it
        first = (start // CHUNK_BYTES // AT_ONCE + 1) * AT_ONCE
    for chunk in range(first, -(-stop // CHUNK_BYTES)):
        if file.has(chunk % CHUNKS):
            return chunk * CHUNK_BYTES
    return stop


def chunks_around(start: int, stop: int, size: int | None) -> tuple[int, int]:
    """The bytes of the chunks with bytes from `start` to `stop`."""
    end = -(-stop // CHUNK_BYTES) * CHUNK_BYTES
    return start // CHUNK_BYTES * CHUNK_BYTES, end if size is None else min(end, size)
