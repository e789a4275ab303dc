"""The JSON of a record in, the text under the keys of the field out; `conversations` reads messages.

Out: a string, or a `BadContentError` that says why there is none. A byte order mark before the record is passed over,
and so are NaN and Infinity, which Python's json writes, in values that are not asked for.
Never: Python objects made of the other values, except to say what is wrong with a small record.
"""

import functools
import re
from typing import Any

import msgspec

from streampack.documents.contents import BadContentError, check_pointer, check_text_size, encoding_of
from streampack.errors import MissingFieldError

BOM = b"\xef\xbb\xbf"
_NOT_JSON = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|\bNaN\b|-?\bInfinity\b', re.DOTALL)
"""A string, or a number that Python's json writes though JSON has no such number."""
_EDGE_BYTES = 1024
"""Bytes at the begin and the end of a member in which the first and the last that are not blank are looked for."""
EXPLAIN_BYTES = 16 * 2**20
"""Bytes of the largest record of which Python objects are made for an error: they take up to thirty times its bytes."""


@functools.lru_cache(maxsize=16)
def _json_decoder(keys: tuple[str, ...], kind: type = str) -> msgspec.json.Decoder[Any]:
    """A decoder that makes a Python object of the string (or another kind) under `keys` only."""
    wanted: Any = kind
    for key in reversed(keys):
        fields = [("value", wanted | msgspec.UnsetType, msgspec.UNSET)]
        wanted = msgspec.defstruct("Record", fields, rename={"value": key}, gc=False)
    return msgspec.json.Decoder(wanted)


def json_text(data: bytes, keys: tuple[str, ...], limit: int) -> str:
    """The string under the keys of a record."""
    text = _json_string(data, keys)
    if text is None:
        data = without_marks(data)
        text = _json_string(data, keys)
    if text is None:
        text = _json_text_or_reason(data, keys)
    if len(data) > limit:  # a text is never longer than its JSON
        check_text_size(text, limit)
    return text


def _json_string(data: bytes, keys: tuple[str, ...]) -> str | None:
    """The string under the keys; None where there is none, or anything is wrong."""
    try:
        text = _json_decoder(keys).decode(data)
        for _ in keys:
            text = text.value
    except (ValueError, AttributeError, RecursionError):
        return None
    return text if isinstance(text, str) else None


def without_marks(data: bytes, *, number: bytes = b"0") -> bytes:
    """The record without a byte order mark, and with `number` for the numbers that are none in JSON."""
    data = data.removeprefix(BOM)
    if b"NaN" not in data and b"Infinity" not in data:
        return data
    return _NOT_JSON.sub(lambda found: found[0] if found[0].startswith(b'"') else number, data)


def check_lines(data: bytes) -> None:
    """Refuse a member that holds no JSON lines but one JSON array, or UTF-16, before each of its lines is bad."""
    if (other := encoding_of(data)) is not None:
        raise BadContentError(f"{other}; encodings are not guessed, convert the text")
    head = data[:_EDGE_BYTES].removeprefix(BOM).lstrip()
    if head.startswith(b"[") and data[-_EDGE_BYTES:].rstrip().endswith(b"]") and not _has_lines(data):
        raise BadContentError("one JSON array and not JSON lines: write each of its records in a line of its own")


def _has_lines(data: bytes) -> bool:
    """Whether the first of several lines is a JSON value by itself, so that all of them cannot be one."""
    first, _, rest = data.removeprefix(BOM).lstrip().partition(b"\n")
    if not rest or rest.isspace():
        return False
    try:
        msgspec.json.decode(without_marks(first), type=msgspec.Raw)
    except (ValueError, RecursionError):
        return False
    return True


def _json_text_or_reason(data: bytes, keys: tuple[str, ...]) -> str:
    """The same string, found more slowly, or an error that says why there is none."""
    value = json_value(data, keys) if len(data) <= EXPLAIN_BYTES else msgspec.json.decode(_json_raw(data, keys))
    if not isinstance(value, str):
        raise BadContentError(f"the value under {'.'.join(keys)!r} is {json_kind(value)} and not a string")
    return value


def _json_raw(data: bytes, keys: tuple[str, ...]) -> bytes:
    """The JSON of the string under the keys of a large record, of which no objects are made."""
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
    if not raw.startswith(b'"'):
        raise BadContentError(f"the value under {'.'.join(keys)!r} is not a string")
    return raw


def json_value(data: bytes, keys: tuple[str, ...]) -> object:
    """The value under the keys, of any kind."""
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
        check_pointer(data)
        place = re.search(r" \(byte (\d+)\)", str(error))
        half = "; an escaped half of a surrogate pair is not text" if re.search(rb"\\u[dD][89a-fA-F]", data) else ""
        message = f"broken JSON: {error}".replace(place[0] if place else "\0", "") + half
        message += _advice(str(error), data, max(int(place[1]) - 1, 0) if place else 0)
        raise BadContentError(message, offset=int(place[1]) if place else None) from None
    for depth, key in enumerate(keys):
        path = ".".join(keys[:depth]) or "the record"
        if not isinstance(value, dict):
            raise BadContentError(f"{path} is {json_kind(value)} and not an object with the key {key!r}")
        if key not in value:
            there = ", ".join(sorted(value)) or "none"
            message = f"{path} has no key {key!r}; the keys there: {there:.500}; field= (--field) says which is read"
            raise BadContentError(message, kind=MissingFieldError)
        value = value[key]
    return value


def _advice(error: str, data: bytes, place: int) -> str:
    """What may have been meant, where there is more or less than one record; `place`: the byte that is too much."""
    if "trailing characters" in error and data[place:].strip() == b",":
        return "; there is a comma after the record: lines of JSON have none between them"
    if "trailing characters" in error and data[:place].endswith(b"\r"):
        return "; its lines end with CR alone: end them with LF"
    if "trailing characters" in error and data[place : place + 1] in (b"{", b"[") and b"\n" not in data.strip():
        return "; there are two records in one line: each must have a line of its own"
    if "trailing characters" in error and b"\n" in data.strip():
        return "; several records, one in a line, are .jsonl: field='jsonl:KEY'"
    if "truncated" in error and data.lstrip().startswith((b"{", b"[")):
        return "; is one record written over several lines? A member .jsonl has one record in each line"
    return "; it holds NUL bytes, as UTF-16 does" if b"\0" in data else ""


def json_kind(value: object) -> str:
    """What JSON calls a value of this kind, for an error."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
