"""Samples in, documents out: the member that `field` names becomes text or tokens, then split and transform.

In:  a `Sample` (the bytes of its members), its shard, and the epoch.
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

Never true: that a part of a compressed member gives documents, or a part of what a transform made of a record; that a
choice depends on anything but the arguments. What stands under other JSON keys is checked for JSON's syntax only.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import numpy as np

from streampack import hashing, heartbeat
from streampack.documents.contents import (
    BadContentError,
    array_kind,
    check_messages,
    check_size,
    check_text_size,
    decompressed,
    int32_tokens,
    joined_npy,
    json_messages,
    json_text,
    npy_tokens,
    utf8_text,
)
from streampack.documents.split import HoldOut
from streampack.errors import ConfigError, DocumentTooLongError, MissingFieldError, RecordError
from streampack.records import FREE_BYTES, BadRecord, Document, Joined, Mask, Message, Sample, Tokens

Transform = Callable[[Document, np.random.Generator], Document | list[Document] | None]

_EXTENSIONS = {"txt": ("txt",), "json": ("json",), "jsonl": ("jsonl", "jsonl.gz", "jsonl.zst"), "npy": ("npy",)}
_NPY_HEADER_BYTES = 2**16 + 10


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
    hold_out: HoldOut | None = None
    """Which part of the corpus is read; None: all of it."""
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
        by_kind = {"txt": limit, "npy": 2 * limit + _NPY_HEADER_BYTES, "json": max(8 * limit, FREE_BYTES)}
        return min(by_kind.get(self.field.kind, self.max_member_bytes), self.max_member_bytes)

    def read(
        self,
        sample: Sample,
        *,
        url: str,
        shard_name: str,
        shard_index: int,
        epoch: int,
        first_record: int = 0,
        first_part: int = 0,
    ) -> Iterable[Document | BadRecord]:
        """The documents of `sample`, from part `first_part` of record `first_record` on.

        Args:
            sample: the members that the field wants, and the sizes of all.
            url: the shard, for errors.
            shard_name: the shard's name; its last component, the key and the record decide on the split.
            shard_index: the shard's index as listed; with seed, epoch, the sample's position and record it seeds the
                transform.
            epoch: the epoch that the lane is in.
            first_record: records before it are neither parsed nor given.
            first_part: parts of `first_record` before it are not given.

        Raises:
            ConfigError: the transform returned what is no document. What it raises passes as it is, with a note.
        """
        if self.field.holds_many:
            items: Iterable[Document | BadRecord] = self._read_many(sample, url, shard_name, first_record)
        else:
            item = self._read_one(sample, url, shard_name) if first_record == 0 else None
            items = () if item is None else (item,)
        if self.transform is None and self.chat is None and not first_part:
            return items
        return self._parts(items, url, shard_index, epoch, first_record, first_part)

    def contents(self, samples: Sequence[Sample]) -> list[str] | Joined | None:
        """The texts, or the token ids, of samples that are a document each: what `read` gives of them, at once.

        None: they are not that simple, or one of them is bad; `read` them one by one.
        """
        kind, limit = self.field.kind, self.max_document_bytes
        names = _EXTENSIONS[kind]
        if len(names) > 1 or self.transform is not None or self.chat is not None or self.hold_out is not None:
            return None
        try:
            members = [sample.members[names[0]] for sample in samples]
            if kind == "npy":
                return joined_npy(members, limit)
            if kind == "txt":
                return [utf8_text(data, limit) for data in members]
            return [json_text(data, self.field.keys, limit) for data in members]
        except (KeyError, BadContentError):
            return None

    def _parts(
        self,
        items: Iterable[Document | BadRecord],
        url: str,
        shard_index: int,
        epoch: int,
        first_record: int,
        first_part: int,
    ) -> Iterator[Document | BadRecord]:
        """What becomes of the records, from part `first_part` of record `first_record` on."""
        for item in items:
            heartbeat.beat()  # many records may go by without giving a document
            first = first_part if item.record == first_record else 0
            if self.transform is None or isinstance(item, BadRecord):
                if first == 0:
                    yield self._in_tokens(item)
                continue
            rng = hashing.generator(self.seed, epoch, shard_index, item.sample, item.record)
            try:
                parts = _transformed(item, self.transform, rng, self.max_document_bytes)
            except BadContentError as bad:
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
        return self.hold_out is None or self.hold_out.has(shard_name, key, record)

    def _read_one(self, sample: Sample, url: str, shard_name: str) -> Document | BadRecord | None:
        """Of a member that is one document: record 0, or None where it is of the other split."""
        if not self._chosen(shard_name, sample.key, 0):
            return None
        text, tokens, messages, extension = None, None, None, None
        try:
            extension, data = self._member(sample)
            if self.field.kind == "npy":
                tokens = npy_tokens(data, self.max_document_bytes)
            elif self.field.is_chat:
                messages = json_messages(data, self.field.keys, self.max_document_bytes)
            elif self.field.kind == "json":
                text = json_text(data, self.field.keys, self.max_document_bytes)
            else:
                text = utf8_text(data, self.max_document_bytes)
        except BadContentError as bad:
            extension = extension or bad.extension
            return bad.record(0, url, f"{sample.key}.{extension}" if extension else sample.key)
        return Document(text=text, tokens=tokens, messages=messages, key=sample.key, url=url, sample=sample.position)

    def _read_many(
        self, sample: Sample, url: str, shard_name: str, first_record: int
    ) -> Iterator[Document | BadRecord]:
        """Of a member of JSON lines; offsets in errors are those in the decompressed member."""
        key = member = sample.key
        try:
            extension, data = self._member(sample)
            member = f"{member}.{extension}"
            data = decompressed(data, extension, self.max_member_bytes)
        except BadContentError as bad:
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
                            messages = json_messages(line, self.field.keys, self.max_document_bytes)
                        else:
                            text = json_text(line, self.field.keys, self.max_document_bytes)
                    except BadContentError as bad:
                        yield bad.record(record, url, member, line_number=line_number, start=start)
                    else:
                        yield Document(
                            text=text, messages=messages, key=key, url=url, record=record, sample=sample.position
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
            raise BadContentError(message, kind=MissingFieldError)
        if len(found) > 1:
            message = f"more than one member for field={str(self.field)!r}: {', '.join(sorted(found))}; keep one"
            raise BadContentError(message)
        if found[0] not in sample.members:
            raise self._not_read(found[0], sample.sizes[found[0]])
        return found[0], sample.members[found[0]]

    def _not_read(self, extension: str, size: int) -> BadContentError:
        """Why the reader has not read a member of the sample."""
        limit = self.max_document_bytes
        if size <= self.member_bytes:
            message = f".{extension} is a sparse file, or the sample has too much in other members that may be the one"
            return BadContentError(f"{message}; write it again with one, as an ordinary file", extension=extension)
        message = f"{size:,} bytes in .{extension}, more than is read of one member ({self.member_bytes:,})"
        if self.field.kind == "txt":
            message = f"a document of {size:,} bytes, above max_document_bytes={limit:,}"
        return BadContentError(message, kind=DocumentTooLongError, extension=extension)


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
        tokens = int32_tokens(tokens)
        check_size(4 * len(tokens), limit)
        is_mask = isinstance(mask, np.ndarray) and mask.dtype == bool and mask.shape == tokens.shape
        if mask is not None and not is_mask:
            raise ValueError(f"a loss_mask that is {array_kind(mask)}; {len(tokens)} tokens need a bool array [n]")
    elif part.messages is not None:
        if document.messages is None or mask is not None:
            raise ValueError("messages where there were none, or with a loss_mask: that is the chat template's to make")
        try:
            check_messages(part.messages, limit)
        except BadContentError as bad:
            raise ValueError(f"messages that cannot be used: {bad}") from None
    elif not isinstance(text, str):
        raise ValueError(f"a document whose text is a {type(text).__name__}, not a str")
    elif mask is not None:
        raise ValueError("a document of text with a loss_mask: it says which tokens are targets, so give tokens")
    else:
        check_text_size(text, limit)
    return dataclasses.replace(
        document, text=text, tokens=tokens, messages=part.messages, loss_mask=mask, part=index
    )
