"""A file of this machine, or of a file system that is mounted here.

In, out: as `RangeReader` says. No library's private names.
"""

import os

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

    def fetch(self, start: int, stop: int, keep: Keep) -> None:
        if data := self.read(start, stop):
            keep(data)

    def read(self, start: int, stop: int) -> bytes:
        if self._descriptor is None:
            self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            status = os.fstat(self._descriptor)
            self.pin.check(size=status.st_size, version=f"time {status.st_mtime_ns}", offset=start)
        try:
            return os.pread(self._descriptor, stop - start, start)
        except OSError:
            self.close()  # a stale NFS handle is only good again after another open
            raise

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
