"""A folder on a disk for files that are on their way: those that are being made, and of a shuffle all that is sorted.

    unfinished-00003-5be1c9a2/    files that one try of part 3 makes
    unfinished-00003-5be1c9a2.lock    locked as long as that process lives
    sorted-00017/                 the sorted runs of a portion, complete
    merged-00003-...              several runs of part 3 as one, complete

Never: one folder for two jobs, or for one job in another number of parts; a file that two processes write.
"""

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from streampack.corpus.kinds import WRITING
from streampack.corpus.parts import Part, PartsJob
from streampack.errors import StorageError
from streampack.storage.cache.blockfile import close, is_locked, try_lock
from streampack.storage.clients import local_path
from streampack.storage.identity import identity

SCRATCH = f"{WRITING}/scratch"
"""Where it is in a local folder, unless told otherwise."""


class Scratch:
    """The scratch folder of a job; it can be pickled, so that each process of a part's try uses it.

    Args:
        output: the URL of the folder that is written.
        given: where the user wants it. None: in a local output, else in the folder of temporary files.
        job: what is written.
        part: which part of it.
    """

    def __init__(self, output: str, given: str | None, job: PartsJob, part: Part) -> None:
        local = local_path(output)
        text = f"{identity(output)}\n{job.digest}"
        name = "streampack-write-" + hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
        self.given = None if given is None else os.path.abspath(given)  # noqa: PTH100 - Path drops no '..'
        """The absolute path of the folder that the user gave."""
        self.is_shared = given is not None or local is not None
        """Whether other machines can have the same one."""
        base = self.given or (f"{local}/{SCRATCH}" if local is not None else tempfile.gettempdir())
        self.path = Path(base, name)
        """The same for every try."""
        self._part = part
        self._mine = self.path / f"unfinished-{part.index:05d}-{secrets.token_hex(4)}"

    def unfinished(self, name: str) -> Path:
        """Where a file is made before it gets its name."""
        self._mine.mkdir(parents=True, exist_ok=True)
        return self._mine / name

    @contextlib.contextmanager
    def begun(self) -> Iterator[None]:
        """Within it files are made. What tries of this part that were killed have left is removed.

        Raises:
            StorageError: the files cannot be made, or another process removes them.
        """
        with self._errors():
            for folder in self.path.glob(f"unfinished-{self._part.index:05d}-*/"):
                self._remove_dead(folder)
            # Before its folder is there, so that a folder without a lock is of a process that has ended.
            descriptor = self._open_lock()
            try:
                with contextlib.suppress(OSError):  # a file system without locks
                    try_lock(descriptor)
                yield
            finally:
                shutil.rmtree(self._mine, ignore_errors=True)
                _lock_of(self._mine).unlink(missing_ok=True)
                close(descriptor)
                with contextlib.suppress(OSError):  # it is not empty: other parts, or what is sorted
                    self.path.rmdir()

    def has_sorted(self) -> bool:
        """Whether there are sorted records."""
        return any(True for name in ("sorted-*", "merged-*") for _ in self.path.glob(name))

    def remove(self) -> None:
        """Leave nothing of the job."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _open_lock(self) -> int:
        while True:
            self.path.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # another part ended just now, and removed the empty folder
                return os.open(_lock_of(self._mine), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)

    @staticmethod
    def _remove_dead(folder: Path) -> None:
        lock = _lock_of(folder)
        with contextlib.suppress(OSError):  # a file system without locks: it stays until all is done
            if not is_locked(str(lock)):
                shutil.rmtree(folder, ignore_errors=True)
                lock.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not str(error.filename or "").startswith(str(self.path)):
                raise
            if error.errno in (errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY):
                what = (
                    f"this file is not as part {self._part} left it: another process writes this part at the same "
                    "time, or something removes files from the scratch folder. Run the part again, once at a time"
                )
            else:
                what = f"{error.strerror or error}; free space there, or give another --scratch DIR"
            raise StorageError(what, url=str(error.filename)) from error


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")
