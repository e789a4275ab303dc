"""A sample in, its documents out: the member that `field` names, its records, and what a transform makes of them.

In:  a `Sample` (the bytes of its members), its shard, and the epoch.
Out: its `Document`s in record order, and a `BadRecord` in place of each one that cannot be read. The caller
     raises its error or skips it; what comes before and after stays as it is.

    member --> records --> those of this part of the corpus --> transform --> chat template

Never: documents of one part of a compressed member or of a transform's result when another part is bad; a choice that
depends on anything but the arguments. The values of other JSON keys are checked for JSON's syntax only.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from streampack import heartbeat
from streampack.documents.compression import decompressed
from streampack.documents.contents import BadContentError, check_pointer, utf8_text
from streampack.documents.conversations import json_conversation
from streampack.documents.draws import seed_generators
from streampack.documents.fields import Field
from streampack.documents.jsonrecords import BOM, check_lines, json_text
from streampack.documents.members import find_member
from streampack.documents.npy import MAX_HEADER_BYTES, joined_npy, npy_tokens
from streampack.documents.split import HoldOut
from streampack.documents.transform import Transform, transformed
from streampack.errors import RecordError
from streampack.records import FREE_BYTES, WHOLE_SAMPLE, BadRecord, Document, Joined, Mask, Message, Sample, Tokens

ChatTemplate = Callable[[Sequence[Message], Mapping[str, Any] | None], tuple[Tokens, Mask]]


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
    """Of a document: its bytes of UTF-8 text, or four times its number of tokens."""
    max_member_bytes: int = 2**30
    """What a compressed member may decompress to."""
    chat: ChatTemplate | None = None
    """Makes ids and a loss mask of a conversation and its context; its RecordError is a bad record."""
    chat_may_draw: bool = False
    """Whether the chat template may draw from the global random generators."""
    vocab_size: int | None = None
    """Token ids must be below it; None: there is no tokenizer that would tell."""

    @property
    def may_draw(self) -> bool:
        """Whether something here may draw from the global random generators, which are then seeded for it."""
        return self.transform is not None or self.chat_may_draw

    @property
    def member_bytes(self) -> int:
        """The most that is read of one member; the header of a larger member tells that it is too long."""
        limit = self.max_document_bytes
        by_kind = {"txt": limit, "npy": 2 * limit + MAX_HEADER_BYTES, "json": max(8 * limit, FREE_BYTES)}
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
            shard_name: the shard's name; its last component, the key and the record decide what is held out.
            shard_index: the shard's index as listed; with seed, epoch, the sample's position and record it seeds
                whatever the transform draws from.
            epoch: the epoch that the lane is in.
            first_record: records before it are neither parsed nor given.
            first_part: parts of `first_record` before it are not given.

        Raises:
            ConfigError: the transform returned something that is not a document. What the
                transform itself raises passes through, with a note.
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

        None: one of them is bad, or may become another number of documents; `read` them one by one.
        """
        kind, limit = self.field.kind, self.max_document_bytes
        names = self.field.extensions
        if self.field.holds_many or self.transform is not None or self.chat is not None or self.hold_out is not None:
            return None
        try:
            members = [each.members[names[0]] for each in samples if len(each.members) == 1 and not each.flaws]
            if len(members) < len(samples):  # another member fits the field too, perhaps
                return None
            if kind == "npy":
                return joined_npy(members, limit, self.vocab_size)
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
        """What the transform and the chat template make of the records, from a part of a record on."""
        for item in items:
            heartbeat.beat()  # many records in a row may give no document
            first = first_part if item.record == first_record else 0
            if isinstance(item, BadRecord):
                if first == 0:
                    yield item
                continue
            parts = [item]
            place = self.seed, epoch, shard_index, item.sample, item.record
            if self.transform is not None:
                try:
                    parts = transformed(item, self.transform, place, self.max_document_bytes, self.vocab_size)
                except BadContentError as bad:
                    yield bad.located(item.record, url, item.key)
                    continue
            for part in parts[first:]:
                yield part if part.messages is None else self._templated(part, place)

    def _templated(self, conversation: Document, place: tuple[int, ...]) -> Document | BadRecord:
        """The tokens and the loss mask that the chat template makes of a conversation."""
        assert conversation.messages is not None
        assert self.chat is not None, "the dataset demands a chat template for messages"
        if self.chat_may_draw:
            seed_generators((*place, conversation.part))
        try:
            tokens, mask = self.chat(conversation.messages, conversation.context)
        except RecordError as error:
            named = type(error)(error.message, url=conversation.url, member=conversation.key)
            return BadRecord(record=conversation.record, error=named, part=conversation.part)
        return dataclasses.replace(conversation, messages=None, context=None, tokens=tokens, loss_mask=mask)

    def _chosen(self, shard_name: str, key: str, record: int) -> bool:
        """Whether the record is in the part of the corpus that is read."""
        return self.hold_out is None or self.hold_out.has(shard_name, key, record)

    def _document(self, data: bytes, sample: Sample, url: str, record: int) -> Document:
        """The document that a member or a line of it is; a BadContentError says why it cannot be used."""
        field, limit = self.field, self.max_document_bytes
        text, tokens, messages, context = None, None, None, None
        if field.kind == "npy":
            tokens = npy_tokens(data, limit, self.vocab_size)
        elif field.is_chat:
            messages, context = json_conversation(data, field.keys, limit)
        elif field.kind == "txt":
            text = utf8_text(data, limit)
        else:
            text = json_text(data, field.keys, limit)
        return Document(
            text=text,
            tokens=tokens,
            messages=messages,
            context=context,
            key=sample.key,
            url=url,
            record=record,
            sample=sample.position,
        )

    def _read_one(self, sample: Sample, url: str, shard_name: str) -> Document | BadRecord | None:
        """Record 0 of a member that is one document, or None where it is in the other part of the corpus."""
        if WHOLE_SAMPLE not in sample.flaws and not self._chosen(shard_name, sample.key, 0):
            return None
        extension = None
        try:
            extension, data = self._member(sample)
            return self._document(data, sample, url, 0)
        except BadContentError as bad:
            extension = extension or bad.extension
            return bad.located(0, url, f"{sample.key}.{extension}" if extension else sample.key)

    def _read_many(
        self, sample: Sample, url: str, shard_name: str, first_record: int
    ) -> Iterator[Document | BadRecord]:
        """The records of a member of JSON lines; offsets in errors are those in the decompressed member."""
        key = member = sample.key
        try:
            extension, data = self._member(sample)
            member = f"{member}.{extension}"
            check_pointer(data)
            data = decompressed(data, extension, self.max_member_bytes)
            check_lines(data)
        except BadContentError as bad:
            yield bad.located(-1, url, f"{key}.{bad.extension}" if bad.extension else member)
            return
        record, line_number, start = -1, 0, len(BOM) if data.startswith(BOM) else 0
        while start < len(data):
            end = data.find(b"\n", start)
            end = len(data) if end < 0 else end
            line = data[start:end]
            line_number += 1
            if line and not line.isspace():
                record += 1
                if record >= first_record and self._chosen(shard_name, key, record):
                    try:
                        document = self._document(line, sample, url, record)
                    except BadContentError as bad:
                        yield bad.located(record, url, member, line_number=line_number, start=start)
                    else:
                        yield document
            start = end + 1

    def _member(self, sample: Sample) -> tuple[str, bytes]:
        return find_member(
            sample, self.field, member_bytes=self.member_bytes, max_document_bytes=self.max_document_bytes
        )
