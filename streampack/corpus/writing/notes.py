"""What is noted of a folder that is written: the job that was begun, what its portions have become, that all is done.

In:  a folder's URL. Out: its notes, as records, and JSON of them.
Invariants: JSON in ASCII, since names of files need not be UTF-8.
"""

import json
from collections.abc import Sequence
from typing import TypeVar

import msgspec

from streampack.corpus.kinds import UNFINISHED
from streampack.corpus.manifest import ShardRow
from streampack.corpus.writing.checking import KEPT
from streampack.corpus.writing.job import Job
from streampack.errors import ShardNotFoundError
from streampack.storage.access import StorageReader

FINISHED = ".written.json"
_Note = TypeVar("_Note", bound=msgspec.Struct)


class Written(msgspec.Struct, kw_only=True):
    """What a portion, or all of them, have become."""

    shards: list[ShardRow] = msgspec.field(default_factory=list)
    num_skipped: int = 0
    problems: list[str] = msgspec.field(default_factory=list)
    """The first records that were skipped, each with its place."""


class Begun(msgspec.Struct, kw_only=True):
    """What is being written into a folder."""

    job: Job
    num_parts: int
    scratch: str | None
    """The absolute path of the folder that was given for scratch."""


class Finished(msgspec.Struct, kw_only=True):
    """What was written into a folder."""

    job: Job
    written: Written


def encode(note: msgspec.Struct) -> bytes:
    """A note as JSON."""
    return json.dumps(msgspec.to_builtins(note)).encode()


def decode(data: bytes, kind: type[_Note]) -> _Note:
    """The note that JSON holds."""
    return msgspec.convert(json.loads(data), kind)


def read_note(url: str, reader: StorageReader, kind: type[_Note]) -> _Note | None:
    """The note at a URL; None: there is none."""
    try:
        return decode(reader.read(url), kind)
    except ShardNotFoundError:
        return None


def read_begun(folder: str, reader: StorageReader) -> Begun | None:
    """What is being written into a folder; None: nothing, or it is finished."""
    return read_note(f"{folder}/{UNFINISHED}", reader, Begun)


def read_finished(folder: str, reader: StorageReader) -> Finished | None:
    """What is in a finished folder, whatever the job was; None: it is not finished."""
    return read_note(f"{folder}/{FINISHED}", reader, Finished)


def joined(written: Sequence[Written]) -> Written:
    """What several portions or parts have become together. Pure."""
    return Written(
        shards=[row for each in written for row in each.shards],
        num_skipped=sum(each.num_skipped for each in written),
        problems=[problem for each in written for problem in each.problems][:KEPT],
    )
