"""`streampack count`: what is in the shards, and how well it packs; no batch is made.

In:  the command line. Out: tables on stdout, or JSON; of several sources a line for each.
Invariants: what comes back for a shard is a tally of fixed size, so memory does not grow with the corpus, and the
result does not depend on the number of processes.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Annotated, Any, ClassVar

import msgspec
import numpy as np
import typer

from streampack.cli.arguments import (
    AddBos,
    AddEos,
    BosToken,
    Chat,
    EosToken,
    Field,
    Json,
    NumWorkers,
    OneSource,
    PadToken,
    Shards,
    Tokenizer,
    chosen_sources,
    make_measured_dataset,
)
from streampack.cli.console import output, print_json
from streampack.cli.count.counted import Counted
from streampack.cli.count.drawing import draw, draw_sources
from streampack.cli.count.tally import Tally, tally_shard
from streampack.cli.parts.dispatch import results_of
from streampack.cli.parts.options import Division, PartOption, PartsFolderOption, RayOption
from streampack.cli.parts.work import ShardRanges, about_run, record
from streampack.cli.per_shard import Added, each_shard, num_processes
from streampack.corpus.processes import Advance
from streampack.corpus.table import ShardTable
from streampack.lanes.run import RunSource


class Found(msgspec.Struct, kw_only=True):
    """What was counted in some shards of each source."""

    sources: dict[str, Counted]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counting:
    """The work of `count`."""

    sources: tuple[RunSource, ...]
    about: dict[str, Any]
    has_tokens: bool
    command: ClassVar[str] = "count"

    @property
    def tables(self) -> dict[str, ShardTable]:
        return {source.name: source.corpus.table for source in self.sources}

    def run(self, shards: ShardRanges, *, workers: int | None, advance: Advance) -> Found:
        """Count what is in these shards; those of which all is held out are not read."""
        done, found = Added(advance), Found(sources={})
        for source in self.sources:
            begin = perf_counter()
            mine, corpus, pipeline = shards[source.name], source.corpus, source.pipelines[0]
            table, read = corpus.table, np.unique(corpus.parts.shards)
            processes, tally = num_processes(workers, table), Tally()
            work = partial(tally_shard, pipeline, has_tokens=self.has_tokens, spans=corpus.spans)
            chosen = read[(read >= mine.start) & (read < mine.stop)].tolist()
            for _, part in each_shard(work, table, chosen, workers=processes, advance=done.advance):
                tally.merge(part)
            done.next_source(int(table.sizes[mine.start : mine.stop].sum()), len(mine))
            ends = [name for name, token in (("BOS", pipeline.bos_id), ("EOS", pipeline.eos_id)) if token is not None]
            found.sources[source.name] = Counted(
                num_shards=len(read),
                num_estimated=int((~table.size_known).sum()),
                shard_bytes=corpus.total_bytes,
                field=str(pipeline.documents.field),
                seq_len=pipeline.seq_len,
                ends=ends,
                tally=tally,
                has_tokens=self.has_tokens,
                seconds=perf_counter() - begin,
                num_processes=processes,
            )
        return found

    def is_good(self, result: Any) -> bool:  # Any: JSON
        return True


def count(
    shards: Shards,
    *,
    source: OneSource = None,
    tokenizer: Tokenizer = None,
    seq_len: Annotated[int | None, typer.Option(help="Tokens of a pack.", show_default="4096")] = None,
    field: Field = None,
    chat: Chat = None,
    bos: AddBos = None,
    eos: AddEos = None,
    bos_token: BosToken = None,
    eos_token: EosToken = None,
    pad_token: PadToken = None,
    on_error: Annotated[
        str | None,
        typer.Option(
            help='"raise" stops at the first bad record; "skip" leaves bad records out and counts them.',
            show_default="raise",
        ),
    ] = None,
    part: PartOption = None,
    parts: PartsFolderOption = None,
    ray: RayOption = None,
    workers: NumWorkers = None,
    json: Json = False,
) -> None:
    """Count documents, bytes and tokens of shards, and how well they pack."""
    division = Division(part=part, parts=parts, ray=ray, workers=workers)
    division.check()
    dataset, has_tokens = make_measured_dataset(
        shards,
        tokenizer,
        seq_len=seq_len,
        field=field,
        chat=chat,
        add_bos=bos,
        add_eos=eos,
        bos_token=bos_token,
        eos_token=eos_token,
        pad_token=pad_token,
        on_error=on_error,
    )
    sources = tuple(chosen_sources(dataset, source))
    about = about_run(dataset, sources) | {"on_error": sources[0].pipelines[0].on_error, "tokens": has_tokens}
    work = Counting(sources=sources, about=about, has_tokens=has_tokens)
    results = results_of(work, division, doing="counting", json=json)
    if results is not None:
        finish(results, json=json)


def finish(results: Iterable[Any], *, json: bool) -> None:  # Any: JSON
    """Show what was counted in all shards, or in each part of them."""
    counted: dict[str, Counted] = {}
    for result in results:
        for name, each in record(result, Found).sources.items():
            if name in counted:
                counted[name].merge(each)
            else:
                counted[name] = each
    only = next(iter(counted.values()))
    if json:
        print_json(only.as_json() if len(counted) == 1 else {"sources": {k: v.as_json() for k, v in counted.items()}})
    elif len(counted) == 1:
        draw(output(), only)
    else:
        draw_sources(output(), counted)
