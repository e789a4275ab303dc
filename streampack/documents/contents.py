"""The bytes of a member or a line in, what a document is made of out: a text, token ids, or a conversation.

Never true: that a text is anything but strict UTF-8, or is stripped (a BOM stays); that a pickle is loaded; that more
is made of the bytes than the limits allow, before they are known to be right. What cannot be used is a
`BadContentError`, which says why; whoever has called says where.
"""

import functools
import io
import re
import zlib
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import zstandard
from numpy.typing import NDArray

from streampack.errors import DocumentTooLongError, MissingFieldError, RecordError
from streampack.records import FREE_BYTES, MAX_RATIO, MAX_WINDOW_BYTES, BadRecord, Joined, Message, Tokens

# What numpy.save writes for a 1-D array of integers; any other header goes the slow way.
_NPY_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00(..)"
    rb"\{'descr': '([<>|][iu][1248])', 'fortran_order': (?:False|True), 'shape': \((\d{1,18}),\), \} *\n",
    re.DOTALL,
)
# A step of decompression: 4 KiB of zstd can become 128 MiB, which is how far above its limit a bomb gets.
_CHUNK_BYTES = 4096
_EXPLAIN_BYTES = 16 * 2**20
"""Python objects of JSON take up to thirty times its bytes; those of a larger record are not made to say what it is."""
_MAX_STREAMS = 2**20
"""In a row, in one member: each costs a decompressor of its own, and may hold nothing."""


class BadContentError(Exception):
    """Why a record is bad; `record` adds where."""

    def __init__(
        self,
        message: str,
        *,
        offset: int | None = None,
        kind: type[RecordError] = RecordError,
        extension: str | None = None,
    ) -> None:
        super().__init__(message)
        self.offset = offset
        self.kind = kind
        self.extension = extension

    def record(self, record: int, url: str, member: str, *, line_number: int = 0, start: int = 0) -> BadRecord:
        message = f"line {line_number}: {self}" if line_number else str(self)
        offset = self.offset if self.offset is None and not line_number else start + (self.offset or 0)
        return BadRecord(record=record, error=self.kind(message, url=url, member=member, offset=offset))


def check_size(size: int, limit: int) -> None:
    """Refuse a document of more bytes than `max_document_bytes`."""
    if size > limit:
        what = f"a document of {size:,} bytes, above max_document_bytes={limit:,}"
        raise BadContentError(what, kind=DocumentTooLongError)


def check_text_size(text: str, limit: int) -> None:
    """The same for a text, which counts as UTF-8."""
    if 4 * len(text) > limit:  # else UTF-8 cannot take more, and nothing need be encoded
        check_size(len(text.encode("utf-8", "surrogatepass")), limit)


def decompressed(data: bytes, extension: str, limit: int) -> bytes:
    """All that a `.gz` or `.zst` member holds, of one stream or several in a row; any other member as it is."""
    if not extension.endswith((".gz", ".zst")):
        return data
    gzip = extension.endswith(".gz")
    output, consumed, num_streams = io.BytesIO(), 0, 0
    zstd = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)
    stream: Any = None
    while consumed < len(data):
        if stream is None or stream.eof:
            if gzip and stream is not None and not data[consumed] and not data[consumed:].strip(b"\0"):
                break  # zeros may pad a .gz
            num_streams += 1
            if num_streams > _MAX_STREAMS:
                raise BadContentError(f"cannot be decompressed: more than {_MAX_STREAMS:,} streams in a row; join them")
            stream = zlib.decompressobj(31) if gzip else zstd.decompressobj()
        chunk = data[consumed : consumed + _CHUNK_BYTES]
        try:
            output.write(stream.decompress(chunk))
        except (zlib.error, zstandard.ZstdError) as error:
            raise BadContentError(f"cannot be decompressed ({error}); compressed byte {consumed:,} or later") from None
        consumed += len(chunk) - len(stream.unused_data)
        if output.tell() > limit:
            raise BadContentError(f"decompresses to more than {limit:,} bytes (max_member_bytes); split the member")
        if output.tell() > max(FREE_BYTES, MAX_RATIO * consumed):
            what = f"decompresses to {output.tell():,} bytes from {consumed:,}, more than {MAX_RATIO} times as many"
            raise BadContentError(f"{what}; if it is meant so, store it without compression")
    if stream is None or not stream.eof:
        raise BadContentError(f"cannot be decompressed: cut after {len(data):,} compressed bytes")
    return output.getvalue()


