"""The bytes of `.npy` members in, token ids out.

Out: int32 arrays [n], or a `BadContentError` that says why there are none.
Never: a pickle that is loaded; an id that is not in the vocabulary, or does not fit int32; a copy of more than the
limit allows.
"""

import functools
import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streampack.documents.contents import BadContentError, check_pointer, check_size
from streampack.records import Joined, Tokens

MAX_HEADER_BYTES = 2**16 + 10
"""What `numpy.save` may write before the values; a longer header is not read."""
# What numpy.save writes for a 1-D array of integers; any other header goes the slow way.
_NPY_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00(..)"
    rb"\{'descr': '([<>|][iu][1248])', 'fortran_order': (?:False|True), 'shape': \((\d{1,18}),\), \} *\n",
    re.DOTALL,
)


def npy_tokens(data: bytes, limit: int, vocab_size: int | None = None) -> Tokens:
    """Token ids, int32 [n], of a 1-D array of integers as `numpy.save` writes it."""
    header = _NPY_HEADER.match(data)
    if header is not None and int.from_bytes(header[1], "little") + 10 == header.end():
        dtype, count, offset = _dtype(header[2]), int(header[3]), header.end()
    else:
        dtype, count, offset = _npy_header(data)
    if len(data) - offset != count * dtype.itemsize:
        what = f"a .npy of {len(data) - offset:,} bytes after its header, which promises {count:,} of {dtype}"
        raise BadContentError(what)
    check_size(4 * count, limit)
    try:
        return int32_tokens(np.frombuffer(data, dtype, count, offset), vocab_size)
    except ValueError as error:
        raise BadContentError(f"a .npy with {error}") from None


def joined_npy(members: Sequence[bytes], limit: int, vocab_size: int | None = None) -> Joined | None:
    """The token ids that `npy_tokens` gives of each member, side by side, many times as fast.

    None: they are not all of one dtype and with the header that `numpy.save` writes, or one of them is bad.
    """
    header = _NPY_HEADER.match(members[0])
    if header is None or int.from_bytes(header[1], "little") + 10 != header.end():
        return None
    dtype, size = _dtype(header[2]), header.end()
    before_count = members[0][: header.start(3)]
    lengths = []
    for data in members:
        count, rest = divmod(len(data) - size, dtype.itemsize)
        if rest or data[:size] != (before_count + b"%d,), }" % count).ljust(size - 1) + b"\n":
            return None
        lengths.append(count)
    if 4 * max(lengths) > limit:
        return None
    try:
        joined = np.frombuffer(b"".join([data[size:] for data in members]), dtype)
        return Joined(int32_tokens(joined, vocab_size), lengths)
    except ValueError:
        return None


@functools.lru_cache(maxsize=16)
def _dtype(name: bytes) -> np.dtype[Any]:
    return np.dtype(name.decode())


def _npy_header(data: bytes) -> tuple[np.dtype[Any], int, int]:
    """dtype, length and offset of the values of any 1-D `.npy` of integers."""
    check_pointer(data)
    stream = io.BytesIO(data)
    numpy_format: Any = np.lib.format  # without types of its own
    try:
        version = numpy_format.read_magic(stream)
        read = numpy_format.read_array_header_1_0 if version == (1, 0) else numpy_format.read_array_header_2_0
        shape, _, dtype = read(stream, max_header_size=10_000)
    except Exception as error:  # noqa: BLE001 - numpy parses it as Python: broken bytes can raise nearly anything
        raise BadContentError(f"not a .npy array ({error})") from None
    if not all(0 <= size < 2**60 for size in shape):  # of more digits than Python prints, perhaps
        raise BadContentError("not a .npy array (a size in its shape is absurd)")
    if len(shape) != 1 or dtype.kind not in "iu":
        raise BadContentError(f"a .npy of {dtype} {list(shape)}; token ids are a 1-D array of integers")
    return dtype, shape[0], stream.tell()


@functools.lru_cache(maxsize=16)
def _unsigned(dtype: np.dtype[Any], vocab_size: int | None) -> tuple[np.dtype[Any], int]:
    """The dtype that shows a negative value as a large one, so that one pass finds both, and the largest valid id."""
    unsigned = np.dtype(dtype.str.replace("i", "u"))
    return unsigned, min(2**31 - 1, int(np.iinfo(dtype).max), 2**31 if vocab_size is None else vocab_size - 1)


def int32_tokens(tokens: NDArray[Any], vocab_size: int | None = None) -> Tokens:
    """`tokens` as int32, without a copy where they are; a ValueError says why they cannot be token ids.

    `vocab_size`: they must be below it; None: there is no tokenizer that would tell.
    """
    if not isinstance(tokens, np.ndarray) or tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise ValueError(f"tokens that are {array_kind(tokens)}; token ids are a 1-D NumPy array of integers")
    unsigned, largest = _unsigned(tokens.dtype, vocab_size)
    if tokens.size and np.maximum.reduce(tokens.view(unsigned)) > largest:
        whose = "" if vocab_size is None else f", as the tokenizer has vocab_size={vocab_size}"
        high = min(2**31, vocab_size or 2**31) - 1
        raise ValueError(f"token ids from {tokens.min()} to {tokens.max()}; they must be from 0 to {high}{whose}")
    return tokens.astype(np.int32, copy=False)


def array_kind(value: object) -> str:
    """In words, what kind of value it is; for an error."""
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
