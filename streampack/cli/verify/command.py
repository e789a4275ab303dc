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
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar

import msgspec
import typer
from msgspec import structs

from streampack.cli.arguments import (
    Chat,
    Field,
    Json,
    NumWorkers,
    OneSource,
    Shards,
    Tokenizer,
    chosen_sources,
    is_config,
    make_measured_dataset,
)
from streampack.cli.parts.dispatch import results_of
from streampack.cli.parts.options import Division, PartOption, PartsFolderOption, RayOption
from streampack.cli.parts.work import ShardRanges, about_run, of_source, record
from streampack.cli.per_shard import Added, each_shard, num_processes
from streampack.cli.verify.drawing import report
from streampack.cli.verify.journal import Journal
from streampack.cli.verify.verdict import Verdict, blank_verdict, reading_of, verify_shard
from streampack.corpus.processes import Advance
from streampack.corpus.table import ShardTable
from streampack.errors import ConfigError
from streampack.lanes.run import RunSource


class Found(msgspec.Struct, kw_only=True):
    """The verdicts on some shards, in order."""

    verdicts: list[Verdict]
    num_read: int
    """The others are in the journal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verifying:
    """The work of `verify`."""

    sources: tuple[RunSource, ...]
    about: dict[str, Any]
    journal: Journal | None = None
    command: ClassVar[str] = "verify"

    @property
    def tables(self) -> dict[str, ShardTable]:
        return {source.name: source.corpus.table for source in self.sources}

    def run(self, shards: ShardRanges, *, workers: int | None, advance: Advance) -> Found:
        """Read these shards; those that the journal knows as good are not read."""
        done, found = Added(advance), Found(verdicts=[], num_read=0)
        for source in self.sources:
            mine, table = shards[source.name], source.corpus.table
            verdicts = self._known(source, mine)
            left = [index for index in mine if index not in verdicts]
            processes = max(1, min(num_processes(workers, table), len(left)))
            work = partial(verify_shard, source.name, source.pipelines[0])
            for index, verdict in each_shard(work, table, left, workers=processes, advance=done.advance):
                verdicts[index] = verdict
                if self.journal is not None:
                    self.journal.note(verdict)
            found.verdicts += [verdicts[index] for index in mine]
            found.num_read += len(left)
            done.next_source(int(table.sizes[mine.start : mine.stop].sum()), len(mine))
        return found

    def is_good(self, result: Any) -> bool:  # Any: JSON
        return not any(verdict.num_problems for verdict in record(result, Found).verdicts)

    def _known(self, source: RunSource, shards: range) -> dict[int, Verdict]:
        """The verdicts of the journal on shards that it knows as good."""
        found: dict[int, Verdict] = {}
        if self.journal is not None and self.journal.known:
            table, pipeline = source.corpus.table, source.pipelines[0]
            for index in shards:
                subject = blank_verdict(source.name, pipeline, table[index]).subject
                if (verdict := self.journal.known.get(subject)) is not None:
                    found[index] = structs.replace(verdict, source=source.name)
        return found


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
    part: PartOption = None,
    parts: PartsFolderOption = None,
    ray: RayOption = None,
    workers: NumWorkers = None,
    json: Json = False,
) -> None:
    """Read whole shards and report what is wrong in them, and where; the exit code is 1 if there is a problem."""
    division = Division(part=part, parts=parts, ray=ray, workers=workers)
    division.check()
    if journal is not None and division.is_asked_for:
        raise ConfigError(
            f"--journal {journal}: of work in parts each part that is done is kept in the folder of --parts; leave out "
            "--journal"
        )
    ends = {} if is_config(shards) else {"add_bos": False, "add_eos": False}  # no document is packed
    dataset, _ = make_measured_dataset(shards, tokenizer, field=field, chat=chat, **ends)
    sources = tuple(chosen_sources(dataset, source))
    about = about_run(dataset, sources)
    about |= {f"what is good{of_source(each.name)}": reading_of(each.pipelines[0]) for each in sources}
    notes = None if journal is None else Journal(journal)
    work = Verifying(sources=sources, about=about, journal=notes)
    with contextlib.nullcontext() if notes is None else notes.opened():
        results = results_of(work, division, doing="verifying", json=json)
    if results is not None:
        finish(results, json=json)


def finish(results: Iterable[Any], *, json: bool) -> None:  # Any: JSON
    """Report what was found in all shards, or in each part of them."""
    found = [record(result, Found) for result in results]
    verdicts = [verdict for each in found for verdict in each.verdicts]
    report(verdicts, num_read=sum(each.num_read for each in found), as_json=json)
    if any(verdict.num_problems for verdict in verdicts):
        raise typer.Exit(1)
