"""A traced pack on the terminal: a line for each of its documents, and below it where their shards are."""

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from streampack.cli.console import common_folder, plural, printable
from streampack.cli.trace.found import TracedPack, TracedSegment
from streampack.corpus.shares import DEFAULT

_COLOURS = ("cyan", "yellow")
_UNLIMITED = 1 << 16
"""Columns: more than any line has."""


def draw(console: Console, pack: TracedPack) -> None:
    """One pack with all of its documents."""
    title = f"pack {pack.global_pack:,}"
    of_step = "" if pack.row is None else f" = row {pack.row} of "
    if pack.row is not None:
        of_step += "the batch" if pack.step is None else f"step {pack.step:,}"
    of_source = "" if pack.source in (None, DEFAULT) else f", source {pack.source}"
    where = f" = pack {pack.lane_pack:,} of lane {pack.lane}, stage {pack.stage}{of_source}"
    console.print(Rule(Text.assemble((title, "bold"), of_step, where), align="left"))
    if pack.source is None:
        why = f"has ended, with no more than {pack.lane_ended_after or 0:,} packs"
        if pack.lane_ended_after is None:
            why = "waits for a later stage"
        console.print(f"a filler, which is all padding: lane {pack.lane} {why}\n", style="dim")
        return
    console.print(
        f"{plural(pack.seq_len, 'row')}: {plural(pack.num_targets, 'target')}, "
        f"{pack.seq_len - pack.num_tokens:,} padding; {plural(len(pack.segments), 'document')}",
        style="dim",
    )
    folder = common_folder(segment.url for segment in pack.segments)
    console.print(Text(f"shards in {printable(folder)}", style="dim", overflow="fold"))
    _print_table(console, _table(pack.segments, folder))
    _draw_versions(console, pack.segments, folder)
    for number, segment in enumerate(pack.segments):
        if segment.text is not None:
            colour = _COLOURS[number % 2]
            heading = Text(f"rows {_range(segment.first_row, segment.num_rows)}  key {printable(segment.key)}")
            heading.stylize(f"bold {colour}")
            console.print(heading)
            console.print(Text(segment.text.replace("↵", "↵\n"), style=colour, overflow="fold"))
    console.print()


def _print_table(console: Console, table: Table) -> None:
    """The table; as wide as it is where stdout is not a terminal, so that keys and shards can be searched."""
    width = console.width
    if not console.is_terminal:
        unlimited = console.options.update(max_width=_UNLIMITED)
        console.width = max(width, Measurement.get(console, unlimited, table).maximum)
    console.print(table)
    console.width = width


def _table(segments: list[TracedSegment], folder: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    many = {"record": any(each.record for each in segments), "part": any(each.part for each in segments)}
    in_compressed = any(each.byte_offset is None for each in segments)
    for name in ("rows", "of the document", "targets", "epoch"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("key", overflow="fold")
    for name in [name for name, shown in many.items() if shown] + ["sample" if in_compressed else "byte"]:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("shard", overflow="fold")
    for number, each in enumerate(segments):
        offset = f"number {each.ordinal:,}" if each.byte_offset is None else f"{each.byte_offset:,}"
        if in_compressed and each.byte_offset is not None:
            offset = f"byte {offset}"
        table.add_row(
            _range(each.first_row, each.num_rows),
            _range(each.document_row, each.num_rows),
            f"{each.targets:,}",
            f"{each.epoch:,}",
            printable(each.key),
            *(f"{getattr(each, name):,}" for name, shown in many.items() if shown),
            offset,
            printable(each.url[len(folder) :]),
            style=_COLOURS[number % 2],
        )
    return table


def _draw_versions(console: Console, segments: list[TracedSegment], folder: str) -> None:
    """The ETags or digests of the shards, where they are known."""
    for each in {each.url: each for each in segments}.values():
        known = [f"ETag {each.etag}"] if each.etag else []
        known += [f"digest {each.digest}"] if each.digest else []
        if known:
            line = f"{printable(each.url[len(folder) :])}  {'  '.join(known)}"
            console.print(Text(printable(line), style="dim", overflow="fold"))


def _range(first: int, length: int) -> str:
    return f"{first:,}-{first + length - 1:,}"
