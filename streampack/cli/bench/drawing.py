"""A benchmark's report on the terminal, as Markdown and as an SVG file: the same tables everywhere.

Invariants: a number that was measured more than once is shown with its range.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from streampack.cli.bench.chart import Bar, Group, Panel, draw_panels, number
from streampack.cli.bench.comparison import WITHOUT_TOKENIZER
from streampack.cli.bench.stopwatch import Spread

if TYPE_CHECKING:
    from streampack.cli.bench.report import Report

NOISE = (
    "A ratio is taken within a round, in which all variants run in turn, and shown as median (lowest to highest). On a "
    "machine that others share, single figures move by a quarter and more: trust a ratio whose range is narrow, and "
    "measure again on an idle machine what matters."
)


@dataclass(frozen=True, slots=True)
class Sheet:
    """One table."""

    title: str
    header: list[str]
    rows: list[list[str]]


def spread(value: Spread) -> str:
    """`0.97 (0.95 to 0.98)`.

    >>> spread(Spread(0.95, 0.97, 0.98))
    '0.97 (0.95 to 0.98)'
    """
    return f"{number(value.median)} ({number(value.low)} to {number(value.high)})"


def _millions(value: Spread) -> str:
    return spread(Spread(value.low / 1e6, value.median / 1e6, value.high / 1e6))


def _milliseconds(value: Spread) -> str:
    return spread(Spread(value.low * 1e3, value.median * 1e3, value.high * 1e3))


def sheets(report: "Report") -> list[Sheet]:
    """The tables of a report."""
    comparison = report.comparison
    base = comparison.contenders[0].name
    rows = [[each.name, _millions(each.tokens_per_s), spread(each.ratio)] for each in comparison.contenders]
    stages = [
        [stage.name, f"{stage.document_us:,.1f}", f"{stage.pack_us:,.1f}", f"{stage.share:.1%}"]
        for stage in comparison.stages
    ]
    workers = [
        [
            str(each.workers),
            _millions(each.tokens_per_s),
            spread(each.ratio),
            spread(each.main_ms),
            "" if each.own_mb != each.own_mb else f"{each.own_mb:,.0f}",
        ]
        for each in report.workers
    ]
    starts = [[f"first batch, {n} workers", _milliseconds(value)] for n, value in report.first_batch_s.items()]
    starts += [
        [f"resume at {each.percent} % of an epoch" if each.percent else "fresh start", _milliseconds(each.seconds)]
        for each in report.resume
    ]
    return [
        Sheet("The whole pipeline, per core", ["", "Mtok per CPU second", f"ratio to {base}"], rows),
        Sheet("Where its time goes", ["stage", "µs per document", "µs per pack", "share"], stages),
        Sheet(
            "Workers, by the clock",
            [
                "workers",
                "Mtok/s",
                f"ratio to {report.workers[0].workers} workers",
                "main process, ms per batch",
                "MB of its own",
            ],
            workers,
        ),
        Sheet("Until the first batch", ["", "ms"], starts),
    ]


def _head(report: "Report") -> list[str]:
    machine, comparison = report.machine, report.comparison
    versions = ", ".join(f"{name} {number_}" for name, number_ in machine.versions.items())
    return [
        f"{report.source}: {comparison.documents:,} documents, {comparison.tokens:,} tokens, {report.rounds} rounds",
        f"tokenizer {report.tokenizer}; the pipeline's ids and packs are those of the plain tokenizer (checked)",
        f"{machine.processor}, {machine.cores} cores, load {machine.load:.1f} before the run",
        f"Python {machine.python}, {versions}",
    ]


def draw(console: Console, report: "Report") -> None:
    """All of it on the terminal."""
    for row in _head(report):
        console.print(Text(row, style="dim"))
    for sheet in sheets(report):
        table = Table(title=sheet.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
        for index, name in enumerate(sheet.header):
            table.add_column(name, justify="right" if index else "left")
        for cells in sheet.rows:
            table.add_row(*cells)
        console.print(table)
    console.print(Text(NOISE, style="dim"))


def markdown(report: "Report") -> str:
    """All of it as Markdown."""
    parts = ["\n".join(f"* {row}" for row in _head(report))]
    parts += [f"### {sheet.title}\n\n{table_rows(sheet.header, sheet.rows)}" for sheet in sheets(report)]
    return "\n\n".join([*parts, NOISE]) + "\n"


def table_rows(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def svg(report: "Report") -> str:
    """Speeds, ratios, workers and stages as bars, with the machine that they were measured on."""
    comparison = report.comparison
    base = comparison.contenders[0].name
    shown = [each for each in comparison.contenders if each.name != WITHOUT_TOKENIZER]
    ratios = [Bar(each.name, each.ratio, is_own=each.name.startswith("pipeline")) for each in shown]
    speeds = [_speed(each.name, each.tokens_per_s, is_own=each.name.startswith("pipeline")) for each in shown]
    workers = [_speed(f"{each.workers} workers", each.tokens_per_s, is_own=True) for each in report.workers]
    stages = [_part(stage.name, 100 * stage.share) for stage in comparison.stages]
    return draw_panels(
        "streampack bench",
        [
            Panel(
                [Group("the whole pipeline, per core", speeds), Group("on several workers, by the clock", workers)],
                "Mtok/s: per second of CPU time, and of the clock; median, lowest to highest",
            ),
            Panel(
                [Group(f"the whole pipeline, beside {base}", ratios)],
                f"ratio to {base}, within a round; median, lowest to highest; dashed: 1",
                mark=1.0,
            ),
            Panel(
                [Group("where the pipeline's time goes", stages)],
                "% of the whole pipeline's CPU time, with the first engine; what follows from the rest may be below 0",
            ),
        ],
        notes=_head(report),
    )


def _speed(name: str, value: Spread, *, is_own: bool) -> Bar:
    millions = Spread(value.low / 1e6, value.median / 1e6, value.high / 1e6)
    return Bar(name, millions, is_own=is_own, shown=f"{number(millions.median)} Mtok/s")


def _part(name: str, percent: float) -> Bar:
    return Bar(name, Spread(*[max(percent, 0.0)] * 3), is_own=True, shown=f"{percent:.1f} %")
