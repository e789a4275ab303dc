"""`streampack verify`: are the shards whole, and can a run read every document in them?

Each shard is read from its first byte to its last, by the code that a run reads with: the tar's headers and end, the
manifest's digests, the members that the field names, UTF-8, JSON, `.npy`, sizes. A shard that can be cut is read in
blocks, so that a tar inside the tar is found, into which a run's cut may fall. Nothing is tokenized. Problems are
reported with shard, member and byte. Where a tar is broken, the rest of that shard is not read.

With `--journal FILE` each shard that is done is noted in the file, and a shard that is noted as good is not read again:
after an interruption the same command continues, and after a repair it reads only the shards that had problems, or that
have another size, digest, ETag, time of change or inode now. A shard is known by all of its path or URL: one of the
same name in another folder is another shard. What was checked for other documents (`--field`, limits, vocabulary, chat
template, transform, part of the corpus) is read again.
"""

import contextlib
import hashlib
import json as json_module
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import IO, Annotated, Any

import msgspec
import typer
from msgspec import structs
from rich.table import Table

from streampack.chat.encoder import ChatEncoder
from streampack.cli.arguments import (
    Chat,
    Field,
    Json,
    NumWorkers,
    OneSource,
    Shards,
    Tokenizer,
    chosen_sources,
    file_errors,
    is_config,
    make_measured_dataset,
)
from streampack.cli.console import format_bytes, output, plural, print_json, print_warning, printable, to_json
from streampack.cli.per_shard import each_shard, num_processes
from streampack.cli.progress import ShardProgress
from streampack.cli.whole_shard import read_whole_shard
from streampack.corpus.shares import DEFAULT
from streampack.errors import StreampackError
from streampack.lanes.pipeline import Pipeline
from streampack.lanes.run import RunSource
from streampack.records import BadRecord, Shard
from streampack.storage.clients import local_path
from streampack.storage.identity import identity
from streampack.storage.redaction import redacted

_KEPT = 100
"""Problems of one shard that are kept with their text; the others are only counted."""
_SHOWN_NAME = 200
"""Characters of a name."""
_SHOWN = 40
"""Problems that the table shows."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What was found in one shard; also a line of the journal."""

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


def verify(
    shards: Shards,
    *,
    source: OneSource = None,
    field: Field = None,
    tokenizer: Tokenizer = None,
    chat: Chat = None,
    journal: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Note each finished shard in this file; good shards that it notes are not read again."
        ),
    ] = None,
    workers: NumWorkers = None,
    json: Json = False,
) -> None:
    """Read whole shards and report what is wrong in them, and where; the exit code is 1 if there is a problem."""
    ends = {} if is_config(shards) else {"add_bos": False, "add_eos": False}  # no document is packed
    dataset, _ = make_measured_dataset(shards, tokenizer, field=field, chat=chat, **ends)
    sources = chosen_sources(dataset, source)
    known = {} if journal is None else _known(journal)
    verdicts: list[Verdict] = []
    num_read = 0
    with ShardProgress("verifying", *(each.corpus.table for each in sources)) as progress, _opened(journal) as notes:

        def note(verdict: Verdict) -> None:
            if journal is not None and notes is not None:
                with file_errors("--journal", journal):
                    notes.write(to_json(msgspec.to_builtins(verdict)).encode() + b"\n")
                    notes.flush()

        for each in sources:
            found, of_source = _verify_source(each, known, workers, progress, note)
            verdicts += found
            num_read += of_source
            progress.next_table(each.corpus.table)
    _report(verdicts, num_read=num_read, as_json=json)
    if any(verdict.num_problems for verdict in verdicts):
        raise typer.Exit(1)


def _verify_source(
    source: RunSource,
    known: Mapping[tuple[object, ...], Verdict],
    workers: int | None,
    progress: ShardProgress,
    note: Callable[[Verdict], None],
) -> tuple[list[Verdict], int]:
    """The verdicts on a source's shards, in order, and how many of them were read now."""
    table, pipeline = source.corpus.table, source.pipelines[0]
    verdicts: dict[int, Verdict] = {}
    for index, shard in enumerate(table) if known else ():
        if (verdict := known.get(_blank(source.name, pipeline, shard).subject)) is not None:
            verdicts[index] = structs.replace(verdict, source=source.name)
    left = [index for index in range(len(table)) if index not in verdicts]
    work = partial(verify_shard, source.name, pipeline)
    workers = max(1, min(num_processes(workers, table), len(left)))
    for index, verdict in each_shard(work, table, left, workers=workers, advance=progress.advance):
        verdicts[index] = verdict
        note(verdict)
    return [verdicts[index] for index in sorted(verdicts)], len(left)


