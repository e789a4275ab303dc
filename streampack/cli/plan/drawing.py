"""A plan on the terminal: a block each for the corpus, the sample, the lanes, the work of a rank and its memory."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from streampack.cli.console import format_bytes
from streampack.cli.plan.estimates import Plan
from streampack.cli.plan.facts import (
    Block,
    corpus_block,
    lane_block,
    memory_block,
    position_block,
    rank_block,
    sample_block,
    short,
    validation_block,
)


def draw(console: Console, plan: Plan) -> None:
    """All of it; warnings and errors are printed by the caller."""
    rank = plan.rank
    if len(plan.sources) == 1:
        _draw_block(console, corpus_block(plan, plan.config, plan.corpus, plan.bytes_per_token))
        if plan.sample is not None:
            _draw_block(console, sample_block(plan, plan.sample))
    else:
        _draw_sources(console, plan)
    if plan.validation is not None:
        _draw_block(console, validation_block(plan, plan.validation))
    if not plan.stages:
        console.print()
        return
    if len(plan.sources) > 1 or len(plan.stages) > 1 or plan.budget_packs is not None:
        _draw_stages(console, plan)
    if plan.position is not None:
        _draw_block(console, position_block(plan, plan.position))
    _draw_block(console, lane_block(plan), _fitting(plan))
    if rank is not None:
        _draw_block(console, rank_block(plan, rank))
        _draw_block(console, memory_block(plan, rank))
    console.print()


def _fitting(plan: Plan) -> Text:
    fits = Text()
    for number in plan.lanes.fitting_ranks:
        is_asked = plan.rank is not None and number == plan.rank.ranks
        fits.append(f"{number:,}", style="bold green" if is_asked else "")
        fits.append(" ")
    fits.append("(others: streampack relane)", style="dim")
    return fits


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
            f"~{short(corpus.estimated_tokens)}",
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
        tokens = "" if stage.tokens is None else short(stage.tokens)
        epochs = ["", ""]  # with several sources in the row of each
        if len(plan.sources) == 1 and stage.packs is not None:
            [only] = stage.sources.values()
            epochs, tokens = [f"{only.epochs:.2f}", f"{only.epochs_by_end:.2f}"], f"~{short(only.tokens or 0)}"
        table.add_row(f"{number}: {stage.seq_len:,}", f"{stage.first_pack:,}", step, "", total, tokens, *epochs)
        for name, given in stage.sources.items() if len(plan.sources) > 1 else ():
            of_stage = ["", "", "", ""]
            if given.packs is not None and given.tokens is not None and given.epochs is not None:
                of_stage = [f"{given.packs:,}", f"~{short(given.tokens)}", f"{given.epochs:.2f}"]
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


def _draw_block(console: Console, block: Block, fitting: Text | None = None) -> None:
    console.print()
    console.print(Text(block.title, style="bold"))
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True, width=16)
    grid.add_column(justify="right", no_wrap=True, width=9)
    grid.add_column(overflow="fold")
    for fact in block.facts:
        grid.add_row(fact.name, Text(fact.value, style="bold cyan"), fact.remark)
    console.print(grid)
    if fitting is not None:
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="dim", no_wrap=True, width=16)
        grid.add_column(overflow="fold")
        grid.add_row("ranks that fit", fitting)
        console.print(grid)
