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

from streampack.errors import LoaderError
from streampack.metrics import heartbeat

PATIENCE_S = 30.0
"""Seconds after which a shortage is taken for one that does not pass."""

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


def is_shortage(error: BaseException) -> bool:
    """Whether an error, or what caused it, is that something of the machine's or the process's is used up."""
    return _short(error) is not None


def described(error: BaseException) -> str:
    """What is short, and where to look."""
    return f"{_short(error) or _MEMORY}: {type(error).__name__}: {error}"


_MEMORY = "no memory is free (see the container's limit, `ulimit -v`, `df /dev/shm`)"
_PROCESSES = "no process or thread can be started (see `ulimit -u`, or the container's limit of processes)"


def _short(error: BaseException | None) -> str | None:
    """What an error, or what caused it, says is short; None: it says no such thing."""
    while error is not None:
        number = error.errno if isinstance(error, OSError) else None
        if number in (errno.EMFILE, errno.ETOOMANYREFS):
            allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            return f"no file descriptor is free (`ulimit -n` allows this process {allowed})"
        if number == errno.ENFILE:
            return "no file descriptor is free on this machine (see `sysctl fs.file-max`)"
        if isinstance(error, MemoryError) or number == errno.ENOMEM:
            return _MEMORY
        if isinstance(error, RuntimeError) and "start new thread" in str(error):
            return _PROCESSES
        error = error.__cause__
    return None


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
            # EAGAIN: of a fork; ENOSPC and ENOBUFS: of shared memory and of sockets
            number = error.errno if isinstance(error, OSError) else None
            if not is_shortage(error) and number not in (errno.EAGAIN, errno.ENOSPC, errno.ENOBUFS):
                raise
            why = described(error) if number != errno.EAGAIN else f"{_PROCESSES}: {error}"
            if time.monotonic() >= end:
                raise LoaderError(f"{what}: for {PATIENCE_S:.0f} s {why}") from error
            if pause_s == 0.01:
                _log.warning("%s: %s; it is tried again for up to %.0f s", what, why, PATIENCE_S)
        heartbeat.sleep(pause_s)
        pause_s = min(2 * pause_s, 0.5)
