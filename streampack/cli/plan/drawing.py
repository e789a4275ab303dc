"""A plan on the terminal: a block each for the corpus, the sample, the lanes, the work of a rank and its memory."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from streampack.cli.console import format_bytes, plural
from streampack.cli.plan.estimates import CorpusPlan, LanePlan, Plan, RankPlan
from streampack.cli.plan.measured import SamplePlan
from streampack.cli.plan.validation import ValidationPlan

Line = tuple[str, str | Text, str]
"""Name, value, and a note."""


def draw(console: Console, plan: Plan) -> None:
    """All of it; warnings and errors are printed by the caller."""
    rank = plan.rank
    if len(plan.sources) == 1:
        _draw_block(console, f"Corpus of {plan.config}", _corpus(plan, plan.corpus))
        if plan.sample is not None:
            _draw_block(console, "Sample", _sample(plan, plan.sample))
    else:
        _draw_sources(console, plan)
    if plan.validation is not None:
        _draw_block(console, f"Validation on {plural(plan.validation.ranks, 'rank')}", _validation(plan.validation))
    if not plan.stages:
        console.print()
        return
    if len(plan.sources) > 1 or len(plan.stages) > 1 or plan.budget_packs is not None:
        _draw_stages(console, plan)
    _draw_block(console, "Lanes", _lanes(plan, None if rank is None else rank.ranks))
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


def _validation(validation: ValidationPlan) -> list[Line]:
    bounded = f", of ~{validation.packs_of_set:,} in the set" if validation.packs < validation.packs_of_set else ""
    each = plural(validation.batch_size, "pack")
    of_sources = validation.packs_of_sources
    sources: list[Line] = [(f"  of {name}", f"~{packs:,}", "") for name, packs in of_sources.items()]
    return [
        ("packs", f"~{validation.packs:,}", f"in each iteration{bounded}; the same ones on any number of ranks"),
        *(sources if len(sources) > 1 else []),
        ("batches", f"~{validation.batches:,}", f"in each iteration, on each rank; {each} each"),
    ]


def _lanes(plan: Plan, ranks: int | None) -> list[Line]:
    lanes = plan.lanes
    auto = "from the bytes of the data (auto)" if lanes.auto else "as configured"
    fits = Text()
    for number in lanes.fitting_ranks:
        fits.append(f"{number:,}", style="bold green" if number == ranks else "")
        fits.append(" ")
    first: Line = ("lanes", f"{lanes.num_lanes:,}", auto)
    last: list[Line] = [("state", format_bytes(lanes.state_bytes), "in a checkpoint, for all lanes")]
    of_source = _lanes_of_source(lanes) if len(plan.sources) == 1 else []
    return [first, *of_source, *last, *_ends(lanes), ("ranks that fit", fits, "")]


def _lanes_of_source(lanes: LanePlan) -> list[Line]:
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
    return [
        ("bytes per lane", mean, note),
        *blocks,
        (
            "tokens per lane",
            f"~{_short(lanes.mean_tokens)}",
            f"mean in epoch 0; lowest {lanes.min_tokens / most_of:.1%}, highest {lanes.max_tokens / most_of:.1%} of it",
        ),
    ]


def _ends(lanes: LanePlan) -> list[Line]:
    lines: list[Line] = []
    if lanes.filler_share is not None:
        lines.append(("fillers", f"{lanes.filler_share:.1%}", "of all packs, estimated from the lanes' tokens"))
    if lanes.unread_share is not None:
        lines.append(("not read", f"{lanes.unread_share:.1%}", "of all packs, as the run ends with its shortest lane"))
    return lines


def _rank(plan: Plan, rank: RankPlan) -> list[Line]:
    most = f"at most {rank.lanes_per_worker:,} per worker" if rank.workers else "read in the main process"
    tokens = rank.global_batch * plan.seq_len
    end = "; with fillers" if plan.lanes.filler_share else ""
    end = "; up to the end of the shortest lane" if plan.lanes.unread_share else end
    batches: list[Line] = []
    if rank.batches_per_epoch is not None:
        batches.append(("batches", f"~{rank.batches_per_epoch:,}", f"in an epoch, on each rank{end}"))
    if rank.batches is not None:
        batches.append(("batches" if not batches else "", f"{rank.batches:,}", "in the run, on each rank"))
    each = rank.requests_per_epoch
    in_epoch = "" if each is None else "in an epoch; "
    return [
        ("lanes per rank", f"{rank.lanes_per_rank:,}", most),
        (
            "global batch",
            f"{rank.global_batch:,}",
            f"packs of {plan.seq_len:,}: {_short(tokens)} tokens; {plural(rank.batch_size, 'pack')} per rank",
        ),
        *batches,
        (
            "requests",
            f"~{rank.requests_per_s:.2g}/s",
            f"of {format_bytes(rank.request_bytes)}, over all ranks, at {plan.tokens_per_second:,.0f} tokens/s a rank",
        ),
        ("", "" if each is None else _short(each), f"{in_epoch}{rank.requests_at_start:,} before the first batches"),
    ]


def _memory(rank: RankPlan) -> list[Line]:
    tokens = _short(rank.spare_tokens)
    of_sources = f" of {rank.sources_at_once} sources" if rank.sources_at_once > 1 else ""
    lanes = plural(rank.lanes_per_worker, "lane")
    needed = f"for {lanes}{of_sources}; limits.buffer_bytes of at least {rank.needed_bytes:,}"
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


def _draw_sources(console: Console, plan: Plan) -> None:
    """A line for each source."""
    names = ("source", "shards", "bytes", "tokens", "bytes/token", "document", "fill")
    table = _table(f"Sources of {plan.config}", *names)
    for name, source in plan.sources.items():
        sample, corpus = source.sample, source.corpus
        table.add_row(
            name,
            f"{corpus.num_shards:,}",
            format_bytes(corpus.total_bytes),
            f"~{_short(corpus.estimated_tokens)}",
            f"{source.bytes_per_token:.3g}",
            "" if sample is None else f"{sample.mean_tokens:,.0f}",
            "" if sample is None else f"{sample.pack_fill:.1%}",
        )
    console.print("", table, sep="\n")
    words = "tokens: of an epoch; document: mean tokens; fill: rows of a pack that hold a token"
    console.print(Text(f"{words}{' (assumed)' if plan.sample is None else ''}", style="dim", overflow="fold"))


def _draw_stages(console: Console, plan: Plan) -> None:
    """A line for each stage, and for each of its sources."""
    end = "no end" if plan.budget_packs is None else f"{plan.budget_packs:,} packs"
    names = ("stage", "pack", "step", "share", "packs", "tokens", "epochs", "by its end")
    table = _table(f"Stages of a run with {end}", *names)
    for number, stage in enumerate(plan.stages):
        step = f"{stage.first_step:,}" if plan.rank is not None else ""
        total = "" if stage.packs is None else f"{stage.packs:,}"
        tokens = "" if stage.tokens is None else _short(stage.tokens)
        epochs = ["", ""]  # with several sources in the row of each
        if len(plan.sources) == 1 and stage.packs is not None:
            [only] = stage.sources.values()
            epochs, tokens = [f"{only.epochs:.2f}", f"{only.epochs_by_end:.2f}"], f"~{_short(only.tokens or 0)}"
        table.add_row(f"{number}: {stage.seq_len:,}", f"{stage.first_pack:,}", step, "", total, tokens, *epochs)
        for name, given in stage.sources.items() if len(plan.sources) > 1 else ():
            of_stage = ["", "", "", ""]
            if given.packs is not None and given.tokens is not None and given.epochs is not None:
                of_stage = [f"{given.packs:,}", f"~{_short(given.tokens)}", f"{given.epochs:.2f}"]
                of_stage.append(f"{given.epochs_by_end:.2f}")
            table.add_row(f"  {name}", "", "", f"{given.share:.2%}", *of_stage)
    console.print("", table, sep="\n")
    console.print(Text("pack, step: the first ones; epochs: estimated, of each source", style="dim", overflow="fold"))
    found = [stage.deviations for stage in plan.stages if stage.deviations is not None]
    if found:
        prefix, of_round, lane = (max(getattr(each, name) for each in found) for name in ("prefix", "round", "lane"))
        console.print(
            f"A source is at most {prefix:.1f} packs from its share at any pack of a stage, {of_round:.1f} in a round, "
            f"{lane:.1f} in a lane (counted in the first {max(each.packs for each in found):,} packs)."
        )


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(
        title=title, title_style="bold", title_justify="left", box=None, header_style="dim", pad_edge=False
    )
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


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
