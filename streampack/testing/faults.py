"""A file system that fails on schedule, for tests of code that must survive a failing storage.

    from streampack.testing import Fault, FaultyFileSystem

    options = {"target_protocol": "file", "faults": (None, Fault.dropped(), Fault.short(100))}
    PackedDataset("faulty:///data/{00000..00003}.tar", ..., storage=Storage(options=options))

Here the second read of each shard fails, the third gives 100 bytes only, and all others succeed. A run gives the same
packs as without faults; `loader.stats()["retries"]` says how many there were.

In:  reads of files by fsspec, as streampack and its users make them. Out: the bytes, or what the schedule says.
Never: a fault that depends on time or chance. Each process counts the reads of each file by itself.
"""

import copy
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import fsspec
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

__all__ = ["Fault", "FaultyFileSystem"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What goes wrong with one read; a fault may have several of these."""

    stall_s: float = 0.0
    """Seconds to wait before the answer."""
    error: Exception | None = None
    """Raised instead of an answer, as a copy."""
    num_bytes: int | None = None
    """The answer ends after so many bytes, without an error; None: it is whole."""

    @classmethod
    def failing(cls, error: Exception | None = None) -> "Fault":
        """The read raises the error; without one, an OSError as of a service that is down."""
        return cls(error=OSError("the service is down, says the schedule of faults") if error is None else error)

    @classmethod
    def dropped(cls) -> "Fault":
        """The connection is reset, and the part of the answer that came is lost."""
        return cls(error=ConnectionResetError("the connection was reset, says the schedule of faults"))

    @classmethod
    def stalling(cls, seconds: float) -> "Fault":
        """Nothing comes for so many seconds, then the whole answer."""
        return cls(stall_s=seconds)

    @classmethod
    def short(cls, num_bytes: int) -> "Fault":
        """Only the first `num_bytes` come, and nothing says that there is more."""
        return cls(num_bytes=num_bytes)


class FaultyFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """Another fsspec file system under `faulty://`, whose reads fail on schedule. Listings and writes succeed.

    The path after `faulty://` is the target's own: `faulty:///tmp/a.tar` for a local file, `faulty://bucket/a.tar` for
    S3.

    Args:
        target_protocol: of the file system that holds the files: "file", "memory", "s3", ...
        target_options: its storage options.
        faults: the first is what becomes of a process's first read of a file, and so on, for each file; None: the
            read succeeds.
        then: what becomes of all reads after those.
    """

    protocol: ClassVar[str] = "faulty"
    cachable: ClassVar[bool] = False  # each has counts of its own

    def __init__(
        self,
        target_protocol: str = "file",
        target_options: Mapping[str, object] | None = None,
        faults: Sequence[Fault | None] = (),
        then: Fault | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.target = fsspec.filesystem(target_protocol, **(target_options or {}))
        self._faults = tuple(faults)
        self._then = then
        self._num_reads: Counter[str] = Counter()
        self._lock = threading.Lock()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.removeprefix("faulty://").rstrip("/")

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        """The bytes from `start` to `end` of a file: one read, which may meet a fault."""
        path = self._strip_protocol(path)
        fault = self._next(path) or Fault()
        time.sleep(fault.stall_s)  # the fault itself
        if fault.error is not None:
            raise copy.copy(fault.error)
        data: bytes = self.target.cat_file(path, start=start, end=end)
        return data if fault.num_bytes is None else data[: fault.num_bytes]

    def _next(self, path: str) -> Fault | None:
        with self._lock:  # files may be read by several threads
            number = self._num_reads[path]
            self._num_reads[path] += 1
        return self._faults[number] if number < len(self._faults) else self._then

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        return _File(self, path, mode, **options) if mode == "rb" else self.target.open(path, mode)

    def info(self, path: str, **options: Any) -> Any:
        """What the target says of a file or folder."""
        return self.target.info(self._strip_protocol(path), **options)

    def ls(self, path: str, *, detail: bool = True, **options: Any) -> Any:
        """What the target has in a folder."""
        return self.target.ls(self._strip_protocol(path), detail=detail, **options)

    def makedirs(self, path: str, *, exist_ok: bool = False) -> None:
        """Make a folder in the target."""
        self.target.makedirs(self._strip_protocol(path), exist_ok=exist_ok)

    def rm_file(self, path: str) -> None:
        """Remove a file from the target."""
        self.target.rm_file(self._strip_protocol(path))


class _File(AbstractBufferedFile):  # type: ignore[misc]  # fsspec has no types
    """An open file; each block that it fetches is a read."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        data: bytes = self.fs.cat_file(self.path, start, end)
        return data


fsspec.register_implementation(FaultyFileSystem.protocol, FaultyFileSystem, clobber=True)
