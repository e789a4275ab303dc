"""One value as one file of shared memory without a name, to be sent between processes as a file descriptor.

In:    what can be pickled; its arrays are written as they are.
Out:   the descriptor, and on the other side the value, with arrays of its own.
Never: a name, so no file is left over. What was sent stays readable when its sender dies, and memory that is not
received is freed with the last descriptor.

    |- sizes of the parts -|- pickle -|- array -|- array -| ...      each part begins at a multiple of 64 bytes
"""

import os
import pickle
import tempfile
from typing import Any

import numpy as np

_ALIGNED = 64


def wrap(value: Any) -> int:
    """A file descriptor of memory that holds the value; the caller closes it."""
    buffers: list[pickle.PickleBuffer] = []
    pickled = memoryview(pickle.dumps(value, protocol=5, buffer_callback=buffers.append))
    parts = [pickled, *(buffer.raw() for buffer in buffers)]
    sizes = np.array([len(parts), *(part.nbytes for part in parts)], dtype=np.int64)
    descriptor = _memory()
    try:
        with open(descriptor, "wb", closefd=False) as file:
            for part in (sizes.data.cast("B"), *parts):
                file.write(part)
                file.write(bytes(-part.nbytes % _ALIGNED))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def unwrap(descriptor: int) -> Any:
    """The value; closes the descriptor."""
    with open(descriptor, "rb") as file:
        data = np.empty(os.fstat(descriptor).st_size, dtype=np.uint8)
        file.seek(0)
        file.readinto(data.data)
    count = int(data[:8].view(np.int64)[0])
    sizes = data[8 : 8 * (1 + count)].view(np.int64).tolist()
    at, parts = _aligned(8 * (1 + count)), list[memoryview]()
    for size in sizes:
        parts.append(data.data[at : at + size])
        at += _aligned(size)
    return pickle.loads(parts[0], buffers=parts[1:])  # noqa: S301 (from a process of our own)


def _aligned(size: int) -> int:
    return size + -size % _ALIGNED


def _memory() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("streampack")
    with tempfile.TemporaryFile() as file:  # has no name either
        return os.dup(file.fileno())
