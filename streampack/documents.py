"""Samples in, documents out: the member that `field` names becomes text or tokens, then split and transform.

In:  a `Sample` (the bytes of its members), and where it stands: shard, epoch, position.
Out: its `Document`s in record order, and a `BadRecord` in the place of each one that cannot be read. The caller
     raises its error or skips it; what comes before and after stays as it is.

    field        member                       documents
    txt          .txt                         its text
    json:KEY     .json                        the string under KEY; `a.b` is the key b of the object under a
    jsonl:KEY    .jsonl .jsonl.gz .jsonl.zst  one per line; blank lines have no record index
    npy          .npy                         token ids, a 1-D array of integers

Under the key `messages` stands a conversation, a list of objects with strings under `role` and `content`; `chat` makes
its tokens and its loss mask, behind the transform.

The member is the one with exactly that extension, else the only one whose extension ends in it (`page.txt`).

Never true: that a text is anything but strict UTF-8, or is stripped (a BOM stays); that a part of a compressed member
gives documents, or a part of what a transform made of a record; that a pickle is loaded; that a choice depends on
anything but the arguments. What stands under other JSON keys is checked for JSON's syntax only.
"""

import dataclasses
import functools
import io
import re
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import msgspec
import numpy as np
import zstandard
from numpy.typing import NDArray

from streampack import hashing, progress
from streampack.errors import ConfigError, DocumentTooLongError, MissingFieldError, RecordError
from streampack.records import BadRecord, Document, Mask, Message, Sample, Tokens

Transform = Callable[[Document, np.random.Generator], Document | list[Document] | None]

_EXTENSIONS = {"txt": ("txt",), "json": ("json",), "jsonl": ("jsonl", "jsonl.gz", "jsonl.zst"), "npy": ("npy",)}
# What numpy.save writes for a 1-D array of integers; any other header goes the slow way.
_NPY_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00(..)"
    rb"\{'descr': '([<>|][iu][1248])', 'fortran_order': (?:False|True), 'shape': \((\d{1,18}),\), \} *\n",
    re.DOTALL,
)
# A step of decompression: 4 KiB of zstd can become 128 MiB, which is how far above its limit a bomb gets.
_CHUNK_BYTES = 4096
_MAX_RATIO = 200
"""What decompresses to more than so many times its size is no text, once it is above the free bytes."""
_FREE_BYTES = 64 * 2**20
_NPY_HEADER_BYTES = 2**16 + 10
_EXPLAIN_BYTES = 16 * 2**20
"""Python objects of JSON take up to thirty times its bytes; those of a larger record are not made to say what it is."""
_MAX_STREAMS = 2**20
"""In a row, in one member: each costs a decompressor of its own, and may hold nothing."""
_MAX_WINDOW_BYTES = 2**27
"""Of zstd: what `zstd --long` writes and reads without being asked for more."""


@dataclasses.dataclass(frozen=True, slots=True)
class Field:
    """Which member of a sample holds the documents, and where in it; `parse_field` makes one."""

    kind: Literal["txt", "json", "jsonl", "npy"]
    keys: tuple[str, ...] = ()
    """For JSON: the key, after the keys of the objects around it."""

    def __str__(self) -> str:
        return f"{self.kind}:{'.'.join(self.keys)}" if self.keys else self.kind

    @property
    def is_chat(self) -> bool:
        """Whether a document is a conversation."""
        return self.keys[-1:] == ("messages",)

    @property
    def holds_many(self) -> bool:
        """Whether a member holds many documents, so that its size says nothing of theirs."""
        return self.kind == "jsonl"

    def wanted(self, extension: str) -> bool:
        """Whether a member with this extension may be the one, so that it must be read."""
        names = _EXTENSIONS[self.kind]
        return extension in names or any(extension.endswith(f".{name}") for name in names)


