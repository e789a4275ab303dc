"""Whole objects written to a storage: each appears at once, with all of its bytes, or not at all.

In: a URL, and its bytes or a local file with them. Out: the object under that name; or one clear error.
Never: half an object under its name, where the storage can put one at once (local disks, S3, GCS and most others do).
"""

import errno
import io
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from streampack.errors import StorageError
from streampack.storage.clients import Clients, local_path
from streampack.storage.options import Storage
from streampack.storage.redaction import named
from streampack.storage.retry import persist

_COPIED_BYTES = 2**20


class StorageWriter:
    """Writes URLs with one set of storage options. It can be pickled: each process makes its own clients."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._clients = Clients(storage.options, storage.retry)

    def __reduce__(self) -> tuple[type["StorageWriter"], tuple[Storage]]:
        return type(self), (self._storage,)

    def write(self, url: str, data: bytes) -> None:
        """Put these bytes there, in place of what is there."""
        path = local_path(url)
        if path is not None:

            def replace() -> None:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                _replace(Path(path), io.BytesIO(data))

            return self._here(url, replace)

        def put() -> None:
            filesystem, there, _ = self._clients.filesystem(url)
            filesystem.pipe_file(there, data)

        return persist(url, self._clients, put, doing="written")

    def move(self, file: Path, url: str) -> None:
        """Put a local file there, in place of what is there; the file itself is gone then.

        Raises:
            FileNotFoundError: the file is not there.
            StorageError: the target cannot be written.
        """
        file.stat()
        path = local_path(url)
        if path is not None:

            def replace() -> None:
                with file.open("rb") as written:
                    _flush(written.fileno())
                try:
                    file.replace(path)
                except OSError as error:
                    if error.errno != errno.EXDEV:
                        raise
                    with file.open("rb") as written:  # on another file system
                        _replace(Path(path), written)
                    file.unlink()

            return self._here(url, replace)

        def put() -> None:
            filesystem, there, _ = self._clients.filesystem(url)
            filesystem.put_file(str(file), there)

        persist(url, self._clients, put, doing="written")
        return file.unlink()

    def remove(self, urls: list[str]) -> None:
        """Remove these objects; one that is not there is no error."""
        for url in urls:
            path = local_path(url)
            if path is not None:
                Path(path).unlink(missing_ok=True)
                continue

            def remove(url: str = url) -> None:
                filesystem, there, _ = self._clients.filesystem(url)
                try:
                    filesystem.rm_file(there)
                except FileNotFoundError:
                    return

            persist(url, self._clients, remove, doing="removed")

    @staticmethod
    def _here(url: str, action: Callable[[], None]) -> None:
        try:
            action()
        except OSError as error:
            raise StorageError(
                f"cannot be written: {error.strerror or error}; free space, or give a folder that may be written to",
                url=named(url),
            ) from error


def _replace(target: Path, source: BinaryIO) -> None:
    """Write a file beside the target, then put it in its place."""
    # Not only the process's number: machines that share the disk may have the same.
    unfinished = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with unfinished.open("wb") as file:
            shutil.copyfileobj(source, file, _COPIED_BYTES)
            file.flush()
            _flush(file.fileno())
        unfinished.replace(target)
    except BaseException:  # an interrupt too: no half file is left
        unfinished.unlink(missing_ok=True)
        raise


def _flush(descriptor: int) -> None:
    os.fsync(descriptor)
