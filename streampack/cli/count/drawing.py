"""What was counted, on the terminal: totals, lengths as bars, how well documents pack, the longest, bad records."""

import math
from collections.abc import Mapping

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from streampack.cli.console import bar, common_folder, format_bytes, plural, printable, shorten
from streampack.cli.count.counted import Counted
from streampack.cli.count.tally import Tally

_NARROW = 72


def draw(console: Console, counted: Counted) -> None:
    """All of it, one part after the other."""
    tally = counted.tally
    _draw_totals(console, counted)
    if tally.documents:
        _draw_lengths(console, tally, counted.unit)
    if tally.packed and tally.documents:
        _draw_packing(console, tally, counted.seq_len)
    if tally.longest:
        _draw_longest(console, tally, counted.unit)
    if tally.bad_records:
        _draw_bad(console, tally)


def draw_sources(console: Console, counted: Mapping[str, Counted]) -> None:
    """A line for each source, and one for all of them."""
    table = _table("Sources")
    table.add_column("source", style="bold", overflow="fold")
    for name in ("shards", "bytes", "documents", "tokens", "mean", "bad records"):
        table.add_column(name, justify="right", no_wrap=True)
    total = Tally()
    for name, each in counted.items():
        total.merge(each.tally)
        table.add_row(name, *_of_source(each.num_shards, each.shard_bytes, each.tally))
    every = counted.values()
    table.add_section()
    num_shards, num_bytes = sum(each.num_shards for each in every), sum(each.shard_bytes for each in every)
    table.add_row("all", *_of_source(num_shards, num_bytes, total))
    _print_table(console, table, "mean: tokens of a document; --source NAME shows how the documents of one source pack")


def _of_source(shards: int, size: int, tally: Tally) -> list[str | Text]:
    bad = Text(f"{tally.bad_records:,}", style="bold red" if tally.bad_records else "")
    documents, mean = f"{tally.documents:,}", f"{tally.tokens / max(tally.documents, 1):,.0f}"
    return [f"{shards:,}", format_bytes(size), documents, f"{tally.tokens:,}", mean, bad]


def _draw_totals(console: Console, counted: Counted) -> None:
    tally = counted.tally
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column(style="dim")
    note = f", {counted.num_estimated:,} of them estimated" if counted.num_estimated else ""
    grid.add_row("shards", f"{counted.num_shards:,}", format_bytes(counted.shard_bytes) + note)
    grid.add_row("documents", f"{tally.documents:,}", f"{counted.field} of {plural(tally.samples, 'sample')}")
    if tally.text_bytes or not counted.has_tokens:
        mean = format_bytes(tally.text_bytes / max(tally.documents, 1))
        grid.add_row("text", format_bytes(tally.text_bytes), f"{tally.text_bytes:,} bytes, {mean} a document")
    if counted.has_tokens:
        note = f"with {' and '.join(counted.ends)}" if counted.ends else "without BOS and EOS"
        if tally.text_bytes and tally.tokens:
            note += f", {tally.text_bytes / tally.tokens:.2f} bytes a token"
        grid.add_row("tokens", f"{tally.tokens:,}", note)
    style = "bold red" if tally.bad_records else ""
    grid.add_row("bad records", Text(f"{tally.bad_records:,}", style=style), "left out" if tally.bad_records else "")
    speed = format_bytes(counted.shard_bytes / max(counted.seconds, 1e-9))
    processes = "1 process" if counted.num_processes == 1 else f"{counted.num_processes} processes"
    how = f"{speed}/s, {processes}" if counted.num_parts == 1 else f"of {counted.num_parts:,} parts, added up"
    grid.add_row("time", f"{counted.seconds:,.1f} s", how)
    console.print(grid)


def _draw_lengths(console: Console, tally: Tally, unit: str) -> None:
    lengths = tally.lengths
    octaves = lengths.octaves()
    most = max(documents for _, _, documents, _ in octaves)
    wide = console.width >= _NARROW
    table = _table(f"Lengths in {unit}s")
    table.add_column(f"{unit}s", justify="right", no_wrap=True)
    table.add_column("documents", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    if wide:
        table.add_column(f"of the {unit}s", justify="right", no_wrap=True)
    room = max(min(console.width, 110) - (62 if wide else 44), 6)
    for low, high, documents, units in octaves:
        width = math.log1p(documents) / math.log1p(most)
        row: list[str | Text] = [
            f"{low:,}" if low == high else f"{low:,}-{high:,}",
            f"{documents:,}",
            Text(bar(width, room).ljust(room), style="cyan"),
            f"{documents / tally.documents:.1%}",
        ]
        if wide:
            row.append(f"{units / max(int(lengths.units.sum()), 1):.1%}")
        table.add_row(*row)
    _print_table(console, table, "bars are on a logarithmic scale")
    median, most_of, nearly = (lengths.percentile(share) for share in (0.5, 0.9, 0.99))
    console.print(
        Text.assemble(
            ("mean ", "dim"), f"{lengths.mean:,.0f}",
            ("   median about ", "dim"), f"{median:,}",
            ("   90 % up to ", "dim"), f"{most_of:,}",
            ("   99 % up to ", "dim"), f"{nearly:,}",
            ("   longest ", "dim"), f"{lengths.longest:,}",
        )
    )  # fmt: skip


def _draw_packing(console: Console, tally: Tally, seq_len: int) -> None:
    table = _table(f"Packs of {seq_len:,} tokens")
    for name in ("packing", "packs", "efficiency", "padding", "documents cut"):
        table.add_column(name, justify="left" if name == "packing" else "right", no_wrap=True)
    for packing, packed in tally.packed.items():
        packs = packed.packs(seq_len)
        efficiency = packed.efficiency(seq_len)
        style = "green" if efficiency > 0.95 else "yellow" if efficiency > 0.8 else "red"
        table.add_row(
            str(packing),
            f"{packs:,}",
            Text(f"{efficiency:.2%}", style=style),
            f"{packed.padding(seq_len):,}",
            f"{packed.split_documents:,} ({packed.split_documents / max(tally.documents, 1):.1%})",
        )
    _print_table(console, table, "each shard is packed by itself; the unfinished packs at their ends are added up")


def _draw_longest(console: Console, tally: Tally, unit: str) -> None:
    folder = common_folder(location.url for _, location in tally.longest)
    table = _table("Longest documents")
    table.add_column(f"{unit}s", justify="right", no_wrap=True)
    table.add_column("key", style="bold", overflow="fold")
    table.add_column("shard", overflow="fold")
    for length, location in tally.longest:
        record = f" record {location.record}" if location.record else ""
        part = f" part {location.part}" if location.part else ""
        table.add_row(f"{length:,}", printable(location.key) + record + part, printable(location.url[len(folder) :]))
    _print_table(console, table, f"shards in {printable(folder)}" if folder else "")


def _draw_bad(console: Console, tally: Tally) -> None:
    console.print("", Text("Bad records", style="bold red"), sep="\n")
    for _, error in tally.bad:
        console.print(Text(f"  {shorten(printable(error), 400)}", overflow="fold"))
    if tally.bad_records > len(tally.bad):
        console.print(Text(f"  and {tally.bad_records - len(tally.bad):,} more", style="dim"))


def _table(title: str) -> Table:
    return Table(
        title=title,
        title_style="bold",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        header_style="dim",
        pad_edge=False,
        show_edge=False,
    )


def _print_table(console: Console, table: Table, caption: str) -> None:
    """The table and a line below it, which may be wider than the table."""
    console.print("", table, sep="\n")
    if caption:
        console.print(Text(caption, style="dim", overflow="fold"))