def parse_field(field: str) -> Field:
    """The record for `"txt"`, `"json:KEY"`, `"jsonl:KEY"` or `"npy"`.

    Raises:
        ConfigError: it is none of these.
    """
    kind, colon, path = field.partition(":")
    keys = tuple(path.split(".")) if colon else ()
    if kind in ("json", "jsonl") and not all(keys or ("",)):
        raise ConfigError(f"field={field!r} names no key: write {kind + ':text'!r}, or {kind + ':meta.text'!r}")
    if kind not in _EXTENSIONS or (colon and kind in ("txt", "npy")):
        raise ConfigError(f"field={field!r} is not known: 'txt', 'json:KEY', 'jsonl:KEY' and 'npy' are")
    return Field(kind, keys)  # type: ignore[arg-type]  # a key of _EXTENSIONS


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DocumentReader:
    """Reads the documents of one sample after another; all of it is configuration, none of it state."""

    field: Field
    transform: Transform | None = None
    transform_version: str | None = None
    split: Literal["train", "val"] | None = None
    val_fraction: float = 0.0
    seed: int = 0
    max_document_bytes: int = 64 * 2**20
    """Of UTF-8 text, or four times the number of tokens."""
    max_member_bytes: int = 2**30
    """What a compressed member may decompress to."""
    chat: Callable[[Sequence[Message]], tuple[Tokens, Mask]] | None = None
    """Makes ids and a loss mask of a conversation; its RecordError is a bad record."""

    @property
    def member_bytes(self) -> int:
        """The most that is read of one member: of a larger one the size in its header says that it is too long."""
        limit = self.max_document_bytes
        by_kind = {"txt": limit, "npy": 2 * limit + _NPY_HEADER_BYTES, "json": max(8 * limit, _FREE_BYTES)}
        return min(by_kind.get(self.field.kind, self.max_member_bytes), self.max_member_bytes)

    def __post_init__(self) -> None:
        if self.split not in (None, "train", "val"):
            raise ConfigError(f"split={self.split!r} is not known: None, 'train' and 'val' are")
        if not 0 <= self.val_fraction < 1:
            raise ConfigError(f"val_fraction={self.val_fraction} must be at least 0 and below 1")
        if self.split == "val" and not self.val_fraction:
            raise ConfigError("split='val' with val_fraction=0 holds nothing: give the fraction of the training run")
        if self.split is None and self.val_fraction:
            warnings.warn(f"val_fraction={self.val_fraction} has no effect without a split", stacklevel=3)

    def read(
        self,
        sample: Sample,
        *,
        url: str,
        shard_name: str,
        shard_index: int,
        epoch: int,
        position: int,
        first_record: int = 0,
        first_part: int = 0,
    ) -> Iterable[Document | BadRecord]:
        """The documents of `sample`, from part `first_part` of record `first_record` on.

        Args:
            sample: the members that the field wants, and the sizes of all.
            url: the shard, for errors.
            shard_name: the shard's name; its last component, the key and the record decide on the split.
            shard_index: the shard's index as listed; with seed, epoch, position and record it seeds the transform.
            epoch: the epoch that the lane is in.
            position: the sample's byte offset in a plain tar, its ordinal in a compressed one.
            first_record: records before it are neither parsed nor given.
            first_part: parts of `first_record` before it are not given.

        Raises:
            ConfigError: the transform returned what is no document. What it raises passes as it is, with a note.
        """
        if self.field.holds_many:
            items: Iterable[Document | BadRecord] = self._read_many(sample, url, shard_name, position, first_record)
        else:
            item = self._read_one(sample, url, shard_name, position) if first_record == 0 else None
            items = () if item is None else (item,)
        if self.transform is None and self.chat is None and not first_part:
            return items
        return self._parts(items, url, shard_index, epoch, position, first_record, first_part)

    def _parts(
        self,
        items: Iterable[Document | BadRecord],
        url: str,
        shard_index: int,
        epoch: int,
        position: int,
        first_record: int,
        first_part: int,
    ) -> Iterator[Document | BadRecord]:
        """What becomes of the records, from part `first_part` of record `first_record` on."""
        for item in items:
            progress.beat()  # many records may go by without giving a document
            first = first_part if item.record == first_record else 0
            if self.transform is None or isinstance(item, BadRecord):
                if first == 0:
                    yield self._in_tokens(item)
                continue
            rng = hashing.generator(self.seed, epoch, shard_index, position, item.record)
            try:
                parts = _transformed(item, self.transform, rng, self.max_document_bytes)
            except _BadError as bad:
                yield bad.record(item.record, url, item.key)
            else:
                yield from map(self._in_tokens, parts[first:])

    def _in_tokens(self, item: Document | BadRecord) -> Document | BadRecord:
        """A conversation as tokens; anything else as it is."""
        if isinstance(item, BadRecord) or item.messages is None:
            return item
        assert self.chat is not None, "the dataset demands a chat template for messages"
        try:
            tokens, mask = self.chat(item.messages)
        except RecordError as error:
            named = type(error)(error.message, url=item.url, member=item.key)
            return BadRecord(record=item.record, error=named, part=item.part)
        return dataclasses.replace(item, messages=None, tokens=tokens, loss_mask=mask)

    def _chosen(self, shard_name: str, key: str, record: int) -> bool:
        if self.split is None:
            return True
        name = shard_name.rpartition("/")[2]
        held_out = hashing.is_held_out(name=name, key=key, record=record, fraction=self.val_fraction)
        return held_out == (self.split == "val")

    def _read_one(self, sample: Sample, url: str, shard_name: str, position: int) -> Document | BadRecord | None:
        """Of a member that is one document: record 0, or None where it is of the other split."""
        if not self._chosen(shard_name, sample.key, 0):
            return None
        text, tokens, messages, extension = None, None, None, None
        try:
            extension, data = self._member(sample)
            if self.field.kind == "npy":
                tokens = _npy_tokens(data, self.max_document_bytes)
            elif self.field.is_chat:
                messages = _json_messages(data, self.field.keys, self.max_document_bytes)
            elif self.field.kind == "json":
                text = _json_text(data, self.field.keys, self.max_document_bytes)
            else:
                text = _utf8_text(data, self.max_document_bytes)
        except _BadError as bad:
            extension = extension or bad.extension
            return bad.record(0, url, f"{sample.key}.{extension}" if extension else sample.key)
        return Document(text=text, tokens=tokens, messages=messages, key=sample.key, url=url, sample=position)

    def _read_many(
        self, sample: Sample, url: str, shard_name: str, position: int, first_record: int
    ) -> Iterator[Document | BadRecord]:
        """Of a member of JSON lines; offsets in errors are those in the decompressed member."""
        key = member = sample.key
        try:
            extension, data = self._member(sample)
            member = f"{member}.{extension}"
            data = _decompressed(data, extension, self.max_member_bytes)
        except _BadError as bad:
            yield bad.record(-1, url, f"{key}.{bad.extension}" if bad.extension else member)
            return
        record, line_number, start = -1, 0, 0
        while start < len(data):
            end = data.find(b"\n", start)
            end = len(data) if end < 0 else end
            line = data[start:end]
            line_number += 1
            if line and not line.isspace():
                record += 1
                if record >= first_record and self._chosen(shard_name, key, record):
                    text, messages = None, None
                    try:
                        if self.field.is_chat:
                            messages = _json_messages(line, self.field.keys, self.max_document_bytes)
                        else:
                            text = _json_text(line, self.field.keys, self.max_document_bytes)
                    except _BadError as bad:
                        yield bad.record(record, url, member, line_number=line_number, start=start)
                    else:
                        yield Document(
                            text=text, messages=messages, key=key, url=url, record=record, sample=position
                        )
            start = end + 1

    def _member(self, sample: Sample) -> tuple[str, bytes]:
        """Extension and content of the one member that the field names."""
        names = _EXTENSIONS[self.field.kind]
        if len(names) == 1 and names[0] in sample.members:
            return names[0], sample.members[names[0]]
        there = sample.sizes or sample.members
        found = [name for name in names if name in there] or [name for name in there if self.field.wanted(name)]
        if not found:
            extensions = ", ".join(sorted(there)) or "none"
            message = f"no member for field={str(self.field)!r}; the sample's extensions: {extensions}"
            raise _BadError(message, kind=MissingFieldError)
        if len(found) > 1:
            raise _BadError(f"more than one member for field={str(self.field)!r}: {', '.join(sorted(found))}; keep one")
        if found[0] not in sample.members:
            raise self._not_read(found[0], sample.sizes[found[0]])
        return found[0], sample.members[found[0]]

    def _not_read(self, extension: str, size: int) -> "_BadError":
        """Why the reader has not read a member of the sample."""
        limit = self.max_document_bytes
        if size <= self.member_bytes:
            message = f".{extension} is a sparse file, or the sample has too much in other members that may be the one"
            return _BadError(f"{message}; write it again with one, as an ordinary file", extension=extension)
        message = f"{size:,} bytes in .{extension}, more than is read of one member ({self.member_bytes:,})"
        if self.field.kind == "txt":
            message = f"a document of {size:,} bytes, above max_document_bytes={limit:,}"
        return _BadError(message, kind=DocumentTooLongError, extension=extension)


