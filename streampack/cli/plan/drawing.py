"""A plan on the terminal: a block each for the corpus, the sample, the lanes, the work of a rank and its memory."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from streampack.cli.console import format_bytes, plural
from streampack.cli.plan.estimates import CorpusPlan, LanePlan, Plan, RankPlan
from streampack.cli.plan.measured import SamplePlan

Line = tuple[str, str | Text, str]
"""Name, value, and a note."""


def draw(console: Console, plan: Plan) -> None:
    """All of it; warnings and errors are printed by the caller."""
    rank = plan.rank
    _draw_block(console, f"Corpus of {plan.config}", _corpus(plan, plan.corpus))
    if plan.sample is not None:
        _draw_block(console, "Sample", _sample(plan, plan.sample))
    _draw_block(console, "Lanes", _lanes(plan.lanes, None if rank is None else rank.ranks))
    if rank is not None:
        workers = f"{rank.workers} workers" if rank.workers != 1 else "1 worker"
        _draw_block(console, f"On {plural(rank.ranks, 'rank')} with {workers}", _rank(plan, rank))
        _draw_block(console, "Memory of a worker" if rank.workers else "Memory of a rank", _memory(rank))
    console.print()


def _corpus(plan: Plan, corpus: CorpusPlan) -> list[Line]:
    whole = "of unknown size, or marked in the manifest"
    if corpus.num_compressed:
        whole = "compressed" if corpus.num_compressed == corpus.num_whole else f"{corpus.num_compressed:,} compressed"
    assumed = " (assumed)" if plan.sample is None else ""
    epochs = "endless" if plan.epochs is None else plural(plan.epochs, "epoch")
    return [
        ("shards", f"{corpus.num_shards:,}", format_bytes(corpus.total_bytes)),
        ("divided", f"{corpus.num_cut:,}", f"{format_bytes(corpus.cut_bytes)}, each among several lanes"),
        (
            "read whole",
            f"{corpus.num_whole:,}",
            f"{format_bytes(corpus.whole_bytes)}, each by one lane: {whole}" if corpus.num_whole else "",
        ),
        (
            "tokens",
            f"~{_short(corpus.estimated_tokens)}",
            f"in an epoch, with {plan.bytes_per_token:.3g} bytes a token{assumed}; {epochs}",
        ),
    ]


def _sample(plan: Plan, sample: SamplePlan) -> list[Line]:
    all_of_it = ": all of the corpus" if sample.is_complete else ""
    lines: list[Line] = [
        ("read", format_bytes(sample.bytes), f"{plural(sample.documents, 'document')}{all_of_it}"),
        (
            "bytes a token",
            f"{sample.bytes_per_token:.2f}",
            f"of shards, headers included; differs by {sample.spread:.1%} from place to place",
        ),
        (
            "document",
            f"{sample.mean_tokens:,.0f}",
            f"tokens; median {sample.median_tokens:,}, 99 % up to {sample.p99_tokens:,}, longest {sample.max_tokens:,}",
        ),
    ]
    if sample.cut_documents:
        what = f"of the tokens, which `overflow` takes from {plural(sample.cut_documents, 'document')}"
        lines.append(("left out", f"{sample.cut_share:.1%}", what))
    if sample.samples_per_block:
        size = format_bytes(sample.block_bytes)
        lines.append(("block fill", f"{sample.documents_per_block:.3g}", f"documents begin in each {size} of a shard"))
    if sample.pack_fill < 1:
        lines.append(("pack fill", f"{sample.pack_fill:.1%}", f"of the rows of a pack of {plan.seq_len:,}"))
    return lines


def _lanes(lanes: LanePlan, ranks: int | None) -> list[Line]:
    least, mean, most = (format_bytes(size) for size in (lanes.min_bytes, lanes.mean_bytes, lanes.max_bytes))
    note = "in epoch 0, the same for all" if least == most else f"mean in epoch 0; lowest {least}, highest {most}"
    if lanes.num_empty:
        note += f"; {lanes.num_empty:,} have none"
    most_of = max(lanes.mean_tokens, 1)
    blocks: list[Line] = []
    if lanes.block_bytes:
        each = f"{lanes.mean_bytes / lanes.block_bytes:,.0f}"
        windows = f"of which {lanes.window} at a time are mixed"
        blocks.append(("blocks per lane", each, f"of {format_bytes(lanes.block_bytes)}, {windows}"))
    fits = Text()
    for number in lanes.fitting_ranks:
        fits.append(f"{number:,}", style="bold green" if number == ranks else "")
        fits.append(" ")
    lines: list[Line] = [
        ("lanes", f"{lanes.num_lanes:,}", "from the corpus's bytes (auto)" if lanes.auto else "as configured"),
        ("bytes per lane", mean, note),
        *blocks,
        (
            "tokens per lane",
            f"~{_short(lanes.mean_tokens)}",
            f"mean in epoch 0; lowest {lanes.min_tokens / most_of:.1%}, highest {lanes.max_tokens / most_of:.1%} of it",
        ),
        ("state", format_bytes(lanes.state_bytes), "in a checkpoint, for all lanes"),
    ]
    if lanes.filler_share is not None:
        lines.append(("fillers", f"{lanes.filler_share:.1%}", "of all packs, estimated from the lanes' tokens"))
    if lanes.unread_share is not None:
        lines.append(("not read", f"{lanes.unread_share:.1%}", "of all packs, as the run ends with its shortest lane"))
    return [*lines, ("ranks that fit", fits, "")]


def _rank(plan: Plan, rank: RankPlan) -> list[Line]:
    most = f"at most {rank.lanes_per_worker:,} per worker" if rank.workers else "read in the main process"
    tokens = rank.global_batch * plan.seq_len
    end = "; with fillers" if plan.lanes.filler_share else ""
    end = "; up to the end of the shortest lane" if plan.lanes.unread_share else end
    return [
        ("lanes per rank", f"{rank.lanes_per_rank:,}", most),
        (
            "global batch",
            f"{rank.global_batch:,}",
            f"packs of {plan.seq_len:,}: {_short(tokens)} tokens; {plural(rank.batch_size, 'pack')} per rank",
        ),
        ("batches", f"~{rank.batches_per_epoch:,}", f"in an epoch, on each rank{end}"),
        (
            "requests",
            f"~{rank.requests_per_s:.2g}/s",
            f"of {format_bytes(rank.request_bytes)}, over all ranks, at {plan.tokens_per_second:,.0f} tokens/s a rank",
        ),
        ("", _short(rank.requests_per_epoch), f"in an epoch; {rank.requests_at_start:,} before the first batches"),
    ]


def _memory(rank: RankPlan) -> list[Line]:
    tokens = _short(rank.spare_tokens)
    needed = f"for {plural(rank.lanes_per_worker, 'lane')}; limits.buffer_bytes of at least {rank.needed_bytes:,}"
    lines: list[Line] = [
        ("buffer", format_bytes(rank.buffer_bytes), needed),
        ("share of a lane", format_bytes(rank.share_bytes), ""),
    ]
    for name, size in (("shuffle", rank.shuffle_window_bytes), ("packing", rank.packing_window_bytes)):
        if size:
            lines.append((f"{name} window", format_bytes(size), "of it, held as long as the window lasts"))
    lines.append(("range", format_bytes(rank.range_bytes), "the part of a shard that a lane holds at most besides"))
    if rank.shuffle_window_bytes:
        lines.append(("parked", "never", "a lane keeps its window"))
    elif rank.parks_often:
        lines.append(("parked", "often", f"a share holds {tokens} tokens, less than two packs"))
    else:
        lines.append(("parked", "rarely", f"over {tokens} tokens per lane"))
    return [*lines, ("prefetched", format_bytes(rank.prefetch_bytes), "of packs, over all workers of a rank")]


def _draw_block(console: Console, title: str, lines: list[Line]) -> None:
    console.print()
    console.print(Text(title, style="bold"))
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True, width=16)
    grid.add_column(justify="right", no_wrap=True, width=9)
    grid.add_column(overflow="fold")
    for name, value, note in lines:
        if isinstance(value, str):
            grid.add_row(name, Text(value, style="bold cyan"), note)
        else:
            console.print(grid)
            grid = Table.grid(padding=(0, 2))
            grid.add_column(style="dim", no_wrap=True, width=16)
            grid.add_column(overflow="fold")
            grid.add_row(name, value)
    console.print(grid)


def _short(number: float) -> str:
    """The number with a unit: `1.2 M`."""
    for unit in ("", " k", " M", " G"):
        if number < 1000:
            return f"{number:.0f}{unit}" if number >= 100 or not unit else f"{number:.1f}{unit}"
        number /= 1000
    return f"{number:,.1f} T"