def utf8_text(data: bytes, limit: int) -> str:
    """All of it as text, a BOM too."""
    check_size(len(data), limit)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"not UTF-8: byte 0x{data[error.start]:02x}, {error.reason}"
        raise BadContentError(f"{found}; encodings are not guessed, convert the text", offset=error.start) from None


@functools.lru_cache(maxsize=16)
def _json_decoder(keys: tuple[str, ...], kind: type = str) -> msgspec.json.Decoder[Any]:
    """Makes a Python object of the string (or another kind) under `keys` only, not of what stands beside it."""
    wanted: Any = kind
    for key in reversed(keys):
        fields = [("value", wanted | msgspec.UnsetType, msgspec.UNSET)]
        wanted = msgspec.defstruct("Record", fields, rename={"value": key}, gc=False)
    return msgspec.json.Decoder(wanted)


def json_text(data: bytes, keys: tuple[str, ...], limit: int) -> str:
    """The string under the keys of a record."""
    try:
        text = _json_decoder(keys).decode(data)
        for _ in keys:
            text = text.value
    except (ValueError, AttributeError, RecursionError):
        text = None
    if not isinstance(text, str):
        text = _json_text_or_reason(data, keys)
    if len(data) > limit:  # a text is never longer than its JSON
        check_text_size(text, limit)
    return text


def _json_text_or_reason(data: bytes, keys: tuple[str, ...]) -> str:
    """The slow way to the same string, which knows why there is none."""
    value = _json_value(data, keys) if len(data) <= _EXPLAIN_BYTES else msgspec.json.decode(_json_raw(data, keys, str))
    if not isinstance(value, str):
        raise BadContentError(f"the value under {'.'.join(keys)!r} is {_json_kind(value)} and not a string")
    return value


def json_messages(data: bytes, keys: tuple[str, ...], limit: int) -> tuple[Message, ...]:
    """The conversation under the keys of a record."""
    if len(data) <= _EXPLAIN_BYTES:
        return check_messages(_json_value(data, keys), limit)
    raw = _json_raw(data, keys, list)
    if len(raw) > 3 * limit:  # a letter of two bytes is six as an escape
        what = f"a conversation of {len(raw):,} bytes of JSON, above three times max_document_bytes={limit:,}"
        raise BadContentError(what, kind=DocumentTooLongError)
    return check_messages(msgspec.json.decode(raw), limit)


def _json_raw(data: bytes, keys: tuple[str, ...], kind: type[str] | type[list[Any]]) -> bytes:
    """The JSON of the string or list under the keys of a large record, of which no objects are made."""
    value: Any
    try:
        value = _json_decoder(keys, msgspec.Raw).decode(data)
        for _ in keys:
            value = value.value
    except (ValueError, RecursionError) as error:
        raise BadContentError(f"broken JSON, or not an object where one must be: {error}") from None
    except AttributeError:
        value = msgspec.UNSET
    if value is msgspec.UNSET:
        raise BadContentError(f"no key {'.'.join(keys)!r}", kind=MissingFieldError)
    raw = bytes(value).lstrip()
    if not raw.startswith(b'"' if kind is str else b"["):
        raise BadContentError(f"the value under {'.'.join(keys)!r} is not {_json_kind(kind())}")
    return raw