class _BadError(Exception):
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


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise _BadError(f"a document of {size:,} bytes, above max_document_bytes={limit:,}", kind=DocumentTooLongError)


def _check_text_size(text: str, limit: int) -> None:
    if 4 * len(text) > limit:  # else UTF-8 cannot take more, and nothing need be encoded
        _check_size(len(text.encode("utf-8", "surrogatepass")), limit)


def _decompressed(data: bytes, extension: str, limit: int) -> bytes:
    """All that a `.gz` or `.zst` member holds, of one stream or several in a row; any other member as it is."""
    if not extension.endswith((".gz", ".zst")):
        return data
    gzip = extension.endswith(".gz")
    output, consumed, num_streams = io.BytesIO(), 0, 0
    zstd = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES)
    stream: Any = None
    while consumed < len(data):
        if stream is None or stream.eof:
            if gzip and stream is not None and not data[consumed] and not data[consumed:].strip(b"\0"):
                break  # zeros may pad a .gz
            num_streams += 1
            if num_streams > _MAX_STREAMS:
                raise _BadError(f"cannot be decompressed: more than {_MAX_STREAMS:,} streams in a row; join them")
            stream = zlib.decompressobj(31) if gzip else zstd.decompressobj()
        chunk = data[consumed : consumed + _CHUNK_BYTES]
        try:
            output.write(stream.decompress(chunk))
        except (zlib.error, zstandard.ZstdError) as error:
            raise _BadError(f"cannot be decompressed ({error}); compressed byte {consumed:,} or later") from None
        consumed += len(chunk) - len(stream.unused_data)
        if output.tell() > limit:
            raise _BadError(f"decompresses to more than {limit:,} bytes (max_member_bytes); split the member")
        if output.tell() > max(_FREE_BYTES, _MAX_RATIO * consumed):
            what = f"decompresses to {output.tell():,} bytes from {consumed:,}, more than {_MAX_RATIO} times as many"
            raise _BadError(f"{what}; if it is meant so, store it without compression")
    if stream is None or not stream.eof:
        raise _BadError(f"cannot be decompressed: cut after {len(data):,} compressed bytes")
    return output.getvalue()


