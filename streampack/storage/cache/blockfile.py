"""A block of a shard as a file that can be checked chunk by chunk.

    | a digest for each chunk, 0: not there | chunk | chunk |  (not there yet)  | chunk | ... |
      8 bytes each                            32 KiB each, the shard's last one shorter

In: chunks, in any order, from the process that has the file's lock. Out: chunks that were written, to any process.
Never: a byte that differs from what was written. A digest (xxh3, seeded by the file's name and the chunk's number) is
written after its chunk and checked on every reading, so a chunk that is half written, torn by a crash of the machine,
altered on the disk or in a file of another name is a chunk that is not there. So blocks need not be written elsewhere
and renamed: a rename would show whole blocks only, and promises nothing about what a power cut leaves in them.

The lock is the kernel's (flock), so it ends with the process that has it. A forked child closes its copies.
"""

import contextlib
import fcntl
import os
import struct
from collections.abc import Callable

import xxhash

CHUNK_BYTES = 32 * 1024
"""A reading of some bytes asks for whole chunks; blocks that are read for a shuffle are not much larger."""
BLOCK_BYTES = 8 * 2**20
CHUNKS = BLOCK_BYTES // CHUNK_BYTES
_MASK = 2**64 - 1
AT_ONCE = 8
"""Chunks that one system call reads; where one of them is wrong, they are asked for together."""

_locked: set[int] = set()  # descriptors with a lock, in this process
_watching_forks = False


class BlockFile:
    """An open file of one block of `length` bytes. Positions are bytes of the block."""

    def __init__(self, descriptor: int, name: str, length: int) -> None:
        self.descriptor = descriptor
        self._seed = int(name[:16], 16)
        self._length = length
        self._num_chunks = -(-length // CHUNK_BYTES)
        self._head_bytes = 8 * self._num_chunks
        self.digests = self._read_digests()
        """The digest of each chunk, as they were when the file was opened; 0: the chunk is not there."""

    def _read_digests(self) -> tuple[int, ...]:
        head = os.pread(self.descriptor, self._head_bytes, 0).ljust(self._head_bytes, b"\0")
        return struct.unpack(f"<{self._num_chunks}Q", head)

    def has(self, chunk: int) -> bool:
        """Whether the chunk was there when the file was opened; whether it is right is known when it is read."""
        return self.digests[chunk] != 0

    def read(self, start: int, stop: int, keep: Callable[[bytes], None]) -> int:
        """Hand on the bytes from `start` to `stop` or the first chunk that is not there; returns how many."""
        given, chunk, last = 0, start // CHUNK_BYTES, -(-stop // CHUNK_BYTES)
        while chunk < last and self.has(chunk):
            after = chunk + 1
            while after < min(last, chunk + AT_ONCE) and self.has(after):
                after += 1
            begin = chunk * CHUNK_BYTES
            num_bytes = min(after * CHUNK_BYTES, self._length) - begin
            try:
                data = os.pread(self.descriptor, num_bytes, self._head_bytes + begin)
            except OSError:  # a disk that loses what it holds
                break
            right = self._num_right(chunk, data)
            data = data[max(start - begin, 0) : min(right * CHUNK_BYTES, stop - begin)]
            if data:
                keep(data)
                given += len(data)
            if right < after - chunk:
                break
            chunk = after
        return given

    def _num_right(self, first: int, data: bytes) -> int:
        """How many of the chunks from the first one on are what was written."""
        view, count = memoryview(data), 0
        for chunk in range(first, first - (-len(data) // CHUNK_BYTES)):
            part = view[count * CHUNK_BYTES : (count + 1) * CHUNK_BYTES]
            if len(part) != self._size(chunk) or self._digest(chunk, part) != self.digests[chunk]:
                break
            count += 1
        return count

    def extend(self) -> None:
        """Give the file the size that it has once it is whole, as holes; the lock is held."""
        size = self._head_bytes + self._length
        if os.fstat(self.descriptor).st_size < size:
            os.ftruncate(self.descriptor, size)

    def write(self, chunk: int, data: bytes) -> None:
        """Add a whole chunk; the lock is held."""
        assert len(data) == self._size(chunk)
        self._write(data, self._head_bytes + chunk * CHUNK_BYTES)
        self._write(struct.pack("<Q", self._digest(chunk, data)), 8 * chunk)

    def _write(self, data: bytes, at: int) -> None:
        while data:
            done = os.pwrite(self.descriptor, data, at)
            data, at = data[done:], at + done

    def _size(self, chunk: int) -> int:
        return min(CHUNK_BYTES, self._length - chunk * CHUNK_BYTES)

    def _digest(self, chunk: int, data: bytes | memoryview) -> int:
        return xxhash.xxh3_64_intdigest(data, seed=(self._seed + chunk) & _MASK) or 1

    def close(self) -> None:
        """Close it, and give the lock back if it was taken."""
        close(self.descriptor)


def try_lock(descriptor: int) -> bool:
    """Take the lock of an open file if no process has it; returns whether it was taken."""
    global _watching_forks  # noqa: PLW0603 - descriptors belong to the process
    if not _watching_forks:
        _watching_forks = True
        os.register_at_fork(after_in_child=_close_copies)
    _locked.add(descriptor)  # before it is true: another thread may fork at any time
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        _locked.discard(descriptor)
        if isinstance(error, BlockingIOError):
            return False
        raise
    return True


def is_locked(path: str) -> bool:
    """Whether a process, this one too, has the lock of a file."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)  # NFS locks what may be written
    except FileNotFoundError:
        return False
    try:
        return not try_lock(descriptor)
    finally:
        close(descriptor)


def close(descriptor: int) -> None:
    """Close an open file; its lock is given back by name, as a child forked meanwhile may hold a copy."""
    if descriptor in _locked:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        _locked.discard(descriptor)
    os.close(descriptor)


def _close_copies() -> None:
    """In a forked child: a copy would keep the lock when the parent, which has it, is killed."""
    for descriptor in _locked:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _locked.clear()
