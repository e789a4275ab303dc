"""`streampack count`: what is in the shards, and how well it packs, without making a batch.

What comes back for a shard is a tally of fixed size. So memory does not grow with the corpus, and the result does not
depend on how many processes there were.
"""

from functools import partial
from time import perf_counter
from typing import Annotated, Any

import typer

from streampack.cli.arguments import ChatTemplate, Field, Json, NumWorkers, Shards, Tokenizer, make_measured_dataset
from streampack.cli.console import output, print_json
from streampack.cli.count.drawing import draw
from streampack.cli.count.tally import Tally, tally_shard
from streampack.cli.per_shard import each_shard, num_processes
from streampack.cli.progress import ShardProgress
from streampack.corpus.table import ShardTable
from streampack.lanes.pipeline import Pipeline


def count(
    shards: Shards,
    *,
    tokenizer: Tokenizer = None,
    seq_len: Annotated[int | None, typer.Option(help="Tokens of a pack.", show_default="4096")] = None,
    field: Field = None,
    chat_template: ChatTemplate = None,
    bos: Annotated[bool | None, typer.Option("--bos/--no-bos", help="BOS first.", show_default="bos")] = None,
    eos: Annotated[bool | None, typer.Option("--eos/--no-eos", help="EOS last.", show_default="eos")] = None,
    on_error: Annotated[
        str | None, typer.Option(help='"raise" stops at a bad record, "skip" counts it.', show_default="raise")
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
        chat_template=chat_template,
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
    seconds = perf_counter() - begin
    if json:
        print_json(_as_json(tally, table, pipeline, has_tokens=has_tokens))
        return
    draw(output(), tally, table, pipeline, has_tokens=has_tokens, seconds=seconds, workers=workers)


def _as_json(tally: Tally, table: ShardTable, pipeline: Pipeline, *, has_tokens: bool) -> dict[str, Any]:
    lengths, seq_len = tally.lengths, pipeline.seq_len
    return {
        "num_shards": len(table),
        "shard_bytes": table.total_bytes,
        "field": str(pipeline.documents.field),
        "samples": tally.samples,
        "documents": tally.documents,
        "text_bytes": tally.text_bytes,
        "tokens": tally.tokens if has_tokens else None,
        "lengths": {
            "unit": "tokens" if has_tokens else "bytes",
            "mean": lengths.mean,
            "median": lengths.percentile(0.5),
            "p90": lengths.percentile(0.9),
            "p99": lengths.percentile(0.99),
            "max": lengths.longest,
            "histogram": [
                {"from": low, "to": high, "documents": documents, "units": units}
                for low, high, documents, units in lengths.octaves()
            ],
        },
        "seq_len": seq_len,
        "packing": {
            packing.value: {
                "packs": packed.packs(seq_len),
                "efficiency": packed.efficiency(seq_len),
                "padding": packed.packs(seq_len) * seq_len - packed.tokens - packed.tail_tokens,
                "split_documents": packed.split_documents,
            }
            for packing, packed in tally.packed.items()
        },
        "longest": [{"length": length, **place._asdict()} for length, place in tally.longest],
        "bad_records": tally.bad_records,
        "bad": [{"error": error, **place._asdict()} for place, error in tally.bad],
    }