def _utf8_text(data: bytes, limit: int) -> str:
    _check_size(len(data), limit)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"not UTF-8: byte 0x{data[error.start]:02x}, {error.reason}"
        raise _BadError(f"{found}; encodings are not guessed, convert the text", offset=error.start) from None


@functools.lru_cache(maxsize=16)
def _json_decoder(keys: tuple[str, ...], kind: type = str) -> msgspec.json.Decoder[Any]:
    """Makes a Python object of the string (or another kind) under `keys` only, not of what stands beside it."""
    wanted: Any = kind
    for key in reversed(keys):
        fields = [("value", wanted | msgspec.UnsetType, msgspec.UNSET)]
        wanted = msgspec.defstruct("Record", fields, rename={"value": key}, gc=False)
    return msgspec.json.Decoder(wanted)


def _json_text(data: bytes, keys: tuple[str, ...], limit: int) -> str:
    try:
        text = _json_decoder(keys).decode(data)
        for _ in keys:
            text = text.value
    except (ValueError, AttributeError, RecursionError):
        text = None
    if not isinstance(text, str):
        text = _json_text_or_reason(data, keys)
    if len(data) > limit:  # a text is never longer than its JSON
        _check_text_size(text, limit)
    return text


def _json_text_or_reason(data: bytes, keys: tuple[str, ...]) -> str:
    """The slow way to the same string, which knows why there is none."""
    value = _json_value(data, keys) if len(data) <= _EXPLAIN_BYTES else msgspec.json.decode(_json_raw(data, keys, str))
    if not isinstance(value, str):
        raise _BadError(f"the value under {'.'.join(keys)!r} is {_json_kind(value)} and not a string")
    return value


