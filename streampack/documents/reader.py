"""A sample in, its documents out: the member that `field` names, its records, and what a transform makes of them.

In:  a `Sample` (the bytes of its members), its shard, and the epoch.
Out: its records of this part of the corpus, none of them parsed yet; of a record, its `Document`s, and a `BadRecord` in
     place of each one that cannot be read. The caller raises its error or skips it.

    sample --records--> those of this part of the corpus --document--> a document --parts--> transform, chat template

Never: documents of one part of a compressed member or of a transform's result when another part is bad; a choice that
depends on anything but the arguments. The values of other JSON keys are checked for JSON's syntax only.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from streampack.documents.compression import decompressed
from streampack.documents.contents import BadContentError, check_pointer, utf8_text
from streampack.documents.conversations import json_conversation
from streampack.documents.draws import seed_generators
from streampack.documents.fields import Field
from streampack.documents.jsonrecords import check_lines, json_text
from streampack.documents.lines import Line, lines_of
from streampack.documents.members import find_member
from streampack.documents.npy import MAX_HEADER_BYTES, joined_npy, npy_tokens
from streampack.documents.split import HoldOut
from streampack.documents.transform import Transform, transformed
from streampack.errors import RecordError
from streampack.metrics import clock, heartbeat
from streampack.records import FREE_BYTES, WHOLE_SAMPLE, BadRecord, Document, Joined, Mask, Message, Sample, Tokens

ChatTemplate = Callable[[Sequence[Message], Mapping[str, Any] | None], tuple[Tokens, Mask]]
Record: TypeAlias = Sample | Line
"""What is one document before the transform: a sample where its member is one record, else a line of the member."""


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

    @property
    def keeps_records(self) -> bool:
        """Whether each record is one document, as it is: there is neither a transform nor a chat template."""
        return self.transform is None and self.chat is None

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
    ) -> Iterator[Document | BadRecord]:
        """The documents of a sample from a part of a record on: `records`, `document` and `parts` in a row."""
        for record in self.records(sample, url=url, shard_name=shard_name, first_record=first_record):
            heartbeat.beat()  # many records in a row may give no document
            item = record if isinstance(record, BadRecord) else self.document(record, url=url)
            first = first_part if item.record == first_record else 0
            yield from self.parts(item, shard_index=shard_index, epoch=epoch, first_part=first)

    def chosen(self, samples: list[Sample], *, shard_name: str) -> list[Sample]:
        """Those of some samples, which are a record each, that are in the part of the corpus that is read."""
        if self.hold_out is None:
            return samples
        return [each for each in samples if WHOLE_SAMPLE in each.flaws or self._has(shard_name, each.key, 0)]

    def records(
        self, sample: Sample, *, url: str, shard_name: str, first_record: int = 0
    ) -> Iterator[Record | BadRecord]:
        """The records of a sample from `first_record` on, of the part of the corpus that is read.

        A member of JSON lines that is bad as a whole is a `BadRecord` and nothing else.

        Args:
            sample: the members that the field wants, and the sizes of all.
            url: the shard, for errors.
            shard_name: the shard's name; its last component, the key and the record decide what is held out.
            first_record: an index in the member.
        """
        if not self.field.holds_many:
            if first_record == 0:
                yield from self.chosen([sample], shard_name=shard_name)
            return
        key = member = sample.key
        try:
            extension, data = self._member(sample)
            member = f"{member}.{extension}"
            check_pointer(data)
            data = clock.timed(clock.DECOMPRESS, decompressed, data, extension, self.max_member_bytes)
            check_lines(data)
        except BadContentError as bad:
            named = f"{key}.{bad.extension}" if bad.extension else member
            yield bad.located(-1, url, named)
            return
        for line in lines_of(data, key=key, position=sample.position, extension=extension):
            if line.record >= first_record and self._has(shard_name, key, line.record):
                yield line

    def contents(self, records: Sequence[Record]) -> list[str] | Joined | None:
        """The texts, or the token ids, of records that are a document each: what `document` gives of them, at once.

        None: one of them is bad, or may become another number of documents; they must be read one by one.
        """
        kind, limit, keys = self.field.kind, self.max_document_bytes, self.field.keys
        if not self.keeps_records:
            return None
        names = self.field.extensions
        try:
            if self.field.holds_many:
                members = [each.data for each in records if isinstance(each, Line)]
            else:
                members = [
                    each.members[names[0]]
                    for each in records
                    if isinstance(each, Sample) and len(each.members) == 1 and not each.flaws
                ]
            if len(members) < len(records):  # one is bad, or another member fits the field too, perhaps
                return None
            if kind == "npy":
                return joined_npy(members, limit, self.vocab_size)
            if kind == "txt":
                return [utf8_text(data, limit) for data in members]
            return [json_text(data, keys, limit) for data in members]
        except (KeyError, BadContentError):
            return None

    def document(self, record: Record, *, url: str) -> Document | BadRecord:
        """The document that a record is, before the transform."""
        if isinstance(record, Line):
            try:
                return self._document(record.data, record, url, record.record)
            except BadContentError as bad:
                member = f"{record.key}.{record.extension}"
                return bad.located(
                    record.record, url, member, line_number=record.line_number, start=record.start
                )
        extension = None
        try:
            extension, data = self._member(record)
            return self._document(data, record, url, 0)
        except BadContentError as bad:
            extension = extension or bad.extension
            return bad.located(0, url, f"{record.key}.{extension}" if extension else record.key)

    def parts(
        self, item: Document | BadRecord, *, shard_index: int, epoch: int, first_part: int = 0
    ) -> Iterable[Document | BadRecord]:
        """What the transform and the chat template make of a document, from part `first_part` on.

        Args:
            item: what `document` gave; a bad record is its own part 0.
            shard_index: the shard's index as listed; with seed, epoch, the sample's position and record it seeds
                whatever the transform draws from.
            epoch: the epoch that the lane is in.
            first_part: an index in what the transform returns.

        Raises:
            ConfigError: the transform returned something that is not a document. What the
                transform itself raises passes through, with a note.
        """
        if isinstance(item, BadRecord):
            return () if first_part else (item,)
        parts = [item]
        place = self.seed, epoch, shard_index, item.sample, item.record
        if self.transform is not None:
            try:
                parts = transformed(item, self.transform, place, self.max_document_bytes, self.vocab_size)
            except BadContentError as bad:
                return (bad.located(item.record, item.url, item.key),)
        if first_part:
            parts = parts[first_part:]
        return parts if self.chat is None else self._templated(parts, place)

    def _templated(self, parts: Iterable[Document], place: tuple[int, ...]) -> Iterator[Document | BadRecord]:
        """The parts, with the tokens and the loss mask that the chat template makes of each conversation."""
        assert self.chat is not None
        for part in parts:
            if part.messages is None:
                yield part
                continue
            if self.chat_may_draw:
                seed_generators((*place, part.part))
            try:
                tokens, mask = self.chat(part.messages, part.context)
            except RecordError as error:
                named = type(error)(error.message, url=part.url, member=part.key)
                yield BadRecord(record=part.record, error=named, part=part.part)
            else:
                yield dataclasses.replace(part, messages=None, context=None, tokens=tokens, loss_mask=mask)

    def _has(self, shard_name: str, key: str, record: int) -> bool:
        """Whether the record is in the part of the corpus that is read."""
        return self.hold_out is None or self.hold_out.has(shard_name, key, record)

    def _document(self, data: bytes, sample: Sample | Line, url: str, record: int) -> Document:
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

    def _member(self, sample: Sample) -> tuple[str, bytes]:
        return find_member(
            sample, self.field, member_bytes=self.member_bytes, max_document_bytes=self.max_document_bytes
        )
