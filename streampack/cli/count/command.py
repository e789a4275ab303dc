"""`streampack count`: what is in the shards, and how well it packs; no batch is made.

In:  the command line. Out: tables on stdout, or JSON; of several sources a line for each.
Invariants: what comes back for a shard is a tally of fixed size, so memory does not grow with the corpus, and the
result does not depend on the number of processes.
"""

from functools import partial
from time import perf_counter
from typing import Annotated

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
from streampack.cli.per_shard import each_shard, num_processes
from streampack.cli.progress import ShardProgress


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
    workers: NumWorkers = None,
    json: Json = False,
) -> None:
    """Count documents, bytes and tokens of shards, and how well they pack."""
    begin = perf_counter()
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
    sources = chosen_sources(dataset, source)
    counted: dict[str, Counted] = {}
    with ShardProgress("counting", *(each.corpus.table for each in sources)) as progress:
        for each in sources:
            table, pipeline = each.corpus.table, each.pipelines[0]
            processes, tally = num_processes(workers, table), Tally()
            work = partial(tally_shard, pipeline, has_tokens=has_tokens, spans=each.corpus.spans)
            read = np.unique(each.corpus.parts.shards).tolist()
            for _, part in each_shard(work, table, read, workers=processes, advance=progress.advance):
                tally.merge(part)
            progress.next_table(table)
            counted[each.name] = Counted(
                num_shards=len(read),
                shard_bytes=each.corpus.total_bytes,
                table=table,
                pipeline=pipeline,
                tally=tally,
                has_tokens=has_tokens,
                seconds=perf_counter() - begin,
                num_processes=processes,
            )
            begin = perf_counter()
    only = next(iter(counted.values()))
    if json:
        print_json(only.as_json() if len(counted) == 1 else {"sources": {k: v.as_json() for k, v in counted.items()}})
    elif len(counted) == 1:
        draw(output(), only)
    else:
        draw_sources(output(), counted)