def check_messages(value: object, limit: int) -> tuple[Message, ...]:
    """A conversation, checked as far as it can be without a template."""
    if not isinstance(value, (list, tuple)):
        raise BadContentError(f"messages are {_json_kind(value)} and not a list")
    if not value:
        raise BadContentError("messages are an empty list: a conversation has at least one")
    for number, message in enumerate(value):
        if not isinstance(message, dict):
            raise BadContentError(f"message {number} is {_json_kind(message)} and not an object with role and content")
        for key in ("role", "content"):
            if key not in message:
                there = ", ".join(map(str, message)) or "none"
                found = f"message {number} has no {key!r}; the keys there: {there:.200}"
                raise BadContentError(found, kind=MissingFieldError)
            if not isinstance(message[key], str):
                raise BadContentError(f"the {key} of message {number} is {_json_kind(message[key])} and not a string")
    check_size(sum(len(message["content"].encode("utf-8", "surrogatepass")) for message in value), limit)
    return tuple(value)


def _json_value(data: bytes, keys: tuple[str, ...]) -> object:
    """What stands under the keys, of any kind."""
    value: object
    try:
        value = msgspec.json.decode(data)
    except UnicodeDecodeError:
        try:
            data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadContentError(f"broken JSON: not UTF-8 ({error.reason})", offset=error.start) from None
        raise
    except (msgspec.DecodeError, RecursionError) as error:
        place = re.search(r" \(byte (\d+)\)", str(error))
        half = "; an escaped half of a surrogate pair is no text" if re.search(rb"\\u[dD][89a-fA-F]", data) else ""
        message = f"broken JSON: {error}".replace(place[0] if place else "\0", "") + half
        raise BadContentError(message, offset=int(place[1]) if place else None) from None
    for depth, key in enumerate(keys):
        path = ".".join(keys[:depth]) or "the record"
        if not isinstance(value, dict):
            raise BadContentError(f"{path} is {_json_kind(value)} and not an object with the key {key!r}")
        if key not in value:
            there = ", ".join(sorted(value)) or "none"
            raise BadContentError(f"{path} has no key {key!r}; the keys there: {there:.500}", kind=MissingFieldError)
        value = value[key]
    return value


def _json_kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def npy_tokens(data: bytes, limit: int) -> Tokens:
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
        return int32_tokens(np.frombuffer(data, dtype, count, offset))
    except ValueError as error:
        raise BadContentError(f"a .npy with {error}") from None


def joined_npy(members: Sequence[bytes], limit: int) -> Joined | None:
    """What `npy_tokens` gives of each, side by side, many times as fast.

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
        return Joined(int32_tokens(np.frombuffer(b"".join([data[size:] for data in members]), dtype)), lengths)
    except ValueError:
        return None


@functools.lru_cache(maxsize=16)
def _dtype(name: bytes) -> np.dtype[Any]:
    return np.dtype(name.decode())


def _npy_header(data: bytes) -> tuple[np.dtype[Any], int, int]:
    """dtype, length and offset of the values of any 1-D `.npy` of integers."""
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
def _unsigned(dtype: np.dtype[Any]) -> tuple[np.dtype[Any], int]:
    """The dtype that shows a negative value as a large one, so that one pass finds both, and the largest valid id."""
    unsigned = np.dtype(dtype.str.replace("i", "u"))
    return unsigned, min(2**31 - 1, int(np.iinfo(dtype).max))


def int32_tokens(tokens: NDArray[Any]) -> Tokens:
    """`tokens` as int32, without a copy where they are; a ValueError says why they cannot be token ids."""
    if not isinstance(tokens, np.ndarray) or tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise ValueError(f"tokens that are {array_kind(tokens)}; token ids are a 1-D NumPy array of integers")
    unsigned, largest = _unsigned(tokens.dtype)
    if tokens.size and np.maximum.reduce(tokens.view(unsigned)) > largest:
        raise ValueError(f"token ids from {tokens.min()} to {tokens.max()}; they must be from 0 to {2**31 - 1}")
    return tokens.astype(np.int32, copy=False)


def array_kind(value: object) -> str:
    """What it is, for an error."""
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
