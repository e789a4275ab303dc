"""One value as one file of shared memory without a name, to be sent between processes as a file descriptor.

In:    what can be pickled; its arrays are written as they are.
Out:   the descriptor, and on the other side the value, with arrays of its own.
Never: a name, so no file is left over. What was sent stays readable when its sender dies, and memory that is not
received is freed with the last descriptor.

    |- sizes of the parts -|- pickle -|- array -|- array -| ...      each part begins at a multiple of 64 bytes
"""

import io
import os
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np

from streampack.loader import channels

_ALIGNED = 64


def wrap(value: Any, pickler: Callable[..., pickle.Pickler] = pickle.Pickler) -> int:
    """A file descriptor of memory that holds the value; the caller closes it."""
    buffers: list[pickle.PickleBuffer] = []
    pickled = io.BytesIO()
    pickler(pickled, protocol=5, buffer_callback=buffers.append).dump(value)
    parts = [pickled.getbuffer(), *(buffer.raw() for buffer in buffers)]
    sizes = np.array([len(parts), *(part.nbytes for part in parts)], dtype=np.int64)
    descriptor = channels.memory()
    try:
        with open(descriptor, "wb", closefd=False) as file:
            for part in (sizes.data.cast("B"), *parts):
                file.write(part)
                file.write(bytes(-part.nbytes % _ALIGNED))
    except BaseException:  # an interrupt too: the memory would stay
        os.close(descriptor)
        raise
    return descriptor


def unwrap(descriptor: int, unpickler: Callable[..., pickle.Unpickler] = pickle.Unpickler) -> Any:
    """The value; the descriptor stays open, as other processes may unwrap the same parcel."""
    data = np.empty(os.fstat(descriptor).st_size, dtype=np.uint8)
    at = 0
    while at < len(data):  # not by the file's position, which all of these processes share
        num_read = os.preadv(descriptor, [data.data[at:]], at)
        if not num_read:
            raise EOFError("a parcel that was cut short")
        at += num_read
    count = int(data[:8].view(np.int64)[0])
    sizes = data[8 : 8 * (1 + count)].view(np.int64).tolist()
    at, parts = _aligned(8 * (1 + count)), list[memoryview]()
    for size in sizes:
        parts.append(data.data[at : at + size])
        at += _aligned(size)
    return unpickler(io.BytesIO(parts[0]), buffers=parts[1:]).load()


def _aligned(size: int) -> int:
    return size + -size % _ALIGNED
