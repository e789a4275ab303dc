"""The cache's folder on a local disk: its files, its budget, what is removed first, and what a failing disk means.

    cache_dir/streampack-1/usage             bytes held, and when they were last counted
    cache_dir/streampack-1/3f/3f9c...e1      a block (`blockfile`); its name is a hash of what it holds

In: names of blocks. Out: open files, where the disk gives them. All processes of a node share a folder; nothing of it
is kept in memory, and it may be deleted at any time.
Never: an error. Where a disk is full or cannot be written there is one warning, and the cache gives what it has. Never
a file outside of the folder, or one that does not match this pattern; never more bytes than the budget, of which a part
is reserved before a byte is written. What is reserved and not yet written is known by the locks: a file that a process
is filling counts with the bytes that it may get. A process that has a removed file open can still read it.
"""

import contextlib
import errno
import logging
import os
import re
import stat
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from streampack.metrics import heartbeat
from streampack.storage.cache import blockfile
from streampack.storage.cache.blockfile import BLOCK_BYTES, BlockFile

_log = logging.getLogger(__name__)
MIN_CACHE_BYTES = 16 * 2**20
"""Less would keep nothing for long: ranges have up to 8 MiB."""
_LAYOUT = "streampack-1"
_FULL = {errno.ENOSPC, errno.EDQUOT}
_NOT_THE_DISK = {errno.ENOENT, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
"""The folder is being deleted at this moment; this process or machine has no descriptor or memory left."""
_IS_FULL = ("is full", "make room, give a smaller cache_bytes, or another cache_dir")
_CANNOT_BE_WRITTEN = (
    "cannot be written",
    "give a cache_dir that this user may write, on a disk with flock; two users need a folder each",
)
MOST_TRIES = 3
"""How often a write to a full disk is tried."""
_KEPT = 0.9
"""The part of the budget that an eviction leaves: each looks at all files, so it makes room for many blocks."""
_TOUCH_S = 60.0
"""Seconds by which the kept time of a block's last reading may be too old."""
_SKEW_S = 3600.0
"""Seconds by which the clocks of this machine and of its disks may differ."""
FILE_BYTES = 4096
"""What a file takes on the disk besides its chunks: its head, and the rest of its last page."""
_COUNT_S = 3600.0
"""How often the files are counted though nothing is to be removed: a killed process leaves the sum a little wrong."""
_PAUSE_S = 300.0
"""Seconds for which nothing is written after the disk has failed."""
_ROOM_S = 10.0
"""Seconds for which an eviction by another process counts as one of this process, if the disk has room now."""
_PATIENCE_S = 5.0
"""Seconds for which another process may hold the file with the sum (it looks at 100,000 files in about a second); after
that, nothing is written for as long again."""
_FOLDER = re.compile(r"[0-9a-f]{2}")
_BLOCK = re.compile(r"[0-9a-f]{32}")
_SUM = re.compile(rb"(\d{20}) (\d{12})\n")


class CacheFolder:
    """A folder that holds at most `max_bytes`. It can be pickled and forked."""

    def __init__(self, cache_dir: str | os.PathLike[str], max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._root = Path(cache_dir).expanduser().absolute() / _LAYOUT
        self._off_until = 0.0
        self._said: dict[str, object] = {}

    def __reduce__(self) -> tuple[type["CacheFolder"], tuple[str, int]]:
        return type(self), (str(self._root.parent), self.max_bytes)

    def open(self, name: str, length: int) -> BlockFile | None:
        """The block's file for reading; None where it is missing."""
        try:
            self._check_owner()
            descriptor = os.open(self._path(name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return None
        try:
            if abs(time.time() - os.fstat(descriptor).st_mtime) > _TOUCH_S:
                with contextlib.suppress(OSError):  # a read-only disk
                    os.utime(descriptor)
            return BlockFile(descriptor, name, length)
        except OSError:
            blockfile.close(descriptor)
            return None

    def claim(self, name: str, length: int) -> BlockFile | None:
        """The block's file, made if it is missing, with its lock; None: another process has the lock.

        Raises:
            OSError: the disk does not allow it; `failed` judges it.
        """
        path = self._path(name)
        while True:
            descriptor = self._create(path)
            try:
                if not blockfile.try_lock(descriptor):
                    os.close(descriptor)
                    return None
                if _is_there(descriptor, path):
                    os.utime(descriptor)  # it is the last one to be removed now
                    file = BlockFile(descriptor, name, length)
                    file.extend()
                    return file
            except BaseException:  # an interrupt too: the lock would last as long as the process
                blockfile.close(descriptor)
                raise
            blockfile.close(descriptor)  # it was removed before it was locked

    def _create(self, path: Path) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._check_owner()
        try:
            return os.open(path, flags, 0o600)
        except FileNotFoundError:  # the first block there, or the folder was deleted
            self._root.parent.mkdir(parents=True, exist_ok=True)
            for folder in (self._root, path.parent):
                folder.mkdir(0o700, exist_ok=True)
            self._check_owner()
            return os.open(path, flags, 0o600)

    def _check_owner(self) -> None:
        """Raise where the folder is another user's, who could write anything into it; also after it was deleted."""
        with contextlib.suppress(FileNotFoundError):
            found = self._root.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
                raise PermissionError(errno.EPERM, "it is not a folder of this user", str(self._root))

    def remove(self, name: str) -> None:
        """Remove a block, if it is there; a process that has it open can still read it."""
        with contextlib.suppress(OSError):
            self._path(name).unlink()

    def _path(self, name: str) -> Path:
        return self._root / name[:2] / name

    # -- the disk --------------------------------------------------------------------------------------------------

    @property
    def is_off(self) -> bool:
        """Whether nothing is written, because the disk has failed within the last `_PAUSE_S` seconds."""
        return time.monotonic() < self._off_until

    def failed(self, error: OSError, *, tries: int = MOST_TRIES) -> bool:
        """Whether another try may work after a disk error, as room was made; if not, nothing is written for a time.

        `tries`: how often it has failed.
        """
        if error.errno in _FULL and tries < MOST_TRIES:
            with contextlib.suppress(OSError):
                if self._make_room(is_first=tries == 1):
                    return True
        if error.errno in _NOT_THE_DISK:
            return False
        self._off_until = time.monotonic() + _PAUSE_S
        what, remedy = _CANNOT_BE_WRITTEN
        if error.errno in _FULL:
            what, remedy = _IS_FULL
        self.say_once(
            what,
            f"the disk of cache_dir {what} ({error}); bytes that are missing in it are read from the storage and "
            f"not kept, and writing is tried again every {_PAUSE_S:.0f} s: {remedy}",
        )
        return False

    def say_once(self, what: str, message: str) -> None:
        """Warn, the first time in this process."""
        mine = object()
        if self._said.setdefault(what, mine) is mine:  # also of threads that come at once, only one
            _log.warning("%s (%s)", message, self._root)

    # -- the budget ------------------------------------------------------------------------------------------------

    def reserve(self, num_bytes: int, files: Sequence[BlockFile] = ()) -> bool:
        """Reserve so many bytes for files that were claimed, if need be by removing the blocks not read for longest.

        Returns whether they were reserved.
        """
        num_bytes += len(files) * FILE_BYTES
        try:
            descriptor = self._lock_usage()
            if descriptor is None:
                return False
            try:
                held, counted = _sum_in(descriptor)
                if held + num_bytes > self.max_bytes or not 0 <= time.time() - counted < _COUNT_S:
                    own = {os.fstat(file.descriptor).st_ino for file in files}
                    held, counted = self._count(most=self.max_bytes - num_bytes, own=own), int(time.time())
                fits = held + num_bytes <= self.max_bytes
                _write_sum(descriptor, held + num_bytes if fits else held, counted)
            finally:
                blockfile.close(descriptor)
        except OSError as error:
            self.failed(error)
            return False
        return fits

    def _make_room(self, *, is_first: bool) -> bool:
        """Remove a part of what is held, as the disk has less than the budget. Returns whether there may be room now.

        All processes of a node meet a full disk at once, and one tenth is enough for them all. So the first time, what
        the disk says of its free room is believed; where a quota still refuses to write, more is removed.
        """
        descriptor = self._lock_usage()
        if descriptor is None:
            return False
        try:
            _, counted = _sum_in(descriptor)
            has_room = _has_room(self._root)
            if is_first and has_room and 0 <= time.time() - counted < _ROOM_S:
                return True
            if not (is_first or has_room):  # so room was made the first time
                return False
            before = self._count(most=self.max_bytes)
            held = self._count(most=int(before * _KEPT))
            _write_sum(descriptor, held, int(time.time()))
        finally:
            blockfile.close(descriptor)
        return held < before

    def _count(self, *, most: int, own: Collection[int] = ()) -> int:
        """The bytes held, after an eviction if they are more than `most`.

        `own`: the inodes of files whose lock this thread has, and for which nothing is reserved yet.
        """
        files = sorted(self._files(own))
        held = sum(size for _, size, _ in files)
        if held > most:
            goal = min(most, int(self.max_bytes * _KEPT))
            for _, size, path in files:
                if held <= goal:
                    break
                Path(path).unlink(missing_ok=True)
                held -= size
        return held

    def _lock_usage(self) -> int | None:
        """The file with the sum, locked; None: another process has held the lock for too long."""
        descriptor = self._create(self._root / "usage")
        deadline, pause_s = time.monotonic() + _PATIENCE_S, 0.001
        try:
            while not blockfile.try_lock(descriptor):
                if time.monotonic() > deadline:
                    self._off_until = deadline + _PATIENCE_S
                    os.close(descriptor)
                    self.say_once(
                        "is locked",
                        f"the sum of cache_dir was locked by another process for {_PATIENCE_S:.0f} s, and nothing is "
                        "kept meanwhile: a process that uses the folder is stuck (end it), or the disk is slow",
                    )
                    return None
                heartbeat.sleep(pause_s)
                pause_s = min(2 * pause_s, 0.05)
        except BaseException:  # an interrupt too, as above
            blockfile.close(descriptor)
            raise
        return descriptor

    def _files(self, own: Collection[int]) -> Iterator[tuple[float, int, str]]:
        """Of each block: when it was last read or written, its bytes on the disk, its path.

        A time in the future counts as 0: a clock that was wrong once must not keep a block for ever. The bytes of a
        file with holes that a process is filling are those of the whole file, as the process may have reserved them.
        """
        latest = time.time() + _SKEW_S
        with os.scandir(self._root) as folders:
            names = [entry.path for entry in folders if _FOLDER.fullmatch(entry.name)]
        for folder in names:
            heartbeat.beat()
            with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
                for entry in entries:
                    if _BLOCK.fullmatch(entry.name):
                        with contextlib.suppress(FileNotFoundError):
                            found = entry.stat(follow_symlinks=False)
                            when = found.st_mtime if found.st_mtime <= latest else 0.0
                            size = found.st_blocks * 512
                            if size < found.st_size and found.st_ino not in own and blockfile.is_locked(entry.path):
                                size = found.st_size + FILE_BYTES
                            yield when, size, entry.path


def _is_there(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _has_room(folder: Path) -> bool:
    """Whether the disk has free room for a block; quotas do not count."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize >= BLOCK_BYTES and (found.f_favail > 0 or not found.f_files)


def _sum_in(descriptor: int) -> tuple[int, int]:
    """Bytes held, and when they were counted (seconds of the epoch; 0: never)."""
    known = _SUM.fullmatch(os.pread(descriptor, 64, 0))
    return (int(known[1]), int(known[2])) if known else (0, 0)


def _write_sum(descriptor: int, held: int, counted: int) -> None:
    os.pwrite(descriptor, b"%020d %012d\n" % (held, counted), 0)