def verify_shard(source: str, pipeline: Pipeline, index: int, shard: Shard, *, tell: Callable[[int], None]) -> Verdict:
    """Read one shard of a source to its end, or to where it is broken."""
    blank = _blank(source, pipeline, shard)  # before it is read: what is changed meanwhile is read again
    samples = documents = num_problems = 0
    problems: list[str] = []
    passed_over = _Names()
    try:
        for sample in read_whole_shard(
            pipeline, index, shard, tell=tell, pass_over=passed_over.append, in_blocks=True
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


def _blank(source: str, pipeline: Pipeline, shard: Shard) -> Verdict:
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
        reading=_reading(pipeline),
        samples=0,
        documents=0,
        num_passed_over=0,
        passed_over="",
        num_problems=0,
        problems=[],
    )


def _reading(pipeline: Pipeline) -> str:
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


def _known(journal: Path) -> dict[tuple[object, ...], Verdict]:
    """The verdicts of the journal on good shards; those with problems are read again, since they may be repaired."""
    found: dict[tuple[object, ...], Verdict] = {}
    wrong = []
    if journal.exists():
        with file_errors("--journal", journal):
            lines = journal.read_bytes().splitlines()
        for number, line in enumerate(lines, 1):
            try:
                verdict = msgspec.convert(json_module.loads(line), Verdict)
            except (msgspec.ValidationError, ValueError):
                wrong.append(number)
                continue
            if not verdict.num_problems:
                found[verdict.subject] = verdict
    if wrong:
        more = f", nor are {plural(len(wrong) - 1, 'other')}" if len(wrong) > 1 else ""
        print_warning(
            f"{journal}, line {wrong[0]} is not a verdict{more} (cut off, or of another release?); what they are about "
            "is read again"
        )
    return found


@contextlib.contextmanager
def _opened(journal: Path | None) -> Iterator[IO[bytes] | None]:
    """The journal, opened to add lines; None without a journal."""
    if journal is None:
        yield None
        return
    with file_errors("--journal", journal):
        file = journal.open("ab+")
    with file:
        if file.tell():
            file.seek(-1, 2)
            if file.read(1) != b"\n":  # a line that was cut off
                file.write(b"\n")
        yield file


def _report(verdicts: list[Verdict], *, num_read: int, as_json: bool) -> None:
    bad = [verdict for verdict in verdicts if verdict.num_problems]
    totals: dict[str, Any] = {
        "num_shards": len(verdicts),
        "num_read": num_read,
        "bytes": sum(verdict.size for verdict in verdicts),
        "samples": sum(verdict.samples for verdict in verdicts),
        "documents": sum(verdict.documents for verdict in verdicts),
        "num_passed_over": sum(verdict.num_passed_over for verdict in verdicts),
        "num_problems": sum(verdict.num_problems for verdict in verdicts),
    }
    if as_json:
        print_json(totals | {"bad_shards": [msgspec.to_builtins(verdict) for verdict in bad]})
        return
    console = output()
    if bad:
        table = Table("shard", "problems", "what is wrong", title=None, show_lines=True)
        for verdict, problem in _shown(bad):
            whose = "" if verdict.source == DEFAULT else f"{verdict.source}: "
            table.add_row(whose + printable(verdict.name), f"{verdict.num_problems:,}", printable(problem), style="red")
        console.print(table)
    read = "" if num_read == len(verdicts) else f" ({num_read:,} read now, the others are in the journal)"
    console.print(
        f"{plural(totals['num_shards'], 'shard')}{read}, {format_bytes(totals['bytes'])}, "
        f"{plural(totals['documents'], 'document')}: "
        + (f"{plural(totals['num_problems'], 'problem')} in {plural(len(bad), 'shard')}" if bad else "nothing is wrong")
    )
    if (number := totals["num_passed_over"]) > 0:
        first = next(verdict for verdict in verdicts if verdict.num_passed_over)
        console.print(
            f"{plural(number, 'file')} with a name that belongs to no sample (without a dot, one that begins with a "
            "dot, or in a folder like __this__), and so in no run; the first one is "
            f"{first.passed_over!r} in {printable(first.name)}"
        )


def _shown(bad: list[Verdict]) -> Iterator[tuple[Verdict, str]]:
    """The first problems, at least one of each of the first shards."""
    most = max(1, _SHOWN // len(bad))
    for verdict in bad[:_SHOWN]:
        for problem in verdict.problems[:most]:
            yield verdict, problem
