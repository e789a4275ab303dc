"""What connects processes: sockets that carry file descriptors, and memory without a name.

In:    frames of a fixed size, each with descriptors.
Out:   the same frames; an end of file where the other process has gone.
Never: a frame without its descriptors: where this process has no room for them, the frame stays in the socket. A socket
       of the trainer in a process that the trainer forks, where it would hide the trainer's end. A descriptor that
       stands for standard input, output or error, also where those are closed.
"""

import array
import errno
import fcntl
import os
import socket
import sys
import tempfile
import weakref
from contextlib import suppress

_LINUX = sys.platform == "linux"
_PEEK = socket.MSG_PEEK if _LINUX else 0  # elsewhere a look gives no descriptors
_CLOSE_ON_EXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
_ours: "weakref.WeakSet[socket.socket] | None" = None


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected sockets: ours, which does not wait and which no forked process keeps, and that of another."""
    ours, theirs = (_moved(each) for each in socket.socketpair())
    ours.setblocking(False)
    _close_in_forks(ours)
    return ours, theirs


def memory() -> int:
    """A descriptor of empty memory, which is freed with its last descriptor or mapping."""
    if hasattr(os, "memfd_create"):
        return _above_stdio(os.memfd_create("streampack"))
    with tempfile.TemporaryFile() as file:  # has no name either
        return _above_stdio(os.dup(file.fileno()))


def send(channel: socket.socket, frame: bytes, descriptors: list[int]) -> None:
    """Send a frame; the descriptors stay open here."""
    if descriptors:
        socket.send_fds(channel, [frame], descriptors)
    else:
        channel.sendall(frame)


def receive(channel: socket.socket, size: int, most: int = 0) -> tuple[bytes, list[int]] | None:
    """The next frame of `size` bytes, with up to `most` descriptors; None: none has come yet.

    Raises:
        EOFError: the other end is closed.
        OSError: this process has no room for the descriptors (EMFILE). On Linux the frame can be received later.
    """
    try:
        how = socket.MSG_DONTWAIT | _PEEK | _CLOSE_ON_EXEC
        frame, ancillary, flags, _ = channel.recvmsg(size, socket.CMSG_SPACE(4 * most), how)
    except BlockingIOError:
        return None
    except ConnectionError as error:
        raise EOFError from error
    descriptors = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(data[: len(data) - len(data) % 4])
    if flags & socket.MSG_CTRUNC:
        for each in descriptors:
            os.close(each)
        raise OSError(errno.EMFILE, "no room for the descriptors of a message")
    if not frame:
        raise EOFError
    assert len(frame) == size, "a frame is written at once"
    if _PEEK:
        channel.recv(size)  # the frame that was looked at, which does not wait
    return frame, descriptors.tolist()


def is_open(descriptor: int) -> bool:
    """Whether this process has such a descriptor."""
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def open_stdio() -> None:
    """Let the numbers of standard input, output and error stand for nothing where the parent had them closed."""
    for descriptor in range(3):
        if not is_open(descriptor):
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


def _above_stdio(descriptor: int) -> int:
    if descriptor > 2:
        return descriptor
    try:
        return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(descriptor)


def _moved(made: socket.socket) -> socket.socket:
    return made if made.fileno() > 2 else socket.socket(fileno=_above_stdio(made.detach()))


def _close_in_forks(ours: socket.socket) -> None:
    global _ours  # noqa: PLW0603 (once for each process)
    if _ours is None:
        _ours = weakref.WeakSet()
        os.register_at_fork(after_in_child=_close)
    _ours.add(ours)


def _close() -> None:
    for each in list(_ours or ()):
        with suppress(OSError):
            each.close()
