"""The answer of an HTTP server to a request for a range: its head checked, its body handed on.

In: a response of urllib3 whose body was not read yet. Out: the bytes of the range; each received block is handed on at
once, so that a fault loses nothing that came before it.
Never: a body that was decoded; an answer whose head does not fit the range asked for, the size in the shard list, or
the version that the reading began with.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from streampack.storage.objects import Keep, Pin

BLOCK_BYTES = 256 * 1024
"""Bytes of one read: one system call, which returns less where less has arrived."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer whose head is here and whose body is not."""

    response: Any
    """Of urllib3."""
    status: int
    """200 or 206."""
    headers: Mapping[str, str]
    """By names in lower case, or without regard to case."""
    version: str | None
    """The object's version, from the headers; None: they have none."""


def receive(answer: Answer, pin: Pin, start: int, stop: int, keep: Keep) -> None:
    """Hand on the body of an answer to a request for the bytes from `start` to `stop`, after a check of its head.

    Raises:
        ShardError: the object is another one than it was, or is shorter than the shard list says.
        OSError: the answer does not fit the request, or ends early.
    """
    response = answer.response
    try:
        missing, unwanted = _check_head(answer, pin, start, stop)
        received = 0
        while received != missing:
            block = response.read1(BLOCK_BYTES, decode_content=False)
            if not block:
                break
            received += len(block)
            pin.check_body(received, start)
            if unwanted < len(block):
                keep(block[unwanted:] if unwanted else block)
            unwanted = max(unwanted - len(block), 0)
        if missing is not None and received != missing:
            raise OSError(f"the answer ended after {received} of {missing} bytes")
        if answer.status != 206:
            pin.check(size=received, version=None, offset=start)
    except BaseException:  # an interrupt too, in the middle of the body
        response.close()  # what is left of the body is not waited for
        raise
    if response.length_remaining == 0:
        response.release_conn()
    else:
        response.close()


def _check_head(answer: Answer, pin: Pin, start: int, stop: int) -> tuple[int | None, int]:
    """Bytes of the body (None: not told), and how many of them come before `start`."""
    headers = answer.headers
    if answer.status == 206:
        told = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", headers.get("content-range", ""))
        if told is None or int(told[1]) != start or not start <= int(told[2]) < stop:
            came = headers.get("content-range")
            raise OSError(
                f"bytes {start}-{stop - 1} were asked for, and the answer "
                + ("does not say which it has (no Content-Range)" if came is None else f"has {came!r}")
            )
        pin.check(size=None if told[3] == "*" else int(told[3]), version=answer.version, offset=start)
        return int(told[2]) + 1 - start, 0
    length = headers.get("content-length", "")  # the server does not know ranges and sends the whole object
    pin.check(size=int(length) if length.isdigit() else None, version=answer.version, offset=start)
    pin.check_body(pin.size or 0, start)
    return pin.size, start
