"""What `streampack verify` has found, on the terminal or as JSON."""

from collections.abc import Iterator
from typing import Any

import msgspec
from rich.table import Table

from streampack.cli.console import format_bytes, output, plural, print_json, printable
from streampack.cli.verify.verdict import Verdict
from streampack.corpus.shares import DEFAULT

_SHOWN = 40
"""Problems that the table shows."""


def report(verdicts: list[Verdict], *, num_read: int, as_json: bool) -> None:
    """All verdicts added up, and the bad ones."""
    bad = [verdict for verdict in verdicts if verdict.num_problems]
    totals: dict[str, Any] = {
        "num_shards": len(verdicts),
        "num_read": num_read,
        "bytes": sum(verdict.size for verdict in verdicts),
        "samples": sum(verdict.samples for verdict in verdicts),
        "documents": sum(verdict.documents for verdict in verdicts),
        "num_passed_over": sum(verdict.num_passed_over for verdict in verdicts),
        "num_problems": sum(verdict.num_problems for verdict in verdicts),
    }
    if as_json:
        print_json(totals | {"bad_shards": [msgspec.to_builtins(verdict) for verdict in bad]})
        return
    console = output()
    if bad:
        table = Table("shard", "problems", "what is wrong", title=None, show_lines=True)
        for verdict, problem in _shown(bad):
            whose = "" if verdict.source == DEFAULT else f"{verdict.source}: "
            table.add_row(whose + printable(verdict.name), f"{verdict.num_problems:,}", printable(problem), style="red")
        console.print(table)
    read = "" if num_read == len(verdicts) else f" ({num_read:,} read now, the others are in the journal)"
    console.print(
        f"{plural(totals['num_shards'], 'shard')}{read}, {format_bytes(totals['bytes'])}, "
        f"{plural(totals['documents'], 'document')}: "
        + (f"{plural(totals['num_problems'], 'problem')} in {plural(len(bad), 'shard')}" if bad else "nothing is wrong")
    )
    if (number := totals["num_passed_over"]) > 0:
        first = next(verdict for verdict in verdicts if verdict.num_passed_over)
        console.print(
            f"{plural(number, 'file')} with a name that belongs to no sample (without a dot, one that begins with a "
            "dot, or in a folder like __this__), and so in no run; the first one is "
            f"{first.passed_over!r} in {printable(first.name)}"
        )


def _shown(bad: list[Verdict]) -> Iterator[tuple[Verdict, str]]:
    """The first problems, at least one of each of the first shards."""
    most = max(1, _SHOWN // len(bad))
    for verdict in bad[:_SHOWN]:
        for problem in verdict.problems[:most]:
            yield verdict, problem
