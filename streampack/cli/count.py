"""`streampack count`: what is in the shards, and how well it packs, without making a batch.

Each process counts whole shards, the largest first; what comes back for a shard is a tally of fixed size. So memory
does not grow with the corpus, and the result does not depend on how many processes there were.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from streampack.cli.arguments import ChatTemplate, Field, Json, Shards, Tokenizer, make_dataset
from streampack.cli.console import output, print_json
from streampack.cli.countview import draw
from streampack.cli.progress import ShardProgress
from streampack.cli.tally import Tally, tally_shard
from streampack.dataset import PackedDataset
from streampack.errors import LoaderError, ShardError
from streampack.recipe import Recipe
from streampack.records import Shard
from streampack.shards import ShardTable
from streampack.tokenizer import ByteTokenizer

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import Synchronized
    from multiprocessing.synchronize import Event

Advance = Callable[[int, int], None]
"""Called with (bytes of shards done, shards done) so far."""


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
    workers: Annotated[
        int | None, typer.Option("--workers", "-w", min=1, help="Processes.", show_default="one per core")
    ] = None,
    json: Json = False,
) -> None:
    """Count documents, bytes and tokens of shards, and how well they pack."""
    begin = perf_counter()
    dataset, has_tokens = _dataset(
        shards,
        tokenizer,
        seq_len=seq_len,
        field=field,
        chat_template=chat_template,
        add_bos=bos,
        add_eos=eos,
        on_error=on_error,
    )
    table, recipe = dataset.list_shards(), dataset.recipe
    workers = min(workers or _num_cores(), len(table))
    tally = Tally()
    with ShardProgress("counting", table) as progress:
        parts = (
            _tally_here(recipe, table, has_tokens=has_tokens, advance=progress.advance)
            if workers == 1
            else _tally_side_by_side(recipe, table, has_tokens=has_tokens, workers=workers, advance=progress.advance)
        )
        for part in parts:
            tally.merge(part)
    seconds = perf_counter() - begin
    if json:
        print_json(_as_json(tally, table, recipe, has_tokens=has_tokens))
        return
    draw(output(), tally, table, recipe, has_tokens=has_tokens, seconds=seconds, workers=workers)


def _dataset(shards: list[str], tokenizer: str | None, **given: Any) -> tuple[PackedDataset, bool]:
    """The dataset, and whether it gives tokens; without a tokenizer text is only measured."""
    if tokenizer is None and given["field"] == "npy":
        bare = {"add_bos": False, "add_eos": False}
        return make_dataset(shards, **given | {name: given[name] or value for name, value in bare.items()}), True
    if tokenizer is None and not (len(shards) == 1 and shards[0].endswith((".yaml", ".yml"))):
        return make_dataset(shards, tokenizer=ByteTokenizer(), **given), False  # which is asked for nothing
    return make_dataset(shards, tokenizer=tokenizer, **given), True


def _num_cores() -> int:
    """Cores that this process may use, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _as_json(tally: Tally, table: ShardTable, recipe: Recipe, *, has_tokens: bool) -> dict[str, Any]:
    lengths, seq_len = tally.lengths, recipe.seq_len
    return {
        "num_shards": len(table),
        "shard_bytes": table.total_bytes,
        "field": str(recipe.documents.field),
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
        "skipped": tally.skipped,
        "bad": [{"error": error, **place._asdict()} for place, error in tally.bad],
    }


# -- processes -------------------------------------------------------------------------------------------------------


def _tally_here(recipe: Recipe, table: ShardTable, *, has_tokens: bool, advance: Advance) -> Iterator[Tally]:
    """A tally for each shard, made in this process."""
    bytes_done = finished = 0

    def tell(size: int) -> None:
        nonlocal bytes_done
        bytes_done += size
        advance(bytes_done, finished)

    for index, shard in enumerate(table):
        yield tally_shard(recipe, index, shard, has_tokens=has_tokens, tell=tell)
        finished += 1


def _tally_side_by_side(
    recipe: Recipe, table: ShardTable, *, has_tokens: bool, workers: int, advance: Advance
) -> Iterator[Tally]:
    """A tally for each shard, in any order."""
    order = np.argsort(-table.sizes, kind="stable").tolist()  # the largest first: none is left to the end
    context = multiprocessing.get_context()
    bytes_done: Synchronized[int] = context.Value("q", 0)
    stop = context.Event()
    initial = (recipe, has_tokens, bytes_done, stop)
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=initial) as pool:
        left = iter(order)
        running: set[Future[Tally]] = set()
        finished = 0
        try:
            while True:
                while len(running) < 2 * workers and (index := next(left, None)) is not None:
                    running.add(pool.submit(_work, index, table[index]))
                if not running:
                    return
                ended, running = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
                finished += len(ended)
                advance(bytes_done.value, finished)
                yield from (future.result() for future in ended)
        except BrokenProcessPool as error:
            raise LoaderError("a counting process died: killed, or out of memory; use fewer --workers") from error
        finally:
            stop.set()  # an error, or Ctrl-C: the others end at their next sample
            pool.shutdown(wait=False, cancel_futures=True)


_job: "tuple[Recipe, bool, Synchronized[int], Event]"
"""What this process was started for."""


def _start(*job: Any) -> None:
    global _job  # noqa: PLW0603 (a process pool hands its work to a plain function)
    _job = job
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the main process, which sets `stop`


def _work(index: int, shard: Shard) -> Tally:
    recipe, has_tokens, bytes_done, stop = _job

    def tell(size: int) -> None:
        with bytes_done.get_lock():
            bytes_done.value += size
        if stop.is_set():
            raise ShardError("stopped", url=shard.url)

    return tally_shard(recipe, index, shard, has_tokens=has_tokens, tell=tell)
