"""Frames with descriptors between processes, and what becomes of them when descriptors run out."""

import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from streampack.loader import channels


@contextmanager
def no_descriptor_free() -> Iterator[None]:
    """This process cannot open anything."""
    lowest = os.dup(0)
    os.close(lowest)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = channels.pair()
    with ours, theirs:
        yield ours, theirs


def send_text(channel: socket.socket, frame: bytes, text: bytes) -> None:
    memory = channels.memory()
    os.write(memory, text)
    channels.send(channel, frame, [memory])
    os.close(memory)


def received(channel: socket.socket, size: int) -> tuple[bytes, bytes] | None:
    found = channels.receive(channel, size, 1)
    if found is None:
        return None
    frame, (descriptor,) = found
    try:
        return frame, os.pread(descriptor, 100, 0)
    finally:
        os.close(descriptor)


def test_frames_come_in_order_each_with_its_descriptor(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    assert received(ours, 2) is None
    for number in range(3):
        send_text(theirs, b"%02d" % number, b"text %d" % number)
    assert [received(ours, 2) for _ in range(4)] == [(b"%02d" % n, b"text %d" % n) for n in range(3)] + [None]
    theirs.close()
    with pytest.raises(EOFError):
        received(ours, 2)


@pytest.mark.skipif(not channels._PEEK, reason="elsewhere the frame is lost, and its number is missed")
def test_a_frame_waits_until_a_descriptor_is_free(pair: tuple[socket.socket, socket.socket]) -> None:
    """The byte that comes without its descriptor would leave its place to the next frame."""
    ours, theirs = pair
    send_text(theirs, b"1st", b"one")
    send_text(theirs, b"2nd", b"two")
    with no_descriptor_free():
        for _ in range(3):
            with pytest.raises(OSError, match="no room for the descriptors"):
                channels.receive(ours, 3, 1)
    assert received(ours, 3) == (b"1st", b"one")
    assert received(ours, 3) == (b"2nd", b"two")


def test_a_process_that_is_forked_keeps_no_end_of_ours(pair: tuple[socket.socket, socket.socket]) -> None:
    """Or it would hide from the workers that the trainer has gone."""
    ours, theirs = pair
    child = os.fork()
    if child == 0:
        os._exit(ours.fileno() != -1 or theirs.fileno() == -1)
    assert os.waitpid(child, 0)[1] == 0
    assert ours.fileno() != -1


def test_no_descriptor_takes_the_place_of_standard_input_output_or_error() -> None:
    child = os.fork()
    if child == 0:
        os.closerange(0, 3)
        ours, theirs = channels.pair()
        memory = channels.memory()
        is_above = min(ours.fileno(), theirs.fileno(), memory) > 2
        channels.open_stdio()
        os._exit(not (is_above and all(map(channels.is_open, range(3)))))
    assert os.waitpid(child, 0)[1] == 0
