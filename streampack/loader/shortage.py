"""Shortages that may pass: of file descriptors, of memory, of threads and processes.

In:    an exception; or something to do that may meet a shortage.
Out:   what is short, in words that say what to look at; or what was done, after the shortage has passed.
Never: a wait without an end.
"""

import errno
import logging
import resource
import time
from collections.abc import Callable
from typing import TypeVar

from streampack import heartbeat
from streampack.errors import LoaderError

PATIENCE_S = 30.0
"""Seconds after which a shortage is taken for one that does not pass."""

_FILES = {errno.EMFILE, errno.ENFILE, errno.ETOOMANYREFS}
_MEMORY = {errno.ENOMEM, errno.ENOBUFS, errno.ENOSPC}  # ENOSPC: of shared memory
_T = TypeVar("_T")
_log = logging.getLogger(__name__)


def is_shortage(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is that something of the machine's or the process's is used up."""
    while error is not None:
        if isinstance(error, MemoryError) or "start new thread" in str(error):
            return True
        if isinstance(error, OSError) and error.errno in {*_FILES, errno.ENOMEM}:
            return True
        error = error.__cause__
    return False


def described(error: BaseException) -> str:
    """What is short, and where to look."""
    number = error.errno if isinstance(error, OSError) else None
    if number in _FILES:
        allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        what = f"no file descriptor is free (`ulimit -n` allows this process {allowed})"
    elif number == errno.EAGAIN or isinstance(error, RuntimeError):
        what = "no process or thread can be started (see `ulimit -u`, or the container's limit of processes)"
    else:
        what = "no memory is free (see the container's limit, `ulimit -v`, `df /dev/shm`)"
    return f"{what}: {type(error).__name__}: {error}"


def persist(do: Callable[[], _T], what: str) -> _T:
    """What `do` returns; where it meets a shortage it is called again, for up to `PATIENCE_S`.

    Raises:
        LoaderError: the shortage did not pass.
    """
    end = time.monotonic() + PATIENCE_S
    pause_s = 0.01
    while True:
        try:
            return do()
        except (OSError, MemoryError, RuntimeError) as error:
            number = error.errno if isinstance(error, OSError) else None
            if not is_shortage(error) and number not in {*_MEMORY, errno.EAGAIN}:
                raise
            if time.monotonic() >= end:
                raise LoaderError(f"{what}: for {PATIENCE_S:.0f} s {described(error)}") from error
            if pause_s == 0.01:
                _log.warning("%s: %s; it is tried again for up to %.0f s", what, described(error), PATIENCE_S)
        heartbeat.sleep(pause_s)
        pause_s = min(2 * pause_s, 0.5)
