"""The verdict on one shard: what is in it that a run can read, and what is wrong.

In:  a pipeline, a shard. Out: a `Verdict`; also a line of the journal, and an entry of what a part has found.
Invariants: the shard is read from its first byte to its last, by the code that a run reads with; problems are told with
their place. Where a tar is broken, the rest of that shard is not read.
"""

import contextlib
import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
from msgspec import structs

from streampack.chat.encoder import ChatEncoder
from streampack.cli.console import printable
from streampack.cli.whole_shard import read_whole_shard
from streampack.corpus.shares import DEFAULT
from streampack.errors import StreampackError
from streampack.lanes.pipeline import Pipeline
from streampack.records import BadRecord, Shard
from streampack.storage.clients import local_path
from streampack.storage.identity import identity
from streampack.storage.redaction import redacted

_KEPT = 100
"""Problems of one shard that are kept with their text; the others are only counted."""
_SHOWN_NAME = 200
"""Characters of a name."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What was found in one shard."""

    source: str = DEFAULT
    name: str
    url: str
    """The whole path or URL, without secrets."""
    key: str
    """32 hex digits, the same for all spellings of the URL, whose secrets may be what tells two objects apart."""
    version: str
    """The ETag, or of a local file when it was changed last and its inode; "" where neither is known."""
    size: int
    digest: str | None
    reading: str
    """32 hex digits of all that decides which documents are good: field, limits, vocabulary, chat template, ..."""
    samples: int
    documents: int
    """Those that a run can read."""
    num_passed_over: int
    """Files that belong to no sample, by their names; a run passes over them too."""
    passed_over: str
    """The name of the first of them."""
    num_problems: int
    problems: list[str]
    """The first of them, each with its place."""

    @property
    def subject(self) -> tuple[object, ...]:
        """What was read, and for what: a later reading with the same subject finds the same."""
        return self.key, self.version, self.size, self.digest, self.reading


def verify_shard(source: str, pipeline: Pipeline, index: int, shard: Shard, *, tell: Callable[[int], None]) -> Verdict:
    """Read one shard of a source to its end, or to where it is broken; also what a stage leaves out (`exclude`)."""
    blank = blank_verdict(source, pipeline, shard)  # before it is read: what is changed meanwhile is read again
    samples = documents = num_problems = 0
    problems: list[str] = []
    passed_over = _Names()
    everything = replace(pipeline, excluded=None)
    try:
        for sample in read_whole_shard(
            everything, index, shard, tell=tell, pass_over=passed_over.append, in_blocks=True
        ):
            samples += 1
            for item in sample.documents:
                if isinstance(item, BadRecord):
                    num_problems += 1
                    if len(problems) < _KEPT:
                        problems.append(str(item.error))
                else:
                    documents += 1
    except StreampackError as error:
        num_problems += 1
        problems.append(str(error))
    return structs.replace(
        blank,
        samples=samples,
        documents=documents,
        num_passed_over=passed_over.count,
        passed_over=passed_over.first,
        num_problems=num_problems,
        problems=problems,
    )


class _Names:
    """How many files of a shard belong to no sample, and the name of the first one."""

    def __init__(self) -> None:
        self.count = 0
        self.first = ""

    def append(self, name: str) -> None:
        self.count += 1
        self.first = self.first or printable(name)[:_SHOWN_NAME]


def blank_verdict(source: str, pipeline: Pipeline, shard: Shard) -> Verdict:
    """What is known of a shard before it is read."""
    path = local_path(shard.url)
    version = shard.etag or ""
    if path is not None:
        with contextlib.suppress(OSError):  # a shard that is missing is an error where it is read
            status = Path(path).stat()
            version = f"changed {status.st_mtime_ns} ns, {status.st_ctime_ns} ns, inode {status.st_ino}"
    return Verdict(
        source=source,
        name=shard.name,
        url=redacted(shard.url),
        key=_hashed(identity(shard.url)),
        version=version,
        size=shard.size,
        digest=shard.digest,
        reading=reading_of(pipeline),
        samples=0,
        documents=0,
        num_passed_over=0,
        passed_over="",
        num_problems=0,
        problems=[],
    )


def reading_of(pipeline: Pipeline) -> str:
    """All of the pipeline that decides which documents of a shard there are, and which of them are good."""
    documents, chat = pipeline.documents, pipeline.documents.chat
    told: list[object] = [documents.field, documents.max_document_bytes, documents.max_member_bytes, documents.hold_out]
    if documents.field.kind == "npy" or documents.transform is not None:
        told.append(documents.vocab_size)
    if documents.transform is not None:
        told += [documents.transform_version, documents.seed]
    if isinstance(chat, ChatEncoder):
        told += [chat.digest, chat.train_on, chat.vocab_size, chat.tokenizer.digest]
    return _hashed(repr(told))


def _hashed(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
