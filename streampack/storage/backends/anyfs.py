"""An object of any storage that fsspec knows, read by the filesystem's own `cat_file`.

In, out: as `RangeReader` says. Private names: those of fsspec that making a filesystem needs (`libraries.fsspec`).
"""

from streampack.storage.clients import Clients
from streampack.storage.objects import Keep, Pin, RangeReader


class FsspecObject(RangeReader):
    """An object of any storage that fsspec knows, by `cat_file`. It tells neither size nor version with its answers."""

    whole_ranges = True
    tells_version = False

    def __init__(self, url: str, pin: Pin, clients: Clients) -> None:
        self.pin = pin
        self._url = url
        self._clients = clients
        self._knows_ranges = pin.size is not None
        self.reads_ahead = False

    def fetch(self, start: int, stop: int, keep: Keep) -> None:
        if not self._knows_ranges:
            # Only a length that cannot be the object's own shows that the server honours ranges.
            probe = self._cat(0, 1)
            if len(probe) > 1:
                return self._keep_whole(probe, start, keep)
            self._knows_ranges = True
        data = self._cat(start, stop)
        if len(data) > stop - start:
            return self._keep_whole(data, start, keep)
        if data:
            keep(data)
        return None

    def _cat(self, start: int, stop: int) -> bytes:
        filesystem, path, limit = self._clients.filesystem(self._url)
        # Several threads may use the asynchronous ones; for the others fsspec does not promise it.
        self.reads_ahead = bool(limit)
        return bytes(filesystem.cat_file(path, start=start, end=stop, **limit))

    def _keep_whole(self, body: bytes, start: int, keep: Keep) -> None:
        self.pin.check_body(len(body), start)
        if self.pin.size is not None and len(body) < self.pin.size:
            raise OSError(f"{len(body)} of {self.pin.size} bytes came")
        self.pin.check(size=len(body), version=None, offset=start)
        if body[start:]:
            keep(body[start:])
