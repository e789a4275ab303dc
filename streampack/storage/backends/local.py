"""A file of this machine, or of a file system that is mounted here.

In, out: as `RangeReader` says. No library's private names.

Its version is its time of change and its inode. Descriptors are kept for few files (`descriptors`), so one is opened
again where a reading continues after many others, and is compared then; and as a file can be written in place, it is
compared after each range too.
"""

import errno
import functools
import os
import stat
from pathlib import Path

from streampack.storage import descriptors
from streampack.storage.objects import Keep, Pin, RangeReader


class LocalFile(RangeReader):
    """A file of this machine, or of a file system that is mounted here."""

    is_remote = False
    reads_ahead = False  # the kernel does
    tells_version = False

    def __init__(self, path: str, pin: Pin) -> None:
        self.pin = pin
        self._path = path
        self._descriptor: int | None = None
        self._seen: tuple[int, int] | None = None
        """Size and time of change that were compared last."""

    def fetch(self, start: int, stop: int, keep: Keep) -> None:
        if data := self.read(start, stop):
            keep(data)

    def read(self, start: int, stop: int) -> bytes:
        descriptors.take(self)
        try:
            if self._descriptor is None:
                # A pipe is not waited for; but a file that comes from a tape may be.
                self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
                self._seen = None
                self._compare(self._descriptor, start)
                os.set_blocking(self._descriptor, True)
            data = os.pread(self._descriptor, stop - start, start)
            self._compare(self._descriptor, start)
        except BaseException:  # an interrupt too: it would stay open
            self.let_go()  # a stale NFS handle is only good again after another open
            raise
        descriptors.keep(self)
        return data

    def _compare(self, descriptor: int, offset: int) -> None:
        """An error if the file is not the one that the reading began with."""
        found = os.fstat(descriptor)
        seen = found.st_size, found.st_mtime_ns
        if seen == self._seen:
            return
        if not stat.S_ISREG(found.st_mode):
            number = errno.EISDIR if stat.S_ISDIR(found.st_mode) else errno.EINVAL
            raise OSError(number, "not a file")
        inode = f", inode {found.st_ino}" if _has_lasting_inodes(found.st_dev) else ""
        version = f"changed at {found.st_mtime_ns // 10**9}.{found.st_mtime_ns % 10**9:09}{inode}"
        self.pin.check(size=found.st_size, version=version, offset=offset)
        self._seen = seen

    def let_go(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def close(self) -> None:
        descriptors.take(self)
        self.let_go()


@functools.cache
def _has_lasting_inodes(device: int) -> bool:
    """Whether a file keeps its inode number on this device; file systems of FUSE may give it another one."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return True
    place = f"{os.major(device)}:{os.minor(device)}"
    # 36 35 98:0 /root /mounted rw,noatime master:1 - ext4 /dev/root rw
    return not any(line.split()[2] == place and line.partition(" - ")[2].startswith("fuse") for line in mounts)
