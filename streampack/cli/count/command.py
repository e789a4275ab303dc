"""`streampack count`: what is in the shards, and how well it packs; no batch is made.

In:  the command line. Out: tables on stdout, or JSON.
Invariants: what comes back for a shard is a tally of fixed size, so memory does not grow with the corpus, and the
result does not depend on the number of processes.
"""

from functools import partial
from time import perf_counter
from typing import Annotated

import typer

from streampack.cli.arguments import (
    AddBos,
    AddEos,
    Chat,
    Field,
    Json,
    NumWorkers,
    Shards,
    Tokenizer,
    make_measured_dataset,
)
from streampack.cli.console import output, print_json
from streampack.cli.count.counted import Counted
from streampack.cli.count.drawing import draw
from streampack.cli.count.tally import Tally, tally_shard
from streampack.cli.per_shard import each_shard, num_processes
from streampack.cli.progress import ShardProgress


def count(
    shards: Shards,
    *,
    tokenizer: Tokenizer = None,
    seq_len: Annotated[int | None, typer.Option(help="Tokens of a pack.", show_default="4096")] = None,
    field: Field = None,
    chat: Chat = None,
    bos: AddBos = None,
    eos: AddEos = None,
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
        on_error=on_error,
    )
    table, pipeline = dataset.list_shards(), dataset.pipeline
    workers = num_processes(workers, table)
    tally = Tally()
    with ShardProgress("counting", table) as progress:
        work = partial(tally_shard, pipeline, has_tokens=has_tokens)
        for _, part in each_shard(work, table, range(len(table)), workers=workers, advance=progress.advance):
            tally.merge(part)
    counted = Counted(
        table=table,
        pipeline=pipeline,
        tally=tally,
        has_tokens=has_tokens,
        seconds=perf_counter() - begin,
        num_processes=workers,
    )
    if json:
        print_json(counted.as_json())
    else:
        draw(output(), counted)