def _json_messages(data: bytes, keys: tuple[str, ...], limit: int) -> tuple[Message, ...]:
    if len(data) <= _EXPLAIN_BYTES:
        return _messages(_json_value(data, keys), limit)
    raw = _json_raw(data, keys, list)
    if len(raw) > 3 * limit:  # a letter of two bytes is six as an escape
        what = f"a conversation of {len(raw):,} bytes of JSON, above three times max_document_bytes={limit:,}"
        raise _BadError(what, kind=DocumentTooLongError)
    return _messages(msgspec.json.decode(raw), limit)


def _json_raw(data: bytes, keys: tuple[str, ...], kind: type[str] | type[list[Any]]) -> bytes:
    """The JSON of the string or list under the keys of a large record, of which no objects are made."""
    value: Any
    try:
        value = _json_decoder(keys, msgspec.Raw).decode(data)
        for _ in keys:
            value = value.value
    except (ValueError, RecursionError) as error:
        raise _BadError(f"broken JSON, or not an object where one must be: {error}") from None
    except AttributeError:
        value = msgspec.UNSET
    if value is msgspec.UNSET:
        raise _BadError(f"no key {'.'.join(keys)!r}", kind=MissingFieldError)
    raw = bytes(value).lstrip()
    if not raw.startswith(b'"' if kind is str else b"["):
        raise _BadError(f"the value under {'.'.join(keys)!r} is not {_json_kind(kind())}")
    return raw


def _messages(value: object, limit: int) -> tuple[Message, ...]:
    """A conversation, checked as far as it can be without a template."""
    if not isinstance(value, (list, tuple)):
        raise _BadError(f"messages are {_json_kind(value)} and not a list")
    if not value:
        raise _BadError("messages are an empty list: a conversation has at least one")
    for number, message in enumerate(value):
        if not isinstance(message, dict):
            raise _BadError(f"message {number} is {_json_kind(message)} and not an object with role and content")
        for key in ("role", "content"):
            if key not in message:
                there = ", ".join(map(str, message)) or "none"
                found = f"message {number} has no {key!r}; the keys there: {there:.200}"
                raise _BadError(found, kind=MissingFieldError)
            if not isinstance(message[key], str):
                raise _BadError(f"the {key} of message {number} is {_json_kind(message[key])} and not a string")
    _check_size(sum(len(message["content"].encode("utf-8", "surrogatepass")) for message in value), limit)
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
            raise _BadError(f"broken JSON: not UTF-8 ({error.reason})", offset=error.start) from None
        raise
    except (msgspec.DecodeError, RecursionError) as error:
        place = re.search(r" \(byte (\d+)\)", str(error))
        half = "; an escaped half of a surrogate pair is no text" if re.search(rb"\\u[dD][89a-fA-F]", data) else ""
        message = f"broken JSON: {error}".replace(place[0] if place else "\0", "") + half
        raise _BadError(message, offset=int(place[1]) if place else None) from None
    for depth, key in enumerate(keys):
        path = ".".join(keys[:depth]) or "the record"
        if not isinstance(value, dict):
            raise _BadError(f"{path} is {_json_kind(value)} and not an object with the key {key!r}")
        if key not in value:
            there = ", ".join(sorted(value)) or "none"
            raise _BadError(f"{path} has no key {key!r}; the keys there: {there:.500}", kind=MissingFieldError)
        value = value[key]
    return value


def _json_kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _npy_tokens(data: bytes, limit: int) -> Tokens:
    header = _NPY_HEADER.match(data)
    if header is not None and int.from_bytes(header[1], "little") + 10 == header.end():
        dtype, count, offset = _dtype(header[2]), int(header[3]), header.end()
    else:
        dtype, count, offset = _npy_header(data)
    if len(data) - offset != count * dtype.itemsize:
        raise _BadError(f"a .npy of {len(data) - offset:,} bytes after its header, which promises {count:,} of {dtype}")
    _check_size(4 * count, limit)
    try:
        return _int32_tokens(np.frombuffer(data, dtype, count, offset))
    except ValueError as error:
        raise _BadError(f"a .npy with {error}") from None


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
        raise _BadError(f"not a .npy array ({error})") from None
    if not all(0 <= size < 2**60 for size in shape):  # of more digits than Python prints, perhaps
        raise _BadError("not a .npy array (a size in its shape is absurd)")
    if len(shape) != 1 or dtype.kind not in "iu":
        raise _BadError(f"a .npy of {dtype} {list(shape)}; token ids are a 1-D array of integers")
    return dtype, shape[0], stream.tell()


@functools.lru_cache(maxsize=16)
def _unsigned(dtype: np.dtype[Any]) -> tuple[np.dtype[Any], int]:
    """The dtype that shows a negative value as a large one, so that one pass finds both, and the largest valid id."""
    unsigned = np.dtype(dtype.str.replace("i", "u"))
    return unsigned, min(2**31 - 1, int(np.iinfo(dtype).max))


def _int32_tokens(tokens: NDArray[Any]) -> Tokens:
    """`tokens` as int32, without a copy where they are; a ValueError says why they cannot be token ids."""
    if not isinstance(tokens, np.ndarray) or tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise ValueError(f"tokens that are {_array_kind(tokens)}; token ids are a 1-D NumPy array of integers")
    unsigned, largest = _unsigned(tokens.dtype)
    if tokens.size and np.maximum.reduce(tokens.view(unsigned)) > largest:
        raise ValueError(f"token ids from {tokens.min()} to {tokens.max()}; they must be from 0 to {2**31 - 1}")
    return tokens.astype(np.int32, copy=False)


def _array_kind(value: object) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"


def _transformed(document: Document, transform: Transform, rng: np.random.Generator, limit: int) -> list[Document]:
    """All parts that the transform makes of a document, checked before the first of them is given."""
    name = getattr(transform, "__qualname__", type(transform).__qualname__)
    where = f"transform {name}, called with {document.url}, key {document.key!r}, record {document.record}"
    try:
        result = transform(document, rng)
    except Exception as error:
        error.add_note(f"raised by {where}")
        raise
    parts = result if isinstance(result, (list, tuple)) else () if result is None else (result,)
    try:
        return [_checked_part(part, document, index, limit) for index, part in enumerate(parts)]
    except ValueError as error:
        raise ConfigError(f"{where}, returned {error}") from None


def _checked_part(part: object, document: Document, index: int, limit: int) -> Document:
    """A part that a transform returned, put in its place; a ValueError says what is wrong with it."""
    if not isinstance(part, Document):
        remedy = "return dataclasses.replace(document, text=...), a list of documents or None"
        raise ValueError(f"a {type(part).__name__}: {remedy}")
    text, tokens, mask = part.text, part.tokens, part.loss_mask
    if document.messages is not None and text is not None:
        raise ValueError("a text made of a conversation: return messages, or tokens and a loss_mask")
    if (text is not None) + (tokens is not None) + (part.messages is not None) != 1:
        raise ValueError("a document without exactly one of text, tokens and messages: set the others to None")
    if tokens is not None:
        tokens = _int32_tokens(tokens)
        _check_size(4 * len(tokens), limit)
        is_mask = isinstance(mask, np.ndarray) and mask.dtype == bool and mask.shape == tokens.shape
        if mask is not None and not is_mask:
            raise ValueError(f"a loss_mask that is {_array_kind(mask)}; {len(tokens)} tokens need a bool array [n]")
    elif part.messages is not None:
        if document.messages is None or mask is not None:
            raise ValueError("messages where there were none, or with a loss_mask: that is the chat template's to make")
        try:
            _messages(part.messages, limit)
        except _BadError as bad:
            raise ValueError(f"messages that cannot be used: {bad}") from None
    elif not isinstance(text, str):
        raise ValueError(f"a document whose text is a {type(text).__name__}, not a str")
    elif mask is not None:
        raise ValueError("a document of text with a loss_mask: it says which tokens are targets, so give tokens")
    else:
        _check_text_size(text, limit)
    return dataclasses.replace(
        document, text=text, tokens=tokens, messages=part.messages, loss_mask=mask, part=index
    )
